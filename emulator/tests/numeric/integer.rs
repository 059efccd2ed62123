//! Integer operations against the ISA's pseudocode, bit by bit.

use crate::oracle::Random;
use cuda_emulator::numeric::integer::{self, Int, IntOp, Permute};

fn low(x: impl Into<i128>) -> u32 {
    (x.into() & 0xffff_ffff) as u32
}

fn bit(x: u64, i: u32) -> bool {
    i < 64 && x >> i & 1 == 1
}

/// Values with runs of equal bits.
fn draw(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => random.next(),
        1 => random.next() >> random.below(64),
        2 => (random.next().cast_signed() >> random.below(64)).cast_unsigned(),
        _ => [0, 1, u64::MAX, 1 << 31, 1 << 63, 0x7fff_ffff, 0xffff_ffff, 0xff][random.below(8) as usize],
    }
}

/// The extracted field, bit by bit, of a value of `width` bits.
fn bfe(a: u64, pos: u32, len: u32, width: u32, signed: bool) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let top = width - 1;
    let sign = signed && len != 0 && bit(a, (pos + len - 1).min(top));
    (0..width).fold(0, |d, i| {
        let on = if i < len && pos + i <= top { bit(a, pos + i) } else { sign };
        d | u64::from(on) << i
    })
}

fn bfi(a: u64, b: u64, pos: u32, len: u32, width: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    (0..width).fold(0, |d, i| {
        let on = if i >= pos && i - pos < len { bit(a, i - pos) } else { bit(b, i) };
        d | u64::from(on) << i
    })
}

fn bfind(a: u64, width: u32, signed: bool) -> u32 {
    let a = if signed && bit(a, width - 1) { !a } else { a };
    (0..width).rev().find(|&i| bit(a, i)).unwrap_or(u32::MAX)
}

#[test]
fn bit_fields() {
    let mut random = Random::new(41);
    for _ in 0..20_000 {
        let (a, b) = (draw(&mut random), draw(&mut random));
        let (pos, len) = (random.u32() % 70 + 256 * (random.u32() % 2), random.u32() % 70);
        let (a32, b32) = (low(a), low(b));
        let context = format!("{a:x} {b:x} {pos} {len}");
        assert_eq!(
            u64::from(integer::bfe_u32(a32, pos, len)),
            bfe(a32.into(), pos, len, 32, false),
            "{context}"
        );
        assert_eq!(
            u64::from(integer::bfe_s32(a32, pos, len)),
            bfe(a32.into(), pos, len, 32, true),
            "{context}"
        );
        assert_eq!(integer::bfe_u64(a, pos, len), bfe(a, pos, len, 64, false), "{context}");
        assert_eq!(integer::bfe_s64(a, pos, len), bfe(a, pos, len, 64, true), "{context}");
        let want = bfi(a32.into(), b32.into(), pos, len, 32);
        assert_eq!(u64::from(integer::bfi_b32(a32, b32, pos, len)), want, "{context}");
        assert_eq!(integer::bfi_b64(a, b, pos, len), bfi(a, b, pos, len, 64), "{context}");
        assert_eq!(integer::bfind_unsigned(a), bfind(a, 64, false), "{context}");
        assert_eq!(integer::bfind_signed(a.cast_signed()), bfind(a, 64, true), "{context}");
        assert_eq!(integer::bfind_unsigned(a32.into()), bfind(a32.into(), 32, false), "{context}");
        assert_eq!(integer::bfind_signed(a32.cast_signed().into()), bfind(a32.into(), 32, true), "{context}");
    }
    assert_eq!(integer::shift_amount(u32::MAX, 32), u32::MAX);
    assert_eq!(integer::shift_amount(5, 32), 26);
}

#[test]
fn permutations() {
    // d.b3 d.b2 d.b1 d.b0 for selector values 0 to 3, as the ISA lists them.
    let table = [
        ("f4e", ["3210", "4321", "5432", "6543"]),
        ("b4e", ["5670", "6701", "7012", "0123"]),
        ("rc8", ["0000", "1111", "2222", "3333"]),
        ("ecl", ["3210", "3211", "3222", "3333"]),
        ("ecr", ["0000", "1110", "2210", "3210"]),
        ("rc16", ["1010", "3232", "1010", "3232"]),
    ];
    let (a, b) = (0x0302_0100, 0x8706_0504); // byte i is i, but the highest one has its sign set
    for (word, rows) in table {
        let mode = Permute::parse(word).unwrap();
        for (selector, row) in (0u32..).zip(rows) {
            let want = row.chars().fold(0, |d, digit| {
                let i = digit.to_digit(10).unwrap();
                d << 8 | if i == 7 { 0x87 } else { i }
            });
            assert_eq!(integer::prmt(a, b, selector, mode), want, "{word} {selector}");
            assert_eq!(integer::prmt(a, b, selector | 4, mode), want, "{word}: only two bits count");
        }
    }
    assert_eq!(integer::prmt(a, b, 0x7f21, Permute::Default), 0x87ff_0201);
    assert_eq!(integer::prmt(a, b, 0x8765, Permute::Default), 0x0087_0605);
    assert_eq!(Permute::parse("b32"), None);
}

