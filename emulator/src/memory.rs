//! The device's global memory: allocations, bounds, which bytes were written.
//!
//! Addresses are the emulator's own, the same in every run: allocations start on multiples of 512 and lie apart, so
//! that an index past the end of one hits nothing. Only memory that host and device share keeps its host address.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Where a request cannot be met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum MemoryError {
    #[error("out of memory: {asked} bytes asked for, {free} free")]
    OutOfMemory { asked: u64, free: u64 },
    #[error("{address:#x} is not the start of an allocation")]
    NotAllocated { address: u64 },
    #[error("{bytes} bytes at {address:#x} are outside every allocation{near}")]
    Outside { address: u64, bytes: u64, near: String },
}

/// The device's memory. Shared by all threads of the host program.
pub struct Memory {}

/// What one launch sees of the memory: no lock is taken per access, and nothing is freed while it lives.
pub struct View {}

/// One allocation, as kernels reach it.
pub struct Allocation {}

impl Memory {
    /// A device with `bytes` of memory. Nothing is committed before it is touched.
    pub fn new(_bytes: u64) -> Self {
        todo!()
    }
    /// Bytes free, and in all.
    pub fn free_and_total(&self) -> (u64, u64) {
        todo!()
    }
    /// Allocates; the contents count as unwritten (and read as a pattern that is no plausible value). 0 bytes are refused
    /// by the caller.
    pub fn alloc(&self, _bytes: u64) -> Result<u64, MemoryError> {
        todo!()
    }
    /// Allocates memory the host reaches at the same address (pinned, managed); counts as written, zeroed.
    pub fn alloc_host(&self, _bytes: u64) -> Result<u64, MemoryError> {
        todo!()
    }
    /// Frees; waits for running launches.
    pub fn free(&self, _address: u64) -> Result<(), MemoryError> {
        todo!()
    }
    /// Start and size of the allocation an address lies in.
    pub fn find(&self, _address: u64) -> Option<(u64, u64)> {
        todo!()
    }
    /// Copies in; marks as written.
    pub fn write(&self, _address: u64, _bytes: &[u8]) -> Result<(), MemoryError> {
        todo!()
    }
    /// Copies out; unwritten bytes come as they are.
    pub fn read(&self, _address: u64, _bytes: &mut [u8]) -> Result<(), MemoryError> {
        todo!()
    }
    /// Copies within; what is unwritten stays so. Ranges may overlap (memmove).
    pub fn copy(&self, _to: u64, _from: u64, _bytes: u64) -> Result<(), MemoryError> {
        todo!()
    }
    /// Repeats a pattern of 1, 2 or 4 bytes over `bytes` bytes.
    pub fn fill(&self, _address: u64, _pattern: &[u8], _bytes: u64) -> Result<(), MemoryError> {
        todo!()
    }
    /// For a launch.
    pub fn view(self: &Arc<Self>) -> View {
        todo!()
    }
}

impl View {
    /// The allocation that holds all of `bytes` bytes at `address`, and the offset in it. `hint` is the caller's:
    /// index of the allocation found last, tried first.
    #[inline]
    pub fn locate(&self, _hint: &mut usize, _address: u64, _bytes: u64) -> Option<(&Allocation, usize)> {
        todo!()
    }
    /// For the message of an access that [`View::locate`] refused: the nearest allocation and how far off, e.g.
    /// `4 bytes past the end of the 4096 bytes at 0x7f...`.
    pub fn nearest(&self, _address: u64, _bytes: u64) -> String {
        todo!()
    }
}

/// Offsets and sizes are within what [`View::locate`] allowed; every function asserts that (one compare).
impl Allocation {
    /// Copies `N` bytes.
    #[inline]
    pub fn load<const N: usize>(&self, _offset: usize) -> [u8; N] {
        todo!()
    }
    /// Stores `N` bytes; does not mark.
    #[inline]
    pub fn store<const N: usize>(&self, _offset: usize, _bytes: [u8; N]) {
        todo!()
    }
    /// For atomics; offset aligned.
    #[inline]
    pub fn atomic_u32(&self, _offset: usize) -> &AtomicU32 {
        todo!()
    }
    /// For atomics; offset aligned.
    #[inline]
    pub fn atomic_u64(&self, _offset: usize) -> &AtomicU64 {
        todo!()
    }
    /// Whether all of the bytes were written.
    #[inline]
    pub fn is_written(&self, _offset: usize, _bytes: usize) -> bool {
        todo!()
    }
    /// Marks as written.
    #[inline]
    pub fn mark_written(&self, _offset: usize, _bytes: usize) {
        todo!()
    }
}
