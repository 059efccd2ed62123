//! fp32 on AVX-512. Of plain loops over as many sums the compiler makes scattered stores.

use super::{Block, Line};

/// `c += a·b`, see [`super::Packed::multiply`].
#[inline]
pub fn multiply(a: &[Line], b: &[Line], c: &mut Block) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `Unit` is made for available levels only.
    unsafe {
        registers::multiply(a, b, c);
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (a, b, c);
        unreachable!("a level that is not available");
    }
}

#[cfg(target_arch = "x86_64")]
mod registers {
    use super::{Block, Line};
    use crate::ops::tile::{HALF, SIDE};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub fn multiply(a: &[Line], b: &[Line], c: &mut Block) {
        // The sums of 11 rows take 22 of the 32 registers.
        rows::<0, 11>(a, b, c);
        rows::<11, 11>(a, b, c);
        rows::<22, 10>(a, b, c);
    }

    /// Rows `FIRST..FIRST + ROWS` of the block, whose sums stay in registers over all steps.
    #[inline]
    #[target_feature(enable = "avx512f")]
    #[allow(clippy::needless_range_loop, reason = "adapters of iterators were seen not to inline here")]
    fn rows<const FIRST: usize, const ROWS: usize>(a: &[Line], b: &[Line], c: &mut Block) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for r in 0..ROWS {
            let row = c.0[FIRST + r].as_ptr();
            // SAFETY: the first 16 of 32 values.
            sums[r][0] = unsafe { _mm512_loadu_ps(row) };
            // SAFETY: the others.
            sums[r][1] = unsafe { _mm512_loadu_ps(row.wrapping_add(HALF)) };
        }
        let (a, b) = (a.as_chunks::<SIDE>().0, b.as_chunks::<SIDE>().0);
        let mut step = 0;
        while step < a.len().min(b.len()) {
            let (a, b) = (&a[step], &b[step]);
            // By hand: a loop of 16 ends in a branch that is guessed wrong too often.
            macro_rules! lanes {
                ($($p:literal)*) => { $(
                    let (left, right) = (singles(&b[$p]), singles(&b[HALF + $p]));
                    for r in 0..ROWS {
                        let a = _mm512_set1_ps(f32::from_bits(a[FIRST + r].lanes()[$p]));
                        sums[r][0] = _mm512_fmadd_ps(a, left, sums[r][0]);
                        sums[r][1] = _mm512_fmadd_ps(a, right, sums[r][1]);
                    }
                )* };
            }
            lanes!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            step += 1;
        }
        for r in 0..ROWS {
            let row = c.0[FIRST + r].as_mut_ptr();
            // SAFETY: the first 16 of 32 values.
            unsafe { _mm512_storeu_ps(row, sums[r][0]) };
            // SAFETY: the others.
            unsafe { _mm512_storeu_ps(row.wrapping_add(HALF), sums[r][1]) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn singles(line: &Line) -> __m512 {
        // SAFETY: a line holds 64 bytes, aligned to as many.
        unsafe { _mm512_load_ps((&raw const *line).cast()) }
    }
}
