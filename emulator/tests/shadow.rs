//! The shadow of shared memory against vector clocks of every thread and a list of every access.

use cuda_emulator::fault::FaultKind;
use cuda_emulator::shadow::{Access, Shadow};
use rand_lcg::Lcg;

/// A generator for programs.
mod rand_lcg {
    pub struct Lcg(pub u64);

    impl Lcg {
        /// Below `end`.
        pub fn below(&mut self, end: u32) -> u32 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u32::try_from((self.0 >> 33) % u64::from(end)).unwrap()
        }
        pub fn one_in(&mut self, count: u32) -> bool {
            self.below(count) == 0
        }
    }
}

#[derive(Clone, Copy)]
struct Event {
    thread: usize,
    /// The thread's own time.
    time: u32,
    write: bool,
    strong: bool,
}

/// Vector clocks, as in any textbook: `clocks[t][u]` is the time of u up to which t comes after u.
struct Oracle {
    clocks: Vec<Vec<u32>>,
    events: Vec<Vec<Event>>,
    in_flight: Vec<Option<usize>>,
    written: Vec<bool>,
}

impl Oracle {
    fn new(bytes: usize, threads: usize) -> Self {
        let clocks = (0..threads).map(|t| (0..threads).map(|u| u32::from(t == u)).collect()).collect();
        Self {
            clocks,
            events: vec![vec![]; bytes],
            in_flight: vec![None; bytes],
            written: vec![false; bytes],
        }
    }

    fn sync(&mut self, from: &[usize], to: &[usize]) {
        let threads = self.clocks.len();
        let joined: Vec<u32> =
            (0..threads).map(|u| from.iter().map(|&t| self.clocks[t][u]).max().unwrap_or(0)).collect();
        for &t in to {
            for (own, &other) in self.clocks[t].iter_mut().zip(&joined) {
                *own = (*own).max(other);
            }
        }
        from.iter().for_each(|&t| self.clocks[t][t] += 1);
    }

    /// The hazard of one thread's access to one byte.
    fn hazard(&self, byte: usize, thread: usize, write: bool, strong: bool) -> Option<FaultKind> {
        if self.in_flight[byte].is_some() {
            return Some(FaultKind::InFlight);
        }
        if !write && !self.written[byte] {
            return Some(FaultKind::Uninitialised);
        }
        let races = self.events[byte].iter().any(|event| {
            (event.write || write)
                && !(event.strong && strong)
                && event.thread != thread
                && self.clocks[thread][event.thread] < event.time
        });
        races.then_some(FaultKind::Race)
    }

    fn record(&mut self, byte: usize, thread: usize, write: bool, strong: bool) {
        let time = self.clocks[thread][thread];
        self.events[byte].push(Event { thread, time, write, strong });
        self.written[byte] |= write;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Read(Access),
    Write(Access),
    ReadRows,
    WriteRows,
    Issue,
    Complete,
}

#[derive(PartialEq, Eq)]
enum Outcome {
    Done,
    Skipped,
    Hazard,
}

/// A block that the shadow and the oracle watch.
struct Block {
    shadow: Shadow,
    oracle: Oracle,
    threads: u32,
    /// Copies under way: warp, lanes, addresses, bytes each.
    copies: Vec<(u32, u32, [u32; 32], u32)>,
}

fn has_broadcast(lanes: u32, to: &[u32; 32]) -> bool {
    let active = || (0..32).filter(|lane| lanes >> lane & 1 != 0);
    active().any(|lane| active().any(|other| lane != other && to[lane] == to[other]))
}

fn threads_of(warp: u32, lanes: u32) -> Vec<usize> {
    (0..32).filter(|lane| lanes >> lane & 1 != 0).map(|lane| 32 * warp as usize + lane).collect()
}

impl Block {
    /// The pieces of an access: index, thread, first byte, size; those of one lane are adjacent.
    fn pieces(
        what: What,
        warp: u32,
        lanes: u32,
        addresses: &[u32],
        bytes: u32,
    ) -> Vec<(usize, usize, u32, u32)> {
        let warp = warp as usize;
        match what {
            What::ReadRows => {
                let rows = addresses.iter().enumerate();
                rows.flat_map(|(row, &a)| (0..32).map(move |lane| (row, 32 * warp + lane, a, 16))).collect()
            }
            What::WriteRows => {
                let rows = addresses.iter().enumerate();
                let part = |row, a: u32, i: u32| (row, 32 * warp + 4 * (row % 8) + i as usize, a + 4 * i, 4);
                rows.flat_map(|(row, &a)| (0..4).map(move |i| part(row, a, i))).collect()
            }
            _ => (0..32)
                .filter(|lane| lanes >> lane & 1 != 0)
                .map(|lane| (lane, 32 * warp + lane, addresses[lane], bytes))
                .collect(),
        }
    }

