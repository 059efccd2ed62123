//! Columns of a wide matrix that a narrow one takes: an adapter's B among those of the projections it is multiplied with.

use crate::arena::Tensor;
use crate::cuda::{Cuda, blocks_of, cuda, dim_i32, dim_u32, expect_dtype};
use crate::dtype::{DType, Element};
use crate::error::Result;
use cudarc::driver::{CudaFunction, PushKernelArg};
use rayon::prelude::*;

/// Where a narrow matrix `[out, r]` has its columns in rows `[out, R]` of a wide one.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// f32 `[out, r]`.
    pub narrow: Tensor,
    /// `[out, R]`, A where it is written, f32 where it is read.
    pub wide: Tensor,
    /// The first of its columns.
    pub column: usize,
    /// The adapter's scale.
    pub factor: f32,
}

impl Places {
    /// Checks the shapes, for every backend.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) naming what does not fit.
    pub fn expect(&self, op: &'static str) -> Result<()> {
        self.narrow.expect(op, "narrow", [self.wide.rows, self.narrow.cols])?;
        // The wide one has at least these columns.
        let least = self.column + self.narrow.cols;
        self.wide.expect(op, "wide", [self.wide.rows, self.wide.cols.max(least)])
    }
}

/// `wide[:, column..] = A(factor·narrow)`; other columns stay. `narrow` f32 `[out, r]`, `wide` A `[out, R]`.
pub fn spread<E: Element>(narrow: &[f32], wide: &mut [E], [r, all]: [usize; 2], column: usize, factor: f32) {
    narrow.par_chunks_exact(r).zip(wide.par_chunks_exact_mut(all)).for_each(|(from, to)| {
        from.iter().zip(&mut to[column..]).for_each(|(x, to)| *to = E::from_f32(factor * x));
    });
}

/// `narrow = factor·wide[:, column..]`. `narrow` f32 `[out, r]`, `wide` f32 `[out, R]`.
pub fn gather(wide: &[f32], narrow: &mut [f32], [r, all]: [usize; 2], column: usize, factor: f32) {
    wide.par_chunks_exact(all).zip(narrow.par_chunks_exact_mut(r)).for_each(|(from, to)| {
        from[column..].iter().zip(to).for_each(|(x, to)| *to = factor * x);
    });
}

/// Launches [`spread`] and returns at once.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) and `Unsupported` before anything is launched; `Cuda` if the driver refuses.
pub fn launch_spread(device: &Cuda, at: Places) -> Result<()> {
    const OP: &str = "spread";
    launch(
        OP,
        device,
        &device.kernels.spread,
        at,
        [("narrow", at.narrow, DType::F32), ("wide", at.wide, device.dtype)],
    )
}

/// Launches [`gather`] and returns at once.
///
/// # Errors
/// As [`launch_spread`].
pub fn launch_gather(device: &Cuda, at: Places) -> Result<()> {
    const OP: &str = "gather";
    launch(
        OP,
        device,
        &device.kernels.gather,
        at,
        [("wide", at.wide, DType::F32), ("narrow", at.narrow, DType::F32)],
    )
}

/// A kernel from the first buffer to the second.
fn launch(
    op: &'static str,
    device: &Cuda,
    function: &CudaFunction,
    at: Places,
    buffers: [(&'static str, Tensor, DType); 2],
) -> Result<()> {
    const THREADS: u32 = 128;
    at.expect(op)?;
    buffers.iter().try_for_each(|&(arg, t, dtype)| expect_dtype(op, arg, t, dtype))?;
    let elements = dim_u32(op, "elements", at.narrow.len())?;
    let [r, all, column] = [at.narrow.cols, at.wide.cols, at.column];
    let (r, all, column) = (dim_i32(op, "r", r)?, dim_i32(op, "R", all)?, dim_i32(op, "column", column)?);
    if elements == 0 {
        return Ok(()); // an empty grid is a launch error
    }
    let [from, to] = buffers.map(|(_, t, _)| device.address(t));
    let mut launch = device.stream.launch_builder(function);
    launch.arg(&from).arg(&to).arg(&elements).arg(&r).arg(&all).arg(&column).arg(&at.factor);
    // SAFETY: the seven arguments match the kernels' parameters (`elements` is below 2^31). Shapes and types were checked,
    // also that the columns from `column` on lie within a row of the wide buffer, and both lie inside the arena (`address`
    // asserts it); a thread goes to one element of the narrow one and its place in the other. One stream, so nothing else
    // touches them.
    unsafe { launch.launch(blocks_of(THREADS, elements.div_ceil(THREADS))) }.map_err(cuda(op))?;
    Ok(())
}
