//! Lane-wise instructions that have no vectorised arm of their own: one lane at a time, by [`crate::numeric`].

use crate::numeric::compare::Compare;
use crate::numeric::convert::{Conversion, Scalar};
use crate::numeric::half::{Bf16, F16, HalfMode};
use crate::numeric::integer::{self, Int, IntOp, Permute};
use crate::numeric::{Class, MinMax, Mode, Round, approximate, double, half, single};

/// What a lane computes from up to three sources, zero-extended to 64 bits.
#[allow(missing_docs, reason = "the fields are named as the modifiers")]
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LaneOp {
    /// Integers of a width and signedness.
    Int(IntOp, Int),
    /// f32, rounded.
    F32(Arith, Mode),
    /// f64, rounded.
    F64(Arith, Round),
    /// f16 (or bf16), rounded; packed: on both halves.
    Half { op: Arith, bf16: bool, packed: bool, mode: HalfMode },
    /// Minimum or maximum of floats: type, maximum, packed.
    MinMax { ty: Scalar, max: bool, packed: bool, mode: MinMax },
    /// `abs` and `neg` of floats.
    Sign { ty: Scalar, packed: bool, negate: bool, ftz: bool },
    /// Approximations.
    Approx(Approx, bool),
    /// The same for f16 or bf16.
    ApproxHalf { op: Approx, bf16: bool, packed: bool, ftz: bool },
    /// `copysign`: f64 or f32.
    CopySign(bool),
    /// `testp`: f64 or f32.
    TestP(Class, bool),
    /// `cvt`, to a register of so many bits: integers are extended to it.
    Cvt { conversion: Conversion, register_bits: u32 },
    /// `cvt` of two sources into a packed result, the first to the high half.
    CvtPack(Conversion),
    /// `cvt` of a packed source into a packed result.
    CvtUnpack(Conversion),
    /// Comparison to 1 or 0; packed halves give bits 0 and 1.
    Compare { test: Compare, ty: Scalar, ftz: bool, packed: bool },
    /// `set`: all ones (or 1.0f) if true.
    Set { test: Compare, ty: Scalar, ftz: bool, float: bool },
    /// `set` of f16 (or bf16) to its own type: 1.0 if true; packed: on both halves.
    SetHalf { test: Compare, bf16: bool, ftz: bool, packed: bool },
    /// `slct`: a if c >= 0, else b; c is an s32 or an f32.
    Slct { float: bool, ftz: bool },
    /// `prmt` with a mode.
    Prmt(Permute),
    /// `lop3` with its table.
    Lop3(u8),
    /// `shf`: to the left, clamped.
    Shf { left: bool, clamp: bool },
    /// `dp4a`, `dp2a` (upper half of b): signedness of a and b.
    Dp { four: bool, upper: bool, a_signed: bool, b_signed: bool },
    /// Low or high 32 bits of the product of 24-bit numbers, plus c.
    Mul24 { high: bool, signed: bool, add: bool },
    /// `rsqrt.approx.f64`; `.ftz`: of the upper words.
    RsqrtF64 { ftz: bool },
    /// `rcp.approx.ftz.f64`.
    RcpF64,
    /// Atomic: `inc`, `dec` with wrap at b; exchange; compare with b and swap to c.
    Inc,
    /// See [`LaneOp::Inc`].
    Dec,
    /// See [`LaneOp::Inc`].
    Exch,
    /// See [`LaneOp::Inc`].
    Cas,
}

/// Floating-point operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum Arith {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Rcp,
    Sqrt,
}

/// Approximations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum Approx {
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
    Rcp,
    Rsqrt,
    Sqrt,
    Div,
    DivFull,
}

const SIGN_32: u64 = 1 << 31;
const SIGN_64: u64 = 1 << 63;

impl LaneOp {
    /// An atomic's operation on shared memory: sums of f32 keep subnormals, which those in global memory flush.
    pub fn in_shared(self) -> Self {
        match self {
            Self::F32(op, mode) => Self::F32(op, Mode { ftz: false, ..mode }),
            other => other,
        }
    }

