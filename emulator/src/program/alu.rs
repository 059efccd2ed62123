//! Lane-wise instructions. The frequent forms get a vectorised operation, all others a [`LaneOp`]. Here moves, selections,
//! logic of predicates and the forms that follow no common rule.

use super::lanes::LaneOp;
use super::lower::{Frame, Lowerer, Result};
use super::op::{Alu64, Binary32, Kind, Logic, Op, Ternary32, Unary32};
use super::operand::Constant;
use super::registers::{Draft, NO_REGISTER, Virtual};
use super::{arithmetic, compare, convert};
use crate::numeric::Class;
use crate::numeric::integer::{Int, IntOp, Permute};
use crate::ptx::ast::{Instruction, Operand};

type Slot = (Virtual, Kind);

pub(super) fn lower<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction) -> Result<Draft> {
    let modifiers: Vec<&str> = i.modifiers.iter().map(String::as_str).collect();
    match i.opcode.as_str() {
        "mov" => mov(l, frame, i, &modifiers),
        "cvt" => convert::lower(l, frame, i, &modifiers),
        "setp" => compare::setp(l, frame, i, &modifiers),
        "set" => compare::set(l, frame, i, &modifiers),
        "selp" => selp(l, frame, i, &modifiers),
        "slct" => slct(l, frame, i, &modifiers),
        "and" | "or" | "xor" | "not" if modifiers == ["pred"] => predicate_logic(l, frame, i),
        "testp" => testp(l, frame, i, &modifiers),
        "bfi" => bfi(l, frame, i, &modifiers),
        "prmt" | "lop3" | "shf" | "dp4a" | "dp2a" | "bfind" | "szext" | "bmsk" | "mul24" | "mad24" => {
            special(l, frame, i, &modifiers)
        }
        _ => arithmetic::lower(l, frame, i, &modifiers),
    }
}

/// The same of instructions that do not have 16 bits.
fn wide_int_type(ty: &str) -> Result<Int> {
    int_type(ty).and_then(|int| if int.bits == 16 { Err(format!(".{ty} is not supported")) } else { Ok(int) })
}

/// Destination and sources of given widths.
pub(super) fn operands<'a, const N: usize>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    i: &Instruction,
    def: u32,
    uses: [u32; N],
) -> Result<[Slot; 4]> {
    let [d, sources @ ..] = i.operands.as_slice() else { return Err("no operands".into()) };
    if sources.len() != N {
        return Err(format!("{} operands where {} were expected", sources.len() + 1, N + 1));
    }
    let mut r = [(NO_REGISTER, Kind::None); 4];
    r[0] = l.def_of(frame, d, def)?;
    for (k, (source, bits)) in sources.iter().zip(uses).enumerate() {
        r[1 + k] = l.use_of(frame, source, bits)?;
    }
    Ok(r)
}

pub(super) fn draft(op: Op, r: [Slot; 4]) -> Draft {
    Draft { r, ..Draft::new(op) }
}

/// Width and signedness of an integer or untyped word.
pub(super) fn int_type(ty: &str) -> Result<Int> {
    let (kind, bits) = ty.split_at_checked(1).ok_or("a type is missing")?;
    let bits = bits.parse().ok().filter(|bits| matches!(bits, 16 | 32 | 64));
    match (kind, bits) {
        ("u" | "b", Some(bits)) => Ok(Int { bits, signed: false }),
        ("s", Some(bits)) => Ok(Int { bits, signed: true }),
        _ => Err(format!(".{ty} is not supported")),
    }
}

/// Width of a type whose values are only moved.
fn width(ty: &str) -> Result<u32> {
    match ty {
        "b16" | "u16" | "s16" | "f16" | "bf16" => Ok(16),
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => Ok(32),
        "b64" | "u64" | "s64" | "f64" => Ok(64),
        _ => Err(format!(".{ty} is not supported")),
    }
}

