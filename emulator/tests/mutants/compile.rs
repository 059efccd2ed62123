//! PTX of the sample kernels, made by nvcc when the test runs, and cut down to the kernels that a sample launches.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// As in `build.rs` of the engine, whose headers the samples share.
const FLAGS: [&str; 6] = ["-ptx", "-std=c++17", "-O3", "-lineinfo", "-Werror=all-warnings", "-Ikernels"];

/// Of the pinned nvcc, whose PTX README.md speaks of.
pub const VERSION: &str = "V13.0.88";

/// The repository.
pub fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository");
    root.canonicalize().expect("it exists")
}

/// nvcc, looked for in the places where `build.rs` of the engine looks for it.
///
/// # Panics
/// If there is none.
pub fn find_nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let homes =
        ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|d| Path::new(&d).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/cuda/bin", "/opt/cuda/bin"].map(PathBuf::from);
    let own = root().join("target/nvcc/nvidia/cu13/bin");
    let folders = homes.chain(env::split_paths(&path)).chain(usual).chain([own]);
    let found = folders.map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file());
    found.and_then(|nvcc| nvcc.canonicalize().ok()).expect(
        "no nvcc found, which makes the PTX that is mutated: run `scripts/get-nvcc target/nvcc`, or set NVCC",
    )
}

/// E.g. `V13.0.88`.
pub fn version(nvcc: &Path) -> String {
    let output = Command::new(nvcc).arg("--version").output().expect("nvcc runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split([' ', '\n']).find(|word| word.starts_with('V'));
    version.unwrap_or_default().to_owned()
}

/// The PTX of a file, given by its path in the repository, for e.g. compute_80.
///
/// # Panics
/// If nvcc refuses it.
pub fn compile(nvcc: &Path, file: &str, target: u32) -> String {
    let stem = Path::new(file).file_stem().expect("a file").to_string_lossy().into_owned();
    let ptx = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{stem}.{target}.ptx"));
    let text = fs::read_to_string(root().join(file)).expect("a readable kernel");
    let own = text.lines().filter_map(|l| l.strip_prefix("// nvcc: ")).flat_map(str::split_whitespace);
    let mut command = Command::new(nvcc);
    command.current_dir(root()).args(FLAGS).arg(format!("-arch=compute_{target}")).args(own);
    let output = command.arg("-o").arg(&ptx).arg(file).output();
    let output = output.unwrap_or_else(|e| panic!("cannot run {}: {e}", nvcc.display()));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    fs::read_to_string(ptx).expect("nvcc wrote it")
}

/// The lines of a module without the entries that are not among `kernels`.
pub fn keep(ptx: &str, kernels: &[&str]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut skipping = false;
    for line in ptx.lines() {
        if let Some(head) = line.strip_prefix(".visible .entry ") {
            skipping = !kernels.contains(&head.trim_end_matches('('));
        }
        if !skipping {
            lines.push(line.to_owned());
        }
        // The brace that ends a body is the only one at the start of a line, but for the one that begins it.
        skipping &= line != "}";
    }
    lines
}
