//! Killed at any moment, out of disk, without permission: no run loses what a checkpoint holds.
#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "shared between tests")]
#[path = "common/runs.rs"]
mod runs;

use runs::{program, said, train, weights};
use safetensors::SafeTensors;
use smolten::pretrained::Pretrained;
use smolten::trainer::State;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const KILLS: usize = 50;

/// Steps of the runs that are interrupted once.
const STEPS: &str = "2000";

/// Long enough that fifty kills come first, also where a checkpoint takes no time.
const KILLED_STEPS: &str = "5000";

fn resume(folder: &Path, out: &Path) -> Command {
    let mut command = program(folder);
    command.args(["train", "--resume", "--out"]).arg(out);
    command
}

/// The steps there are checkpoints of; each is opened and read.
fn whole_checkpoints(out: &Path) -> Vec<usize> {
    let Ok(entries) = std::fs::read_dir(out.join("checkpoints")) else { return Vec::new() };
    let mut steps = Vec::new();
    for entry in entries.map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let Ok(step) = name.strip_prefix("step-").unwrap().parse::<usize>() else {
            assert!(name.ends_with(".part"), "{name} is neither a checkpoint nor the remains of one");
            continue;
        };
        let path = entry.path();
        let model = Pretrained::open(&path).unwrap();
        for parameter in model.config.parameters() {
            let mut values = vec![f32::NAN; parameter.shape[0] * parameter.shape[1]];
            model.weights.read(&parameter, &mut values).unwrap();
            assert!(values.iter().all(|x| x.is_finite()), "{name}: {}", parameter.name);
        }
        let optimizer = std::fs::read(path.join("optimizer.safetensors")).unwrap();
        assert!(SafeTensors::deserialize(&optimizer).unwrap().len() >= model.config.parameters().len());
        let state = std::fs::read(path.join("trainer_state.json")).unwrap();
        let state: State = serde_json::from_slice(&state).unwrap();
        assert_eq!(state.step, step);
        steps.push(step);
    }
    steps.sort_unstable();
    steps
}

/// Splitmix64; a seed of its own each time, printed, so that a failure can be repeated.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn killed_fifty_times_it_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let flags =
        ["--steps", KILLED_STEPS, "--save-every", "1", "--set", "eval_every=7", "--set", "eval_share=0.2"];
    let whole = folder.join("whole");
    let unsaved = ["--save-every", "0"];
    let ran = train(folder, &whole, &[&flags[..2], &flags[4..], &unsaved].concat()).output().unwrap();
    assert!(ran.status.success(), "{}", said(&ran));

    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut seed = u64::from(now.subsec_nanos());
    println!("seed {seed}");
    let out = folder.join("killed");
    let (mut moments, mut last) = (0, 0);
    // Set by the first start: kills fall as often into the start of a run as into its steps, however slow the machine.
    let mut window = Duration::ZERO;
    for kill in 0..KILLS {
        let started = out.join("run.json").exists();
        let mut command = if started { resume(folder, &out) } else { train(folder, &out, &flags) };
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        if kill == 0 {
            let start = Instant::now();
            while whole_steps(&out) == 0 {
                assert!(start.elapsed() < Duration::from_secs(120), "no checkpoint is written");
                std::thread::sleep(Duration::from_millis(1));
            }
            window = 3 * start.elapsed();
        } else {
            std::thread::sleep(window.mul_f64((random(&mut seed) >> 11) as f64 / (1u64 << 53) as f64));
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "the run ended by itself before kill {kill}: {status}");
        if !started && !out.join("run.json").exists() {
            let _ = std::fs::remove_dir_all(&out); // killed before it wrote anything to go on from
        }
        let steps = whole_checkpoints(&out);
        let latest = steps.last().copied().unwrap_or(0);
        assert!(latest >= last, "checkpoint {last} was lost: {steps:?}");
        moments += usize::from(latest > last);
        last = latest;
    }
    println!("{moments} of {KILLS} kills came after further checkpoints; the last is of step {last}");
    assert!(moments >= 10, "the runs hardly got anywhere between the kills");
    let ran = resume(folder, &out).args(["--threads", "1"]).args(unsaved).output().unwrap();
    assert!(ran.status.success(), "{}", said(&ran));
    assert!(weights(&whole) == weights(&out));
}

/// A run that was interrupted by SIGTERM after its first checkpoints, as text of its standard output.
fn interrupted(folder: &Path, out: &Path, more: &[&str]) -> String {
    let mut flags = vec!["--steps", STEPS, "--save-every", "1"];
    flags.extend(more);
    let mut child = train(folder, out, &flags).stdout(Stdio::piped()).spawn().unwrap();
    while whole_steps(out) < 3 {
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(child.try_wait().unwrap(), None, "the run ended early");
    }
    let signal = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(signal.success());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130));
    String::from_utf8(ended.stdout).unwrap()
}

fn whole_steps(out: &Path) -> usize {
    let entries = std::fs::read_dir(out.join("checkpoints")).into_iter().flatten();
    let step = |name: String| name.strip_prefix("step-")?.parse().ok();
    entries.filter_map(|e| step(e.ok()?.file_name().into_string().ok()?)).max().unwrap_or(0)
}

