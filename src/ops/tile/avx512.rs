//! AVX-512 BF16: VDPBF16PS adds two products of pairs to each of 16 sums.

use super::{Block, Line, SIDE};

/// See [`super::Unit::step`].
#[inline(always)]
pub fn step(a: &[Line; SIDE], b: &[Line; SIDE], c: &mut Block) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `Unit` is made for available levels only.
    unsafe {
        registers::step(a, b, c);
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

    /// Rows whose sums stay in registers: 16 of the 32, enough to hide the latency of the instruction.
    const ROWS: usize = 8;

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub fn step(a: &[Line; SIDE], b: &[Line; SIDE], c: &mut Block) {
        for (group, rows) in c.0.chunks_exact_mut(ROWS).enumerate() {
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            for (sums, row) in sums.iter_mut().zip(&*rows) {
                for (half, sum) in row.chunks_exact(HALF).zip(sums) {
                    // SAFETY: a half holds 16 values.
                    *sum = unsafe { _mm512_loadu_ps(half.as_ptr()) };
                }
            }
            for p in 0..HALF {
                let (left, right) = (pairs(&b[p]), pairs(&b[HALF + p]));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = as_pairs(_mm512_set1_epi32(a[group * ROWS + r].lanes()[p].cast_signed()));
                    sums[0] = _mm512_dpbf16_ps(sums[0], a, left);
                    sums[1] = _mm512_dpbf16_ps(sums[1], a, right);
                }
            }
            for (sums, row) in sums.iter().zip(rows) {
                for (half, sum) in row.chunks_exact_mut(HALF).zip(sums) {
                    // SAFETY: a half holds 16 values.
                    unsafe { _mm512_storeu_ps(half.as_mut_ptr(), *sum) };
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn pairs(line: &Line) -> __m512bh {
        // SAFETY: a line holds 64 bytes.
        as_pairs(unsafe { _mm512_loadu_si512((&raw const *line).cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn as_pairs(x: __m512i) -> __m512bh {
        // SAFETY: both are 64 bytes, of which every pattern is valid.
        unsafe { std::mem::transmute(x) }
    }
}
