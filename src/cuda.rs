//! The CUDA device: driver, kernels, one stream, one arena.
//!
//! libcuda is opened when a GPU is asked for, never before, so one binary runs on machines with and without it.
//! Kernels were compiled by build.rs: a cubin for the GPUs it names, PTX for all others.

mod card;
mod checks;
mod cut;
mod kernels;
mod nvtx;
mod refusal;
mod staging;

pub use card::CardSpec;
pub use checks::{dim_i32, dim_u32, expect, expect_aligned, expect_chunks, expect_dtype, expect_list};
pub use cut::{Cut, Extent, Tile};
pub use kernels::{Images, Kernels, Ladder, Product, Rung};
pub use nvtx::range;

use crate::arena::Tensor;
use crate::dtype::DType;
use crate::error::{Error, Result};
use cudarc::driver::sys::{CUdevice_attribute, CUresult};
use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError, LaunchConfig, PinnedHostSlice,
};
use staging::Staging;
use std::sync::Arc;

/// What a step keeps on the device besides its buffers, byte by byte: the host's part of `struct StepParams` of
/// `kernels/common.cuh`, its loss scale, the sums of the losses, the gradients' norm. The engine has the types.
pub const PARAMS_BYTES: usize = 68;
/// Where the loss scale lies.
pub const LOSS_SCALE_AT: usize = 68;
/// Where the sums lie.
pub const SUMS_AT: usize = 80;
/// Where the norm lies.
pub const NORM_AT: usize = 104;
/// The end.
pub const STEP_BYTES: usize = 120;

/// Oldest compute capability with kernels.
const OLDEST: u32 = 75;

/// Refuses a binary without kernels, for which it makes no difference what GPU there is.
fn check_kernels(images: usize, ordinal: usize) -> Result<()> {
    if images > 0 {
        return Ok(());
    }
    let found = "this binary was built without nvcc and holds no kernels";
    let remedy = "run `scripts/get-nvcc target/nvcc` and build again, or use --device cpu";
    Err(Error::input(format!("--device cuda:{ordinal}"), found, remedy))
}

/// A GPU that was found fit, before anything is allocated on it.
pub struct Device {
    context: Arc<CudaContext>,
    ordinal: usize,
    /// 86 for compute capability 8.6.
    capability: u32,
}

impl Device {
    /// Opens GPU number `ordinal`.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no driver, no such GPU, no kernel in this binary, or none for this GPU;
    /// [`Error::Cuda`] when the driver fails.
    pub fn open(ordinal: usize) -> Result<Self> {
        let asked = || format!("--device cuda:{ordinal}");
        if !driver_present() {
            return Err(refusal::no_library(ordinal));
        }
        let count = device_count()?;
        if ordinal >= count {
            return Err(refusal::no_such_gpu(ordinal, count));
        }
        check_kernels(kernels::images(), ordinal)?;
        let (major, minor) = driver_version()?;
        if major < kernels::CUDA_VERSION.0 {
            return Err(refusal::too_old(ordinal, format!("the NVIDIA driver is for CUDA {major}.{minor}")));
        }
        let context = CudaContext::new(ordinal).map_err(|e| refusal::refused(&asked(), e))?;
        let (major, minor) = context.compute_capability().map_err(cuda("ask for the compute capability"))?;
        let capability = (10 * major + minor).unsigned_abs();
        if capability < OLDEST {
            let found = format!(
                "a GPU of compute capability {major}.{minor}; the kernels need 7.5 (Turing) or newer"
            );
            return Err(Error::input(asked(), found, "use --device cpu"));
        }
        // SAFETY: `Cuda` makes one stream and uses every slice on that stream only, so the events that would order
        // several streams have nothing to order.
        unsafe { context.disable_event_tracking() };
        Ok(Self { context, ordinal, capability })
    }

    /// Compute capability, e.g. (8, 6).
    pub fn compute_capability(&self) -> (u32, u32) {
        (self.capability / 10, self.capability % 10)
    }

