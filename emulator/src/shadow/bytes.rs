//! The state of every byte, and what an access does to it: the general case, byte by byte or run by run.

use super::fast::{run, run_mut};
use super::order::{CLOCK_END, Order, Party, Past, bits};
use super::stamp::{self, IN_FLIGHT, KIND, LIST, STRONG, WARPS, WEAK};
use crate::fault::FaultKind;

/// What is done to a byte.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    StrongRead,
    Write,
    StrongWrite,
    /// Becomes the destination of a copy.
    Issue,
    /// The copy is over.
    Complete,
}

impl Action {
    fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::StrongRead)
    }
    fn is_strong(self) -> bool {
        matches!(self, Self::StrongRead | Self::StrongWrite)
    }
}

/// Why an access is refused.
pub(super) struct Conflict {
    pub kind: FaultKind,
    pub byte: usize,
    /// The access it conflicts with.
    pub past: Option<Past>,
}

/// All accesses to some bytes that a later one may race with, where the stamps cannot tell them.
#[derive(Clone, Default)]
struct List {
    past: Vec<Past>,
    /// How many bytes have this list.
    bytes: usize,
}

/// The state of a byte, or of several: what `writes`, `reads` and `masks` of [`Bytes`] say.
#[derive(Clone, Copy)]
struct State {
    write: u32,
    read: u32,
    mask: u32,
}

/// By byte: the last write, and the reads that are not followed by a later read they are ordered before.
pub(super) struct Bytes {
    pub writes: Vec<u32>,
    pub reads: Vec<u32>,
    /// A set of lanes or warps, or the index of a list, as the stamp in `reads` says.
    pub masks: Vec<u32>,
    lists: Vec<List>,
    /// Bytes that are the destination of a copy.
    pub in_flight: usize,
    /// Whether reads of unwritten bytes are refused.
    pub initialised: bool,
    /// Whether races are, and accesses to copies in flight.
    pub races: bool,
}

impl Bytes {
    pub fn new(initialised: bool, races: bool) -> Self {
        let (writes, reads, masks) = Default::default();
        Self { writes, reads, masks, lists: Vec::new(), in_flight: 0, initialised, races }
    }

    pub fn grow(&mut self, bytes: usize) {
        if self.writes.len() < bytes {
            self.writes.resize(bytes, 0);
            self.reads.resize(bytes, 0);
            self.masks.resize(bytes, 0);
        }
    }

    /// Copies of the last block that nobody waited for.
    pub fn end_copies(&mut self) {
        if self.in_flight != 0 {
            self.writes.iter_mut().filter(|write| **write >= IN_FLIGHT).for_each(|write| *write = 0);
            self.in_flight = 0;
        }
    }

    /// Everything before now is ordered: no list is referred to any more.
    pub fn forget_lists(&mut self) {
        self.lists.clear();
    }

    /// Time starts anew: what was written since `start` was at time 1.
    pub fn rebase(&mut self, start: u32) {
        self.reads.fill(0);
        self.lists.clear();
        for write in self.writes.iter_mut().filter(|write| **write < IN_FLIGHT) {
            *write = if *write < stamp::at(start) { 0 } else { stamp::at(1) };
        }
    }

    /// The state of `N` bytes if it is the same: last write, reads, mask. What is dead counts as 0, old writes of this
    /// block as one of its start.
    #[inline(always)]
    fn alike<const N: usize>(&self, order: &Order, byte: usize) -> Option<State> {
        let (writes, reads): (&[u32; N], &[u32; N]) = (run(&self.writes, byte), run(&self.reads, byte));
        let (start, floor) = (stamp::at(order.start), stamp::at(order.floor));
        let write = if are_all(writes, |write| write < start) {
            0
        } else if are_all(writes, |write| write >= start && write < floor) {
            start
        } else if are_all(writes, |write| write == writes[0]) {
            writes[0]
        } else {
            return None;
        };
        if are_all(reads, |read| read < floor) {
            return Some(State { write, read: 0, mask: 0 });
        }
        let read = reads[0];
        if !are_all(reads, |other| other == read) {
            return None;
        }
        if !stamp::has_mask(read) {
            return Some(State { write, read, mask: 0 });
        }
        let masks: &[u32; N] = run(&self.masks, byte);
        are_all(masks, |mask| mask == masks[0]).then_some(State { write, read, mask: masks[0] })
    }

