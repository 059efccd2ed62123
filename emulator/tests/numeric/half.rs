//! f16 and bf16.

use crate::oracle::{BF16, F16, Random, Shape, signed_sum};
use cuda_emulator::numeric::half::{self, Bf16, HalfMode, Sixteen};
use cuda_emulator::numeric::{MinMax, Round};

const NAN: u16 = 0x7fff;

fn is_nan(s: Shape, a: u16) -> bool {
    u64::from(a & 0x7fff) > s.max + 1
}

fn flush(s: Shape, a: u16) -> u16 {
    if u64::from(a & 0x7fff) < 1 << s.fraction { a & 0x8000 } else { a }
}

fn value(s: Shape, a: u16) -> f64 {
    if is_nan(s, a) {
        return f64::NAN;
    }
    let m = s.magnitude(a.into());
    let x = f64::from(u32::try_from(m.significand).unwrap()) * 2f64.powi(m.exponent);
    let x = if s.finite(a.into()) { x } else { f64::INFINITY };
    if s.negative(a.into()) { -x } else { x }
}

/// Exactly, but for the modes.
fn fma(s: Shape, a: u16, b: u16, c: u16) -> u16 {
    if ![a, b, c].iter().all(|&x| s.finite(x.into())) {
        let x = value(s, a) * value(s, b) + value(s, c);
        let sign = if x < 0.0 { 0x8000 } else { 0 };
        return if x.is_nan() { NAN } else { sign | u16::try_from(s.max + 1).unwrap() };
    }
    let (x, y, z) = (s.signed(a.into()), s.signed(b.into()), s.signed(c.into()));
    let product = (x.0 != y.0, x.1.times(&y.1));
    match signed_sum(product.clone(), z.clone()) {
        Some(sum) => u16::try_from(s.round_value(&sum, Round::Nearest)).unwrap(),
        None if product.1.is_zero() && product.0 == z.0 && z.0 => 0x8000,
        None => 0,
    }
}

fn finish(s: Shape, bits: u16, mode: HalfMode) -> u16 {
    let bits = if mode.ftz { flush(s, bits) } else { bits };
    let one = u16::try_from(((1 << (s.exponent - 1)) - 1) << s.fraction).unwrap();
    let negative = bits & 0x8000 != 0;
    if mode.saturate {
        return if is_nan(s, bits) || negative { 0 } else { bits.min(one) };
    }
    if mode.relu && negative && !is_nan(s, bits) { 0 } else { bits }
}

fn check<T: Sixteen>(s: Shape) {
    let mut random = Random::new(21);
    let one = T::ONE;
    for round in 0..60_000 {
        let [x, y, z] = [(); 3].map(|()| u16::try_from(random.bits(s)).unwrap());
        let bit = |n: u32| round >> n & 1 == 1;
        let mode = HalfMode { ftz: bit(0), saturate: bit(1), relu: bit(2) && !bit(1) };
        let [a, b, c] = if mode.ftz { [x, y, z].map(|v| flush(s, v)) } else { [x, y, z] };
        let same = |what, got: u16, want: u16| {
            let want = finish(s, want, mode);
            assert_eq!(got, want, "{what} {s:?} {mode:?} {x:x} {y:x} {z:x}: {got:x} {want:x}");
        };
        same("fma", half::fma::<T>(x, y, z, mode), fma(s, a, b, c));
        same("add", half::add::<T>(x, y, mode), fma(s, a, one, b));
        // A zero with the product's sign leaves it as it is.
        let zero = (a ^ b) & 0x8000;
        same("mul", half::mul::<T>(x, y, mode), fma(s, a, b, zero));
    }
}

#[test]
fn f16_arithmetic() {
    check::<half::F16>(F16);
}

#[test]
fn bf16_arithmetic() {
    check::<Bf16>(BF16);
}

fn check_unary<T: Sixteen>(s: Shape) {
    for a in 0..=u16::MAX {
        assert_eq!(half::abs::<T>(a, false), a & 0x7fff);
        assert_eq!(half::neg::<T>(a, false), a ^ 0x8000);
        assert_eq!(half::abs::<T>(a, true), flush(s, a) & 0x7fff);
        assert_eq!(half::neg::<T>(a, true), flush(s, a) ^ 0x8000);
        let (x, widened) = (value(s, a), T::widen(a));
        assert!(
            if x.is_nan() { widened.is_nan() } else { f64::from(widened).to_bits() == x.to_bits() },
            "{a:x}"
        );
        let mode = HalfMode { saturate: true, ..HalfMode::default() };
        assert_eq!(half::saturate::<T>(a), finish(s, a, mode), "{a:x}");
        assert_eq!(half::relu::<T>(a), finish(s, a, HalfMode { relu: true, ..HalfMode::default() }), "{a:x}");
    }
}

#[test]
fn unary_operations_exhaustively() {
    check_unary::<half::F16>(F16);
    check_unary::<Bf16>(BF16);
}

/// By the ISA's text of `min` and `max`.
fn extremum(s: Shape, x: u16, y: u16, mode: MinMax, max: bool) -> u16 {
    let sign = (x ^ y) & 0x8000;
    let [a, b] = [x, y].map(|v| if mode.ftz { flush(s, v) } else { v });
    let [a, b] = [a, b].map(|v| if mode.xorsign_abs { v & 0x7fff } else { v });
    if is_nan(s, a) && is_nan(s, b) || mode.nan && (is_nan(s, a) || is_nan(s, b)) {
        return NAN;
    }
    let winner = if is_nan(s, a) {
        b
    } else if is_nan(s, b) {
        a
    } else if value(s, a) == value(s, b) {
        if max == (a & 0x8000 == 0) { a } else { b }
    } else if (value(s, a) > value(s, b)) == max {
        a
    } else {
        b
    };
    if mode.xorsign_abs { winner | sign } else { winner }
}

fn check_extrema<T: Sixteen>(s: Shape) {
    let mut random = Random::new(22);
    for round in 0..100_000 {
        let [x, y] = [(); 2].map(|()| u16::try_from(random.bits(s)).unwrap());
        let bit = |n: u32| round >> n & 1 == 1;
        let mode = MinMax { ftz: bit(0), nan: bit(1), xorsign_abs: bit(2) };
        let y = if round % 5 == 0 { x ^ 0x8000 } else { y };
        assert_eq!(half::min::<T>(x, y, mode), extremum(s, x, y, mode, false), "{s:?} {mode:?} {x:x} {y:x}");
        assert_eq!(half::max::<T>(x, y, mode), extremum(s, x, y, mode, true), "{s:?} {mode:?} {x:x} {y:x}");
    }
}

#[test]
fn min_and_max() {
    check_extrema::<half::F16>(F16);
    check_extrema::<Bf16>(BF16);
}
