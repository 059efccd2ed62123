//! `cvt`.

use super::alu::{draft, operands};
use super::lanes::LaneOp;
use super::lower::{Frame, Lowerer, Result};
use super::op::{Alu64, Binary32, Kind, Op, Unary32};
use super::registers::Draft;
use super::words::Words;
use crate::numeric::Round;
use crate::numeric::convert::{Conversion, Scalar};
use crate::ptx::ast::Instruction;

const MODIFIERS: &[&str] =
    &["rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi", "ftz", "sat", "relu", "satfinite"];

pub(super) fn lower<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    i: &'a Instruction,
    modifiers: &[&str],
) -> Result<Draft> {
    let [rest @ .., to, from] = modifiers else { return Err("two types were expected".into()) };
    if let Some(word) = rest.iter().find(|word| !MODIFIERS.contains(word)) {
        return Err(format!(".{word} is not supported"));
    }
    let words = Words::parse(rest)?;
    let scalar = |word: &str| Scalar::parse(word).ok_or_else(|| format!(".{word} is not supported"));
    let conversion = |to: Scalar, from: Scalar| {
        check(words, to, from)?;
        Ok::<_, String>(Conversion {
            round: words.round.unwrap_or(if float(from) && !float(to) {
                Round::Zero
            } else {
                Round::Nearest
            }),
            to_integral: words.integral && float(to),
            ftz: words.ftz,
            saturate: words.sat,
            relu: words.relu,
            satfinite: words.satfinite,
            ..Conversion::new(to, from)
        })
    };
    if let Some(part) = to.strip_suffix("x2") {
        if words.ftz || words.sat {
            return Err("this form is not supported".into());
        }
        let to = scalar(part)?;
        if let Some(part) = from.strip_suffix("x2") {
            let op = Op::Lanes(LaneOp::CvtUnpack(conversion(to, scalar(part)?)?));
            return Ok(draft(op, operands(l, frame, i, 2 * to.bits(), [2 * scalar(part)?.bits()])?));
        }
        let from = scalar(from)?;
        let op = match (to, words.plain()) {
            (Scalar::Bf16, true) if from == Scalar::F32 => Op::Binary32(Binary32::Bf16x2FromF32),
            (Scalar::F16, true) if from == Scalar::F32 => Op::Binary32(Binary32::F16x2FromF32),
            _ => Op::Lanes(LaneOp::CvtPack(conversion(to, from)?)),
        };
        return Ok(draft(op, operands(l, frame, i, 2 * to.bits(), [from.bits(); 2])?));
    }
    let (to, from) = (scalar(to)?, scalar(from)?);
    // Integers may go to larger registers, extended; and come from larger ones.
    let [d, a] = i.operands.as_slice() else { return Err("two operands were expected".into()) };
    let def = l.def(frame, d)?;
    let a = if frame.register_bytes(a) == Some(8) { l.use64(frame, a)? } else { l.use32(frame, a)? };
    let wide = (def.1 == Kind::Def64, a.1 == Kind::Use64);
    if def.1 == Kind::DefPred || (to.bits() == 64 && !wide.0) || (from.bits() == 64 && !wide.1) {
        return Err("an operand is too small".into());
    }
    let register_bits = frame.register_bytes(d).map_or(64, |bytes| 8 * bytes.clamp(1, 8) as u32);
    let general = LaneOp::Cvt { conversion: conversion(to, from)?, register_bits };
    let op = fast_cvt(to, from, wide, words).unwrap_or(Op::Lanes(general));
    Ok(Draft::with(op, [def, a]))
}

fn float(ty: Scalar) -> bool {
    !matches!(ty, Scalar::U8 | Scalar::U16 | Scalar::U32 | Scalar::U64)
        && !matches!(ty, Scalar::S8 | Scalar::S16 | Scalar::S32 | Scalar::S64)
}

/// Modifiers that the types do not have must not go unnoticed.
fn check(words: Words, to: Scalar, from: Scalar) -> Result<()> {
    let small = |ty| matches!(ty, Scalar::E4m3 | Scalar::E5m2);
    let rounding = match (words.round, float(to), float(from)) {
        (None, ..) => true,
        (Some(Round::NearestAway), ..) => to == Scalar::Tf32,
        (_, false, _) => float(from) && words.integral,
        (_, true, false) => !words.integral,
        (_, true, true) if words.integral => to == from,
        (_, true, true) => to != from && to.bits() <= from.bits() || small(from),
    };
    let narrow = to != from && float(from) && float(to) && !matches!(to, Scalar::F32 | Scalar::F64);
    if rounding
        && (!words.ftz || to == Scalar::F32 || from == Scalar::F32)
        && (!words.sat || !small(to) && !small(from))
        && (!words.relu || narrow)
        && (!words.satfinite || narrow && !small(from))
    {
        return Ok(());
    }
    Err("this form is not supported".into())
}

fn fast_cvt(to: Scalar, from: Scalar, wide: (bool, bool), words: Words) -> Option<Op> {
    use Scalar::{Bf16, F16, F32, F64, S32, S64, U8, U16, U32, U64};
    if words.ftz || words.sat || words.relu || words.satfinite {
        return None;
    }
    let unary = |op| Some(Op::Unary32(op));
    match (to, from, wide, words.round) {
        (U64 | S64, U32, (true, false), _) => Some(Op::Alu64(Alu64::FromU32)),
        (U64 | S64, S32, (true, false), _) => Some(Op::Alu64(Alu64::FromS32)),
        (U32 | S32, U64 | S64, (false, true), _) => unary(Unary32::Low32Of64),
        (U32 | S32, U32 | S32, (false, false), _) => unary(Unary32::Mov),
        (U16, U32 | S32, (false, false), _) | (U32 | S32, U16, (false, false), _) => unary(Unary32::Low16),
        (U16 | U32 | S32, U8, (false, false), _) => unary(Unary32::Low8),
        (F32, S32, (false, false), Some(Round::Nearest)) => unary(Unary32::F32FromS32),
        (F32, U32, (false, false), Some(Round::Nearest)) => unary(Unary32::F32FromU32),
        (S32, F32, (false, false), Some(Round::Zero)) => unary(Unary32::S32FromF32Rz),
        (U32, F32, (false, false), Some(Round::Zero)) => unary(Unary32::U32FromF32Rz),
        (F32, Bf16, (false, false), _) if !words.integral => unary(Unary32::F32FromBf16),
        (F32, F16, (false, false), _) if !words.integral => unary(Unary32::F32FromF16),
        (Bf16, F32, (false, false), Some(Round::Nearest)) if !words.integral => unary(Unary32::Bf16FromF32),
        (F16, F32, (false, false), Some(Round::Nearest)) if !words.integral => unary(Unary32::F16FromF32),
        (F32, F64, (false, true), Some(Round::Nearest)) if !words.integral => unary(Unary32::F32FromF64),
        (F64, F32, (true, false), _) => Some(Op::Alu64(Alu64::F64FromF32)),
        _ => None,
    }
}
