//! Attention on a GPU: the launches of `kernels/attention.cu` and `kernels/attention_backward.cu`.
//!
//! Shapes are those of the plan; the kernels take tokens and sequences in use from the step's parameters and find their
//! sequence in `cu_seqlens`, u32 `[1, sequences + 1]`. All functions check before they launch anything, and return
//! [`Error::Shape`] or [`Error::Unsupported`] naming the argument, or [`Error::Cuda`] if the driver refuses.

#![allow(missing_docs, reason = "errors of all functions are named above")]

use super::attention::Heads;
use crate::arena::Tensor;
use crate::cuda::{Cuda, Rung, cuda, dim_i32, dim_u32, expect};
use crate::dtype::DType;
use crate::error::{Error, Result};
use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaFunction, DeviceRepr, LaunchConfig, PushKernelArg};

/// Threads of a block.
const THREADS: u32 = 128;

/// Warps of a block; the naive kernels give each a row and head.
const WARPS: usize = 4;

/// Queries, and keys, of a block of the production kernels.
const TILE: usize = 64;

/// Arguments of the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBackward {
    /// Rotated q, k and v, A `[T, (H + 2K)·D]`.
    pub qkv: Tensor,
    /// Output of the forward pass, A `[T, H·D]`.
    pub out: Tensor,
    /// Log-sum-exp of each row's scaled scores, f32 `[T, H]`.
    pub lse: Tensor,
    /// Gradient of `out`, A `[T, H·D]`.
    pub dout: Tensor,
    /// Out: gradient of q, k and v before rotation, A `[T, (H + 2K)·D]`.
    pub dqkv: Tensor,
    /// Room for rowsum(dout·out), f32 `[T, H]`.
    pub delta: Tensor,
}

/// `struct AttentionArgs` of `kernels/attention.cuh`; addresses are the device's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct AttentionArgs {
    step: u64,
    cu_seqlens: u64,
    positions: u64,
    cos: u64,
    sin: u64,
    qkv: u64,
    out: u64,
    lse: u64,
    dout: u64,
    dqkv: u64,
    delta: u64,
    keys: u64,
    values: u64,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    past: i32,
    capacity: i32,
    unused: i32,
}

const _: () = assert!(size_of::<AttentionArgs>() == 128, "as in kernels/attention.cuh");

// SAFETY: plain numbers without padding, laid out as the kernels' parameter; the static assertions on both sides hold
// the size.
unsafe impl DeviceRepr for AttentionArgs {}

/// `out = softmax(q·kᵀ/√D + causal mask)·v` within each sequence, `lse` the log-sum-exp of each row's scaled scores.
/// `qkv` A `[T, (H + 2K)·D]`, `out` A `[T, H·D]`, `lse` f32 `[T, H]`.
pub fn forward(
    device: &Cuda,
    rung: Rung,
    heads: Heads,
    cu_seqlens: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
) -> Result<()> {
    const OP: &str = "attention_forward";
    let (t, a) = (out.rows, device.dtype);
    expect(OP, [("qkv", qkv, [t, heads.qkv_width()], a), ("out", out, [t, heads.width()], a)])?;
    expect(OP, [("lse", lse, [t, heads.heads], DType::F32)])?;
    let sequences = expect_sequences(OP, cu_seqlens)?;
    expect_heads(OP, rung, heads)?;
    let function = device.kernels.attention_forward.rung(OP, rung)?;
    let args = AttentionArgs {
        cu_seqlens: device.address(cu_seqlens),
        qkv: device.address(qkv),
        out: device.address(out),
        lse: device.address(lse),
        ..args(OP, device, heads)?
    };
    launch(OP, device, function, grid(OP, rung, t, sequences, heads.heads)?, args)
}

/// Gradient of attention, and of the rotation by `positions` u32 `[1, T]` before it. `rope`: cosines and sines, f32
/// `[positions, D/2]`.
pub fn backward(
    device: &Cuda,
    rung: Rung,
    heads: Heads,
    cu_seqlens: Tensor,
    positions: Tensor,
    rope: [Tensor; 2],
    of: AttentionBackward,
) -> Result<()> {
    const OP: &str = "attention_backward";
    let (t, a) = (of.out.rows, device.dtype);
    let (wide, narrow) = ([t, heads.qkv_width()], [t, heads.width()]);
    expect(OP, [("qkv", of.qkv, wide, a), ("dqkv", of.dqkv, wide, a)])?;
    expect(OP, [("out", of.out, narrow, a), ("dout", of.dout, narrow, a)])?;
    expect(
        OP,
        [("lse", of.lse, [t, heads.heads], DType::F32), ("delta", of.delta, [t, heads.heads], DType::F32)],
    )?;
    expect(OP, [("positions", positions, [1, positions.cols.max(t)], DType::U32)])?;
    let ([cos, sin], half) = (rope, heads.head_dim / 2);
    expect(OP, [("cos", cos, [cos.rows, half], DType::F32), ("sin", sin, [cos.rows, half], DType::F32)])?;
    let sequences = expect_sequences(OP, cu_seqlens)?;
    expect_heads(OP, rung, heads)?;
    let query = device.kernels.attention_backward_query.rung(OP, rung)?;
    let keys = device.kernels.attention_backward_keys.rung(OP, rung)?;
    let args = AttentionArgs {
        cu_seqlens: device.address(cu_seqlens),
        positions: device.address(positions),
        cos: device.address(cos),
        sin: device.address(sin),
        qkv: device.address(of.qkv),
        out: device.address(of.out),
        lse: device.address(of.lse),
        dout: device.address(of.dout),
        dqkv: device.address(of.dqkv),
        delta: device.address(of.delta),
        ..args(OP, device, heads)?
    };
    // The second reads what the first writes to `delta`.
    launch(OP, device, query, grid(OP, rung, t, sequences, heads.heads)?, args)?;
    launch(OP, device, keys, grid(OP, rung, t, sequences, heads.kv_heads)?, args)
}

