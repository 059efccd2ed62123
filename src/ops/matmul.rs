//! Matrix products on the CPU: a checked front to the `gemm` crate, and the conversion that lets bf16 and fp16 use it.

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
/// # Panics
/// If the inner dimensions differ or `c` is too short.
pub fn multiply(a: View<'_>, b: View<'_>, c: &mut [f32], c_stride: usize, add: bool, threads: Threads) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert_eq!(k, b.rows, "inner dimensions");
    assert!(fits(c.len(), m, n, c_stride), "result of {m}x{n} outside its slice");
    if m == 0 || n == 0 {
        return;
    }
    let stride = |s: usize| isize::try_from(s).expect("a slice is shorter than isize::MAX");
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: `View::strided` and `fits` above checked that every element the strides reach lies inside its slice;
    // `c` is borrowed exclusively, so it aliases neither `a` nor `b`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            stride(c_stride),
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
            parallelism,
        );
    }
}

/// The slice as f32: itself, or a widened copy.
pub fn widen<E: Element>(x: &[E]) -> Cow<'_, [f32]> {
    use rayon::prelude::*;
    if E::DTYPE == DType::F32 {
        Cow::Borrowed(bytemuck::cast_slice(x))
    } else {
        Cow::Owned(x.par_iter().map(|v| v.to_f32()).collect())
    }
}

/// Lets `fill` write f32, and leaves them in `y` rounded to E: `fill` gets `y` itself where E is f32.
pub fn rounding<E: Element>(y: &mut [E], fill: impl FnOnce(&mut [f32])) {
    use rayon::prelude::*;
    if E::DTYPE == DType::F32 {
        fill(bytemuck::cast_slice_mut(y));
    } else {
        let mut wide = vec![0.0; y.len()];
        fill(&mut wide);
        y.par_iter_mut().zip(&wide).for_each(|(y, &w)| *y = E::from_f32(w));
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

    #[test]
    #[should_panic(expected = "outside its slice")]
    fn a_view_must_fit() {
        let _ = View::strided(&[0.0; 11], 3, 4, 4);
    }
}
