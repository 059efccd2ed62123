//! Products with a weight `[out, in]`, forward and backward, accumulated in fp32, and what is fused with them: bf16 on
//! the matrix unit, other types as in [`plain`].

pub mod few;
pub mod plain;
mod weight;

pub use weight::{Weight, widen};

use super::attention::Heads;
use super::matmul::{Threads, rounding};
use super::product::{
    Epilogue, Output, Pairing, Residual, Rope, Rounded, Sum, Swiglu, SwigluGradient, product,
};
use super::rope::{self, Table, Turn};
use super::swiglu;
use super::tile::{Level, Matrix};
use crate::arena::Tensor;
use crate::dtype::{DType, Element};
use half::bf16;

/// A weight A `[out, in]` and, where the model has one, the bias A `[1, out]` that is added to its products.
#[derive(Clone, Copy, Debug)]
pub struct Projection {
    /// Weight.
    pub w: Tensor,
    /// Bias.
    pub bias: Option<Tensor>,
}

impl From<Tensor> for Projection {
    fn from(w: Tensor) -> Self {
        Self { w, bias: None }
    }
}

/// The slice as bf16, if that is what it is.
fn bf16s<A: Element>(x: &[A]) -> Option<&[bf16]> {
    (A::DTYPE == DType::BF16).then(|| bytemuck::cast_slice(x))
}

/// As [`bf16s`], to write.
fn bf16s_mut<A: Element>(x: &mut [A]) -> Option<&mut [bf16]> {
    (A::DTYPE == DType::BF16).then(|| bytemuck::cast_slice_mut(x))
}

/// `x·wᵀ` into `epilogue`.
fn times_transpose(
    level: Level,
    x: &[bf16],
    w: Weight<'_, bf16>,
    inputs: usize,
    pairing: Pairing,
    epilogue: &impl Epilogue,
) {
    let (t, outputs) = (x.len() / inputs, w.outputs(inputs));
    if t <= few::MOST_ROWS {
        return few::times_transpose(x, w, inputs, pairing, epilogue);
    }
    let w = w.elements();
    let (x, w) = (Matrix::new(x, t, inputs), Matrix::new(&w, outputs, inputs).t());
    product(level, x, w, pairing, Threads::All, epilogue);
}

/// `y = x·wᵀ` for types that the matrix unit does not have.
fn widened<A: Element>(x: &[A], w: Weight<'_, A>, y: &mut [f32], inputs: usize) {
    let (t, outputs) = (x.len() / inputs, w.outputs(inputs));
    if t > few::MOST_ROWS {
        return plain::forward(x, &w.elements(), y, t, inputs);
    }
    let epilogue = Sum { out: Output::new(y, outputs), add: false };
    few::times_transpose(x, w, inputs, Pairing::ADJOINING, &epilogue);
}

/// `y = residual + x·wᵀ`, likewise.
fn widened_residual<A: Element>(x: &[A], w: Weight<'_, A>, residual: &[f32], y: &mut [f32], inputs: usize) {
    let (t, outputs) = (x.len() / inputs, w.outputs(inputs));
    if t > few::MOST_ROWS {
        return plain::forward_residual(x, &w.elements(), residual, y, t, inputs);
    }
    let epilogue = Residual { out: Output::new(y, outputs), residual, bias: None };
    few::times_transpose(x, w, inputs, Pairing::ADJOINING, &epilogue);
}

/// `dy·w` into `epilogue`.
fn times(level: Level, dy: &[bf16], w: &[bf16], inputs: usize, epilogue: &impl Epilogue) {
    let outputs = w.len() / inputs;
    let (dy, w) = (Matrix::new(dy, dy.len() / outputs, outputs), Matrix::new(w, outputs, inputs));
    product(level, dy, w, Pairing::ADJOINING, Threads::All, epilogue);
}

/// `y = x·wᵀ + bias`, rounded once. `x` A `[T, in]`, `w` `[out, in]`, `bias` f32 `[out]`, `y` A `[T, out]`.
pub fn forward<A: Element>(
    level: Level,
    x: &[A],
    w: Weight<'_, A>,
    bias: Option<&[f32]>,
    y: &mut [A],
    inputs: usize,
) {
    let outputs = w.outputs(inputs);
    if let (Some(x), Some(w), Some(y)) = (bf16s(x), w.bf16(), bf16s_mut(y)) {
        let epilogue = Rounded { out: Output::new(y, outputs), bias };
        return times_transpose(level, x, w, inputs, Pairing::ADJOINING, &epilogue);
    }
    rounding(y, |y| {
        widened(x, w, y, inputs);
        if let Some(bias) = bias {
            plain::add_bias(y, bias);
        }
    });
}

/// `y = x·wᵀ`, f32 `[T, out]`.
pub fn forward_f32<A: Element>(level: Level, x: &[A], w: Weight<'_, A>, y: &mut [f32], inputs: usize) {
    let outputs = w.outputs(inputs);
    if let (Some(x), Some(w)) = (bf16s(x), w.bf16()) {
        let epilogue = Sum { out: Output::new(y, outputs), add: false };
        return times_transpose(level, x, w, inputs, Pairing::ADJOINING, &epilogue);
    }
    widened(x, w, y, inputs);
}

/// `y = residual + x·wᵀ + bias`. `residual`, `y` f32 `[T, out]`.
pub fn forward_residual<A: Element>(
    level: Level,
    x: &[A],
    w: Weight<'_, A>,
    bias: Option<&[f32]>,
    residual: &[f32],
    y: &mut [f32],
    inputs: usize,
) {
    let outputs = w.outputs(inputs);
    if let (Some(x), Some(w)) = (bf16s(x), w.bf16()) {
        let epilogue = Residual { out: Output::new(y, outputs), residual, bias };
        return times_transpose(level, x, w, inputs, Pairing::ADJOINING, &epilogue);
    }
    widened_residual(x, w, residual, y, inputs);
    if let Some(bias) = bias {
        plain::add_bias(y, bias);
    }
}