    /// Name as the driver gives it.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn name(&self) -> Result<String> {
        self.context.name().map_err(cuda("ask for the GPU's name"))
    }

    /// What the driver says of the GPU under a number of its own.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn attribute(&self, attribute: CUdevice_attribute) -> Result<i32> {
        self.context.attribute(attribute).map_err(cuda("ask for an attribute of the GPU"))
    }

    /// Bytes of memory: free, and in all.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(cuda("ask for free memory"))
    }
}

/// Whether libcuda can be loaded.
pub fn driver_present() -> bool {
    // SAFETY: opens the library by its usual names and closes it; its initialisers are those of NVIDIA's driver.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

/// GPUs the driver gives; 0 without a driver.
///
/// # Errors
/// [`Error::Input`] when the driver is there and refuses.
pub fn device_count() -> Result<usize> {
    if !driver_present() {
        return Ok(0);
    }
    match cudarc::driver::result::init().and_then(|()| CudaContext::device_count()) {
        Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Err(source) => Err(refusal::refused("--device cuda", source)),
    }
}

/// Whether there is a GPU for a run that leaves the choice open.
///
/// # Errors
/// [`Error::Input`] when one is meant to be there and the driver's library is missing, or the driver refuses.
pub fn gpu_present() -> Result<bool> {
    let present = device_count()? > 0;
    if !present {
        refusal::idle_cards(driver_present())?;
    }
    Ok(present)
}

/// Newest CUDA version that the driver knows, e.g. (13, 0).
///
/// # Errors
/// [`Error::Cuda`].
pub fn driver_version() -> Result<(u32, u32)> {
    let mut version = 0;
    // SAFETY: the function writes one int, to a place that outlives the call. libcuda was opened before, by
    // `Device::open`, without which there is nothing to ask for.
    let code = unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut version) };
    code.result().map_err(cuda("ask for the driver's version"))?;
    let version = version.unsigned_abs();
    Ok((version / 1000, version % 1000 / 10))
}

/// A GPU with its kernels and its arena.
pub struct Cuda {
    /// All work is submitted here, in program order. Not the default stream, which cannot be captured into a graph.
    pub stream: Arc<CudaStream>,
    /// Resolved kernels.
    pub kernels: Kernels,
    /// Type of weights and activations; `kernels` are those for it.
    pub dtype: DType,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// How products are cut, in place of what is best for the shape; for tests and benches.
    pub cut: Option<Cut>,
    /// Room for the partial sums of weight gradients, f32; without it none is split.
    pub workspace: Option<Tensor>,
    arena: CudaSlice<u8>,
    step: CudaSlice<u8>,
    /// The step's bytes on the host.
    report: PinnedHostSlice<u8>,
    staging: Staging,
    /// Bytes that were free before anything was allocated.
    free_before: usize,
}

