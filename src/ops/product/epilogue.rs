//! What is done with a row of a block while it is in cache: rounding, and the operations that saves a pass.

use super::{Epilogue, Row};
use crate::dtype::Element;
use crate::ops::attention::Heads;
use crate::ops::math::sigmoid;
use crate::ops::rope::Table;
use crate::ops::tile::HALF;
use bytemuck::Pod;
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

    /// What [`Output::put`] stored, and zeros.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn get(&self, row: usize, column: usize, width: usize) -> Lanes<T>
    where
        T: Pod,
    {
        let at = row * self.stride + column;
        assert!(at + width <= self.len && column + width <= self.stride, "a block outside the result");
        // SAFETY: inside the slice that `new` borrowed for the life of self (asserted), and not written (the caller).
        load(unsafe { std::slice::from_raw_parts(self.data.wrapping_add(at), width) }, 0, width)
    }

    /// `width` elements of a row, to be written.
    ///
    /// # Safety
    /// No reference to these elements exists while the result does, and no other thread uses them.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "what the caller promises")]
    pub unsafe fn row(&self, row: usize, column: usize, width: usize) -> &mut [T] {
        let at = row * self.stride + column;
        assert!(at + width <= self.len && column + width <= self.stride, "a block outside the result");
        // SAFETY: inside the slice that `new` borrowed for the life of self (asserted), and not aliased (the caller).
        unsafe { std::slice::from_raw_parts_mut(self.data.wrapping_add(at), width) }
    }

    /// Stores the first `width` of the lanes in a row.
    ///
    /// # Safety
    /// No reference to these elements exists, and no other thread uses them.
    #[inline(always)]
    pub unsafe fn put(&self, row: usize, column: usize, width: usize, lanes: Lanes<T>)
    where
        T: Copy,
    {
        // SAFETY: as the caller promises.
        let to = unsafe { self.row(row, column, width) };
        if let Some(to) = to.first_chunk_mut() {
            *to = lanes;
        } else {
            to.copy_from_slice(&lanes[..width]);
        }
    }
}

impl<T: Pod> Output<'_, T> {
    /// As [`Output::put`], past the caches: what is not read soon need not be brought into them first, nor take their room.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn stream(&self, row: usize, column: usize, width: usize, lanes: Lanes<T>) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
            // SAFETY: as the caller promises.
            let to: *mut __m128i = unsafe { self.row(row, column, width) }.as_mut_ptr().cast();
            let from: *const __m128i = lanes.as_ptr().cast();
            if width == HALF && to.is_aligned() {
                for i in 0..size_of::<Lanes<T>>() / size_of::<__m128i>() {
                    // SAFETY: one of the lanes' parts of 16 bytes.
                    let part = unsafe { _mm_loadu_si128(from.wrapping_add(i)) };
                    // SAFETY: the same part of `width` elements that lie on a multiple of 16 bytes and are the caller's.
                    unsafe { _mm_stream_si128(to.wrapping_add(i), part) };
                }
                return;
            }
        }
        // SAFETY: as the caller promises.
        unsafe { self.put(row, column, width, lanes) };
    }
}

/// What half of a block has of a row. A fixed length, for which loops become single instructions.
pub type Lanes<T> = [T; HALF];

/// `width` elements from `at` on, and zeros.
#[inline(always)]
fn load<T: Pod>(from: &[T], at: usize, width: usize) -> Lanes<T> {
    let from = &from[at..][..width];
    if let Some(lanes) = from.first_chunk() {
        return *lanes;
    }
    let mut lanes = [bytemuck::Zeroable::zeroed(); HALF];
    lanes[..width].copy_from_slice(from);
    lanes
}