fn mov<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction, modifiers: &[&str]) -> Result<Draft> {
    let [d, a] = i.operands.as_slice() else { return Err("two operands were expected".into()) };
    let [ty] = modifiers else { return Err("a type was expected".into()) };
    let bits = if *ty == "pred" { 0 } else { width(ty)? };
    if !matches!(d, Operand::Vector(_))
        && frame.register_bytes(d).is_some_and(|bytes| 8 * bytes != u64::from(bits))
    {
        return Err(format!("the destination has not the size of .{ty}"));
    }
    match (d, a, *ty) {
        (_, _, "pred") => {
            let d = l.def_of(frame, d, 0)?;
            if let Operand::Integer(bits) = a {
                return Ok(Draft::with(Op::PredConst(*bits != 0), [d]));
            }
            let (p, negated) = l.use_pred(frame, a)?;
            let op = Op::Pred { op: Logic::And, negate: [negated, negated] };
            Ok(Draft::with(op, [d, p, p]))
        }
        (_, Operand::Special(name), _) if matches!(name.as_str(), "%clock" | "%clock64" | "%globaltimer") => {
            match l.def(frame, d)? {
                def @ (_, Kind::Def32 | Kind::Def64) => Ok(Draft::with(Op::Clock, [def])),
                _ => Err("the destination is a predicate, or nothing".into()),
            }
        }
        // No block lives for 2^32 instructions.
        (d, Operand::Special(name), _) if name == "%clock_hi" => {
            let (d, zero) = (l.def_of(frame, d, 32)?, l.constant32(Constant::Bits(0)));
            Ok(Draft::with(Op::Unary32(Unary32::Mov), [d, zero]))
        }
        (Operand::Vector(to), a, _) => unpack(l, frame, to, a, bits),
        (d, Operand::Vector(from), _) => pack(l, frame, d, from),
        (to, a, _) => {
            let d = l.def(frame, to)?;
            if d.1 == Kind::Def64 {
                let a = l.use64(frame, a)?;
                return Ok(Draft::with(Op::Alu64(Alu64::Mov), [d, a]));
            }
            let d = l.def_of(frame, to, bits)?;
            let a = l.use_of(frame, a, bits)?;
            Ok(Draft::with(Op::Unary32(Unary32::Mov), [d, a]))
        }
    }
}

/// `mov {a, b}, c`: [`Op::Split`] for two parts or four.
fn unpack<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    to: &[Operand],
    a: &Operand,
    bits: u32,
) -> Result<Draft> {
    let bytes = to.iter().filter_map(|operand| frame.register_bytes(operand)).max().unwrap_or(4);
    let total = bytes * to.len() as u64;
    if !matches!((bytes, total), (2, 4 | 8) | (4, 8)) || 8 * total != u64::from(bits) {
        return Err("two halves of 32 or 64 bits, or four quarters of 64, were expected".into());
    }
    let source = l.use_of(frame, a, if total == 8 { 64 } else { 32 })?;
    let part_bits = u8::try_from(8 * bytes).expect("16 or 32");
    let mut draft = Draft::with(Op::Split { part_bits }, [(NO_REGISTER, Kind::None), source]);
    for operand in to {
        draft.wide.push(l.def_of(frame, operand, part_bits.into())?);
    }
    Ok(draft)
}

/// `mov c, {a, b}`.
fn pack<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, d: &Operand, from: &[Operand]) -> Result<Draft> {
    let def = l.def(frame, d)?;
    let part_bytes = frame.register_bytes(d).unwrap_or(0) / from.len().max(1) as u64;
    let mut parts = Vec::new();
    for operand in from {
        if frame.register_bytes(operand).is_some_and(|bytes| bytes != part_bytes) {
            return Err("the parts are not as large as the whole".into());
        }
        parts.push(l.use32(frame, operand)?);
    }
    match (parts.as_slice(), def.1) {
        (&[a, b], Kind::Def32) => Ok(Draft::with(Op::Binary32(Binary32::Pack16), [def, a, b])),
        (&[a, b], Kind::Def64) => Ok(Draft::with(Op::Alu64(Alu64::Pack32), [def, a, b])),
        (&[_, _, _, _], Kind::Def64) => {
            let mut draft = Draft::with(Op::Join16, [def]);
            draft.wide = parts;
            Ok(draft)
        }
        _ => Err("two halves of 32 or 64 bits, or four quarters of 64, were expected".into()),
    }
}

