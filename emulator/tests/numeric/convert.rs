//! Conversions: all 8- and 16-bit values exhaustively, 32-bit ones strided (all of them in ignored tests), the rest
//! at random and around the boundaries.

use crate::oracle::{BF16, E4M3, E5M2, F16, F32, F64, Magnitude, ROUNDS, Random, Shape, TF32};
use cuda_emulator::numeric::Round;
use cuda_emulator::numeric::convert::{self, Conversion, Scalar};
use num_bigint::BigUint;

const INTEGERS: [(Scalar, u32, bool); 8] = [
    (Scalar::U8, 8, false),
    (Scalar::U16, 16, false),
    (Scalar::U32, 32, false),
    (Scalar::U64, 64, false),
    (Scalar::S8, 8, true),
    (Scalar::S16, 16, true),
    (Scalar::S32, 32, true),
    (Scalar::S64, 64, true),
];

const FLOATS: [(Scalar, Shape); 4] =
    [(Scalar::F16, F16), (Scalar::Bf16, BF16), (Scalar::F32, F32), (Scalar::F64, F64)];

fn number(bits: u64, width: u32, signed: bool) -> i128 {
    let value = i128::from(bits) & ((1i128 << width) - 1);
    if signed && value >> (width - 1) != 0 { value - (1i128 << width) } else { value }
}

fn limits(width: u32, signed: bool) -> (i128, i128) {
    if signed { (-(1i128 << (width - 1)), (1i128 << (width - 1)) - 1) } else { (0, (1i128 << width) - 1) }
}

/// The canonical NaN of a format: the sign of f64's is set.
fn nan(shape: Shape) -> u64 {
    if shape.fraction == 52 { 0xfff8_0000_0000_0000 } else { shape.sign() - 1 }
}

fn infinite(shape: Shape, bits: u64) -> bool {
    bits & (shape.sign() - 1) == shape.max + 1
}

/// Operands of a format: all of 16 bits, or a sample.
fn operands(shape: Shape, seed: u64) -> Vec<u64> {
    if shape.sign() <= 1 << 15 {
        return (0..2 * shape.sign()).collect();
    }
    let mut random = Random::new(seed);
    let mut list: Vec<u64> = (0..4000).map(|_| random.bits(shape)).collect();
    // Around halves of integers and the limits of the integer types.
    for power in 0..66 {
        for wiggle in -2..3i64 {
            for half in 0..2 {
                let x = 2f64.powi(power) + 0.5 * f64::from(half);
                let bits = if shape.fraction == 52 { x.to_bits() } else { u64::from((x as f32).to_bits()) };
                list.extend([0, shape.sign()].map(|sign| bits.wrapping_add_signed(wiggle) | sign));
            }
        }
    }
    list
}

fn integer_operands(width: u32) -> Vec<u64> {
    if width <= 16 {
        return (0..1 << width).collect();
    }
    let mut random = Random::new(width.into());
    let mut list: Vec<u64> = (0..3000).map(|_| random.next() >> random.below(64)).collect();
    for power in 0..64 {
        for wiggle in -3..4i64 {
            let x = (1u64 << power).wrapping_add_signed(wiggle);
            list.extend([x, x.wrapping_neg(), x | 1 << power >> 24, x | 1 << power >> 25 | 1 << power >> 11]);
        }
    }
    list
}

#[test]
fn integers_to_integers() {
    for (from, width, signed) in INTEGERS {
        for (to, to_width, to_signed) in INTEGERS {
            for saturate in [false, true] {
                let conversion = Conversion { saturate, ..Conversion::new(to, from) };
                for bits in integer_operands(width) {
                    let value = number(bits, width, signed);
                    let (low, high) = limits(to_width, to_signed);
                    let value = if saturate { value.clamp(low, high) } else { value };
                    let modulus = 1i128 << to_width;
                    let cut = value.rem_euclid(modulus);
                    let want = if cut > high { cut - modulus } else { cut };
                    let got = conversion.convert(bits);
                    assert_eq!(
                        i128::from(got.cast_signed()),
                        i128::from((want as u64).cast_signed()),
                        "{conversion:?} {bits:x}"
                    );
                }
            }
        }
    }
}

