//! Arithmetic of integers and floats: which operation, of which widths.

use super::alu::{draft, int_type, operands};
use super::lanes::{Approx, Arith, LaneOp};
use super::lower::{Frame, Lowerer, Result};
use super::op::{Alu64, Binary32, CarryOp, Kind, Op, Ternary32, Unary32};
use super::registers::{Draft, NO_REGISTER};
use super::words::Words;
use crate::numeric::convert::Scalar;
use crate::numeric::integer::{Int, IntOp};
use crate::numeric::{MinMax, Round};
use crate::ptx::ast::Instruction;

/// Operation, width of the destination, widths of the sources.
type Form = (Op, u32, [u32; 3]);

pub(super) fn lower<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    i: &'a Instruction,
    modifiers: &[&str],
) -> Result<Draft> {
    let (&ty, rest) = modifiers.split_last().ok_or("no type")?;
    let opcode = i.opcode.as_str();
    let known = known_modifiers(opcode, ty);
    if let Some(word) = rest.iter().find(|word| !known.contains(word)) {
        return Err(format!(".{word} is not supported for {opcode}.{ty}"));
    }
    let words = Words::parse(rest)?;
    if words.cc || matches!(opcode, "addc" | "subc" | "madc") {
        return carry(l, frame, i, ty, words);
    }
    let (op, def, uses) = match ty {
        "f32" => float32(opcode, words)?,
        "f64" => float64(opcode, words)?,
        "f16" | "bf16" | "f16x2" | "bf16x2" => float16(opcode, ty, words)?,
        _ => integer(opcode, ty, words)?,
    };
    Ok(draft(
        op,
        match opcode {
            "abs" | "neg" | "not" | "cnot" | "popc" | "clz" | "brev" | "rcp" | "sqrt" | "rsqrt" | "ex2"
            | "lg2" | "sin" | "cos" | "tanh" => operands(l, frame, i, def, [uses[0]])?,
            "mad" | "fma" | "sad" | "bfe" => operands(l, frame, i, def, uses)?,
            _ => operands(l, frame, i, def, [uses[0], uses[1]])?,
        },
    ))
}

/// Modifiers of an opcode and type: what is not known must not go unnoticed.
fn known_modifiers(opcode: &str, ty: &str) -> &'static [&'static str] {
    match (opcode, ty) {
        ("add" | "sub" | "mul" | "fma" | "mad", "f32") => &["rn", "rz", "rm", "rp", "ftz", "sat"],
        ("div", "f32") => &["rn", "rz", "rm", "rp", "ftz", "approx", "full"],
        ("rcp" | "sqrt", "f32") => &["rn", "rz", "rm", "rp", "ftz", "approx"],
        ("rsqrt" | "sin" | "cos" | "lg2" | "ex2", "f32") => &["approx", "ftz"],
        ("tanh", _) => &["approx"],
        ("min" | "max", "f32" | "f16" | "f16x2") => &["ftz", "NaN", "xorsign", "abs"],
        ("min" | "max", "bf16" | "bf16x2") => &["NaN", "xorsign", "abs"],
        ("abs" | "neg", "f32" | "f16" | "f16x2") => &["ftz"],
        ("add" | "sub" | "mul" | "fma" | "mad" | "div" | "sqrt", "f64") => &["rn", "rz", "rm", "rp"],
        ("rcp", "f64") => &["rn", "rz", "rm", "rp", "approx", "ftz"],
        ("rsqrt", "f64") => &["approx", "ftz"],
        ("add" | "sub" | "mul", "f16" | "f16x2") => &["rn", "ftz", "sat"],
        ("fma", "f16" | "f16x2") => &["rn", "ftz", "sat", "relu"],
        ("add" | "sub" | "mul", "bf16" | "bf16x2") => &["rn"],
        ("fma", "bf16" | "bf16x2") => &["rn", "relu"],
        ("ex2", _) => &["approx", "ftz"],
        ("add" | "sub", "s32") => &["sat", "cc"],
        ("add" | "sub" | "addc" | "subc", _) => &["cc"],
        ("mul", _) => &["lo", "hi", "wide"],
        ("mad", "s32") => &["lo", "hi", "wide", "cc", "sat"],
        ("mad", _) => &["lo", "hi", "wide", "cc"],
        ("madc", _) => &["lo", "hi", "cc"],
        _ => &[],
    }
}

