//! `smolten bench train`: whole steps timed; and with `--run`, which runs are within the bands of the reference, which are not, and which cannot be held
//! against it.

use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};

fn reference() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/reference/trl-0.17-smollm2-360m.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A run folder as `train` writes it: the reference's settings and schedule, and its losses times `1 + off(step)`.
struct Run {
    folder: tempfile::TempDir,
}

impl Run {
    fn new(off: impl Fn(usize) -> f64) -> Self {
        let (run, reference) = (Self { folder: tempfile::tempdir().unwrap() }, reference());
        let losses = reference["losses"].as_array().unwrap();
        let mut lines = String::from("{\"step\": 0, \"epoch\": 0.0, \"eval_loss\": 3.0}\n");
        for (step, loss) in (1..).zip(losses) {
            let k = (step - 1) as f64;
            let rate = 2e-4 * if k < 5.0 { k / 5.0 } else { (60.0 - k) / 55.0 };
            let loss = loss.as_f64().unwrap() * (1.0 + off(step));
            lines += &(json!({ "step": step, "loss": loss, "learning_rate": rate }).to_string() + "\n");
        }
        run.write("metrics.jsonl", &lines);
        let mut recipe = reference["recipe"].clone();
        recipe["threads"] = Value::Null;
        let record = json!({
            "recipe": recipe,
            "total_steps": 60,
            "data": { "encoded": { "rows": 251 } },
            "model": { "parameters": 361_821_120 },
        });
        run.write("run.json", &record.to_string());
        run
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// Changes `run.json`.
    fn record(self, change: impl FnOnce(&mut Value)) -> Self {
        let mut record: Value = serde_json::from_str(&self.read("run.json")).unwrap();
        change(&mut record);
        self.write("run.json", &record.to_string());
        self
    }

    /// Changes the lines of `metrics.jsonl`, of which the first is an evaluation.
    fn lines(self, change: impl FnOnce(&mut Vec<String>)) -> Self {
        let mut lines: Vec<String> = self.read("metrics.jsonl").lines().map(str::to_owned).collect();
        change(&mut lines);
        self.write("metrics.jsonl", &(lines.join("\n") + "\n"));
        self
    }

    /// Exit code, screen and errors.
    fn bench(&self) -> (i32, String, String) {
        let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_smolten"))
            .args(["bench", "train", "--run"])
            .arg(self.folder.path())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code().unwrap(), text(stdout), text(stderr))
    }
}

fn alternating(size: f64) -> impl Fn(usize) -> f64 {
    move |step| if step % 2 == 0 { size } else { -size }
}

#[test]
fn the_reference_itself_and_runs_near_it_are_inside() {
    let one_far = |step| if step == 17 { 0.18 } else { 0.01 };
    for run in [Run::new(|_| 0.0), Run::new(alternating(0.055)), Run::new(one_far)] {
        let (code, screen, errors) = run.bench();
        assert_eq!(code, 0, "{screen}{errors}");
        assert!(screen.contains("verdict: inside the bands"), "{screen}");
        assert_eq!(screen.lines().filter(|l| l.ends_with(" %")).count(), 60, "{screen}");
        assert!(!screen.contains("not comparable"), "{screen}");
    }
    let (_, screen, _) = Run::new(one_far).bench();
    let line = screen.lines().find(|l| l.trim_start().starts_with("17 ")).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["17", "1.0989", "0.9313", "+18.0", "%"]);
    let average = (59.0 + 18.0) / 60.0;
    assert!(
        screen.contains(&format!("{average:.1} % on average (band 5.6 %), 18.0 % at most (band 18.4 %)"))
    );
    assert!(screen.contains("mean loss of steps 33 to 60: 0.494, reference 0.489"), "{screen}");
}

#[test]
fn runs_beyond_either_band_are_outside() {
    let last = |step| if step == 60 { -0.19 } else { 0.0 };
    let second_epoch_never_falls = |step| if step > 32 { 0.9 } else { 0.0 };
    for run in [Run::new(alternating(0.057)), Run::new(last), Run::new(second_epoch_never_falls)] {
        let (code, screen, errors) = run.bench();
        assert_eq!(code, 1, "{screen}{errors}");
        assert!(errors.contains("OUTSIDE the bands") && !screen.contains("inside"), "{screen}{errors}");
    }
    // serde_json writes NaN as null, as the run's log does.
    let (code, screen, errors) = Run::new(|step| if step == 3 { f64::NAN } else { 0.0 }).bench();
    assert!(code == 1 && errors.contains("OUTSIDE"), "{screen}{errors}");
}