#[test]
fn integers_to_floats() {
    for (from, width, signed) in INTEGERS {
        for (to, shape) in FLOATS {
            for round in ROUNDS {
                let conversion = Conversion { round, ..Conversion::new(to, from) };
                for bits in integer_operands(width).into_iter().step_by(if width == 16 { 7 } else { 1 }) {
                    let value = number(bits, width, signed);
                    let exact = (value < 0, Magnitude::new(value.unsigned_abs(), 0));
                    let want = shape.round_value(&exact, round);
                    assert_eq!(conversion.convert(bits), want, "{conversion:?} {bits:x}");
                }
            }
        }
    }
}

/// The integer that a finite value rounds to.
fn whole(x: &(bool, Magnitude), round: Round) -> i128 {
    let (value, up) = match x.1.exponent {
        0.. => (&x.1.significand << x.1.exponent.unsigned_abs(), false),
        low => {
            let shift = low.unsigned_abs();
            let floor: BigUint = &x.1.significand >> shift;
            let rest: BigUint = &x.1.significand - (&floor << shift);
            let twice = (&rest + &rest).cmp(&(BigUint::from(1u32) << shift));
            let odd = floor.bit(0);
            let up = match round {
                Round::Nearest => twice.is_gt() || twice.is_eq() && odd,
                Round::NearestAway => twice.is_ge(),
                Round::Zero => false,
                Round::Down => x.0 && rest != BigUint::ZERO,
                Round::Up => !x.0 && rest != BigUint::ZERO,
            };
            (floor, up)
        }
    };
    // More than fits is clamped by the caller.
    let magnitude = i128::try_from(value).unwrap_or(i128::MAX / 2) + i128::from(up);
    if x.0 { -magnitude } else { magnitude }
}

fn subnormal(shape: Shape, bits: u64) -> bool {
    bits & (shape.sign() - 1) < 1 << shape.fraction
}

#[test]
fn floats_to_integers() {
    for (from, shape) in FLOATS {
        let list = operands(shape, 3);
        for (to, width, signed) in INTEGERS {
            let (low, high) = limits(width, signed);
            for round in ROUNDS {
                for ftz in [false, true] {
                    let conversion = Conversion { round, ftz, ..Conversion::new(to, from) };
                    for &bits in list.iter().step_by(if list.len() == 65536 { 5 } else { 1 }) {
                        let flushed = if ftz && from == Scalar::F32 && subnormal(shape, bits) {
                            bits & shape.sign()
                        } else {
                            bits
                        };
                        let want = if shape.finite(bits) {
                            whole(&shape.signed(flushed), round).clamp(low, high)
                        } else if infinite(shape, bits) {
                            if shape.negative(bits) { low } else { high }
                        } else if from == Scalar::F64 || width == 64 {
                            // MININT, or for unsigned ones 2^(width - 1)
                            if signed { low } else { 1 << (width - 1) }
                        } else {
                            0
                        };
                        let got = number(conversion.convert(bits), width, signed);
                        assert_eq!(got, want, "{conversion:?} {bits:x}");
                    }
                }
            }
        }
    }
}

