//! A kernel's syntax tree to decoded instructions: device functions inlined, names turned into places, constants
//! into rows.

use super::op::{Kind, Op};
use super::registers::{CONSTANT, Counts, Draft, NO_REGISTER, Virtual};
use super::{alu, memory, sync};
use crate::ptx::ast::{Function, Instruction, Location, Module, Operand, Space, Type, Variable};
use std::collections::HashMap;

/// Most instructions of a kernel after inlining.
const MOST_INSTRUCTIONS: usize = 4_000_000;
/// Most local memory of a thread: the limit of every GPU so far.
const MOST_LOCAL: u64 = 512 << 10;

/// What cannot be decoded, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// PTX line.
    pub line: u32,
    /// The instruction and what is wrong with it.
    pub message: String,
}

pub(super) type Result<T> = std::result::Result<T, String>;

/// Where a variable lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Device address; `.const` variables too.
    Global(u64),
    /// Offset in shared memory.
    Shared(u32),
    /// Offset in the thread's local memory.
    Local(u32),
    /// Offset in the kernel's parameters, and bytes.
    Param(u32, u32),
}

/// A row that holds the same in all instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Constant {
    /// Bits.
    Bits(u64),
    /// Bytes of the parameters: offset, size, sign-extended.
    Param(u32, u8, bool),
    /// Special register.
    Special(Special),
}

/// Special registers that are constant while a block runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    TotalSmem,
    DynamicSmem,
}

/// Where an instruction comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// PTX line.
    pub line: u32,
    /// Function it stands in, an index into the module's.
    pub function: u32,
    /// Index in that function.
    pub index: u32,
}

/// A kernel after lowering.
pub struct Lowered {
    /// Instructions; the last is an exit.
    pub drafts: Vec<Draft>,
    /// Of each draft.
    pub origins: Vec<Origin>,
    /// Targets of indexed branches.
    pub tables: Vec<u32>,
    /// Virtual registers.
    pub counts: Counts,
    /// Constant rows of 32 bits.
    pub constants32: Vec<Constant>,
    /// Constant rows of 64 bits.
    pub constants64: Vec<Constant>,
    /// Local memory of a thread.
    pub local_bytes: u32,
    /// Memory atomics whose result depends on the order of blocks (floating-point sums).
    pub ordered_atomics: bool,
}

/// Lowering of one kernel.
pub struct Lowerer<'a> {
    module: &'a Module,
    by_name: HashMap<&'a str, usize>,
    places: &'a HashMap<String, Place>,
    /// 80 for compute capability 8.0.
    pub capability: u32,
    out: Lowered,
    rows32: HashMap<Constant, Virtual>,
    rows64: HashMap<Constant, Virtual>,
    local: u64,
    /// Functions being inlined, innermost last.
    stack: Vec<usize>,
}

/// One function being lowered: the kernel, or a copy of a device function.
pub struct Frame<'a> {
    function: &'a Function,
    /// Virtual register and file of each of its registers.
    registers: Vec<(Virtual, Type)>,
    places: HashMap<String, Place>,
    /// The carry flag of `add.cc` and the like, a predicate.
    pub carry: Virtual,
    /// Draft of each instruction.
    starts: Vec<u32>,
    /// Branches to patch: draft, instruction (the function's length for its end).
    branches: Vec<(usize, usize)>,
    /// Table entries to patch.
    table_entries: Vec<(usize, usize)>,
}

/// Key of a function's own variable among the module's.
pub(super) fn qualified(function: &str, variable: &str) -> String {
    format!("{function}/{variable}")
}

