//! Comparisons: `setp` and `set`.

use super::alu::{draft, operands};
use super::lanes::LaneOp;
use super::lower::{Frame, Lowerer, Result};
use super::op::{Compare32, Compare64, Kind, Logic, Op, Test};
use super::registers::{Draft, NO_REGISTER};
use crate::numeric::compare::Compare;
use crate::numeric::convert::Scalar;
use crate::ptx::ast::{Instruction, Operand};

/// Type of a comparison.
fn compared(ty: &str) -> Result<(Scalar, bool)> {
    let (name, packed) = ty.strip_suffix("x2").map_or((ty, false), |name| (name, true));
    let name =
        name.strip_prefix('b').filter(|bits| *bits != "f16").map_or(name.to_owned(), |b| format!("u{b}"));
    let scalar = Scalar::parse(&name).ok_or_else(|| format!(".{ty} is not supported"))?;
    Ok((scalar, packed))
}

pub(super) fn setp<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    i: &'a Instruction,
    modifiers: &[&str],
) -> Result<Draft> {
    let [test, rest @ .., ty] = modifiers else { return Err("a comparison and a type were expected".into()) };
    let test = Compare::parse(test).ok_or_else(|| format!(".{test} is no comparison"))?;
    let (scalar, packed) = compared(ty)?;
    let (rest, ftz) = match rest {
        [rest @ .., "ftz"] if matches!(scalar, Scalar::F32 | Scalar::F16) => (rest, true),
        rest => (rest, false),
    };
    let logic = match rest {
        [] => None,
        ["and"] => Some(Logic::And),
        ["or"] => Some(Logic::Or),
        ["xor"] => Some(Logic::Xor),
        _ => return Err("this form is not supported".into()),
    };
    let (d, a, b, c) = match i.operands.as_slice() {
        [d, a, b] if logic.is_none() => (d, a, b, None),
        [d, a, b, c] if logic.is_some() => (d, a, b, Some(c)),
        _ => return Err("three operands, or four with a combining predicate, were expected".into()),
    };
    let w = if packed { 32 } else { scalar.bits() };
    let (first, second) = match d {
        Operand::Pair(first, second) => (l.def_of(frame, first, 0)?, l.def_of(frame, second, 0)?),
        first => (l.def_of(frame, first, 0)?, (NO_REGISTER, Kind::None)),
    };
    let (a, b) = (l.use_of(frame, a, w)?, l.use_of(frame, b, w)?);
    if c.is_none()
        && second.1 == Kind::None
        && !ftz
        && !packed
        && let Some(op) = fast_setp(test, scalar)
    {
        return Ok(Draft::with(op, [first, a, b]));
    }
    let (c, combine) = match (c, logic) {
        (Some(c), Some(logic)) => {
            let (p, negated) = l.use_pred(frame, c)?;
            (p, Some((logic, negated)))
        }
        _ => ((NO_REGISTER, Kind::None), None),
    };
    let function = LaneOp::Compare { test, ty: scalar, ftz, packed };
    let mut draft = Draft::with(Op::SetpLanes { function, combine, packed }, [first, a, b, c]);
    draft.wide = vec![second];
    Ok(draft)
}

fn fast_setp(test: Compare, ty: Scalar) -> Option<Op> {
    let test = match test {
        Compare::Eq => Test::Eq,
        // `ne` of floats is false for NaN.
        Compare::Ne if !matches!(ty, Scalar::F32 | Scalar::F64) => Test::Ne,
        Compare::Neu if matches!(ty, Scalar::F32 | Scalar::F64) => Test::Ne,
        Compare::Lt | Compare::Lo => Test::Lt,
        Compare::Le | Compare::Ls => Test::Le,
        Compare::Gt | Compare::Hi => Test::Gt,
        Compare::Ge | Compare::Hs => Test::Ge,
        _ => return None,
    };
    Some(match ty {
        Scalar::S32 => Op::Setp32(test, Compare32::S32),
        Scalar::U16 | Scalar::U32 => Op::Setp32(test, Compare32::U32),
        Scalar::F32 => Op::Setp32(test, Compare32::F32),
        Scalar::S64 => Op::Setp64(test, Compare64::S64),
        Scalar::U64 => Op::Setp64(test, Compare64::U64),
        Scalar::F64 => Op::Setp64(test, Compare64::F64),
        _ => return None,
    })
}

pub(super) fn set<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    i: &'a Instruction,
    modifiers: &[&str],
) -> Result<Draft> {
    let [test, rest @ .., to, ty] = modifiers else { return Err("two types were expected".into()) };
    let test = Compare::parse(test).ok_or_else(|| format!(".{test} is no comparison"))?;
    let (scalar, packed) = compared(ty)?;
    let ftz = !rest.is_empty();
    let half = matches!(scalar, Scalar::F16 | Scalar::Bf16) && to == ty;
    let ftz_fits = !ftz || *rest == ["ftz"] && matches!(scalar, Scalar::F32 | Scalar::F16);
    if packed && !half || !ftz_fits {
        return Err("this form is not supported".into());
    }
    let w = if packed { 32 } else { scalar.bits() };
    let (op, to_bits) = match *to {
        _ if half => (LaneOp::SetHalf { test, bf16: scalar == Scalar::Bf16, ftz, packed }, w),
        "u32" | "s32" | "f32" => (LaneOp::Set { test, ty: scalar, ftz, float: *to == "f32" }, 32),
        _ => return Err("this form is not supported".into()),
    };
    Ok(draft(Op::Lanes(op), operands(l, frame, i, to_bits, [w, w])?))
}
