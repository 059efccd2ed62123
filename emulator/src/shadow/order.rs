//! Happens-before among the threads of a block: clocks, and who knows of whom.

use super::Lanes;

/// Clocks are below this.
pub(super) const CLOCK_END: u32 = (1 << 19) - 1;

/// Who accesses: one lane, or several of a warp together.
#[derive(Clone, Copy)]
pub(super) struct Party {
    pub warp: u32,
    pub lanes: Lanes,
}

/// An access that happened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Past {
    pub warp: u32,
    pub lanes: Lanes,
    /// The warp's clock at that time.
    pub clock: u32,
    pub write: bool,
    pub strong: bool,
}

/// Lanes, or warps, of a set.
pub(super) fn bits(set: u32) -> impl Iterator<Item = u32> {
    let mut rest = set;
    std::iter::from_fn(move || {
        let bit = (rest != 0).then(|| rest.trailing_zeros())?;
        rest &= rest - 1;
        Some(bit)
    })
}

fn max_into(row: &mut [u32; 32], other: &[u32; 32]) {
    for (a, &b) in row.iter_mut().zip(other) {
        *a = (*a).max(b);
    }
}

/// One clock for the block advances with every event; a warp's accesses carry the time of the last event that
/// concerned the warp. Nothing is reset when a block starts: what lies below the floor orders nothing any more.
pub(super) struct Order {
    pub now: u32,
    /// Time at which the block began: older writes are not the block's.
    pub start: u32,
    /// Time of the last barrier of the whole block: all that is older is ordered before all that comes.
    pub floor: u32,
    /// Time of the last barrier between warps.
    pub interval: u32,
    /// By warp.
    pub clock: [u32; 32],
    /// `knows[w][v]`: accesses of warp v up to this time are ordered before what any lane of w does.
    pub knows: [[u32; 32]; 32],
    /// The lanes of each warp that exist.
    lanes: [Lanes; 32],
    /// `lanes_known[w][j][i]`: the same for lane j and accesses of lane i, both of warp w. Empty until needed.
    lanes_known: Vec<[[u32; 32]; 32]>,
    /// Time of the warp's last barrier of some of its lanes only: below the floor, `lanes_known` says nothing.
    partial: [u32; 32],
}

impl Order {
    pub fn new() -> Self {
        Self {
            now: 0,
            start: 0,
            floor: 0,
            interval: 0,
            clock: [0; 32],
            knows: [[0; 32]; 32],
            lanes: [0; 32],
            lanes_known: Vec::new(),
            partial: [0; 32],
        }
    }

    /// Forgets everything; the block began at 1 and it is 2.
    pub fn reset(&mut self) {
        self.knows = [[0; 32]; 32];
        self.partial = [0; 32];
        self.lanes_known.clear();
        self.start = 1;
        self.now = 2;
        self.raise_floor();
    }

    pub fn begin_block(&mut self, threads: u32) {
        for (warp, lanes) in (0..).zip(&mut self.lanes) {
            *lanes = match threads.saturating_sub(32 * warp) {
                0 => 0,
                count => u32::MAX >> 32_u32.saturating_sub(count),
            };
        }
        self.start = self.now + 1;
        self.block_barrier();
    }

    fn raise_floor(&mut self) {
        self.floor = self.now;
        self.interval = self.now;
        self.clock = [self.now; 32];
    }

    pub fn block_barrier(&mut self) {
        self.now += 1;
        self.raise_floor();
    }

    /// All warps of the block.
    pub fn warps(&self) -> u32 {
        (0..32).zip(self.lanes).fold(0, |set, (warp, lanes)| set | u32::from(lanes != 0) << warp)
    }

    /// See [`Shadow::barrier`](super::Shadow::barrier).
    pub fn barrier(&mut self, arrivers: u32, waiters: u32) {
        let mut released = [0; 32];
        for warp in bits(arrivers | waiters) {
            let warp = warp as usize;
            max_into(&mut released, &self.knows[warp]);
            released[warp] = released[warp].max(self.clock[warp]);
        }
        for warp in bits(waiters) {
            max_into(&mut self.knows[warp as usize], &released);
        }
        self.now += 1;
        self.interval = self.now;
        // Of all warps, so that times tell accesses before the barrier from those after it.
        self.clock = [self.now; 32];
    }

    pub fn warp_barrier(&mut self, warp: u32, lanes: Lanes) {
        let (w, all) = (warp as usize, self.lanes[warp as usize]);
        let (lanes, clock) = (lanes & all, self.clock[w]);
        if lanes == all {
            self.knows[w][w] = clock;
        } else {
            if self.lanes_known.is_empty() {
                self.lanes_known = vec![[[0; 32]; 32]; 32];
            }
            let table = &mut self.lanes_known[w];
            let mut released = [0; 32];
            bits(lanes).for_each(|lane| max_into(&mut released, &table[lane as usize]));
            bits(lanes).for_each(|lane| released[lane as usize] = clock);
            bits(lanes).for_each(|lane| table[lane as usize] = released);
            self.partial[w] = clock;
        }
        self.now += 1;
        self.clock[w] = self.now;
    }

    /// The lanes of its warp whose accesses at `clock` a lane comes after.
    fn known_lanes(&self, warp: u32, lane: u32, clock: u32) -> Lanes {
        let own = 1 << lane;
        if self.partial[warp as usize] < self.floor || self.lanes_known.is_empty() {
            return own;
        }
        let row = &self.lanes_known[warp as usize][lane as usize];
        (0..32).zip(row).fold(own, |set, (other, &known)| set | u32::from(known >= clock) << other)
    }

    /// Whether all of the access is ordered before every one of the party's lanes.
    pub fn is_before(&self, past: &Past, party: Party) -> bool {
        past.clock < self.floor
            || self.knows[party.warp as usize][past.warp as usize] >= past.clock
            || (past.warp == party.warp
                && bits(party.lanes)
                    .all(|lane| past.lanes & !self.known_lanes(past.warp, lane, past.clock) == 0))
    }

    /// The lanes of the access that are not ordered before any of the party's lanes.
    pub fn not_before(&self, past: &Past, party: Party) -> Lanes {
        if past.clock < self.floor || self.knows[party.warp as usize][past.warp as usize] >= past.clock {
            0
        } else if past.warp == party.warp && self.partial[past.warp as usize] < self.floor {
            past.lanes & !party.lanes
        } else if past.warp == party.warp {
            bits(party.lanes)
                .fold(past.lanes, |rest, lane| rest & !self.known_lanes(past.warp, lane, past.clock))
        } else {
            past.lanes
        }
    }
}
