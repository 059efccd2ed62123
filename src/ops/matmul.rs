//! Matrix products on the CPU: a checked front to the `gemm` crate, and the conversion that lets bf16 and fp16 use it.

use super::math::{self, simd};
use crate::dtype::{DType, Element};
use std::borrow::Cow;

/// A matrix in a slice: element `(i, j)` is `data[i·row_stride + j·col_stride]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// Row-major with `row_stride` elements from one row to the next.
    ///
    /// # Panics
    /// If the last element lies outside `data`.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(fits(data.len(), rows, cols, row_stride), "view of {rows}x{cols} outside its slice");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// Row-major and contiguous.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// The transpose; nothing moves.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

impl<'a> View<'a> {
    /// Rows before `at`, and the others.
    fn split_rows(self, at: usize) -> (Self, Self) {
        let rest = self.data.get(at * self.row_stride..).unwrap_or(&[]);
        (Self { rows: at, ..self }, Self { data: rest, rows: self.rows - at, ..self })
    }

    /// Columns before `at`, and the others.
    fn split_columns(self, at: usize) -> (Self, Self) {
        let (left, right) = self.t().split_rows(at);
        (left.t(), right.t())
    }
}

fn fits(len: usize, rows: usize, cols: usize, row_stride: usize) -> bool {
    rows == 0 || cols == 0 || (row_stride >= cols && (rows - 1) * row_stride + cols <= len)
}

/// Whether a product may use all threads of the current pool, or runs inside a task that is one of many.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// All of the current rayon pool.
    All,
    /// The calling one.
    One,
}

/// `c = a·b` or, with `add`, `c += a·b`; c row-major with `c_stride` elements from row to row.
///
/// Threads share the result between them in bands, of rows unless it is much wider than high; that keeps them busier
/// than sharing each packed block does. Every element is summed in the same order however it is split.
///
/// # Panics
/// If the inner dimensions differ or `c` is too short.
pub fn multiply(a: View<'_>, b: View<'_>, c: &mut [f32], c_stride: usize, add: bool, threads: Threads) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert_eq!(k, b.rows, "inner dimensions");
    assert!(fits(c.len(), m, n, c_stride), "result of {m}x{n} outside its slice");
    let c = Target { data: c.as_mut_ptr(), stride: c_stride };
    let bands = match threads {
        Threads::One => 1,
        Threads::All => rayon::current_num_threads().min(m * n * k / MIN_BAND_PRODUCTS).max(1),
    };
    split(a, b, c, add, bands);
}

/// Products below which a band is not worth a thread.
const MIN_BAND_PRODUCTS: usize = 1 << 20;

/// Bands of columns begin at multiples of this: the width of the widest inner kernel.
const COLUMNS: usize = 64;

/// Where a band of the result lies. Bands that exist at the same time share no element.
#[derive(Clone, Copy)]
struct Target {
    data: *mut f32,
    stride: usize,
}

// SAFETY: a Target is only written through, and `split` gives each thread elements that no other thread has.
unsafe impl Send for Target {}
// SAFETY: as above; a shared Target is only copied.
unsafe impl Sync for Target {}

/// Halves the result until there is one band per thread.
fn split(a: View<'_>, b: View<'_>, c: Target, add: bool, bands: usize) {
    let (m, n) = (a.rows, b.cols);
    if bands <= 1 {
        return product(a, b, c, add);
    }
    let (first, share) = (bands / 2, |n: usize| n * (bands / 2) / bands);
    if n > 2 * m {
        let at = share(n).next_multiple_of(COLUMNS).min(n);
        let right = Target { data: c.data.wrapping_add(at), ..c };
        let (b1, b2) = b.split_columns(at);
        rayon::join(|| split(a, b1, c, add, first), || split(a, b2, right, add, bands - first));
    } else {
        let at = share(m);
        let below = Target { data: c.data.wrapping_add(at * c.stride), ..c };
        let (a1, a2) = a.split_rows(at);
        rayon::join(|| split(a1, b, c, add, first), || split(a2, b, below, add, bands - first));
    }
}

/// One band, on the calling thread.
fn product(a: View<'_>, b: View<'_>, c: Target, add: bool) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    if m == 0 || n == 0 {
        return;
    }
    let stride = |s: usize| isize::try_from(s).expect("a slice is shorter than isize::MAX");
    // SAFETY: `View::strided` checked that every element the strides of a and b reach lies inside its slice, and
    // `multiply` did for c, of which this is a band; `split` gave the band to this thread alone, and the exclusive
    // borrow of c in `multiply`, which waits for all bands, keeps a and b from overlapping it.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.data,
            1,
            stride(c.stride),
            add,
            a.data.as_ptr(),
            stride(a.col_stride),
            stride(a.row_stride),
            b.data.as_ptr(),
            stride(b.col_stride),
            stride(b.row_stride),
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Elements that a task converts.
const PIECE: usize = 1 << 14;

