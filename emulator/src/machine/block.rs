//! A block: its shared memory, its warps in turn, its barriers.

use super::warp::{Split, Wait, Warp};
use super::{Launch, Stop};
use crate::fault::FaultKind;
use crate::program::op::{BarrierAction, Op, Reduction};
use crate::report::{Counters, Traffic};
use crate::settings::Order;
use crate::shadow::{Hazard, Shadow};

/// What memory reads as that nothing wrote.
const UNWRITTEN: u8 = 0xcd;

/// State of a block that its warps share.
pub struct Core<'a> {
    /// The launch.
    pub launch: &'a Launch<'a>,
    /// Shared memory.
    pub shared: Vec<u8>,
    /// What is known of it.
    pub shadow: Shadow,
    /// Whether the shadow is kept.
    pub shadowed: bool,
    /// How often each instruction was executed.
    pub executed: Vec<u64>,
    /// Memory traffic and the like.
    pub traffic: Traffic,
    /// Instruction being executed.
    pub pc: u32,
    /// Instructions executed in this block.
    pub clock: u64,
    barriers: [Barrier; 16],
    random: u64,
}

/// One of a block's 16 barriers.
#[derive(Clone, Copy, Default)]
struct Barrier {
    /// Warps that wait.
    waiting: u32,
    /// Warps that arrived, waiting or not.
    arrived: u32,
    /// Threads that arrived.
    threads: u32,
    /// Threads that it is for, if it was said.
    expected: Option<u32>,
    /// Of the predicates at `bar.red`: threads with a true one, threads in all.
    votes: (u32, u32),
}

/// How a warp stopped for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// It can go on.
    More,
    /// It arrived at this barrier and may have completed it.
    Arrived(u8),
    /// It waits.
    Waiting,
    /// All lanes have exited.
    Done,
}

/// A block and its warps; reused for block after block.
pub struct Block<'a> {
    core: Core<'a>,
    warps: Vec<Warp<'a>>,
}

/// A bijection of `0..n` that depends on a seed.
pub fn permuted(turn: u64, n: u64, seed: u64) -> u64 {
    let gcd = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let mixed = mix(seed);
    let mut factor = (mixed % n) | 1;
    while gcd(factor, n) != 1 {
        factor += 2;
    }
    let product = u128::from(turn) * u128::from(factor) + u128::from(mixed >> 32);
    u64::try_from(product % u128::from(n)).expect("below n")
}

/// splitmix64's output function.
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl<'a> Block<'a> {
    /// Room for the blocks of a launch.
    pub fn new(launch: &'a Launch<'a>) -> Self {
        let checks = launch.settings.checks;
        let shared = launch.kernel.static_shared + launch.config.dynamic_shared;
        let core = Core {
            launch,
            shared: vec![UNWRITTEN; shared as usize],
            shadow: Shadow::with_checks(checks.initialised, checks.races),
            shadowed: (checks.races || checks.initialised) && shared > 0,
            executed: vec![0; launch.code.instrs.len()],
            traffic: Traffic::default(),
            pc: 0,
            clock: 0,
            barriers: [Barrier::default(); 16],
            random: 0,
        };
        Self { core, warps: (0..launch.threads.div_ceil(32)).map(|id| Warp::new(launch, id)).collect() }
    }

    /// What was counted in all blocks run so far.
    pub fn counters(&self) -> Counters {
        Counters::of(&self.core.executed, &self.core.traffic)
    }

    /// Runs a block, given by its index in x, then y, then z.
    pub fn run(&mut self, index: u64) -> Result<(), Box<Stop>> {
        let launch = self.core.launch;
        self.core.begin(index);
        let block = launch.block_index(index);
        for warp in &mut self.warps {
            warp.begin(launch, block);
            warp.local.fill(UNWRITTEN);
        }
        loop {
            let mut progress = false;
            let count = self.warps.len();
            let first = self.core.first_warp(count);
            for k in 0..count {
                let w = match launch.settings.order {
                    Order::Late => count - 1 - k,
                    _ => (first + k) % count,
                };
                if !self.warps[w].splits.iter().any(|split| split.wait == Wait::No) {
                    continue;
                }
                progress = true;
                match self.core.run_warp(&mut self.warps[w])? {
                    Pause::More | Pause::Waiting => {}
                    Pause::Arrived(barrier) => self.complete(barrier),
                    Pause::Done => (0..16).for_each(|barrier| self.complete(barrier)),
                }
            }
            if self.warps.iter().all(|warp| warp.live == 0) {
                return Ok(());
            }
            if !progress {
                return Err(self.deadlock());
            }
            if self.core.clock > launch.most_instructions {
                let message = format!(
                    "the block executed {} warp instructions and has not ended: is it waiting for another block?",
                    launch.most_instructions
                );
                return Err(Box::new(Stop { kind: FaultKind::Deadlock, message, pc: None, thread: None }));
            }
        }
    }

    /// Lets the warps that wait at a barrier go on if all arrived.
    fn complete(&mut self, number: u8) {
        let live = self.live();
        let barrier = self.core.barriers[usize::from(number)];
        let done = match barrier.expected {
            Some(threads) => barrier.threads >= threads,
            None => barrier.waiting != 0 && live & !barrier.arrived == 0,
        };
        if !done || barrier.arrived == 0 {
            return;
        }
        self.core.barriers[usize::from(number)] = Barrier::default();
        if self.core.shadowed {
            if live & !barrier.waiting == 0 {
                self.core.shadow.block_barrier();
            } else {
                self.core.shadow.barrier(barrier.arrived, barrier.waiting);
            }
        }
        for warp in self.warps.iter_mut().filter(|warp| barrier.waiting >> warp.id & 1 == 1) {
            for k in 0..warp.splits.len() {
                let Split { pc, mask, wait } = warp.splits[k];
                if wait == Wait::Barrier(number) {
                    self.core.barrier_result(warp, pc, mask, barrier.votes);
                    warp.splits[k] = Split { pc: pc + 1, mask, wait: Wait::No };
                }
            }
        }
    }

    /// Warps with lanes that have not exited.
    fn live(&self) -> u32 {
        self.warps.iter().filter(|warp| warp.live != 0).fold(0, |mask, warp| mask | 1 << warp.id)
    }

    fn deadlock(&self) -> Box<Stop> {
        let waiting: Vec<_> = self.warps.iter().filter(|warp| warp.live != 0).collect();
        let (mut places, mut first) = (Vec::new(), None);
        for warp in &waiting {
            for split in &warp.splits {
                let (line, text, _) = self.core.launch.kernel.describe(split.pc as usize);
                first = first.or(Some((split.pc, 32 * warp.id + split.mask.trailing_zeros())));
                let place = format!("warp {} (lanes {:#010x}) at line {line}: {text}", warp.id, split.mask);
                if places.len() < 4 {
                    places.push(place);
                }
            }
        }
        let message = format!("no warp can go on, {} have not ended: {}", waiting.len(), places.join("; "));
        Box::new(Stop {
            kind: FaultKind::Deadlock,
            message,
            pc: first.map(|(pc, _)| pc),
            thread: first.map(|(_, thread)| thread),
        })
    }
}

