//! Approximate functions: special values by the ISA's tables, others against the C library's f64 functions.

use crate::oracle::{self, Shape};
use cuda_emulator::numeric::Round;
use cuda_emulator::numeric::approximate as f;
use cuda_emulator::numeric::half::{Bf16, F16, Sixteen};

const NAN: u32 = 0x7fff_ffff;
const INF: u32 = 0x7f80_0000;
const SIGN: u32 = 1 << 31;
const SUBNORMAL: u32 = 0x0000_1000;

fn bits(x: f32) -> u32 {
    x.to_bits()
}

/// Operands of all sizes, more about 1.
fn operands() -> impl Iterator<Item = u32> {
    (0..=u32::MAX).step_by(20_011).chain((0x3f00_0000..0x4100_0000).step_by(211))
}

/// The result is the f32 next to the exact value: within half a unit in the last place, and a bit for both
/// evaluations' errors (2^-40 of the value is 2^-16 units; the library's is far less).
#[track_caller]
fn near(what: &str, a: u32, got: u32, want: f64) {
    let got = f32::from_bits(got);
    if want.is_nan() || got.is_nan() {
        assert!(want.is_nan() && got.to_bits() == NAN, "{what} {a:08x}: {got}, not {want}");
        return;
    }
    let rounded = want as f32;
    if got == rounded {
        assert_eq!(got.is_sign_negative(), rounded.is_sign_negative(), "{what} {a:08x}");
        return;
    }
    assert!(got.is_finite() && rounded.is_finite(), "{what} {a:08x}: {got}, not {want}");
    let unit = (f64::from(rounded.next_up()) - f64::from(rounded)).abs();
    let error = (f64::from(got) - want).abs() / unit;
    assert!(error <= 0.5 + 2f64.powi(-15), "{what} {a:08x}: {got}, not {want}: {error} units");
}

#[test]
fn values_are_next_to_the_exact_ones() {
    for a in operands() {
        let x = f64::from(f32::from_bits(a));
        near("ex2", a, f::ex2(a, false), x.exp2());
        near("lg2", a, f::lg2(a, false), if x == 0.0 { f64::NEG_INFINITY } else { x.log2() });
        near("sin", a, f::sin(a, false), x.sin());
        near("cos", a, f::cos(a, false), x.cos());
        near("tanh", a, f::tanh(a), x.tanh());
        near("rcp", a, f::rcp(a, false), 1.0 / x);
        near("sqrt", a, f::sqrt(a, false), x.sqrt());
        near("rsqrt", a, f::rsqrt(a, false), 1.0 / x.sqrt());
        near("div.full", a, f::div_full(a, bits(3.0), false), x / 3.0);
        near(
            "div",
            a,
            f::div(bits(3.0), a, false),
            if x.abs() > 2f64.powi(126) { (0.0f64).copysign(x) } else { 3.0 / x },
        );
    }
}

