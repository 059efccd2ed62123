//! The common cases, many bytes at once: all is old, or the warp's own.

use super::order::Order;
use super::stamp::{self, IN_FLIGHT, KIND, LANES, WARP, WARPS};

/// What one warp may find in stamps and go on.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    start: i32,
    floor: i32,
    /// Stamps of the warp's own below this are ordered.
    own: i32,
    warp: i32,
}

impl Limits {
    /// `written`: bytes must be. Without `races`, everything is old.
    pub fn new(order: &Order, warp: u32, written: bool, races: bool) -> Self {
        let time = |clock| stamp::at(clock).cast_signed();
        Self {
            start: if written { time(order.start) } else { 0 },
            floor: if races { time(order.floor) } else { IN_FLIGHT.cast_signed() },
            own: time(order.knows[warp as usize][warp as usize] + 1),
            warp: (warp << 5).cast_signed(),
        }
    }

    // Stamps are not negative, so the sign of a difference is the comparison, and signs are gathered by `|` and `&`:
    // this makes vector code without masks.

    /// Whether all last writes are since the start and, like all reads, before the floor.
    #[inline(always)]
    pub fn are_old(&self, writes: &[u32], reads: &[u32]) -> bool {
        let below = self.floor - 1;
        let mut bad = 0;
        for (&write, &read) in writes.iter().zip(reads) {
            let (write, read) = (write.cast_signed(), read.cast_signed());
            bad |= write.wrapping_sub(self.start) | below.wrapping_sub(write) | below.wrapping_sub(read);
        }
        bad >= 0
    }

    /// Negative if an access of `thread` (warp and lane as in stamps) is ordered after that of the stamp.
    #[inline(always)]
    fn ordered(&self, stamp: i32, thread: i32) -> i32 {
        const OF_WARP: i32 = (WARP | WARPS).cast_signed();
        const OF_THREAD: i32 = (WARP | LANES | KIND).cast_signed();
        // x - 1 is negative only if x is 0, since x is not negative.
        let by_warp = ((stamp ^ self.warp) & OF_WARP).wrapping_sub(1);
        let by_thread = ((stamp ^ thread) & OF_THREAD).wrapping_sub(1);
        stamp.wrapping_sub(self.floor)
            | (stamp.wrapping_sub(self.own) & by_warp)
            | (stamp.wrapping_sub(IN_FLIGHT.cast_signed()) & by_thread)
    }

    /// Whether all last writes are since the start and, like all reads, before the floor, or by the warp and ordered,
    /// or by the very thread. `N` bytes a lane, from `lane` on.
    #[inline(always)]
    pub fn are_ordered<const N: usize>(&self, writes: &[u32], reads: &[u32], lane: u32) -> bool {
        let mut good = -1;
        let lanes = writes.chunks_exact(N).zip(reads.chunks_exact(N));
        for ((writes, reads), lane) in lanes.zip(lane.cast_signed()..) {
            let thread = self.warp | lane;
            for (&write, &read) in writes.iter().zip(reads) {
                let (write, read) = (write.cast_signed(), read.cast_signed());
                good &= self.ordered(write, thread) & self.ordered(read, thread);
                good &= !write.wrapping_sub(self.start);
            }
        }
        good < 0
    }
}

/// Whether the lanes' `N` bytes follow each other.
#[inline]
pub(super) fn are_contiguous<const N: usize>(addresses: &[u32; 32]) -> bool {
    #[allow(clippy::cast_possible_truncation, reason = "at most 16")]
    let step = N as u32;
    let mut differ = 0;
    let mut expected = addresses[0];
    for &address in addresses {
        differ |= address ^ expected;
        expected = expected.wrapping_add(step);
    }
    differ == 0
}
