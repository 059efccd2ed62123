//! Memory instructions: loads, stores, atomics, asynchronous copies, matrix fragments, address spaces.

use super::lanes;
use super::lower::{Frame, Lowerer, Place, Result};
use super::op::{Access, Kind, Op, Space, Unary32};
use super::operand::Constant;
use super::registers::{Draft, NO_REGISTER, Virtual};
use crate::machine::window;
use crate::ptx::ast::{Instruction, Operand};

/// Modifiers that say how a value is cached or ordered with other threads' and change nothing else here.
const IGNORED: &[&str] = &[
    "nc", "ca", "cg", "cs", "cv", "lu", "wb", "wt", "weak", "cta", "cluster", "gpu", "sys", "relaxed",
    "acquire", "release", "acq_rel", "sc", "volatile", "noftz", "unified",
];
const STRONG: &[&str] = &["volatile", "relaxed", "acquire", "release", "acq_rel", "sc"];

pub(super) fn lower<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction) -> Result<Vec<Draft>> {
    let modifiers: Vec<&str> = i.modifiers.iter().map(String::as_str).collect();
    match i.opcode.as_str() {
        "ld" | "ldu" => load(l, frame, i, &modifiers),
        "st" => store(l, frame, i, &modifiers).map(|draft| vec![draft]),
        "atom" | "red" => atomic(l, frame, i, &modifiers).map(|draft| vec![draft]),
        "cp" => copy(l, frame, i, &modifiers).map(|draft| vec![draft]),
        "ldmatrix" | "stmatrix" => matrix(l, frame, i, &modifiers).map(|draft| vec![draft]),
        "cvta" => cvta(l, frame, i, &modifiers).map(|draft| vec![draft]),
        "isspacep" => isspacep(l, frame, i, &modifiers).map(|draft| vec![draft]),
        _ => Err("not supported on this device".into()),
    }
}

/// Size of an element type, and whether it is signed.
fn element(word: &str) -> Option<(u8, bool)> {
    Some(match word {
        "b8" | "u8" => (1, false),
        "s8" => (1, true),
        "b16" | "u16" | "f16" | "bf16" => (2, false),
        "s16" => (2, true),
        "b32" | "u32" | "f32" | "f16x2" | "bf16x2" => (4, false),
        "s32" => (4, true),
        "b64" | "u64" | "f64" => (8, false),
        "s64" => (8, true),
        _ => return None,
    })
}

fn space(word: &str) -> Option<Space> {
    Some(match word {
        "global" | "const" => Space::Global,
        "shared" | "shared::cta" => Space::Shared,
        "local" => Space::Local,
        "param" | "param::entry" | "param::func" => Space::Param,
        _ => return None,
    })
}

/// Space, vector length and element type of a load or store.
fn access(modifiers: &[&str]) -> Result<Access> {
    let mut access = Access::new(Space::Generic, 0);
    for &word in modifiers {
        if let Some(found) = space(word).filter(|_| access.space == Space::Generic) {
            access.space = found;
        } else if let Some((bytes, signed)) = element(word).filter(|_| access.bytes == 0) {
            access.bytes = bytes;
            access.sign_to = if signed { 1 } else { 0 }; // the destination's width follows
        } else if let Some(count) = word.strip_prefix('v').and_then(|n| n.parse().ok())
            && access.count == 1
        {
            access.count = count;
        } else if word.starts_with("L1::") || word.starts_with("L2::") || IGNORED.contains(&word) {
            access.strong |= STRONG.contains(&word);
        } else {
            return Err(format!(".{word} is not supported"));
        }
    }
    if access.bytes == 0 {
        return Err("no element type".into());
    }
    // Only global memory has accesses of 32 bytes.
    let most = if modifiers.contains(&"global") { 32 } else { 16 };
    if !matches!(access.count, 1 | 2 | 4 | 8) || u32::from(access.count) * u32::from(access.bytes) > most {
        return Err(format!("a vector of at most {most} bytes was expected"));
    }
    Ok(access)
}

