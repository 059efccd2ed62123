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

/// The stamps of a run.
#[inline(always)]
pub(super) fn run<const N: usize>(stamps: &[u32], byte: usize) -> &[u32; N] {
    stamps[byte..byte + N].first_chunk().expect("as long as that")
}

/// The same to write to.
#[inline(always)]
pub(super) fn run_mut<const N: usize>(stamps: &mut [u32], byte: usize) -> &mut [u32; N] {
    stamps[byte..byte + N].first_chunk_mut().expect("as long as that")
}

// Stamps are not negative, so the sign of a difference is the comparison, and signs are gathered by `|` and `&`: this
// makes vector code without masks.
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

    /// Makes `bad` negative where the last write is not since the start or, like reads, not before the floor.
    #[inline(always)]
    pub fn gather_old<const N: usize>(&self, bad: &mut [i32; N], writes: &[u32; N], reads: &[u32; N]) {
        let below = self.floor - 1;
        for i in 0..N {
            let (write, read) = (writes[i].cast_signed(), reads[i].cast_signed());
            bad[i] |= write.wrapping_sub(self.start) | below.wrapping_sub(write) | below.wrapping_sub(read);
        }
    }

    /// Whether all last writes are since the start and, like all reads, before the floor.
    #[inline(always)]
    pub fn are_old<const N: usize>(&self, writes: &[u32; N], reads: &[u32; N]) -> bool {
        let mut bad = [0; N];
        self.gather_old(&mut bad, writes, reads);
        bad.iter().fold(0, |all, bad| all | bad) >= 0
    }

    /// The same of a longer run.
    #[inline(always)]
    pub fn all_are_old(&self, writes: &[u32], reads: &[u32]) -> bool {
        let mut bad = [0];
        for (&write, &read) in writes.iter().zip(reads) {
            self.gather_old(&mut bad, &[write], &[read]);
        }
        bad[0] >= 0
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

    /// Makes `bad` negative where the last write is not since the start or, like reads, neither before the floor, nor
    /// by the warp and ordered, nor by the very lane.
    #[inline(always)]
    pub fn gather_ordered<const N: usize>(
        &self,
        bad: &mut [i32; N],
        writes: &[u32; N],
        reads: &[u32; N],
        lane: u32,
    ) {
        let thread = self.warp | lane.cast_signed();
        for i in 0..N {
            let (write, read) = (writes[i].cast_signed(), reads[i].cast_signed());
            bad[i] |=
                !(self.ordered(write, thread) & self.ordered(read, thread)) | write.wrapping_sub(self.start);
        }
    }

    /// The same of all lanes, from lane 0 on.
    #[inline(always)]
    pub fn all_are_ordered<const N: usize>(&self, writes: &[u32], reads: &[u32]) -> bool {
        let mut bad = [0; N];
        let (writes, reads) = (writes.as_chunks().0, reads.as_chunks().0);
        for ((writes, reads), lane) in writes.iter().zip(reads).zip(0..) {
            self.gather_ordered(&mut bad, writes, reads, lane);
        }
        bad.iter().fold(0, |all, bad| all | bad) >= 0
    }

    /// Whether nothing of that is.
    #[inline(always)]
    pub fn are_ordered<const N: usize>(&self, writes: &[u32; N], reads: &[u32; N], lane: u32) -> bool {
        let mut bad = [0; N];
        self.gather_ordered(&mut bad, writes, reads, lane);
        bad.iter().fold(0, |all, bad| all | bad) >= 0
    }
}

/// Whether the lanes' `N` bytes follow each other.
#[inline(always)]
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

/// Whether all lanes, of several, have the same address.
#[inline(always)]
pub(super) fn is_broadcast(lanes: u32, addresses: &[u32; 32]) -> bool {
    let first = addresses[lanes.trailing_zeros() as usize % 32];
    let mut differ = 0;
    for (lane, address) in addresses.iter().enumerate() {
        differ |= (address ^ first) & ((lanes >> lane) & 1).wrapping_neg();
    }
    lanes & lanes.wrapping_sub(1) != 0 && differ == 0
}