impl Cuda {
    /// Loads the kernels for activations of type `dtype` and allocates an arena of `bytes`, zeroed.
    ///
    /// # Errors
    /// [`Error::Run`] when the GPU has no such amount of memory; [`Error::Input`] when no kernel runs on it;
    /// [`Error::Cuda`].
    pub fn new(device: &Device, bytes: usize, dtype: DType) -> Result<Self> {
        let free_before = device.memory()?.0;
        let stream = device.context.new_stream().map_err(cuda("create a stream"))?;
        let multiprocessors = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors =
            device.context.attribute(multiprocessors).map_err(cuda("count the multiprocessors"))?;
        let kernels = Kernels::load(device, dtype)?;
        let step = stream.alloc_zeros(STEP_BYTES).map_err(cuda("allocate memory"))?;
        // SAFETY: read only after a copy into it (`read_step`).
        let report = unsafe { device.context.alloc_pinned_with_flags(STEP_BYTES, 0) };
        let report = report.map_err(cuda("allocate page-locked memory"))?;
        let staging = Staging::new(&stream)?;
        let arena = stream.alloc_zeros(bytes.max(1)).map_err(|source| match source.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::run(
                format!("the GPU has no {} MiB of free memory", bytes.div_ceil(1 << 20)),
                "use a smaller --batch-size or --max-length, or free memory on the GPU",
            ),
            _ => Error::Cuda { op: "allocate the arena", source },
        })?;
        let multiprocessors = multiprocessors.unsigned_abs();
        let (cut, workspace) = (None, None);
        Ok(Self {
            stream,
            kernels,
            dtype,
            multiprocessors,
            cut,
            workspace,
            arena,
            step,
            report,
            staging,
            free_before,
        })
    }

    /// Copies host bytes to the front of a buffer.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    ///
    /// # Panics
    /// If `bytes` is longer than the buffer, or the buffer lies outside the arena.
    pub fn upload(&mut self, to: Tensor, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= to.bytes(), "{} bytes for {to:?}", bytes.len());
        if Staging::takes(bytes.len()) {
            let to = self.address(to);
            return self.staging.upload(to, bytes);
        }
        let mut view = self.arena.slice_mut(to.offset..to.offset + bytes.len());
        self.stream.memcpy_htod(bytes, &mut view).map_err(cuda("copy to the GPU"))
    }

    /// Copies the front of a buffer to the host, after all work before it.
    ///
    /// # Errors
    /// [`Error::Cuda`], also for a fault of an earlier kernel.
    ///
    /// # Panics
    /// As [`Cuda::upload`].
    pub fn download(&self, from: Tensor, bytes: &mut [u8]) -> Result<()> {
        assert!(bytes.len() <= from.bytes(), "{} bytes of {from:?}", bytes.len());
        let view = self.arena.slice(from.offset..from.offset + bytes.len());
        self.stream.memcpy_dtoh(&view, bytes).map_err(cuda("copy from the GPU"))?;
        self.stream.synchronize().map_err(cuda("wait for the GPU"))
    }

    /// Bytes by which the GPU's free memory has shrunk since before this; other programs' doings count too.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn memory_taken(&self) -> Result<u64> {
        let (free, _) = self.stream.context().mem_get_info().map_err(cuda("ask for free memory"))?;
        Ok(self.free_before.saturating_sub(free) as u64)
    }

    /// Sets some of the step's bytes from `at` on; kernels read them from device memory.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    ///
    /// # Panics
    /// If they go beyond the end.
    pub fn write_step(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        assert!(at + bytes.len() <= STEP_BYTES, "{} bytes at {at}", bytes.len());
        let to = self.step_address() + at as u64;
        self.staging.upload(to, bytes)
    }

    /// All of the step's bytes, after all work before it.
    ///
    /// # Errors
    /// [`Error::Cuda`], also for a fault of an earlier kernel.
    pub fn read_step(&mut self) -> Result<&[u8; STEP_BYTES]> {
        const OP: &str = "copy the step's report";
        self.stream.memcpy_dtoh(&self.step, &mut self.report).map_err(cuda(OP))?;
        self.stream.synchronize().map_err(cuda("wait for the GPU"))?;
        let bytes = self.report.as_slice().map_err(cuda(OP))?;
        Ok(bytes.try_into().expect("allocated with that length"))
    }

    /// Device address of the step's bytes: `const StepParams*` of the kernels.
    pub fn step_address(&self) -> u64 {
        self.step.device_ptr(&self.stream).0
    }

    /// Device address of a buffer.
    ///
    /// # Panics
    /// If the buffer lies outside the arena: it is of another plan.
    pub fn address(&self, t: Tensor) -> u64 {
        let end = t.offset + t.bytes();
        assert!(end <= self.arena.len(), "{t:?} lies outside the arena of {} bytes", self.arena.len());
        self.arena.device_ptr(&self.stream).0 + t.offset as u64
    }
}

/// `blocks` blocks of `threads` threads in a row.
pub fn blocks_of(threads: u32, blocks: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// For `map_err`: [`Error::Cuda`] that names the operation.
pub fn cuda(op: &'static str) -> impl FnOnce(DriverError) -> Error {
    move |source| Error::Cuda { op, source }
}
