//! `smolten compare RUN RUN…`.

use crate::runs::{program, said, sums, tiny_model, train};
use crate::{assert_self_contained, part};
use serde_json::Value;
use smolten::report::REPORT;
use std::path::{Path, PathBuf};

/// Two runs that differ in their rate.
fn two_runs(folder: &Path) -> [PathBuf; 2] {
    ["1e-2", "3e-3"].map(|lr| {
        let out = folder.join(format!("lr-{lr}"));
        let more = ["--steps", "6", "--lr", lr, "--set", "eval_share=0.2", "--set", "eval_every=2"];
        let mut command = program(folder);
        command.args(["train", "--device", "cpu", "--model"]).arg(tiny_model());
        let ran = command.arg("--data").arg(sums(folder)).arg("--out").arg(&out).args(more).output().unwrap();
        assert!(ran.status.success(), "{}", said(&ran));
        let screen = String::from_utf8(ran.stdout).unwrap();
        assert_eq!(screen.matches(&format!("report: {}", out.join(REPORT).display())).count(), 2, "{screen}");
        out
    })
}

#[test]
fn runs_are_laid_over_one_another() {
    let folder = tempfile::tempdir().unwrap();
    let runs = two_runs(folder.path());
    let compare = |more: &[&str]| {
        program(folder.path())
            .current_dir(folder.path())
            .arg("compare")
            .args(&runs)
            .args(more)
            .output()
            .unwrap()
    };
    let ran = compare(&[]);
    assert!(ran.status.success(), "{}", said(&ran));
    let screen = String::from_utf8(ran.stdout).unwrap();
    let line = |what: &str| {
        let line = screen.lines().find(|l| l.starts_with(what)).unwrap_or_else(|| panic!("{what}: {screen}"));
        line[what.len()..].split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("run "), ["lr-1e-2", "lr-3e-3"]);
    assert_eq!(line("steps "), ["6", "6"]);
    assert_eq!(line("lr "), ["0.01", "0.003"]);
    assert!(
        !screen.contains("\nout ") && !screen.contains("\nseed "),
        "what is the same is not said: {screen}"
    );
    for (i, run) in runs.iter().enumerate() {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let losses: Vec<f64> = text
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["eval_loss"].as_f64())
            .collect();
        assert_eq!(line("held-out loss before ")[i], format!("{:.4}", losses[0]));
        assert_eq!(line("last held-out loss ")[i], format!("{:.4}", losses[losses.len() - 1]));
        let best = losses[1..].iter().copied().fold(f64::INFINITY, f64::min);
        assert_eq!(line("lowest held-out loss ")[3 * i], format!("{best:.4}"));
    }
    let path = folder.path().join("compare.html");
    let page = std::fs::read_to_string(&path).unwrap();
    assert_self_contained(&page);
    assert!(page.contains("<th scope=\"row\">lr</th><td>0.01</td><td>0.003</td>"), "the key that differs");
    let held_out = part(&page, "id=\"held_out\"", "</svg>");
    assert!(held_out.contains("strong c0") && held_out.contains("strong c1"));

    // A folder may be called anything that the system lets it.
    let odd = folder.path().join("<!--<script>alert(1)");
    std::fs::create_dir(&odd).unwrap();
    for file in ["run.json", "metrics.jsonl"] {
        std::fs::copy(runs[0].join(file), odd.join(file)).unwrap();
    }
    assert!(compare(&[odd.to_str().unwrap()]).status.success());
    assert_self_contained(&std::fs::read_to_string(&path).unwrap());

    assert!(compare(&[]).status.success(), "what smolten wrote it may write again");
    let other = folder.path().join("mine.html");
    std::fs::write(&other, "<p>mine</p>").unwrap();
    let ran = compare(&["--out", other.to_str().unwrap()]);
    assert_eq!(ran.status.code(), Some(2));
    assert!(said(&ran).contains("mine.html") && std::fs::read_to_string(&other).unwrap() == "<p>mine</p>");
    assert_eq!(compare(&["--out", "other.html"]).status.code(), Some(0));
    assert!(folder.path().join("other.html").is_file());
}

#[test]
fn what_is_no_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    assert!(train(folder.path(), &out, &["--steps", "2"]).output().unwrap().status.success());
    let broken = folder.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    let out = out.to_str().unwrap();
    let refused = |arguments: &[&str], parts: &[&str]| {
        let ran = program(folder.path())
            .current_dir(folder.path())
            .arg("compare")
            .args(arguments)
            .output()
            .unwrap();
        let said = said(&ran);
        assert_eq!(ran.status.code(), Some(2), "{said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?} in {said}");
        assert!(!folder.path().join("compare.html").exists());
    };
    refused(&[], &["--base", "--tuned"]);
    refused(&[out], &["2"]);
    refused(&[out, out, "--base", "m"], &["--base"]);
    refused(&[out, "none"], &["none/run.json", "no such file"]);
    std::fs::copy(Path::new(out).join("run.json"), broken.join("run.json")).unwrap();
    let name = broken.to_str().unwrap();
    refused(&[out, name], &["broken/metrics.jsonl", "no such file"]);
    for (text, found) in [
        ("{\"step\": 0, \"eval_loss\": 1.0}\n{\"step\"\n", "metrics.jsonl:2: not JSON"),
        ("{\"step\": 1, \"loss\": \"low\"}\n", "metrics.jsonl:1: loss is \"low\""),
        ("{\"loss\": 2.0}\n", "metrics.jsonl:1: step is null"),
    ] {
        std::fs::write(broken.join("metrics.jsonl"), text).unwrap();
        refused(&[out, name], &[found]);
    }
    // The last line of a run that was killed in it.
    std::fs::write(broken.join("metrics.jsonl"), "{\"step\": 1, \"loss\": 2.0}\n{\"step\": 2, \"lo").unwrap();
    let ran =
        program(folder.path()).current_dir(folder.path()).args(["compare", out, name]).output().unwrap();
    assert!(ran.status.success(), "{}", said(&ran));
}