/// Lowers one kernel. `places` holds the module's variables and the functions' shared ones; `params` the kernel's.
///
/// # Errors
/// The first instruction that is not supported.
pub fn lower(
    module: &Module,
    kernel: usize,
    places: &HashMap<String, Place>,
    params: HashMap<String, Place>,
    capability: u32,
) -> std::result::Result<Lowered, Unsupported> {
    let by_name = module.functions.iter().enumerate().map(|(i, f)| (f.name.as_str(), i)).collect();
    let out = Lowered {
        drafts: Vec::new(),
        origins: Vec::new(),
        tables: Vec::new(),
        counts: Counts::default(),
        constants32: Vec::new(),
        constants64: Vec::new(),
        local_bytes: 0,
        ordered_atomics: false,
    };
    let (rows32, rows64) = (HashMap::new(), HashMap::new());
    let mut lowerer =
        Lowerer { module, by_name, places, capability, out, rows32, rows64, local: 0, stack: Vec::new() };
    lowerer.function(kernel, params)?;
    let origin = lowerer.out.origins.last().cloned();
    lowerer.push(Draft::new(Op::Exit));
    lowerer.out.origins.push(origin.unwrap_or(Origin { line: 0, function: 0, index: 0 }));
    lowerer.out.local_bytes = u32::try_from(lowerer.local).expect("at most 512 KiB");
    Ok(lowerer.out)
}

impl Draft {
    /// Without registers.
    pub fn new(op: Op) -> Self {
        Self { op, r: [(NO_REGISTER, Kind::None); 4], wide: Vec::new(), guard: None }
    }

    /// With registers.
    pub fn with<const N: usize>(op: Op, registers: [(Virtual, Kind); N]) -> Self {
        let mut draft = Self::new(op);
        draft.r[..N].copy_from_slice(&registers);
        draft
    }
}

impl<'a> Lowerer<'a> {
    fn function(
        &mut self,
        index: usize,
        places: HashMap<String, Place>,
    ) -> std::result::Result<(), Unsupported> {
        let function = &self.module.functions[index];
        let here = |message: String| Unsupported { line: function.line, message };
        if self.stack.contains(&index) {
            return Err(here(format!("{} calls itself; recursion is not supported", function.name)));
        }
        self.stack.push(index);
        let mut frame = Frame {
            function,
            registers: Vec::with_capacity(function.registers.len()),
            places,
            carry: self.register(Type::Pred),
            starts: Vec::with_capacity(function.instructions.len()),
            branches: Vec::new(),
            table_entries: Vec::new(),
        };
        for &ty in &function.registers {
            let register = self.register(ty);
            frame.registers.push((register, ty));
        }
        for variable in &function.variables {
            let place = if matches!(variable.space, Space::Local | Space::Param) {
                Some(self.local(variable).map_err(here)?)
            } else {
                self.places.get(&qualified(&function.name, &variable.name)).copied()
            };
            if let Some(place) = place {
                frame.places.insert(variable.name.clone(), place);
            }
        }
        for (i, instruction) in function.instructions.iter().enumerate() {
            frame.starts.push(u32::try_from(self.out.drafts.len()).expect("at most 4 million"));
            let before = self.out.drafts.len();
            self.instruction(&mut frame, instruction).map_err(|message| Unsupported {
                line: instruction.line,
                message: format!("{}: {message}", function.text_of(instruction)),
            })?;
            let function = u32::try_from(index).expect("fewer functions");
            let origin =
                Origin { line: instruction.line, function, index: u32::try_from(i).expect("fewer lines") };
            // A call pushed the origins of its callee's instructions itself.
            let missing = self.out.drafts.len() - self.out.origins.len();
            debug_assert!(before + missing <= self.out.drafts.len());
            self.out.origins.extend(std::iter::repeat_n(origin, missing));
            if self.out.drafts.len() > MOST_INSTRUCTIONS {
                return Err(here(format!("more than {MOST_INSTRUCTIONS} instructions after inlining")));
            }
        }
        self.patch(&frame);
        self.stack.pop();
        Ok(())
    }

    /// Fills in the targets of a function's branches.
    fn patch(&mut self, frame: &Frame) {
        let end = u32::try_from(self.out.drafts.len()).expect("at most 4 million");
        let start = |i: usize| frame.starts.get(i).copied().unwrap_or(end);
        for &(draft, target) in &frame.branches {
            self.out.drafts[draft].op = Op::Bra(start(target));
        }
        for &(entry, target) in &frame.table_entries {
            self.out.tables[entry] = start(target);
        }
    }