#[test]
fn special_values() {
    let one = bits(1.0);
    // function, ftz, operand, result
    type Function = fn(u32, bool) -> u32;
    let table: [(&str, Function, bool, u32, u32); 47] = [
        ("ex2", f::ex2, false, SIGN | INF, 0),
        ("ex2", f::ex2, true, SIGN | SUBNORMAL, one),
        ("ex2", f::ex2, true, SUBNORMAL, one),
        ("ex2", f::ex2, false, SIGN, one),
        ("ex2", f::ex2, false, 0, one),
        ("ex2", f::ex2, false, INF, INF),
        ("ex2", f::ex2, false, bits(-149.0), 1),
        ("ex2", f::ex2, true, bits(-149.0), 0),
        ("ex2", f::ex2, false, bits(-1e30), 0),
        ("ex2", f::ex2, false, bits(128.0), INF),
        ("ex2", f::ex2, false, 0x7f80_0001, NAN),
        ("lg2", f::lg2, false, SIGN | INF, NAN),
        ("lg2", f::lg2, false, bits(-1.0), NAN),
        ("lg2", f::lg2, true, SIGN | SUBNORMAL, SIGN | INF),
        ("lg2", f::lg2, false, SIGN, SIGN | INF),
        ("lg2", f::lg2, false, 0, SIGN | INF),
        ("lg2", f::lg2, true, SUBNORMAL, SIGN | INF),
        ("lg2", f::lg2, false, 1, bits(-149.0)),
        ("lg2", f::lg2, false, INF, INF),
        ("lg2", f::lg2, false, NAN, NAN),
        ("sin", f::sin, false, SIGN | INF, NAN),
        ("sin", f::sin, true, SIGN | SUBNORMAL, SIGN),
        ("sin", f::sin, false, SIGN, SIGN),
        ("sin", f::sin, false, 0, 0),
        ("sin", f::sin, false, INF, NAN),
        ("cos", f::cos, false, SIGN | INF, NAN),
        ("cos", f::cos, true, SUBNORMAL, one),
        ("cos", f::cos, false, SIGN, one),
        ("cos", f::cos, false, INF, NAN),
        ("rcp", f::rcp, false, SIGN | INF, SIGN),
        ("rcp", f::rcp, true, SIGN | SUBNORMAL, SIGN | INF),
        ("rcp", f::rcp, false, SIGN, SIGN | INF),
        ("rcp", f::rcp, false, 0, INF),
        ("rcp", f::rcp, true, SUBNORMAL, INF),
        ("rcp", f::rcp, false, INF, 0),
        ("rcp", f::rcp, false, SIGN | 0x7fc0_0000, NAN),
        ("rsqrt", f::rsqrt, false, SIGN | INF, NAN),
        ("rsqrt", f::rsqrt, false, bits(-1.0), NAN),
        ("rsqrt", f::rsqrt, true, SIGN | SUBNORMAL, SIGN | INF),
        ("rsqrt", f::rsqrt, false, SIGN, SIGN | INF),
        ("rsqrt", f::rsqrt, false, 0, INF),
        ("rsqrt", f::rsqrt, true, SUBNORMAL, INF),
        ("rsqrt", f::rsqrt, false, INF, 0),
        ("sqrt", f::sqrt, false, SIGN | INF, NAN),
        ("sqrt", f::sqrt, true, SIGN | SUBNORMAL, SIGN),
        ("sqrt", f::sqrt, false, SIGN, SIGN),
        ("sqrt", f::sqrt, false, INF, INF),
    ];
    for (name, function, ftz, a, want) in table {
        let got = function(a, ftz);
        assert_eq!(got, want, "{name} {ftz} {a:08x}: {got:08x}");
    }
    assert_eq!(f::tanh(SIGN | INF), bits(-1.0));
    assert_eq!(f::tanh(SIGN), SIGN);
    assert_eq!(f::tanh(SIGN | 1), SIGN | 1);
    assert_eq!(f::tanh(INF), one);
    // Above 2^126 the reciprocal is 0.
    assert_eq!(f::div(one, bits(1.5 * 2f32.powi(126)), false), 0);
    assert_eq!(f::div(SIGN | INF, bits(2f32.powi(127)), false), NAN);
    assert_eq!(f::div(one, bits(2f32.powi(126)), false), bits(2f32.powi(-126)));
    assert_eq!(f::div_full(bits(2f32.powi(127)), bits(2f32.powi(127)), false), one);
}

fn check_half<T: Sixteen>(narrow: impl Fn(f64) -> u16) {
    for a in 0..=u16::MAX {
        let x = f64::from(T::widen(a));
        if x.is_nan() {
            assert_eq!((f::ex2_half::<T>(a, false), f::tanh_half::<T>(a)), (0x7fff, 0x7fff));
            continue;
        }
        assert_eq!(f::ex2_half::<T>(a, false), narrow(x.exp2()), "ex2 {a:x}");
        assert_eq!(f::tanh_half::<T>(a), narrow(x.tanh()), "tanh {a:x}");
    }
}

/// (`half::f16::from_f64` ignores the low half of the f64.)
fn nearest(shape: Shape, x: f64) -> u16 {
    let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
    if x.is_infinite() {
        return sign | u16::try_from(shape.max + 1).unwrap();
    }
    let exact = oracle::F64.magnitude(x.to_bits());
    sign | u16::try_from(shape.round_value(&(false, exact), Round::Nearest)).unwrap()
}

#[test]
fn sixteen_bits_exhaustively() {
    check_half::<F16>(|x| nearest(oracle::F16, x));
    check_half::<Bf16>(|x| nearest(oracle::BF16, x));
}

#[test]
fn upper_words_of_f64() {
    for x in [3.0f64, -0.3, 1e300, 1e-300, 12_345.678] {
        let upper = f64::from_bits(x.to_bits() & !0xffff_ffff);
        let relative = |got: u64, want: f64| ((f64::from_bits(got) - want) / want).abs();
        assert!(relative(f::rcp_f64(x.to_bits()), 1.0 / upper) < 2f64.powi(-20));
        if x > 0.0 {
            assert!(relative(f::rsqrt_f64(x.to_bits(), true), 1.0 / upper.sqrt()) < 2f64.powi(-20));
            assert!(relative(f::rsqrt_f64(x.to_bits(), false), 1.0 / x.sqrt()) < 2f64.powi(-52));
        }
    }
    assert_eq!(f::rcp_f64(0), f64::INFINITY.to_bits());
    assert_eq!(f::rcp_f64((-0f64).to_bits()), f64::NEG_INFINITY.to_bits());
    assert_eq!(f::rcp_f64(f64::NEG_INFINITY.to_bits()), (-0f64).to_bits());
    assert_eq!(f::rcp_f64(f64::MAX.to_bits()), 0, "a subnormal result is flushed");
    assert!(f64::from_bits(f::rsqrt_f64((-1f64).to_bits(), true)).is_nan());
}
