//! Lane-wise instructions: arithmetic, logic, moves, conversions, comparisons. The frequent forms get a vectorised
//! operation, all others a [`LaneOp`].

use super::lanes::{Approx, Arith, LaneOp};
use super::lower::{Frame, Lowerer, Result};
use super::op::{Alu64, Binary32, CarryOp, Compare32, Compare64, Kind, Logic, Op, Ternary32, Test, Unary32};
use super::registers::{Draft, NO_REGISTER, Virtual};
use crate::numeric::compare::Compare;
use crate::numeric::convert::{Conversion, Scalar};
use crate::numeric::half::HalfMode;
use crate::numeric::integer::{Int, IntOp, Permute};
use crate::numeric::{Class, MinMax, Mode, Round};
use crate::ptx::ast::{Instruction, Operand};

type Slot = (Virtual, Kind);

/// Modifiers of an arithmetic instruction, besides its types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Words {
    round: Option<Round>,
    /// `.rni` and the like.
    integral: bool,
    ftz: bool,
    sat: bool,
    relu: bool,
    satfinite: bool,
    approx: bool,
    full: bool,
    nan: bool,
    xorsign: bool,
    hi: bool,
    wide: bool,
    cc: bool,
}

pub(super) fn lower<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction) -> Result<Draft> {
    let modifiers: Vec<&str> = i.modifiers.iter().map(String::as_str).collect();
    match i.opcode.as_str() {
        "mov" => mov(l, frame, i, &modifiers),
        "cvt" => cvt(l, frame, i, &modifiers),
        "setp" => setp(l, frame, i, &modifiers),
        "set" => set(l, frame, i, &modifiers),
        "selp" => selp(l, frame, i, &modifiers),
        "slct" => slct(l, frame, i, &modifiers),
        "and" | "or" | "xor" | "not" if modifiers == ["pred"] => predicate_logic(l, frame, i),
        "testp" => testp(l, frame, i, &modifiers),
        "bfi" => bfi(l, frame, i, &modifiers),
        "prmt" | "lop3" | "shf" | "dp4a" | "dp2a" | "bfind" | "szext" | "bmsk" | "mul24" | "mad24" => {
            special(l, frame, i, &modifiers)
        }
        _ => arithmetic(l, frame, i, &modifiers),
    }
}

/// Destination and sources of given widths.
fn operands<'a, const N: usize>(
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

fn draft(op: Op, r: [Slot; 4]) -> Draft {
    Draft { r, ..Draft::new(op) }
}

impl Words {
    /// Reads modifiers; those in `types` are left out.
    fn parse(modifiers: &[&str]) -> Result<Self> {
        let mut words = Self::default();
        for &word in modifiers {
            match word {
                "rn" => words.round = Some(Round::Nearest),
                "rz" => words.round = Some(Round::Zero),
                "rm" => words.round = Some(Round::Down),
                "rp" => words.round = Some(Round::Up),
                "rna" => words.round = Some(Round::NearestAway),
                "rni" => (words.round, words.integral) = (Some(Round::Nearest), true),
                "rzi" => (words.round, words.integral) = (Some(Round::Zero), true),
                "rmi" => (words.round, words.integral) = (Some(Round::Down), true),
                "rpi" => (words.round, words.integral) = (Some(Round::Up), true),
                "ftz" => words.ftz = true,
                "sat" => words.sat = true,
                "relu" => words.relu = true,
                "satfinite" => words.satfinite = true,
                "approx" => words.approx = true,
                "full" => words.full = true,
                "NaN" => words.nan = true,
                "xorsign" => words.xorsign = true,
                "abs" if words.xorsign => {}
                "hi" => words.hi = true,
                "lo" => {}
                "wide" => words.wide = true,
                "cc" => words.cc = true,
                "noftz" => {}
                other => return Err(format!(".{other} is not supported")),
            }
        }
        Ok(words)
    }

