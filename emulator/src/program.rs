//! Syntax tree to decoded kernels.

use crate::memory::{Memory, MemoryError};
use crate::ptx::ParseError;
use std::sync::Arc;

/// Why a module cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum LoadError {
    #[error(transparent)]
    Parse(#[from] ParseError),
    #[error("PTX line {line}, {kernel}: {message}")]
    Unsupported { line: u32, kernel: String, message: String },
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
}

impl Module {
    /// Parses and decodes; allocates and fills the module's variables in `memory`.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(_text: &str, _capability: u32, _memory: &Memory) -> Result<Self, LoadError> {
        todo!("lead")
    }

    /// Frees the variables.
    pub fn unload(&self, _memory: &Memory) {
        todo!("lead")
    }
}