/// `cvt` between floats by the ISA's text.
fn float_to_float(conversion: &Conversion, from: Shape, to: Shape, bits: u64) -> u64 {
    let c = conversion;
    let single = |s: Shape| s.fraction == 23;
    let bits = if c.ftz && single(from) && subnormal(from, bits) { bits & from.sign() } else { bits };
    let sign = if from.negative(bits) { to.sign() } else { 0 };
    let is_nan = !from.finite(bits) && !infinite(from, bits);
    let rounded = if is_nan {
        if from.fraction == 52 && to.fraction == 52 { bits | 1 << 51 } else { nan(to) }
    } else if infinite(from, bits) {
        sign | if c.satfinite { to.max } else { to.max + 1 }
    } else if c.to_integral {
        let exact = from.signed(bits);
        let integer = if exact.1.exponent < 0 {
            Magnitude::new(whole(&exact, c.round).unsigned_abs(), 0)
        } else {
            exact.1.clone()
        };
        to.round_value(&(exact.0, integer), Round::Nearest)
    } else {
        let rounded = to.round_value(&from.signed(bits), c.round);
        if c.satfinite && !to.finite(rounded) { sign | to.max } else { rounded }
    };
    let rounded = if c.ftz && single(to) && subnormal(to, rounded) { rounded & to.sign() } else { rounded };
    let negative = rounded & to.sign() != 0;
    let one = to.round_value(&(false, Magnitude::new(1u32, 0)), Round::Nearest);
    if c.saturate {
        return if is_nan || negative { 0 } else { rounded.min(one) };
    }
    if c.relu && negative && !is_nan { 0 } else { rounded }
}

#[test]
fn floats_to_floats() {
    for (from, from_shape) in FLOATS {
        let list = operands(from_shape, 4);
        for (to, to_shape) in FLOATS {
            for round in ROUNDS {
                for flags in 0..16 {
                    let [ftz, saturate, relu, to_integral] = [1, 2, 4, 8].map(|bit| flags & bit != 0);
                    if to_integral && from != to || saturate && relu {
                        continue;
                    }
                    let base = Conversion::new(to, from);
                    let conversion = Conversion { round, ftz, saturate, relu, to_integral, ..base };
                    for &bits in list.iter().step_by(if list.len() == 65536 { 13 } else { 3 }) {
                        let want = float_to_float(&conversion, from_shape, to_shape, bits);
                        let got = conversion.convert(bits);
                        assert_eq!(got, want, "{conversion:?} {bits:x}: {got:x}, not {want:x}");
                    }
                }
            }
        }
    }
}

#[test]
fn narrow_formats_to_all_exhaustively() {
    for (from, from_shape) in [(Scalar::F16, F16), (Scalar::Bf16, BF16)] {
        for (to, to_shape) in FLOATS {
            let conversion = Conversion::new(to, from);
            for bits in 0..65536 {
                let want = float_to_float(&conversion, from_shape, to_shape, bits);
                assert_eq!(conversion.convert(bits), want, "{conversion:?} {bits:x}");
            }
        }
    }
    for a in 0..=u16::MAX {
        let f16 = float_to_float(&Conversion::new(Scalar::F32, Scalar::F16), F16, F32, a.into());
        assert_eq!(u64::from(convert::f16_to_f32(a)), f16, "{a:x}");
        let bf16 = float_to_float(&Conversion::new(Scalar::F32, Scalar::Bf16), BF16, F32, a.into());
        assert_eq!(u64::from(convert::bf16_to_f32(a)), bf16, "{a:x}");
    }
}

/// `half`'s conversions, and tf32 by its definition: ties of the cut 13 bits away from zero.
fn check_narrowing(a: u32) {
    let x = f32::from_bits(a);
    let (f16, bf16) = match x.is_nan() {
        true => (0x7fff, 0x7fff),
        false => (half::f16::from_f32(x).to_bits(), half::bf16::from_f32(x).to_bits()),
    };
    assert_eq!(convert::f32_to_f16(a), f16, "{a:08x}");
    assert_eq!(convert::f32_to_bf16(a), bf16, "{a:08x}");
    let tf32 = Conversion { round: Round::NearestAway, ..Conversion::new(Scalar::Tf32, Scalar::F32) };
    let want = match x.is_nan() {
        true => 0x7fff_e000,
        false if x.is_infinite() => a,
        false => (a + 0x1000) & 0xffff_e000,
    };
    assert_eq!(tf32.convert(a.into()), u64::from(want), "{a:08x}");
}

