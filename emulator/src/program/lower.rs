//! A kernel's syntax tree to decoded instructions: device functions inlined, names turned into places, constants
//! into rows.

use super::op::{Kind, Op};
use super::operand::Constant;
use super::registers::{Counts, Draft, NO_REGISTER, Virtual};
use super::{alu, memory, sync};
use crate::ptx::ast::{Function, Instruction, Module, Operand, Space, Type, Variable};
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
    /// The instruction, if one is to blame.
    pub instruction: String,
    /// What is wrong with it.
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
    pub(super) places: &'a HashMap<String, Place>,
    /// 80 for compute capability 8.0.
    pub capability: u32,
    pub(super) out: Lowered,
    pub(super) rows32: HashMap<Constant, Virtual>,
    pub(super) rows64: HashMap<Constant, Virtual>,
    local: u64,
    /// Functions being inlined, innermost last.
    stack: Vec<usize>,
}

/// One function being lowered: the kernel, or a copy of a device function.
pub struct Frame<'a> {
    pub(super) function: &'a Function,
    /// Virtual register and file of each of its registers.
    pub(super) registers: Vec<(Virtual, Type)>,
    pub(super) places: HashMap<String, Place>,
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
        let here = |message: String| Unsupported { line: function.line, instruction: String::new(), message };
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
                instruction: function.text_of(instruction),
                message,
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
        self.function(index, places)
            .map_err(|u| format!("in {name}, PTX line {}: {}: {}", u.line, u.instruction, u.message))?;
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
}
