//! Products with a weight `[out, in]`, forward and backward, accumulated in fp32, and what is fused with them: bf16 and
//! fp32 as they are, fp16 widened.

mod adapted;
pub mod few;
mod weight;

pub use adapted::{Adapted, Narrow};
pub use weight::{Weight, widen};

use super::attention::Heads;
use super::convert::{self, rounding};
use super::noise::Dropout;
use super::product::{
    Epilogue, Into, Output, Pairing, Residual, Rope, Rounded, Sum, Swiglu, SwigluGradient, Threads, product,
};
use super::rope::{self, Table, Turn};
use super::swiglu;
use super::tile::{Level, Matrix, Packed};
use crate::arena::Tensor;
use crate::dtype::Element;
use half::{bf16, f16};
use std::borrow::Cow;

/// A product of low rank R that is summed before the main one, in the same sums: an adapter's part (LoRA, Hu et al. 2021,
/// arXiv:2106.09685).
#[derive(Clone, Copy, Debug)]
pub struct LowRank {
    /// A `[T, R]`.
    pub left: Tensor,
    /// A `[out, R]` in a forward product, which is of its transpose; A `[R, in]` in an input gradient.
    pub right: Tensor,
    /// What its sums are masked with; only in an input gradient.
    pub dropout: Option<Dropout>,
}

/// A weight A `[out, in]` and, where there are such, the bias A `[1, out]` that is added to its products and the adapter.
#[derive(Clone, Copy, Debug)]
pub struct Projection {
    /// Weight.
    pub w: Tensor,
    /// Bias.
    pub bias: Option<Tensor>,
    /// Adapter.
    pub adapter: Option<LowRank>,
}

impl From<Tensor> for Projection {
    fn from(w: Tensor) -> Self {
        Self { w, bias: None, adapter: None }
    }
}

/// A type of weights and activations, and what products take it as.
pub trait Operand: Element {
    /// What panels hold.
    type Packed: Packed;

    /// The slice as it is packed.
    fn packed(x: &[Self]) -> Cow<'_, [Self::Packed]>;
}

impl Operand for f32 {
    type Packed = Self;

    fn packed(x: &[Self]) -> Cow<'_, [Self]> {
        Cow::Borrowed(x)
    }
}

impl Operand for bf16 {
    type Packed = Self;

    fn packed(x: &[Self]) -> Cow<'_, [Self]> {
        Cow::Borrowed(x)
    }
}

impl Operand for f16 {
    type Packed = f32;

    fn packed(x: &[Self]) -> Cow<'_, [f32]> {
        convert::widen(x)
    }
}

/// `adapter + x·wᵀ` into `epilogue`.
fn times_transpose<A: Operand>(
    level: Level,
    x: &[A],
    of: Adapted<'_, A>,
    inputs: usize,
    pairing: Pairing,
    epilogue: &impl Epilogue,
) {
    let (t, outputs) = (x.len() / inputs, of.w.outputs(inputs));
    if t <= few::MOST_ROWS {
        return few::times_transpose(x, of, inputs, pairing, epilogue);
    }
    let w = of.w.elements();
    let (x, w) = (A::packed(x), A::packed(&w));
    let (x, w) = (Matrix::new(&x, t, inputs), Matrix::new(&w, outputs, inputs).t());
    let sides = of.adapter.as_ref().map(Narrow::packed);
    let addend = of.adapter.zip(sides.as_ref()).map(|(adapter, sides)| adapter.addend(sides, true));
    product(level, x, w, addend, pairing, Threads::All, epilogue);
}

/// `adapter + dy·w` into `epilogue`.
fn times<A: Operand>(
    level: Level,
    dy: &[A],
    w: &[A],
    adapter: Option<Narrow<'_, A>>,
    inputs: usize,
    epilogue: &impl Epilogue,
) {
    let outputs = w.len() / inputs;
    let (dy, w) = (A::packed(dy), A::packed(w));
    let (dy, w) = (Matrix::new(&dy, dy.len() / outputs, outputs), Matrix::new(&w, outputs, inputs));
    let sides = adapter.as_ref().map(Narrow::packed);
    let addend = adapter.zip(sides.as_ref()).map(|(adapter, sides)| adapter.addend(sides, false));
    product(level, dy, w, addend, Pairing::ADJOINING, Threads::All, epilogue);
}

/// `y = adapter + x·wᵀ + bias`, rounded once. `x` A `[T, in]`, `w` `[out, in]`, `bias` f32 `[out]`, `y` A `[T, out]`.
pub fn forward<'a, A: Operand>(
    level: Level,
    x: &[A],
    w: impl std::convert::Into<Adapted<'a, A>>,
    bias: Option<&[f32]>,
    y: &mut [A],
    inputs: usize,
) {
    let w = w.into();
    let epilogue = Rounded { out: Output::new(y, w.w.outputs(inputs)), bias };
    times_transpose(level, x, w, inputs, Pairing::ADJOINING, &epilogue);
}

/// `y = x·wᵀ`, f32 `[T, out]`.
pub fn forward_f32<A: Operand>(level: Level, x: &[A], w: Weight<'_, A>, y: &mut [f32], inputs: usize) {
    // Of more rows logits are too large to be found in a cache again.
    let into = if x.len() / inputs > few::MOST_ROWS { Into::Memory } else { Into::Caches };
    let epilogue = Sum { out: Output::new(y, w.outputs(inputs)), into };
    times_transpose(level, x, Adapted::from(w), inputs, Pairing::ADJOINING, &epilogue);
}

