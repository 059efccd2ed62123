//! What is kept of an access in 32 bits: time (19 bits, the sign stays clear), kind (2), warp (5), lane (5).
//!
//! Time on top makes "older than" one comparison, and a copy in flight, whose time is the largest, never old.

use super::Lanes;
use super::order::{CLOCK_END, Past};

/// A write; weak.
pub(super) const WEAK: u32 = 0;
/// A write; strong.
pub(super) const STRONG: u32 = 1 << 10;
/// Reads by the one lane.
pub(super) const LANE: u32 = 0;
/// Reads by lanes of the warp: all, or if the lane's bits are not 0, those in the mask.
pub(super) const GROUP: u32 = 1 << 10;
/// Reads by the warps in the mask, all in the interval of that time.
pub(super) const WARPS: u32 = 2 << 10;
/// All accesses are in the list of which the mask is the index.
pub(super) const LIST: u32 = 3 << 10;
/// Bits of the kind.
pub(super) const KIND: u32 = 3 << 10;
/// Bits of the warp.
pub(super) const WARP: u32 = 31 << 5;
/// Bits of the lane.
pub(super) const LANES: u32 = 31;
/// The destination of a copy; a write's stamp with the thread that issued it.
pub(super) const IN_FLIGHT: u32 = at(CLOCK_END);

/// The least stamp of that time.
pub(super) const fn at(clock: u32) -> u32 {
    clock << 12
}

/// A stamp of one thread.
pub(super) fn of(clock: u32, kind: u32, warp: u32, lane: u32) -> u32 {
    at(clock) | kind | warp << 5 | lane
}

/// The time of a stamp.
pub(super) fn clock(stamp: u32) -> u32 {
    stamp >> 12
}

/// The warp of a stamp.
pub(super) fn warp(stamp: u32) -> u32 {
    (stamp & WARP) >> 5
}

/// The write of a stamp.
pub(super) fn write(stamp: u32) -> Past {
    Past {
        warp: warp(stamp),
        lanes: 1 << (stamp & LANES),
        clock: clock(stamp),
        write: true,
        strong: stamp & KIND == STRONG,
    }
}

/// Whether a read's stamp says something only with its mask.
pub(super) fn has_mask(stamp: u32) -> bool {
    match stamp & KIND {
        LANE => false,
        GROUP => stamp & LANES != 0,
        _ => true,
    }
}

/// Readers of a byte: warps, and lanes of each.
pub(super) fn readers(stamp: u32, mask: u32) -> (u32, Lanes) {
    match stamp & KIND {
        LANE => (1 << warp(stamp), 1 << (stamp & LANES)),
        GROUP if stamp & LANES == 0 => (1 << warp(stamp), u32::MAX),
        GROUP => (1 << warp(stamp), mask),
        _ => (mask, u32::MAX),
    }
}

/// A weak read by lanes of one warp: stamp and mask.
pub(super) fn read(clock: u32, warp: u32, lanes: Lanes) -> (u32, u32) {
    let stamp = match lanes {
        u32::MAX => of(clock, GROUP, warp, 0),
        _ if lanes.is_power_of_two() => of(clock, LANE, warp, lanes.trailing_zeros()),
        _ => of(clock, GROUP, warp, 1),
    };
    (stamp, lanes)
}
