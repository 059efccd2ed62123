//! Products in fp32 lanes, each bf16 widened by a shift.
//!
//! A product of two bf16 is exact in fp32, so fused or not, in eight lanes or sixteen, every sum has the same bits.

use super::{Block, HALF, Level, Line, SIDE};

/// Rows that go through the columns panel together: their sums stay in registers.
const ROWS: usize = 4;

/// See [`super::Unit::step`].
#[inline(always)]
pub fn step(level: Level, a: &[Line; SIDE], b: &[Line; SIDE], c: &mut Block) {
    #[cfg(target_arch = "x86_64")]
    match level {
        // SAFETY: `Unit` is made for available levels only.
        Level::Avx512 => return unsafe { avx512(a, b, c) },
        // SAFETY: as above.
        Level::Avx2 => return unsafe { avx2(a, b, c) },
        _ => {}
    }
    let _ = level;
    plain::<false>(a, b, c);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn avx512(a: &[Line; SIDE], b: &[Line; SIDE], c: &mut Block) {
    plain::<true>(a, b, c);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(a: &[Line; SIDE], b: &[Line; SIDE], c: &mut Block) {
    plain::<true>(a, b, c);
}

/// `FUSED`: a fused product and sum is one instruction; where it is not, it would be a call.
#[inline(always)]
fn plain<const FUSED: bool>(a: &[Line; SIDE], b: &[Line; SIDE], c: &mut Block) {
    for first in (0..SIDE).step_by(ROWS) {
        for half in 0..2 {
            let mut sums = [[0.0f32; HALF]; ROWS];
            for (r, sums) in sums.iter_mut().enumerate() {
                sums.copy_from_slice(&c.0[first + r][half * HALF..][..HALF]);
            }
            add_products::<FUSED>(a, first, &b[half * HALF..][..HALF], &mut sums);
            for (r, sums) in sums.iter().enumerate() {
                c.0[first + r][half * HALF..][..HALF].copy_from_slice(sums);
            }
        }
    }
}

/// Four rows by the 16 columns of half a panel, for one step.
#[inline(always)]
fn add_products<const FUSED: bool>(
    a: &[Line; SIDE],
    first: usize,
    pairs: &[Line],
    sums: &mut [[f32; HALF]; ROWS],
) {
    for (p, line) in pairs.iter().enumerate() {
        let line = line.pairs();
        let (mut even, mut odd) = ([0.0f32; HALF], [0.0f32; HALF]);
        for i in 0..HALF {
            even[i] = f32::from_bits(line[i] << 16);
            odd[i] = f32::from_bits(line[i] & 0xffff_0000);
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let pair = a[first + r].pairs()[p];
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

#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}
