//! Syntax tree to decoded kernels.

#![allow(
    clippy::cast_possible_truncation,
    reason = "registers are bits, and narrow ones are parts of wide ones"
)]

mod alu;
mod arithmetic;
mod compare;
mod convert;
pub mod lanes;
pub mod layout;
pub mod lower;
mod memory;
pub mod op;
mod operand;
mod registers;
mod sync;
mod words;

use crate::fault::SourceLine;
use crate::memory::{Memory, MemoryError};
use crate::ptx::{ParseError, ast};
use lower::Origin;
pub use lower::Unsupported;
use op::{Instr, Reg};
pub use operand::{Constant, Special};
use registers::Counts;
use std::sync::Arc;

/// Why a module cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum LoadError {
    #[error(transparent)]
    Parse(#[from] ParseError),
    #[error("PTX line {line}: {message}")]
    Invalid { line: u32, message: String },
    #[error("the PTX is for sm_{target}; this device is sm_{capability}")]
    Target { target: String, capability: u32 },
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// A loaded module: decoded kernels, and its variables in device memory.
pub struct Module {
    /// Kernels by position in the text.
    pub kernels: Vec<Arc<Kernel>>,
    /// Variables of `.global` and `.const`: name, address, bytes.
    pub globals: Vec<(String, u64, u64)>,
}

/// A parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Offset in the parameter buffer.
    pub offset: usize,
    /// Size.
    pub bytes: usize,
}

/// A decoded kernel.
pub struct Kernel {
    /// Name.
    pub name: String,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// Bytes of the parameter buffer.
    pub param_bytes: usize,
    /// Bytes of static shared memory.
    pub static_shared: u32,
    /// Bytes of local memory of a thread.
    pub local_bytes: u32,
    /// Bytes of `.const` variables of the module.
    pub const_bytes: u32,
    /// Most threads of a block (`.maxntid`), else 1024.
    pub max_threads: u32,
    /// Exact shape of a block (`.reqntid`).
    pub required_block: Option<[u32; 3]>,
    /// Registers of a thread, a guess: PTX has no limit.
    pub registers: u32,
    /// E.g. 80 for a module for compute_80.
    pub ptx_version: u32,
    /// What is executed; an instruction that is not supported is a fault of the launch.
    pub(crate) code: Result<Code, Unsupported>,
    source: Arc<ast::Module>,
}

/// Instructions and what they refer to.
pub(crate) struct Code {
    /// The last is an exit.
    pub instrs: Vec<Instr>,
    /// Registers of vectors and fragments.
    pub pool: Vec<Reg>,
    /// Targets of indexed branches.
    pub tables: Vec<u32>,
    /// Rows of registers; those of constants follow.
    pub counts: Counts,
    /// Constant rows.
    pub constants32: Vec<Constant>,
    /// Constant rows.
    pub constants64: Vec<Constant>,
    /// Blocks must run one after the other: their float atomics do not commute.
    pub ordered_atomics: bool,
    origins: Vec<Origin>,
}

impl Module {
    /// Parses and decodes; allocates and fills the module's variables in `memory`.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(text: &str, capability: u32, memory: &Memory) -> Result<Self, LoadError> {
        let tree = Arc::new(crate::ptx::parse(text)?);
        let digits: String = tree.target.chars().take_while(char::is_ascii_digit).collect();
        let target: u32 = digits.parse().unwrap_or(0);
        if target == 0 || target > capability || (digits.len() != tree.target.len() && target != capability) {
            return Err(LoadError::Target { target: tree.target.clone(), capability });
        }
        let variables = layout::variables(&tree, memory)?;
        let loaded = Self::decode(&tree, &variables, capability, target);
        if loaded.is_err() {
            layout::free(&variables.globals, memory);
        }
        Ok(Self { kernels: loaded?, globals: variables.globals })
    }

    fn decode(
        tree: &Arc<ast::Module>,
        variables: &layout::Variables,
        capability: u32,
        target: u32,
    ) -> Result<Vec<Arc<Kernel>>, LoadError> {
        let (bytes, most) = (variables.const_bytes, layout::MOST_CONST);
        if bytes > most {
            let message = format!("{bytes} bytes of constants; at most {most} are possible");
            return Err(LoadError::Invalid { line: 1, message });
        }
        let mut kernels = Vec::new();
        for (index, function) in tree.functions.iter().enumerate() {
            if function.is_entry {
                let kernel = Kernel::decode(tree, index, variables, capability, target);
                kernels
                    .push(Arc::new(kernel.map_err(|(line, message)| LoadError::Invalid { line, message })?));
            }
        }
        Ok(kernels)
    }

    /// Frees the variables.
    pub fn unload(&self, memory: &Memory) {
        layout::free(&self.globals, memory);
    }
}