    /// The result; bits above its type's are zero.
    pub fn apply(self, [a, b, c]: [u64; 3]) -> u64 {
        let (a32, b32, c32) = (a as u32, b as u32, c as u32);
        match self {
            Self::Int(op, int) => op.apply(int, a, b, c),
            Self::F32(op, mode) => u64::from(match op {
                Arith::Add => single::add(a32, b32, mode),
                Arith::Sub => single::add(a32, b32 ^ SIGN_32 as u32, mode),
                Arith::Mul => single::mul(a32, b32, mode),
                Arith::Fma => single::fma(a32, b32, c32, mode),
                Arith::Div => single::div(a32, b32, mode),
                Arith::Rcp => single::rcp(a32, mode),
                Arith::Sqrt => single::sqrt(a32, mode),
            }),
            Self::F64(op, round) => match op {
                Arith::Add => double::add(a, b, round),
                Arith::Sub => double::add(a, b ^ SIGN_64, round),
                Arith::Mul => double::mul(a, b, round),
                Arith::Fma => double::fma(a, b, c, round),
                Arith::Div => double::div(a, b, round),
                Arith::Rcp => double::rcp(a, round),
                Arith::Sqrt => double::sqrt(a, round),
            },
            Self::Half { op, bf16, packed, mode } => {
                halves(packed, [a, b, c], |v| arith_half(op, bf16, mode, v))
            }
            Self::MinMax { ty, max, packed, mode } => min_max(ty, max, packed, mode, a, b),
            Self::Sign { ty, packed, negate, ftz } => sign(ty, packed, negate, ftz, a),
            Self::Approx(op, ftz) => u64::from(op.apply(a32, b32, ftz)),
            Self::ApproxHalf { op, bf16, packed, ftz } => {
                halves(packed, [a, b, c], |[a, ..]| match (op, bf16) {
                    (Approx::Tanh, false) => approximate::tanh_half::<F16>(a),
                    (Approx::Tanh, true) => approximate::tanh_half::<Bf16>(a),
                    (_, false) => approximate::ex2_half::<F16>(a, ftz),
                    (_, true) => approximate::ex2_half::<Bf16>(a, ftz),
                })
            }
            Self::CopySign(double) => {
                let sign = if double { SIGN_64 } else { SIGN_32 };
                (a & sign) | (b & !sign)
            }
            Self::TestP(class, double) => {
                u64::from(if double { double::test(a, class) } else { single::test(a32, class) })
            }
            Self::Cvt { conversion, register_bits } => conversion.convert(a) & low_bits(register_bits),
            Self::CvtPack(conversion) => {
                let bits = conversion.to.bits();
                conversion.convert(a) << bits | conversion.convert(b)
            }
            Self::CvtUnpack(conversion) => {
                let (from, to) = (conversion.from.bits(), conversion.to.bits());
                let low = conversion.convert(a & ((1 << from) - 1));
                conversion.convert(a >> from & ((1 << from) - 1)) << to | low
            }
            Self::Compare { test, ty, ftz, packed } => {
                let low = u64::from(compare(test, ty, ftz, a, b));
                let high = packed && compare(test, ty, ftz, a >> 16, b >> 16);
                low | u64::from(high) << 1
            }
            Self::Set { test, ty, ftz, float } => match (compare(test, ty, ftz, a, b), float) {
                (false, _) => 0,
                (true, false) => 0xffff_ffff,
                (true, true) => u64::from(1f32.to_bits()),
            },
            Self::SetHalf { test, bf16, ftz, packed } => halves(packed, [a, b, 0], |[a, b, _]| {
                match (bf16, if bf16 { test.bf16(a, b, ftz) } else { test.f16(a, b, ftz) }) {
                    (_, false) => 0,
                    (false, true) => 0x3c00,
                    (true, true) => 0x3f80,
                }
            }),
            Self::Slct { float, ftz } => {
                let c32 = if ftz { single::flush(c32) } else { c32 };
                let holds = if float { f32::from_bits(c32) >= 0.0 } else { c32 as i32 >= 0 };
                if holds { a } else { b }
            }
            Self::Prmt(mode) => u64::from(integer::prmt(a32, b32, c32, mode)),
            Self::Lop3(table) => u64::from(integer::lop3(a32, b32, c32, u32::from(table))),
            Self::Shf { left: true, clamp } => u64::from(integer::shf_l(a32, b32, c32, clamp)),
            Self::Shf { left: false, clamp } => u64::from(integer::shf_r(a32, b32, c32, clamp)),
            Self::Dp { four: true, a_signed, b_signed, .. } => {
                u64::from(integer::dp4a(a32, b32, c32, a_signed, b_signed))
            }
            Self::Dp { upper, a_signed, b_signed, .. } => {
                u64::from(integer::dp2a(a32, b32, c32, a_signed, b_signed, upper))
            }
            Self::Mul24 { high, signed, add } => {
                let product = match (high, signed) {
                    (false, false) => integer::mul24_lo_u32(a32, b32),
                    (false, true) => integer::mul24_lo_s32(a32, b32),
                    (true, false) => integer::mul24_hi_u32(a32, b32),
                    (true, true) => integer::mul24_hi_s32(a32, b32),
                };
                u64::from(if add { product.wrapping_add(c32) } else { product })
            }
            Self::RsqrtF64 { ftz } => approximate::rsqrt_f64(a, ftz),
            Self::RcpF64 => approximate::rcp_f64(a),
            Self::Inc => {
                if a >= b {
                    0
                } else {
                    a + 1
                }
            }
            Self::Dec => {
                if a == 0 || a > b {
                    b
                } else {
                    a - 1
                }
            }
            Self::Exch => b,
            Self::Cas => {
                if a == b {
                    c
                } else {
                    a
                }
            }
        }
    }
}

