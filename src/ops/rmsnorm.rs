//! RMSNorm over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467), of the fp32 residual stream.

use super::math::{simd, sum_products, sum_squares};
use crate::arena::Tensor;
use crate::cuda::{Cuda, Rung, blocks_of, cuda, dim_i32, dim_u32, expect_aligned, expect_dtype};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use cudarc::driver::{LaunchConfig, PushKernelArg};
use rayon::prelude::*;

/// Rows whose weight gradient is added up together; the partial sums are then added in order.
pub const ROWS_PER_PARTIAL: usize = 32;

/// Columns of a thread of the production kernels.
const COLUMNS_PER_THREAD: u32 = 8;

/// Columns that a block of the backward kernel takes at most.
pub const MOST_COLUMNS: usize = 4096;

/// Buffers of the backward pass, on every device.
#[derive(Clone, Copy, Debug)]
pub struct RmsNormBackward {
    /// Input of the forward pass, f32 `[T, C]`.
    pub x: Tensor,
    /// Weight, A `[1, C]`.
    pub w: Tensor,
    /// From the forward pass, f32 `[1, T]`.
    pub rstd: Tensor,
    /// Gradient of the output, A `[T, C]`.
    pub dy: Tensor,
    /// In: the gradient that came along the residual stream. Out: that plus this norm's. f32 `[T, C]`.
    pub dx: Tensor,
    /// `dx` rounded to A for the matrix products that follow; `None` where A is f32 and `dx` itself serves.
    pub dx_rounded: Option<Tensor>,
    /// Gradient of the weight, f32 `[1, C]`, overwritten or added to, where the weight is trained.
    pub dw: Option<Tensor>,
    /// Room for partial sums, f32 `[ceil(T / ROWS_PER_PARTIAL), C]`.
    pub partials: Tensor,
}

/// `rstd[t] = 1/√(mean_c x² + eps)`, `y = w·x·rstd`. `x` f32 `[T, C]`, `w` A `[C]`, `y` A `[T, C]`, `rstd` f32 `[T]`.
///
/// The sum of squares is in f64 and everything after it in f32 with one rounding to A at the store, so this is also
/// the reference for the CUDA kernel.
#[allow(clippy::cast_possible_truncation, reason = "f64 to f32: the rounding is meant")]
pub fn forward<E: Element>(x: &[f32], w: &[E], eps: f32, y: &mut [E], rstd: &mut [f32]) {
    let c = w.len();
    x.par_chunks_exact(c).zip(y.par_chunks_exact_mut(c)).zip(rstd).for_each(|((x, y), rstd)| {
        simd(
            #[inline(always)]
            || {
                let mean = sum_squares(x) / c as f64;
                let r = (mean + f64::from(eps)).sqrt().recip() as f32;
                for ((y, &x), w) in y.iter_mut().zip(x).zip(w) {
                    *y = E::from_f32(w.to_f32() * (x * r));
                }
                *rstd = r;
            },
        );
    });
}

/// `dx += rstd·(w·dy − x̂·mean_c(w·dy·x̂))` with `x̂ = x·rstd`. `x`, `dx` f32 `[T, C]`, `dy` A `[T, C]`.
pub fn backward_input<E: Element>(x: &[f32], w: &[E], rstd: &[f32], dy: &[E], dx: &mut [f32]) {
    let c = w.len();
    let rows = x.par_chunks_exact(c).zip(dy.par_chunks_exact(c)).zip(rstd);
    // Products of w and dy in a row of their own: a sum of three factors that are widened is compiled without vectors.
    let row = || vec![0.0; c];
    dx.par_chunks_exact_mut(c).zip(rows).for_each_init(row, |wdy, (dx, ((x, dy), &r))| {
        simd(
            #[inline(always)]
            || {
                for ((wdy, w), dy) in wdy.iter_mut().zip(w).zip(dy) {
                    *wdy = w.to_f32() * dy.to_f32();
                }
                let along = sum_products(wdy, x) * r * r / c as f32;
                for ((dx, &x), wdy) in dx.iter_mut().zip(x).zip(&*wdy) {
                    *dx += r * (wdy - x * along);
                }
            },
        );
    });
}

