//! The CUDA device: driver, kernels, one stream, one arena.
//!
//! libcuda is opened when a GPU is asked for, never before, so one binary runs on machines with and without it.
//! Kernels were compiled by build.rs: a cubin for the GPUs it names, PTX for all others.

use crate::arena::Tensor;
use crate::dtype::DType;
use crate::error::{Error, Result};
use cudarc::driver::sys::{CUdevice_attribute, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DriverError};
use cudarc::nvrtc::Ptx;
use std::sync::Arc;

/// What build.rs made of one kernel file for one PTX target.
struct Image {
    file: &'static str,
    /// Target (80 for compute_80) and text.
    ptx: (u32, &'static str),
    /// Architecture (86 for sm_86) and machine code, made from that text.
    cubins: &'static [(u32, &'static [u8])],
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Bytes of the step's parameters on the device (`struct StepParams` of `kernels/common.cuh`).
pub const PARAMS_BYTES: usize = 64;

/// Oldest compute capability with kernels.
const OLDEST: u32 = 75;

/// A step of a kernel's ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// The first, plain version: oracle of the tests, baseline of the benches.
    Naive,
    /// The fast one.
    Production,
}

/// Both versions of one kernel.
pub struct Ladder {
    naive: CudaFunction,
    /// `None` where the type has no tensor cores: f32, and bf16 on Turing.
    production: Option<CudaFunction>,
}

impl Ladder {
    /// The function of one rung.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the type of activations has no such kernel.
    pub fn rung(&self, op: &'static str, rung: Rung) -> Result<&CudaFunction> {
        match rung {
            Rung::Naive => Ok(&self.naive),
            Rung::Production => self.production.as_ref().ok_or_else(|| {
                let rule = "f16, or bf16 from compute capability 8.0";
                Error::Unsupported { op, dim: "type", got: "one without tensor cores".into(), rule }
            }),
        }
    }
}

/// All kernels, resolved at start-up: a missing one fails here, not in step 3 of a run.
pub struct Kernels {
    /// `kernels/rmsnorm.cu`, for the activation type.
    pub rmsnorm_forward: Ladder,
    /// `kernels/gemm.cu`, for the activation type, as are the next three.
    pub linear: Ladder,
    /// With the residual.
    pub linear_residual: Ladder,
    /// Of the input.
    pub linear_input_gradient: Ladder,
    /// Of the weight.
    pub linear_weight_gradient: Ladder,
    /// `kernels/grad_norm.cu`.
    pub grad_norm_partials: Ladder,
    /// `kernels/grad_norm.cu`.
    pub grad_norm_finish: CudaFunction,
    /// `kernels/adamw.cu`, torch's rule.
    pub adamw: Ladder,
    /// `kernels/adamw.cu`, the blockwise rule.
    pub adamw_8bit: Ladder,
}

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
            let found = "no NVIDIA driver on this machine (libcuda cannot be loaded)";
            return Err(Error::input(asked(), found, "install the NVIDIA driver, or use --device cpu"));
        }
        let count = device_count()?;
        if ordinal >= count {
            let found = format!("the driver sees {count} GPU(s)");
            return Err(Error::input(asked(), found, "name a GPU from cuda:0 on, or use --device cpu"));
        }
        check_kernels(IMAGES.len(), ordinal)?;
        let context = CudaContext::new(ordinal).map_err(cuda("open the GPU"))?;
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

/// GPUs the driver sees; 0 without a driver.
///
/// # Errors
/// [`Error::Cuda`] when the driver is there and fails.
pub fn device_count() -> Result<usize> {
    if !driver_present() {
        return Ok(0);
    }
    match cudarc::driver::result::init().and_then(|()| CudaContext::device_count()) {
        Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Err(source) => Err(Error::Cuda { op: "count the GPUs", source }),
    }
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
    arena: CudaSlice<u8>,
    params: CudaSlice<u8>,
}