impl Kernel {
    fn decode(
        tree: &Arc<ast::Module>,
        index: usize,
        variables: &layout::Variables,
        capability: u32,
        target: u32,
    ) -> Result<Self, (u32, String)> {
        let function = &tree.functions[index];
        let (params, param_bytes, places) = layout::params(function);
        let (shared, static_shared) =
            layout::shared(tree, index).map_err(|message| (function.line, message))?;
        let mut all = variables.places.clone();
        all.extend(shared);
        let lowered = lower::lower(tree, index, &all, places, capability);
        let local_bytes = lowered.as_ref().map_or(0, |lowered| lowered.local_bytes);
        let code = lowered.and_then(|lowered| {
            Code::new(lowered).ok_or_else(|| Unsupported {
                line: function.line,
                instruction: String::new(),
                message: "more than 65535 registers live at once".into(),
            })
        });
        let threads = function.max_threads;
        let product = |size: [u32; 3]| size.iter().fold(1u32, |a, &b| a.saturating_mul(b));
        Ok(Self {
            name: function.name.clone(),
            params,
            param_bytes,
            static_shared,
            local_bytes,
            const_bytes: variables.const_bytes,
            max_threads: threads.map_or(1024, |threads| product(threads.size).clamp(1, 1024)),
            required_block: threads.filter(|threads| threads.exact).map(|threads| threads.size),
            registers: code.as_ref().map_or(32, |code| {
                u32::try_from(code.counts.r32 + 2 * code.counts.r64).unwrap_or(255).clamp(16, 255)
            }),
            ptx_version: target,
            code,
            source: tree.clone(),
        })
    }

    /// Line, text and source lines of an instruction.
    pub(crate) fn describe(&self, pc: usize) -> (u32, String, Vec<SourceLine>) {
        let Some(origin) = self.code.as_ref().ok().and_then(|code| code.origins.get(pc)) else {
            return (0, String::new(), Vec::new());
        };
        let function = &self.source.functions[origin.function as usize];
        let Some(instruction) = function.instructions.get(origin.index as usize) else {
            return (origin.line, String::new(), Vec::new());
        };
        let lines = chain(&self.source, instruction.location.as_ref());
        let lines = lines.into_iter().map(|(file, line)| SourceLine { file, line }).collect();
        (origin.line, function.text_of(instruction), lines)
    }

    /// First word of an instruction, for the counters.
    pub(crate) fn opcode(&self, pc: usize) -> &str {
        let origin = self.code.as_ref().ok().and_then(|code| code.origins.get(pc));
        let instruction = origin.and_then(|origin| {
            self.source.functions[origin.function as usize].instructions.get(origin.index as usize)
        });
        instruction.map_or("exit", |instruction| &instruction.opcode)
    }
}

impl Code {
    fn new(lowered: lower::Lowered) -> Option<Self> {
        let constants = Counts { r32: lowered.constants32.len(), r64: lowered.constants64.len(), pred: 0 };
        let allocated = registers::allocate(&lowered.drafts, &lowered.tables, lowered.counts, constants)?;
        Some(Self {
            instrs: allocated.code,
            pool: allocated.pool,
            tables: lowered.tables,
            counts: allocated.counts,
            constants32: lowered.constants32,
            constants64: lowered.constants64,
            ordered_atomics: lowered.ordered_atomics,
            origins: lowered.origins,
        })
    }
}

/// A location and what it was inlined at, as file and line.
fn chain(module: &ast::Module, location: Option<&ast::Location>) -> Vec<(String, u32)> {
    let mut lines = Vec::new();
    let mut next = location;
    while let Some(location) = next {
        let file = module.files.iter().find(|(index, _)| *index == location.file);
        lines.push((file.map_or_else(String::new, |(_, name)| name.clone()), location.line));
        next = location.inlined_at.as_deref();
    }
    lines
}
