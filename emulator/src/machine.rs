//! Execution of a decoded kernel: blocks over threads, warps in turn, 32 lanes at once.

#![allow(
    clippy::cast_possible_truncation,
    reason = "registers are bits, and narrow ones are parts of wide ones"
)]
#![allow(
    clippy::needless_range_loop,
    reason = "a loop over lanes indexes several rows at once, and vectorises"
)]

mod access;
mod alu;
mod atomic;
mod block;
mod collective;
mod copy;
mod elements;
mod external;
mod lanes;
mod run;
mod warp;
mod watch;
pub mod window;

use crate::fault::{Fault, FaultKind};
use crate::memory::{Memory, View};
use crate::numeric::simd::Simd;
use crate::program::{Code, Kernel};
use crate::report::Counters;
use crate::settings::{Order, Settings};
use block::Block;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Shape of a launch. Checked by the driver: no zero, at most 1024 threads, grid y and z at most 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
}

/// Warp instructions after which a block that has not ended is taken to wait in vain.
pub const MOST_INSTRUCTIONS: u64 = 1 << 32;

/// What all blocks of a launch share.
struct Launch<'a> {
    kernel: &'a Kernel,
    code: &'a Code,
    config: LaunchConfig,
    params: &'a [u8],
    settings: &'a Settings,
    view: View,
    simd: Simd,
    threads: u32,
    most_instructions: u64,
}

/// Why a block stopped. The launch adds kernel, place and block.
struct Stop {
    kind: FaultKind,
    message: String,
    /// Instruction, if one is to blame.
    pc: Option<u32>,
    /// Thread of the block, if one is.
    thread: Option<u32>,
}

/// Runs a kernel to its end. `params` is the parameter buffer, laid out as [`Kernel::params`] says.
///
/// # Errors
/// The first fault in the order of blocks, whatever the number of threads.
pub fn launch(
    memory: &Arc<Memory>,
    kernel: &Kernel,
    config: &LaunchConfig,
    params: &[u8],
    settings: &Settings,
) -> Result<Counters, Box<Fault>> {
    launch_within(MOST_INSTRUCTIONS, memory, kernel, config, params, settings)
}

/// [`launch`] with another limit than [`MOST_INSTRUCTIONS`].
///
/// # Errors
/// As [`launch`].
pub fn launch_within(
    most_instructions: u64,
    memory: &Arc<Memory>,
    kernel: &Kernel,
    config: &LaunchConfig,
    params: &[u8],
    settings: &Settings,
) -> Result<Counters, Box<Fault>> {
    let code = match &kernel.code {
        Ok(code) => code,
        Err(unsupported) => {
            return Err(Box::new(Fault {
                kind: FaultKind::Unsupported,
                message: unsupported.message.clone(),
                kernel: kernel.name.clone(),
                ptx_line: unsupported.line,
                instruction: unsupported.instruction.clone(),
                source: Vec::new(),
                block: [0; 3],
                thread: None,
            }));
        }
    };
    let launch = Launch {
        kernel,
        code,
        config: *config,
        params,
        settings,
        view: memory.view(),
        simd: Simd::detect(),
        threads: config.block.iter().product(),
        most_instructions,
    };
    launch.run()
}

impl Launch<'_> {
    fn run(&self) -> Result<Counters, Box<Fault>> {
        let blocks = self.config.grid.iter().map(|&n| u64::from(n)).product::<u64>();
        // Sums of floats by atomics depend on the order of blocks: then one after the other.
        let workers = if self.code.ordered_atomics { 1 } else { self.settings.threads.max(1) };
        let workers = usize::try_from(blocks).unwrap_or(usize::MAX).min(workers);
        let next = AtomicU64::new(0);
        // Blocks after the first faulty one need not run.
        let stop_at = AtomicU64::new(u64::MAX);
        let outcome = Mutex::new((Counters::default(), None::<(u64, Box<Fault>)>));
        let work = || {
            let mut block = Block::new(self);
            loop {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                if turn >= blocks || turn > stop_at.load(Ordering::Relaxed) {
                    break;
                }
                let index = self.block_of_turn(turn, blocks);
                if let Err(stop) = block.run(index) {
                    let fault = self.fault(*stop, self.block_index(index));
                    stop_at.fetch_min(turn, Ordering::Relaxed);
                    let mut outcome = outcome.lock().expect("no worker panics with the lock");
                    if outcome.1.as_ref().is_none_or(|(first, _)| turn < *first) {
                        outcome.1 = Some((turn, Box::new(fault)));
                    }
                }
            }
            let counters = block.counters();
            outcome.lock().expect("no worker panics with the lock").0.add(&counters);
        };
        if workers == 1 {
            work();
        } else {
            std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
        }
        let (mut counters, fault) = outcome.into_inner().expect("no worker panics with the lock");
        counters.blocks = blocks;
        counters.classify(self.kernel);
        fault.map_or(Ok(counters), |(_, fault)| Err(fault))
    }

    /// Which block comes when: ascending, descending, or shuffled by the seed.
    fn block_of_turn(&self, turn: u64, blocks: u64) -> u64 {
        match self.settings.order {
            Order::Early => turn,
            Order::Late => blocks - 1 - turn,
            Order::Seed(seed) => block::permuted(turn, blocks, seed),
        }
    }

    fn block_index(&self, index: u64) -> [u32; 3] {
        let [x, y, _] = self.config.grid.map(u64::from);
        [index % x, index / x % y, index / (x * y)].map(|n| u32::try_from(n).expect("within the grid"))
    }

    fn thread_index(&self, thread: u32) -> [u32; 3] {
        let [x, y, _] = self.config.block;
        [thread % x, thread / x % y, thread / (x * y)]
    }

    fn fault(&self, stop: Stop, block: [u32; 3]) -> Fault {
        let (ptx_line, instruction, source) = match stop.pc {
            Some(pc) => self.kernel.describe(pc as usize),
            None => (0, String::new(), Vec::new()),
        };
        Fault {
            kind: stop.kind,
            message: stop.message,
            kernel: self.kernel.name.clone(),
            ptx_line,
            instruction,
            source,
            block,
            thread: stop.thread.map(|thread| self.thread_index(thread)),
        }
    }
}
