//! Lane-wise instructions: vectorised loops over 32 lanes for the frequent ones, one lane at a time for the rest.

use super::warp::{FULL, Row, Warp, Wide};
use crate::numeric::convert::{Conversion, Scalar};
use crate::numeric::integer::{self, Permute};
use crate::numeric::{MinMax, Round, approximate, convert, double, single};
use crate::program::op::{
    Alu64, Binary32, Compare32, Compare64, Instr, Kind, Logic, Op, Ternary32, Test, Unary32,
};

const TO_F64: Conversion = Conversion::new(Scalar::F64, Scalar::F32);
const TO_F32: Conversion = Conversion::new(Scalar::F32, Scalar::F64);
const SIGN: u32 = 1 << 31;
const PLAIN: MinMax = MinMax { ftz: false, nan: false, xorsign_abs: false };

/// Executes a frequent instruction in the lanes of a mask; false if it is not one.
#[inline(always)]
pub fn execute(warp: &mut Warp, i: &Instr, m: u32) -> bool {
    match i.op {
        Op::Unary32(op) => unary(warp, i, op, m),
        Op::Binary32(op) => binary(warp, i, op, m),
        Op::Ternary32(op) => ternary(warp, i, op, m),
        Op::Alu64(op) => alu64(warp, i, op, m),
        Op::Setp32(test, ty) => setp32(warp, i, test, ty, m),
        Op::Setp64(test, ty) => setp64(warp, i, test, ty, m),
        Op::Select32(negated) => select32(warp, i, negated, m),
        Op::Select64(negated) => select64(warp, i, negated, m),
        Op::Pred { op, negate } => predicate(warp, i, op, negate, m),
        Op::PredConst(value) => warp.set_pred(i.r[0], if value { FULL } else { 0 }, m),
        Op::Split { part_bits } => split(warp, i, part_bits, m),
        Op::Nop => {}
        _ => return false,
    }
    true
}

/// `d = f(a)` in all lanes, kept in those of the mask.
#[inline(always)]
fn map1(warp: &mut Warp, i: &Instr, m: u32, f: impl Fn(u32) -> u32) {
    let a = &warp.r[usize::from(i.r[1])].0;
    let mut v = Row([0; 32]);
    for lane in 0..32 {
        v.0[lane] = f(a[lane]);
    }
    warp.set32(i.r[0], &v.0, m);
}

/// `d = f(a, b)`.
#[inline(always)]
fn map2(warp: &mut Warp, i: &Instr, m: u32, f: impl Fn(u32, u32) -> u32) {
    let (a, b) = (&warp.r[usize::from(i.r[1])].0, &warp.r[usize::from(i.r[2])].0);
    let mut v = Row([0; 32]);
    for lane in 0..32 {
        v.0[lane] = f(a[lane], b[lane]);
    }
    warp.set32(i.r[0], &v.0, m);
}

/// `d = f(a, b, c)`.
#[inline(always)]
fn map3(warp: &mut Warp, i: &Instr, m: u32, f: impl Fn(u32, u32, u32) -> u32) {
    let [a, b, c] = [i.r[1], i.r[2], i.r[3]].map(|r| &warp.r[usize::from(r)].0);
    let mut v = Row([0; 32]);
    for lane in 0..32 {
        v.0[lane] = f(a[lane], b[lane], c[lane]);
    }
    warp.set32(i.r[0], &v.0, m);
}

/// 64-bit `d` from a 64-bit a.
#[inline(always)]
fn wide1(warp: &mut Warp, i: &Instr, m: u32, f: impl Fn(u64) -> u64) {
    let a = &warp.q[usize::from(i.r[1])].0;
    let mut v = Wide([0; 32]);
    for lane in 0..32 {
        v.0[lane] = f(a[lane]);
    }
    warp.set64(i.r[0], &v.0, m);
}

/// 64-bit `d` from a 64-bit a and b.
#[inline(always)]
fn wide2(warp: &mut Warp, i: &Instr, m: u32, f: impl Fn(u64, u64) -> u64) {
    let (a, b) = (&warp.q[usize::from(i.r[1])].0, &warp.q[usize::from(i.r[2])].0);
    let mut v = Wide([0; 32]);
    for lane in 0..32 {
        v.0[lane] = f(a[lane], b[lane]);
    }
    warp.set64(i.r[0], &v.0, m);
}