fn selp<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction, modifiers: &[&str]) -> Result<Draft> {
    let [ty] = modifiers else { return Err("a type was expected".into()) };
    let bits = width(ty)?;
    let [d, a, b, c] = i.operands.as_slice() else { return Err("four operands were expected".into()) };
    let (d, a, b) = (l.def_of(frame, d, bits)?, l.use_of(frame, a, bits)?, l.use_of(frame, b, bits)?);
    let (c, negated) = l.use_pred(frame, c)?;
    let op = if bits == 64 { Op::Select64(negated) } else { Op::Select32(negated) };
    Ok(Draft::with(op, [d, a, b, c]))
}

fn slct<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction, modifiers: &[&str]) -> Result<Draft> {
    let (ty, float, ftz) = match modifiers {
        [ty, "s32"] => (*ty, false, false),
        [ty, "f32"] => (*ty, true, false),
        ["ftz", ty, "f32"] => (*ty, true, true),
        _ => return Err("this form is not supported".into()),
    };
    let w = width(ty)?;
    Ok(draft(Op::Lanes(LaneOp::Slct { float, ftz }), operands(l, frame, i, w, [w, w, 32])?))
}

fn predicate_logic<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction) -> Result<Draft> {
    let op = match i.opcode.as_str() {
        "or" => Logic::Or,
        "xor" => Logic::Xor,
        _ => Logic::And,
    };
    match (i.opcode.as_str(), i.operands.as_slice()) {
        ("not", [d, a]) => {
            let d = l.def_of(frame, d, 0)?;
            let (a, negated) = l.use_pred(frame, a)?;
            Ok(Draft::with(Op::Pred { op, negate: [!negated, !negated] }, [d, a, a]))
        }
        (_, [d, a, b]) if i.opcode != "not" => {
            let d = l.def_of(frame, d, 0)?;
            let ((a, na), (b, nb)) = (l.use_pred(frame, a)?, l.use_pred(frame, b)?);
            Ok(Draft::with(Op::Pred { op, negate: [na, nb] }, [d, a, b]))
        }
        _ => Err("a destination and sources were expected".into()),
    }
}

fn testp<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    i: &'a Instruction,
    modifiers: &[&str],
) -> Result<Draft> {
    let [class, ty] = modifiers else { return Err("a class and a type were expected".into()) };
    let class = match *class {
        "finite" => Class::Finite,
        "infinite" => Class::Infinite,
        "number" => Class::Number,
        "notanumber" => Class::NotANumber,
        "normal" => Class::Normal,
        "subnormal" => Class::Subnormal,
        _ => return Err(format!(".{class} is no class")),
    };
    let wide = *ty == "f64";
    let r = operands(l, frame, i, 0, [if wide { 64 } else { 32 }])?;
    let op = Op::SetpLanes { function: LaneOp::TestP(class, wide), combine: None, packed: false };
    let mut draft = draft(op, r);
    draft.wide = vec![(NO_REGISTER, Kind::None)];
    Ok(draft)
}

/// `bfi` has a source too many: position and length are joined first, as the two halves of 64 bits.
fn bfi<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction, modifiers: &[&str]) -> Result<Draft> {
    let [ty] = modifiers else { return Err("a type was expected".into()) };
    let int = wide_int_type(ty)?;
    let [d, a, b, position, length] = i.operands.as_slice() else {
        return Err("five operands were expected".into());
    };
    let (d, a) = (l.def_of(frame, d, int.bits)?, l.use_of(frame, a, int.bits)?);
    let b = l.use_of(frame, b, int.bits)?;
    let position = l.use32(frame, position)?;
    let mut draft = Draft::with(Op::Bfi { wide: int.bits == 64 }, [d, a, b, position]);
    draft.wide = vec![l.use32(frame, length)?];
    Ok(draft)
}