impl Cuda {
    /// Loads the kernels for activations of type `dtype` and allocates an arena of `bytes`, zeroed.
    ///
    /// # Errors
    /// [`Error::Run`] when the GPU has no such amount of memory; [`Error::Input`] when no kernel runs on it;
    /// [`Error::Cuda`].
    pub fn new(device: &Device, bytes: usize, dtype: DType) -> Result<Self> {
        let stream = device.context.new_stream().map_err(cuda("create a stream"))?;
        let multiprocessors = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors =
            device.context.attribute(multiprocessors).map_err(cuda("count the multiprocessors"))?;
        let kernels = Kernels::load(device, dtype)?;
        let params = stream.alloc_zeros(PARAMS_BYTES).map_err(cuda("allocate memory"))?;
        let arena = stream.alloc_zeros(bytes.max(1)).map_err(|source| match source.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::run(
                format!("the GPU has no {} MiB of free memory", bytes.div_ceil(1 << 20)),
                "use a smaller --batch-size or --max-length, or free memory on the GPU",
            ),
            _ => Error::Cuda { op: "allocate the arena", source },
        })?;
        Ok(Self { stream, kernels, dtype, multiprocessors: multiprocessors.unsigned_abs(), arena, params })
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

    /// Sets the step's parameters, which every kernel reads from device memory.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn set_params(&mut self, params: &[u8; PARAMS_BYTES]) -> Result<()> {
        self.stream.memcpy_htod(params, &mut self.params).map_err(cuda("copy the step's parameters"))
    }

    /// Device address of the step's parameters.
    pub fn params_address(&self) -> u64 {
        self.params.device_ptr(&self.stream).0
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

impl Kernels {
    fn load(device: &Device, dtype: DType) -> Result<Self> {
        let a = match dtype {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            other => panic!("{other:?} is no type of activations"),
        };
        let (rmsnorm, grad_norm) = (module(device, "rmsnorm")?, module(device, "grad_norm")?);
        let (adamw, gemm) = (module(device, "adamw")?, module(device, "gemm")?);
        let typed = format!("_{a}");
        let tensor_cores = dtype == DType::F16 || (dtype == DType::BF16 && device.capability >= 80);
        let product = |name| {
            let naive = function(&gemm, &format!("{name}_naive{typed}"))?;
            let production =
                if tensor_cores { Some(function(&gemm, &format!("{name}{typed}"))?) } else { None };
            Ok(Ladder { naive, production })
        };
        Ok(Self {
            rmsnorm_forward: ladder(&rmsnorm, "rmsnorm_forward", &typed)?,
            linear: product("linear")?,
            linear_residual: product("linear_residual")?,
            linear_input_gradient: product("linear_input_gradient")?,
            linear_weight_gradient: product("linear_weight_gradient")?,
            grad_norm_partials: ladder(&grad_norm, "grad_norm_partials", "")?,
            grad_norm_finish: function(&grad_norm, "grad_norm_finish")?,
            adamw: ladder(&adamw, "adamw", "")?,
            adamw_8bit: ladder(&adamw, "adamw_8bit", "")?,
        })
    }
}

fn function(module: &Arc<CudaModule>, name: &str) -> Result<CudaFunction> {
    module.load_function(name).map_err(cuda("find a kernel"))
}

/// `{name}_naive{suffix}` and `{name}{suffix}`.
fn ladder(module: &Arc<CudaModule>, name: &str, suffix: &str) -> Result<Ladder> {
    let naive = function(module, &format!("{name}_naive{suffix}"))?;
    Ok(Ladder { naive, production: Some(function(module, &format!("{name}{suffix}"))?) })
}

/// Loads one kernel file: the cubin for this GPU if there is one and the driver takes it, else the PTX.
fn module(device: &Device, file: &'static str) -> Result<Arc<CudaModule>> {
    let images = IMAGES.iter().filter(|image| image.file == file);
    let images: Vec<&Image> = images.filter(|image| image.ptx.0 <= device.capability).collect();
    let (major, minor) = device.compute_capability();
    let refused = |why: &str| {
        let found =
            format!("{file}.cu does not run on compute capability {major}.{minor} with this driver: {why}");
        let remedy = "update the NVIDIA driver (580 or newer), or use --device cpu";
        Error::input(format!("--device cuda:{}", device.ordinal), found, remedy)
    };
    if let Some(cubin) = best_cubin(&images, device.capability)
        && let Ok(module) = device.context.load_module(Ptx::from_binary(cubin.to_vec()))
    {
        return Ok(module);
    }
    let newest =
        images.iter().max_by_key(|image| image.ptx.0).ok_or_else(|| refused("no image is old enough"))?;
    device.context.load_module(Ptx::from_src(newest.ptx.1)).map_err(|e| refused(&e.to_string()))
}

/// The newest cubin that runs on this GPU: of the same major version, not of a later minor one.
fn best_cubin(images: &[&Image], capability: u32) -> Option<&'static [u8]> {
    let cubins = images.iter().flat_map(|image| image.cubins);
    let fitting = cubins.filter(|(arch, _)| *arch <= capability && arch / 10 == capability / 10);
    fitting.max_by_key(|(arch, _)| *arch).map(|(_, code)| *code)
}