/// 64-bit `d` from a 64-bit a, b and c.
#[inline(always)]
fn wide3(warp: &mut Warp, i: &Instr, m: u32, f: impl Fn(u64, u64, u64) -> u64) {
    let [a, b, c] = [i.r[1], i.r[2], i.r[3]].map(|r| &warp.q[usize::from(r)].0);
    let mut v = Wide([0; 32]);
    for lane in 0..32 {
        v.0[lane] = f(a[lane], b[lane], c[lane]);
    }
    warp.set64(i.r[0], &v.0, m);
}

/// 64-bit `d` from a 64-bit a and a 32-bit b.
#[inline(always)]
fn shifted(warp: &mut Warp, i: &Instr, m: u32, f: impl Fn(u64, u32) -> u64) {
    let (a, b) = (&warp.q[usize::from(i.r[1])].0, &warp.r[usize::from(i.r[2])].0);
    let mut v = Wide([0; 32]);
    for lane in 0..32 {
        v.0[lane] = f(a[lane], b[lane]);
    }
    warp.set64(i.r[0], &v.0, m);
}

/// 64-bit `d` from a 32-bit a.
#[inline(always)]
fn widen1(warp: &mut Warp, i: &Instr, m: u32, f: impl Fn(u32) -> u64) {
    let a = &warp.r[usize::from(i.r[1])].0;
    let mut v = Wide([0; 32]);
    for lane in 0..32 {
        v.0[lane] = f(a[lane]);
    }
    warp.set64(i.r[0], &v.0, m);
}

/// 64-bit `d` from a 32-bit a and b.
#[inline(always)]
fn widen2(warp: &mut Warp, i: &Instr, m: u32, f: impl Fn(u32, u32) -> u64) {
    let (a, b) = (&warp.r[usize::from(i.r[1])].0, &warp.r[usize::from(i.r[2])].0);
    let mut v = Wide([0; 32]);
    for lane in 0..32 {
        v.0[lane] = f(a[lane], b[lane]);
    }
    warp.set64(i.r[0], &v.0, m);
}

/// 64-bit `d` from a 32-bit a and b and a 64-bit c.
#[inline(always)]
fn widen3(warp: &mut Warp, i: &Instr, m: u32, f: impl Fn(u32, u32, u64) -> u64) {
    let (a, b) = (&warp.r[usize::from(i.r[1])].0, &warp.r[usize::from(i.r[2])].0);
    let c = &warp.q[usize::from(i.r[3])].0;
    let mut v = Wide([0; 32]);
    for lane in 0..32 {
        v.0[lane] = f(a[lane], b[lane], c[lane]);
    }
    warp.set64(i.r[0], &v.0, m);
}

/// 32-bit `d` from a 64-bit a.
#[inline(always)]
fn narrow1(warp: &mut Warp, i: &Instr, m: u32, f: impl Fn(u64) -> u32) {
    let a = &warp.q[usize::from(i.r[1])].0;
    let mut v = Row([0; 32]);
    for lane in 0..32 {
        v.0[lane] = f(a[lane]);
    }
    warp.set32(i.r[0], &v.0, m);
}

#[inline(always)]
fn unary(w: &mut Warp, i: &Instr, op: Unary32, m: u32) {
    match op {
        Unary32::Mov => map1(w, i, m, |a| a),
        Unary32::Not => map1(w, i, m, |a| !a),
        Unary32::Neg => map1(w, i, m, u32::wrapping_neg),
        Unary32::NegF32 => map1(w, i, m, |a| single::neg(a, false)),
        Unary32::AbsF32 => map1(w, i, m, |a| single::abs(a, false)),
        Unary32::SqrtF32 => map1(w, i, m, single::sqrt_rn::<false>),
        Unary32::RcpF32 => map1(w, i, m, |a| single::div_rn::<false>(1f32.to_bits(), a)),
        Unary32::Ex2Approx => map1(w, i, m, |a| approximate::ex2(a, false)),
        Unary32::Ex2ApproxFtz => map1(w, i, m, |a| approximate::ex2(a, true)),
        Unary32::F32FromS32 => map1(w, i, m, convert::s32_to_f32),
        Unary32::F32FromU32 => map1(w, i, m, convert::u32_to_f32),
        Unary32::S32FromF32Rz => map1(w, i, m, convert::f32_to_s32),
        Unary32::U32FromF32Rz => map1(w, i, m, convert::f32_to_u32),
        Unary32::F32FromBf16 => map1(w, i, m, |a| convert::bf16_to_f32(a as u16)),
        Unary32::Bf16FromF32 => map1(w, i, m, |a| u32::from(convert::f32_to_bf16(a))),
        Unary32::F32FromF16 => map1(w, i, m, |a| convert::f16_to_f32(a as u16)),
        Unary32::F16FromF32 => map1(w, i, m, |a| u32::from(convert::f32_to_f16(a))),
        Unary32::Low16 => map1(w, i, m, |a| a & 0xffff),
        Unary32::Low8 => map1(w, i, m, |a| a & 0xff),
        Unary32::Low32Of64 => narrow1(w, i, m, |a| a as u32),
        Unary32::F32FromF64 => narrow1(w, i, m, |a| {
            let x = f64::from_bits(a) as f32;
            if x.is_nan() { TO_F32.convert(a) as u32 } else { x.to_bits() }
        }),
    }
}

