//! Products with a weight on a GPU: the launches of `kernels/gemm.cu`. Shapes as in [`super::linear`], with the rows
//! that were planned; the kernels take the rows in use from the step's parameters.

use crate::arena::Tensor;
use crate::cuda::{Cuda, Ladder, Rung, cuda, dim_i32, dim_u32, expect_aligned, expect_dtype};
use crate::dtype::DType;
use crate::error::{Error, Result};
use cudarc::driver::{LaunchConfig, PushKernelArg};

/// Threads of a block; also columns of the result per block of the naive kernels.
const THREADS: u32 = 128;

/// Rows and columns of the result per block of the production kernels.
const TILE: u32 = 128;

/// Largest second dimension of a grid.
const MOST_BLOCKS_Y: u32 = 65_535;

/// `y = x·wᵀ`. `x` A `[T, in]`, `w` A `[out, in]`, `y` A `[T, out]`.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Unsupported`] before anything is launched; [`Error::Cuda`] if the driver refuses.
/// The same holds for the other launches here.
pub fn launch(device: &Cuda, rung: Rung, x: Tensor, w: Tensor, y: Tensor) -> Result<()> {
    const OP: &str = "linear";
    let (t, inputs, outputs) = (x.rows, w.cols, w.rows);
    expect(OP, device.dtype, [("x", x, [t, inputs]), ("w", w, [outputs, inputs]), ("y", y, [t, outputs])])?;
    let product = Product { op: OP, a: x, b: w, residual: None, c: y, inputs, outputs };
    product.launch(device, &device.kernels.linear, rung)
}

/// `y = residual + x·wᵀ`. `residual`, `y` f32 `[T, out]`; they may be the same buffer.
#[allow(missing_docs, reason = "errors are those of `launch`")]
pub fn launch_residual(
    device: &Cuda,
    rung: Rung,
    x: Tensor,
    w: Tensor,
    residual: Tensor,
    y: Tensor,
) -> Result<()> {
    const OP: &str = "linear_residual";
    let (t, inputs, outputs) = (x.rows, w.cols, w.rows);
    expect(OP, device.dtype, [("x", x, [t, inputs]), ("w", w, [outputs, inputs])])?;
    expect(OP, DType::F32, [("residual", residual, [t, outputs]), ("y", y, [t, outputs])])?;
    let product = Product { op: OP, a: x, b: w, residual: Some(residual), c: y, inputs, outputs };
    product.launch(device, &device.kernels.linear_residual, rung)
}

/// `dx = dy·w`. `dy` A `[T, out]`, `dx` A `[T, in]`.
#[allow(missing_docs, reason = "errors are those of `launch`")]
pub fn launch_input_gradient(device: &Cuda, rung: Rung, dy: Tensor, w: Tensor, dx: Tensor) -> Result<()> {
    const OP: &str = "linear_input_gradient";
    let (t, inputs, outputs) = (dy.rows, w.cols, w.rows);
    expect(
        OP,
        device.dtype,
        [("dy", dy, [t, outputs]), ("w", w, [outputs, inputs]), ("dx", dx, [t, inputs])],
    )?;
    let product = Product { op: OP, a: dy, b: w, residual: None, c: dx, inputs, outputs };
    product.launch(device, &device.kernels.linear_input_gradient, rung)
}

/// `dw = dyᵀ·x`, overwritten or, where the step's parameters say so, added to. `dw` f32 `[out, in]`.
#[allow(missing_docs, reason = "errors are those of `launch`")]
pub fn launch_weight_gradient(device: &Cuda, rung: Rung, dy: Tensor, x: Tensor, dw: Tensor) -> Result<()> {
    const OP: &str = "linear_weight_gradient";
    let (t, inputs, outputs) = (x.rows, x.cols, dy.cols);
    expect(OP, device.dtype, [("dy", dy, [t, outputs]), ("x", x, [t, inputs])])?;
    expect(OP, DType::F32, [("dw", dw, [outputs, inputs])])?;
    let product = Product { op: OP, a: dy, b: x, residual: None, c: dw, inputs, outputs };
    product.launch(device, &device.kernels.linear_weight_gradient, rung)
}

fn expect<const N: usize>(
    op: &'static str,
    dtype: DType,
    tensors: [(&'static str, Tensor, [usize; 2]); N],
) -> Result<()> {
    tensors.into_iter().try_for_each(|(arg, t, shape)| {
        t.expect(op, arg, shape)?;
        expect_dtype(op, arg, t, dtype)?;
        expect_aligned(op, arg, t)
    })
}

/// `c = a·b`, of buffers that were checked.
struct Product {
    op: &'static str,
    a: Tensor,
    b: Tensor,
    residual: Option<Tensor>,
    c: Tensor,
    inputs: usize,
    outputs: usize,
}

impl Product {
    fn launch(&self, device: &Cuda, ladder: &Ladder, rung: Rung) -> Result<()> {
        let op = self.op;
        let function = ladder.rung(op, rung)?;
        for (dim, n) in [("in", self.inputs), ("out", self.outputs)] {
            if rung == Rung::Production && !n.is_multiple_of(8) {
                return Err(Error::Unsupported { op, dim, got: n.to_string(), rule: "a multiple of 8" });
            }
        }
        let (m, n) = (dim_u32(op, "rows", self.c.rows)?, dim_u32(op, "columns", self.c.cols)?);
        let grid = match rung {
            Rung::Naive => (n.div_ceil(THREADS), m),
            Rung::Production => (n.div_ceil(TILE), m.div_ceil(TILE)),
        };
        if grid.1 > MOST_BLOCKS_Y {
            let rule = "at most 65535 rows (naive) or 65535 tiles of 128";
            return Err(Error::Unsupported { op, dim: "rows", got: m.to_string(), rule });
        }
        if m == 0 || n == 0 {
            return Ok(()); // an empty grid is a launch error
        }
        let (inputs, outputs) = (dim_i32(op, "in", self.inputs)?, dim_i32(op, "out", self.outputs)?);
        let params = device.params_address();
        let [a, b, c] = [self.a, self.b, self.c].map(|t| device.address(t));
        let residual = self.residual.map_or(0, |t| device.address(t));
        let config =
            LaunchConfig { grid_dim: (grid.0, grid.1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        let mut launch = device.stream.launch_builder(function);
        launch.arg(&params).arg(&a).arg(&b).arg(&residual).arg(&c).arg(&inputs).arg(&outputs);
        // SAFETY: the seven arguments match the kernels' parameters in order and type. Shapes, types and alignment of
        // the buffers were checked by the callers (`expect`) and they lie inside the arena (`address` asserts it); the
        // kernels go by `inputs`, `outputs` and `step->tokens`, which is at most the planned rows. `residual` is read
        // by the kernel that has one only. One stream, so nothing else touches the buffers at the time.
        unsafe { launch.launch(config) }.map_err(cuda(op))?;
        Ok(())
    }
}
