//! f32 in every rounding mode.

use crate::oracle::{F32, Magnitude, ROUNDS, Random, signed_sum};
use cuda_emulator::numeric::{Class, MinMax, Mode, Round, single};
use std::cmp::Ordering;

const NAN: u32 = 0x7fff_ffff;

fn flush(a: u32) -> u32 {
    if f32::from_bits(a).is_subnormal() { a & 0x8000_0000 } else { a }
}

/// Applies ftz and saturation to an exactly rounded result.
fn finish(bits: u64, mode: Mode) -> u32 {
    let bits = u32::try_from(bits).unwrap();
    let bits = if f32::from_bits(bits).is_nan() { NAN } else { bits };
    let bits = if mode.ftz { flush(bits) } else { bits };
    let x = f32::from_bits(bits);
    match mode.saturate {
        false => bits,
        true if x >= 1.0 => 1f32.to_bits(),
        true if x > 0.0 => bits,
        true => 0,
    }
}

/// The result for infinities and NaN, which f64 gets right too.
fn special(x: f64) -> u64 {
    u64::from((x as f32).to_bits())
}

fn zero(negative: bool) -> u64 {
    if negative { F32.sign() } else { 0 }
}

fn fma(a: u32, b: u32, c: u32, round: Round) -> u64 {
    let wide = |x: u32| f64::from(f32::from_bits(x));
    if ![a, b, c].iter().all(|&x| F32.finite(x.into())) {
        return special(wide(a) * wide(b) + wide(c));
    }
    let (x, y, z) = (F32.signed(a.into()), F32.signed(b.into()), F32.signed(c.into()));
    let product = (x.0 != y.0, x.1.times(&y.1));
    let both_zero = product.1.is_zero() && z.1.is_zero();
    match signed_sum(product.clone(), z.clone()) {
        Some(sum) => F32.round_value(&sum, round),
        None if both_zero && product.0 == z.0 => zero(z.0),
        None => zero(round == Round::Down),
    }
}

fn add(a: u32, b: u32, round: Round) -> u64 {
    fma(a, 1f32.to_bits(), b, round)
}

fn mul(a: u32, b: u32, round: Round) -> u64 {
    let wide = |x: u32| f64::from(f32::from_bits(x));
    let (x, y) = (F32.signed(a.into()), F32.signed(b.into()));
    if !F32.finite(a.into()) || !F32.finite(b.into()) || x.1.is_zero() || y.1.is_zero() {
        return special(wide(a) * wide(b));
    }
    F32.round_value(&(x.0 != y.0, x.1.times(&y.1)), round)
}

fn div(a: u32, b: u32, round: Round) -> u64 {
    let wide = |x: u32| f64::from(f32::from_bits(x));
    let (x, y) = (F32.signed(a.into()), F32.signed(b.into()));
    if !F32.finite(a.into()) || !F32.finite(b.into()) || x.1.is_zero() || y.1.is_zero() {
        return special(wide(a) / wide(b));
    }
    F32.round(x.0 != y.0, round, |candidate| x.1.cmp(&candidate.times(&y.1)))
}

fn sqrt(a: u32, round: Round) -> u64 {
    let x = F32.signed(a.into());
    if !F32.finite(a.into()) || x.0 || x.1.is_zero() {
        return special(f64::from(f32::from_bits(a)).sqrt());
    }
    F32.round(false, round, |candidate| x.1.cmp(&candidate.times(candidate)))
}

fn modes() -> impl Iterator<Item = Mode> {
    ROUNDS.into_iter().flat_map(|round| {
        [(false, false), (true, false), (false, true), (true, true)].map(|(ftz, saturate)| Mode {
            round,
            ftz,
            saturate,
        })
    })
}

#[track_caller]
fn equal(what: &str, mode: Mode, operands: &[u32], got: u32, want: u32) {
    assert_eq!(got, want, "{what} {mode:?} {operands:08x?}: {got:08x}, not {want:08x}");
}

#[test]
fn arithmetic_is_the_exact_value_rounded_once() {
    let mut random = Random::new(1);
    let mut draw = move || u32::try_from(random.bits(F32)).unwrap();
    for _ in 0..6000 {
        let operands = [draw(), draw(), draw()];
        for mode in modes() {
            let [a, b, c] = if mode.ftz { operands.map(flush) } else { operands };
            let r = mode.round;
            let [x, y, z] = operands;
            equal("add", mode, &operands, single::add(x, y, mode), finish(add(a, b, r), mode));
            equal("mul", mode, &operands, single::mul(x, y, mode), finish(mul(a, b, r), mode));
            equal("fma", mode, &operands, single::fma(x, y, z, mode), finish(fma(a, b, c, r), mode));
            equal("div", mode, &operands, single::div(x, y, mode), finish(div(a, b, r), mode));
            equal("rcp", mode, &operands, single::rcp(x, mode), finish(div(1f32.to_bits(), a, r), mode));
            equal("sqrt", mode, &operands, single::sqrt(x, mode), finish(sqrt(a, r), mode));
        }
    }
}

#[test]
fn sums_that_cancel_or_round_at_a_distance() {
    // fma whose addend is just above, at and below the product's bits, over all distances.
    let mut random = Random::new(2);
    for distance in -60..60i32 {
        for _ in 0..40 {
            let a = 0x3f80_0000 | (random.u32() & 0x007f_ffff);
            let b = 0x3f80_0000 | (random.u32() & 0x007f_ffff);
            let field = (127 + distance).cast_unsigned() << 23;
            let c = field | (random.u32() & 0x8000_0000) | (random.u32() & random.u32() & 0x007f_ffff);
            for round in ROUNDS {
                let mode = Mode { round, ftz: false, saturate: false };
                let want = finish(fma(a, b, c, round), mode);
                equal("fma", mode, &[a, b, c], single::fma(a, b, c, mode), want);
            }
        }
    }
}