#[test]
fn products() {
    let mut random = Random::new(42);
    for _ in 0..20_000 {
        let (a, b, c) = (draw(&mut random), draw(&mut random), draw(&mut random));
        let (x, y, z) = (low(a), low(b), low(c));
        let (s, t) = (i128::from(x.cast_signed()), i128::from(y.cast_signed()));
        assert_eq!(integer::mul_hi_u32(x, y), low((i128::from(x) * i128::from(y)) >> 32));
        assert_eq!(integer::mul_hi_s32(x, y), low((s * t) >> 32));
        let high = ((i128::from(a.cast_signed()) * i128::from(b.cast_signed())) >> 64) as i64;
        assert_eq!(apply(IntOp::MulHi, 64, true, [a, b, c]), high.cast_unsigned());
        // (2^32 p + q)(2^32 r + s), by 32-bit parts.
        let (p, q, r, u) = (a >> 32, a & 0xffff_ffff, b >> 32, b & 0xffff_ffff);
        let middle = i128::from(p) * i128::from(u) + i128::from(q) * i128::from(r);
        let high = i128::from(p) * i128::from(r) + ((middle + ((i128::from(q) * i128::from(u)) >> 32)) >> 32);
        assert_eq!(i128::from(apply(IntOp::MulHi, 64, false, [a, b, c])), high);
        let (u24, v24) = (i128::from(x % (1 << 24)), i128::from(y % (1 << 24)));
        let sign24 = |v: i128| if v >= 1 << 23 { v - (1 << 24) } else { v };
        let (s24, t24) = (sign24(u24), sign24(v24));
        assert_eq!(integer::mul24_lo_u32(x, y), low(u24 * v24));
        assert_eq!(integer::mul24_hi_u32(x, y), low((u24 * v24) >> 16));
        assert_eq!(integer::mul24_lo_s32(x, y), low(s24 * t24));
        assert_eq!(integer::mul24_hi_s32(x, y), low((s24 * t24) >> 16));
        let words = [x, y, z].map(u64::from);
        let sad = low(i128::from(z) + (i128::from(x) - i128::from(y)).abs());
        assert_eq!(apply(IntOp::Sad, 32, false, words), u64::from(sad));
        let sad = low(i128::from(z.cast_signed()) + (s - t).abs());
        assert_eq!(apply(IntOp::Sad, 32, true, words), u64::from(sad));
        for signs in 0..4 {
            let (a_signed, b_signed) = (signs & 1 != 0, signs & 2 != 0);
            let element = |v: u32, i: usize, signed: bool| {
                let byte = v.to_le_bytes()[i];
                if signed { i128::from(byte.cast_signed()) } else { i128::from(byte) }
            };
            let wide = |v: u32, i: u32, signed: bool| {
                let half = i128::from(v >> (16 * i) & 0xffff);
                if signed && half >= 1 << 15 { half - (1 << 16) } else { half }
            };
            let dot: i128 = (0..4).map(|i| element(x, i, a_signed) * element(y, i, b_signed)).sum();
            assert_eq!(integer::dp4a(x, y, z, a_signed, b_signed), low(i128::from(z) + dot));
            for upper in [false, true] {
                let first = if upper { 2 } else { 0 };
                let dot: i128 =
                    (0..2).map(|i| wide(x, i, a_signed) * element(y, first + i as usize, b_signed)).sum();
                let got = integer::dp2a(x, y, z, a_signed, b_signed, upper);
                assert_eq!(got, low(i128::from(z) + dot));
            }
        }
    }
}

