//! What is known about every byte of a block's shared memory: written?, being copied to?, by whom touched since when.
//!
//! Happens-before, per thread of the block: program order, barriers of the block (all threads, or the warps of a
//! named barrier), `bar.warp.sync` among its member lanes, and the end of an asynchronous copy for its issuer.
//!
//! Exact: the first access that conflicts with an earlier one is found whatever lies between them, and none is
//! invented. One exception: after half a million barriers of warps without one of the block, the history starts anew.

mod access;
mod bytes;
mod fast;
mod message;
mod order;
mod stamp;

use crate::fault::FaultKind;
use bytes::{Action, Bytes};
use order::{CLOCK_END, Order};

/// A set of lanes of a warp.
pub type Lanes = u32;

/// A conflict, found by an access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hazard {
    /// [`FaultKind::Race`], [`FaultKind::Uninitialised`] or [`FaultKind::InFlight`].
    pub kind: FaultKind,
    /// Index into the access's addresses: the lane to blame, or the row of a collective access.
    pub lane: usize,
    /// Both are writes, of two warps.
    pub of_writes: bool,
    /// E.g. `shared[1028] was written by thread 37 (warp 1) and is read by thread 4 (warp 0) with no barrier
    /// between`.
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

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

/// The shadow of one block's shared memory. One is kept by every worker thread and reused for block after block.
///
/// Every range an access names must lie within the bytes of the block. After a [`Hazard`] the state is good for
/// [`Shadow::begin_block`] only.
pub struct Shadow {
    order: Order,
    bytes: Bytes,
    has_avx2: bool,
}

impl Default for Shadow {
    fn default() -> Self {
        Self::new()
    }
}

impl Shadow {
    /// Empty; checks all.
    pub fn new() -> Self {
        Self::with_checks(true, true)
    }

    /// Empty; checks reads of what nothing was written to (`initialised`), or races and copies in flight, or both.
    pub fn with_checks(initialised: bool, races: bool) -> Self {
        Self { order: Order::new(), bytes: Bytes::new(initialised, races), has_avx2: has_avx2() }
    }

    /// A new block of `threads` threads with `bytes` of shared memory, all unwritten.
    pub fn begin_block(&mut self, bytes: usize, threads: u32) {
        self.bytes.grow(bytes);
        self.bytes.end_copies();
        self.bytes.forget_lists();
        if self.order.now >= CLOCK_END / 2 {
            self.bytes.rebase(CLOCK_END);
            self.order.reset();
        }
        self.order.begin_block(threads);
    }

    /// All threads of the block met.
    pub fn block_barrier(&mut self) {
        self.bytes.forget_lists();
        if self.order.now >= CLOCK_END / 2 {
            self.restart_time();
        } else {
            self.order.block_barrier();
        }
    }

    /// As if at a barrier of the block.
    fn restart_time(&mut self) {
        self.bytes.rebase(self.order.start);
        self.order.reset();
    }

    fn make_time(&mut self) {
        if self.order.now >= CLOCK_END - 2 {
            self.restart_time();
        }
    }

    /// The warps of `arrivers` arrived at a named barrier, and those of `waiters` (both sets of warps) wait for them
    /// and go on: everything the arrivers did before is ordered before everything the waiters do from now on. Who
    /// waits has arrived, be it in `arrivers` or not.
    pub fn barrier(&mut self, arrivers: u32, waiters: u32) {
        if self.order.warps() & !waiters == 0 {
            return self.block_barrier();
        }
        self.make_time();
        self.order.barrier(arrivers, waiters);
    }

    /// `bar.warp.sync` of `lanes` of `warp`.
    pub fn warp_barrier(&mut self, warp: u32, lanes: Lanes) {
        self.make_time();
        self.order.warp_barrier(warp, lanes);
    }

