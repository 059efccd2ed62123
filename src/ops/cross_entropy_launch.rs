//! The output head on a GPU: logits, loss and gradients, a chunk of supervised positions at a time.

use super::cross_entropy::{HeadGradients, LinearCrossEntropy};
use super::linear_launch::{self, Rows};
use super::rows;
use crate::arena::Tensor;
use crate::cuda::{
    Cuda, Rung, SUMS_AT, blocks_of, cuda, dim_i32, dim_u32, expect_aligned, expect_chunks, expect_dtype,
    expect_list,
};
use crate::dtype::DType;
use crate::error::{Error, Result};
use bytemuck::{Pod, Zeroable};
use cudarc::driver::{DeviceRepr, PushKernelArg};

const OP: &str = "linear_cross_entropy";

/// Sums over the micro-batches of a window; `struct LossSums` of `kernels/cross_entropy.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct LossSums {
    /// Of the losses, in nats.
    pub loss_sum: f64,
    /// Of the entropies, in nats.
    pub entropy_sum: f64,
    /// Positions whose target had the largest logit.
    pub correct: u64,
}

/// `struct CrossEntropyArgs` of `kernels/cross_entropy.cu`; addresses are the device's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct CrossEntropyArgs {
    step: u64,
    logits: u64,
    dlogits: u64,
    targets: u64,
    loss_rows: u64,
    losses: u64,
    sums: u64,
    first: i32,
    rows: i32,
    vocab: i32,
    unused: i32,
    entropies: u64,
}

const _: () = assert!(size_of::<CrossEntropyArgs>() == 80, "as in kernels/cross_entropy.cu");

// SAFETY: plain numbers without padding, laid out as the kernels' parameter; the static assertions on both sides hold
// the size.
unsafe impl DeviceRepr for CrossEntropyArgs {}

/// Rungs of the head's kernels: those of rows, and those of matrix products, which f32 has only one of.
#[derive(Clone, Copy, Debug)]
pub struct HeadRungs {
    /// Gathering, cross-entropy, scattering.
    pub rows: Rung,
    /// Logits and gradients.
    pub products: Rung,
}

/// Launches the head over as many chunks as the planned rows of `x` make, of which those beyond
/// `step->supervised` do nothing; returns at once. `lists` are `targets` and `loss_rows`.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Unsupported`], each before what it is about is launched; [`Error::Cuda`] if the
/// driver refuses.
pub fn launch(device: &Cuda, rungs: HeadRungs, lists: [Tensor; 2], args: &LinearCrossEntropy) -> Result<()> {
    check(device.dtype, rungs.rows, lists, args)?;
    if let Some(g) = args.gradients {
        rows::zero(device, rungs.rows, g.dx)?;
    }
    let chunk = args.logits.rows;
    for first in (0..args.x.rows).step_by(chunk) {
        launch_chunk(device, rungs, lists, args, first)?;
    }
    launch_finish(device, args)
}

/// As `Cpu::head_chunk` does it; positions before the chunk are `first`.
fn launch_chunk(
    device: &Cuda,
    rungs: HeadRungs,
    lists: [Tensor; 2],
    args: &LinearCrossEntropy,
    first: usize,
) -> Result<()> {
    let [_, loss_rows] = lists;
    let (chunk, products) = (Rows::Supervised { first }, rungs.products);
    rows::gather(device, rungs.rows, loss_rows, first, args.x, args.x_chunk)?;
    linear_launch::linear_wide(device, products, chunk, args.x_chunk, args.w, args.logits)?;
    launch_rows(device, rungs.rows, lists, args, first)?;
    let Some(HeadGradients { dx, dw, dlogits, dx_chunk }) = args.gradients else { return Ok(()) };
    linear_launch::input_gradient(device, products, chunk, dlogits, args.w, dx_chunk)?;
    if let Some(dw) = dw {
        linear_launch::weight_gradient(device, products, chunk, dlogits, args.x_chunk, dw)?;
    }
    rows::scatter(device, rungs.rows, loss_rows, first, dx_chunk, dx)
}

/// Launches loss and gradient of the first chunk's rows alone, for benches.
///
/// # Errors
/// As [`launch`].
pub fn launch_first_rows(
    device: &Cuda,
    rung: Rung,
    lists: [Tensor; 2],
    args: &LinearCrossEntropy,
) -> Result<()> {
    check(device.dtype, rung, lists, args)?;
    launch_rows(device, rung, lists, args, 0)
}

