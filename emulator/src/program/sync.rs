//! Instructions of a whole warp or block: barriers, shuffles, votes, matrix products; and those that do nothing here.

use super::lanes;
use super::lower::{Frame, Lowerer, Result};
use super::op::{BarrierAction, BarrierMode, Kind, Op, Reduction, ShuffleMode, VoteMode};
use super::operand::Constant;
use super::registers::{Draft, NO_REGISTER, Virtual};
use crate::numeric::mma::Mma;
use crate::ptx::ast::{Instruction, Operand};

const NO: (Virtual, Kind) = (NO_REGISTER, Kind::None);

pub(super) fn lower<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction) -> Result<Vec<Draft>> {
    let modifiers: Vec<&str> = i.modifiers.iter().map(String::as_str).collect();
    let one = |draft: Result<Draft>| draft.map(|draft| vec![draft]);
    match (i.opcode.as_str(), modifiers.as_slice()) {
        ("bar", ["warp", "sync"]) => {
            let [mask] = i.operands.as_slice() else { return Err("a mask was expected".into()) };
            let mask = l.use32(frame, mask)?;
            Ok(vec![Draft::with(Op::WarpSync, [NO, mask])])
        }
        ("bar" | "barrier", words) => one(barrier(l, frame, i, words)),
        ("shfl", ["sync", mode, "b32"]) => one(shuffle(l, frame, i, mode)),
        ("vote", ["sync", mode, _]) => one(vote(l, frame, i, mode)),
        ("match", ["any", "sync", ty]) => one(match_lanes(l, frame, i, false, ty)),
        ("match", ["all", "sync", ty]) => one(match_lanes(l, frame, i, true, ty)),
        ("redux", ["sync", operation, ty]) => {
            let function = lanes::redux_operation(operation, ty)
                .filter(|_| l.capability >= 80)
                .ok_or("not supported on this device")?;
            let [d, a, mask] = i.operands.as_slice() else {
                return Err("three operands were expected".into());
            };
            let (d, a, mask) = (l.def_of(frame, d, 32)?, l.use32(frame, a)?, l.use32(frame, mask)?);
            Ok(vec![Draft::with(Op::Redux(function), [d, a, mask])])
        }
        ("activemask", ["b32"]) => {
            let [d] = i.operands.as_slice() else { return Err("one operand was expected".into()) };
            Ok(vec![Draft::with(Op::ActiveMask, [l.def_of(frame, d, 32)?])])
        }
        ("mma", words) => one(mma(l, frame, i, words)),
        ("trap" | "brkpt", _) => Ok(vec![Draft::new(Op::Trap)]),
        ("membar" | "prefetch" | "prefetchu" | "nanosleep" | "discard" | "applypriority" | "pmevent", _) => {
            Ok(vec![Draft::new(Op::Nop)])
        }
        ("fence", ["proxy", ..]) => Err("not supported on this device".into()),
        ("fence", _) => Ok(vec![Draft::new(Op::Nop)]),
        ("createpolicy", _) => {
            let d = i.operands.first().ok_or("a destination was expected")?;
            let (d, zero) = (l.def_of(frame, d, 64)?, l.constant64(Constant::Bits(0)));
            Ok(vec![Draft::with(Op::Alu64(super::op::Alu64::Mov), [d, zero])])
        }
        _ => Err("not supported on this device".into()),
    }
}

fn barrier<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction, words: &[&str]) -> Result<Draft> {
    let words: Vec<&str> = words.iter().copied().filter(|w| *w != "cta").collect();
    let aligned = i.opcode == "bar" || words.contains(&"aligned");
    let barrier = i.opcode == "barrier";
    let words: Vec<&str> = words.into_iter().filter(|w| !barrier || *w != "aligned").collect();
    let (reduction, ty) = match words.as_slice() {
        ["sync"] => (None, ""),
        ["arrive"] => {
            let [number, threads] = i.operands.as_slice() else {
                return Err("a barrier and a number of threads were expected".into());
            };
            let (number, threads) = (l.use32(frame, number)?, l.use32(frame, threads)?);
            let mode = BarrierMode { aligned, action: BarrierAction::Arrive };
            return Ok(Draft::with(Op::Barrier(mode), [NO, number, threads]));
        }
        ["red", "popc", ty] => (Some(Reduction::Popc), *ty),
        ["red", "and", ty] => (Some(Reduction::And), *ty),
        ["red", "or", ty] => (Some(Reduction::Or), *ty),
        _ => return Err("not supported on this device".into()),
    };
    let Some(reduction) = reduction else {
        let mode = BarrierMode { aligned, action: BarrierAction::Sync };
        let (number, threads) = match i.operands.as_slice() {
            [number] => (l.use32(frame, number)?, NO),
            [number, threads] => (l.use32(frame, number)?, l.use32(frame, threads)?),
            _ => return Err("a barrier and perhaps a number of threads were expected".into()),
        };
        return Ok(Draft::with(Op::Barrier(mode), [NO, number, threads]));
    };
    let (d, number, threads, source) = match i.operands.as_slice() {
        [d, number, source] => (d, number, None, source),
        [d, number, threads, source] => (d, number, Some(threads), source),
        _ => return Err("three or four operands were expected".into()),
    };
    let d = l.def_of(frame, d, if ty == "pred" { 0 } else { 32 })?;
    let number = l.use32(frame, number)?;
    let threads = threads.map_or(Ok(NO), |threads| l.use32(frame, threads))?;
    let (source, negated) = l.use_pred(frame, source)?;
    let mode = BarrierMode { aligned, action: BarrierAction::Reduce(reduction, negated) };
    Ok(Draft::with(Op::Barrier(mode), [d, number, threads, source]))
}