/// `y = residual + adapter + x·wᵀ + bias`. `residual`, `y` f32 `[T, out]`.
pub fn forward_residual<'a, A: Operand>(
    level: Level,
    x: &[A],
    w: impl std::convert::Into<Adapted<'a, A>>,
    bias: Option<&[f32]>,
    residual: &[f32],
    y: &mut [f32],
    inputs: usize,
) {
    let w = w.into();
    let epilogue = Residual { out: Output::new(y, w.w.outputs(inputs)), residual, bias };
    times_transpose(level, x, w, inputs, Pairing::ADJOINING, &epilogue);
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

/// `qkv = adapter + x·wᵀ + bias`, q and k rotated, rounded once. `qkv` A `[T, (H + 2K)·D]`.
pub fn forward_rope<'a, A: Operand>(
    level: Level,
    x: &[A],
    w: impl std::convert::Into<Adapted<'a, A>>,
    bias: Option<&[f32]>,
    rotation: Rotation<'_>,
    qkv: &mut [A],
    inputs: usize,
) {
    let (w, Rotation { heads, positions, table }) = (w.into(), rotation);
    let pairing = Pairing { distance: heads.head_dim / 2 };
    if pairing.is_whole() {
        let out = Output::new(qkv, heads.qkv_width());
        let epilogue = Rope { out, bias, heads, positions, table };
        return times_transpose(level, x, w, inputs, pairing, &epilogue);
    }
    rounding(qkv, |qkv| {
        let epilogue = Rounded { out: Output::new(qkv, heads.qkv_width()), bias };
        times_transpose(level, x, w, inputs, Pairing::ADJOINING, &epilogue);
        rope::rotate(qkv, heads, positions, table, Turn::Forward);
    });
}

/// `gate_up = adapter + x·wᵀ + bias`, `act = silu(gate)·up`. `w` `[2F, in]`, `gate_up` A `[T, 2F]`, `act` A `[T, F]`.
pub fn forward_swiglu<'a, A: Operand>(
    level: Level,
    x: &[A],
    w: impl std::convert::Into<Adapted<'a, A>>,
    bias: Option<&[f32]>,
    gate_up: &mut [A],
    act: &mut [A],
    inputs: usize,
) {
    let w = w.into();
    let f = w.w.outputs(inputs) / 2;
    let pairing = Pairing { distance: f };
    if pairing.is_whole() {
        let epilogue = Swiglu { gate_up: Output::new(gate_up, 2 * f), act: Output::new(act, f), bias };
        return times_transpose(level, x, w, inputs, pairing, &epilogue);
    }
    forward(level, x, w, bias, gate_up, inputs);
    swiglu::forward(gate_up, act, f);
}

/// `dx = adapter + dy·w`, rounded once. `dy` A `[T, out]`, `dx` A `[T, in]`.
pub fn input_gradient<A: Operand>(
    level: Level,
    dy: &[A],
    w: &[A],
    adapter: Option<Narrow<'_, A>>,
    dx: &mut [A],
    inputs: usize,
) {
    times(level, dy, w, adapter, inputs, &Rounded { out: Output::new(dx, inputs), bias: None });
}

/// What [`swiglu_backward`] reads and writes besides the product, A `[T, F]` and `[T, 2F]`.
pub struct SwigluBuffers<'a, A> {
    /// From the forward pass.
    pub gate_up: &'a [A],
    /// `silu(gate)·up` once more.
    pub act: &'a mut [A],
    /// Gradient of `gate_up`.
    pub dgate_up: &'a mut [A],
}

/// Gradient through the down projection `w` A `[C, F]` and SwiGLU: `dact = adapter + dy·w`, rounded, and from it that of
/// `gate_up`.
pub fn swiglu_backward<A: Operand>(
    level: Level,
    dy: &[A],
    w: &[A],
    adapter: Option<Narrow<'_, A>>,
    buffers: SwigluBuffers<'_, A>,
    f: usize,
) {
    let SwigluBuffers { gate_up, act, dgate_up } = buffers;
    let (act, dgate_up) = (Output::new(act, f), Output::new(dgate_up, 2 * f));
    times(level, dy, w, adapter, f, &SwigluGradient { gate_up, act, dgate_up });
}

/// `dw = dyᵀ·x`, overwritten or added to. `dw` f32 `[out, in]`.
pub fn weight_gradient<A: Operand>(
    level: Level,
    dy: &[A],
    x: &[A],
    dw: &mut [f32],
    inputs: usize,
    add: bool,
) {
    let (t, outputs) = (x.len() / inputs, dw.len() / inputs);
    let (dy, x) = (A::packed(dy), A::packed(x));
    let (dy, x) = (Matrix::new(&dy, t, outputs).t(), Matrix::new(&x, t, inputs));
    let into = if add { Into::Sums } else { Into::Memory };
    let epilogue = Sum { out: Output::new(dw, inputs), into };
    product(level, dy, x, None, Pairing::ADJOINING, Threads::All, &epilogue);
}