#[inline(always)]
fn binary(w: &mut Warp, i: &Instr, op: Binary32, m: u32) {
    match op {
        Binary32::Add => map2(w, i, m, u32::wrapping_add),
        Binary32::Sub => map2(w, i, m, u32::wrapping_sub),
        Binary32::MulLo => map2(w, i, m, u32::wrapping_mul),
        Binary32::MulHiU => map2(w, i, m, integer::mul_hi_u32),
        Binary32::MulHiS => map2(w, i, m, integer::mul_hi_s32),
        Binary32::And => map2(w, i, m, |a, b| a & b),
        Binary32::Or => map2(w, i, m, |a, b| a | b),
        Binary32::Xor => map2(w, i, m, |a, b| a ^ b),
        Binary32::Shl => map2(w, i, m, |a, b| if b > 31 { 0 } else { a << b }),
        Binary32::ShrU => map2(w, i, m, |a, b| if b > 31 { 0 } else { a >> b }),
        Binary32::ShrS => map2(w, i, m, |a, b| (a as i32 >> b.min(31)) as u32),
        Binary32::MinS => map2(w, i, m, |a, b| (a as i32).min(b as i32) as u32),
        Binary32::MaxS => map2(w, i, m, |a, b| (a as i32).max(b as i32) as u32),
        Binary32::MinU => map2(w, i, m, u32::min),
        Binary32::MaxU => map2(w, i, m, u32::max),
        Binary32::Add16 => map2(w, i, m, |a, b| a.wrapping_add(b) & 0xffff),
        Binary32::MulLo16 => map2(w, i, m, |a, b| a.wrapping_mul(b) & 0xffff),
        Binary32::AddF32 => map2(w, i, m, single::add_rn::<false>),
        Binary32::SubF32 => map2(w, i, m, |a, b| single::add_rn::<false>(a, b ^ SIGN)),
        Binary32::MulF32 => map2(w, i, m, single::mul_rn::<false>),
        Binary32::DivF32 => map2(w, i, m, single::div_rn::<false>),
        Binary32::MinF32 => map2(w, i, m, |a, b| single::min(a, b, PLAIN)),
        Binary32::MaxF32 => map2(w, i, m, |a, b| single::max(a, b, PLAIN)),
        Binary32::Bf16x2FromF32 => map2(w, i, m, |a, b| {
            u32::from(convert::f32_to_bf16(a)) << 16 | u32::from(convert::f32_to_bf16(b))
        }),
        Binary32::F16x2FromF32 => {
            map2(w, i, m, |a, b| u32::from(convert::f32_to_f16(a)) << 16 | u32::from(convert::f32_to_f16(b)))
        }
        Binary32::Pack16 => map2(w, i, m, |a, b| b << 16 | (a & 0xffff)),
    }
}

