//! Counters of launches, as JSON and as a table.

use crate::fault::Fault;
use crate::machine::LaunchConfig;
use crate::program::Kernel;
use crate::traffic;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// Accesses of warps to global memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Global {
    /// Instructions.
    pub requests: u64,
    /// Sectors of 32 bytes they touched.
    pub sectors: u64,
    /// Bytes they touched; a byte that several lanes of an instruction touch counts once.
    pub bytes: u64,
    /// Of the sectors, those of instructions with 16 bytes or more per lane.
    pub wide_sectors: u64,
    /// Of the bytes, the same.
    pub wide_bytes: u64,
}

impl Global {
    /// Counts one instruction.
    #[inline]
    pub(crate) fn count(&mut self, lanes: u32, addresses: &[u64; 32], bytes: u32) {
        let sectors = u64::from(traffic::sectors(lanes, addresses, bytes));
        let touched = u64::from(traffic::bytes(lanes, addresses, bytes));
        self.requests += 1;
        self.sectors += sectors;
        self.bytes += touched;
        if bytes >= 16 {
            self.wide_sectors += sectors;
            self.wide_bytes += touched;
        }
    }

    fn add(&mut self, other: &Self) {
        let Self { requests, sectors, bytes, wide_sectors, wide_bytes } = other;
        self.requests += requests;
        self.sectors += sectors;
        self.bytes += bytes;
        self.wide_sectors += wide_sectors;
        self.wide_bytes += wide_bytes;
    }
}

/// What is counted while instructions execute, besides how often each did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Lanes that took part, summed over the instructions: 32 times the instructions without divergence.
    pub active_lanes: u64,
    /// Branches that some lanes of a warp took and others did not.
    pub divergent_branches: u64,
    /// Arrivals of warps at barriers of the block.
    pub barriers: u64,
    /// Loads of warps from global memory, copies to shared memory included.
    pub global_loads: Global,
    /// Stores of warps to global memory.
    pub global_stores: Global,
    /// Accesses of warps to shared memory.
    pub shared_requests: u64,
    /// Wavefronts they take at best: one per 32 lanes of up to 4 bytes, 16 of 8 or 8 of 16, if any of them takes part.
    pub shared_phases: u64,
    /// Wavefronts they took: more are bank conflicts.
    pub shared_wavefronts: u64,
    /// Atomic instructions of warps.
    pub atomics: u64,
}

/// What one launch did. Sums over all blocks, the same for every number of threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Blocks of the grid.
    pub blocks: u64,
    /// Instructions executed by warps, whatever their mask.
    pub warp_instructions: u64,
    /// Of them, `mma.sync`.
    pub mma: u64,
    /// By their first word.
    pub by_opcode: BTreeMap<String, u64>,
    /// Memory and divergence.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// By position in the program.
    #[serde(skip)]
    executed: Vec<u64>,
}

impl Traffic {
    /// Counts an access to shared memory.
    #[inline]
    pub(crate) fn count_shared(&mut self, lanes: u32, addresses: &[u32; 32], bytes: u32) {
        self.shared_requests += 1;
        self.shared_phases += u64::from(traffic::phases(lanes, bytes));
        self.shared_wavefronts += u64::from(traffic::wavefronts(lanes, addresses, bytes));
    }

    fn add(&mut self, other: &Self) {
        let Self {
            active_lanes,
            divergent_branches,
            barriers,
            global_loads,
            global_stores,
            shared_requests,
            shared_phases,
            shared_wavefronts,
            atomics,
        } = other;
        self.active_lanes += active_lanes;
        self.divergent_branches += divergent_branches;
        self.barriers += barriers;
        self.global_loads.add(global_loads);
        self.global_stores.add(global_stores);
        self.shared_requests += shared_requests;
        self.shared_phases += shared_phases;
        self.shared_wavefronts += shared_wavefronts;
        self.atomics += atomics;
    }
}

impl Counters {
    /// Of a worker: executions by position, and traffic.
    pub(crate) fn of(executed: &[u64], traffic: &Traffic) -> Self {
        Self { executed: executed.to_vec(), traffic: *traffic, ..Self::default() }
    }

    /// Adds another worker's.
    pub(crate) fn add(&mut self, other: &Self) {
        self.executed.resize(self.executed.len().max(other.executed.len()), 0);
        self.executed.iter_mut().zip(&other.executed).for_each(|(a, b)| *a += b);
        self.traffic.add(&other.traffic);
    }

    /// Fills in the sums by instruction.
    pub(crate) fn classify(&mut self, kernel: &Kernel) {
        for (pc, &times) in self.executed.iter().enumerate().filter(|(_, times)| **times > 0) {
            let opcode = kernel.opcode(pc);
            self.warp_instructions += times;
            self.mma += if opcode == "mma" { times } else { 0 };
            *self.by_opcode.entry(opcode.to_owned()).or_default() += times;
        }
    }

    /// Adds another launch of the same kernel.
    fn merge(&mut self, other: &Self) {
        self.blocks += other.blocks;
        self.warp_instructions += other.warp_instructions;
        self.mma += other.mma;
        for (opcode, times) in &other.by_opcode {
            *self.by_opcode.entry(opcode.clone()).or_default() += times;
        }
        self.traffic.add(&other.traffic);
    }
}

/// One launch.
#[derive(Serialize)]
struct Launched {
    kernel: String,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    counters: Option<Counters>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
}

/// All launches of a program, in their order; written when the program ends.
#[derive(Default, Serialize)]
pub struct Report {
    launches: Vec<Launched>,
}

impl Report {
    /// Adds a launch.
    pub fn launch(&mut self, kernel: &str, config: &LaunchConfig, result: &Result<Counters, Box<Fault>>) {
        self.launches.push(Launched {
            kernel: kernel.to_owned(),
            grid: config.grid,
            block: config.block,
            dynamic_shared: config.dynamic_shared,
            counters: result.as_ref().ok().cloned(),
            fault: result.as_ref().err().map(ToString::to_string),
        });
    }

    /// Writes the JSON beside `path`, then renames.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".part");
        let mut file = std::fs::File::create(&beside)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        std::fs::rename(beside, path)
    }

    /// A line per kernel: launches, instructions, sectors and wavefronts per request.
    pub fn table(&self) -> String {
        let mut kernels: BTreeMap<&str, (u64, Counters)> = BTreeMap::new();
        for launch in &self.launches {
            let (times, sum) = kernels.entry(&launch.kernel).or_default();
            *times += 1;
            if let Some(counters) = &launch.counters {
                sum.merge(counters);
            }
        }
        let per = |a: u64, b: u64| if b == 0 { "-".into() } else { format!("{:.2}", a as f64 / b as f64) };
        let mut text = format!(
            "{:<32} {:>8} {:>13} {:>11} {:>8} {:>8} {:>9} {:>9} {:>8}\n",
            "kernel",
            "launches",
            "instructions",
            "mma",
            "sect/ld",
            "sect/st",
            "wavefr/rq",
            "barriers",
            "diverge"
        );
        for (kernel, (times, c)) in kernels {
            let t = &c.traffic;
            text += &format!(
                "{kernel:<32} {times:>8} {:>13} {:>11} {:>8} {:>8} {:>9} {:>9} {:>8}\n",
                c.warp_instructions,
                c.mma,
                per(t.global_loads.sectors, t.global_loads.requests),
                per(t.global_stores.sectors, t.global_stores.requests),
                per(t.shared_wavefronts, t.shared_requests),
                t.barriers,
                t.divergent_branches,
            );
        }
        text
    }
}