/// The slice as f32: itself, or a widened copy.
pub fn widen<E: Element>(x: &[E]) -> Cow<'_, [f32]> {
    use rayon::prelude::*;
    if E::DTYPE == DType::F32 {
        Cow::Borrowed(bytemuck::cast_slice(x))
    } else {
        let mut wide = vec![0.0; x.len()];
        let pieces = wide.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE));
        pieces.for_each(|(to, from)| {
            simd(
                #[inline(always)]
                || to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32()),
            );
        });
        Cow::Owned(wide)
    }
}

/// Rounds every element to E, on all threads.
pub fn round<E: Element>(from: &[f32], to: &mut [E]) {
    use rayon::prelude::*;
    let pieces = to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE));
    pieces.for_each(|(to, from)| {
        simd(
            #[inline(always)]
            || math::round(from, to),
        )
    });
}

/// Lets `fill` write f32, and leaves them in `y` rounded to E: `fill` gets `y` itself where E is f32.
pub fn rounding<E: Element>(y: &mut [E], fill: impl FnOnce(&mut [f32])) {
    if E::DTYPE == DType::F32 {
        fill(bytemuck::cast_slice_mut(y));
    } else {
        let mut wide = vec![0.0; y.len()];
        fill(&mut wide);
        round(&wide, y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers, so that every order of summation gives the same bits.
    fn integers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 31 + seed * 17) % 13) as f32 - 6.0).collect()
    }

    fn naive(a: View<'_>, b: View<'_>, c: &mut [f32], stride: usize, add: bool) {
        for i in 0..a.rows {
            for j in 0..b.cols {
                let dot: f32 = (0..a.cols)
                    .map(|k| {
                        a.data[i * a.row_stride + k * a.col_stride]
                            * b.data[k * b.row_stride + j * b.col_stride]
                    })
                    .sum();
                c[i * stride + j] = if add { c[i * stride + j] + dot } else { dot };
            }
        }
    }

    #[test]
    fn equals_the_naive_product_in_every_layout() {
        for (m, n, k) in
            [(1, 1, 1), (3, 5, 7), (17, 33, 9), (64, 48, 70), (1, 40, 16), (40, 1, 16), (5, 4, 0)]
        {
            let (a, b) = (integers(m * k, 1), integers(k * n, 2));
            let layouts_a = [View::new(&a, m, k), View::new(&a, k, m).t()];
            let layouts_b = [View::new(&b, k, n), View::new(&b, n, k).t()];
            for (a, b) in layouts_a.iter().flat_map(|&a| layouts_b.iter().map(move |&b| (a, b))) {
                for add in [false, true] {
                    let start = integers(m * (n + 3), 3);
                    let (mut got, mut want) = (start.clone(), start);
                    multiply(a, b, &mut got, n + 3, add, Threads::All);
                    naive(a, b, &mut want, n + 3, add);
                    assert_eq!(got, want, "{m}x{n}x{k} add {add}");
                }
            }
        }
    }

    /// What the promise of the same bytes for any number of threads rests on: the shapes of SmolLM2-135M, in bits.
    #[test]
    fn the_number_of_bands_changes_no_bit() {
        let noise =
            |n: usize, seed: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * 0.7 + seed).sin()).collect() };
        for (m, n, k) in
            [(333, 576, 576), (333, 3072, 576), (576, 1536, 333), (100, 4096, 576), (37, 576, 4096)]
        {
            let (a, b, start) = (noise(m * k, 1.0), noise(n * k, 2.0), noise(m * n, 3.0));
            let layouts = [
                (View::new(&a, m, k), View::new(&b, n, k).t()),
                (View::new(&a, k, m).t(), View::new(&b, k, n)),
            ];
            for (a, b) in layouts {
                let run = |bands| {
                    let mut c = start.clone();
                    split(a, b, Target { data: c.as_mut_ptr(), stride: n }, true, bands);
                    c
                };
                let want = run(1);
                for bands in [2, 3, 7] {
                    assert_eq!(run(bands), want, "{m}x{n}x{k} in {bands} bands");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "outside its slice")]
    fn a_view_must_fit() {
        let _ = View::strided(&[0.0; 11], 3, 4, 4);
    }
}