/// `dw[c] = Σ_t dy·x·rstd`, overwritten or added to; `partials` f32 `[ceil(T / ROWS_PER_PARTIAL), C]`.
pub fn backward_weight<E: Element>(
    x: &[f32],
    rstd: &[f32],
    dy: &[E],
    dw: &mut [f32],
    partials: &mut [f32],
    add: bool,
) {
    let c = dw.len();
    let blocks = rstd.len().div_ceil(ROWS_PER_PARTIAL);
    let partials = &mut partials[..blocks * c];
    partials.par_chunks_exact_mut(c).enumerate().for_each(|(block, partial)| {
        partial.fill(0.0);
        let first = block * ROWS_PER_PARTIAL;
        for t in first..rstd.len().min(first + ROWS_PER_PARTIAL) {
            let (x, dy, r) = (&x[t * c..][..c], &dy[t * c..][..c], rstd[t]);
            simd(
                #[inline(always)]
                || {
                    for ((p, &x), dy) in partial.iter_mut().zip(x).zip(dy) {
                        *p += dy.to_f32() * (x * r);
                    }
                },
            );
        }
    });
    add_partials(partials, dw, add);
}

/// `dw = Σ_b partials[b]`, overwritten or added to.
pub(super) fn add_partials(partials: &[f32], dw: &mut [f32], add: bool) {
    if !add {
        dw.fill(0.0);
    }
    simd(
        #[inline(always)]
        || {
            for partial in partials.chunks_exact(dw.len()) {
                dw.iter_mut().zip(partial).for_each(|(dw, p)| *dw += p);
            }
        },
    );
}

/// Launches `rmsnorm_forward` of `kernels/rmsnorm.cu` on the rows in use, and returns at once. Shapes as for
/// [`forward`], with the rows that were planned.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Unsupported`] before anything is launched; [`Error::Cuda`] if the driver refuses.
/// Faults inside the kernel surface at the next download.
pub fn launch_forward(
    device: &Cuda,
    rung: Rung,
    x: Tensor,
    w: Tensor,
    eps: f32,
    y: Tensor,
    rstd: Tensor,
) -> Result<()> {
    const OP: &str = "rmsnorm_forward";
    const THREADS: u32 = 128;
    let (rows, c) = (x.rows, w.cols);
    x.expect(OP, "x", [rows, c])?;
    w.expect(OP, "w", [1, c])?;
    y.expect(OP, "y", [rows, c])?;
    rstd.expect(OP, "rstd", [1, rows])?;
    [("x", x, DType::F32), ("w", w, device.dtype), ("y", y, device.dtype), ("rstd", rstd, DType::F32)]
        .into_iter()
        .try_for_each(|(arg, t, want)| expect_dtype(OP, arg, t, want))?;
    if rung == Rung::Production {
        if !c.is_multiple_of(8) || c == 0 {
            return Err(Error::Unsupported {
                op: OP,
                dim: "C",
                got: c.to_string(),
                rule: "C % 8 == 0, C > 0",
            });
        }
        [("x", x), ("w", w), ("y", y)].into_iter().try_for_each(|(arg, t)| expect_aligned(OP, arg, t))?;
    }
    let per_block = if rung == Rung::Production { THREADS / 32 } else { THREADS };
    let blocks = dim_u32(OP, "T", rows)?.div_ceil(per_block);
    if blocks == 0 {
        return Ok(()); // an empty grid is a launch error
    }
    let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
    let [x, w, y, rstd] = [x, w, y, rstd].map(|t| device.address(t));
    let (params, c) = (device.step_address(), dim_i32(OP, "C", c)?);
    let mut launch = device.stream.launch_builder(device.kernels.rmsnorm_forward.rung(OP, rung)?);
    launch.arg(&params).arg(&x).arg(&w).arg(&eps).arg(&y).arg(&rstd).arg(&c);
    // SAFETY: the seven arguments match the kernel's parameters in order and type. The buffers lie inside the arena
    // (`address` asserts it) and hold `rows` rows, beyond which the grid may have warps but `step->tokens` none: it is
    // at most `rows`, the capacity of the plan. Alignment and C % 8 were checked above. Work is on one stream, so
    // nothing else reads or writes them at the time.
    unsafe { launch.launch(config) }.map_err(cuda(OP))?;
    Ok(())
}

