//! Comparisons against Rust's.

use crate::oracle::{BF16, F16, F32, F64, Random};
use cuda_emulator::numeric::compare::Compare;
use std::cmp::Ordering::{self, Equal, Greater, Less};

/// Word, and whether it is true of less, equal, greater, unordered.
const TABLE: [(&str, [bool; 4]); 18] = {
    const T: bool = true;
    const F: bool = false;
    [
        ("eq", [F, T, F, F]),
        ("ne", [T, F, T, F]),
        ("lt", [T, F, F, F]),
        ("le", [T, T, F, F]),
        ("gt", [F, F, T, F]),
        ("ge", [F, T, T, F]),
        ("lo", [T, F, F, F]),
        ("ls", [T, T, F, F]),
        ("hi", [F, F, T, F]),
        ("hs", [F, T, T, F]),
        ("equ", [F, T, F, T]),
        ("neu", [T, F, T, T]),
        ("ltu", [T, F, F, T]),
        ("leu", [T, T, F, T]),
        ("gtu", [F, F, T, T]),
        ("geu", [F, T, T, T]),
        ("num", [T, T, T, F]),
        ("nan", [F, F, F, T]),
    ]
};

fn each(check: impl Fn(&str, Compare, &dyn Fn(Option<Ordering>) -> bool)) {
    for (word, row) in TABLE {
        let want = |ordering: Option<Ordering>| match ordering {
            Some(Less) => row[0],
            Some(Equal) => row[1],
            Some(Greater) => row[2],
            None => row[3],
        };
        check(word, Compare::parse(word).unwrap(), &want);
    }
}

#[test]
fn integers() {
    let mut random = Random::new(31);
    let mut draw =
        || [0, 1, 2, u64::MAX, 1 << 63, 1 << 31, random.next(), random.next()][(random.below(8)) as usize];
    for _ in 0..2000 {
        let (a, b) = (draw(), draw());
        let low = |x: u64| (x & 0xffff_ffff) as u32;
        each(|word, compare, want| {
            assert_eq!(compare.test(a, b), want(Some(a.cmp(&b))), "{word} {a} {b}");
            let (x, y) = (a.cast_signed(), b.cast_signed());
            assert_eq!(compare.test(x, y), want(Some(x.cmp(&y))), "{word} {x} {y}");
            let (x, y) = (low(a), low(b));
            assert_eq!(compare.test(x, y), want(Some(x.cmp(&y))), "{word} {x} {y}");
            let (x, y) = (x.cast_signed(), y.cast_signed());
            assert_eq!(compare.test(x, y), want(Some(x.cmp(&y))), "{word} {x} {y}");
        });
    }
    assert_eq!(Compare::parse("and"), None);
}

#[test]
fn floats() {
    let mut random = Random::new(32);
    for _ in 0..5000 {
        let (a, b) = (random.bits(F64), random.bits(F64));
        let (c, d) = (u32::try_from(random.bits(F32)).unwrap(), u32::try_from(random.bits(F32)).unwrap());
        each(|word, compare, want| {
            let (x, y) = (f64::from_bits(a), f64::from_bits(b));
            assert_eq!(compare.f64(a, b), want(x.partial_cmp(&y)), "{word} {x} {y}");
            let (x, y) = (f32::from_bits(c), f32::from_bits(d));
            assert_eq!(compare.f32(c, d, false), want(x.partial_cmp(&y)), "{word} {x} {y}");
            let flush = |x: f32| if x.is_subnormal() { 0.0 } else { x };
            assert_eq!(compare.f32(c, d, true), want(flush(x).partial_cmp(&flush(y))), "{word} {x} {y}");
        });
    }
}

#[test]
fn sixteen_bits() {
    let mut random = Random::new(33);
    for _ in 0..20_000 {
        let draw = |random: &mut Random, shape| u16::try_from(random.bits(shape)).unwrap();
        let (a, b) = (draw(&mut random, F16), draw(&mut random, F16));
        let (c, d) = (draw(&mut random, BF16), draw(&mut random, BF16));
        each(|word, compare, want| {
            let (x, y) = (half::f16::from_bits(a), half::f16::from_bits(b));
            assert_eq!(compare.f16(a, b, false), want(x.partial_cmp(&y)), "{word} {x} {y}");
            let flush = |x: half::f16| if x.to_f32().abs() < 2f32.powi(-14) { half::f16::ZERO } else { x };
            assert_eq!(compare.f16(a, b, true), want(flush(x).partial_cmp(&flush(y))), "{word} {x} {y}");
            let (x, y) = (half::bf16::from_bits(c), half::bf16::from_bits(d));
            assert_eq!(compare.bf16(c, d, false), want(x.partial_cmp(&y)), "{word} {x} {y}");
            let flush = |x: half::bf16| if x.to_f32().is_subnormal() { half::bf16::ZERO } else { x };
            assert_eq!(compare.bf16(c, d, true), want(flush(x).partial_cmp(&flush(y))), "{word} {x} {y}");
        });
    }
}