    /// `N` bytes from `byte` on are accessed. Bytes in the same state are treated as one.
    #[inline(always)]
    pub fn access<const N: usize>(
        &mut self,
        order: &Order,
        byte: usize,
        party: Party,
        action: Action,
    ) -> Result<(), Conflict> {
        if let Some(state) = self.alike::<N>(order, byte) {
            // The commonest is done here: a read after old writes.
            if action == Action::Read
                && state.write == stamp::at(order.start)
                && order.start < order.floor
                && self.races
                && state.read & KIND != LIST
                && let Some((read, mask)) = joined(order, state.read, state.mask, party)
            {
                *run_mut(&mut self.reads, byte) = [read; N];
                *run_mut(&mut self.masks, byte) = [mask; N];
                return Ok(());
            }
            return self.access_alike(order, byte, N, state, party, action);
        }
        for byte in byte..byte + N {
            let state = self.alike::<1>(order, byte).expect("one byte is like itself");
            self.access_alike(order, byte, 1, state, party, action)?;
        }
        Ok(())
    }

    #[inline(never)]
    fn access_alike(
        &mut self,
        order: &Order,
        byte: usize,
        bytes: usize,
        state: State,
        party: Party,
        action: Action,
    ) -> Result<(), Conflict> {
        let State { write, read, mask } = state;
        let refuse = |kind, past| Err(Conflict { kind, byte, past });
        let clock = order.clock[party.warp as usize];
        let lane = party.lanes.trailing_zeros();
        let range = byte..byte + bytes;
        if write >= IN_FLIGHT {
            if action == Action::Complete && write == stamp::of(CLOCK_END, WEAK, party.warp, lane) {
                self.in_flight -= bytes;
                self.writes[range].fill(stamp::of(clock, WEAK, party.warp, lane));
                return Ok(());
            }
            return refuse(FaultKind::InFlight, Some(stamp::write(write)));
        }
        if !action.writes() && write == 0 && self.initialised {
            return refuse(FaultKind::Uninitialised, None);
        }
        if !self.races {
            if action.writes() && action != Action::Issue {
                self.writes[range].fill(stamp::of(clock, WEAK, party.warp, lane));
            }
            return Ok(());
        }
        let listed = read & KIND == LIST;
        let race = if listed {
            conflict(order, &self.lists[mask as usize].past, party, action)
        } else {
            conflict_of_stamps(order, state, party, action)
        };
        if let Some(past) = race {
            return refuse(FaultKind::Race, Some(past));
        }
        match action {
            Action::Read if !listed => {
                if let Some((read, mask)) = joined(order, read, mask, party) {
                    self.reads[range.clone()].fill(read);
                    self.masks[range].fill(mask);
                    return Ok(());
                }
            }
            // Everything is ordered before a weak write: it alone counts from now on.
            Action::Write | Action::Complete | Action::Issue => {
                if listed {
                    self.reads[range.clone()].fill(0);
                }
                let time = if action == Action::Issue { CLOCK_END } else { clock };
                self.writes[range].fill(stamp::of(time, WEAK, party.warp, lane));
                self.in_flight += if action == Action::Issue { bytes } else { 0 };
                return Ok(());
            }
            Action::StrongWrite if !listed => {
                let past = stamp::write(write);
                if past.clock < order.floor || past.strong && order.is_before(&past, party) {
                    self.writes[range].fill(stamp::of(clock, STRONG, party.warp, lane));
                    return Ok(());
                }
            }
            _ => {}
        }
        let list = self.list(order, range.clone(), state);
        add(order, &mut self.lists[list].past, party, action);
        if action == Action::StrongWrite {
            self.writes[range].fill(stamp::of(clock, STRONG, party.warp, lane));
        }
        Ok(())
    }

    /// The list of these bytes and no others, made if need be.
    fn list(&mut self, order: &Order, range: std::ops::Range<usize>, state: State) -> usize {
        let State { write, read, mask } = state;
        let mut past = Vec::new();
        if read & KIND == LIST {
            let list = &mut self.lists[mask as usize];
            if list.bytes == range.len() {
                return mask as usize;
            }
            list.bytes -= range.len();
            past.clone_from(&list.past);
        } else {
            if write >= stamp::at(order.floor) {
                past.push(stamp::write(write));
            }
            past.extend(past_reads(read, mask));
        }
        let index = u32::try_from(self.lists.len()).expect("fewer lists than accesses");
        self.lists.push(List { past, bytes: range.len() });
        self.reads[range.clone()].fill(stamp::of(order.now, LIST, 0, 0));
        self.masks[range].fill(index);
        index as usize
    }
}

