//! Which device a run is for, what it computes in there, and the device opened.

use super::{Backend, Cpu, CudaEngine, cuda};
use crate::arena::Plan;
use crate::config::ModelConfig;
use crate::cuda::{CardSpec, Device as Gpu, Rung};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::linear_launch::WORKSPACE_BYTES;
use crate::ops::tile::Level;
use crate::recipe::{Device, Precision, Recipe};

/// What a run is planned for.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// A device of this machine.
    Here(Device),
    /// A GPU that need not be there, for a plan.
    Card(&'static CardSpec),
}

impl Target {
    /// The card that the recipe names, else its device.
    ///
    /// # Errors
    /// [`Error::Input`] when that card is not known.
    pub fn of(recipe: &Recipe) -> Result<Self> {
        Ok(match &recipe.device_name {
            Some(name) => Self::Card(CardSpec::find(name)?),
            None => Self::Here(recipe.device),
        })
    }

    /// Of a GPU.
    fn compute_capability(self) -> Result<Option<(u32, u32)>> {
        Ok(match self {
            Self::Here(device) => choose(device)?.map(|gpu| gpu.compute_capability()),
            Self::Card(card) => Some(card.compute_capability.into()),
        })
    }
}

impl From<Device> for Target {
    fn from(device: Device) -> Self {
        Self::Here(device)
    }
}

/// The type of weights and activations for a device and the precision asked for.
///
/// `auto` is bf16 on a CPU with AMX or AVX-512 BF16, else fp32. On a GPU it is bf16 from compute capability 8.0 on, else
/// fp16.
///
/// # Errors
/// [`Error::Input`] when the device cannot be used, not with this precision, or not for this model.
pub fn precision(target: impl Into<Target>, precision: Precision, model: &ModelConfig) -> Result<DType> {
    let gpu = target.into().compute_capability()?;
    let has_bf16 = gpu.is_none_or(|capability| capability >= (8, 0));
    let dtype = match precision {
        Precision::Auto if gpu.is_none() && !Level::best().has_bf16() => DType::F32,
        Precision::Auto if has_bf16 => DType::BF16,
        Precision::Auto | Precision::Fp16 => DType::F16,
        Precision::Fp32 => DType::F32,
        Precision::Bf16 if has_bf16 => DType::BF16,
        Precision::Bf16 => {
            let (major, minor) = gpu.unwrap_or_default();
            let found =
                format!("a GPU of compute capability {major}.{minor}; bf16 needs 8.0 (Ampere) or newer");
            return Err(Error::input("--precision bf16", found, "use --precision fp16"));
        }
    };
    if gpu.is_some() {
        cuda::check_model(model, dtype)?;
    }
    Ok(dtype)
}

/// Whether the device multiplies with weights in blocks of [`DType::Q8_0`] as they are: a CPU does.
///
/// # Errors
/// [`Error::Input`] when the device cannot be used.
pub fn multiplies_q8_0(device: Device) -> Result<bool> {
    Ok(choose(device)?.is_none())
}

/// Plans what a device needs for training besides the model's own buffers: a GPU, room for partial sums of weight
/// gradients; fp32, whose products are plain, and the CPU nothing.
///
/// # Errors
/// [`Error::Input`] when the device cannot be used.
pub fn plan_workspace(target: impl Into<Target>, dtype: DType, plan: &mut Plan) -> Result<()> {
    if dtype != DType::F32 && target.into().compute_capability()?.is_some() {
        plan.reserve_workspace(WORKSPACE_BYTES);
    }
    Ok(())
}

/// Opens the device with the plan's memory.
///
/// # Errors
/// [`Error::Input`] when the device cannot be used; [`Error::Run`] when there is not enough memory.
pub fn open(device: Device, plan: &Plan, dtype: DType) -> Result<Box<dyn Backend>> {
    Ok(match choose(device)? {
        None => Box::new(Cpu::new(plan, dtype)?),
        Some(gpu) => Box::new(CudaEngine::new(&gpu, plan, dtype, Rung::Production)?),
    })
}

/// What a device is called on the screen, and its free memory in bytes where that is not the host's.
///
/// # Errors
/// [`Error::Input`] when the device cannot be used; [`Error::Cuda`].
pub fn describe(target: impl Into<Target>) -> Result<(String, Option<u64>)> {
    let device = match target.into() {
        Target::Here(device) => device,
        Target::Card(card) => {
            let [major, minor] = card.compute_capability;
            let name = format!("{} (compute capability {major}.{minor}, from the table of cards)", card.name);
            return Ok((name, Some(card.usable_bytes())));
        }
    };
    Ok(match choose(device)? {
        None => ("CPU".into(), None),
        Some(gpu) => {
            let (major, minor) = gpu.compute_capability();
            (format!("{} (compute capability {major}.{minor})", gpu.name()?), Some(gpu.memory()?.0 as u64))
        }
    })
}

/// The GPU, if one is asked for, or present and not ruled out. One that cannot be used is not passed over in silence.
fn choose(device: Device) -> Result<Option<Gpu>> {
    match device {
        Device::Cpu => Ok(None),
        Device::Auto if !crate::cuda::gpu_present()? => Ok(None),
        Device::Auto => Gpu::open(0).map(Some),
        Device::Cuda(n) => Gpu::open(n).map(Some),
    }
}