#[test]
fn shifts_and_logic() {
    let mut random = Random::new(43);
    for _ in 0..20_000 {
        let (a, b, c) = (random.u32(), random.u32(), random.u32());
        let amount = if random.below(2) == 0 { c % 40 } else { c };
        for clamp in [false, true] {
            let n = if clamp { amount.min(32) } else { amount & 31 };
            let left = (0..n).fold((a, b), |(a, b), _| (a << 1, b << 1 | a >> 31)).1;
            let right = (0..n).fold((a, b), |(a, b), _| (a >> 1 | b << 31, b >> 1)).0;
            assert_eq!(integer::shf_l(a, b, amount, clamp), left, "{a:x} {b:x} {amount} {clamp}");
            assert_eq!(integer::shf_r(a, b, amount, clamp), right, "{a:x} {b:x} {amount} {clamp}");
        }
    }
    // The ISA: the table is what the function makes of 0xF0, 0xCC and 0xAA.
    type Function = fn(u32, u32, u32) -> u32;
    let functions: [Function; 6] = [
        |a, b, c| a & b & c,
        |a, b, c| a | b | c,
        |a, b, c| a & b & !c,
        |a, b, c| a & b | c,
        |a, b, _| a ^ b,
        |_, _, c| !c,
    ];
    for f in functions {
        let table = f(0xf0, 0xcc, 0xaa) & 0xff;
        let (a, b, c) = (random.u32(), random.u32(), random.u32());
        assert_eq!(integer::lop3(a, b, c, table), f(a, b, c), "{table:x}");
    }
}

#[test]
fn division() {
    for bits in [16, 32, 64] {
        let all = u64::MAX >> (64 - bits);
        let least = 1u64 << (bits - 1);
        let of = |x: i64| x.cast_unsigned() & all;
        for signed in [false, true] {
            let divide = |a, b| [IntOp::Div, IntOp::Rem].map(|op| apply(op, bits, signed, [a, b, 0]));
            assert_eq!(divide(7, 0), [all, 7], "by zero: all ones, and the dividend");
            assert_eq!(divide(7, 2), [3, 1]);
        }
        let divide = |a, b| [IntOp::Div, IntOp::Rem].map(|op| apply(op, bits, true, [a, b, 0]));
        assert_eq!(divide(of(-7), 2), [of(-3), of(-1)]);
        assert_eq!(divide(of(-7), 0), [all, of(-7)]);
        assert_eq!(divide(least, of(-1)), [least, 0], "the one quotient that does not fit");
    }
}

/// All operations of 16 and 32 bits that wide arithmetic says directly; whatever stands above the sources' bits.
#[test]
fn narrow_arithmetic() {
    type Exact = fn(i128, i128, i128) -> i128;
    let operations: [(IntOp, Exact); 8] = [
        (IntOp::Add, |a, b, _| a + b),
        (IntOp::Sub, |a, b, _| a - b),
        (IntOp::MulLo, |a, b, _| a * b),
        (IntOp::MadLo, |a, b, c| a * b + c),
        (IntOp::Min, |a, b, _| a.min(b)),
        (IntOp::Max, |a, b, _| a.max(b)),
        (IntOp::Neg, |a, _, _| -a),
        (IntOp::Abs, |a, _, _| a.abs()),
    ];
    let mut random = Random::new(44);
    for _ in 0..5_000 {
        let v = [(); 3].map(|()| draw(&mut random));
        for bits in [16, 32] {
            for signed in [false, true] {
                let exact = v.map(|v| {
                    let part = i128::from(v & (u64::MAX >> (64 - bits)));
                    if signed && part >> (bits - 1) == 1 { part - (1 << bits) } else { part }
                });
                for (op, function) in operations {
                    let want = function(exact[0], exact[1], exact[2]) & ((1 << bits) - 1);
                    assert_eq!(i128::from(apply(op, bits, signed, v)), want, "{op:?} {bits} {signed} {v:x?}");
                }
                let product = exact[0] * exact[1];
                let wide = i128::from(apply(IntOp::MulWide, bits, signed, v));
                assert_eq!(wide, product & ((1i128 << (2 * bits)) - 1));
                let most = if signed { (1i128 << (bits - 1)) - 1 } else { (1i128 << bits) - 1 };
                let least = if signed { -1 - most } else { 0 };
                let sum = (exact[0] + exact[1]).clamp(least, most) & ((1 << bits) - 1);
                assert_eq!(i128::from(apply(IntOp::AddSat, bits, signed, v)), sum);
            }
        }
    }
}

fn apply(op: IntOp, bits: u32, signed: bool, [a, b, c]: [u64; 3]) -> u64 {
    op.apply(Int { bits, signed }, a, b, c)
}
