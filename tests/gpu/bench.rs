//! The bench of the kernels: every operation at the smallest size, and the command.

use super::runs::executable;
use serde_json::Value;
use smolten::bench::{Bench, Card, Operation, Options, SIZES, Size, cases};
use smolten::cuda::Rung;
use smolten::dtype::DType;
use std::process::{Command, Output};

fn tiny() -> &'static Size {
    SIZES.iter().find(|size| size.name == "tiny").unwrap()
}

fn bench(flags: &[&str]) -> Output {
    Command::new(executable()).args(["bench", "kernels"]).args(flags).output().unwrap()
}

fn document(flags: &[&str]) -> Value {
    let ran = bench(&[flags, &["--json"]].concat());
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    serde_json::from_slice(&ran.stdout).unwrap()
}

/// Row by row what a kernel writes is compared elsewhere; here, that every operation of the list can be launched with what
/// is set up for it, in both rungs, and that the optimizer does not skip, for then it would be timed doing nothing.
#[test]
fn every_operation_runs_in_both_rungs() {
    let gpu = super::gpu();
    let card = Card::new(&gpu).unwrap();
    assert_eq!(card.not_a_gpu, card.name.contains("CUDA emulator"), "{}", card.name);
    let cases = cases(tiny(), 70);
    assert!(cases.len() > 25, "{}", cases.len());
    let options = Options { repeats: 3, rungs: vec![Rung::Production, Rung::Naive], dtype: DType::F16 };
    let mut bench = Bench::new(&gpu, &card, &cases, options).unwrap();
    for case in &cases {
        let measured = bench.measure(case).unwrap_or_else(|e| panic!("{}: {e}", case.name()));
        let times = measured.times;
        assert!(times.min_us > 0.0 && times.min_us <= times.median_us && times.repeats == 3, "{times:?}");
        let comparison = measured.comparison.unwrap();
        assert!(comparison.ratio > 0.0 && comparison.tokens == 70, "{comparison:?}");
        if matches!(case.operation, Operation::AdamW { .. } | Operation::AdamW8bit { .. }) {
            assert!(!bench.skipped().unwrap(), "{}", case.name());
        }
    }
}

#[test]
fn the_command_names_device_and_figures() {
    let result = document(&["--model", "tiny", "--tokens", "70", "--repeats", "2"]);
    let is_emulated = result["card"]["name"].as_str().unwrap().contains("emulator");
    assert_eq!(result["not_a_gpu"], is_emulated);
    assert_eq!(result["card"]["not_a_gpu"], is_emulated);
    for rate in ["copy_gb_per_s", "matrix_tflops"] {
        assert!(result["calibration"][rate].as_f64().unwrap() > 0.0, "{rate}");
    }
    let operations = result["operations"].as_array().unwrap();
    let of = |name: &str| operations.iter().find(|o| o["name"] == name).unwrap_or_else(|| panic!("{name}"));
    let product = of("linear_residual/down");
    assert_eq!((&product["shape"]["m"], &product["shape"]["k"]), (&70.into(), &96.into()));
    assert_eq!(product["flops"], 2.0 * 70.0 * 96.0 * 64.0);
    assert_eq!(product["share_of"], "matrix");
    assert!(product["naive"]["ratio"].as_f64().unwrap() > 0.0);
    assert!(product["published"]["source"].as_str().unwrap().starts_with("https://"));
    let rows = of("rmsnorm_forward");
    let (gb_per_s, median) = (rows["gb_per_s"].as_f64().unwrap(), rows["median_us"].as_f64().unwrap());
    let bytes = rows["bytes"].as_f64().unwrap();
    assert!((gb_per_s - bytes / median * 1e-3).abs() <= 1e-9 * gb_per_s, "{rows}");
    let copy = result["calibration"]["copy_gb_per_s"].as_f64().unwrap();
    assert!((rows["share"].as_f64().unwrap() - gb_per_s / copy).abs() <= 1e-9, "{rows}");
}

#[test]
fn the_table_says_what_it_is_of() {
    let ran = bench(&["--model", "tiny", "--tokens", "70", "--repeats", "1", "--only", "attention_forward"]);
    let screen = String::from_utf8(ran.stdout).unwrap();
    let lines = screen.lines().filter(|line| line.starts_with("tiny attention_forward/70 ")).count();
    assert_eq!(lines, 1, "{screen}");
    assert!(screen.contains("FlashAttention") || screen.contains("cuDNN"), "{screen}");
    let is_emulated = screen.contains("card: CUDA emulator");
    assert_eq!(screen.matches("NOT A GPU").count(), if is_emulated { 2 } else { 0 }, "{screen}");
}

#[test]
fn one_rung_alone() {
    let flags =
        ["--model", "tiny", "--tokens", "70", "--repeats", "1", "--only", "rows_zero", "--rung", "naive"];
    let operations = document(&flags)["operations"].as_array().unwrap().clone();
    assert_eq!(operations.len(), 1);
    assert_eq!((&operations[0]["rung"], &operations[0]["naive"]), (&"naive".into(), &Value::Null));
}