/// Base register and offset of an address. A symbol's place may change the space: parameters of device functions lie
/// in local memory.
fn address<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    operand: &Operand,
    access: &mut Access,
) -> Result<(Virtual, Kind)> {
    let Operand::Address(base, offset) = operand else {
        return Err("an address in brackets was expected".into());
    };
    access.offset = *offset;
    match &**base {
        Operand::Symbol(name, more) => {
            access.offset = offset.wrapping_add(*more);
            let (space, at) = match l.place(frame, name)? {
                Place::Global(address) => (Space::Global, address),
                Place::Shared(at) => (Space::Shared, u64::from(at)),
                Place::Local(at) => (Space::Local, u64::from(at)),
                Place::Param(at, _) => (Space::Param, u64::from(at)),
            };
            let generic = access.space == Space::Generic;
            let of_call = access.space == Space::Param && space == Space::Local;
            if !(generic || of_call || access.space == space) {
                return Err(format!("{name} lies in another state space"));
            }
            access.space = space;
            access.wide_address = true;
            Ok(l.constant64(Constant::Bits(at)))
        }
        base => {
            access.wide_address = !matches!(frame.register_bytes(base), Some(4));
            if access.wide_address { l.use64(frame, base) } else { l.use32(frame, base) }
        }
    }
}

/// The elements of `{a, b}`, or the one operand.
fn elements(operand: &Operand) -> &[Operand] {
    match operand {
        Operand::Vector(elements) => elements,
        one => std::slice::from_ref(one),
    }
}

fn load<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    i: &'a Instruction,
    modifiers: &[&str],
) -> Result<Vec<Draft>> {
    let mut access = access(modifiers)?;
    let anywhere = !matches!(access.space, Space::Shared | Space::Local | Space::Param);
    if i.opcode == "ldu" && (!anywhere || modifiers.contains(&"const")) {
        return Err("ldu is for global memory".into());
    }
    let [to, from] = i.operands.as_slice() else { return Err("two operands were expected".into()) };
    let base = address(l, frame, from, &mut access)?;
    let to = elements(to);
    if to.len() != usize::from(access.count) {
        return Err(format!("{} destinations for .v{}", to.len(), access.count));
    }
    if let (Space::Param, Operand::Address(symbol, _)) = (access.space, from)
        && let Operand::Symbol(name, _) = &**symbol
        && let Place::Param(at, bytes) = l.place(frame, name)?
    {
        return load_params(l, frame, to, access, at, bytes);
    }
    let mut draft = Draft::with(Op::Nop, [(NO_REGISTER, Kind::None), base]);
    access.wide_value = to.iter().any(|operand| frame.register_bytes(operand) == Some(8));
    for operand in to {
        let def = l.def(frame, operand)?;
        if def.1 == (if access.wide_value { Kind::Def32 } else { Kind::Def64 }) {
            return Err("destinations of different sizes".into());
        }
        let bits = match def.1 {
            Kind::Def32 => 8 * frame.register_bytes(operand).unwrap_or(4),
            Kind::Def64 => 64,
            Kind::None => 64,
            _ => return Err("a predicate cannot be loaded".into()),
        };
        if bits < 8 * u64::from(access.bytes) {
            return Err("the destination is smaller than the element".into());
        }
        if access.sign_to != 0 {
            access.sign_to = u8::try_from(bits).expect("at most 64");
        }
        draft.wide.push(def);
    }
    draft.op = Op::Load(access);
    Ok(vec![draft])
}

/// Parameters at constant offsets are the same for all threads: moves of constant rows.
fn load_params<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    to: &[Operand],
    access: Access,
    at: u32,
    bytes: u32,
) -> Result<Vec<Draft>> {
    let mut drafts = Vec::new();
    for (k, operand) in to.iter().enumerate() {
        let offset = access.offset + (k * usize::from(access.bytes)) as i64;
        if offset < 0 || offset + i64::from(access.bytes) > i64::from(bytes) {
            return Err(format!("offset {offset} is outside the parameter's {bytes} bytes"));
        }
        let offset = at + u32::try_from(offset).expect("within the parameter");
        let constant = Constant::Param(offset, access.bytes, access.sign_to != 0);
        let def = l.def(frame, operand)?;
        drafts.push(match def.1 {
            Kind::Def32 if access.bytes <= 4 => {
                let row = l.constant32(constant);
                let narrow = access.sign_to != 0 && frame.register_bytes(operand) == Some(2);
                let op = if narrow { Unary32::Low16 } else { Unary32::Mov };
                Draft::with(Op::Unary32(op), [def, row])
            }
            Kind::Def64 => {
                let row = l.constant64(constant);
                Draft::with(Op::Alu64(super::op::Alu64::Mov), [def, row])
            }
            Kind::None => Draft::new(Op::Nop),
            _ => return Err("the destination is smaller than the element".into()),
        });
    }
    Ok(drafts)
}