/// Appends the tokens' keys and values to the cache of one sequence behind `past` positions, and attends to all of them.
/// `qkv` A `[T, (H + 2K)·D]`, `keys` and `values` A `[positions, K·D]`, `out` A `[T, H·D]`.
///
/// Tokens in use that have no place in the cache are left out; the caller knows how many there are. So are those beyond
/// `qkv`, which another sequence has.
pub fn cached(
    device: &Cuda,
    rung: Rung,
    heads: Heads,
    past: usize,
    qkv: Tensor,
    [keys, values]: [Tensor; 2],
    out: Tensor,
) -> Result<()> {
    const OP: &str = "attention_cached";
    let (t, a) = (out.rows, device.dtype);
    expect(OP, [("qkv", qkv, [t, heads.qkv_width()], a), ("out", out, [t, heads.width()], a)])?;
    let cache = [keys.rows, heads.kv_heads * heads.head_dim];
    expect(OP, [("keys", keys, cache, a), ("values", values, cache, a)])?;
    expect_heads(OP, Rung::Naive, heads)?;
    if rung == Rung::Production && !heads.head_dim.is_multiple_of(8) {
        let got = heads.head_dim.to_string();
        return Err(Error::Unsupported { op: OP, dim: "head_dim", got, rule: "a multiple of 8" });
    }
    if past > keys.rows {
        let rule = "no more positions than the cache was planned for";
        return Err(Error::Unsupported { op: OP, dim: "positions", got: past.to_string(), rule });
    }
    let args = AttentionArgs {
        qkv: device.address(qkv),
        out: device.address(out),
        keys: device.address(keys),
        values: device.address(values),
        past: dim_i32(OP, "past", past)?,
        capacity: dim_i32(OP, "positions", keys.rows.min(past + t))?,
        ..args(OP, device, heads)?
    };
    let tokens = dim_u32(OP, "T", t)?;
    let grid = match rung {
        Rung::Naive => grid(OP, rung, t, 0, heads.heads)?,
        Rung::Production => (tokens, dim_u32(OP, "heads", heads.heads)?, 1),
    };
    launch(OP, device, device.kernels.attention_append.rung(OP, rung)?, (tokens, 1, 1), args)?;
    launch(OP, device, device.kernels.attention_cached.rung(OP, rung)?, grid, args)
}

/// Sequences that were planned for.
fn expect_sequences(op: &'static str, cu_seqlens: Tensor) -> Result<usize> {
    expect(op, [("cu_seqlens", cu_seqlens, [1, cu_seqlens.cols.max(1)], DType::U32)])?;
    Ok(cu_seqlens.cols - 1)
}

fn expect_heads(op: &'static str, rung: Rung, heads: Heads) -> Result<()> {
    if heads.kv_heads == 0 || !heads.heads.is_multiple_of(heads.kv_heads) {
        let (got, rule) = (format!("{} for {}", heads.heads, heads.kv_heads), "a multiple of the kv heads");
        return Err(Error::Unsupported { op, dim: "heads", got, rule });
    }
    let (fits, rule) = match rung {
        Rung::Naive => {
            (heads.head_dim.is_multiple_of(2) && (2..=128).contains(&heads.head_dim), "even, from 2 to 128")
        }
        Rung::Production => (matches!(heads.head_dim, 16 | 32 | 64), "16, 32 or 64"),
    };
    if fits {
        return Ok(());
    }
    Err(Error::Unsupported { op, dim: "head_dim", got: heads.head_dim.to_string(), rule })
}

/// Blocks for `heads` heads of `tokens` rows: naive, a warp each; production, those of one tile of one sequence each.
fn grid(
    op: &'static str,
    rung: Rung,
    tokens: usize,
    sequences: usize,
    heads: usize,
) -> Result<(u32, u32, u32)> {
    Ok(match rung {
        Rung::Naive => (dim_u32(op, "rows", (tokens * heads).div_ceil(WARPS))?, 1, 1),
        // A sequence has at most one tile more than fit into its length.
        Rung::Production => {
            (dim_u32(op, "rows", tokens / TILE + sequences)?, dim_u32(op, "heads", heads)?, 1)
        }
    })
}

fn args(op: &'static str, device: &Cuda, heads: Heads) -> Result<AttentionArgs> {
    Ok(AttentionArgs {
        step: device.step_address(),
        heads: dim_i32(op, "heads", heads.heads)?,
        kv_heads: dim_i32(op, "kv heads", heads.kv_heads)?,
        head_dim: dim_i32(op, "head_dim", heads.head_dim)?,
        ..AttentionArgs::zeroed()
    })
}

fn launch(
    op: &'static str,
    device: &Cuda,
    function: &CudaFunction,
    grid_dim: (u32, u32, u32),
    args: AttentionArgs,
) -> Result<()> {
    if grid_dim.0 == 0 || grid_dim.1 == 0 {
        return Ok(()); // an empty grid is a launch error
    }
    let config = LaunchConfig { grid_dim, block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
    let mut launch = device.stream.launch_builder(function);
    launch.arg(&args);
    // SAFETY: the kernels take one AttentionArgs. Shapes, types and alignment of the buffers were checked by the callers
    // (`expect`) and they lie inside the arena (`address` asserts it); the kernels go by the heads, the tokens and
    // sequences in use, which are at most the planned ones, and the cache's capacity. Buffers that an operation does
    // not have are touched by none of its kernels. One stream, so nothing else touches the buffers at the time.
    unsafe { launch.launch(config) }.map_err(cuda(op))?;
    Ok(())
}