    fn mode(self) -> Mode {
        Mode { round: self.round.unwrap_or(Round::Nearest), ftz: self.ftz, saturate: self.sat }
    }

    fn half(self) -> HalfMode {
        HalfMode { ftz: self.ftz, saturate: self.sat, relu: self.relu }
    }

    fn min_max(self) -> MinMax {
        MinMax { ftz: self.ftz, nan: self.nan, xorsign_abs: self.xorsign }
    }

    /// Rounded to nearest, nothing else.
    fn plain(self) -> bool {
        matches!(self.round, None | Some(Round::Nearest))
            && self == Self { round: self.round, ..Self::default() }
    }
}

fn arithmetic<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    i: &'a Instruction,
    modifiers: &[&str],
) -> Result<Draft> {
    let (&ty, rest) = modifiers.split_last().ok_or("no type")?;
    let words = Words::parse(rest)?;
    let opcode = i.opcode.as_str();
    let sources = i.operands.len().saturating_sub(1);
    if words.cc || matches!(opcode, "addc" | "subc" | "madc") {
        return carry(l, frame, i, ty, words);
    }
    let (op, def, uses) = match ty {
        "f32" => float32(opcode, words)?,
        "f64" => float64(opcode, words)?,
        "f16" | "bf16" | "f16x2" | "bf16x2" => float16(opcode, ty, words)?,
        _ => integer(opcode, ty, words)?,
    };
    let uses: [u32; 3] = uses;
    match sources {
        1 => Ok(draft(op, operands(l, frame, i, def, [uses[0]])?)),
        2 => Ok(draft(op, operands(l, frame, i, def, [uses[0], uses[1]])?)),
        3 => Ok(draft(op, operands(l, frame, i, def, uses)?)),
        _ => Err("too many operands, or none".into()),
    }
}

type Form = (Op, u32, [u32; 3]);

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
    Ok((Op::Lanes(op), 32, [32; 3]))
}

/// Width and signedness of an integer or untyped word.
fn int_type(ty: &str) -> Result<Int> {
    let (kind, bits) = ty.split_at(1);
    let bits = bits.parse().ok().filter(|bits| matches!(bits, 16 | 32 | 64));
    match (kind, bits) {
        ("u" | "b", Some(bits)) => Ok(Int { bits, signed: false }),
        ("s", Some(bits)) => Ok(Int { bits, signed: true }),
        _ => Err(format!(".{ty} is not supported")),
    }
}

fn integer(opcode: &str, ty: &str, words: Words) -> Result<Form> {
    let int = int_type(ty)?;
    if let Some(form) = fast_integer(opcode, int, words) {
        return Ok(form);
    }
    let (w, wide) = (int.bits, 2 * int.bits);
    let same = [w; 3];
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
    let form = |op| Some((Op::Binary32(op), 32, [int.bits, int.bits, 32]));
    let shift32 = |op| Some((Op::Binary32(op), 32, [int.bits, 32, 32]));
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

fn mov<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction, modifiers: &[&str]) -> Result<Draft> {
    let [d, a] = i.operands.as_slice() else { return Err("two operands were expected".into()) };
    match (d, a, modifiers) {
        (_, _, ["pred"]) => {
            let d = l.def_of(frame, d, 0)?;
            if let Operand::Integer(bits) = a {
                return Ok(Draft::with(Op::PredConst(*bits != 0), [d]));
            }
            let (p, negated) = l.use_pred(frame, a)?;
            let op = Op::Pred { op: Logic::And, negate: [negated, negated] };
            Ok(Draft::with(op, [d, p, p]))
        }
        (_, Operand::Special(name), _)
            if matches!(name.as_str(), "%clock" | "%clock64" | "%clock_hi" | "%globaltimer") =>
        {
            let def = l.def(frame, d)?;
            Ok(Draft::with(Op::Clock, [def]))
        }
        (Operand::Vector(to), a, _) => unpack(l, frame, to, a),
        (d, Operand::Vector(from), _) => pack(l, frame, d, from),
        (to, a, _) => {
            let d = l.def(frame, to)?;
            if d.1 == Kind::Def64 {
                let a = l.use64(frame, a)?;
                return Ok(Draft::with(Op::Alu64(Alu64::Mov), [d, a]));
            }
            let bits = if frame.register_bytes(to) == Some(2) { 16 } else { 32 };
            let a = l.use_of(frame, a, bits)?;
            Ok(Draft::with(Op::Unary32(Unary32::Mov), [d, a]))
        }
    }
}

