//! Products in fp32 lanes, each bf16 widened by a shift.
//!
//! A product of two bf16 is exact in fp32, so fused or not, in eight lanes or sixteen, every sum has the same bits. One of
//! two fp32 is not: where the processor fuses a product and its sum, there is one rounding less.

use super::{Block, HALF, Level, Line, Packed, Rows, SIDE};

#[cfg(target_arch = "x86_64")]
mod registers;

/// `c += a·b`, for panels of the same whole steps.
pub fn multiply<T: Packed>(level: Level, a: Rows<'_>, b: &[Line], c: &mut Block) {
    #[cfg(target_arch = "x86_64")]
    {
        let c = std::array::from_mut(c);
        match level {
            Level::Portable => {}
            // SAFETY: `Unit` is made for available levels only.
            Level::Avx2 => return unsafe { registers::avx2::multiply::<T>(a, [b], c) },
            // SAFETY: as above.
            Level::Avx512 => return unsafe { registers::avx512::multiply::<T>(a, [b], c) },
            Level::Avx512Bf16 | Level::Amx => {
                // SAFETY: as above; of bf16, see `Packed::level`.
                return unsafe { registers::avx512_bf16::multiply::<f32>(a, [b], c) };
            }
        }
    }
    let _ = level;
    portable::<T>(a, b, c);
}

/// The same for two panels of columns, where that is quicker together.
pub fn multiply_two<T: Packed>(level: Level, a: Rows<'_>, b: [&[Line]; 2], c: &mut [Block; 2]) {
    #[cfg(target_arch = "x86_64")]
    match level {
        Level::Portable | Level::Avx2 => {}
        // SAFETY: as for `multiply`.
        Level::Avx512 => return unsafe { registers::avx512::multiply_two::<T>(a, b, c) },
        Level::Avx512Bf16 | Level::Amx => {
            // SAFETY: as for `multiply`.
            return unsafe { registers::avx512_bf16::multiply_two::<f32>(a, b, c) };
        }
    }
    b.into_iter().zip(c).for_each(|(b, c)| multiply::<T>(level, a, b, c));
}

/// Values of a lane: one fp32, or two bf16.
const fn values<T: Packed>() -> usize {
    T::DEPTH / HALF
}

/// Rows whose sums the compiler keeps in registers.
const ROWS: usize = 4;

fn portable<T: Packed>(a: Rows<'_>, b: &[Line], c: &mut Block) {
    let b = b.as_chunks::<SIDE>().0;
    for first in (0..SIDE).step_by(ROWS) {
        for half in 0..2 {
            let mut sums = [[0.0f32; HALF]; ROWS];
            for (r, sums) in sums.iter_mut().enumerate() {
                sums.copy_from_slice(c.halves(first + r)[half]);
            }
            for (i, b) in b.iter().enumerate().take(a.steps()) {
                let rows = std::array::from_fn(|r| a.line(i, first + r));
                for (p, line) in b[half * HALF..][..HALF].iter().enumerate() {
                    add::<T>(&rows, p, line, &mut sums);
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                c.0[first + r][half * HALF..][..HALF].copy_from_slice(sums);
            }
        }
    }
}

/// Adds the products of each row's lane `p` and a line of 16 columns.
#[inline(always)]
fn add<T: Packed>(rows: &[&Line; ROWS], p: usize, line: &Line, sums: &mut [[f32; HALF]; ROWS]) {
    let line = line.lanes();
    let (mut firsts, mut seconds) = ([0.0; HALF], [0.0; HALF]);
    for i in 0..HALF {
        firsts[i] = value::<T, 0>(line[i]);
        seconds[i] = value::<T, 1>(line[i]);
    }
    for (r, sums) in sums.iter_mut().enumerate() {
        let lane = rows[r].lanes()[p];
        let (first, second) = (value::<T, 0>(lane), value::<T, 1>(lane));
        for i in 0..HALF {
            sums[i] += first * firsts[i];
        }
        if values::<T>() == 2 {
            for i in 0..HALF {
                sums[i] += second * seconds[i];
            }
        }
    }
}

/// The fp32 in a lane, or the first or second bf16 of its pair.
#[inline(always)]
fn value<T: Packed, const WHICH: usize>(lane: u32) -> f32 {
    f32::from_bits(match (values::<T>(), WHICH) {
        (1, _) => lane,
        (_, 0) => lane << 16,
        _ => lane & 0xffff_0000,
    })
}
