//! What is done with the rows of blocks while they are in cache: rounding, and the operations that saves a pass.

use super::output::{Lanes, Output, load};
use super::{Epilogue, Strip};
use crate::dtype::{DType, Element};
use crate::ops::attention::Heads;
use crate::ops::math::{prefetch, sigmoid};
use crate::ops::rope::Table;
use crate::ops::tile::{HALF, Line};
use half::bf16;

/// Rounds each. `NATIVE`: to bf16 by the instruction for it, which makes zeros of bf16's denormal numbers, as which the
/// matrix units that come with it read them anyway.
#[inline(always)]
fn round<const NATIVE: bool, T: Element>(x: Lanes<f32>) -> Lanes<T> {
    #[cfg(target_arch = "x86_64")]
    if NATIVE && T::DTYPE == DType::BF16 {
        // SAFETY: asked for by code that is compiled for processors with it.
        return bytemuck::cast(unsafe { native(x) });
    }
    let mut y = [bytemuck::Zeroable::zeroed(); HALF];
    for i in 0..HALF {
        y[i] = T::from_f32(x[i]);
    }
    y
}

/// See [`round`].
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bf16,avx512vl")]
fn native(x: Lanes<f32>) -> Lanes<bf16> {
    use std::arch::x86_64::{_mm512_cvtneps_pbh, _mm512_loadu_ps};
    // SAFETY: 16 floats.
    let wide = unsafe { _mm512_loadu_ps(x.as_ptr()) };
    let narrow = _mm512_cvtneps_pbh(wide);
    // SAFETY: both are 32 bytes without padding, and every bit pattern is a value.
    unsafe { std::mem::transmute(narrow) }
}

#[inline(always)]
fn widen<T: Element>(x: Lanes<T>) -> Lanes<f32> {
    let mut y = [0.0; HALF];
    for i in 0..HALF {
        y[i] = x[i].to_f32();
    }
    y
}

#[inline(always)]
fn add(mut x: Lanes<f32>, y: Lanes<f32>) -> Lanes<f32> {
    for i in 0..HALF {
        x[i] += y[i];
    }
    x
}

/// `sums[i] + bias[first + i]`.
#[inline(always)]
fn biased(bias: Option<&[f32]>, first: usize, sums: &Lanes<f32>) -> Lanes<f32> {
    match bias {
        Some(bias) => add(*sums, load(bias, first)),
        None => *sums,
    }
}

/// Columns where the halves of a row begin, but for a second one in the line of the first.
#[inline(always)]
fn lines<T>(firsts: [usize; 2]) -> impl Iterator<Item = usize> {
    let one = size_of::<Lanes<T>>() < size_of::<Line>() && firsts[1] == firsts[0] + HALF;
    firsts.into_iter().take(if one { 1 } else { 2 })
}

/// `out = sums + bias`, rounded.
pub struct Rounded<'a, T> {
    /// Result.
    pub out: Output<'a, T>,
    /// f32 `[columns]`.
    pub bias: Option<&'a [f32]>,
}

impl<T: Element> Epilogue for Rounded<'_, T> {
    #[inline(always)]
    fn bring(&self, row: usize, firsts: [usize; 2]) {
        let out = self.out.whole(row);
        lines::<T>(firsts).for_each(|column| out.bring(column));
    }

    #[inline(always)]
    fn store<const NATIVE: bool>(&self, strip: Strip<'_>) {
        let out = self.out.whole(strip.row);
        for i in 0..strip.firsts.len() {
            let (firsts, halves) = strip.block(i);
            for half in 0..2 {
                let (first, sums) = (firsts[half], halves[half]);
                // SAFETY: every element of the result is handed over once.
                unsafe { out.put(first, round::<NATIVE, T>(biased(self.bias, first, sums))) };
            }
        }
    }
}

/// `out = sums`, or `out += sums`, in fp32.
pub struct Sum<'a> {
    /// Result.
    pub out: Output<'a, f32>,
    /// What becomes of what it holds.
    pub into: Into,
}

/// How sums are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Into {
    /// Overwriting, to be read soon.
    Caches,
    /// Overwriting, past the caches: large, and read much later.
    Memory,
    /// Added to what is there.
    Sums,
}

