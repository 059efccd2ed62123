//! Token embedding: rows of a table, and the sum of gradients back into those rows in a fixed order.

use super::linear::widen;
use super::math::simd;
use crate::arena::Tensor;
use crate::cuda::{Cuda, Rung, blocks_of, cuda, dim_i32, dim_u32, expect, expect_chunks, expect_list};
use crate::dtype::{DType, Element, Q8_0};
use crate::error::{Error, Result};
use cudarc::driver::PushKernelArg;
use rayon::prelude::*;

/// `x[t] = w[ids[t]]`, widened. `w` A `[V, C]`, `x` f32 `[T, C]`.
///
/// # Panics
/// If an id is not below V: the tokenizer and the model were checked against each other when they were loaded.
pub fn forward<E: Element>(ids: &[u32], w: &[E], x: &mut [f32], c: usize) {
    x.par_chunks_exact_mut(c).zip(ids).for_each(|(x, &id)| {
        let row = &w[id as usize * c..][..c];
        simd(
            #[inline(always)]
            || x.iter_mut().zip(row).for_each(|(x, w)| *x = w.to_f32()),
        );
    });
}

/// As [`forward`], from blocks along the rows.
///
/// # Panics
/// As there.
pub fn forward_q8_0(ids: &[u32], w: &[Q8_0], x: &mut [f32], c: usize) {
    let blocks = c / Q8_0::LEN;
    x.par_chunks_exact_mut(c).zip(ids).for_each(|(x, &id)| widen(&w[id as usize * blocks..][..blocks], x));
}

/// `dw[id] += Σ dx[t]` over the tokens with that id. `dx` f32 `[T, C]`, `dw` f32 `[V, C]`.
///
/// `by_id` lists the tokens sorted by id, equal ids by position; `id_starts` where each distinct id begins, and the
/// end. The tokens of one row are added in that order, whatever the number of threads. Without `add`, rows without
/// a token become zero.
pub fn backward(
    ids: &[u32],
    by_id: &[u32],
    id_starts: &[u32],
    dx: &[f32],
    dw: &mut [f32],
    c: usize,
    add: bool,
) {
    const ROWS: usize = 256;
    let distinct = id_starts.len().saturating_sub(1);
    let id_of = |segment: usize| ids[by_id[id_starts[segment] as usize] as usize] as usize;
    dw.par_chunks_mut(ROWS * c).enumerate().for_each(|(block, dw)| {
        if !add {
            dw.fill(0.0);
        }
        let first = block * ROWS;
        let mut segment = partition(distinct, |s| id_of(s) < first);
        while segment < distinct && id_of(segment) < first + dw.len() / c {
            let row = &mut dw[(id_of(segment) - first) * c..][..c];
            for &t in &by_id[id_starts[segment] as usize..id_starts[segment + 1] as usize] {
                let dx = &dx[t as usize * c..][..c];
                simd(
                    #[inline(always)]
                    || row.iter_mut().zip(dx).for_each(|(w, x)| *w += x),
                );
            }
            segment += 1;
        }
    });
}