#[test]
fn a_signal_lets_the_step_finish_and_says_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let screen = interrupted(folder.path(), &out, &[]);
    let steps = whole_checkpoints(&out);
    let go_on = format!("go on with: smolten train --resume --out {}", out.display());
    assert!(screen.contains(&go_on), "{screen}");
    let last = screen.lines().rfind(|l| l.starts_with("step ")).unwrap();
    assert!(last.contains(&format!("{}/{STEPS}", steps.last().unwrap())), "{last}, {steps:?}");
    let ran = resume(folder.path(), &out).args(["--save-every", "0"]).output().unwrap();
    assert!(ran.status.success(), "{}", said(&ran));
    let whole = folder.path().join("whole");
    let ran = train(folder.path(), &whole, &["--steps", STEPS, "--save-every", "0"]).output().unwrap();
    assert!(ran.status.success() && weights(&whole) == weights(&out));
}

/// The run fails with code 1, names the file, and says which checkpoint is whole; that one goes on afterwards.
fn assert_stopped(ran: &Output, out: &Path, parts: &[&str]) {
    let said = said(ran);
    assert_eq!(ran.status.code(), Some(1), "{said}");
    let step = *whole_checkpoints(out).last().unwrap();
    let saved = format!("step-{step} is whole");
    for part in ["the run stopped: cannot", &saved, "--resume --out"].iter().chain(parts) {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
    assert!(step >= 3 && !out.join("model.safetensors").exists());
}

/// A limit on the size of files stands for a full disk where no small file system can be mounted.
#[test]
fn a_disk_that_takes_no_more_stops_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    interrupted(folder.path(), &out, &[]);
    // 64 KiB: less than the weights. Without the trap the signal would kill the program.
    let script = "trap '' XFSZ; ulimit -f 128; exec \"$0\" train --resume --out \"$1\"";
    let ran = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_smolten")])
        .arg(&out)
        .env("SMOLTEN_CACHE", folder.path().join("cache"))
        .output()
        .unwrap();
    assert_stopped(&ran, &out, &["File too large"]);
    let ran = resume(folder.path(), &out).args(["--save-every", "0"]).output().unwrap();
    assert!(ran.status.success(), "{}", said(&ran));
}

/// In a mount namespace of its own, where the system lets us have one: a file system of 3 MiB.
#[test]
fn a_full_disk_stops_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let script = "mount -t tmpfs -o size=3m tmpfs \"$1\" || exit 77\n\
                  shift; \"$@\"; code=$?\n\
                  cp -r \"$0\"/. \"$COPY\"; exit $code";
    let out = disk.join("run");
    let copy = folder.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    let run =
        train(folder.path(), &out, &["--steps", STEPS, "--save-every", "1", "--set", "keep_checkpoints=100"]);
    let ran = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .args([&out, &disk])
        .arg(run.get_program())
        .args(run.get_args())
        .env("SMOLTEN_CACHE", folder.path().join("cache"))
        .env("COPY", &copy)
        .output();
    match ran {
        Ok(ran) if ran.status.code() == Some(1) && said(&ran).contains("the run stopped") => {
            assert_stopped(&ran, &copy, &["No space left on device"]);
        }
        other => println!("no small file system here, the test of a file limit stands alone: {other:?}"),
    }
}

/// A folder that became read-only: refused at the start where it is the run's, an error later where it is deeper.
#[test]
fn a_read_only_folder_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (folder, out) = (folder.path(), folder.path().join("run"));
    interrupted(folder, &out, &[]);
    let binary = folder.join("smolten");
    std::fs::copy(env!("CARGO_BIN_EXE_smolten"), &binary).unwrap();
    open_to_all(folder);
    let resume = |more: &[&str]| {
        let mut command = Command::new(&binary);
        command.args(["train", "--resume", "--out"]).arg(&out).args(more);
        command.env("SMOLTEN_CACHE", folder.join("cache-of-nobody"));
        // Permissions do not bind root, whose runs change to another user here.
        if std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0 {
            command.uid(65_534).gid(65_534);
        }
        command.output().unwrap()
    };
    let checkpoints = out.join("checkpoints");
    set_mode(&checkpoints, 0o555);
    let ran = resume(&[]);
    set_mode(&checkpoints, 0o777);
    assert_stopped(&ran, &out, &["Permission denied"]);
    set_mode(&out, 0o555);
    let ran = resume(&[]);
    set_mode(&out, 0o777);
    assert_eq!(ran.status.code(), Some(2));
    assert!(said(&ran).contains("cannot write there"), "{}", said(&ran));
    let ran = resume(&["--save-every", "0"]);
    assert!(ran.status.success(), "{}", said(&ran));
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn open_to_all(path: &Path) {
    set_mode(path, 0o777);
    if path.is_dir() {
        let entries: Vec<PathBuf> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
        entries.iter().for_each(|entry| open_to_all(entry));
    }
}
