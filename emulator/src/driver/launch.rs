//! Launches of kernels.

use super::abi::{In, Out};
use super::context::Context;
use super::device::{MAX_BLOCK, MAX_GRID, MAX_THREADS};
use super::errors::{Error, Result};
use super::function::Function;
use super::graph::Op;
use super::registry::lock;
use super::state::{Driver, driver};
use super::{exports, print};
use crate::fault::{Fault, FaultKind};
use crate::machine::{self, LaunchConfig};
use std::sync::Arc;

/// A launch with all it needs; parameters were copied.
pub(super) struct KernelLaunch {
    function: Arc<Function>,
    config: LaunchConfig,
    params: Vec<u8>,
}

/// What a fault is on a card.
fn code(fault: &Fault) -> Error {
    match fault.kind {
        FaultKind::OutOfBounds => Error::ILLEGAL_ADDRESS,
        FaultKind::Misaligned => Error::MISALIGNED_ADDRESS,
        FaultKind::Unsupported => Error::NOT_SUPPORTED,
        FaultKind::Deadlock => Error::LAUNCH_TIMEOUT,
        FaultKind::Assert => Error::ASSERT,
        FaultKind::Trap
        | FaultKind::Uninitialised
        | FaultKind::InFlight
        | FaultKind::Race
        | FaultKind::Divergence
        | FaultKind::Barrier => Error::LAUNCH_FAILED,
    }
}

impl KernelLaunch {
    /// Runs the kernel. A fault is told at once on standard error, and kept in the context for calls to come.
    pub(super) fn run(&self, driver: &Driver, context: &Context) -> Result<()> {
        let kernel = &self.function.kernel;
        let result = {
            let _device = lock(&driver.device);
            machine::launch(&driver.memory, kernel, &self.config, &self.params, &driver.settings)
        };
        lock(&driver.report).launch(&kernel.name, &self.config, &result);
        if let Err(fault) = result {
            print(&fault.to_string());
            context.fail(code(&fault));
        }
        Ok(())
    }
}

/// Why a shape cannot be launched, if it cannot.
fn refusal(function: &Function, config: &LaunchConfig) -> Option<String> {
    let kernel = &function.kernel;
    let LaunchConfig { grid, block, dynamic_shared } = *config;
    let outside = |sizes: [u32; 3], most: [u32; 3]| {
        sizes.iter().zip(most).any(|(&size, most)| size == 0 || size > most)
    };
    if outside(grid, MAX_GRID) {
        return Some(format!("a grid of {grid:?} blocks; each must be 1 to {MAX_GRID:?}"));
    }
    // After the sizes, which are small enough to be multiplied then.
    let too_large = outside(block, MAX_BLOCK) || block.iter().product::<u32>() > MAX_THREADS;
    if too_large {
        return Some(format!("a block of {block:?} threads; at most {MAX_BLOCK:?} and {MAX_THREADS} in all"));
    }
    let threads = block.iter().product::<u32>();
    if threads > kernel.max_threads {
        return Some(format!("{threads} threads; the kernel's .maxntid allows {}", kernel.max_threads));
    }
    if let Some(required) = kernel.required_block.filter(|&required| required != block) {
        return Some(format!("a block of {block:?} threads; the kernel's .reqntid is {required:?}"));
    }
    let most = function.max_dynamic();
    (dynamic_shared > most).then(|| {
        format!("{dynamic_shared} bytes of dynamic shared memory; the kernel's attribute allows {most}")
    })
}

/// Where the parameters are.
#[derive(Clone, Copy)]
struct Arguments {
    /// A pointer for each.
    params: In<In<u8>>,
    /// Names and values, of a buffer with all of them.
    extra: In<u64>,
}

/// Names in `extra`.
const END: u64 = 0;
const BUFFER: u64 = 1;
const BUFFER_BYTES: u64 = 2;

impl Arguments {
    /// The parameter buffer of a launch.
    fn gather(self, driver: &Driver, function: &Function) -> Result<Vec<u8>> {
        let kernel = &function.kernel;
        if !self.extra.is_null() {
            return if self.params.is_null() {
                self.buffer(driver, function)
            } else {
                Err(Error::INVALID_VALUE)
            };
        }
        let mut buffer = vec![0; kernel.param_bytes];
        for (i, param) in kernel.params.iter().enumerate() {
            let bytes = self.params.at(i)?.bytes(param.bytes)?;
            let place =
                buffer.get_mut(param.offset..param.offset + param.bytes).ok_or(Error::INVALID_VALUE)?;
            place.copy_from_slice(&bytes);
        }
        Ok(buffer)
    }

