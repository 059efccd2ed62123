//! The gradient of a linear layer's bias.

use super::math::simd;
use super::rmsnorm::{ROWS_PER_PARTIAL, add_partials, launch_finish};
use crate::arena::Tensor;
use crate::cuda::{Cuda, Rung, cuda, dim_i32, dim_u32, expect, expect_chunks};
use crate::dtype::{DType, Element};
use crate::error::Result;
use cudarc::driver::{LaunchConfig, PushKernelArg};
use rayon::prelude::*;

/// `db[n] = Σ_t dy[t, n]`, overwritten or added to. `dy` A `[T, N]`, `db` f32 `[N]`, `partials` f32
/// `[ceil(T / ROWS_PER_PARTIAL), N]`.
pub fn gradient<E: Element>(dy: &[E], db: &mut [f32], partials: &mut [f32], add: bool) {
    let n = db.len();
    let blocks = (dy.len() / n).div_ceil(ROWS_PER_PARTIAL);
    let partials = &mut partials[..blocks * n];
    let rows = dy.par_chunks(ROWS_PER_PARTIAL * n);
    partials.par_chunks_exact_mut(n).zip(rows).for_each(|(partial, rows)| {
        partial.fill(0.0);
        simd(
            #[inline(always)]
            || {
                for row in rows.chunks_exact(n) {
                    partial.iter_mut().zip(row).for_each(|(p, dy)| *p += dy.to_f32());
                }
            },
        );
    });
    add_partials(partials, db, add);
}

/// Launches `bias_gradient` of `kernels/bias.cu` on the rows in use, and the sum of its partials; returns at once. Shapes
/// as for [`gradient`], with the rows that were planned.
///
/// # Errors
/// [`crate::error::Error::Shape`] and `Unsupported` before anything is launched; `Cuda` if the driver refuses.
pub fn launch(device: &Cuda, rung: Rung, dy: Tensor, db: Tensor, partials: Tensor) -> Result<()> {
    const OP: &str = "bias_gradient";
    const THREADS: u32 = 128;
    let (rows, columns) = (dy.rows, dy.cols);
    expect(OP, [("dy", dy, [rows, columns], device.dtype), ("db", db, [1, columns], DType::F32)])?;
    let blocks = rows.div_ceil(ROWS_PER_PARTIAL);
    expect(OP, [("partials", partials, [blocks, columns], DType::F32)])?;
    expect_chunks(OP, rung, "N", columns)?;
    if columns == 0 {
        return Ok(()); // an empty grid is a launch error
    }
    let per_thread = if rung == Rung::Production { 8 } else { 1 };
    let across = dim_u32(OP, "N", columns)?.div_ceil(THREADS * per_thread);
    let grid_dim = (dim_u32(OP, "T", blocks)?, across, 1);
    if blocks > 0 {
        let config = LaunchConfig { grid_dim, block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        let (params, n) = (device.step_address(), dim_i32(OP, "N", columns)?);
        let [dy, partials] = [dy, partials].map(|t| device.address(t));
        let mut launch = device.stream.launch_builder(device.kernels.bias_gradient.rung(OP, rung)?);
        launch.arg(&params).arg(&dy).arg(&partials).arg(&n);
        // SAFETY: the four arguments match the kernel's parameters in order and type. Shapes, types and alignment were
        // checked and the buffers lie inside the arena (`address` asserts it); a block reads 32 rows below `step->tokens`,
        // which is at most the planned rows, and writes its part of one row of partials, of which there is one per 32
        // planned rows. One stream, so nothing else touches them.
        unsafe { launch.launch(config) }.map_err(cuda(OP))?;
    }
    launch_finish(OP, device, rung, partials, db)
}
