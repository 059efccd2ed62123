//! What this card does at best, measured in the same run: the rates that results are shares of.

use super::card::Card;
use super::fill::{Fill, fill};
use super::timer::Timer;
use crate::arena::{Category, Plan, Tensor};
use crate::cuda::{Cuda, Device, Rung, cuda};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::linear_launch;
use serde::Serialize;

/// Rates of one card.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Calibration {
    /// Bytes read and written per second by a plain copy from device memory to device memory, median, in GB/s.
    pub copy_gb_per_s: f64,
    /// Bytes that were copied.
    pub copy_bytes: usize,
    /// The fastest launch of this project's own product of two square matrices, in TFLOP/s.
    pub matrix_tflops: f64,
    /// Their rows and columns.
    pub matrix_size: usize,
}

impl Calibration {
    /// Measures both.
    ///
    /// # Errors
    /// [`crate::error::Error::Run`] without memory for it; [`crate::error::Error::Cuda`].
    pub fn measure(gpu: &Device, card: &Card, dtype: DType, repeats: usize) -> Result<Self> {
        // Under the emulator only the way there is of interest.
        let (matrix_size, most) = if card.not_a_gpu { (128, 1 << 22) } else { (8192, 1 << 30) };
        let copy_bytes = (gpu.memory()?.0 / 8).min(most);
        let mut plan = Plan::default();
        let mut square = || plan.tensor(Category::Scratch, matrix_size, matrix_size, dtype);
        let (x, w, y) = (square(), square(), square());
        let mut device = Cuda::new(gpu, plan.bytes(), dtype)?;
        let mut upload = |part: Tensor, bytes: &[u8]| device.upload(part, bytes);
        fill(&mut upload, x, &Fill::Normal(1.0), 1)?;
        fill(&mut upload, w, &Fill::Normal(1.0 / (matrix_size as f32).sqrt()), 2)?;
        let mut timer = Timer::new(&device, card.flush_bytes())?;
        let product = timer
            .time(&device, repeats, &mut |device| linear_launch::linear(device, Rung::Production, x, w, y))?;
        const OP: &str = "measure the bandwidth of a copy";
        let from = device.stream.alloc_zeros::<u8>(copy_bytes).map_err(cuda(OP))?;
        let mut to = device.stream.alloc_zeros::<u8>(copy_bytes).map_err(cuda(OP))?;
        let copy = timer.time(&device, repeats, &mut |device| {
            device.stream.memcpy_dtod(&from, &mut to).map_err(cuda(OP))
        })?;
        let flops = 2.0 * (matrix_size as f64).powi(3);
        Ok(Self {
            copy_gb_per_s: 2.0 * copy_bytes as f64 / copy.median_us * 1e-3,
            copy_bytes,
            matrix_tflops: flops / product.min_us * 1e-6,
            matrix_size,
        })
    }
}