#[test]
fn f32_to_narrower_strided() {
    for a in (0..=u32::MAX).step_by(1021) {
        check_narrowing(a);
    }
    // Around every tie of f16 and bf16.
    for upper in 0..=u16::MAX {
        for lower in [0, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000, 0x8001, 0xffff] {
            check_narrowing(u32::from(upper) << 16 | lower);
        }
    }
}

#[test]
#[ignore = "all 2^32 values: minutes"]
fn f32_to_narrower_exhaustively() {
    (0..=u32::MAX).for_each(check_narrowing);
}

#[test]
fn fast_conversions_are_the_general_ones() {
    let general =
        |to, from, round, bits: u32| Conversion { round, ..Conversion::new(to, from) }.convert(bits.into());
    for a in operands(F32, 5).into_iter().map(|a| u32::try_from(a).unwrap()) {
        let low = |x: u64| u32::try_from(x & 0xffff_ffff).unwrap();
        assert_eq!(u64::from(convert::f32_to_f16(a)), general(Scalar::F16, Scalar::F32, Round::Nearest, a));
        assert_eq!(u64::from(convert::f32_to_bf16(a)), general(Scalar::Bf16, Scalar::F32, Round::Nearest, a));
        assert_eq!(convert::f32_to_s32(a), low(general(Scalar::S32, Scalar::F32, Round::Zero, a)));
        assert_eq!(u64::from(convert::f32_to_u32(a)), general(Scalar::U32, Scalar::F32, Round::Zero, a));
        assert_eq!(u64::from(convert::s32_to_f32(a)), general(Scalar::F32, Scalar::S32, Round::Nearest, a));
        assert_eq!(u64::from(convert::u32_to_f32(a)), general(Scalar::F32, Scalar::U32, Round::Nearest, a));
    }
}

#[test]
fn eight_bit_floats() {
    for (small, shape) in [(Scalar::E4m3, E4M3), (Scalar::E5m2, E5M2)] {
        for bits in 0..256 {
            let magnitude = bits & 0x7f;
            let want = match small {
                Scalar::E4m3 if magnitude == 0x7f => 0x7fff,
                Scalar::E5m2 if magnitude > 0x7c => 0x7fff,
                Scalar::E5m2 if magnitude == 0x7c => 0x7c00 | (bits & 0x80) << 8,
                _ => F16.round_value(&shape.signed(bits), Round::Zero), // exact
            };
            assert_eq!(Conversion::new(Scalar::F16, small).convert(bits), want, "{small:?} {bits:x}");
        }
        let conversion = Conversion { satfinite: true, ..Conversion::new(small, Scalar::F16) };
        for bits in 0..65536 {
            let want = float_to_float(&conversion, F16, shape, bits);
            assert_eq!(conversion.convert(bits), want, "{conversion:?} {bits:x}");
        }
        let conversion = Conversion { satfinite: true, ..Conversion::new(small, Scalar::F32) };
        for bits in operands(F32, 6) {
            let want = float_to_float(&conversion, F32, shape, bits);
            assert_eq!(conversion.convert(bits), want, "{conversion:?} {bits:x}");
        }
    }
}

#[test]
fn tf32_rounds_to_nearest_too() {
    let conversion = Conversion::new(Scalar::Tf32, Scalar::F32);
    for bits in operands(F32, 8) {
        let want = float_to_float(&conversion, F32, TF32, bits) << 13;
        assert_eq!(conversion.convert(bits), want, "{bits:x}");
    }
    assert_eq!(Scalar::Tf32.bits(), 32);
    assert_eq!(Scalar::Bf16.bits(), 16);
    assert_eq!(Scalar::parse("bf16"), Some(Scalar::Bf16));
    assert_eq!(Scalar::parse("b16"), None);
}