/// How queries and keys are rotated.
#[derive(Clone, Copy)]
pub struct Rotation<'a> {
    /// Shape of a row of q, k and v.
    pub heads: Heads,
    /// Position of each row.
    pub positions: &'a [u32],
    /// Cosines and sines.
    pub table: Table<'a>,
}

/// `qkv = x·wᵀ + bias`, q and k rotated, rounded once. `qkv` A `[T, (H + 2K)·D]`.
pub fn forward_rope<A: Element>(
    level: Level,
    x: &[A],
    w: Weight<'_, A>,
    bias: Option<&[f32]>,
    rotation: Rotation<'_>,
    qkv: &mut [A],
    inputs: usize,
) {
    let Rotation { heads, positions, table } = rotation;
    let pairing = Pairing { distance: heads.head_dim / 2 };
    if pairing.is_whole()
        && let (Some(x), Some(w), Some(qkv)) = (bf16s(x), w.bf16(), bf16s_mut(qkv))
    {
        let out = Output::new(qkv, heads.qkv_width());
        let epilogue = Rope { out, bias, heads, positions, table };
        return times_transpose(level, x, w, inputs, pairing, &epilogue);
    }
    rounding(qkv, |qkv| {
        widened(x, w, qkv, inputs);
        if let Some(bias) = bias {
            plain::add_bias(qkv, bias);
        }
        rope::rotate(qkv, heads, positions, table, Turn::Forward);
    });
}

/// `gate_up = x·wᵀ + bias`, `act = silu(gate)·up`. `w` `[2F, in]`, `gate_up` A `[T, 2F]`, `act` A `[T, F]`.
pub fn forward_swiglu<A: Element>(
    level: Level,
    x: &[A],
    w: Weight<'_, A>,
    bias: Option<&[f32]>,
    gate_up: &mut [A],
    act: &mut [A],
    inputs: usize,
) {
    let f = w.outputs(inputs) / 2;
    let pairing = Pairing { distance: f };
    if pairing.is_whole()
        && let (Some(x), Some(w)) = (bf16s(x), w.bf16())
    {
        let (gate_up, act) = (bytemuck::cast_slice_mut(gate_up), bytemuck::cast_slice_mut(act));
        let epilogue = Swiglu { gate_up: Output::new(gate_up, 2 * f), act: Output::new(act, f), bias };
        return times_transpose(level, x, w, inputs, pairing, &epilogue);
    }
    forward(level, x, w, bias, gate_up, inputs);
    swiglu::forward(gate_up, act, f);
}

/// `dx = dy·w`. `dy` A `[T, out]`, `dx` A `[T, in]`.
pub fn input_gradient<A: Element>(level: Level, dy: &[A], w: &[A], dx: &mut [A], inputs: usize) {
    if let (Some(dy), Some(w), Some(dx)) = (bf16s(dy), bf16s(w), bf16s_mut(dx)) {
        return times(level, dy, w, inputs, &Rounded { out: Output::new(dx, inputs), bias: None });
    }
    plain::input_gradient(dy, w, dx, dx.len() / inputs, inputs);
}

/// What [`swiglu_backward`] reads and writes besides the product, A `[T, F]` and `[T, 2F]`.
pub struct SwigluBuffers<'a, A> {
    /// From the forward pass.
    pub gate_up: &'a [A],
    /// `silu(gate)·up` once more.
    pub act: &'a mut [A],
    /// Gradient of `act`; may be left as it is.
    pub dact: &'a mut [A],
    /// Gradient of `gate_up`.
    pub dgate_up: &'a mut [A],
}

/// Gradient through the down projection `w` A `[C, F]` and SwiGLU: `dact = dy·w`, rounded, and from it that of `gate_up`.
pub fn swiglu_backward<A: Element>(level: Level, dy: &[A], w: &[A], buffers: SwigluBuffers<'_, A>, f: usize) {
    let SwigluBuffers { gate_up, act, dact, dgate_up } = buffers;
    if let (Some(dy), Some(w), Some(gate_up)) = (bf16s(dy), bf16s(w), bf16s(gate_up)) {
        let (act, dgate_up) = (bytemuck::cast_slice_mut(act), bytemuck::cast_slice_mut(dgate_up));
        let (act, dgate_up) = (Output::new(act, f), Output::new(dgate_up, 2 * f));
        return times(level, dy, w, f, &SwigluGradient { gate_up, act, dgate_up });
    }
    input_gradient(level, dy, w, dact, f);
    swiglu::backward(gate_up, dact, act, dgate_up, f);
}

/// `dw = dyᵀ·x`, overwritten or added to. `dw` f32 `[out, in]`.
pub fn weight_gradient<A: Element>(
    level: Level,
    dy: &[A],
    x: &[A],
    dw: &mut [f32],
    inputs: usize,
    add: bool,
) {
    let (t, outputs) = (x.len() / inputs, dw.len() / inputs);
    if let (Some(dy), Some(x)) = (bf16s(dy), bf16s(x)) {
        let (dy, x) = (Matrix::new(dy, t, outputs).t(), Matrix::new(x, t, inputs));
        let epilogue = Sum { out: Output::new(dw, inputs), add };
        return product(level, dy, x, Pairing::ADJOINING, Threads::All, &epilogue);
    }
    plain::weight_gradient(dy, x, dw, t, inputs, add);
}