fn store<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    i: &'a Instruction,
    modifiers: &[&str],
) -> Result<Draft> {
    let mut access = access(modifiers)?;
    let [to, from] = i.operands.as_slice() else { return Err("two operands were expected".into()) };
    let base = address(l, frame, to, &mut access)?;
    access.sign_to = 0;
    if access.space == Space::Param || modifiers.contains(&"const") {
        return Err("parameters and constants cannot be written".into());
    }
    let from = elements(from);
    if from.len() != usize::from(access.count) {
        return Err(format!("{} sources for .v{}", from.len(), access.count));
    }
    let is_wide = |operand| frame.register_bytes(operand).map_or(access.bytes == 8, |bytes| bytes == 8);
    access.wide_value = from.iter().any(is_wide);
    if access.bytes == 8 && !from.iter().all(is_wide) {
        return Err("the source is smaller than the element".into());
    }
    let mut draft = Draft::with(Op::Store(access), [(NO_REGISTER, Kind::None), base]);
    for operand in from {
        draft.wide.push(if access.wide_value { l.use64(frame, operand)? } else { l.use32(frame, operand)? });
    }
    Ok(draft)
}

fn atomic<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    i: &'a Instruction,
    modifiers: &[&str],
) -> Result<Draft> {
    let (ty, rest) = modifiers.split_last().ok_or("no type")?;
    let place = rest.iter().position(|word| lanes::atomic_operation(word, ty).is_some());
    let operation = place.map(|k| rest[k]).ok_or_else(|| format!("no operation known for .{ty}"))?;
    if i.opcode == "red" && matches!(operation, "exch" | "cas") {
        return Err(format!("no reduction .{operation} exists"));
    }
    let (function, operands) = lanes::atomic_operation(operation, ty).expect("found above");
    let mut words: Vec<&str> = rest.to_vec();
    words.remove(place.expect("found above"));
    words.push(ty);
    let mut access = access(&words)?;
    if access.count != 1 || matches!(access.space, Space::Local | Space::Param) || words.contains(&"const") {
        return Err("only single values in global and shared memory are supported".into());
    }
    access.strong = true;
    access.sign_to = 0;
    let (to, rest) = match (i.opcode.as_str(), i.operands.as_slice()) {
        ("atom", [to, rest @ ..]) => (Some(to), rest),
        (_, rest) => (None, rest),
    };
    let [at, sources @ ..] = rest else { return Err("no address".into()) };
    if sources.len() != operands {
        return Err(format!("{operands} operand(s) were expected after the address"));
    }
    let bits = 8 * u32::from(access.bytes);
    let base = address(l, frame, at, &mut access)?;
    let def = to.map_or(Ok((NO_REGISTER, Kind::None)), |to| l.def_of(frame, to, bits))?;
    let mut draft = Draft::with(Op::Nop, [def, base]);
    for (k, source) in sources.iter().enumerate() {
        draft.r[2 + k] = l.use_of(frame, source, bits)?;
    }
    let exact = !matches!((operation, *ty), ("add", "f16" | "f16x2" | "bf16" | "bf16x2" | "f32" | "f64"));
    draft.op = Op::Atomic { access, function, exact };
    Ok(draft)
}

fn copy<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction, modifiers: &[&str]) -> Result<Draft> {
    match (modifiers, i.operands.as_slice()) {
        (["async", "commit_group"], []) => Ok(Draft::new(Op::CopyCommit)),
        (["async", "wait_all"], []) => Ok(Draft::new(Op::CopyWaitAll)),
        (["async", "wait_group"], [Operand::Integer(n)]) => {
            Ok(Draft::new(Op::CopyWait(u32::try_from(*n).unwrap_or(u32::MAX))))
        }
        (["async", "ca" | "cg", rest @ ..], [to, from, Operand::Integer(bytes), size @ ..]) => {
            let ["shared" | "shared::cta", "global", hint @ ..] = rest else {
                return Err(format!("cp.async.{} is not supported", rest.join(".")));
            };
            if !matches!(hint, [] | ["L2::64B" | "L2::128B" | "L2::256B"]) {
                return Err(format!(".{} is not supported", hint.join(".")));
            }
            let allowed: &[u64] = if modifiers[1] == "cg" { &[16] } else { &[4, 8, 16] };
            if !allowed.contains(bytes) {
                return Err(format!("a size of {bytes} bytes, and one of {allowed:?} was expected"));
            }
            let (mut shared, mut global) = (Access::new(Space::Shared, 4), Access::new(Space::Global, 4));
            let a = address(l, frame, to, &mut shared)?;
            let b = address(l, frame, from, &mut global)?;
            let c = match size {
                [] => (NO_REGISTER, Kind::None),
                [operand @ (Operand::Register(_) | Operand::Integer(_))]
                    if frame.register_bytes(operand) != Some(0) =>
                {
                    l.use32(frame, operand)?
                }
                _ => return Err("a predicate or a cache policy is not supported here".into()),
            };
            if b.1 != Kind::Use64 {
                return Err("a 64-bit source address was expected".into());
            }
            let narrow = |offset: i64| i32::try_from(offset).map_err(|_| "an offset is too large".to_owned());
            let (to, from) = (narrow(shared.offset)?, narrow(global.offset)?);
            let bytes = u8::try_from(*bytes).expect("4, 8 or 16");
            let op = Op::CopyAsync { to, from, bytes, source: global.space };
            Ok(Draft::with(op, [(NO_REGISTER, Kind::None), a, b, c]))
        }
        _ => Err("not supported on this device".into()),
    }
}

