//! The GPU that results are of.

use crate::cuda::{Device, driver_version};
use crate::error::Result;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use serde::Serialize;

/// What a result must name.
#[derive(Clone, Debug, Serialize)]
pub struct Card {
    /// As the driver gives it.
    pub name: String,
    /// The device computes on a CPU (`emulator/`): its times say nothing of any GPU.
    pub not_a_gpu: bool,
    /// E.g. `9.0`.
    pub compute_capability: String,
    /// Version of NVIDIA's kernel module, where the system tells.
    pub driver: Option<String>,
    /// Newest CUDA the driver knows.
    pub cuda: String,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of memory.
    pub memory_bytes: usize,
    /// Bytes of L2.
    pub l2_bytes: usize,
    /// Highest clock of the multiprocessors.
    pub clock_mhz: usize,
    /// Highest clock of the memory.
    pub memory_clock_mhz: usize,
}

impl Card {
    /// Asks the driver.
    ///
    /// # Errors
    /// [`crate::error::Error::Cuda`].
    pub fn new(gpu: &Device) -> Result<Self> {
        let number = |attribute| gpu.attribute(attribute).map(|n| usize::try_from(n).unwrap_or(0));
        let ((major, minor), (cuda_major, cuda_minor)) = (gpu.compute_capability(), driver_version()?);
        let name = gpu.name()?;
        Ok(Self {
            not_a_gpu: name.to_lowercase().contains("emulator"),
            name,
            compute_capability: format!("{major}.{minor}"),
            driver: kernel_module(),
            cuda: format!("{cuda_major}.{cuda_minor}"),
            multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory_bytes: gpu.memory()?.1,
            l2_bytes: number(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            clock_mhz: number(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? / 1000,
            memory_clock_mhz: number(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)? / 1000,
        })
    }

    /// What has to be written so that nothing else is left in L2.
    pub(super) fn flush_bytes(&self) -> usize {
        2 * self.l2_bytes.max(1 << 20)
    }
}

/// `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul …`: the first word that begins like a version.
fn kernel_module() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    let is_version = |word: &&str| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit());
    line.split_whitespace().find(is_version).map(str::to_owned)
}