#[inline(always)]
fn ternary(w: &mut Warp, i: &Instr, op: Ternary32, m: u32) {
    match op {
        Ternary32::MadLo => map3(w, i, m, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        Ternary32::FmaF32 => map3(w, i, m, single::fma_rn::<false>),
        Ternary32::Prmt => map3(w, i, m, |a, b, c| integer::prmt(a, b, c, Permute::Default)),
    }
}

/// `d = fast(a, b)`, and `slow` where that is NaN: which NaN the host returns is not defined.
#[inline(always)]
fn arith64(w: &mut Warp, i: &Instr, m: u32, fast: impl Fn(f64, f64) -> f64, slow: fn(u64, u64) -> u64) {
    let (a, b) = (&w.q[usize::from(i.r[1])].0, &w.q[usize::from(i.r[2])].0);
    let mut v = Wide([0; 32]);
    let mut nan = false;
    for lane in 0..32 {
        let x = fast(f64::from_bits(a[lane]), f64::from_bits(b[lane]));
        nan |= x.is_nan();
        v.0[lane] = x.to_bits();
    }
    if nan {
        for lane in 0..32 {
            v.0[lane] = slow(a[lane], b[lane]);
        }
    }
    w.set64(i.r[0], &v.0, m);
}

#[inline(always)]
fn alu64(w: &mut Warp, i: &Instr, op: Alu64, m: u32) {
    match op {
        Alu64::Mov => wide1(w, i, m, |a| a),
        Alu64::Add => wide2(w, i, m, u64::wrapping_add),
        Alu64::Sub => wide2(w, i, m, u64::wrapping_sub),
        Alu64::MulLo => wide2(w, i, m, u64::wrapping_mul),
        Alu64::And => wide2(w, i, m, |a, b| a & b),
        Alu64::Or => wide2(w, i, m, |a, b| a | b),
        Alu64::Xor => wide2(w, i, m, |a, b| a ^ b),
        Alu64::Not => wide1(w, i, m, |a| !a),
        Alu64::Shl => shifted(w, i, m, |a, b| if b > 63 { 0 } else { a << b }),
        Alu64::ShrU => shifted(w, i, m, |a, b| if b > 63 { 0 } else { a >> b }),
        Alu64::ShrS => shifted(w, i, m, |a, b| (a as i64 >> b.min(63)) as u64),
        Alu64::MulWideU32 => widen2(w, i, m, |a, b| u64::from(a) * u64::from(b)),
        Alu64::MulWideS32 => widen2(w, i, m, |a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64),
        Alu64::MadWideU32 => widen3(w, i, m, |a, b, c| (u64::from(a) * u64::from(b)).wrapping_add(c)),
        Alu64::MadWideS32 => {
            widen3(w, i, m, |a, b, c| ((i64::from(a as i32) * i64::from(b as i32)) as u64).wrapping_add(c))
        }
        Alu64::FromU32 => widen1(w, i, m, u64::from),
        Alu64::FromS32 => widen1(w, i, m, |a| i64::from(a as i32) as u64),
        Alu64::Pack32 => widen2(w, i, m, |a, b| u64::from(b) << 32 | u64::from(a)),
        Alu64::AddF64 => arith64(w, i, m, |a, b| a + b, |a, b| double::add(a, b, Round::Nearest)),
        Alu64::SubF64 => {
            arith64(w, i, m, |a, b| a - b, |a, b| double::add(a, b ^ 1 << 63, Round::Nearest));
        }
        Alu64::MulF64 => arith64(w, i, m, |a, b| a * b, |a, b| double::mul(a, b, Round::Nearest)),
        Alu64::DivF64 => arith64(w, i, m, |a, b| a / b, |a, b| double::div(a, b, Round::Nearest)),
        Alu64::FmaF64 => wide3(w, i, m, |a, b, c| {
            let x = f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c));
            if x.is_nan() { double::fma(a, b, c, Round::Nearest) } else { x.to_bits() }
        }),
        Alu64::SqrtF64 => wide1(w, i, m, |a| {
            let x = f64::from_bits(a).sqrt();
            if x.is_nan() { double::sqrt(a, Round::Nearest) } else { x.to_bits() }
        }),
        Alu64::F64FromF32 => widen1(w, i, m, |a| {
            let x = f64::from(f32::from_bits(a));
            if x.is_nan() { TO_F64.convert(u64::from(a)) } else { x.to_bits() }
        }),
    }
}

/// A bit per lane in which a comparison holds.
#[inline(always)]
fn bits(f: impl Fn(usize) -> bool) -> u32 {
    let mut mask = 0;
    for lane in 0..32 {
        mask |= u32::from(f(lane)) << lane;
    }
    mask
}