    fn instruction(&mut self, frame: &mut Frame<'a>, i: &'a Instruction) -> Result<()> {
        let first = self.out.drafts.len();
        match i.opcode.as_str() {
            "bra" => {
                let target = match i.operands.as_slice() {
                    [Operand::Target(target)] => *target as usize,
                    _ => return Err("a branch needs one label".into()),
                };
                frame.branches.push((first, target));
                self.push(Draft::new(Op::Bra(0)));
            }
            "brx" => self.brx(frame, i)?,
            "ret" if self.stack.len() > 1 => {
                frame.branches.push((first, frame.function.instructions.len()));
                self.push(Draft::new(Op::Bra(0)));
            }
            "ret" | "exit" => self.push(Draft::new(Op::Exit)),
            "call" => return self.call(frame, i),
            "ld" | "st" | "ldu" | "atom" | "red" | "cp" | "ldmatrix" | "stmatrix" | "cvta" | "isspacep"
            | "mbarrier" => {
                let drafts = memory::lower(self, frame, i)?;
                drafts.into_iter().for_each(|draft| self.push(draft));
            }
            "bar" | "barrier" | "shfl" | "vote" | "match" | "redux" | "activemask" | "mma" | "wmma"
            | "trap" | "brkpt" | "membar" | "fence" | "prefetch" | "prefetchu" | "nanosleep" | "discard"
            | "applypriority" | "createpolicy" | "pmevent" => {
                let drafts = sync::lower(self, frame, i)?;
                drafts.into_iter().for_each(|draft| self.push(draft));
            }
            _ => {
                let draft = alu::lower(self, frame, i)?;
                self.push(draft);
            }
        }
        if let Some(guard) = i.guard {
            let (register, ty) = frame.registers[guard.register as usize];
            if ty != Type::Pred {
                return Err("the guard is no predicate".into());
            }
            for draft in &mut self.out.drafts[first..] {
                draft.guard = Some((register, guard.negated));
            }
        }
        Ok(())
    }

    fn brx(&mut self, frame: &mut Frame<'a>, i: &'a Instruction) -> Result<()> {
        let [index, Operand::Targets(targets)] = i.operands.as_slice() else {
            return Err("expected an index and a list of labels".into());
        };
        let first = self.out.tables.len();
        for (k, &target) in targets.iter().enumerate() {
            frame.table_entries.push((first + k, target as usize));
            self.out.tables.push(0);
        }
        let index = self.use32(frame, index)?;
        let [first, count] = [first, targets.len()].map(|n| u32::try_from(n).expect("fewer labels"));
        let op = Op::BrxIdx { first, count };
        self.push(Draft::with(op, [(NO_REGISTER, Kind::None), index]));
        Ok(())
    }

    /// A call: the callee's body, its parameters the caller's variables.
    fn call(&mut self, frame: &mut Frame<'a>, i: &'a Instruction) -> Result<()> {
        let empty = Vec::new();
        let (returns, name, args) = match i.operands.as_slice() {
            [Operand::Symbol(name, 0)] => (&empty, name, &empty),
            [Operand::Symbol(name, 0), Operand::List(args)] => (&empty, name, args),
            [Operand::List(returns), Operand::Symbol(name, 0)] => (returns, name, &empty),
            [Operand::List(returns), Operand::Symbol(name, 0), Operand::List(args)] => (returns, name, args),
            _ => return Err("only direct calls are supported".into()),
        };
        let Some(&index) = self.by_name.get(name.as_str()) else {
            return self.call_extern(frame, i, name, returns, args);
        };
        let callee = &self.module.functions[index];
        if callee.is_entry || callee.returns.len() != returns.len() || callee.params.len() != args.len() {
            return Err(format!("{name} takes {} parameters", callee.params.len()));
        }
        let skip = self.out.drafts.len();
        if let Some(guard) = i.guard {
            let (register, _) = frame.registers[guard.register as usize];
            let mut jump = Draft::new(Op::Bra(0));
            jump.guard = Some((register, !guard.negated));
            self.push(jump);
        }
        let mut places = HashMap::new();
        for (formal, actual) in callee.returns.iter().zip(returns).chain(callee.params.iter().zip(args)) {
            let place = match actual {
                Operand::Symbol(name, 0) => self.place(frame, name)?,
                _ => return Err("arguments that are registers are not supported".into()),
            };
            places.insert(formal.name.clone(), place);
        }
        self.mark_origin(i);
        self.function(index, places).map_err(|u| format!("in {name}, PTX line {}: {}", u.line, u.message))?;
        if i.guard.is_some() {
            let end = u32::try_from(self.out.drafts.len()).expect("at most 4 million");
            self.out.drafts[skip].op = Op::Bra(end);
        }
        Ok(())
    }