/// `mov {a, b}, c`: [`Op::Split`] for two parts or four.
fn unpack<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, to: &[Operand], a: &Operand) -> Result<Draft> {
    let bytes = to.iter().filter_map(|operand| frame.register_bytes(operand)).max().unwrap_or(4);
    let total = bytes * to.len() as u64;
    if !matches!((bytes, total), (2, 4 | 8) | (4, 8)) {
        return Err("two halves of 32 or 64 bits, or four quarters of 64, were expected".into());
    }
    let source = l.use_of(frame, a, if total == 8 { 64 } else { 32 })?;
    let part_bits = u8::try_from(8 * bytes).expect("16 or 32");
    let mut draft = Draft::with(Op::Split { part_bits }, [(NO_REGISTER, Kind::None), source]);
    for operand in to {
        draft.wide.push(l.def_of(frame, operand, 32)?);
    }
    Ok(draft)
}

/// `mov c, {a, b}`.
fn pack<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, d: &Operand, from: &[Operand]) -> Result<Draft> {
    let def = l.def(frame, d)?;
    let mut parts = Vec::new();
    for operand in from {
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

fn cvt<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction, modifiers: &[&str]) -> Result<Draft> {
    let [rest @ .., to, from] = modifiers else { return Err("two types were expected".into()) };
    let words = Words::parse(rest)?;
    let scalar = |word: &str| Scalar::parse(word).ok_or_else(|| format!(".{word} is not supported"));
    let conversion = |to: Scalar, from: Scalar| {
        let float = |ty| {
            !matches!(ty, Scalar::U8 | Scalar::U16 | Scalar::U32 | Scalar::U64)
                && !matches!(ty, Scalar::S8 | Scalar::S16 | Scalar::S32 | Scalar::S64)
        };
        Conversion {
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
        }
    };
    if let Some(part) = to.strip_suffix("x2") {
        let to = scalar(part)?;
        if let Some(part) = from.strip_suffix("x2") {
            let op = Op::Lanes(LaneOp::CvtUnpack(conversion(to, scalar(part)?)));
            return Ok(draft(op, operands(l, frame, i, 32, [32])?));
        }
        let from = scalar(from)?;
        let op = match (to, words.plain()) {
            (Scalar::Bf16, true) if from == Scalar::F32 => Op::Binary32(Binary32::Bf16x2FromF32),
            (Scalar::F16, true) if from == Scalar::F32 => Op::Binary32(Binary32::F16x2FromF32),
            _ => Op::Lanes(LaneOp::CvtPack(conversion(to, from))),
        };
        return Ok(draft(op, operands(l, frame, i, 32, [32, 32])?));
    }
    let (to, from) = (scalar(to)?, scalar(from)?);
    // Integers may go to larger registers, extended; and come from larger ones.
    let [d, a] = i.operands.as_slice() else { return Err("two operands were expected".into()) };
    let def = l.def(frame, d)?;
    let a = l.use_of(frame, a, if frame.register_bytes(a) == Some(8) { 64 } else { 32 })?;
    let wide = (def.1 == Kind::Def64, a.1 == Kind::Use64);
    if def.1 == Kind::DefPred || (to.bits() == 64 && !wide.0) || (from.bits() == 64 && !wide.1) {
        return Err("an operand is too small".into());
    }
    let register_bits = frame.register_bytes(d).map_or(64, |bytes| 8 * bytes.clamp(1, 8) as u32);
    let general = LaneOp::Cvt { conversion: conversion(to, from), register_bits };
    let op = fast_cvt(to, from, wide, words).unwrap_or(Op::Lanes(general));
    Ok(Draft::with(op, [def, a]))
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

/// Type of a comparison.
fn compared(ty: &str) -> Result<(Scalar, bool)> {
    let (name, packed) = ty.strip_suffix("x2").map_or((ty, false), |name| (name, true));
    let name =
        name.strip_prefix('b').filter(|bits| *bits != "f16").map_or(name.to_owned(), |b| format!("u{b}"));
    let scalar = Scalar::parse(&name).ok_or_else(|| format!(".{ty} is not supported"))?;
    Ok((scalar, packed))
}

fn setp<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction, modifiers: &[&str]) -> Result<Draft> {
    let [test, rest @ .., ty] = modifiers else { return Err("a comparison and a type were expected".into()) };
    let test = Compare::parse(test).ok_or_else(|| format!(".{test} is no comparison"))?;
    let (scalar, packed) = compared(ty)?;
    let ftz = rest.contains(&"ftz");
    let logic = rest.iter().find_map(|word| match *word {
        "and" => Some(Logic::And),
        "or" => Some(Logic::Or),
        "xor" => Some(Logic::Xor),
        _ => None,
    });
    let (d, a, b, c) = match i.operands.as_slice() {
        [d, a, b] => (d, a, b, None),
        [d, a, b, c] if logic.is_some() => (d, a, b, Some(c)),
        _ => return Err("three operands, or four with a combining predicate, were expected".into()),
    };
    let w = scalar.bits();
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

fn set<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction, modifiers: &[&str]) -> Result<Draft> {
    let [test, rest @ .., to, ty] = modifiers else { return Err("two types were expected".into()) };
    let test = Compare::parse(test).ok_or_else(|| format!(".{test} is no comparison"))?;
    let (ty, packed) = compared(ty)?;
    if packed || !matches!(*to, "u32" | "s32" | "f32") || !rest.iter().all(|word| *word == "ftz") {
        return Err("this form is not supported".into());
    }
    let op = LaneOp::Set { test, ty, ftz: !rest.is_empty(), float: *to == "f32" };
    let w = ty.bits();
    Ok(draft(Op::Lanes(op), operands(l, frame, i, 32, [w, w])?))
}

fn selp<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction, modifiers: &[&str]) -> Result<Draft> {
    let [ty] = modifiers else { return Err("a type was expected".into()) };
    let wide = ty.ends_with("64");
    let [d, a, b, c] = i.operands.as_slice() else { return Err("four operands were expected".into()) };
    let bits = match ty.len() {
        _ if wide => 64,
        _ if ty.ends_with("16") => 16,
        _ => 32,
    };
    let (d, a, b) = (l.def_of(frame, d, bits)?, l.use_of(frame, a, bits)?, l.use_of(frame, b, bits)?);
    let (c, negated) = l.use_pred(frame, c)?;
    let op = if wide { Op::Select64(negated) } else { Op::Select32(negated) };
    Ok(Draft::with(op, [d, a, b, c]))
}

fn slct<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction, modifiers: &[&str]) -> Result<Draft> {
    let (ty, float) = match modifiers {
        [ty, "s32"] => (*ty, false),
        [ty, "f32"] | ["ftz", ty, "f32"] => (*ty, true),
        _ => return Err("this form is not supported".into()),
    };
    let w = if ty.ends_with("64") { 64 } else { 32 };
    Ok(draft(Op::Lanes(LaneOp::Slct { float }), operands(l, frame, i, w, [w, w, 32])?))
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
        (_, [d, a, b]) => {
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
    let int = int_type(ty)?;
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
        ("bfind", [rest @ .., ty]) => {
            let int = int_type(ty)?;
            let op = if rest.contains(&"shiftamt") { IntOp::BfindShift } else { IntOp::Bfind };
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
