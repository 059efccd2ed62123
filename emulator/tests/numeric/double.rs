//! f64 in every rounding mode.

use crate::oracle::{F64, ROUNDS, Random, signed_sum};
use cuda_emulator::numeric::{Class, Round, double};

/// For infinities, NaN and signed zeros: the processor's result; a NaN operand is kept, quiet.
fn special(x: f64, operands: &[u64]) -> u64 {
    let nan = operands.iter().find(|&&a| f64::from_bits(a).is_nan());
    match nan {
        Some(a) => a | 1 << 51,
        None if x.is_nan() => 0xfff8_0000_0000_0000,
        None => x.to_bits(),
    }
}

fn fma(a: u64, b: u64, c: u64, round: Round) -> u64 {
    let (x, y, z) = (f64::from_bits(a), f64::from_bits(b), f64::from_bits(c));
    if !(x.is_finite() && y.is_finite() && z.is_finite()) {
        // A product of finite numbers is finite, whatever f64 makes of it.
        let product = if x.is_finite() && y.is_finite() { 0.0 } else { x * y };
        return special(product + z, &[a, b, c]);
    }
    let (x, y, z) = (F64.signed(a), F64.signed(b), F64.signed(c));
    let product = (x.0 != y.0, x.1.times(&y.1));
    match signed_sum(product.clone(), z.clone()) {
        Some(sum) => F64.round_value(&sum, round),
        None if product.1.is_zero() && product.0 == z.0 => {
            if z.0 {
                F64.sign()
            } else {
                0
            }
        }
        None => {
            if round == Round::Down {
                F64.sign()
            } else {
                0
            }
        }
    }
}

fn mul(a: u64, b: u64, round: Round) -> u64 {
    let (x, y) = (f64::from_bits(a), f64::from_bits(b));
    if !(x.is_finite() && y.is_finite()) || x == 0.0 || y == 0.0 {
        return special(x * y, &[a, b]);
    }
    let (x, y) = (F64.signed(a), F64.signed(b));
    F64.round_value(&(x.0 != y.0, x.1.times(&y.1)), round)
}

fn div(a: u64, b: u64, round: Round) -> u64 {
    let (x, y) = (f64::from_bits(a), f64::from_bits(b));
    if !(x.is_finite() && y.is_finite()) || x == 0.0 || y == 0.0 {
        return special(x / y, &[a, b]);
    }
    let (x, y) = (F64.signed(a), F64.signed(b));
    F64.round(x.0 != y.0, round, |candidate| x.1.cmp(&candidate.times(&y.1)))
}

fn sqrt(a: u64, round: Round) -> u64 {
    let x = f64::from_bits(a);
    if !x.is_finite() || x <= 0.0 {
        return special(x.sqrt(), &[a]);
    }
    let x = F64.magnitude(a);
    F64.round(false, round, |candidate| x.cmp(&candidate.times(candidate)))
}

#[test]
fn arithmetic_is_the_exact_value_rounded_once() {
    let mut random = Random::new(11);
    let one = 1f64.to_bits();
    for _ in 0..4000 {
        let [a, b, c] = [random.bits(F64), random.bits(F64), random.bits(F64)];
        for r in ROUNDS {
            let same = |what, got: u64, want: u64| {
                assert_eq!(got, want, "{what} {r:?} {a:x} {b:x} {c:x}: {got:x} {want:x}")
            };
            same("fma", double::fma(a, b, c, r), fma(a, b, c, r));
            // The product of a NaN with 1 comes first, as the operand itself does.
            same("add", double::add(a, b, r), fma(a, one, b, r));
            same("mul", double::mul(a, b, r), mul(a, b, r));
            same("div", double::div(a, b, r), div(a, b, r));
            same("rcp", double::rcp(a, r), div(one, a, r));
            same("sqrt", double::sqrt(a, r), sqrt(a, r));
        }
    }
}

#[test]
fn sums_that_cancel_or_round_at_a_distance() {
    let mut random = Random::new(12);
    for distance in -120..120i64 {
        for _ in 0..20 {
            let fraction = (1 << 52) - 1;
            let a = 1f64.to_bits() | random.next() & fraction;
            let b = 1f64.to_bits() | random.next() & fraction;
            let field = (1023 + distance).cast_unsigned() << 52;
            let c = field | random.next() & F64.sign() | random.next() & random.next() & fraction;
            for r in ROUNDS {
                let (got, want) = (double::fma(a, b, c, r), fma(a, b, c, r));
                assert_eq!(got, want, "{r:?} {a:x} {b:x} {c:x}");
            }
        }
    }
}

#[test]
fn signs_extrema_and_classes() {
    let bits = f64::to_bits;
    let nan = 0x7ff0_0000_0000_0001;
    let table = [
        (bits(1.0), bits(-2.0), bits(-2.0), bits(1.0)),
        (bits(0.0), bits(-0.0), bits(-0.0), bits(0.0)),
        (bits(-0.0), bits(0.0), bits(-0.0), bits(0.0)),
        (nan, bits(3.0), bits(3.0), bits(3.0)),
        (bits(3.0), nan, bits(3.0), bits(3.0)),
        (bits(f64::NEG_INFINITY), bits(3.0), bits(f64::NEG_INFINITY), bits(3.0)),
        (bits(-5.0), bits(-4.0), bits(-5.0), bits(-4.0)),
    ];
    for (a, b, min, max) in table {
        assert_eq!((double::min(a, b), double::max(a, b)), (min, max), "{a:x} {b:x}");
    }
    assert!(f64::from_bits(double::min(nan, nan)).is_nan());
    assert_eq!(double::neg(bits(1.5)), bits(-1.5));
    assert_eq!(double::abs(bits(-1.5)), bits(1.5));
    assert_eq!(double::copysign(bits(-0.0), bits(2.0)), bits(-2.0));
    let mut random = Random::new(13);
    for _ in 0..10_000 {
        let a = random.bits(F64);
        let x = f64::from_bits(a);
        assert_eq!(double::test(a, Class::Finite), x.is_finite());
        assert_eq!(double::test(a, Class::Infinite), x.is_infinite());
        assert_eq!(double::test(a, Class::Number), !x.is_nan());
        assert_eq!(double::test(a, Class::NotANumber), x.is_nan());
        assert_eq!(double::test(a, Class::Normal), x.is_normal());
        assert_eq!(double::test(a, Class::Subnormal), x.is_subnormal());
    }
}