/// The reads of a byte that has no list.
fn past_reads(read: u32, mask: u32) -> impl Iterator<Item = Past> {
    let (warps, lanes) = if read == 0 { (0, 0) } else { stamp::readers(read, mask) };
    let clock = stamp::clock(read);
    bits(warps).map(move |warp| Past { warp, lanes, clock, write: false, strong: false })
}

/// Without branches, for vector code.
#[inline(always)]
fn are_all<const N: usize>(values: &[u32; N], property: impl Fn(u32) -> bool) -> bool {
    values.iter().fold(true, |all, &value| all & property(value))
}

fn races(order: &Order, past: &Past, party: Party, action: Action) -> bool {
    (past.write || action.writes()) && !(past.strong && action.is_strong()) && !order.is_before(past, party)
}

/// The access of a list that the party's races with. Of other warps first: see [`joined`].
fn conflict(order: &Order, list: &[Past], party: Party, action: Action) -> Option<Past> {
    let found = |own: bool| {
        let mut those = list.iter().filter(|past| (past.warp == party.warp) == own);
        those.find(|past| races(order, past, party, action)).copied()
    };
    found(false).or_else(|| found(true))
}

fn conflict_of_stamps(order: &Order, state: State, party: Party, action: Action) -> Option<Past> {
    let State { write, read, mask } = state;
    let past = stamp::write(write);
    if races(order, &past, party, action) {
        return Some(past);
    }
    if !action.writes() {
        return None;
    }
    let many = read & KIND == WARPS;
    past_reads(read, mask)
        .filter(|past| !(many && past.warp == party.warp))
        .find(|past| races(order, past, party, action))
}

/// Stamp and mask of the reads, one more among them; none if they take a list.
///
/// Of several warps only the warps are kept, not their lanes. That is enough: a warp that is ordered after the other
/// warps' reads of an interval has since been at a barrier of whole warps, which orders its own lanes, too.
#[inline]
fn joined(order: &Order, read: u32, mask: u32, party: Party) -> Option<(u32, u32)> {
    let Party { warp, lanes } = party;
    let (clock, then) = (order.clock[warp as usize], stamp::clock(read));
    let all_warps = |warps| (stamp::of(order.interval, WARPS, 0, 0), warps | 1 << warp);
    if read & KIND == WARPS {
        if then >= order.interval {
            // Nothing orders warps within an interval.
            return Some(all_warps(mask));
        }
        let ordered = past_reads(read, mask).all(|past| order.not_before(&past, party) == 0);
        return ordered.then(|| stamp::read(clock, warp, lanes));
    }
    let (past_warps, past_lanes) = stamp::readers(read, mask);
    let past_warp = stamp::warp(read);
    let past = Past { warp: past_warp, lanes: past_lanes, clock: then, write: false, strong: false };
    if read == 0 || order.not_before(&past, party) == 0 {
        return Some(stamp::read(clock, warp, lanes));
    }
    if past_warp == warp {
        return (then == clock).then(|| stamp::read(clock, warp, past_lanes | lanes));
    }
    (then >= order.interval).then(|| all_warps(past_warps))
}

/// Adds an access to a list; what is ordered before it and conflicts with no more than it does is dropped.
fn add(order: &Order, list: &mut Vec<Past>, party: Party, action: Action) {
    let (write, strong) = (action.writes(), action.is_strong());
    list.retain_mut(|past| {
        if (write || !past.write) && (!strong || past.strong) {
            past.lanes = order.not_before(past, party);
        }
        past.lanes != 0
    });
    let Party { warp, lanes } = party;
    let new = Past { warp, lanes, clock: order.clock[warp as usize], write, strong };
    let like = |past: &&mut Past| {
        (past.warp, past.clock, past.write, past.strong) == (warp, new.clock, write, strong)
    };
    match list.iter_mut().find(like) {
        Some(past) => past.lanes |= lanes,
        None => list.push(new),
    }
}