impl Epilogue for Sum<'_> {
    #[inline(always)]
    fn bring(&self, row: usize, firsts: [usize; 2]) {
        // What goes past the caches is not brought into them.
        if self.into != Into::Memory {
            let out = self.out.whole(row);
            lines::<f32>(firsts).for_each(|column| out.bring(column));
        }
    }

    #[inline(always)]
    fn store<const NATIVE: bool>(&self, strip: Strip<'_>) {
        let out = self.out.whole(strip.row);
        for i in 0..strip.firsts.len() {
            let (firsts, halves) = strip.block(i);
            for half in 0..2 {
                let (first, mut sums) = (firsts[half], *halves[half]);
                if self.into == Into::Memory {
                    // SAFETY: every element of the result is handed over once.
                    unsafe { out.stream(first, sums) };
                    continue;
                }
                if self.into == Into::Sums {
                    // SAFETY: as above.
                    sums = add(unsafe { out.get(first) }, sums);
                }
                // SAFETY: as above.
                unsafe { out.put(first, sums) };
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
    fn bring(&self, row: usize, firsts: [usize; 2]) {
        let out = self.out.whole(row);
        for column in lines::<f32>(firsts) {
            prefetch(self.residual.as_ptr().wrapping_add(row * out.len() + column));
            out.bring(column);
        }
    }

    #[inline(always)]
    fn store<const NATIVE: bool>(&self, strip: Strip<'_>) {
        let out = self.out.whole(strip.row);
        let residual = &self.residual[strip.row * out.len()..][..out.len()];
        for i in 0..strip.firsts.len() {
            let (firsts, halves) = strip.block(i);
            for half in 0..2 {
                let (first, sums) = (firsts[half], halves[half]);
                let y = biased(self.bias, first, &add(load(residual, first), *sums));
                // SAFETY: every element of the result is handed over once.
                unsafe { out.put(first, y) };
            }
        }
    }
}

/// Queries, keys and values with their bias, the first two rotated, rounded once. The halves of a block are
/// [`Heads::head_dim`] / 2 columns apart: the coordinates that the rotation mixes.
pub struct Rope<'a, T> {
    /// Result, rows of [`Heads::qkv_width`].
    pub out: Output<'a, T>,
    /// f32 `[columns]`.
    pub bias: Option<&'a [f32]>,
    /// Shape of a row.
    pub heads: Heads,
    /// Position of each row.
    pub positions: &'a [u32],
    /// Cosines and sines by position.
    pub table: Table<'a>,
}

impl<T: Element> Epilogue for Rope<'_, T> {
    #[inline(always)]
    fn bring(&self, row: usize, firsts: [usize; 2]) {
        let out = self.out.whole(row);
        lines::<T>(firsts).for_each(|column| out.bring(column));
    }

    #[inline(always)]
    fn store<const NATIVE: bool>(&self, strip: Strip<'_>) {
        let (out, d) = (self.out.whole(strip.row), self.heads.head_dim);
        let rotated = (self.heads.heads + self.heads.kv_heads) * d;
        let angles = self.positions[strip.row] as usize * (d / 2);
        let (cosines, sines) = (&self.table.cos[angles..][..d / 2], &self.table.sin[angles..][..d / 2]);
        for i in 0..strip.firsts.len() {
            let ([first, second], [a, b]) = strip.block(i);
            let mut a = biased(self.bias, first, a);
            let mut b = biased(self.bias, second, b);
            if first < rotated {
                let (cos, sin) = (load(cosines, first % d), load(sines, first % d));
                for i in 0..HALF {
                    (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
                }
            }
            // SAFETY: every element of the result is handed over once.
            unsafe { out.put(first, round::<NATIVE, T>(a)) };
            // SAFETY: as above.
            unsafe { out.put(second, round::<NATIVE, T>(b)) };
        }
    }
}

/// Gate and up with their bias, and `silu(gate)·up` of what was rounded. The halves of a block are a gate and its up.
pub struct Swiglu<'a, T> {
    /// Gate and up side by side.
    pub gate_up: Output<'a, T>,
    /// Product.
    pub act: Output<'a, T>,
    /// f32, of gate and up.
    pub bias: Option<&'a [f32]>,
}

impl<T: Element> Epilogue for Swiglu<'_, T> {
    const BLOCK_BY_BLOCK: bool = false;

    #[inline(always)]
    fn store<const NATIVE: bool>(&self, strip: Strip<'_>) {
        let (gate_up, out) = (self.gate_up.whole(strip.row), self.act.whole(strip.row));
        for i in 0..strip.firsts.len() {
            let ([first, second], [gate, up]) = strip.block(i);
            let gate = round::<NATIVE, T>(biased(self.bias, first, gate));
            let up = round::<NATIVE, T>(biased(self.bias, second, up));
            let (g, u) = (widen(gate), widen(up));
            let mut act = [0.0; HALF];
            for i in 0..HALF {
                act[i] = g[i] * sigmoid(g[i]) * u[i];
            }
            // Not read before the backward pass.
            // SAFETY: every element of the result is handed over once.
            unsafe { gate_up.stream(first, gate) };
            // SAFETY: as above.
            unsafe { gate_up.stream(second, up) };
            // SAFETY: as above; a gate's column is its product's.
            unsafe { out.put(first, round::<NATIVE, T>(act)) };
        }
    }
}

/// From the gradient of `silu(gate)·up`, rounded, those of gate and up, and the product once more.
pub struct SwigluGradient<'a, T> {
    /// Gate and up side by side.
    pub gate_up: &'a [T],
    /// Product.
    pub act: Output<'a, T>,
    /// Gradients, side by side.
    pub dgate_up: Output<'a, T>,
}

impl<T: Element> Epilogue for SwigluGradient<'_, T> {
    const BLOCK_BY_BLOCK: bool = false;

    #[inline(always)]
    fn store<const NATIVE: bool>(&self, strip: Strip<'_>) {
        let out = self.act.whole(strip.row);
        let (row, f) = (strip.row, out.len());
        let (gate, up) = self.gate_up[row * 2 * f..][..2 * f].split_at(f);
        let [dgate_out, dup_out] = self.dgate_up.whole(row).split(f);
        for i in 0..strip.firsts.len() {
            let (firsts, halves) = strip.block(i);
            for half in 0..2 {
                let (first, sums) = (firsts[half], halves[half]);
                let (g, u) = (widen(load(gate, first)), widen(load(up, first)));
                let d = widen(round::<NATIVE, T>(*sums));
                let (mut act, mut dgate, mut dup) = ([0.0; HALF], [0.0; HALF], [0.0; HALF]);
                for i in 0..HALF {
                    let s = sigmoid(g[i]);
                    let silu = g[i] * s;
                    act[i] = silu * u[i];
                    dgate[i] = d[i] * u[i] * (s + silu * (1.0 - s));
                    dup[i] = d[i] * silu;
                }
                // SAFETY: every element of the result is handed over once, and with it the two gradients.
                unsafe { out.put(first, round::<NATIVE, T>(act)) };
                // SAFETY: as above.
                unsafe { dgate_out.put(first, round::<NATIVE, T>(dgate)) };
                // SAFETY: as above.
                unsafe { dup_out.put(first, round::<NATIVE, T>(dup)) };
            }
        }
    }
}
