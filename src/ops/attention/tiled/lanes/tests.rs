use super::bf16::{round, round_even};
use super::*;
use half::bf16;

#[test]
fn exp2_is_within_its_bound() {
    let mut worst = 0.0f64;
    // Every 97th float of both signs up to 126, denormals included.
    for bits in (0..126.0f32.to_bits()).step_by(97) {
        for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
            let want = f64::from(x).exp2();
            for got in [exp2::<true>(x), exp2::<false>(x)] {
                worst = worst.max((f64::from(got) - want).abs() / (want * f64::from(f32::EPSILON)));
            }
        }
    }
    assert!(worst.is_finite() && worst <= 2.0, "{worst} of 2^-23");
}

#[test]
fn exp2_at_the_ends() {
    assert_eq!((exp2::<true>(0.0), exp2::<true>(-127.0), exp2::<true>(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    assert!(exp2::<true>(f32::NAN).is_nan());
}

/// To nearest, ties as said; what is not finite stays so.
#[test]
#[allow(clippy::cast_possible_truncation, reason = "the upper half, shifted down")]
fn rounding() {
    for (x, away, even) in
        [(0x3f80_7fff, 0x3f80, 0x3f80), (0x3f80_8000, 0x3f81, 0x3f80), (0x3f81_8000, 0x3f82, 0x3f82)]
    {
        let x = f32::from_bits(x);
        assert_eq!((round(x) >> 16, round(-x) >> 16), (away, away | 0x8000));
        assert_eq!((round_even(x) >> 16, round_even(-x) >> 16), (even, even | 0x8000));
    }
    for x in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN] {
        for bits in [round(x), round_even(x)] {
            let stored = bf16::from_bits((bits >> 16) as u16).to_f32();
            assert!(stored == x || stored.is_nan() && x.is_nan(), "{x} {stored}");
        }
    }
}
