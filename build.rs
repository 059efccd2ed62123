//! Compiles `kernels/*.cu` with nvcc and writes `$OUT_DIR/kernels.rs`, a table of what came out of each file: PTX
//! for the oldest GPUs of two instruction sets, and cubins made from that very PTX. Without nvcc it warns, and the
//! table is empty: the CPU engine.
//!
//! nvcc is looked for in `NVCC`, `CUDA_HOME`/bin, `CUDA_PATH`/bin, `PATH`, the usual folders, and `target/nvcc`,
//! where `scripts/get-nvcc` puts it; one older than 12.8 is passed over, and an empty `NVCC` asks for none. nvcc needs a
//! C++ compiler: g++ of the `PATH`, or `NVCC_CCBIN`. `CUDA_ARCHS` (e.g. `80,90`) limits the cubins; GPUs without one compile the
//! PTX at start. A file may ask for further flags in a line `// nvcc: FLAGS`.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs};

/// PTX target, and the GPUs that get a cubin of it. Turing has no bf16 arithmetic, hence a PTX of its own.
const TARGETS: [(u32, &[u32]); 2] = [(75, &[75]), (80, &[80, 86, 89, 90, 120])];

/// The oldest nvcc that knows all of them.
const OLDEST_NVCC: (u32, u32) = (12, 8);

const FLAGS: [&str; 5] = ["-std=c++17", "-O3", "-lineinfo", "-Werror=all-warnings", "-Ikernels"];

/// One kernel file for one PTX target.
struct Job {
    stem: String,
    ptx: u32,
    cubins: Vec<u32>,
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    // Whatever is compiled anew is of the source that is there then, committed or not.
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rustc-env=SMOLTEN_VERSION={}", version());
    for variable in ["SMOLTEN_COMMIT", "NVCC", "NVCC_CCBIN", "CUDA_HOME", "CUDA_PATH", "CUDA_ARCHS"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut table = String::new();
    let mut version = (0, 0);
    if let Some((nvcc, found)) = find_nvcc() {
        version = found;
        let jobs = jobs();
        compile_all(&nvcc, &jobs, &out);
        for job in &jobs {
            write_entry(&mut table, job, &out);
        }
    } else {
        println!(
            "cargo:warning=no nvcc of 12.8 or newer: building the CPU engine only (for CUDA: \
             `scripts/get-nvcc target/nvcc`, or set NVCC, and build again)"
        );
    }
    let table = format!(
        "static IMAGES: &[Image] = &[\n{table}];\n/// Of the compiler.\npub(super) const CUDA_VERSION: (u32, u32) = {version:?};\n"
    );
    fs::write(out.join("kernels.rs"), table).expect("OUT_DIR is writable");
}

/// `0.1.0 (commit 0123456789ab)`: of this repository, or `SMOLTEN_COMMIT` where the source came without one.
fn version() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    // A source unpacked within another repository is none of its commits.
    let here = env::current_dir().and_then(|folder| folder.canonicalize()).expect("cargo sets it");
    let own = git(&["rev-parse", "--show-toplevel"]).is_some_and(|top| Path::new(&top) == here);
    let found = own.then(|| git(&["rev-parse", "--short=12", "HEAD"])).flatten();
    let commit = match found {
        Some(commit) if git(&["status", "--porcelain"]).as_deref() == Some("") => format!("commit {commit}"),
        Some(commit) => format!("commit {commit} and changes"),
        None => {
            let given = env::var("SMOLTEN_COMMIT").ok().filter(|commit| !commit.is_empty());
            given.map_or("commit unknown".to_owned(), |commit| format!("commit {commit}"))
        }
    };
    format!("{} ({commit})", env::var("CARGO_PKG_VERSION").expect("cargo sets it"))
}

/// nvcc and its version.
fn find_nvcc() -> Option<(PathBuf, (u32, u32))> {
    if let Some(nvcc) = env::var_os("NVCC") {
        if nvcc.is_empty() {
            return None;
        }
        let version = nvcc_version(Path::new(&nvcc));
        let Some(version) = version.filter(|&version| version >= OLDEST_NVCC) else {
            fail(&format!("NVCC={} is no nvcc of 12.8 or newer (version: {version:?})", nvcc.display()));
        };
        return Some((nvcc.into(), version));
    }
    let homes =
        ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|d| Path::new(&d).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/cuda/bin", "/opt/cuda/bin", "target/nvcc/nvidia/cu13/bin"].map(PathBuf::from);
    let folders = homes.chain(env::split_paths(&path)).chain(usual);
    let found = folders.map(|folder| folder.join("nvcc")).filter_map(|nvcc| nvcc.canonicalize().ok());
    for nvcc in found {
        match nvcc_version(&nvcc) {
            Some(version) if version >= OLDEST_NVCC => return Some((nvcc, version)),
            version => println!("cargo:warning={} is passed over: version {version:?}", nvcc.display()),
        }
    }
    None
}