/// Launches `rmsnorm_backward` of `kernels/rmsnorm.cu` on the rows in use, and the sum of its partials; returns at once.
///
/// # Errors
/// As [`launch_forward`].
pub fn launch_backward(device: &Cuda, rung: Rung, args: &RmsNormBackward) -> Result<()> {
    const OP: &str = "rmsnorm_backward";
    check_backward(OP, device.dtype, rung, args)?;
    let (rows, columns) = (args.x.rows, dim_u32(OP, "C", args.w.cols)?);
    if columns == 0 {
        return Ok(()); // an empty grid is a launch error
    }
    let blocks = dim_u32(OP, "T", rows.div_ceil(ROWS_PER_PARTIAL))?;
    let kernels = &device.kernels;
    let [x, w, rstd, dy] = [args.x, args.w, args.rstd, args.dy].map(|t| device.address(t));
    let [dx, partials] = [args.dx, args.partials].map(|t| device.address(t));
    let rounded = args.dx_rounded.map_or(0, |t| device.address(t));
    let (params, c) = (device.step_address(), dim_i32(OP, "C", args.w.cols)?);
    let threads = match rung {
        Rung::Naive => 32,
        Rung::Production => columns.div_ceil(COLUMNS_PER_THREAD).next_multiple_of(32),
    };
    if blocks > 0 {
        let mut launch = device.stream.launch_builder(kernels.rmsnorm_backward.rung(OP, rung)?);
        launch.arg(&params).arg(&x).arg(&w).arg(&rstd).arg(&dy).arg(&dx).arg(&rounded).arg(&partials).arg(&c);
        // SAFETY: the nine arguments match the kernel's parameters in order and type. Shapes, types and alignment were
        // checked and the buffers lie inside the arena (`address` asserts it); a block works on 32 rows below
        // `step->tokens`, which is at most the planned rows, and writes one row of partials, of which there is one per
        // block (checked). C is at most 8 per thread of at most 512. One stream, so nothing else touches them.
        unsafe { launch.launch(blocks_of(threads, blocks)) }.map_err(cuda(OP))?;
    }
    args.dw.map_or(Ok(()), |dw| launch_finish(OP, device, rung, args.partials, dw))
}

/// Adds partial sums up, `dw` f32 `[1, C]`, `partials` f32 `[ceil(T / ROWS_PER_PARTIAL), C]`; the caller has checked them.
pub(super) fn launch_finish(
    op: &'static str,
    device: &Cuda,
    rung: Rung,
    partials: Tensor,
    dw: Tensor,
) -> Result<()> {
    const COLUMNS: u32 = 32;
    let columns = dim_u32(op, "C", dw.cols)?;
    let config = match rung {
        Rung::Naive => blocks_of(128, columns.div_ceil(128)),
        Rung::Production => blocks_of(256, columns.div_ceil(COLUMNS)),
    };
    let (params, c) = (device.step_address(), dim_i32(op, "C", dw.cols)?);
    let [partials, dw] = [partials, dw].map(|t| device.address(t));
    let mut launch = device.stream.launch_builder(device.kernels.rmsnorm_backward_finish.rung(op, rung)?);
    launch.arg(&params).arg(&partials).arg(&dw).arg(&c);
    // SAFETY: the four arguments match the kernel's parameters. It reads the partials that the kernel before it on the
    // same stream wrote, and writes the C elements of dw, for which there is room (checked).
    unsafe { launch.launch(config) }.map_err(cuda(op))?;
    Ok(())
}

/// Shapes and types; for the production rung, what 16-byte accesses and the block's size require.
fn check_backward(op: &'static str, a: DType, rung: Rung, args: &RmsNormBackward) -> Result<()> {
    let (rows, c) = (args.x.rows, args.w.cols);
    let partials = [rows.div_ceil(ROWS_PER_PARTIAL), c];
    let mut all = vec![
        ("x", args.x, [rows, c], DType::F32),
        ("w", args.w, [1, c], a),
        ("rstd", args.rstd, [1, rows], DType::F32),
        ("dy", args.dy, [rows, c], a),
        ("dx", args.dx, [rows, c], DType::F32),
        ("partials", args.partials, partials, DType::F32),
    ];
    all.extend(args.dw.map(|t| ("dw", t, [1, c], DType::F32)));
    all.extend(args.dx_rounded.map(|t| ("dx_rounded", t, [rows, c], a)));
    for &(arg, t, shape, dtype) in &all {
        t.expect(op, arg, shape)?;
        expect_dtype(op, arg, t, dtype)?;
    }
    if rung == Rung::Naive {
        return Ok(());
    }
    if !c.is_multiple_of(8) || c > MOST_COLUMNS {
        let rule = "C % 8 == 0, C <= 4096";
        return Err(Error::Unsupported { op, dim: "C", got: c.to_string(), rule });
    }
    all.iter().try_for_each(|&(arg, t, ..)| expect_aligned(op, arg, t))
}