/// The losses are the reference's to the last digit; but what they are losses of is not.
#[test]
fn other_runs_are_shown_but_get_no_verdict() {
    let same = || Run::new(|_| 0.0);
    let cases = [
        (same().record(|r| r["recipe"]["compat"] = "off".into()), "compat is \"off\""),
        (same().record(|r| r["recipe"]["seed"] = 1.into()), "seed is 1"),
        (same().record(|r| r["recipe"]["grad_accum"] = 8.into()), "grad_accum is 8"),
        (same().record(|r| r["total_steps"] = 61.into()), "total steps is 61"),
        (same().record(|r| r["data"]["encoded"]["rows"] = 132.into()), "rows of the data is 132"),
        (same().record(|r| r["model"]["parameters"] = 1.into()), "parameters of the model is 1"),
        (same().record(|r| drop(r.as_object_mut().unwrap().remove("recipe"))), "compat is not on record"),
        (same().lines(|l| drop(l.remove(7))), "1 of the 60 steps are not on record, step 7 first"),
        (same().lines(|l| l.truncate(11)), "50 of the 60 steps are not on record, step 11 first"),
        (same().lines(|l| l.push(l[60].replace(":60,", ":61,"))), "61 steps are on record"),
        (same().lines(|l| l[4] = l[4].replace("0.00012", "0.00013")), "learning rate of step 4"),
    ];
    for (run, why) in cases {
        let (code, screen, errors) = run.bench();
        assert_eq!(code, 1, "{why}: {screen}{errors}");
        assert!(screen.contains(&format!("not comparable: {why}")), "`{why}` is not in:\n{screen}");
        assert!(errors.contains("no verdict") && !screen.contains("inside the bands"), "{errors}");
        assert!(screen.contains("on average (band"), "{why}: it is still shown\n{screen}");
    }
}

/// After a resume a step may stand there twice: the later one counts.
#[test]
fn of_two_lines_for_a_step_the_later_counts() {
    let run = Run::new(|_| 0.0).lines(|lines| {
        let bad = lines[9].replace("\"loss\":", "\"loss\":9");
        lines.insert(9, bad);
    });
    assert_eq!(run.bench().0, 0);
    let run = Run::new(|_| 0.0).lines(|lines| {
        let bad = lines[9].replace("\"loss\":", "\"loss\":9");
        lines.insert(10, bad);
    });
    assert_eq!(run.bench().0, 1);
}

#[test]
fn bad_records_are_explained() {
    let same = || Run::new(|_| 0.0);
    let gone = |name: &str| {
        let run = same();
        std::fs::remove_file(run.folder.path().join(name)).unwrap();
        run
    };
    let cases = [
        (same().lines(|l| l[2].truncate(9)), "metrics.jsonl:3: not JSON"),
        (same().lines(|l| l[2] = l[2].replace("\"step\":2", "\"step\":-2")), "metrics.jsonl:3: step is -2"),
        (same().lines(|l| l[2] = "{\"step\": 2, \"loss\": \"x\"}".into()), "metrics.jsonl:3: loss is \"x\""),
        (same().lines(|l| l.truncate(1)), "it holds no step"),
        (gone("run.json"), "there is no such file"),
        (gone("metrics.jsonl"), "there is no such file"),
    ];
    for (run, why) in cases {
        let (code, screen, errors) = run.bench();
        assert_eq!(code, 2, "{why}: {screen}{errors}");
        assert!(errors.contains(why) && screen.is_empty(), "{why}: {errors}");
    }
}

/// Steps timed on the CPU with these flags.
fn timed(flags: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_smolten"));
    program.args(["bench", "train", "--device", "cpu"]).args(flags).output().unwrap()
}

