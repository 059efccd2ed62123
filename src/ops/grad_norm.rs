//! Global L2 norm of the gradients, and the factor that clips and unscales them.
//!
//! The order of the additions is fixed, and every product is exact in f64, so a CPU with any number of threads and
//! a GPU give the same bits.

use super::math::{add_squares, simd};
use crate::arena::Tensor;
use crate::cuda::{Cuda, NORM_AT, Rung, cuda, dim_u32, expect_aligned, expect_dtype};
use crate::dtype::DType;
use crate::error::Result;
use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, LaunchConfig, PushKernelArg};
use rayon::prelude::*;

/// Gradients of one partial sum.
pub const CHUNK: usize = 4096;

/// Partial sums kept side by side; element `i` of a chunk belongs to lane `i % LANES`.
pub const LANES: usize = 256;

/// What the optimizer needs to know about all gradients together.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct GradNorm {
    /// L2 norm of the unscaled gradients, before clipping.
    pub norm: f64,
    /// Multiplies every gradient: clips and takes the loss scale out again.
    pub scale: f32,
    /// 1 when the norm is NaN or infinite: then no weight and no state may change this step.
    pub skip: u32,
}

impl GradNorm {
    /// From [`sum_of_squares`]: `norm = √sum / loss_scale`, `scale = f32(min(1, max_norm / (norm + 1e-6))) / loss_scale`.
    ///
    /// `loss_scale` is a power of two (1.0 without loss scaling), so dividing by it rounds nothing. An infinite
    /// `max_norm` clips nothing.
    pub fn new(sum: f64, loss_scale: f32, max_norm: f64) -> Self {
        let norm = sum.sqrt() / f64::from(loss_scale);
        #[expect(clippy::cast_possible_truncation, reason = "rounding is the point")]
        let clip = (max_norm / (norm + 1e-6)).min(1.0) as f32;
        Self { norm, scale: clip * (1.0 / loss_scale), skip: u32::from(!norm.is_finite()) }
    }
}

/// Sum of the squares of all gradients, in f64.
///
/// Chunks of [`CHUNK`] elements: lane `l` adds the squares of elements `l`, `l + 256`, … in order, and the lanes are
/// summed by halving. The sums of the chunks are then reduced by the same scheme, all of them as one chunk. The
/// result does not depend on the thread count; with a NaN or infinite gradient it is not finite.
pub fn sum_of_squares(g: &[f32]) -> f64 {
    let sum = |chunk| {
        simd(
            #[inline(always)]
            || chunk_sum(chunk),
        )
    };
    let chunks: Vec<f64> = g.par_chunks(CHUNK).map(sum).collect();
    let mut lanes = [0.0; LANES];
    for row in chunks.chunks(LANES) {
        lanes.iter_mut().zip(row).for_each(|(lane, sum)| *lane += sum);
    }
    halve(lanes)
}

/// Row by row, that memory is read in its order: the lanes are in L1, and loading and storing them takes less time than
/// memory does.
#[inline(always)]
fn chunk_sum(chunk: &[f32]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (rows, rest) = chunk.as_chunks::<LANES>();
    let parts = lanes.as_chunks_mut::<PART>().0;
    for row in rows {
        let row = row.as_chunks::<PART>().0;
        for part in 0..LANES / PART {
            add_squares(&mut parts[part], &row[part]);
        }
    }
    for (lane, &g) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(g) * f64::from(g);
    }
    halve(lanes)
}

/// Lanes that are added to together, few enough for registers.
const PART: usize = 32;

/// `lane[l] += lane[l + s]` for s = 128, 64, …, 1; the sum is in lane 0.
#[inline(always)]
fn halve(mut lanes: [f64; LANES]) -> f64 {
    let mut s = LANES / 2;
    while s > 0 {
        let (low, high) = lanes.split_at_mut(s);
        low.iter_mut().zip(high).for_each(|(a, b)| *a += *b);
        s /= 2;
    }
    lanes[0]
}

const OP: &str = "grad_norm";

/// Threads of a block of `kernels/grad_norm.cu`; also its lanes.
const THREADS: u32 = 256;

/// Room for the chunks' sums on a GPU. The [`GradNorm`] lies behind the step's parameters.
pub struct DeviceNorm {
    sums: CudaSlice<f64>,
}

impl DeviceNorm {
    /// For up to `n` gradients.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::error::Error::Cuda).
    pub fn new(device: &Cuda, n: usize) -> Result<Self> {
        Ok(Self { sums: device.stream.alloc_zeros(n.div_ceil(CHUNK).max(1)).map_err(cuda(OP))? })
    }

    /// Launches [`sum_of_squares`] over `grads`, f32 `[1, n]`, [`GradNorm::new`] with the step's parameters, and
    /// [`LossScale::after`](super::loss_scale::LossScale::after).
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::error::Error::Unsupported) before anything is launched;
    /// [`Error::Cuda`](crate::error::Error::Cuda) if the driver refuses.
    ///
    /// # Panics
    /// If there are more gradients than were planned for.
    pub fn launch(&mut self, device: &Cuda, rung: Rung, grads: Tensor) -> Result<()> {
        let chunks = grads.len().div_ceil(CHUNK);
        assert!(chunks <= self.sums.len(), "{} gradients, planned for fewer", grads.len());
        expect_dtype(OP, "grads", grads, DType::F32)?;
        expect_aligned(OP, "grads", grads)?;
        let chunks = dim_u32(OP, "chunks", chunks)?;
        let per_block = if rung == Rung::Production { THREADS / 32 } else { 1 };
        let (g, n) = (device.address(grads), grads.len() as u64);
        let (step, norm) = (device.step_address(), device.step_address() + NORM_AT as u64);
        let config = |blocks| LaunchConfig {
            grid_dim: (blocks, 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        if chunks > 0 {
            let mut partials =
                device.stream.launch_builder(device.kernels.grad_norm_partials.rung(OP, rung)?);
            partials.arg(&g).arg(&n).arg(&mut self.sums);
            // SAFETY: the three arguments match the kernel's parameters. It reads g below n, which lies inside the
            // arena (`address` asserts it) on a multiple of 16 bytes (checked), and writes one sum per chunk, for
            // which there is room (asserted).
            unsafe { partials.launch(config(chunks.div_ceil(per_block))) }.map_err(cuda(OP))?;
        }
        let mut finish = device.stream.launch_builder(&device.kernels.grad_norm_finish);
        finish.arg(&step).arg(&self.sums).arg(&chunks).arg(&norm);
        // SAFETY: the four arguments match the kernel's parameters; it reads the `chunks` sums written before on the
        // same stream and the step's parameters, and writes the loss scale and the GradNorm behind them.
        unsafe { finish.launch(config(1)) }.map_err(cuda(OP))?;
        Ok(())
    }
}
