//! What is known about every byte of a block's shared memory: written?, being copied to?, by whom touched since when.
//!
//! Happens-before, per thread of the block: program order, barriers of the block (all threads, or the warps of a
//! named barrier), `bar.warp.sync` among its member lanes, and the end of an asynchronous copy for its issuer.

use crate::fault::FaultKind;

/// A set of lanes of a warp.
pub type Lanes = u32;

/// A conflict, found by an access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hazard {
    /// [`FaultKind::Race`], [`FaultKind::Uninitialised`] or [`FaultKind::InFlight`].
    pub kind: FaultKind,
    /// Index into the access's addresses: the lane to blame, or the row of a collective access.
    pub lane: usize,
    /// E.g. `shared[1028] was written by thread 37 and is read by thread 4, and no barrier is between`.
    pub message: String,
}

/// How an access takes part in races.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Ordinary.
    Weak,
    /// Atomic, volatile, relaxed or stronger: does not race with its like.
    Strong,
}

/// The shadow of one block's shared memory. One is kept by every worker thread and reused for block after block.
pub struct Shadow {}

impl Shadow {
    /// Empty.
    pub fn new() -> Self {
        todo!()
    }
    /// A new block of `threads` threads with `bytes` of shared memory, all unwritten.
    pub fn begin_block(&mut self, _bytes: usize, _threads: u32) {
        todo!()
    }

    /// All threads of the block met.
    pub fn block_barrier(&mut self) {
        todo!()
    }
    /// The warps of `arrivers` arrived at a named barrier, and those of `waiters` (both sets of warps) wait for them
    /// and go on: everything the arrivers did before is ordered before everything the waiters do from now on.
    pub fn barrier(&mut self, _arrivers: u32, _waiters: u32) {
        todo!()
    }
    /// `bar.warp.sync` of `lanes` of `warp`.
    pub fn warp_barrier(&mut self, _warp: u32, _lanes: Lanes) {
        todo!()
    }

    /// Every lane of `lanes` reads `bytes` (1, 2, 4, 8 or 16) at its own address.
    pub fn read(
        &mut self,
        _warp: u32,
        _lanes: Lanes,
        _addresses: &[u32; 32],
        _bytes: u32,
        _access: Access,
    ) -> Result<(), Hazard> {
        todo!()
    }
    /// The same for writes. Two lanes that write one byte in one instruction race, too.
    pub fn write(
        &mut self,
        _warp: u32,
        _lanes: Lanes,
        _addresses: &[u32; 32],
        _bytes: u32,
        _access: Access,
    ) -> Result<(), Hazard> {
        todo!()
    }
    /// `ldmatrix`: all lanes of the warp read the 16 bytes at each of the addresses (8, 16 or 32 of them).
    pub fn read_rows(&mut self, _warp: u32, _addresses: &[u32]) -> Result<(), Hazard> {
        todo!()
    }
    /// `stmatrix`: lane 4i..4i+4 of the warp write the 16 bytes of row i of each group of 8 rows.
    pub fn write_rows(&mut self, _warp: u32, _addresses: &[u32]) -> Result<(), Hazard> {
        todo!()
    }
    /// `cp.async` issued: the destination is in flight until [`Shadow::complete_async`] by the same lane.
    pub fn issue_async(
        &mut self,
        _warp: u32,
        _lanes: Lanes,
        _addresses: &[u32; 32],
        _bytes: u32,
    ) -> Result<(), Hazard> {
        todo!()
    }
    /// The copy has been waited for: its bytes were written by the lane, now.
    pub fn complete_async(
        &mut self,
        _warp: u32,
        _lanes: Lanes,
        _addresses: &[u32; 32],
        _bytes: u32,
    ) -> Result<(), Hazard> {
        todo!()
    }
}