/// From the line `Cuda compilation tools, release 13.0, V13.0.88`.
fn nvcc_version(nvcc: &Path) -> Option<(u32, u32)> {
    let output = Command::new(nvcc).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (_, rest) = text.split_once("release ")?;
    let (major, minor) = rest.split(',').next()?.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Every kernel file for every PTX target.
fn jobs() -> Vec<Job> {
    let wanted = env::var("CUDA_ARCHS").ok().map(|list| {
        let number =
            |arch: &str| arch.trim().parse().unwrap_or_else(|_| panic!("CUDA_ARCHS={list}: not numbers"));
        list.split(',').filter(|arch| !arch.trim().is_empty()).map(number).collect::<Vec<u32>>()
    });
    let files = fs::read_dir("kernels").expect("kernels/ is readable").map(|e| e.expect("an entry").path());
    let mut stems: Vec<String> = files
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .map(|path| path.file_stem().expect("a name").to_str().expect("an ASCII name").to_owned())
        .collect();
    stems.sort();
    let mut jobs = Vec::new();
    for stem in stems {
        for (ptx, archs) in TARGETS {
            let is_wanted = |arch: &u32| wanted.as_ref().is_none_or(|wanted| wanted.contains(arch));
            jobs.push(Job {
                stem: stem.clone(),
                ptx,
                cubins: archs.iter().copied().filter(is_wanted).collect(),
            });
        }
    }
    jobs
}

/// Runs the jobs that changed, as many at a time as cargo allows.
fn compile_all(nvcc: &Path, jobs: &[Job], out: &Path) {
    let headers = fs::read_dir("kernels").expect("kernels/ is readable").map(|e| e.expect("an entry").path());
    let mut headers: Vec<_> = headers.filter(|path| path.extension().is_some_and(|e| e == "cuh")).collect();
    headers.sort();
    let headers: Vec<String> =
        headers.iter().map(|h| fs::read_to_string(h).expect("a readable header")).collect();
    let parallel = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let queue = Mutex::new(jobs.iter());
    std::thread::scope(|scope| {
        for _ in 0..parallel {
            scope.spawn(|| {
                loop {
                    let Some(job) = queue.lock().expect("no job panicked").next() else { return };
                    compile(nvcc, job, &headers, out);
                }
            });
        }
    });
}

/// PTX, then cubins from it, unless a stamp says that nothing changed.
fn compile(nvcc: &Path, job: &Job, headers: &[String], out: &Path) {
    let source = PathBuf::from(format!("kernels/{}.cu", job.stem));
    let text = fs::read_to_string(&source).expect("a readable kernel");
    let mut hasher = DefaultHasher::new();
    (nvcc, FLAGS, &job.cubins, &text, headers).hash(&mut hasher);
    let (stamp, hash) = (out.join(format!("{}.{}.stamp", job.stem, job.ptx)), hasher.finish().to_string());
    if fs::read_to_string(&stamp).is_ok_and(|old| old == hash) {
        return;
    }
    let own: Vec<&str> =
        text.lines().filter_map(|l| l.strip_prefix("// nvcc: ")).flat_map(str::split_whitespace).collect();
    let ptx = out.join(format!("{}.{}.ptx", job.stem, job.ptx));
    let mut command = Command::new(nvcc);
    run(command
        .args(["-ptx", &format!("-arch=compute_{}", job.ptx)])
        .args(FLAGS)
        .args(&own)
        .arg("-o")
        .arg(&ptx)
        .arg(&source));
    for arch in &job.cubins {
        let cubin = out.join(format!("{}.{arch}.cubin", job.stem));
        let mut command = Command::new(nvcc);
        run(command
            .args(["-cubin", &format!("-arch=sm_{arch}"), "-lineinfo"])
            .args(&own)
            .arg("-o")
            .arg(cubin)
            .arg(&ptx));
    }
    fs::write(stamp, hash).expect("OUT_DIR is writable");
}

/// Fails the build, with what the compiler said, if the command does.
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| fail(&format!("cannot run {command:?}: {e}")));
    if output.status.success() {
        return;
    }
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    if ["host compiler", "cc1plus", "g++"].iter().any(|word| said.contains(word)) {
        fail(
            "nvcc needs a C++ compiler and finds none: install g++ (Debian, Ubuntu: apt install g++), or set \
             NVCC_CCBIN to its path; with an empty NVCC the CPU engine alone is built",
        );
    }
    fail(&format!("{command:?} failed:\n{said}"));
}

/// Ends the build with a message that cargo shows.
fn fail(message: &str) -> ! {
    message.lines().for_each(|line| println!("cargo::error={line}"));
    std::process::exit(1);
}

/// One `Image { .. }` of the table in `src/cuda.rs`.
fn write_entry(table: &mut String, job: &Job, out: &Path) {
    let Job { stem, ptx, .. } = job;
    let path = out.join(format!("{stem}.{ptx}.ptx"));
    write!(table, "Image {{ file: {stem:?}, ptx: ({ptx}, include_str!({path:?})), cubins: &[")
        .expect("a string");
    for arch in &job.cubins {
        let path = out.join(format!("{stem}.{arch}.cubin"));
        write!(table, "({arch}, include_bytes!({path:?})), ").expect("a string");
    }
    table.push_str("] },\n");
}
