//! Products in fp32 lanes, each bf16 widened by a shift.
//!
//! A product of two bf16 is exact in fp32, so fused or not, in eight lanes or sixteen, every sum has the same bits. One of
//! two fp32 is not: where the processor fuses a product and its sum, there is one rounding less.

use super::{Block, HALF, Level, Line, SIDE};
use half::bf16;

/// Rows that go through the columns panel together: their sums stay in registers.
const ROWS: usize = 4;

/// `c += a·b`, see [`super::Packed::multiply`].
pub fn multiply<T: Lanes>(level: Level, a: &[Line], b: &[Line], c: &mut Block) {
    #[cfg(target_arch = "x86_64")]
    match level {
        // SAFETY: `Unit` is made for available levels only.
        Level::Avx512 => return unsafe { avx512::<T>(a, b, c) },
        // SAFETY: as above.
        Level::Avx2 => return unsafe { avx2::<T>(a, b, c) },
        _ => {}
    }
    let _ = level;
    plain::<T, false>(a, b, c);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn avx512<T: Lanes>(a: &[Line], b: &[Line], c: &mut Block) {
    plain::<T, true>(a, b, c);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<T: Lanes>(a: &[Line], b: &[Line], c: &mut Block) {
    plain::<T, true>(a, b, c);
}

/// `FUSED`: a fused product and sum is one instruction; where it is not, it would be a call.
#[inline(always)]
fn plain<T: Lanes, const FUSED: bool>(a: &[Line], b: &[Line], c: &mut Block) {
    let (a, b) = (a.as_chunks::<SIDE>().0, b.as_chunks::<SIDE>().0);
    for first in (0..SIDE).step_by(ROWS) {
        for half in 0..2 {
            let mut sums = [[0.0f32; HALF]; ROWS];
            for (r, sums) in sums.iter_mut().enumerate() {
                sums.copy_from_slice(&c.0[first + r][half * HALF..][..HALF]);
            }
            for (a, b) in a.iter().zip(b) {
                let a = a[first..].first_chunk().expect("whole groups of rows");
                for (p, line) in b[half * HALF..][..HALF].iter().enumerate() {
                    T::add_products::<FUSED>(a, p, line, &mut sums);
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                c.0[first + r][half * HALF..][..HALF].copy_from_slice(sums);
            }
        }
    }
}

/// What the four bytes of a lane are.
pub trait Lanes {
    /// Adds the products of four rows' lane `p` and a line of 16 columns.
    fn add_products<const FUSED: bool>(
        a: &[Line; ROWS],
        p: usize,
        line: &Line,
        sums: &mut [[f32; HALF]; ROWS],
    );
}

impl Lanes for bf16 {
    #[inline(always)]
    fn add_products<const FUSED: bool>(
        a: &[Line; ROWS],
        p: usize,
        line: &Line,
        sums: &mut [[f32; HALF]; ROWS],
    ) {
        let line = line.lanes();
        let (mut even, mut odd) = ([0.0f32; HALF], [0.0f32; HALF]);
        for i in 0..HALF {
            even[i] = f32::from_bits(line[i] << 16);
            odd[i] = f32::from_bits(line[i] & 0xffff_0000);
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let pair = a[r].lanes()[p];
            let (x, y) = (f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000));
            for i in 0..HALF {
                sums[i] = multiply_add::<FUSED>(x, even[i], sums[i]);
            }
            for i in 0..HALF {
                sums[i] = multiply_add::<FUSED>(y, odd[i], sums[i]);
            }
        }
    }
}

impl Lanes for f32 {
    #[inline(always)]
    fn add_products<const FUSED: bool>(
        a: &[Line; ROWS],
        p: usize,
        line: &Line,
        sums: &mut [[f32; HALF]; ROWS],
    ) {
        let line = line.lanes();
        for (r, sums) in sums.iter_mut().enumerate() {
            let x = f32::from_bits(a[r].lanes()[p]);
            for i in 0..HALF {
                sums[i] = multiply_add::<FUSED>(x, f32::from_bits(line[i]), sums[i]);
            }
        }
    }
}

#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}