#[inline(always)]
fn test<T: PartialOrd>(test: Test, f: impl Fn(usize) -> (T, T)) -> u32 {
    match test {
        Test::Eq => bits(|lane| {
            let (a, b) = f(lane);
            a == b
        }),
        Test::Ne => bits(|lane| {
            let (a, b) = f(lane);
            a != b
        }),
        Test::Lt => bits(|lane| {
            let (a, b) = f(lane);
            a < b
        }),
        Test::Le => bits(|lane| {
            let (a, b) = f(lane);
            a <= b
        }),
        Test::Gt => bits(|lane| {
            let (a, b) = f(lane);
            a > b
        }),
        Test::Ge => bits(|lane| {
            let (a, b) = f(lane);
            a >= b
        }),
    }
}

#[inline(always)]
fn setp32(w: &mut Warp, i: &Instr, t: Test, ty: Compare32, m: u32) {
    let (a, b) = (&w.r[usize::from(i.r[1])].0, &w.r[usize::from(i.r[2])].0);
    let found = match ty {
        Compare32::S32 => test(t, |lane| (a[lane] as i32, b[lane] as i32)),
        Compare32::U32 => test(t, |lane| (a[lane], b[lane])),
        Compare32::F32 => test(t, |lane| (f32::from_bits(a[lane]), f32::from_bits(b[lane]))),
    };
    w.set_pred(i.r[0], found, m);
}

#[inline(always)]
fn setp64(w: &mut Warp, i: &Instr, t: Test, ty: Compare64, m: u32) {
    let (a, b) = (&w.q[usize::from(i.r[1])].0, &w.q[usize::from(i.r[2])].0);
    let found = match ty {
        Compare64::S64 => test(t, |lane| (a[lane] as i64, b[lane] as i64)),
        Compare64::U64 => test(t, |lane| (a[lane], b[lane])),
        Compare64::F64 => test(t, |lane| (f64::from_bits(a[lane]), f64::from_bits(b[lane]))),
    };
    w.set_pred(i.r[0], found, m);
}

#[inline(always)]
fn select32(w: &mut Warp, i: &Instr, negated: bool, m: u32) {
    let p = w.p[usize::from(i.r[3])];
    let p = if negated { !p } else { p };
    let (a, b) = (&w.r[usize::from(i.r[1])].0, &w.r[usize::from(i.r[2])].0);
    let mut v = Row([0; 32]);
    for lane in 0..32 {
        v.0[lane] = if p >> lane & 1 == 1 { a[lane] } else { b[lane] };
    }
    w.set32(i.r[0], &v.0, m);
}

#[inline(always)]
fn select64(w: &mut Warp, i: &Instr, negated: bool, m: u32) {
    let p = w.p[usize::from(i.r[3])];
    let p = if negated { !p } else { p };
    let (a, b) = (&w.q[usize::from(i.r[1])].0, &w.q[usize::from(i.r[2])].0);
    let mut v = Wide([0; 32]);
    for lane in 0..32 {
        v.0[lane] = if p >> lane & 1 == 1 { a[lane] } else { b[lane] };
    }
    w.set64(i.r[0], &v.0, m);
}

/// `a op b` on masks.
#[inline(always)]
pub fn logic(op: Logic, a: u32, b: u32) -> u32 {
    match op {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}

#[inline(always)]
fn predicate(w: &mut Warp, i: &Instr, op: Logic, negate: [bool; 2], m: u32) {
    let flip = |value: u32, negated: bool| if negated { !value } else { value };
    let a = flip(w.p[usize::from(i.r[1])], negate[0]);
    let b = flip(w.p[usize::from(i.r[2])], negate[1]);
    w.set_pred(i.r[0], logic(op, a, b), m);
}

/// Registers of an instruction's pool are the caller's; this one reads its count from the instruction.
#[inline(always)]
fn split(w: &mut Warp, i: &Instr, part_bits: u8, m: u32) {
    let mut source = [0u64; 32];
    if i.kinds[1] == Kind::Use64 {
        source = w.q[usize::from(i.r[1])].0;
    } else {
        let row = &w.r[usize::from(i.r[1])].0;
        for lane in 0..32 {
            source[lane] = u64::from(row[lane]);
        }
    }
    let keep = (1u64 << part_bits) - 1;
    for k in 0..i.wide_len {
        let register = w.pool[i.wide as usize + usize::from(k)];
        let mut part = [0u32; 32];
        for lane in 0..32 {
            part[lane] = (source[lane] >> (part_bits * k) & keep) as u32;
        }
        w.set32(register, &part, m);
    }
}
