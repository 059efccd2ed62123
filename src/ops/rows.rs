//! Rows of activations that are cleared or moved as they are: the launches of `kernels/rows.cu`.
//!
//! All functions return [`Error::Shape`] or [`Error::Unsupported`] before anything is launched, or [`Error::Cuda`] if the
//! driver refuses.

#![allow(missing_docs, reason = "errors of all functions are named above")]

use crate::arena::Tensor;
use crate::cuda::{
    Cuda, Ladder, Rung, blocks_of, cuda, dim_i32, dim_u32, expect_aligned, expect_dtype, expect_list,
};
use crate::error::{Error, Result};
use cudarc::driver::PushKernelArg;

/// Threads of a block, and rows: a warp takes one.
const THREADS: u32 = 128;
const ROWS_PER_BLOCK: u32 = THREADS / 32;

/// Sets the rows in use of an activation to zero.
pub fn zero(device: &Cuda, rung: Rung, t: Tensor) -> Result<()> {
    const OP: &str = "zero";
    let (rows, units) = (dim_u32(OP, "T", t.rows)?, units_of_row(OP, "t", rung, t)?);
    if rows == 0 {
        return Ok(()); // an empty grid is a launch error
    }
    let (params, t) = (device.step_address(), device.address(t));
    let mut launch = device.stream.launch_builder(device.kernels.rows_zero.rung(OP, rung)?);
    launch.arg(&params).arg(&t).arg(&units);
    // SAFETY: the three arguments match the kernel's parameters. It writes rows below `step->tokens`, at most the planned
    // ones, of a buffer inside the arena (`address` asserts it), in units that its rows and its address are multiples of
    // (checked). One stream, so nothing else touches it at the time.
    unsafe { launch.launch(blocks_of(THREADS, rows.div_ceil(ROWS_PER_BLOCK))) }.map_err(cuda(OP))?;
    Ok(())
}

/// `to[i] = from[rows[first + i]]` for the chunk's part of the supervised positions. `rows` u32, their list.
pub fn gather(device: &Cuda, rung: Rung, rows: Tensor, first: usize, from: Tensor, to: Tensor) -> Result<()> {
    Chunk { op: "gather", rows, first, most: to.rows }.launch(
        device,
        &device.kernels.rows_gather,
        rung,
        [from, to],
    )
}

/// `to[rows[first + i]] = from[i]`, the other way.
pub fn scatter(
    device: &Cuda,
    rung: Rung,
    rows: Tensor,
    first: usize,
    from: Tensor,
    to: Tensor,
) -> Result<()> {
    Chunk { op: "scatter", rows, first, most: from.rows }.launch(
        device,
        &device.kernels.rows_scatter,
        rung,
        [from, to],
    )
}

/// Rows of the supervised positions from `first` on.
struct Chunk {
    op: &'static str,
    rows: Tensor,
    first: usize,
    most: usize,
}

impl Chunk {
    fn launch(&self, device: &Cuda, ladder: &Ladder, rung: Rung, [from, to]: [Tensor; 2]) -> Result<()> {
        let op = self.op;
        let (most, units) = (dim_u32(op, "rows", self.most)?, units_of_row(op, "from", rung, from)?);
        expect_list(op, "rows", self.rows, 0)?;
        to.expect(op, "to", [to.rows, from.cols])?;
        expect_dtype(op, "to", to, from.dtype)?;
        units_of_row(op, "to", rung, to)?;
        if most == 0 {
            return Ok(()); // an empty grid is a launch error
        }
        let (params, first) = (device.step_address(), dim_i32(op, "first", self.first)?);
        let [rows, from, to] = [self.rows, from, to].map(|t| device.address(t));
        let mut launch = device.stream.launch_builder(ladder.rung(op, rung)?);
        launch.arg(&params).arg(&rows).arg(&first).arg(&most).arg(&from).arg(&to).arg(&units);
        // SAFETY: the seven arguments match the kernel's parameters (`most` is below 2^31). It goes through at most `most`
        // rows of the chunk's buffer, and entries of `rows` below `step->supervised`, which name rows in use of the other
        // buffer; each is named once, so that no two warps write the same row. Units as in `zero`. Both buffers lie
        // inside the arena (`address` asserts it), and there is one stream.
        unsafe { launch.launch(blocks_of(THREADS, most.div_ceil(ROWS_PER_BLOCK))) }.map_err(cuda(op))?;
        Ok(())
    }
}

/// How many units a kernel moves per row: bytes, or 16 of them.
fn units_of_row(op: &'static str, arg: &'static str, rung: Rung, t: Tensor) -> Result<i32> {
    let bytes = t.cols * t.dtype.size();
    if rung == Rung::Naive {
        return dim_i32(op, "bytes of a row", bytes);
    }
    if !bytes.is_multiple_of(16) {
        let rule = "rows of whole 16 bytes";
        return Err(Error::Unsupported { op, dim: "bytes of a row", got: bytes.to_string(), rule });
    }
    expect_aligned(op, arg, t)?;
    dim_i32(op, "bytes of a row", bytes / 16)
}
