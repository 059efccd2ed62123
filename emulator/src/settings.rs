//! What a run asks for, by environment variables.

use std::path::PathBuf;

/// Settings of the emulated device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `EMULATOR_COMPUTE_CAPABILITY`: 75, 80 (default) or 89.
    pub capability: u32,
    /// `EMULATOR_CHECKS`.
    pub checks: Checks,
    /// `EMULATOR_ORDER`.
    pub order: Order,
    /// `EMULATOR_THREADS`: worker threads over the blocks of a launch; default, those of the machine.
    pub threads: usize,
    /// `EMULATOR_REPORT`: where the JSON report goes when the program ends.
    pub report: Option<PathBuf>,
}

/// What is checked. Bounds of memory, divergence, barriers and deadlock always are: without them nothing could
/// go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// `alignment`: addresses that are multiples of the access's size.
    pub alignment: bool,
    /// `initialised`: reads of bytes that nothing wrote, in global and shared memory.
    pub initialised: bool,
    /// `races`: conflicting accesses to shared memory without a barrier between, copies in flight included.
    pub races: bool,
    /// `counters`: sectors, wavefronts, divergence; without, the report counts instructions only.
    pub counters: bool,
}

impl Checks {
    /// `all`, the default.
    pub const ALL: Self = Self { alignment: true, initialised: true, races: true, counters: true };
    /// `none`.
    pub const NONE: Self = Self { alignment: false, initialised: false, races: false, counters: false };
}

/// Order in which what may happen in any order does happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Warps in turn; copies complete when issued.
    Early,
    /// Warps in turn from the last; copies complete when waited for.
    Late,
    /// By a generator with this seed.
    Seed(u64),
}