    /// Origins for what a call put before its callee's body.
    fn mark_origin(&mut self, i: &Instruction) {
        let function = *self.stack.last().expect("inside a function");
        let instructions = &self.module.functions[function].instructions;
        let index = instructions.iter().position(|other| std::ptr::eq(other, i)).unwrap_or(0);
        let [function, index] = [function, index].map(|n| u32::try_from(n).expect("fewer"));
        let missing = self.out.drafts.len() - self.out.origins.len();
        let origin = Origin { line: i.line, function, index };
        self.out.origins.extend(std::iter::repeat_n(origin, missing));
    }

    fn call_extern(
        &mut self,
        frame: &mut Frame<'a>,
        i: &Instruction,
        name: &str,
        returns: &[Operand],
        args: &[Operand],
    ) -> Result<()> {
        let mut slots = Vec::new();
        for operand in args.iter().chain(returns) {
            match operand {
                Operand::Symbol(name, 0) => match self.place(frame, name)? {
                    Place::Local(offset) => slots.push(offset),
                    _ => return Err("an argument is no parameter variable".into()),
                },
                _ => return Err("arguments that are registers are not supported".into()),
            }
        }
        let op = match (name, slots.as_slice()) {
            ("__assertfail", &[message, file, line, function, _]) => {
                Op::AssertFail { params: [message, file, line, function] }
            }
            ("vprintf", &[format, arguments, result]) => Op::Printf { params: [format, arguments, result] },
            _ => return Err(format!("the function {name} has no body in this module")),
        };
        let mut draft = Draft::new(op);
        if let Some(guard) = i.guard {
            draft.guard = Some((frame.registers[guard.register as usize].0, guard.negated));
        }
        self.push(draft);
        Ok(())
    }

    fn push(&mut self, draft: Draft) {
        if let Op::Atomic { exact: false, access, .. } = draft.op {
            self.out.ordered_atomics |=
                matches!(access.space, super::op::Space::Global | super::op::Space::Generic);
        }
        self.out.drafts.push(draft);
    }

    /// A new virtual register.
    pub fn register(&mut self, ty: Type) -> Virtual {
        let counts = &mut self.out.counts;
        let n = match ty {
            Type::Pred => &mut counts.pred,
            ty if ty.bytes() > 4 => &mut counts.r64,
            _ => &mut counts.r32,
        };
        *n += 1;
        u32::try_from(*n - 1).expect("the parser limits registers")
    }

    fn local(&mut self, variable: &Variable) -> Result<Place> {
        let bytes = variable.count.unwrap_or(0).saturating_mul(variable.element.bytes());
        let offset = self.local.next_multiple_of(variable.align.clamp(1, 256));
        let end = offset.saturating_add(bytes);
        if end > MOST_LOCAL {
            return Err(format!("more than {MOST_LOCAL} bytes of local memory"));
        }
        self.local = end;
        Ok(Place::Local(u32::try_from(offset).expect("at most 512 KiB")))
    }

    /// Where a variable lies.
    pub fn place(&self, frame: &Frame, name: &str) -> Result<Place> {
        let place = frame.places.get(name).or_else(|| self.places.get(name));
        place.copied().ok_or_else(|| format!("no variable {name}"))
    }