/// For `map_err`: [`Error::Cuda`] that names the operation.
pub fn cuda(op: &'static str) -> impl FnOnce(DriverError) -> Error {
    move |source| Error::Cuda { op, source }
}

/// `usize` dimension to the `int` a kernel takes.
///
/// # Errors
/// [`Error::Unsupported`] above `i32::MAX`.
pub fn dim_i32(op: &'static str, dim: &'static str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| too_large(op, dim, n))
}

/// The same for `unsigned` parameters and grid sizes, which end at `i32::MAX` too.
///
/// # Errors
/// [`Error::Unsupported`] above `i32::MAX`.
pub fn dim_u32(op: &'static str, dim: &'static str, n: usize) -> Result<u32> {
    dim_i32(op, dim, n).map(i32::unsigned_abs)
}

fn too_large(op: &'static str, dim: &'static str, n: usize) -> Error {
    Error::Unsupported { op, dim, got: n.to_string(), rule: "a dimension of at most 2147483647" }
}

/// Checks the type of a buffer's elements.
///
/// # Errors
/// [`Error::Unsupported`] naming the argument.
pub fn expect_dtype(op: &'static str, arg: &'static str, t: Tensor, want: DType) -> Result<()> {
    if t.dtype == want {
        return Ok(());
    }
    let got = format!("{:?}", t.dtype);
    Err(Error::Unsupported { op, dim: arg, got, rule: "the type that was planned for it" })
}

/// Checks that a buffer starts on a multiple of 16 bytes, as 16-byte accesses require.
///
/// # Errors
/// [`Error::Unsupported`] naming the argument.
pub fn expect_aligned(op: &'static str, arg: &'static str, t: Tensor) -> Result<()> {
    if t.offset.is_multiple_of(16) {
        return Ok(()); // the arena itself starts on a multiple of 256
    }
    Err(Error::Unsupported {
        op,
        dim: arg,
        got: format!("offset {}", t.offset),
        rule: "a multiple of 16 bytes",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_fitting_cubin_is_chosen() {
        let turing = Image { file: "x", ptx: (75, ""), cubins: &[(75, b"75")] };
        let ampere = Image {
            file: "x",
            ptx: (80, ""),
            cubins: &[(80, b"80"), (86, b"86"), (89, b"89"), (90, b"90"), (120, b"120")],
        };
        let images = [&turing, &ampere];
        for (capability, want) in [
            (75, Some("75")),
            (80, Some("80")),
            (86, Some("86")),
            (87, Some("86")),
            (89, Some("89")),
            (90, Some("90")),
            (100, None),
            (120, Some("120")),
            (121, Some("120")),
        ] {
            let got = best_cubin(&images, capability).map(|code| std::str::from_utf8(code).unwrap());
            assert_eq!(got, want, "compute capability {capability}");
        }
    }
}