fn shuffle<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction, mode: &str) -> Result<Draft> {
    let mode = match mode {
        "up" => ShuffleMode::Up,
        "down" => ShuffleMode::Down,
        "bfly" => ShuffleMode::Bfly,
        "idx" => ShuffleMode::Idx,
        _ => return Err(format!("no mode .{mode}")),
    };
    let [to, a, b, c, mask] = i.operands.as_slice() else { return Err("five operands were expected".into()) };
    let (d, p) = match to {
        Operand::Pair(d, p) => (l.def_of(frame, d, 32)?, l.def_of(frame, p, 0)?),
        d => (l.def_of(frame, d, 32)?, NO),
    };
    let (a, b, c) = (l.use32(frame, a)?, l.use32(frame, b)?, l.use32(frame, c)?);
    let mut draft = Draft::with(Op::Shuffle(mode), [d, a, b, c]);
    draft.wide = vec![l.use32(frame, mask)?, p];
    Ok(draft)
}

fn vote<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction, mode: &str) -> Result<Draft> {
    let (mode, bits) = match mode {
        "all" => (VoteMode::All, 0),
        "any" => (VoteMode::Any, 0),
        "uni" => (VoteMode::Uni, 0),
        "ballot" => (VoteMode::Ballot, 32),
        _ => return Err(format!("no mode .{mode}")),
    };
    let [d, source, mask] = i.operands.as_slice() else { return Err("three operands were expected".into()) };
    let d = l.def_of(frame, d, bits)?;
    let (source, negated) = match source {
        // A constant votes the same in all lanes.
        Operand::Integer(bits) => (l.constant32(Constant::Bits(u64::from(*bits != 0))), false),
        source => l.use_pred(frame, source)?,
    };
    let mask = l.use32(frame, mask)?;
    Ok(Draft::with(Op::Vote(mode, negated), [d, source, mask]))
}

fn match_lanes<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    i: &'a Instruction,
    all: bool,
    ty: &str,
) -> Result<Draft> {
    let wide = ty == "b64";
    let [to, a, mask] = i.operands.as_slice() else { return Err("three operands were expected".into()) };
    let (d, p) = match to {
        Operand::Pair(d, p) if all => (l.def_of(frame, d, 32)?, l.def_of(frame, p, 0)?),
        d => (l.def_of(frame, d, 32)?, NO),
    };
    let (a, mask) = (l.use_of(frame, a, if wide { 64 } else { 32 })?, l.use32(frame, mask)?);
    let mut draft = Draft::with(Op::Match { all, wide }, [d, a, mask]);
    draft.wide = vec![p];
    Ok(draft)
}

fn mma<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction, words: &[&str]) -> Result<Draft> {
    let mma = Mma::parse(words).ok_or("this shape or these types are not supported")?;
    if mma.minimum_capability() > l.capability {
        return Err(format!("needs sm_{}", mma.minimum_capability()));
    }
    let counts = [mma.d_rows(), mma.a_rows(), mma.b_rows(), mma.c_rows()];
    if i.operands.len() != 4 {
        return Err("four operands were expected".into());
    }
    let mut draft = Draft::new(Op::Mma(mma));
    for (k, (operand, count)) in i.operands.iter().zip(counts).enumerate() {
        let elements = match operand {
            Operand::Vector(elements) => elements.as_slice(),
            one => std::slice::from_ref(one),
        };
        if elements.len() != count {
            return Err(format!("{} registers where {count} were expected", elements.len()));
        }
        for element in elements {
            draft.wide.push(if k == 0 { l.def_of(frame, element, 32)? } else { l.use32(frame, element)? });
        }
    }
    Ok(draft)
}
