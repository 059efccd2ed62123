//! Plans for a card that is not here, and for memory that does not do.

#[allow(dead_code, reason = "shared between tests")]
#[path = "common/runs.rs"]
mod runs;

use runs::{gpu_model, program, said, sums};
use std::path::Path;

/// `train` on a model that GPUs take too.
fn screen(folder: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let (model, out) = (folder.join("model"), folder.join("run"));
    if !model.exists() {
        gpu_model(folder);
    }
    let mut command = program(folder);
    command.args(["train", "--model"]).arg(model).arg("--out").arg(&out);
    let ran = command.arg("--data").arg(sums(folder)).args(more).output().unwrap();
    assert!(!out.exists(), "{more:?} left a folder");
    (ran.status.code(), String::from_utf8(ran.stdout.clone()).unwrap(), said(&ran))
}

#[test]
fn a_card_is_planned_for_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let (code, shown, said) = screen(folder.path(), &["--dry-run", "--set", "device_name=RTX 4090"]);
    assert_eq!(code, Some(0), "{said}");
    for part in [
        "engine: RTX 4090 (compute capability 8.9, from the table of cards), bf16",
        "memory planned, MiB: weights ",
        "a model, not a measurement",
        "largest batch: --batch-size 19 fits into the 22120 MiB",
        "\"device_name\": \"RTX 4090\"",
        "dry run: nothing was written",
    ] {
        assert!(shown.contains(part), "`{part}` is not in:\n{shown}");
    }
    // Turing has no bf16; and fp32 no kernels to take figures from.
    let (_, shown, _) = screen(folder.path(), &["--dry-run", "--set", "device_name=t4"]);
    assert!(shown.contains("engine: T4 (compute capability 7.5, from the table of cards), fp16"), "{shown}");
    let (code, _, said) =
        screen(folder.path(), &["--dry-run", "--set", "device_name=T4", "--precision", "bf16"]);
    assert!(code == Some(2) && said.contains("compute capability 7.5; bf16 needs 8.0"), "{said}");
    let (_, shown, _) =
        screen(folder.path(), &["--dry-run", "--set", "device_name=L4", "--precision", "fp32"]);
    assert!(shown.contains("engine: L4") && !shown.contains("time: "), "{shown}");
}

#[test]
fn a_card_by_name_is_for_plans_only() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, said) = screen(folder.path(), &["--set", "device_name=RTX 4090"]);
    assert!(code == Some(2) && said.contains("add --dry-run"), "{said}");
    let (code, _, said) = screen(folder.path(), &["--dry-run", "--set", "device_name=A100"]);
    assert!(
        code == Some(2) && said.contains("A100 40GB or A100 80GB") && said.contains("name one of T4"),
        "{said}"
    );
}

/// The refusal comes before anything is loaded, and what it proposes is taken as it stands.
#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let folder = tempfile::tempdir().unwrap();
    let model = gpu_model(folder.path());
    let data = folder.path().join("long.jsonl");
    let row = |i: usize| {
        let words = "and so on ".repeat(if i.is_multiple_of(2) { 3 } else { 30 });
        format!("{{\"prompt\": \"Go on\", \"response\": \"{words}\"}}\n")
    };
    std::fs::write(&data, (0..60_000).map(row).collect::<String>()).unwrap();
    // A flag that is proposed takes the place of the one before.
    let plan = |more: &[&str]| {
        let sizes = [["--batch-size", "50000"], ["--max-length", "256"]];
        let ran = program(folder.path())
            .args([
                "train",
                "--dry-run",
                "--set",
                "device_name=T4",
                "--set",
                "allow=['duplicates']",
                "--model",
            ])
            .args([&model, Path::new("--data"), &data])
            .args(sizes.iter().filter(|[flag, _]| !more.contains(flag)).flatten())
            .args(more)
            .output()
            .unwrap();
        (ran.status.code(), String::from_utf8(ran.stdout.clone()).unwrap(), said(&ran))
    };
    let (code, shown, said) = plan(&[]);
    assert_eq!(code, Some(2), "{shown}{said}");
    assert!(said.contains("error: memory: the run needs ") && said.contains("MiB are free"), "{said}");
    let proposed: Vec<&str> = said.lines().filter(|line| line.starts_with("    --")).collect();
    assert!(proposed.len() >= 2, "{said}");
    for line in proposed {
        let flags: Vec<&str> = line.split("  (").next().unwrap().split_whitespace().collect();
        let (code, _, said) = plan(&flags);
        assert_eq!(code, Some(0), "{line}: {said}");
    }
}
