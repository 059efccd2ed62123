//! `smolten bench kernels`: what is refused before a GPU is needed, and without one; the CPU's document and table. On a GPU:
//! `gpu/bench.rs`.

use serde_json::Value;
use std::process::{Command, Output};

fn bench(flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smolten")).args(["bench", "kernels"]).args(flags).output().unwrap()
}

/// Exit code and errors of the command with these flags.
fn refused(flags: &[&str]) -> (Option<i32>, String) {
    let output = bench(flags);
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn without_a_gpu_it_says_so() {
    // No machine has a hundredth GPU, whether it has a driver or not.
    let (code, errors) = refused(&["--device", "cuda:99"]);
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("no NVIDIA driver") || errors.contains("the driver sees"), "{errors}");
}

#[test]
fn wrong_flags_are_explained() {
    for (flags, why) in [
        (vec!["--only", "softmax"], "there are embedding_forward, rmsnorm_forward, linear_rope/qkv"),
        (vec!["--model", "7b"], "the sizes are 135m, 360m, 1.7b, tiny"),
        (vec!["--device", "cpu", "--rung", "naive"], "a CPU has no rungs"),
        (vec!["--device", "cpu", "--precision", "int4"], "int4"),
        (vec!["--device", "cpu", "--model", "1.7b", "--tokens", "1048576"], "fewer --tokens"),
        (vec!["--device", "cuda", "--precision", "fp32"], "tensor cores take bf16 and fp16 only"),
        (vec!["--device", "tpu"], "tpu"),
        (vec!["--tokens", "0"], "0 is not in 1..=1048576"),
        (vec!["--repeats", "0"], "0 is not in 1..=10000"),
        (vec!["--rung", "fast"], "naive, production, both"),
    ] {
        let (code, errors) = refused(&flags);
        assert_eq!(code, Some(2), "{flags:?}: {errors}");
        assert!(errors.contains(why), "{flags:?}: `{why}` is not in: {errors}");
    }
}

const TINY: [&str; 8] = ["--device", "cpu", "--model", "tiny", "--tokens", "70", "--repeats", "3"];

#[test]
fn the_cpu_s_rates_are_work_in_time() {
    for (precision, bytes) in [("fp32", 4.0), ("bf16", 2.0)] {
        let ran = bench(&[&TINY[..], &["--precision", precision, "--threads", "2", "--json"]].concat());
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let result: Value = serde_json::from_slice(&ran.stdout).unwrap();
        let number = |value: &Value| value.as_f64().unwrap();
        assert_eq!((&result["threads"], &result["flush_bytes"]), (&2.into(), &(64 << 20).into()));
        let operations = result["operations"].as_array().unwrap();
        let of =
            |name: &str| operations.iter().find(|o| o["name"] == name).unwrap_or_else(|| panic!("{name}"));
        let product = of("linear_residual/down");
        assert_eq!((&product["shape"]["m"], &product["shape"]["k"]), (&70.into(), &96.into()));
        assert_eq!(number(&product["flops"]), 2.0 * 70.0 * 96.0 * 64.0);
        // Input and weight read, the residual stream read and written in fp32.
        assert_eq!(number(&product["bytes"]), bytes * (70.0 + 64.0) * 96.0 + 8.0 * 70.0 * 64.0);
        let limits = &result["calibration"];
        for (of, limit, rate, work, per_us) in [
            (product, &limits["product_gflops"], "gflops", "flops", 1e-3),
            (of("rmsnorm_forward"), &limits["copy_gb_per_s"], "gb_per_s", "bytes", 1e-3),
        ] {
            let want = number(&of[work]) / number(&of["median_us"]) * per_us;
            assert!((number(&of[rate]) - want).abs() <= 1e-9 * want, "{of}");
            let share = want / number(limit);
            assert!((number(&of["share"]) - share).abs() <= 1e-9 * share, "{of}");
        }
        // The GPU's list but for what is a part of the head here.
        let names: Vec<&str> = operations.iter().map(|o| o["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"linear_cross_entropy") && !names.contains(&"rows_gather/head"), "{names:?}");
    }
}

#[test]
fn the_cpu_s_table_says_what_it_is_of() {
    let ran = bench(&[&TINY[..], &["--precision", "bf16", "--only", "linear_residual/o"]].concat());
    let screen = String::from_utf8(ran.stdout).unwrap();
    assert_eq!(
        screen.lines().filter(|line| line.starts_with("tiny linear_residual/o ")).count(),
        1,
        "{screen}"
    );
    for what in ["machine: ", "copy: ", "product: ", "oneDNN", "all threads write 64 MiB"] {
        assert!(screen.contains(what), "{what} is not in {screen}");
    }
}