#[test]
fn rates_are_tokens_in_time() {
    let flags = [
        "--size",
        "tiny",
        "--rows",
        "3",
        "--length",
        "20",
        "--grad-accum",
        "2",
        "--steps",
        "4",
        "--threads",
        "1",
    ];
    for (precision, optimizer) in [("fp32", "adamw"), ("bf16", "adamw_8bit")] {
        let ran =
            timed(&[&flags[..], &["--precision", precision, "--optimizer", optimizer, "--json"]].concat());
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let result: Value = serde_json::from_slice(&ran.stdout).unwrap();
        let number = |value: &Value| value.as_f64().unwrap();
        let steps = result["steps"].as_array().unwrap();
        assert_eq!(steps.len(), 4);
        assert!(steps.iter().all(|step| step["tokens"] == 2 * 3 * 20), "{steps:?}");
        let mut seconds: Vec<f64> = steps.iter().map(|step| number(&step["seconds"])).collect();
        assert!(
            (number(&result["all_tokens_per_second"]) * seconds.iter().sum::<f64>() - 480.0).abs() < 1e-6
        );
        seconds.sort_by(f64::total_cmp);
        assert_eq!(number(&result["step_seconds"]), f64::midpoint(seconds[1], seconds[2]));
        let rates = &result["tokens_per_second"];
        let [median, min, max] = ["median", "min", "max"].map(|key| number(&rates[key]));
        assert!(min <= median && median <= max, "{rates}");
        assert!(
            (max * seconds[0] - 120.0).abs() < 1e-9 && (min * seconds[3] - 120.0).abs() < 1e-9,
            "{rates}"
        );
        assert_eq!((&result["optimizer"], &result["threads"]), (&optimizer.into(), &1.into()));
        assert_eq!(&result["warm_up_steps"], 2);
        assert!(number(&result["peak_memory_bytes"]) > 1e6);
    }
}

/// Rows of other lengths, in their order; the words of the table.
#[test]
fn ragged_rows_are_those_of_train() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-smollm.gguf");
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("rows.jsonl");
    let row = |i: usize| {
        json!({ "prompt": format!("Say {i} a's."), "response": "a ".repeat(1 + 3 * i) }).to_string()
    };
    std::fs::write(&data, (1..9).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let data = data.to_str().unwrap();
    let flags = ["--model", model, "--data", data, "--length", "128", "--steps", "2"];
    let ran = timed(&[&flags[..], &["--json"]].concat());
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let result: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let ours: Vec<u64> =
        result["steps"].as_array().unwrap().iter().map(|s| s["tokens"].as_u64().unwrap()).collect();
    let out = folder.path().join("run");
    let train = ["train", "--device", "cpu", "--batch-size", "2", "--grad-accum", "1", "--max-length", "128"];
    let rest = ["--model", model, "--data", data, "--steps", "4", "--no-shuffle", "--save-every", "0"];
    let sets = ["--set", "eval_share=0", "--set", "sample_every=0", "--out", out.to_str().unwrap()];
    let train =
        Command::new(env!("CARGO_BIN_EXE_smolten")).args(train).args(rest).args(sets).output().unwrap();
    assert!(train.status.success(), "{}", String::from_utf8_lossy(&train.stderr));
    let lines = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let theirs: Vec<u64> =
        lines.filter(|line| line["loss"].is_number()).map(|l| l["tokens"].as_u64().unwrap()).collect();
    // The first two warm up.
    assert_eq!(ours, theirs[2..], "{theirs:?}");
    assert!(theirs.is_sorted() && theirs[0] < theirs[3], "{theirs:?}");
    let screen = String::from_utf8(timed(&flags).stdout).unwrap();
    for what in [
        "machine: ",
        "tokens/s: ",
        "of 2 steps after 2 to warm up",
        "peak memory: ",
        "step: 1 x 2 rows of at most 128",
    ] {
        assert!(screen.contains(what), "{what} is not in {screen}");
    }
}

#[test]
fn wrong_flags_are_explained() {
    for (flags, why) in [
        (vec!["--size", "7b"], "the sizes are 135m, 360m, 1.7b, tiny"),
        (vec!["--data", "rows.jsonl"], "--model"),
        (vec!["--size", "tiny", "--model", "x.gguf"], "cannot be used with"),
        (vec!["--model", "x.gguf"], "there is no such file"),
        (vec!["--rows", "0"], "0 is not in 1..=65536"),
        (vec!["--length", "1"], "1 is not in 2..=1048576"),
        (vec!["--size", "tiny", "--length", "8193"], "holds 8192 tokens"),
        (vec!["--steps", "0"], "0 is not in 1..=100000"),
        (vec!["--optimizer", "sgd"], "adamw, adamw_8bit"),
        (vec!["--run", "x", "--rows", "3"], "cannot be used with"),
        (vec!["--size", "1.7b", "--rows", "65536"], "fewer --rows"),
    ] {
        let ran = timed(&flags);
        let errors = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(2), "{flags:?}: {errors}");
        assert!(errors.contains(why) && ran.stdout.is_empty(), "{flags:?}: `{why}` is not in: {errors}");
    }
}