/// Instructions whose modifiers follow no common rule.
fn special<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    i: &'a Instruction,
    modifiers: &[&str],
) -> Result<Draft> {
    let signed = |ty: &&str| ty.starts_with('s');
    match (i.opcode.as_str(), modifiers) {
        ("prmt", ["b32"]) => Ok(draft(Op::Ternary32(Ternary32::Prmt), operands(l, frame, i, 32, [32; 3])?)),
        ("prmt", ["b32", mode]) => {
            let mode = Permute::parse(mode).ok_or_else(|| format!(".{mode} is no mode"))?;
            Ok(draft(Op::Lanes(LaneOp::Prmt(mode)), operands(l, frame, i, 32, [32; 3])?))
        }
        ("lop3", ["b32"]) => {
            let [d, a, b, c, Operand::Integer(table)] = i.operands.as_slice() else {
                return Err("four operands and a table were expected".into());
            };
            let d = l.def_of(frame, d, 32)?;
            let (a, b, c) = (l.use32(frame, a)?, l.use32(frame, b)?, l.use32(frame, c)?);
            let table = u8::try_from(*table).map_err(|_| "the table has eight bits")?;
            Ok(Draft::with(Op::Lanes(LaneOp::Lop3(table)), [d, a, b, c]))
        }
        ("shf", [direction @ ("l" | "r"), mode @ ("wrap" | "clamp"), "b32"]) => {
            let op = LaneOp::Shf { left: *direction == "l", clamp: *mode == "clamp" };
            Ok(draft(Op::Lanes(op), operands(l, frame, i, 32, [32; 3])?))
        }
        ("dp4a", [a, b]) => {
            let op = LaneOp::Dp { four: true, upper: false, a_signed: signed(a), b_signed: signed(b) };
            Ok(draft(Op::Lanes(op), operands(l, frame, i, 32, [32; 3])?))
        }
        ("dp2a", [half @ ("lo" | "hi"), a, b]) => {
            let (a_signed, b_signed) = (signed(a), signed(b));
            let op = LaneOp::Dp { four: false, upper: *half == "hi", a_signed, b_signed };
            Ok(draft(Op::Lanes(op), operands(l, frame, i, 32, [32; 3])?))
        }
        ("bfind", [ty] | ["shiftamt", ty]) => {
            let int = wide_int_type(ty)?;
            let op = if modifiers.len() == 2 { IntOp::BfindShift } else { IntOp::Bfind };
            Ok(draft(Op::Lanes(LaneOp::Int(op, int)), operands(l, frame, i, 32, [int.bits])?))
        }
        ("szext", [mode @ ("wrap" | "clamp"), ty @ ("u32" | "s32")]) => {
            let op = LaneOp::Int(IntOp::Szext { clamp: *mode == "clamp" }, int_type(ty)?);
            Ok(draft(Op::Lanes(op), operands(l, frame, i, 32, [32; 2])?))
        }
        ("bmsk", [mode @ ("wrap" | "clamp"), "b32"]) => {
            let op = LaneOp::Int(IntOp::Bmsk { clamp: *mode == "clamp" }, Int { bits: 32, signed: false });
            Ok(draft(Op::Lanes(op), operands(l, frame, i, 32, [32; 2])?))
        }
        (name @ ("mul24" | "mad24"), [half @ ("lo" | "hi"), ty @ ("u32" | "s32")]) => {
            let add = name == "mad24";
            let op = Op::Lanes(LaneOp::Mul24 { high: *half == "hi", signed: signed(ty), add });
            let r =
                if add { operands(l, frame, i, 32, [32; 3])? } else { operands(l, frame, i, 32, [32; 2])? };
            Ok(draft(op, r))
        }
        _ => Err("this form is not supported".into()),
    }
}
