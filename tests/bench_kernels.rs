//! `smolten bench kernels`: what is refused before a GPU is needed, and without one. That it runs: `gpu/bench.rs`.

use std::process::Command;

/// Exit code and errors of the command with these flags.
fn refused(flags: &[&str]) -> (Option<i32>, String) {
    let program = Command::new(env!("CARGO_BIN_EXE_smolten")).args(["bench", "kernels"]).args(flags).output();
    let output = program.unwrap();
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
        (vec!["--device", "cpu"], "it times kernels of a GPU"),
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