    /// Row of a constant of 32 bits.
    pub fn constant32(&mut self, constant: Constant) -> (Virtual, Kind) {
        let rows = &mut self.out.constants32;
        let row = *self.rows32.entry(constant).or_insert_with(|| {
            rows.push(constant);
            CONSTANT | u32::try_from(rows.len() - 1).expect("fewer constants than instructions")
        });
        (row, Kind::Use32)
    }

    /// Row of a constant of 64 bits.
    pub fn constant64(&mut self, constant: Constant) -> (Virtual, Kind) {
        let rows = &mut self.out.constants64;
        let row = *self.rows64.entry(constant).or_insert_with(|| {
            rows.push(constant);
            CONSTANT | u32::try_from(rows.len() - 1).expect("fewer constants than instructions")
        });
        (row, Kind::Use64)
    }

    /// An operand as a row of 32 bits.
    pub fn use32(&mut self, frame: &Frame, operand: &Operand) -> Result<(Virtual, Kind)> {
        let bits = match operand {
            Operand::Register(r) => {
                let (register, ty) = frame.registers[*r as usize];
                if ty == Type::Pred || ty.bytes() > 4 {
                    return Err(format!("{} is no register of up to 32 bits", frame.name(*r)));
                }
                return Ok((register, Kind::Use32));
            }
            Operand::Special(name) => {
                let special = Special::parse(name).ok_or_else(|| format!("{name} is not supported here"))?;
                return Ok(self.constant32(Constant::Special(special)));
            }
            Operand::Integer(bits) => u64::from(*bits as u32),
            Operand::F32(bits) => u64::from(*bits),
            Operand::F64(bits) => u64::from((f64::from_bits(*bits) as f32).to_bits()),
            Operand::Symbol(name, offset) => self.address_of(frame, name, *offset)? & 0xffff_ffff,
            other => return Err(format!("{other:?} is no 32-bit operand")),
        };
        Ok(self.constant32(Constant::Bits(bits)))
    }

    /// An operand as a row of 64 bits.
    pub fn use64(&mut self, frame: &Frame, operand: &Operand) -> Result<(Virtual, Kind)> {
        let bits = match operand {
            Operand::Register(r) => {
                let (register, ty) = frame.registers[*r as usize];
                if ty == Type::Pred || ty.bytes() != 8 {
                    return Err(format!("{} is no 64-bit register", frame.name(*r)));
                }
                return Ok((register, Kind::Use64));
            }
            Operand::Special(name) => {
                let special = Special::parse(name).ok_or_else(|| format!("{name} is not supported here"))?;
                return Ok(self.constant64(Constant::Special(special)));
            }
            Operand::Integer(bits) | Operand::F64(bits) => *bits,
            Operand::F32(bits) => u64::from(*bits),
            Operand::Symbol(name, offset) => self.address_of(frame, name, *offset)?,
            other => return Err(format!("{other:?} is no 64-bit operand")),
        };
        Ok(self.constant64(Constant::Bits(bits)))
    }

    /// Address of a variable in its own space.
    fn address_of(&self, frame: &Frame, name: &str, offset: i64) -> Result<u64> {
        let base = match self.place(frame, name)? {
            Place::Global(address) => address,
            Place::Shared(offset) | Place::Local(offset) | Place::Param(offset, _) => u64::from(offset),
        };
        Ok(base.wrapping_add_signed(offset))
    }

    /// A predicate operand, and whether it is complemented.
    pub fn use_pred(&self, frame: &Frame, operand: &Operand) -> Result<((Virtual, Kind), bool)> {
        match operand {
            Operand::Register(r) => match frame.registers[*r as usize] {
                (register, Type::Pred) => Ok(((register, Kind::UsePred), false)),
                _ => Err(format!("{} is no predicate", frame.name(*r))),
            },
            Operand::Not(inner) => self.use_pred(frame, inner).map(|(p, negated)| (p, !negated)),
            other => Err(format!("{other:?} is no predicate")),
        }
    }

