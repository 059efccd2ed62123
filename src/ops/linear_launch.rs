//! Products with a weight on a GPU, and what is fused with them: the launches of `kernels/gemm.cu`.
//!
//! Shapes are those of the plan; the kernels take the rows in use from the step's parameters. `x` A `[T, in]`, `w` A
//! `[out, in]`, `dy` A `[T, out]`; a [`Projection`] may have an adapter. All functions check before they
//! launch anything, and return [`Error::Shape`] or [`Error::Unsupported`] naming the argument, or [`Error::Cuda`] if the
//! driver refuses.

#![allow(missing_docs, reason = "errors of all functions are named above")]

use super::attention::Heads;
use super::linear::{LowRank, Projection};
use crate::arena::Tensor;
use crate::cuda::{
    Cuda, Cut, Extent, Product, Rung, blocks_of, cuda, dim_i32, dim_u32, expect, expect_chunks,
};
use crate::dtype::DType;
use crate::error::{Error, Result};
use bytemuck::{Pod, Zeroable};
use cudarc::driver::{DeviceRepr, LaunchConfig, PushKernelArg};

/// Threads of a block; also columns of the result per block of the naive kernels.
const THREADS: u32 = 128;

/// Largest second dimension of a grid.
const MOST_BLOCKS_Y: u32 = 65_535;

/// Room for partial sums of weight gradients: twelve of SmolLM2-135M's smallest, four of SmolLM2-360M's. The matrices that
/// do not fit twice have tiles enough.
pub const WORKSPACE_BYTES: usize = 16 << 20;

/// Which rows a product is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// The micro-batch's tokens.
    Tokens,
    /// A chunk of the supervised positions, from this one on.
    Supervised {
        /// Positions before the chunk.
        first: usize,
    },
    /// All rows of the buffers.
    Planned,
}

/// `struct LinearArgs` of `kernels/gemm.cu`; addresses are the device's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct LinearArgs {
    step: u64,
    a: u64,
    b: u64,
    c: u64,
    residual: u64,
    positions: u64,
    cos: u64,
    sin: u64,
    gate_up: u64,
    act: u64,
    inputs: i32,
    outputs: i32,
    rows: i32,
    first: i32,
    turned: i32,
    head_dim: i32,
    partials: u64,
    splits: i32,
    rank: i32,
    bias: u64,
    left: u64,
    right: u64,
    site: u32,
    threshold: u32,
    factor: f32,
    unused: i32,
}

const _: () = assert!(size_of::<LinearArgs>() == 160, "as in kernels/gemm.cu");

// SAFETY: plain numbers without padding, laid out as the kernels' parameter; the static assertions on both sides hold
// the size.
unsafe impl DeviceRepr for LinearArgs {}

/// `y = x·wᵀ`, `y` A `[T, out]`.
pub fn linear(device: &Cuda, rung: Rung, x: Tensor, w: Tensor, y: Tensor) -> Result<()> {
    const OP: &str = "linear";
    let (t, a) = (x.rows, device.dtype);
    expect(OP, [("x", x, [t, w.cols], a), ("w", w, [w.rows, w.cols], a), ("y", y, [t, w.rows], a)])?;
    Call::new(OP, x, w, y, [w.cols, w.rows]).launch(device, &device.kernels.linear, rung)
}

/// `y = x·wᵀ`, `y` f32 `[T, out]`.
pub fn linear_wide(device: &Cuda, rung: Rung, rows: Rows, x: Tensor, w: Tensor, y: Tensor) -> Result<()> {
    const OP: &str = "linear_wide";
    let (t, a) = (x.rows, device.dtype);
    expect(OP, [("x", x, [t, w.cols], a), ("w", w, [w.rows, w.cols], a), ("y", y, [t, w.rows], DType::F32)])?;
    let call = Call { over: rows, ..Call::new(OP, x, w, y, [w.cols, w.rows]) };
    call.launch(device, &device.kernels.linear_wide, rung)
}

/// `y = residual + x·wᵀ + bias`. `residual`, `y` f32 `[T, out]`; they may be the same buffer.
pub fn linear_residual(
    device: &Cuda,
    rung: Rung,
    x: Tensor,
    w: impl Into<Projection>,
    residual: Tensor,
    y: Tensor,
) -> Result<()> {
    const OP: &str = "linear_residual";
    let Projection { w, bias, adapter } = w.into();
    let (t, a) = (x.rows, device.dtype);
    expect(OP, [("x", x, [t, w.cols], a), ("w", w, [w.rows, w.cols], a)])?;
    expect(OP, [("residual", residual, [t, w.rows], DType::F32), ("y", y, [t, w.rows], DType::F32)])?;
    let call = Call { residual: Some(residual), bias, adapter, ..Call::new(OP, x, w, y, [w.cols, w.rows]) };
    call.launch(device, &device.kernels.linear_residual, rung)
}