/// So many ones.
fn low_bits(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

/// A function of 16 bits on one value or on both halves.
fn halves(packed: bool, v: [u64; 3], function: impl Fn([u16; 3]) -> u16) -> u64 {
    let low = u64::from(function(v.map(|v| v as u16)));
    if packed { low | u64::from(function(v.map(|v| (v >> 16) as u16))) << 16 } else { low }
}

fn arith_half(op: Arith, bf16: bool, mode: HalfMode, [a, b, c]: [u16; 3]) -> u16 {
    match (op, bf16) {
        (Arith::Add, false) => half::add::<F16>(a, b, mode),
        (Arith::Sub, false) => half::add::<F16>(a, b ^ 0x8000, mode),
        (Arith::Mul, false) => half::mul::<F16>(a, b, mode),
        (_, false) => half::fma::<F16>(a, b, c, mode),
        (Arith::Add, true) => half::add::<Bf16>(a, b, mode),
        (Arith::Sub, true) => half::add::<Bf16>(a, b ^ 0x8000, mode),
        (Arith::Mul, true) => half::mul::<Bf16>(a, b, mode),
        (_, true) => half::fma::<Bf16>(a, b, c, mode),
    }
}

fn min_max(ty: Scalar, max: bool, packed: bool, mode: MinMax, a: u64, b: u64) -> u64 {
    match (ty, max) {
        (Scalar::F64, false) => double::min(a, b),
        (Scalar::F64, true) => double::max(a, b),
        (Scalar::F32, false) => u64::from(single::min(a as u32, b as u32, mode)),
        (Scalar::F32, true) => u64::from(single::max(a as u32, b as u32, mode)),
        (Scalar::F16, false) => halves(packed, [a, b, 0], |[a, b, _]| half::min::<F16>(a, b, mode)),
        (Scalar::F16, true) => halves(packed, [a, b, 0], |[a, b, _]| half::max::<F16>(a, b, mode)),
        (_, false) => halves(packed, [a, b, 0], |[a, b, _]| half::min::<Bf16>(a, b, mode)),
        (_, true) => halves(packed, [a, b, 0], |[a, b, _]| half::max::<Bf16>(a, b, mode)),
    }
}

fn sign(ty: Scalar, packed: bool, negate: bool, ftz: bool, a: u64) -> u64 {
    match (ty, negate) {
        (Scalar::F64, false) => double::abs(a),
        (Scalar::F64, true) => double::neg(a),
        (Scalar::F32, false) => u64::from(single::abs(a as u32, ftz)),
        (Scalar::F32, true) => u64::from(single::neg(a as u32, ftz)),
        (Scalar::F16, false) => halves(packed, [a; 3], |[a, ..]| half::abs::<F16>(a, ftz)),
        (Scalar::F16, true) => halves(packed, [a; 3], |[a, ..]| half::neg::<F16>(a, ftz)),
        (_, false) => halves(packed, [a; 3], |[a, ..]| half::abs::<Bf16>(a, ftz)),
        (_, true) => halves(packed, [a; 3], |[a, ..]| half::neg::<Bf16>(a, ftz)),
    }
}

fn compare(test: Compare, ty: Scalar, ftz: bool, a: u64, b: u64) -> bool {
    match ty {
        Scalar::F64 => test.f64(a, b),
        Scalar::F32 => test.f32(a as u32, b as u32, ftz),
        Scalar::F16 => test.f16(a as u16, b as u16, ftz),
        Scalar::Bf16 => test.bf16(a as u16, b as u16, ftz),
        Scalar::S16 => test.test(a as i16, b as i16),
        Scalar::S32 => test.test(a as i32, b as i32),
        Scalar::S64 => test.test(a as i64, b as i64),
        Scalar::U16 => test.test(a as u16, b as u16),
        Scalar::U32 => test.test(a as u32, b as u32),
        _ => test.test(a, b),
    }
}

impl Approx {
    fn apply(self, a: u32, b: u32, ftz: bool) -> u32 {
        match self {
            Self::Ex2 => approximate::ex2(a, ftz),
            Self::Lg2 => approximate::lg2(a, ftz),
            Self::Sin => approximate::sin(a, ftz),
            Self::Cos => approximate::cos(a, ftz),
            Self::Tanh => approximate::tanh(a),
            Self::Rcp => approximate::rcp(a, ftz),
            Self::Rsqrt => approximate::rsqrt(a, ftz),
            Self::Sqrt => approximate::sqrt(a, ftz),
            Self::Div => approximate::div(a, b, ftz),
            Self::DivFull => approximate::div_full(a, b, ftz),
        }
    }
}

/// An atomic's operation on global memory (see [`LaneOp::in_shared`]) and the number of operands after the address.
pub fn atomic_operation(word: &str, ty: &str) -> Option<(LaneOp, usize)> {
    let int = |bits, signed, op| LaneOp::Int(op, Int { bits, signed });
    let mode = Mode { round: Round::Nearest, ftz: true, saturate: false };
    let half = |bf16, packed| LaneOp::Half { op: Arith::Add, bf16, packed, mode: HalfMode::default() };
    let op = match (word, ty) {
        ("add", "u32" | "s32") => int(32, false, IntOp::Add),
        ("add", "u64") => int(64, false, IntOp::Add),
        ("add", "f32") => LaneOp::F32(Arith::Add, mode),
        ("add", "f64") => LaneOp::F64(Arith::Add, Round::Nearest),
        ("add", "f16") => half(false, false),
        ("add", "f16x2") => half(false, true),
        ("add", "bf16") => half(true, false),
        ("add", "bf16x2") => half(true, true),
        ("min", "u32") => int(32, false, IntOp::Min),
        ("min", "s32") => int(32, true, IntOp::Min),
        ("min", "u64") => int(64, false, IntOp::Min),
        ("min", "s64") => int(64, true, IntOp::Min),
        ("max", "u32") => int(32, false, IntOp::Max),
        ("max", "s32") => int(32, true, IntOp::Max),
        ("max", "u64") => int(64, false, IntOp::Max),
        ("max", "s64") => int(64, true, IntOp::Max),
        ("and", "b32") => int(32, false, IntOp::And),
        ("or", "b32") => int(32, false, IntOp::Or),
        ("xor", "b32") => int(32, false, IntOp::Xor),
        ("and", "b64") => int(64, false, IntOp::And),
        ("or", "b64") => int(64, false, IntOp::Or),
        ("xor", "b64") => int(64, false, IntOp::Xor),
        ("inc", "u32") => LaneOp::Inc,
        ("dec", "u32") => LaneOp::Dec,
        ("exch", "b32" | "b64") => LaneOp::Exch,
        ("cas", "b16" | "b32" | "b64") => return Some((LaneOp::Cas, 2)),
        _ => return None,
    };
    Some((op, 1))
}

/// `redux`'s operation.
pub fn redux_operation(word: &str, ty: &str) -> Option<LaneOp> {
    match (word, ty) {
        ("add" | "min" | "max", "u32" | "s32") | ("and" | "or" | "xor", "b32") => {
            atomic_operation(word, ty).map(|(op, _)| op)
        }
        _ => None,
    }
}