fn float32(opcode: &str, words: Words) -> Result<Form> {
    let lane = |op| Op::Lanes(op);
    let plain = words.plain();
    let rounded = |op| lane(LaneOp::F32(op, words.mode()));
    let approx = |op| lane(LaneOp::Approx(op, words.ftz));
    let op = match opcode {
        "add" if plain => Op::Binary32(Binary32::AddF32),
        "sub" if plain => Op::Binary32(Binary32::SubF32),
        "mul" if plain => Op::Binary32(Binary32::MulF32),
        "fma" | "mad" if plain => Op::Ternary32(Ternary32::FmaF32),
        "div" if plain => Op::Binary32(Binary32::DivF32),
        "sqrt" if plain => Op::Unary32(Unary32::SqrtF32),
        "rcp" if plain => Op::Unary32(Unary32::RcpF32),
        "add" => rounded(Arith::Add),
        "sub" => rounded(Arith::Sub),
        "mul" => rounded(Arith::Mul),
        "fma" | "mad" => rounded(Arith::Fma),
        "div" if words.full => approx(Approx::DivFull),
        "div" if words.approx => approx(Approx::Div),
        "div" => rounded(Arith::Div),
        "rcp" if words.approx => approx(Approx::Rcp),
        "rcp" => rounded(Arith::Rcp),
        "sqrt" if words.approx => approx(Approx::Sqrt),
        "sqrt" => rounded(Arith::Sqrt),
        "rsqrt" => approx(Approx::Rsqrt),
        "ex2" if words.ftz => Op::Unary32(Unary32::Ex2ApproxFtz),
        "ex2" => Op::Unary32(Unary32::Ex2Approx),
        "lg2" => approx(Approx::Lg2),
        "sin" => approx(Approx::Sin),
        "cos" => approx(Approx::Cos),
        "tanh" => approx(Approx::Tanh),
        "min" if plain => Op::Binary32(Binary32::MinF32),
        "max" if plain => Op::Binary32(Binary32::MaxF32),
        "min" | "max" => lane(LaneOp::MinMax {
            ty: Scalar::F32,
            max: opcode == "max",
            packed: false,
            mode: words.min_max(),
        }),
        "abs" if plain => Op::Unary32(Unary32::AbsF32),
        "neg" if plain => Op::Unary32(Unary32::NegF32),
        "abs" | "neg" => {
            lane(LaneOp::Sign { ty: Scalar::F32, packed: false, negate: opcode == "neg", ftz: words.ftz })
        }
        "copysign" => lane(LaneOp::CopySign(false)),
        _ => return Err("unknown for .f32".into()),
    };
    Ok((op, 32, [32; 3]))
}

fn float64(opcode: &str, words: Words) -> Result<Form> {
    let round = words.round.unwrap_or(Round::Nearest);
    let rounded = |op| Op::Lanes(LaneOp::F64(op, round));
    let nearest = round == Round::Nearest;
    if words.ftz && words.round.is_some() {
        return Err(".ftz is for approximations only".into());
    }
    let op = match opcode {
        "add" if nearest => Op::Alu64(Alu64::AddF64),
        "sub" if nearest => Op::Alu64(Alu64::SubF64),
        "mul" if nearest => Op::Alu64(Alu64::MulF64),
        "fma" | "mad" if nearest => Op::Alu64(Alu64::FmaF64),
        "div" if nearest => Op::Alu64(Alu64::DivF64),
        "sqrt" if nearest => Op::Alu64(Alu64::SqrtF64),
        "add" => rounded(Arith::Add),
        "sub" => rounded(Arith::Sub),
        "mul" => rounded(Arith::Mul),
        "fma" | "mad" => rounded(Arith::Fma),
        "div" => rounded(Arith::Div),
        "rcp" if words.approx => Op::Lanes(LaneOp::RcpF64),
        "rcp" => rounded(Arith::Rcp),
        "sqrt" => rounded(Arith::Sqrt),
        "rsqrt" => Op::Lanes(LaneOp::RsqrtF64 { ftz: words.ftz }),
        "min" | "max" => Op::Lanes(LaneOp::MinMax {
            ty: Scalar::F64,
            max: opcode == "max",
            packed: false,
            mode: MinMax::default(),
        }),
        "abs" | "neg" => {
            Op::Lanes(LaneOp::Sign { ty: Scalar::F64, packed: false, negate: opcode == "neg", ftz: false })
        }
        "copysign" => Op::Lanes(LaneOp::CopySign(true)),
        _ => return Err("unknown for .f64".into()),
    };
    Ok((op, 64, [64; 3]))
}