    /// The hazard the oracle finds, if any: kind and index. Then it is as if the access had not been.
    fn expect(&mut self, what: What, pieces: &[(usize, usize, u32, u32)]) -> Option<(FaultKind, usize)> {
        let write = !matches!(what, What::Read(_) | What::ReadRows);
        let strong = matches!(what, What::Read(Access::Strong) | What::Write(Access::Strong));
        let bytes =
            |&(index, thread, from, size)| (from..from + size).map(move |b| (index, thread, b as usize));
        let mut undo: Vec<(usize, bool, usize)> = vec![];
        for (index, thread, byte) in pieces.iter().flat_map(bytes) {
            if what == What::Complete {
                assert_eq!(self.oracle.in_flight[byte].take(), Some(thread));
            } else if let Some(kind) = self.oracle.hazard(byte, thread, write, strong) {
                for (byte, written, events) in undo.into_iter().rev() {
                    self.oracle.written[byte] = written;
                    self.oracle.events[byte].truncate(events);
                    self.oracle.in_flight[byte] = None;
                }
                return Some((kind, index));
            }
            undo.push((byte, self.oracle.written[byte], self.oracle.events[byte].len()));
            if what == What::Issue {
                self.oracle.in_flight[byte] = Some(thread);
            } else {
                self.oracle.record(byte, thread, write, strong);
            }
        }
        None
    }

    /// Both watch an access. Unless `dare`, the shadow sees none of those with a hazard.
    fn access(
        &mut self,
        dare: bool,
        what: What,
        warp: u32,
        lanes: u32,
        to: &[u32; 32],
        size: u32,
    ) -> Outcome {
        let rows = match what {
            What::ReadRows | What::WriteRows => &to[..size as usize],
            _ => to,
        };
        let expected = self.expect(what, &Self::pieces(what, warp, lanes, rows, size));
        if expected.is_some() && !dare {
            return Outcome::Skipped;
        }
        let shadow = &mut self.shadow;
        let found = match what {
            What::Read(access) => shadow.read(warp, lanes, to, size, access),
            What::Write(access) => shadow.write(warp, lanes, to, size, access),
            What::ReadRows => shadow.read_rows(warp, rows),
            What::WriteRows => shadow.write_rows(warp, rows),
            What::Issue => shadow.issue_async(warp, lanes, to, size),
            What::Complete => shadow.complete_async(warp, lanes, to, size),
        };
        let found = found.err().map(|hazard| (hazard.kind, hazard.lane));
        let same = match (what, found, expected) {
            // Lanes that read the same address are taken at once: of several hazards, another may come first.
            (What::Read(Access::Weak), Some(_), Some(_)) if has_broadcast(lanes, to) => true,
            _ => found == expected,
        };
        assert!(same, "{found:?} for {expected:?}: {what:?} by {lanes:#x} of warp {warp} at {to:?}, {size}");
        if found.is_some() { Outcome::Hazard } else { Outcome::Done }
    }

    fn live(&self, warp: u32) -> u32 {
        u32::MAX.checked_shr(32_u32.saturating_sub(self.threads - 32 * warp)).unwrap_or(0)
    }

    fn barrier(&mut self, arrivers: u32, waiters: u32) {
        let warps = self.threads.div_ceil(32);
        let threads = |set: u32| -> Vec<usize> {
            let warps = (0..warps).filter(|w| set >> w & 1 != 0);
            warps.flat_map(|w| threads_of(w, self.live(w))).collect()
        };
        let (from, to) = (threads(arrivers), threads(waiters));
        self.oracle.sync(&from, &to);
        if (arrivers, waiters) == (u32::MAX, u32::MAX) {
            self.shadow.block_barrier();
        } else {
            self.shadow.barrier(arrivers, waiters);
        }
    }

    fn random_barrier(&mut self, random: &mut Lcg, warp: u32, lanes: u32) {
        let sets = 1 << self.threads.div_ceil(32);
        match random.below(8) {
            0 => self.barrier(u32::MAX, u32::MAX),
            1..4 => {
                let waiters = random.below(sets);
                self.barrier(random.below(sets) | waiters, waiters);
            }
            _ => {
                self.shadow.warp_barrier(warp, lanes);
                self.oracle.sync(&threads_of(warp, lanes), &threads_of(warp, lanes));
            }
        }
    }