impl Core<'_> {
    fn begin(&mut self, index: u64) {
        self.shared.fill(UNWRITTEN);
        self.barriers = [Barrier::default(); 16];
        self.clock = 0;
        if let Order::Seed(seed) = self.launch.settings.order {
            self.random = mix(seed ^ mix(index)) | 1;
        }
        if self.shadowed {
            self.shadow.begin_block(self.shared.len(), self.launch.threads);
        }
    }

    /// Next number of the generator (xorshift64).
    pub fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Instructions a warp may execute before it is another's turn.
    pub fn fuel(&mut self) -> u32 {
        match self.launch.settings.order {
            Order::Seed(_) => 1 + (self.random() >> 32) as u32 % 256,
            _ => 1 << 14,
        }
    }

    fn first_warp(&mut self, warps: usize) -> usize {
        match self.launch.settings.order {
            Order::Seed(_) => (self.random() >> 32) as usize % warps,
            _ => 0,
        }
    }

    /// A stop at the instruction being executed, blamed on a lane.
    #[cold]
    pub fn stop(&self, kind: FaultKind, warp: u32, lane: Option<usize>, message: String) -> Box<Stop> {
        let thread = lane.map(|lane| 32 * warp + u32::try_from(lane).expect("below 32"));
        Box::new(Stop { kind, message, pc: Some(self.pc), thread })
    }

    /// The same for what the shadow found.
    #[cold]
    pub fn hazard(&self, warp: u32, hazard: Hazard) -> Box<Stop> {
        self.stop(hazard.kind, warp, Some(hazard.lane), hazard.message)
    }

    /// A whole warp arrives at a barrier.
    pub fn arrive(
        &mut self,
        warp: &Warp,
        number: u32,
        threads: Option<u32>,
        action: BarrierAction,
        votes: u32,
    ) -> Result<u8, Box<Stop>> {
        let fail = |core: &Self, message: String| {
            Err(core.stop(FaultKind::Barrier, warp.id, Some(warp.live.trailing_zeros() as usize), message))
        };
        let Some(&before) = self.barriers.get(number as usize) else {
            return fail(self, format!("barrier {number}; a block has 16"));
        };
        if let Some(threads) = threads
            && (threads == 0 || threads % 32 != 0)
        {
            return fail(self, format!("{threads} threads at a barrier: not a multiple of 32"));
        }
        if before.arrived != 0 && before.expected != threads {
            let say = |n: Option<u32>| n.map_or("all".into(), |n| n.to_string());
            let (first, now) = (say(before.expected), say(threads));
            return fail(self, format!("barrier {number} is for {first} threads already, here for {now}"));
        }
        if before.arrived >> warp.id & 1 == 1 {
            return fail(self, format!("the warp arrives twice at barrier {number} before it completes"));
        }
        let barrier = &mut self.barriers[number as usize];
        barrier.expected = threads;
        barrier.arrived |= 1 << warp.id;
        // A warp counts whole, also the last one of a block that is not full.
        barrier.threads += 32;
        if action != BarrierAction::Arrive {
            barrier.waiting |= 1 << warp.id;
        }
        barrier.votes.0 += votes;
        barrier.votes.1 += warp.live.count_ones();
        let arrived = barrier.threads;
        if let Some(threads) = threads.filter(|&threads| arrived > threads) {
            return fail(self, format!("{arrived} threads at barrier {number}, which is for {threads}"));
        }
        Ok(u8::try_from(number).expect("below 16"))
    }

    /// Writes the result of a `bar.red`.
    fn barrier_result(&self, warp: &mut Warp, pc: u32, mask: u32, (yes, all): (u32, u32)) {
        let instr = &self.launch.code.instrs[pc as usize];
        let Op::Barrier(mode) = instr.op else { return };
        let BarrierAction::Reduce(reduction, _) = mode.action else { return };
        let result = match reduction {
            Reduction::Popc => {
                warp.set32(instr.r[0], &[yes; 32], mask);
                return;
            }
            Reduction::And => yes == all,
            Reduction::Or => yes > 0,
        };
        warp.set_pred(instr.r[0], if result { u32::MAX } else { 0 }, mask);
    }
}