/// The first of `0..n` for which `before` is false, `before` being true and then false.
fn partition(n: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, n);
    while low < high {
        let middle = low.midpoint(high);
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// Threads of a block of `kernels/embedding.cu`.
const THREADS: u32 = 128;

/// Columns of a gradient that a warp of the production kernel takes.
const TILE: u32 = 128;

/// Blocks that stride over a gradient to clear it.
const CLEARING_BLOCKS: u32 = 1024;

/// Launches [`forward`] on the rows in use, and returns at once. `ids` u32 `[1, T]` or longer.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Unsupported`] before anything is launched; [`Error::Cuda`] if the driver refuses.
pub fn launch_forward(device: &Cuda, rung: Rung, ids: Tensor, w: Tensor, x: Tensor) -> Result<()> {
    const OP: &str = "embedding_forward";
    let rows = dim_u32(OP, "T", x.rows)?;
    expect_list(OP, "ids", ids, x.rows)?;
    expect(OP, [("w", w, [w.rows, w.cols], device.dtype), ("x", x, [x.rows, w.cols], DType::F32)])?;
    expect_chunks(OP, rung, "C", w.cols)?;
    let per_block = if rung == Rung::Production { THREADS / 32 } else { THREADS };
    if rows == 0 {
        return Ok(()); // an empty grid is a launch error
    }
    let [ids, weight, x] = [ids, w, x].map(|t| device.address(t));
    let (params, c) = (device.step_address(), dim_i32(OP, "C", w.cols)?);
    let mut launch = device.stream.launch_builder(device.kernels.embedding_forward.rung(OP, rung)?);
    launch.arg(&params).arg(&ids).arg(&weight).arg(&x).arg(&c);
    // SAFETY: the five arguments match the kernel's parameters. Shapes, types and alignment were checked and the buffers
    // lie inside the arena (`address` asserts it); rows go up to `step->tokens`, at most the planned ones, and ids are
    // below V since the tokenizer fits the model. One stream, so nothing else touches the buffers at the time.
    unsafe { launch.launch(blocks_of(THREADS, rows.div_ceil(per_block))) }.map_err(cuda(OP))?;
    Ok(())
}

/// Launches [`backward`] on the rows in use, and returns at once. `lists` are `ids`, `by_id` and `id_starts`. It adds
/// where the step's parameters say so, and always if `tied`.
///
/// # Errors
/// As [`launch_forward`].
pub fn launch_backward(
    device: &Cuda,
    rung: Rung,
    lists: [Tensor; 3],
    dx: Tensor,
    dw: Tensor,
    tied: bool,
) -> Result<()> {
    const OP: &str = "embedding_backward";
    let (rows, columns) = (dim_u32(OP, "T", dx.rows)?, dim_u32(OP, "C", dw.cols)?);
    let [ids, by_id, id_starts] = lists;
    expect_list(OP, "ids", ids, dx.rows)?;
    expect_list(OP, "by_id", by_id, dx.rows)?;
    expect_list(OP, "id_starts", id_starts, dx.rows + 1)?;
    let (wide, c) = (DType::F32, dw.cols);
    expect(OP, [("dx", dx, [dx.rows, c], wide), ("dw", dw, [dw.rows, c], wide)])?;
    expect_chunks(OP, rung, "C", c)?;
    let (params, n, c) = (device.step_address(), dw.len() as u64, dim_i32(OP, "C", c)?);
    let [ids, by_id, id_starts, dx, dw] = [ids, by_id, id_starts, dx, dw].map(|t| device.address(t));
    if !tied {
        let mut launch = device.stream.launch_builder(device.kernels.embedding_clear.rung(OP, rung)?);
        launch.arg(&params).arg(&dw).arg(&n);
        // SAFETY: the three arguments match the kernel's parameters; it writes the n elements of dw, a multiple of 4
        // and aligned where it writes 16 bytes (checked).
        unsafe { launch.launch(blocks_of(THREADS, CLEARING_BLOCKS)) }.map_err(cuda(OP))?;
    }
    let blocks = match rung {
        Rung::Naive => rows.div_ceil(THREADS),
        Rung::Production => {
            let warps = rows.checked_mul(columns.div_ceil(TILE));
            let rule = "fewer than 2^32 tiles of 128 columns";
            let too_many = || Error::Unsupported { op: OP, dim: "T", got: rows.to_string(), rule };
            warps.ok_or_else(too_many)?.div_ceil(THREADS / 32)
        }
    };
    if blocks == 0 {
        return Ok(());
    }
    let mut launch = device.stream.launch_builder(device.kernels.embedding_backward.rung(OP, rung)?);
    launch.arg(&params).arg(&ids).arg(&by_id).arg(&id_starts).arg(&dx).arg(&dw).arg(&c);
    // SAFETY: the seven arguments match the kernel's parameters. Shapes, types and alignment were checked and the buffers
    // lie inside the arena (`address` asserts it). There are at most `rows` distinct ids, each a row of dw that one
    // thread per column writes. One stream, so nothing else touches the buffers at the time.
    unsafe { launch.launch(blocks_of(THREADS, blocks)) }.map_err(cuda(OP))?;
    Ok(())
}
