//! What is done with a row of a block while it is in cache: rounding, and the operations that saves a pass.

use super::Epilogue;
use crate::dtype::Element;
use crate::ops::attention::Heads;
use crate::ops::math::sigmoid;
use crate::ops::rope::Table;
use crate::ops::tile::HALF;
use half::bf16;
use std::marker::PhantomData;

/// Rows of a result that threads write in blocks.
pub struct Output<'a, T> {
    data: *mut T,
    len: usize,
    stride: usize,
    lent: PhantomData<&'a mut [T]>,
}

// SAFETY: written through only by `row`, whose callers give each thread elements that no other thread has.
unsafe impl<T: Send> Sync for Output<'_, T> {}

impl<'a, T> Output<'a, T> {
    /// Rows of `stride` elements.
    pub fn new(data: &'a mut [T], stride: usize) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), stride, lent: PhantomData }
    }

    /// `width` elements of a row.
    ///
    /// # Safety
    /// No other reference to any of them exists while this one does.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the caller's promise")]
    unsafe fn row(&self, row: usize, column: usize, width: usize) -> &mut [T] {
        let at = row * self.stride + column;
        assert!(at + width <= self.len && column + width <= self.stride, "a block outside the result");
        // SAFETY: inside the slice that `new` borrowed for the life of self (asserted), and not aliased (the caller).
        unsafe { std::slice::from_raw_parts_mut(self.data.add(at), width) }
    }
}

#[inline(always)]
fn round(x: f32) -> bf16 {
    <bf16 as Element>::from_f32(x)
}

#[inline(always)]
fn wide(x: bf16) -> f32 {
    Element::to_f32(x)
}

/// `sums[i] + bias[first + i]`.
#[inline(always)]
fn biased(bias: Option<&[f32]>, first: usize, sums: &[f32]) -> [f32; HALF] {
    let mut out = [0.0; HALF];
    out[..sums.len()].copy_from_slice(sums);
    if let Some(bias) = bias {
        out.iter_mut().zip(&bias[first..][..sums.len()]).for_each(|(o, b)| *o += b);
    }
    out
}

/// `out = sums + bias`, rounded.
pub struct Rounded<'a> {
    /// Result.
    pub out: Output<'a, bf16>,
    /// f32 `[columns]`.
    pub bias: Option<&'a [f32]>,
}

impl Epilogue for Rounded<'_> {
    #[inline(always)]
    fn store(&self, row: usize, firsts: [usize; 2], halves: [&[f32]; 2]) {
        for half in 0..2 {
            let (first, sums) = (firsts[half], halves[half]);
            // SAFETY: every element of the result is handed over once.
            let out = unsafe { self.out.row(row, first, sums.len()) };
            out.iter_mut().zip(biased(self.bias, first, sums)).for_each(|(o, s)| *o = round(s));
        }
    }
}

/// `out = sums`, or `out += sums`, in fp32.
pub struct Sum<'a> {
    /// Result.
    pub out: Output<'a, f32>,
    /// Whether it holds something already.
    pub add: bool,
}

impl Epilogue for Sum<'_> {
    #[inline(always)]
    fn store(&self, row: usize, firsts: [usize; 2], halves: [&[f32]; 2]) {
        for half in 0..2 {
            let (first, sums) = (firsts[half], halves[half]);
            // SAFETY: every element of the result is handed over once.
            let out = unsafe { self.out.row(row, first, sums.len()) };
            if self.add {
                out.iter_mut().zip(sums).for_each(|(o, s)| *o += s);
            } else {
                out.copy_from_slice(sums);
            }
        }
    }
}

/// `out = residual + sums + bias`, in fp32.
pub struct Residual<'a> {
    /// Result.
    pub out: Output<'a, f32>,
    /// As many rows and columns.
    pub residual: &'a [f32],
    /// f32 `[columns]`.
    pub bias: Option<&'a [f32]>,
}

impl Epilogue for Residual<'_> {
    #[inline(always)]
    fn store(&self, row: usize, firsts: [usize; 2], halves: [&[f32]; 2]) {
        for half in 0..2 {
            let (first, sums) = (firsts[half], halves[half]);
            // SAFETY: every element of the result is handed over once.
            let out = unsafe { self.out.row(row, first, sums.len()) };
            let residual = &self.residual[row * self.out.stride + first..][..sums.len()];
            out.iter_mut().zip(sums).zip(residual).for_each(|((o, s), r)| *o = r + s);
            if let Some(bias) = self.bias {
                out.iter_mut().zip(&bias[first..][..sums.len()]).for_each(|(o, b)| *o += b);
            }
        }
    }
}