/// How q and k are rotated.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    /// Which columns are heads.
    pub heads: Heads,
    /// Position of each token, u32 `[1, T]`.
    pub positions: Tensor,
    /// Cosines of position × frequency, f32 `[positions, D/2]`.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

/// `qkv = x·wᵀ + bias`, q and k rotated by their tokens' positions, rounded after that. `qkv` A `[T, (H + 2K)·D]`.
pub fn linear_rope(
    device: &Cuda,
    rung: Rung,
    rotation: Rotation,
    x: Tensor,
    w: impl Into<Projection>,
    qkv: Tensor,
) -> Result<()> {
    const OP: &str = "linear_rope";
    let Projection { w, bias, adapter } = w.into();
    let Rotation { heads, positions, cos, sin } = rotation;
    let (t, a, width, half) = (x.rows, device.dtype, heads.qkv_width(), heads.head_dim / 2);
    expect(OP, [("x", x, [t, w.cols], a), ("w", w, [width, w.cols], a), ("qkv", qkv, [t, width], a)])?;
    expect(OP, [("positions", positions, [1, positions.cols.max(t)], DType::U32)])?;
    expect(OP, [("cos", cos, [cos.rows, half], DType::F32), ("sin", sin, [cos.rows, half], DType::F32)])?;
    if rung == Rung::Production && !matches!(heads.head_dim, 16 | 32 | 64) {
        let got = heads.head_dim.to_string();
        return Err(Error::Unsupported { op: OP, dim: "head_dim", got, rule: "16, 32 or 64" });
    }
    let call = Call { rotation: Some(rotation), bias, adapter, ..Call::new(OP, x, w, qkv, [w.cols, width]) };
    call.launch(device, &device.kernels.linear_rope, rung)
}

/// `gate_up = x·wᵀ + bias` (`w`: gate rows, then up rows), `act = silu(gate)·up`. `gate_up` A `[T, 2F]`, `act` A `[T, F]`.
pub fn linear_swiglu(
    device: &Cuda,
    rung: Rung,
    x: Tensor,
    w: impl Into<Projection>,
    gate_up: Tensor,
    act: Tensor,
) -> Result<()> {
    const OP: &str = "linear_swiglu";
    let Projection { w, bias, adapter } = w.into();
    let (t, a, f) = (x.rows, device.dtype, act.cols);
    expect(OP, [("x", x, [t, w.cols], a), ("w", w, [2 * f, w.cols], a)])?;
    expect(OP, [("gate_up", gate_up, [t, 2 * f], a), ("act", act, [t, f], a)])?;
    expect_chunks(OP, rung, "F", f)?;
    let swiglu = Some((gate_up, Some(act)));
    let call = Call { swiglu, bias, adapter, ..Call::new(OP, x, w, gate_up, [w.cols, 2 * f]) };
    call.launch(device, &device.kernels.linear_swiglu, rung)
}

/// `dx = dy·w`, `dx` A `[T, in]`. A bias has no part in it.
pub fn input_gradient(
    device: &Cuda,
    rung: Rung,
    rows: Rows,
    dy: Tensor,
    w: impl Into<Projection>,
    dx: Tensor,
) -> Result<()> {
    const OP: &str = "linear_input_gradient";
    let Projection { w, adapter, .. } = w.into();
    let (t, a) = (dy.rows, device.dtype);
    expect(OP, [("dy", dy, [t, w.rows], a), ("w", w, [w.rows, w.cols], a), ("dx", dx, [t, w.cols], a)])?;
    let call = Call { over: rows, adapter, ..Call::new(OP, dy, w, dx, [w.cols, w.rows]) };
    let call = Call { is_gradient: true, ..call };
    call.launch(device, &device.kernels.linear_input_gradient, rung)
}

