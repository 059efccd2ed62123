//! What is done with a block of a product while it is in cache: rounding, and the operations that saves a pass.

use super::{Epilogue, Place};
use crate::ops::attention::Heads;
use crate::ops::math::{sigmoid, simd};
use crate::ops::rope::Table;
use crate::ops::tile::{Block, HALF};
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

/// Calls `f(row, half, sums)` for the part of a block that is in the result.
#[inline(always)]
fn halves(block: &Block, at: Place, mut f: impl FnMut(usize, usize, &[f32])) {
    for (row, sums) in (at.rows.0..at.rows.1).zip(&block.0) {
        for (half, sums) in sums.chunks_exact(HALF).enumerate() {
            // A constant length where there is one: the loops over it become one instruction each.
            if at.widths[half] == HALF {
                f(row, half, &sums[..HALF]);
            } else if at.widths[half] > 0 {
                f(row, half, &sums[..at.widths[half]]);
            }
        }
    }
}

/// `bias[column]`, or 0.
#[inline(always)]
fn bias_at(bias: Option<&[f32]>, column: usize) -> f32 {
    bias.map_or(0.0, |bias| bias[column])
}

/// `out = sums + bias`, rounded.
pub struct Rounded<'a> {
    /// Result.
    pub out: Output<'a, bf16>,
    /// f32 `[columns]`.
    pub bias: Option<&'a [f32]>,
}

impl Epilogue for Rounded<'_> {
    fn store(&self, block: &Block, at: Place) {
        simd(|| {
            halves(block, at, |row, half, sums| {
                let first = at.firsts[half];
                // SAFETY: every element of the result is handed over once.
                let out = unsafe { self.out.row(row, first, sums.len()) };
                if let Some(bias) = self.bias {
                    let bias = &bias[first..][..sums.len()];
                    out.iter_mut().zip(sums).zip(bias).for_each(|((o, s), b)| *o = bf16::from_f32(s + b));
                } else {
                    out.iter_mut().zip(sums).for_each(|(o, s)| *o = bf16::from_f32(*s));
                }
            });
        });
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
    fn store(&self, block: &Block, at: Place) {
        simd(|| {
            halves(block, at, |row, half, sums| {
                // SAFETY: every element of the result is handed over once.
                let out = unsafe { self.out.row(row, at.firsts[half], sums.len()) };
                if self.add {
                    out.iter_mut().zip(sums).for_each(|(o, s)| *o += s);
                } else {
                    out.copy_from_slice(sums);
                }
            });
        });
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
    fn store(&self, block: &Block, at: Place) {
        simd(|| {
            halves(block, at, |row, half, sums| {
                let first = at.firsts[half];
                // SAFETY: every element of the result is handed over once.
                let out = unsafe { self.out.row(row, first, sums.len()) };
                let residual = &self.residual[row * self.out.stride + first..][..sums.len()];
                out.iter_mut().zip(sums).zip(residual).for_each(|((o, s), r)| *o = r + s);
                if let Some(bias) = self.bias {
                    out.iter_mut().zip(&bias[first..][..sums.len()]).for_each(|(o, b)| *o += b);
                }
            });
        });
    }
}

/// Queries, keys and values with their bias, the first two rotated, rounded once. Halves of a block are those of a
/// head, or parts of them: they are [`Heads::head_dim`] / 2 columns apart.
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
    fn store(&self, block: &Block, at: Place) {
        let (d, half) = (self.heads.head_dim, self.heads.head_dim / 2);
        let turned = at.firsts[0] < (self.heads.heads + self.heads.kv_heads) * d;
        let angle = at.firsts[0] % d;
        let bias: [[f32; HALF]; 2] =
            at.firsts.map(|first| std::array::from_fn(|i| bias_at(self.bias, first + i)));
        simd(|| {
            for (row, sums) in (at.rows.0..at.rows.1).zip(&block.0) {
                let (a, b) = sums.split_at(HALF);
                let from = self.positions[row] as usize * half + angle;
                let (cos, sin) = (&self.table.cos[from..][..HALF], &self.table.sin[from..][..HALF]);
                // SAFETY: every element of the result is handed over once, and the halves do not overlap.
                let first = unsafe { self.out.row(row, at.firsts[0], HALF) };
                // SAFETY: as above.
                let second = unsafe { self.out.row(row, at.firsts[1], HALF) };
                for i in 0..HALF {
                    let (x, y) = (a[i] + bias[0][i], b[i] + bias[1][i]);
                    let (cos, sin) = if turned { (cos[i], sin[i]) } else { (1.0, 0.0) };
                    first[i] = bf16::from_f32(x * cos - y * sin);
                    second[i] = bf16::from_f32(y * cos + x * sin);
                }
            }
        });
    }
}

/// Gate and up with their bias, and `silu(gate)·up` of what was rounded. Halves of a block are a gate and its up.
pub struct Swiglu<'a> {
    /// Gate and up side by side.
    pub gate_up: Output<'a, bf16>,
    /// Product.
    pub act: Output<'a, bf16>,
    /// f32, of gate and up.
    pub bias: Option<&'a [f32]>,
}

impl Epilogue for Swiglu<'_> {
    fn store(&self, block: &Block, at: Place) {
        let bias: [[f32; HALF]; 2] =
            at.firsts.map(|first| std::array::from_fn(|i| bias_at(self.bias, first + i)));
        simd(|| {
            for (row, sums) in (at.rows.0..at.rows.1).zip(&block.0) {
                let (a, b) = sums.split_at(HALF);
                // SAFETY: every element of the result is handed over once, and the halves do not overlap.
                let gate = unsafe { self.gate_up.row(row, at.firsts[0], HALF) };
                // SAFETY: as above.
                let up = unsafe { self.gate_up.row(row, at.firsts[1], HALF) };
                // SAFETY: as above; a gate's column is its product's.
                let act = unsafe { self.act.row(row, at.firsts[0], HALF) };
                for i in 0..HALF {
                    gate[i] = bf16::from_f32(a[i] + bias[0][i]);
                    up[i] = bf16::from_f32(b[i] + bias[1][i]);
                    let g = gate[i].to_f32();
                    act[i] = bf16::from_f32(g * sigmoid(g) * up[i].to_f32());
                }
            }
        });
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
    fn store(&self, block: &Block, at: Place) {
        let f = self.act.stride;
        simd(|| {
            halves(block, at, |row, half, sums| {
                let (first, n) = (at.firsts[half], sums.len());
                let gate = &self.gate_up[row * 2 * f + first..][..n];
                let up = &self.gate_up[row * 2 * f + f + first..][..n];
                // SAFETY: every element of the result is handed over once.
                let act = unsafe { self.act.row(row, first, n) };
                // SAFETY: as above, and with it the two gradients.
                let dgate = unsafe { self.dgate_up.row(row, first, n) };
                // SAFETY: as above.
                let dup = unsafe { self.dgate_up.row(row, f + first, n) };
                for i in 0..n {
                    let (g, u, d) = (gate[i].to_f32(), up[i].to_f32(), bf16::from_f32(sums[i]).to_f32());
                    let s = sigmoid(g);
                    let silu = g * s;
                    act[i] = bf16::from_f32(silu * u);
                    dgate[i] = bf16::from_f32(d * u * (s + silu * (1.0 - s)));
                    dup[i] = bf16::from_f32(d * silu);
                }
            });
        });
    }
}
