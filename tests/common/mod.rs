//! The one comparison every test uses, and the one input generator.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod bytes;
pub mod engine;
pub mod naive;
pub mod real;

/// Unit roundoff of f32.
pub const U_F32: f32 = 1.0 / (1u32 << 24) as f32;
/// Unit roundoff of bf16 (8 significant bits, round to nearest).
pub const U_BF16: f32 = 1.0 / 256.0;
/// Unit roundoff of f16 (11 significant bits).
pub const U_F16: f32 = 1.0 / 2048.0;

/// `|got - want| <= atol + rtol*|want|`. NaN or infinity on either side is never close: the usual `diff > tol`
/// is false for NaN, so a test written that way passes on output that is all NaN.
pub fn close(got: f32, want: f32, rtol: f32, atol: f32) -> bool {
    let diff = (got - want).abs();
    diff.is_finite() && diff <= atol + rtol * want.abs()
}

/// Asserts [`close`] for every element; reports how many failed and the first one.
pub fn assert_close(name: &str, got: &[f32], want: &[f32], rtol: f32, atol: f32) {
    assert_eq!(got.len(), want.len(), "{name}: length");
    let bad: Vec<usize> = (0..got.len()).filter(|&i| !close(got[i], want[i], rtol, atol)).collect();
    if let Some(&i) = bad.first() {
        panic!("{name}: {} of {} wrong; first [{i}]: got {}, want {}", bad.len(), got.len(), got[i], want[i]);
    }
}

/// Largest magnitude; infinite if any element is not finite.
pub fn max_abs(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |m, &v| if v.is_finite() { m.max(v.abs()) } else { f32::INFINITY })
}

/// `n` values in [-1, 1) from splitmix64.
pub fn uniform(n: usize, mut seed: u64) -> Vec<f32> {
    std::iter::repeat_with(|| {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32;
        2.0 * unit - 1.0
    })
    .take(n)
    .collect()
}

/// The folder that has `tests/fixtures` in it: the repository, or what `scripts/gpu-check` packed.
pub fn root() -> std::path::PathBuf {
    std::env::var_os("SMOLTEN_TEST_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), Into::into)
}

/// The GGUF file of SmolLM2-135M-Instruct.
pub fn real_model() -> std::path::PathBuf {
    let path = std::env::var_os("SMOLTEN_TEST_MODEL")
        .expect("SMOLTEN_TEST_MODEL must name the model: export SMOLTEN_TEST_MODEL=$(scripts/get-model)");
    path.into()
}