    /// Every lane of `lanes` reads `bytes` (1, 2, 4, 8 or 16) at its own address.
    ///
    /// # Errors
    /// The [`Hazard`] found first.
    #[inline]
    pub fn read(
        &mut self,
        warp: u32,
        lanes: Lanes,
        addresses: &[u32; 32],
        bytes: u32,
        access: Access,
    ) -> Result<(), Hazard> {
        match (access, bytes) {
            (Access::Weak, 1) => self.weak::<1, false>(warp, lanes, addresses),
            (Access::Weak, 2) => self.weak::<2, false>(warp, lanes, addresses),
            (Access::Weak, 4) => self.weak::<4, false>(warp, lanes, addresses),
            (Access::Weak, 8) => self.weak::<8, false>(warp, lanes, addresses),
            (Access::Weak, 16) => self.weak::<16, false>(warp, lanes, addresses),
            (access, _) => {
                let action = if access == Access::Weak { Action::Read } else { Action::StrongRead };
                self.any(warp, lanes, addresses, bytes, action)
            }
        }
    }

    /// The same for writes. Two lanes that write one byte in one instruction race, too. After a race the lanes before
    /// its lane count as having written, and the caller may go on with those after it.
    ///
    /// # Errors
    /// The [`Hazard`] found first, in ascending order of lanes.
    #[inline]
    pub fn write(
        &mut self,
        warp: u32,
        lanes: Lanes,
        addresses: &[u32; 32],
        bytes: u32,
        access: Access,
    ) -> Result<(), Hazard> {
        match (access, bytes) {
            (Access::Weak, 1) => self.weak::<1, true>(warp, lanes, addresses),
            (Access::Weak, 2) => self.weak::<2, true>(warp, lanes, addresses),
            (Access::Weak, 4) => self.weak::<4, true>(warp, lanes, addresses),
            (Access::Weak, 8) => self.weak::<8, true>(warp, lanes, addresses),
            (Access::Weak, 16) => self.weak::<16, true>(warp, lanes, addresses),
            (access, _) => {
                let action = if access == Access::Weak { Action::Write } else { Action::StrongWrite };
                self.any(warp, lanes, addresses, bytes, action)
            }
        }
    }

    fn any(
        &mut self,
        warp: u32,
        lanes: Lanes,
        addresses: &[u32; 32],
        bytes: u32,
        action: Action,
    ) -> Result<(), Hazard> {
        match bytes {
            1 => self.each::<1>(warp, lanes, addresses, action),
            2 => self.each::<2>(warp, lanes, addresses, action),
            4 => self.each::<4>(warp, lanes, addresses, action),
            8 => self.each::<8>(warp, lanes, addresses, action),
            16 => self.each::<16>(warp, lanes, addresses, action),
            _ => unreachable!("no instruction accesses {bytes} bytes a lane"),
        }
    }

    /// `ldmatrix`: all lanes of the warp read the 16 bytes at each of the addresses (8, 16 or 32 of them).
    ///
    /// # Errors
    /// The [`Hazard`] found first.
    pub fn read_rows(&mut self, warp: u32, addresses: &[u32]) -> Result<(), Hazard> {
        self.rows(warp, addresses)
    }

    /// `stmatrix`: lane 4i..4i+4 of the warp write the 16 bytes of row i of each group of 8 rows.
    ///
    /// # Errors
    /// The [`Hazard`] found first.
    pub fn write_rows(&mut self, warp: u32, addresses: &[u32]) -> Result<(), Hazard> {
        addresses.iter().enumerate().try_for_each(|(row, &address)| self.write_row(warp, row, address))
    }

    /// `cp.async` issued: the destination is in flight until [`Shadow::complete_async`] by the same lane. Until then
    /// every access to it is refused, another copy and the issuer's own accesses included.
    ///
    /// # Errors
    /// The [`Hazard`] found first.
    pub fn issue_async(
        &mut self,
        warp: u32,
        lanes: Lanes,
        addresses: &[u32; 32],
        bytes: u32,
    ) -> Result<(), Hazard> {
        self.any(warp, lanes, addresses, bytes, Action::Issue)
    }

    /// The copy has been waited for: its bytes were written by the lane, now.
    ///
    /// # Errors
    /// The [`Hazard`] found first: none if the same copy was issued.
    pub fn complete_async(
        &mut self,
        warp: u32,
        lanes: Lanes,
        addresses: &[u32; 32],
        bytes: u32,
    ) -> Result<(), Hazard> {
        self.any(warp, lanes, addresses, bytes, Action::Complete)
    }
}