    /// A destination: its file follows from the register's type. [`Operand::Sink`] gives no register.
    pub fn def(&self, frame: &Frame, operand: &Operand) -> Result<(Virtual, Kind)> {
        match operand {
            Operand::Register(r) => {
                let (register, ty) = frame.registers[*r as usize];
                let kind = match ty {
                    Type::Pred => Kind::DefPred,
                    ty if ty.bytes() == 16 => return Err("128-bit registers are not supported".into()),
                    ty if ty.bytes() == 8 => Kind::Def64,
                    _ => Kind::Def32,
                };
                Ok((register, kind))
            }
            Operand::Sink => Ok((NO_REGISTER, Kind::None)),
            other => Err(format!("{other:?} is no destination")),
        }
    }

    /// A destination of the given width: 32 (or less), 64, or 0 for a predicate.
    pub fn def_of(&self, frame: &Frame, operand: &Operand, bits: u32) -> Result<(Virtual, Kind)> {
        let def = self.def(frame, operand)?;
        let want = match bits {
            0 => Kind::DefPred,
            64 => Kind::Def64,
            _ => Kind::Def32,
        };
        if def.1 == want || def.1 == Kind::None {
            return Ok(def);
        }
        Err("the destination has another size".into())
    }

    /// A source of the given width: 64, 32, or less. Rows of narrow registers have zeros above their bits, and so
    /// must constants.
    pub fn use_of(&mut self, frame: &Frame, operand: &Operand, bits: u32) -> Result<(Virtual, Kind)> {
        match operand {
            _ if bits == 64 => self.use64(frame, operand),
            Operand::Integer(value) if bits < 32 => {
                Ok(self.constant32(Constant::Bits(value & ((1 << bits) - 1))))
            }
            _ => self.use32(frame, operand),
        }
    }
}

impl Frame<'_> {
    fn name(&self, register: u32) -> &str {
        &self.function.register_names[register as usize]
    }

    /// Bytes of an operand that is a register; `None` for others, 0 for a predicate.
    pub fn register_bytes(&self, operand: &Operand) -> Option<u64> {
        match operand {
            Operand::Register(r) => Some(self.registers[*r as usize].1.bytes()),
            _ => None,
        }
    }
}

impl Special {
    fn parse(name: &str) -> Option<Self> {
        let (name, axis) = match name.rsplit_once('.') {
            Some((name, "x")) => (name, 0),
            Some((name, "y")) => (name, 1),
            Some((name, "z")) => (name, 2),
            Some(_) => return None,
            None => (name, 0),
        };
        Some(match name {
            "%tid" => Self::Tid(axis),
            "%ntid" => Self::Ntid(axis),
            "%ctaid" => Self::Ctaid(axis),
            "%nctaid" => Self::Nctaid(axis),
            "%laneid" => Self::LaneId,
            "%warpid" => Self::WarpId,
            "%nwarpid" => Self::NWarpId,
            "%smid" => Self::SmId,
            "%nsmid" => Self::NSmId,
            "%gridid" => Self::GridId,
            "%lanemask_eq" => Self::LanemaskEq,
            "%lanemask_le" => Self::LanemaskLe,
            "%lanemask_lt" => Self::LanemaskLt,
            "%lanemask_ge" => Self::LanemaskGe,
            "%lanemask_gt" => Self::LanemaskGt,
            "%total_smem_size" => Self::TotalSmem,
            "%dynamic_smem_size" => Self::DynamicSmem,
            _ => return None,
        })
    }
}

/// A location and what it was inlined at, as file and line.
pub fn chain(module: &Module, location: Option<&Location>) -> Vec<(String, u32)> {
    let mut lines = Vec::new();
    let mut next = location;
    while let Some(location) = next {
        let file = module.files.iter().find(|(index, _)| *index == location.file);
        lines.push((file.map_or_else(String::new, |(_, name)| name.clone()), location.line));
        next = location.inlined_at.as_deref();
    }
    lines
}