    fn buffer(self, driver: &Driver, function: &Function) -> Result<Vec<u8>> {
        const MOST_PAIRS: usize = 8;
        let (mut buffer, mut bytes) = (None, None);
        for pair in 0..MOST_PAIRS {
            match self.extra.at(2 * pair)? {
                END => break,
                BUFFER => buffer = Some(self.extra.cast::<In<u8>>().at(2 * pair + 1)?),
                BUFFER_BYTES => bytes = Some(self.extra.cast::<In<usize>>().at(2 * pair + 1)?.get()?),
                _ => return Err(Error::INVALID_VALUE),
            }
        }
        let (Some(buffer), Some(bytes)) = (buffer, bytes) else { return Err(Error::INVALID_VALUE) };
        let wanted = function.kernel.param_bytes;
        if bytes < wanted {
            let name = &function.kernel.name;
            driver.note(&format!("{name}: {bytes} bytes of parameters; the kernel has {wanted}"));
            return Err(Error::INVALID_VALUE);
        }
        if wanted == 0 { Ok(Vec::new()) } else { buffer.bytes(wanted) }
    }
}

fn launch(handle: u64, config: LaunchConfig, stream: u64, arguments: Arguments) -> Result<()> {
    let driver = driver()?;
    let on = driver.stream(stream)?;
    on.context.check()?;
    let function = driver.functions.get(handle)?;
    if function.context.is_some_and(|context| context != on.context.id) {
        return Err(Error::INVALID_HANDLE);
    }
    if let Some(reason) = refusal(&function, &config) {
        driver.note(&format!("launch of {} refused: {reason}", function.kernel.name));
        return Err(Error::INVALID_VALUE);
    }
    let params = arguments.gather(driver, &function)?;
    driver.submit(stream, Op::Kernel(KernelLaunch { function, config, params }))
}

fn refuse_cooperative() -> Result<()> {
    driver()?.note("cooperative launches are not supported");
    Err(Error::NOT_SUPPORTED)
}

/// `CUlaunchConfig`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Config {
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) dynamic_shared: u32,
    stream: u64,
    attributes: In<Attribute>,
    attribute_count: u32,
}

/// `CUlaunchAttribute`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Attribute {
    id: u32,
    _padding: u32,
    value: [u32; 16],
}

/// `CU_LAUNCH_ATTRIBUTE_*` that would change what a kernel does. The others are hints.
const COOPERATIVE: u32 = 2;
const CLUSTER: u32 = 4;

impl Config {
    /// Refuses attributes that ask for what is not supported.
    fn check(&self, driver: &Driver) -> Result<()> {
        for i in 0..self.attribute_count as usize {
            let Attribute { id, value, .. } = self.attributes.at(i)?;
            let is_cluster = id == CLUSTER && value[..3].iter().any(|&size| size > 1);
            if is_cluster || id == COOPERATIVE && value[0] != 0 {
                driver.note("launches in clusters and cooperative launches are not supported");
                return Err(Error::NOT_SUPPORTED);
            }
        }
        Ok(())
    }
}

exports! {
    4000 fn [cuLaunchKernel cuLaunchKernel_ptsz](
        function: u64, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        dynamic_shared: u32, stream: u64, params: In<In<u8>>, extra: In<u64>
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        launch(function, LaunchConfig { grid, block, dynamic_shared }, stream, Arguments { params, extra })
    }
    11060 fn [cuLaunchKernelEx cuLaunchKernelEx_ptsz](
        config: In<Config>, function: u64, params: In<In<u8>>, extra: In<u64>
    ) {
        let driver = driver()?;
        let config = config.get()?;
        config.check(driver)?;
        let Config { grid, block, dynamic_shared, stream, .. } = config;
        launch(function, LaunchConfig { grid, block, dynamic_shared }, stream, Arguments { params, extra })
    }
    9000 fn [cuLaunchCooperativeKernel cuLaunchCooperativeKernel_ptsz](
        _function: u64, _grid_x: u32, _grid_y: u32, _grid_z: u32, _block_x: u32, _block_y: u32, _block_z: u32,
        _dynamic_shared: u32, _stream: u64, _params: Out<u64>
    ) {
        refuse_cooperative()
    }
    9000 fn cuLaunchCooperativeKernelMultiDevice(_launches: Out<u64>, _count: u32, _flags: u32) {
        refuse_cooperative()
    }
}
