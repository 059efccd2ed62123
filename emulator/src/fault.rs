//! What can go wrong in a kernel, and where.

use std::fmt;

/// The check that failed. The driver maps it to an error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// An access outside every allocation, or across the end of one.
    OutOfBounds,
    /// An address that is no multiple of the access's size.
    Misaligned,
    /// A read of bytes nothing was written to.
    Uninitialised,
    /// An access to the destination of a copy that has not been waited for.
    InFlight,
    /// Two accesses to one byte, one of them a write, that no barrier orders.
    Race,
    /// Lanes missing where an instruction needs them: a collective in divergent code, a wrong member mask.
    Divergence,
    /// A barrier used wrongly: counts that differ, more arrivals than expected.
    Barrier,
    /// No warp can go on, or the block ran longer than allowed.
    Deadlock,
    /// `trap`.
    Trap,
    /// A device-side assertion that does not hold.
    Assert,
    /// A form of an instruction the emulator does not execute.
    Unsupported,
}

/// A place in the source, from `.loc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLine {
    /// As the compiler wrote it into `.file`.
    pub file: String,
    /// From 1.
    pub line: u32,
}

/// A kernel's failure with all that is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The check that failed.
    pub kind: FaultKind,
    /// What was found, e.g. `read of 4 bytes at shared[1024] of 1024`.
    pub message: String,
    /// Name of the kernel.
    pub kernel: String,
    /// Line of the PTX text, from 1; 0 if no instruction is to blame.
    pub ptx_line: u32,
    /// The instruction as PTX.
    pub instruction: String,
    /// Innermost source line first, then the lines it was inlined at.
    pub source: Vec<SourceLine>,
    /// blockIdx.
    pub block: [u32; 3],
    /// threadIdx of the first thread to blame, if one is.
    pub thread: Option<[u32; 3]>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "{:?} in {}, block ({x}, {y}, {z})", self.kind, self.kernel)?;
        if let Some([x, y, z]) = self.thread {
            write!(f, ", thread ({x}, {y}, {z})")?;
        }
        write!(f, ": {}", self.message)?;
        if self.ptx_line != 0 {
            write!(f, "\n    PTX line {}: {}", self.ptx_line, self.instruction)?;
        }
        for (i, SourceLine { file, line }) in self.source.iter().enumerate() {
            write!(f, "\n    {} {file}:{line}", if i == 0 { "at" } else { "inlined at" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}