/// From `d = A(dy·w)`, with `w` the down projection A `[C, F]`, whose bias has no part in it: the gradient of gate
/// and up and, where it is wanted, `act = silu(gate)·up` once more. `gate_up`, `dgate_up` A `[T, 2F]`, `act` A `[T, F]`.
pub fn swiglu_backward(
    device: &Cuda,
    rung: Rung,
    dy: Tensor,
    w: impl Into<Projection>,
    gate_up: Tensor,
    act: Option<Tensor>,
    dgate_up: Tensor,
) -> Result<()> {
    const OP: &str = "linear_swiglu_backward";
    let Projection { w, adapter, .. } = w.into();
    let (t, a, f) = (dy.rows, device.dtype, w.cols);
    expect(OP, [("dy", dy, [t, w.rows], a), ("w", w, [w.rows, f], a)])?;
    act.map_or(Ok(()), |act| expect(OP, [("act", act, [t, f], a)]))?;
    expect(OP, [("gate_up", gate_up, [t, 2 * f], a), ("dgate_up", dgate_up, [t, 2 * f], a)])?;
    let call = Call { swiglu: Some((gate_up, act)), ..Call::new(OP, dy, w, dgate_up, [f, w.rows]) };
    let call = Call { columns: f, is_gradient: true, adapter, ..call };
    call.launch(device, &device.kernels.linear_swiglu_backward, rung)
}

/// `dw = dyᵀ·x`, overwritten or, where the step's parameters say so or the chunk is not the first, added to. `dw` f32
/// `[out, in]`.
pub fn weight_gradient(
    device: &Cuda,
    rung: Rung,
    rows: Rows,
    dy: Tensor,
    x: Tensor,
    dw: Tensor,
) -> Result<()> {
    const OP: &str = "linear_weight_gradient";
    let (t, a) = (x.rows, device.dtype);
    expect(OP, [("dy", dy, [t, dy.cols], a), ("x", x, [t, x.cols], a)])?;
    expect(OP, [("dw", dw, [dy.cols, x.cols], DType::F32)])?;
    let call = Call { over: rows, planned: t, ..Call::new(OP, dy, x, dw, [x.cols, dy.cols]) };
    // As many partial results as there is room for.
    let most_splits = device.workspace.map_or(1, |workspace| workspace.len() / dw.len().max(1));
    let call = Call { most_splits, ..call };
    call.launch(device, &device.kernels.linear_weight_gradient, rung)
}

/// `c = a·b` of buffers that were checked.
#[derive(Clone, Copy)]
struct Call {
    op: &'static str,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    inputs: usize,
    outputs: usize,
    over: Rows,
    /// Rows of the plan that are tokens or supervised positions.
    planned: usize,
    /// Columns of the product, where `c` is wider.
    columns: usize,
    /// Parts that the sums may be split into; 0 and 1 are the same.
    most_splits: usize,
    residual: Option<Tensor>,
    rotation: Option<Rotation>,
    /// Gate and up, and act where it is written.
    swiglu: Option<(Tensor, Option<Tensor>)>,
    bias: Option<Tensor>,
    adapter: Option<LowRank>,
    /// Of the inputs: the adapter's right operand is not transposed, and there may be dropout.
    is_gradient: bool,
}

impl Call {
    fn new(op: &'static str, a: Tensor, b: Tensor, c: Tensor, [inputs, outputs]: [usize; 2]) -> Self {
        let (planned, columns, over) = (c.rows, c.cols, Rows::Tokens);
        Self {
            op,
            a,
            b,
            c,
            inputs,
            outputs,
            over,
            planned,
            columns,
            most_splits: 1,
            residual: None,
            rotation: None,
            swiglu: None,
            bias: None,
            adapter: None,
            is_gradient: false,
        }
    }

    /// Checks the adapter's operands.
    fn check(&self, adapter: LowRank, dtype: DType, rung: Rung) -> Result<()> {
        let (op, LowRank { left, right, dropout }) = (self.op, adapter);
        let rank = left.cols;
        let shape = if self.is_gradient { [rank, self.inputs] } else { [self.outputs, rank] };
        expect(op, [("left", left, [self.c.rows, rank], dtype), ("right", right, shape, dtype)])?;
        expect_chunks(op, rung, "rank", rank)?;
        if dropout.is_none() || self.is_gradient {
            return Ok(());
        }
        let rule = "none in a forward product: its left operand has it in it";
        Err(Error::Unsupported { op, dim: "dropout", got: "one".into(), rule })
    }