/// Queries, keys and values with their bias, the first two rotated, rounded once. The halves of a block are
/// [`Heads::head_dim`] / 2 columns apart: the coordinates that the rotation mixes.
pub struct Rope<'a> {
    /// Result, rows of [`Heads::qkv_width`].
    pub out: Output<'a, bf16>,
    /// f32 `[columns]`.
    pub bias: Option<&'a [f32]>,
    /// Shape of a row.
    pub heads: Heads,
    /// Position of each row.
    pub positions: &'a [u32],
    /// Cosines and sines by position.
    pub table: Table<'a>,
}

impl Epilogue for Rope<'_> {
    #[inline(always)]
    fn store(&self, row: usize, firsts: [usize; 2], halves: [&[f32]; 2]) {
        let d = self.heads.head_dim;
        let a = biased(self.bias, firsts[0], halves[0]);
        let b = biased(self.bias, firsts[1], halves[1]);
        // SAFETY: every element of the result is handed over once, and the halves do not overlap.
        let first = unsafe { self.out.row(row, firsts[0], HALF) };
        // SAFETY: as above.
        let second = unsafe { self.out.row(row, firsts[1], HALF) };
        if firsts[0] >= (self.heads.heads + self.heads.kv_heads) * d {
            first.iter_mut().zip(a).for_each(|(o, x)| *o = round(x));
            second.iter_mut().zip(b).for_each(|(o, x)| *o = round(x));
            return;
        }
        let from = self.positions[row] as usize * (d / 2) + firsts[0] % d;
        let (cos, sin) = (&self.table.cos[from..][..HALF], &self.table.sin[from..][..HALF]);
        for i in 0..HALF {
            first[i] = round(a[i] * cos[i] - b[i] * sin[i]);
            second[i] = round(b[i] * cos[i] + a[i] * sin[i]);
        }
    }
}

/// Gate and up with their bias, and `silu(gate)·up` of what was rounded. The halves of a block are a gate and its up.
pub struct Swiglu<'a> {
    /// Gate and up side by side.
    pub gate_up: Output<'a, bf16>,
    /// Product.
    pub act: Output<'a, bf16>,
    /// f32, of gate and up.
    pub bias: Option<&'a [f32]>,
}

impl Epilogue for Swiglu<'_> {
    #[inline(always)]
    fn store(&self, row: usize, firsts: [usize; 2], halves: [&[f32]; 2]) {
        let a = biased(self.bias, firsts[0], halves[0]);
        let b = biased(self.bias, firsts[1], halves[1]);
        // SAFETY: every element of the result is handed over once, and the halves do not overlap.
        let gate = unsafe { self.gate_up.row(row, firsts[0], HALF) };
        // SAFETY: as above.
        let up = unsafe { self.gate_up.row(row, firsts[1], HALF) };
        // SAFETY: as above; a gate's column is its product's.
        let act = unsafe { self.act.row(row, firsts[0], HALF) };
        for i in 0..HALF {
            (gate[i], up[i]) = (round(a[i]), round(b[i]));
            let g = wide(gate[i]);
            act[i] = round(g * sigmoid(g) * wide(up[i]));
        }
    }
}

/// From the gradient of `silu(gate)·up`, rounded, those of gate and up, and the product once more.
pub struct SwigluGradient<'a> {
    /// Gate and up side by side.
    pub gate_up: &'a [bf16],
    /// Product.
    pub act: Output<'a, bf16>,
    /// Gradients, side by side.
    pub dgate_up: Output<'a, bf16>,
}

impl Epilogue for SwigluGradient<'_> {
    #[inline(always)]
    fn store(&self, row: usize, firsts: [usize; 2], halves: [&[f32]; 2]) {
        let f = self.act.stride;
        for half in 0..2 {
            let (first, sums) = (firsts[half], halves[half]);
            let n = sums.len();
            let gate = &self.gate_up[row * 2 * f + first..][..n];
            let up = &self.gate_up[row * 2 * f + f + first..][..n];
            // SAFETY: every element of the result is handed over once.
            let act = unsafe { self.act.row(row, first, n) };
            // SAFETY: as above, and with it the two gradients.
            let dgate = unsafe { self.dgate_up.row(row, first, n) };
            // SAFETY: as above.
            let dup = unsafe { self.dgate_up.row(row, f + first, n) };
            for i in 0..n {
                let (g, u, d) = (wide(gate[i]), wide(up[i]), wide(round(sums[i])));
                let s = sigmoid(g);
                let silu = g * s;
                act[i] = round(silu * u);
                dgate[i] = round(d * u * (s + silu * (1.0 - s)));
                dup[i] = round(d * silu);
            }
        }
    }
}