fn float16(opcode: &str, ty: &str, words: Words) -> Result<Form> {
    let (bf16, packed) = (ty.starts_with("bf16"), ty.ends_with("x2"));
    let ty = if bf16 { Scalar::Bf16 } else { Scalar::F16 };
    let half = |op| LaneOp::Half { op, bf16, packed, mode: words.half() };
    let op = match opcode {
        "add" => half(Arith::Add),
        "sub" => half(Arith::Sub),
        "mul" => half(Arith::Mul),
        "fma" => half(Arith::Fma),
        "min" | "max" => LaneOp::MinMax { ty, max: opcode == "max", packed, mode: words.min_max() },
        "abs" | "neg" => LaneOp::Sign { ty, packed, negate: opcode == "neg", ftz: words.ftz },
        "ex2" => LaneOp::ApproxHalf { op: Approx::Ex2, bf16, packed, ftz: words.ftz },
        "tanh" => LaneOp::ApproxHalf { op: Approx::Tanh, bf16, packed, ftz: words.ftz },
        _ => return Err("unknown for 16-bit floats".into()),
    };
    let w = if packed { 32 } else { 16 };
    Ok((Op::Lanes(op), w, [w; 3]))
}

fn integer(opcode: &str, ty: &str, words: Words) -> Result<Form> {
    let int = int_type(ty)?;
    if let Some(form) = fast_integer(opcode, int, words) {
        return Ok(form);
    }
    let (w, wide) = (int.bits, 2 * int.bits);
    let same = [w; 3];
    if int.bits == 16 && matches!(opcode, "popc" | "clz" | "brev" | "bfe") {
        return Err(format!("{opcode} of 16 bits does not exist"));
    }
    if words.wide && int.bits == 64 {
        return Err(".wide of 64-bit numbers does not exist".into());
    }
    let (op, def, uses) = match opcode {
        "add" if words.sat => (IntOp::AddSat, w, same),
        "add" => (IntOp::Add, w, same),
        "sub" if words.sat => (IntOp::SubSat, w, same),
        "sub" => (IntOp::Sub, w, same),
        "mul" if words.wide => (IntOp::MulWide, wide, same),
        "mul" if words.hi => (IntOp::MulHi, w, same),
        "mul" => (IntOp::MulLo, w, same),
        "mad" if words.sat && !words.hi => return Err(".sat is for .hi only".into()),
        "mad" if words.wide => (IntOp::MadWide, wide, [w, w, wide]),
        "mad" if words.hi && words.sat => (IntOp::MadHiSat, w, same),
        "mad" if words.hi => (IntOp::MadHi, w, same),
        "mad" => (IntOp::MadLo, w, same),
        "sad" => (IntOp::Sad, w, same),
        "div" => (IntOp::Div, w, same),
        "rem" => (IntOp::Rem, w, same),
        "abs" => (IntOp::Abs, w, same),
        "neg" => (IntOp::Neg, w, same),
        "min" => (IntOp::Min, w, same),
        "max" => (IntOp::Max, w, same),
        "and" => (IntOp::And, w, same),
        "or" => (IntOp::Or, w, same),
        "xor" => (IntOp::Xor, w, same),
        "not" => (IntOp::Not, w, same),
        "cnot" => (IntOp::Cnot, w, same),
        "shl" => (IntOp::Shl, w, [w, 32, 32]),
        "shr" => (IntOp::Shr, w, [w, 32, 32]),
        "popc" => (IntOp::Popc, 32, same),
        "clz" => (IntOp::Clz, 32, same),
        "brev" => (IntOp::Brev, w, same),
        "bfe" => (IntOp::Bfe, w, [w, 32, 32]),
        _ => return Err("unknown instruction".into()),
    };
    Ok((Op::Lanes(LaneOp::Int(op, int)), def, uses))
}

