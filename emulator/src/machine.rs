//! Execution of a decoded kernel: blocks over threads, warps in turn, 32 lanes at once.

use crate::fault::Fault;
use crate::memory::Memory;
use crate::program::Kernel;
use crate::report::Counters;
use crate::settings::Settings;
use std::sync::Arc;

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

/// Runs a kernel to its end. `params` is the parameter buffer, laid out as [`Kernel::params`] says.
///
/// # Errors
/// The first fault in the order of blocks, whatever the number of threads.
pub fn launch(
    _memory: &Arc<Memory>,
    _kernel: &Kernel,
    _config: &LaunchConfig,
    _params: &[u8],
    _settings: &Settings,
) -> Result<Counters, Box<Fault>> {
    todo!("lead")
}