#[inline(always)]
fn round<T: Element>(x: Lanes<f32>) -> Lanes<T> {
    let mut y = [bytemuck::Zeroable::zeroed(); HALF];
    for i in 0..HALF {
        y[i] = T::from_f32(x[i]);
    }
    y
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
fn biased(bias: Option<&[f32]>, first: usize, width: usize, sums: &Lanes<f32>) -> Lanes<f32> {
    match bias {
        Some(bias) => add(*sums, load(bias, first, width)),
        None => *sums,
    }
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
    fn store(&self, part: Row<'_>) {
        for half in 0..2 {
            let (first, width) = (part.firsts[half], part.widths[half]);
            let y = round(biased(self.bias, first, width, part.sums[half]));
            // SAFETY: every element of the result is handed over once.
            unsafe { self.out.put(part.row, first, width, y) };
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
    fn store(&self, part: Row<'_>) {
        for half in 0..2 {
            let (first, width, mut sums) = (part.firsts[half], part.widths[half], *part.sums[half]);
            if self.add {
                // SAFETY: every element of the result is handed over once.
                sums = add(unsafe { self.out.get(part.row, first, width) }, sums);
                // SAFETY: as above.
                unsafe { self.out.put(part.row, first, width, sums) };
            } else {
                // SAFETY: as above.
                unsafe { self.out.stream(part.row, first, width, sums) };
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
    fn store(&self, part: Row<'_>) {
        for half in 0..2 {
            let (first, width) = (part.firsts[half], part.widths[half]);
            let residual = load(self.residual, part.row * self.out.stride + first, width);
            let y = biased(self.bias, first, width, &add(residual, *part.sums[half]));
            // SAFETY: every element of the result is handed over once.
            unsafe { self.out.put(part.row, first, width, y) };
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
    fn store(&self, part: Row<'_>) {
        let (d, [first, second]) = (self.heads.head_dim, part.firsts);
        let mut a = biased(self.bias, first, HALF, part.sums[0]);
        let mut b = biased(self.bias, second, HALF, part.sums[1]);
        if first < (self.heads.heads + self.heads.kv_heads) * d {
            let angle = self.positions[part.row] as usize * (d / 2) + first % d;
            let (cos, sin) = (load(self.table.cos, angle, HALF), load(self.table.sin, angle, HALF));
            for i in 0..HALF {
                (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
            }
        }
        // SAFETY: every element of the result is handed over once.
        unsafe { self.out.put(part.row, first, HALF, round(a)) };
        // SAFETY: as above.
        unsafe { self.out.put(part.row, second, HALF, round(b)) };
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
    const BETWEEN_STEPS: bool = true;

    #[inline(always)]
    fn store(&self, part: Row<'_>) {
        let (row, [first, second]) = (part.row, part.firsts);
        let gate = round::<T>(biased(self.bias, first, HALF, part.sums[0]));
        let up = round::<T>(biased(self.bias, second, HALF, part.sums[1]));
        let (g, u) = (widen(gate), widen(up));
        let mut act = [0.0; HALF];
        for i in 0..HALF {
            act[i] = g[i] * sigmoid(g[i]) * u[i];
        }
        // SAFETY: every element of the result is handed over once.
        unsafe { self.gate_up.put(row, first, HALF, gate) };
        // SAFETY: as above.
        unsafe { self.gate_up.put(row, second, HALF, up) };
        // SAFETY: as above; a gate's column is its product's.
        unsafe { self.act.put(row, first, HALF, round(act)) };
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
    const BETWEEN_STEPS: bool = true;

    #[inline(always)]
    fn store(&self, part: Row<'_>) {
        let (row, f) = (part.row, self.act.stride);
        for half in 0..2 {
            let (first, width) = (part.firsts[half], part.widths[half]);
            let g = widen(load(self.gate_up, row * 2 * f + first, width));
            let u = widen(load(self.gate_up, row * 2 * f + f + first, width));
            let d = widen(round::<T>(*part.sums[half]));
            let (mut act, mut dgate, mut dup) = ([0.0; HALF], [0.0; HALF], [0.0; HALF]);
            for i in 0..HALF {
                let s = sigmoid(g[i]);
                let silu = g[i] * s;
                act[i] = silu * u[i];
                dgate[i] = d[i] * u[i] * (s + silu * (1.0 - s));
                dup[i] = d[i] * silu;
            }
            // SAFETY: every element of the result is handed over once, and with it the two gradients.
            unsafe { self.act.put(row, first, width, round(act)) };
            // SAFETY: as above.
            unsafe { self.dgate_up.put(row, first, width, round(dgate)) };
            // SAFETY: as above.
            unsafe { self.dgate_up.put(row, f + first, width, round(dup)) };
        }
    }
}