    fn launch(&self, device: &Cuda, product: &Product, rung: Rung) -> Result<()> {
        let op = self.op;
        self.bias.map_or(Ok(()), |bias| expect(op, [("bias", bias, [1, self.outputs], device.dtype)]))?;
        self.adapter.map_or(Ok(()), |adapter| self.check(adapter, device.dtype, rung))?;
        expect_chunks(op, rung, "in", self.inputs)?;
        expect_chunks(op, rung, "out", self.outputs)?;
        let (m, n) = (dim_u32(op, "rows", self.c.rows)?, dim_u32(op, "columns", self.columns)?);
        let (function, (x, y), splits) = match rung {
            Rung::Naive => (product.naive(), (n.div_ceil(THREADS), m), 1),
            Rung::Production => {
                let Cut { tile, splits } = self.cut(device, product)?;
                // The forward product of SwiGLU takes half a tile of gate and half a tile of up.
                (product.tile(op, tile)?, tile.grid(m, n), splits)
            }
        };
        if y > MOST_BLOCKS_Y {
            let rule = "at most 65535 rows (naive) or tiles of them";
            return Err(Error::Unsupported { op, dim: "rows", got: m.to_string(), rule });
        }
        if m == 0 || n == 0 {
            return Ok(()); // an empty grid is a launch error
        }
        let args = self.args(device, splits)?;
        let config =
            LaunchConfig { grid_dim: (x, y, splits), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        let mut launch = device.stream.launch_builder(function);
        launch.arg(&args);
        // SAFETY: the kernels take one LinearArgs. Shapes, types and alignment of the buffers were checked by the callers
        // (`expect`) and they lie inside the arena (`address` asserts it); the kernels go by `inputs`, `outputs`, `rank`
        // and the rows in use, which are at most the planned ones. Buffers that a product does not have are read by none of
        // its kernels. The workspace has room for `most_splits` results, and `splits` is no more. One stream, so nothing
        // else touches the buffers at the time.
        unsafe { launch.launch(config) }.map_err(cuda(op))?;
        if splits > 1 { self.finish(device, &args) } else { Ok(()) }
    }

    /// How the product is cut: as was forced, as far as it can be, or as is best.
    fn cut(&self, device: &Cuda, product: &Product) -> Result<Cut> {
        let dim = |name, n| dim_u32(self.op, name, n);
        let extent = Extent {
            rows: dim("rows", self.c.rows)?,
            columns: dim("columns", self.columns)?,
            depth: dim("rows", self.planned)?,
            most_splits: u32::try_from(self.most_splits.max(1)).unwrap_or(u32::MAX),
        };
        Ok(match device.cut {
            Some(cut) => Cut { splits: cut.splits.min(extent.most_splits), ..cut },
            None => Cut::best(product.tiles(), extent, device.multiprocessors),
        })
    }

    /// Adds up the partial sums that were launched with `args`.
    fn finish(&self, device: &Cuda, args: &LinearArgs) -> Result<()> {
        let chunks = dim_u32(self.op, "elements", self.c.len() / 4)?; // of whole chunks of eight columns
        let mut launch = device.stream.launch_builder(&device.kernels.linear_weight_gradient_finish);
        launch.arg(args);
        // SAFETY: as for the product itself, whose buffers and sizes these are; a thread per four elements of `c`.
        unsafe { launch.launch(blocks_of(THREADS, chunks.div_ceil(THREADS))) }.map_err(cuda(self.op))?;
        Ok(())
    }

    fn args(&self, device: &Cuda, splits: u32) -> Result<LinearArgs> {
        let op = self.op;
        let at = |t: Option<Tensor>| t.map_or(0, |t| device.address(t));
        let first = match self.over {
            Rows::Tokens => -1,
            Rows::Planned => -2,
            Rows::Supervised { first } => dim_i32(op, "first", first)?,
        };
        let heads = self.rotation.map(|r| r.heads);
        let (left, right) = self.adapter.map_or((None, None), |a| (Some(a.left), Some(a.right)));
        let dropout = self.adapter.and_then(|a| a.dropout);
        Ok(LinearArgs {
            step: device.step_address(),
            a: device.address(self.a),
            b: device.address(self.b),
            c: device.address(self.c),
            residual: at(self.residual),
            positions: at(self.rotation.map(|r| r.positions)),
            cos: at(self.rotation.map(|r| r.cos)),
            sin: at(self.rotation.map(|r| r.sin)),
            gate_up: at(self.swiglu.map(|(gate_up, _)| gate_up)),
            act: at(self.swiglu.and_then(|(_, act)| act)),
            inputs: dim_i32(op, "in", self.inputs)?,
            outputs: dim_i32(op, "out", self.outputs)?,
            rows: dim_i32(op, "rows", self.planned)?,
            first,
            turned: dim_i32(op, "heads", heads.map_or(0, |h| (h.heads + h.kv_heads) * h.head_dim))?,
            head_dim: dim_i32(op, "head_dim", heads.map_or(0, |h| h.head_dim))?,
            partials: at(device.workspace),
            splits: splits.cast_signed(),
            rank: dim_i32(op, "rank", left.map_or(0, |left| left.cols))?,
            bias: at(self.bias),
            left: at(left),
            right: at(right),
            site: dropout.map_or(0, |d| d.site),
            threshold: dropout.map_or(0, |d| d.threshold),
            factor: dropout.map_or(1.0, |d| d.factor),
            unused: 0,
        })
    }
}