    fn random_access(&mut self, random: &mut Lcg, warp: u32, lanes: u32, weak: bool) -> Outcome {
        let bytes = u32::try_from(self.oracle.written.len()).unwrap();
        let mut size = 1 << random.below(5);
        let mut align = if random.one_in(4) { 1 } else { size };
        let strength = if weak || random.one_in(2) { Access::Weak } else { Access::Strong };
        let full = self.live(warp) == u32::MAX;
        let (what, lanes) = match random.below(12) {
            0..4 => (What::Read(strength), lanes),
            4..8 => (What::Write(strength), lanes),
            8 if full => (What::ReadRows, u32::MAX),
            9 if full => (What::WriteRows, u32::MAX),
            10 if !self.copies.is_empty() => {
                let index = random.below(u32::try_from(self.copies.len()).unwrap()) as usize;
                let (warp, lanes, to, size) = self.copies.swap_remove(index);
                return self.access(true, What::Complete, warp, lanes, &to, size);
            }
            11 => (What::Issue, lanes),
            _ => (What::Read(Access::Weak), lanes),
        };
        let rows = matches!(what, What::ReadRows | What::WriteRows);
        if rows {
            (size, align) = (16, if random.one_in(4) { 4 } else { 16 });
        }
        let to = addresses(random, bytes, size, align);
        let size = if rows { 8 << random.below(3) } else { size };
        let outcome = self.access(random.one_in(16), what, warp, lanes, &to, size);
        if what == What::Issue && outcome == Outcome::Done {
            self.copies.push((warp, lanes, to, size));
        }
        outcome
    }
}

/// Addresses of `bytes` bytes within the block, aligned to `align`.
fn addresses(random: &mut Lcg, space: u32, bytes: u32, align: u32) -> [u32; 32] {
    let last = (space - bytes) / align;
    let base = random.below(last + 1);
    let style = random.below(6);
    std::array::from_fn(|lane| {
        let lane = u32::try_from(lane).unwrap();
        let step = bytes / align;
        let at = match style {
            0 | 1 => base % (last + 1).saturating_sub(31 * step).max(1) + lane * step,
            2 => base,
            3 => base + lane / 8 * step,
            4 => (lane * step) ^ 3,
            _ => random.below(last + 1),
        };
        at % (last + 1) * align
    })
}

fn lanes_of(random: &mut Lcg, live: u32) -> u32 {
    let lanes = match random.below(6) {
        0..3 => u32::MAX,
        3 => 1 << random.below(32),
        4 => 0xffff << (16 * random.below(2)),
        _ => random.below(u32::MAX),
    } & live;
    if lanes == 0 { live & live.wrapping_neg() } else { lanes }
}

/// Random steps of one block until a hazard or the end: how many accesses went well, and whether one did not.
fn run_block(shadow: Shadow, random: &mut Lcg, warps: u32) -> (Shadow, u32, bool) {
    let threads = 32 * warps - if random.one_in(3) { random.below(31) } else { 0 };
    let bytes = [48, 256, 1024][random.below(3) as usize];
    let oracle = Oracle::new(bytes as usize, threads as usize);
    let mut block = Block { shadow, oracle, threads, copies: vec![] };
    block.shadow.begin_block(bytes as usize, threads);
    if random.below(4) != 0 {
        for at in (0..bytes).step_by(4) {
            let (warp, lane) = (at / 4 % threads / 32, at / 4 % threads % 32);
            let done = block.access(true, What::Write(Access::Weak), warp, 1 << lane, &[at; 32], 4);
            assert!(done == Outcome::Done, "bytes written once each");
        }
        block.barrier(u32::MAX, u32::MAX);
    }
    let mut good = 0;
    let (barriers, weak) = (1 + random.below(4), random.one_in(2));
    for _ in 0..100 {
        let warp = random.below(warps);
        let lanes = lanes_of(random, block.live(warp));
        if random.below(6) < barriers {
            block.random_barrier(random, warp, lanes);
            continue;
        }
        match block.random_access(random, warp, lanes, weak) {
            Outcome::Hazard => return (block.shadow, good, true),
            Outcome::Done => good += 1,
            Outcome::Skipped => {}
        }
    }
    (block.shadow, good, false)
}

#[test]
fn equals_vector_clocks_on_random_programs() {
    let (mut shadow, mut random) = (Shadow::new(), Lcg(7));
    let (mut hazards, mut accesses) = (0, 0);
    for round in 0..6000 {
        let (after, good, hazard) = run_block(shadow, &mut random, 1 + round % 5);
        shadow = after;
        hazards += u32::from(hazard);
        accesses += good;
    }
    println!("{accesses} accesses in order, {hazards} hazards");
    assert!(hazards > 3000 && accesses > 50_000, "the programs are too tame or too wild");
}