#[test]
fn fast_variants_are_the_general_ones() {
    let mut random = Random::new(3);
    let mut draw = move || u32::try_from(random.bits(F32)).unwrap();
    for _ in 0..200_000 {
        let (a, b, c) = (draw(), draw(), draw());
        let mode = |ftz| Mode { round: Round::Nearest, ftz, saturate: false };
        assert_eq!(single::add_rn::<false>(a, b), single::add(a, b, mode(false)));
        assert_eq!(single::add_rn::<true>(a, b), single::add(a, b, mode(true)));
        assert_eq!(single::mul_rn::<false>(a, b), single::mul(a, b, mode(false)));
        assert_eq!(single::mul_rn::<true>(a, b), single::mul(a, b, mode(true)));
        assert_eq!(single::fma_rn::<false>(a, b, c), single::fma(a, b, c, mode(false)));
        assert_eq!(single::fma_rn::<true>(a, b, c), single::fma(a, b, c, mode(true)));
    }
}

#[test]
fn min_and_max() {
    let inf = f32::INFINITY.to_bits();
    let (one, two, minus) = (1f32.to_bits(), 2f32.to_bits(), (-3f32).to_bits());
    let (pz, nz, sub, nan) = (0, 0x8000_0000, 5, 0x7fc0_0001);
    let plain = MinMax::default();
    // a, b, min, max
    let table = [
        (one, two, one, two),
        (minus, one, minus, one),
        (pz, nz, nz, pz),
        (nz, pz, nz, pz),
        (inf, minus, minus, inf),
        (nan, one, one, one),
        (one, nan, one, one),
        (nan, nan, NAN, NAN),
        (sub, pz, pz, sub),
        (sub | nz, nz, sub | nz, nz),
    ];
    for (a, b, min, max) in table {
        equal("min", PLAIN, &[a, b], single::min(a, b, plain), min);
        equal("max", PLAIN, &[a, b], single::max(a, b, plain), max);
    }
    let nan_mode = MinMax { nan: true, ..plain };
    assert_eq!(single::min(nan, one, nan_mode), NAN);
    assert_eq!(single::max(one, nan, nan_mode), NAN);
    assert_eq!(single::max(one, two, nan_mode), two);
    let ftz = MinMax { ftz: true, ..plain };
    assert_eq!(single::max(sub, nz, ftz), pz);
    assert_eq!(single::min(sub | nz, one, ftz), nz);
    let xor = MinMax { xorsign_abs: true, ..plain };
    assert_eq!(single::max(minus, two, xor), minus);
    assert_eq!(single::min(minus, two, xor), two | nz);
    assert_eq!(single::min(minus, two | nz, xor), two);
}

const PLAIN: Mode = Mode { round: Round::Nearest, ftz: false, saturate: false };

#[test]
fn signs_and_classes() {
    assert_eq!(single::abs(0x8000_0005, false), 5);
    assert_eq!(single::abs(0x8000_0005, true), 0);
    assert_eq!(single::neg(0x0000_0005, true), 0x8000_0000);
    assert_eq!(single::neg(0xbf80_0000, false), 0x3f80_0000);
    assert_eq!(single::copysign(0x8000_0000, 0x3f80_0000), 0xbf80_0000);
    for bits in (0..u64::from(u32::MAX)).step_by(65_521).chain([0x7f80_0000, 0x7f80_0001, 0xff80_0000, 1]) {
        let a = u32::try_from(bits).unwrap();
        let x = f32::from_bits(a);
        assert_eq!(single::test(a, Class::Finite), x.is_finite());
        assert_eq!(single::test(a, Class::Infinite), x.is_infinite());
        assert_eq!(single::test(a, Class::Number), !x.is_nan());
        assert_eq!(single::test(a, Class::NotANumber), x.is_nan());
        assert_eq!(single::test(a, Class::Normal), x.is_normal());
        assert_eq!(single::test(a, Class::Subnormal), x.is_subnormal());
    }
}

#[test]
fn the_oracle_rounds_by_hand_made_cases() {
    // 1 + 2^-24 is a tie; 1 + 3 * 2^-24 too.
    let tie = |n: u32| (false, Magnitude::new((1u32 << 24) + n, -24));
    assert_eq!(F32.round_value(&tie(1), Round::Nearest), 0x3f80_0000);
    assert_eq!(F32.round_value(&tie(3), Round::Nearest), 0x3f80_0002);
    assert_eq!(F32.round_value(&tie(1), Round::NearestAway), 0x3f80_0001);
    assert_eq!(F32.round_value(&tie(1), Round::Up), 0x3f80_0001);
    assert_eq!(F32.round_value(&tie(3), Round::Zero), 0x3f80_0001);
    assert_eq!(F32.round_value(&(true, Magnitude::new(1u32, 200)), Round::Zero), 0xff7f_ffff);
    assert_eq!(F32.round_value(&(true, Magnitude::new(1u32, 200)), Round::Down), 0xff80_0000);
    assert_eq!(F32.magnitude(1).cmp(&Magnitude::new(1u32, -149)), Ordering::Equal);
}