fn fast_integer(opcode: &str, int: Int, words: Words) -> Option<Form> {
    if words.sat {
        return None;
    }
    let form = |op| Some((Op::Binary32(op), int.bits, [int.bits, int.bits, 32]));
    let shift32 = |op| Some((Op::Binary32(op), int.bits, [int.bits, 32, 32]));
    let form64 = |op| Some((Op::Alu64(op), 64, [64; 3]));
    let wide = |op| Some((Op::Alu64(op), 64, [32, 32, 64]));
    let shift = |op| Some((Op::Alu64(op), 64, [64, 32, 32]));
    match (opcode, int.bits, int.signed) {
        ("mul", 32, false) if words.wide => wide(Alu64::MulWideU32),
        ("mul", 32, true) if words.wide => wide(Alu64::MulWideS32),
        ("mad", 32, false) if words.wide => wide(Alu64::MadWideU32),
        ("mad", 32, true) if words.wide => wide(Alu64::MadWideS32),
        _ if words.wide => None,
        ("mul", 32, false) if words.hi => form(Binary32::MulHiU),
        ("mul", 32, true) if words.hi => form(Binary32::MulHiS),
        _ if words.hi => None,
        ("add", 32, _) => form(Binary32::Add),
        ("add", 16, _) => form(Binary32::Add16),
        ("sub", 32, _) => form(Binary32::Sub),
        ("mul", 32, _) => form(Binary32::MulLo),
        ("mul", 16, _) => form(Binary32::MulLo16),
        ("mad", 32, _) => Some((Op::Ternary32(Ternary32::MadLo), 32, [32; 3])),
        ("and", 16 | 32, _) => form(Binary32::And),
        ("or", 16 | 32, _) => form(Binary32::Or),
        ("xor", 16 | 32, _) => form(Binary32::Xor),
        ("not", 32, _) => Some((Op::Unary32(Unary32::Not), 32, [32; 3])),
        ("neg", 32, _) => Some((Op::Unary32(Unary32::Neg), 32, [32; 3])),
        ("shl", 32, _) => shift32(Binary32::Shl),
        ("shr", 16 | 32, false) => shift32(Binary32::ShrU),
        ("shr", 32, true) => shift32(Binary32::ShrS),
        ("min", 32, true) => form(Binary32::MinS),
        ("min", 16 | 32, false) => form(Binary32::MinU),
        ("max", 32, true) => form(Binary32::MaxS),
        ("max", 16 | 32, false) => form(Binary32::MaxU),
        ("add", 64, _) => form64(Alu64::Add),
        ("sub", 64, _) => form64(Alu64::Sub),
        ("mul", 64, _) => form64(Alu64::MulLo),
        ("and", 64, _) => form64(Alu64::And),
        ("or", 64, _) => form64(Alu64::Or),
        ("xor", 64, _) => form64(Alu64::Xor),
        ("not", 64, _) => form64(Alu64::Not),
        ("shl", 64, _) => shift(Alu64::Shl),
        ("shr", 64, false) => shift(Alu64::ShrU),
        ("shr", 64, true) => shift(Alu64::ShrS),
        _ => None,
    }
}

/// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`, `madc`: the carry is a predicate of the function.
fn carry<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    i: &Instruction,
    ty: &str,
    words: Words,
) -> Result<Draft> {
    let int = int_type(ty)?;
    if words.wide || words.sat || int.bits == 16 {
        return Err("no such form with a carry".into());
    }
    let (op, reads, three) = match i.opcode.as_str() {
        "add" => (CarryOp::Add, false, false),
        "addc" => (CarryOp::Add, true, false),
        "sub" => (CarryOp::Sub, false, false),
        "subc" => (CarryOp::Sub, true, false),
        name @ ("mad" | "madc") if words.hi => (CarryOp::MadHi { signed: int.signed }, name == "madc", true),
        name @ ("mad" | "madc") => (CarryOp::MadLo, name == "madc", true),
        _ => return Err("no such form with a carry".into()),
    };
    let w = int.bits;
    let op = Op::Carry(op, w == 64);
    let mut draft = if three {
        draft(op, operands(l, frame, i, w, [w; 3])?)
    } else {
        draft(op, operands(l, frame, i, w, [w; 2])?)
    };
    let flag = frame.carry;
    draft.wide = vec![
        if reads { (flag, Kind::UsePred) } else { (NO_REGISTER, Kind::None) },
        if words.cc { (flag, Kind::DefPred) } else { (NO_REGISTER, Kind::None) },
    ];
    Ok(draft)
}
