//! What needs a process of its own: settings from the environment, calls before `cuInit`, the report at the
//! end. This program runs itself again, one of the `child_` tests alone.

use crate::api::*;
use std::process::{Command, Output};

/// Runs one of the tests below with variables set.
pub fn child(name: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]);
    for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("EMULATOR_")) {
        command.env_remove(variable);
    }
    command.envs(variables.iter().copied()).output().unwrap()
}

/// Standard error of a child that succeeds.
#[track_caller]
pub fn succeeds(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = String::from_utf8_lossy(&output.stdout);
    let end = errors.len().saturating_sub(4000);
    assert!(
        output.status.success(),
        "{}\n{said}\n{}",
        output.status,
        &errors[errors.floor_char_boundary(end)..]
    );
    assert!(said.contains("1 passed"), "no such test: {said}");
    errors
}

#[test]
fn nothing_works_before_cu_init() {
    succeeds(&child("process::child_before_init", &[]));
}

#[test]
#[ignore = "in a process of its own"]
fn child_before_init() {
    assert_eq!(cuDeviceGetCount(&mut 0), NOT_INITIALIZED);
    assert_eq!(cuCtxCreate_v2(&mut 0, 0, 0), NOT_INITIALIZED);
    assert_eq!(cuCtxSynchronize(), NOT_INITIALIZED);
    assert_eq!(cuStreamSynchronize(0), NOT_INITIALIZED);
    assert_eq!(cuMemAlloc_v2(&mut 0, 4), NOT_INITIALIZED);
    assert_eq!(cuTexObjectCreate(), NOT_INITIALIZED);
    assert_eq!(get(cuDriverGetVersion), 13000, "works always");
    assert_eq!(cuInit(1), INVALID_VALUE);
    ok(cuInit(0));
    ok(cuInit(0));
    assert_eq!(get(cuDeviceGetCount), 1);
}

#[test]
fn a_bad_setting_is_told_in_one_line() {
    for (variable, value, allowed) in [
        ("EMULATOR_COMPUTE_CAPABILITY", "9.0", "7.5, 8.0 or 8.9"),
        ("EMULATOR_COMPUTE_CAPABILITY", "", "7.5, 8.0 or 8.9"),
        ("EMULATOR_CHECKS", "races,bounds", "all, none"),
        ("EMULATOR_ORDER", "-1", "early, late or a seed"),
        ("EMULATOR_THREADS", "0", "1 to 1024"),
        ("EMULATOR_REPORT", "", "path"),
    ] {
        let errors = succeeds(&child("process::child_bad_setting", &[(variable, value)]));
        let [line] = errors.lines().collect::<Vec<_>>()[..] else { panic!("not one line: {errors}") };
        assert!(line.contains(&format!("{variable}={value}:")) && line.contains(allowed), "{line}");
    }
}

#[test]
#[ignore = "in a process of its own"]
fn child_bad_setting() {
    assert_eq!(cuInit(0), INVALID_VALUE);
    assert_eq!(cuDeviceGetCount(&mut 0), NOT_INITIALIZED);
}

#[test]
fn the_device_has_the_capability_asked_for() {
    // Capability, threads of a processor, blocks of it, KB of shared memory of it and, opted in, of a block.
    for (capability, limits) in
        [("7.5", "75 1024 16 64 64"), ("8.0", "80 2048 32 164 163"), ("8.9", "89 1536 24 100 99")]
    {
        let variables = [("EMULATOR_COMPUTE_CAPABILITY", capability), ("EXPECTED", limits)];
        succeeds(&child("process::child_capability", &variables));
    }
}

#[test]
#[ignore = "in a process of its own"]
fn child_capability() {
    ok(cuInit(0));
    let attribute = |number| get(|out| cuDeviceGetAttribute(out, number, 0));
    let capability = 10 * attribute(75) + attribute(76);
    let (threads, blocks, shared, most) =
        (attribute(39), attribute(106), attribute(81) >> 10, attribute(97) >> 10);
    let got = format!("{capability} {threads} {blocks} {shared} {most}");
    assert_eq!(got, std::env::var("EXPECTED").unwrap());
}

#[test]
fn faults_are_told_at_once_and_the_report_comes_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let output = child("process::child_fault", &[("EMULATOR_REPORT", path.to_str().unwrap())]);
    let errors = succeeds(&output);
    let fault = errors.find("Trap in trap, block (0, 0, 0)").expect(&errors);
    assert!(fault < errors.find("synchronised").expect(&errors), "told late: {errors}");
    assert_eq!(errors.matches("Trap in").count(), 1, "told once");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let text = report.to_string();
    assert!(text.contains("\"store\"") && text.contains("\"trap\""), "{text}");
    let bad = folder.path().join("missing/report.json");
    let errors = succeeds(&child("process::child_fault", &[("EMULATOR_REPORT", bad.to_str().unwrap())]));
    assert!(errors.contains("EMULATOR_REPORT="), "{errors}");
}

#[test]
#[ignore = "in a process of its own"]
fn child_fault() {
    let _session = Session::new();
    let module = Module::load();
    let memory = get(|out| cuMemAlloc_v2(out, 4));
    ok(store(module.function("store"), 1, 0, memory, 1));
    ok(launch(module.function("trap"), 1, 0, 0, &[]));
    eprintln!("synchronised");
    assert_eq!(cuCtxSynchronize(), LAUNCH_FAILED);
    assert_eq!(cuCtxSynchronize(), LAUNCH_FAILED);
}