fn launch_rows(
    device: &Cuda,
    rung: Rung,
    [targets, loss_rows]: [Tensor; 2],
    args: &LinearCrossEntropy,
    first: usize,
) -> Result<()> {
    const NAIVE_THREADS: u32 = 128;
    const THREADS: u32 = 512;
    let chunk = dim_u32(OP, "rows", args.logits.rows)?;
    let config = match rung {
        Rung::Naive => blocks_of(NAIVE_THREADS, chunk.div_ceil(NAIVE_THREADS)),
        Rung::Production => blocks_of(THREADS, chunk),
    };
    let parameter = CrossEntropyArgs {
        step: device.step_address(),
        logits: device.address(args.logits),
        dlogits: args.gradients.map_or(0, |g| device.address(g.dlogits)),
        targets: device.address(targets),
        loss_rows: device.address(loss_rows),
        losses: device.address(args.losses),
        sums: device.step_address() + SUMS_AT as u64,
        first: dim_i32(OP, "first", first)?,
        rows: dim_i32(OP, "rows", args.logits.rows)?,
        vocab: dim_i32(OP, "V", args.w.rows)?,
        unused: 0,
        entropies: device.address(args.entropies),
    };
    let mut launch = device.stream.launch_builder(device.kernels.cross_entropy.rung(OP, rung)?);
    launch.arg(&parameter);
    // SAFETY: the kernels take one CrossEntropyArgs. Shapes, types and alignment were checked (`check`) and the buffers
    // lie inside the arena (`address` asserts it). A row of the chunk is in use where `first` and it are below
    // `step->supervised`, which is at most the planned rows, so its entries of the lists and of `losses` exist. A
    // row of logits is read and written by the same threads. One stream, so nothing else touches the buffers.
    unsafe { launch.launch(config) }.map_err(cuda(OP))?;
    Ok(())
}

fn launch_finish(device: &Cuda, args: &LinearCrossEntropy) -> Result<()> {
    const THREADS: u32 = 256;
    let (step, sums) = (device.step_address(), device.step_address() + SUMS_AT as u64);
    let [losses, entropies] = [args.losses, args.entropies].map(|t| device.address(t));
    let mut launch = device.stream.launch_builder(&device.kernels.cross_entropy_finish);
    launch.arg(&step).arg(&losses).arg(&entropies).arg(&sums);
    // SAFETY: the four arguments match the kernel's parameters. It reads the `step->supervised` losses and entropies that
    // the kernels before it on the same stream wrote, and adds to the one LossSums behind the step's parameters.
    unsafe { launch.launch(blocks_of(THREADS, 1)) }.map_err(cuda(OP))?;
    Ok(())
}

/// What the products and the moves of rows do not check themselves.
fn check(a: DType, rung: Rung, lists: [Tensor; 2], args: &LinearCrossEntropy) -> Result<()> {
    let (t, chunk, v) = (args.x.rows, args.logits.rows, args.w.rows);
    for (arg, list) in [("targets", lists[0]), ("loss_rows", lists[1])] {
        expect_list(OP, arg, list, t)?;
    }
    for (arg, list) in [("losses", args.losses), ("entropies", args.entropies)] {
        list.expect(OP, arg, [1, list.cols.max(t)])?;
        expect_dtype(OP, arg, list, DType::F32)?;
    }
    args.x_chunk.expect(OP, "x_chunk", [chunk, args.w.cols])?;
    if chunk == 0 || v == 0 {
        let got = format!("[{chunk}, {v}]");
        return Err(Error::Unsupported { op: OP, dim: "logits", got, rule: "at least one row and column" });
    }
    let mut logits = vec![("logits", args.logits, DType::F32)];
    if let Some(g) = args.gradients {
        g.dx.expect(OP, "dx", [t, args.w.cols])?;
        logits.push(("dlogits", g.dlogits, a));
    }
    for (arg, t, dtype) in logits {
        t.expect(OP, arg, [chunk, v])?;
        expect_dtype(OP, arg, t, dtype)?;
        if rung == Rung::Production {
            expect_aligned(OP, arg, t)?;
        }
    }
    expect_chunks(OP, rung, "V", v)
}