fn matrix<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    i: &'a Instruction,
    modifiers: &[&str],
) -> Result<Draft> {
    let store = i.opcode == "stmatrix";
    let mut rest: Vec<&str> = modifiers.to_vec();
    let transposed = rest.contains(&"trans");
    rest.retain(|word| *word != "trans");
    let count = match rest.as_slice() {
        ["sync", "aligned", "m8n8", count, "shared" | "shared::cta", "b16"]
        | ["sync", "aligned", count, "m8n8", "shared" | "shared::cta", "b16"] => match *count {
            "x1" => 1,
            "x2" => 2,
            "x4" => 4,
            _ => return Err(format!(".{count} is not supported")),
        },
        _ => return Err("only .m8n8 of .b16 in .shared is supported".into()),
    };
    if store && l.capability < 90 {
        return Err("stmatrix needs sm_90".into());
    }
    let (address_operand, registers) = match (store, i.operands.as_slice()) {
        (false, [to, from]) => (from, to),
        (true, [to, from]) => (to, from),
        _ => return Err("two operands were expected".into()),
    };
    let mut access = Access::new(Space::Shared, 4);
    let base = address(l, frame, address_operand, &mut access)?;
    let offset = i32::try_from(access.offset).map_err(|_| "the offset is too large")?;
    let registers = elements(registers);
    if registers.len() != count {
        return Err(format!("{} registers for .x{count}", registers.len()));
    }
    let mut draft = Draft::with(Op::LoadMatrix { transposed, offset }, [(NO_REGISTER, Kind::None), base]);
    for register in registers {
        draft.wide.push(if store { l.use32(frame, register)? } else { l.def_of(frame, register, 32)? });
    }
    if store {
        draft.op = Op::StoreMatrix { transposed, offset };
    }
    Ok(draft)
}

/// Offsets in shared, local and parameter memory are generic addresses less the window's start; global addresses and
/// those of constants are generic addresses already.
fn cvta<'a>(l: &mut Lowerer<'a>, frame: &Frame<'a>, i: &'a Instruction, modifiers: &[&str]) -> Result<Draft> {
    let (to, rest) = match modifiers {
        ["to", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let [word, "u64"] = rest else { return Err("only 64-bit addresses are supported".into()) };
    let start = match space(word) {
        Some(Space::Global) => 0,
        Some(Space::Shared) => window::SHARED,
        Some(Space::Local) => window::LOCAL,
        Some(Space::Param) => window::PARAM,
        _ => return Err(format!(".{word} is not supported")),
    };
    let [def, source] = i.operands.as_slice() else { return Err("two operands were expected".into()) };
    let (def, source) = (l.def_of(frame, def, 64)?, l.use64(frame, source)?);
    if start == 0 {
        return Ok(Draft::with(Op::Alu64(super::op::Alu64::Mov), [def, source]));
    }
    let start = l.constant64(Constant::Bits(if to { start.wrapping_neg() } else { start }));
    Ok(Draft::with(Op::Alu64(super::op::Alu64::Add), [def, source, start]))
}

fn isspacep<'a>(
    l: &mut Lowerer<'a>,
    frame: &Frame<'a>,
    i: &'a Instruction,
    modifiers: &[&str],
) -> Result<Draft> {
    let [word] = modifiers else { return Err("a state space was expected".into()) };
    // Constants lie in global memory, and their addresses do not tell.
    let space =
        space(word).filter(|_| *word != "const").ok_or_else(|| format!(".{word} is not supported"))?;
    let [def, source] = i.operands.as_slice() else { return Err("two operands were expected".into()) };
    let (def, source) = (l.def_of(frame, def, 0)?, l.use64(frame, source)?);
    Ok(Draft::with(Op::IsSpace(space), [def, source]))
}
