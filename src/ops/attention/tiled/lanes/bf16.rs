//! What depends on bf16: a step holds 32 keys or queries, in pairs, and what is multiplied is rounded.

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::{Lanes, Operand, Panels, Running, Statistics, exp2, multiply_add, whole};
use crate::ops::tile::{Block, HALF, Level, Line, SIDE};
use half::bf16;

impl Operand for bf16 {
    fn weigh(level: Level, scores: &Block, factor: f32, running: &mut Running, panel: &mut [Line]) {
        let panel = whole(panel);
        #[cfg(target_arch = "x86_64")]
        if level >= Level::Avx512 {
            // SAFETY: levels are made available ones only, and this one has AVX-512.
            return unsafe { avx512::weigh(scores, factor, running, panel) };
        }
        weigh(level, scores, factor, running, panel);
    }

    fn lines(level: Level, block: &Block, _: usize, half: usize, factor: &Lanes) -> [Line; HALF] {
        pairs(level, block, half, factor)
    }

    fn dots(level: Level, a: &[Line], b: &[Line]) -> Lanes {
        dots(level, a, b)
    }

    fn gradients(level: Level, scores: &Block, dp: &Block, factor: f32, of: &Statistics, panels: Panels<'_>) {
        #[cfg(target_arch = "x86_64")]
        if level >= Level::Avx512 {
            // SAFETY: levels are made available ones only, and this one has AVX-512.
            return unsafe { avx512::gradients(scores, dp, factor, of, panels) };
        }
        gradients(level, scores, dp, factor, of, panels);
    }

    fn rounded(level: Level, row: &[f32], out: &mut [Self]) {
        rounded(level, row, out);
    }
}

/// The upper half holds x as bf16, rounded to nearest, ties away from zero, which is one addition. A NaN stays one if its
/// lower half is zero, as it is if it stems from arithmetic on bf16.
#[inline(always)]
pub(super) fn round(x: f32) -> u32 {
    x.to_bits().wrapping_add(0x8000)
}

/// Two rounded values as they lie in a columns panel.
#[inline(always)]
fn pair(even: u32, odd: u32) -> u32 {
    even >> 16 | odd & 0xffff_0000
}

for_each_level! {
    fn weigh<FUSED>(scores: &Block, factor: f32, running: &mut Running, panel: &mut [Line; SIDE]) {
        for half in 0..2 {
            let (mut shifts, mut totals) = ([0.0; HALF], [0.0; HALF]);
            for i in 0..HALF {
                (shifts[i], totals[i]) = (-running.shift[half * HALF + i], running.total[half * HALF + i]);
            }
            for p in 0..HALF {
                let mut pairs = [0; HALF];
                for i in 0..HALF {
                    let (even, odd) = (scores.0[2 * p][half * HALF + i], scores.0[2 * p + 1][half * HALF + i]);
                    let x = exp2::<FUSED>(multiply_add::<FUSED>(even, factor, shifts[i]));
                    let y = exp2::<FUSED>(multiply_add::<FUSED>(odd, factor, shifts[i]));
                    totals[i] += x + y;
                    pairs[i] = pair(round(x), round(y));
                }
                panel[half * HALF + p] = bytemuck::cast(pairs);
            }
            for i in 0..HALF {
                running.total[half * HALF + i] = totals[i];
            }
        }
    }
}

for_each_level! {
    /// 16 columns of a block, from `half·16` on, times a factor each and rounded, in pairs of rows.
    fn pairs<FUSED>(block: &Block, half: usize, factor: &Lanes) -> [Line; HALF] {
        let mut lines = [Line::ZERO; HALF];
        let half = half % 2 * HALF;
        for p in 0..HALF {
            let mut pairs = [0; HALF];
            for i in 0..HALF {
                let factor = factor[half + i];
                let (even, odd) = (block.0[2 * p][half + i], block.0[2 * p + 1][half + i]);
                pairs[i] = pair(round_even(even * factor), round_even(odd * factor));
            }
            lines[p] = bytemuck::cast(pairs);
        }
        lines
    }
}

for_each_level! {
    /// For each column of two columns panels the sum of the products.
    fn dots<FUSED>(a: &[Line], b: &[Line]) -> Lanes {
        let mut sums = [[0.0; HALF]; 2];
        let (a, b) = (a.as_chunks::<SIDE>().0, b.as_chunks::<SIDE>().0);
        for step in 0..a.len().min(b.len()) {
            for line in 0..SIDE {
                let x: &[u32; HALF] = bytemuck::cast_ref(&a[step][line]);
                let y: &[u32; HALF] = bytemuck::cast_ref(&b[step][line]);
                let sums = &mut sums[line / HALF];
                for i in 0..HALF {
                    sums[i] += lower(x[i]) * lower(y[i]) + upper(x[i]) * upper(y[i]);
                }
            }
        }
        bytemuck::cast(sums)
    }
}

#[inline(always)]
fn lower(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

#[inline(always)]
fn upper(pair: u32) -> f32 {
    f32::from_bits(pair & 0xffff_0000)
}

for_each_level! {
    fn gradients<FUSED>(
        scores: &Block, dp: &Block, factor: f32, of: &Statistics, panels: Panels<'_>,
    ) {
        let [to_p, to_ds, to_columns] = [panels.p, panels.ds, panels.ds_columns].map(whole::<SIDE>);
        for half in 0..2 {
            let (mut lse, mut delta) = ([0.0; HALF], [0.0; HALF]);
            for i in 0..HALF {
                (lse[i], delta[i]) = (-of.lse[half * HALF + i], of.delta[half * HALF + i]);
            }
            for key in (0..SIDE).step_by(2) {
                let (mut p, mut ds) = ([[0; HALF]; 2], [[0; HALF]; 2]);
                for odd in 0..2 {
                    for i in 0..HALF {
                        let (score, dp) =
                            (scores.0[key + odd][half * HALF + i], dp.0[key + odd][half * HALF + i]);
                        let probability = exp2::<FUSED>(multiply_add::<FUSED>(score, factor, lse[i]));
                        p[odd][i] = round(probability);
                        ds[odd][i] = round(probability * (dp - delta[i]));
                    }
                    store(&mut to_p[key + odd], half, &p[odd]);
                    store(&mut to_ds[key + odd], half, &ds[odd]);
                }
                let mut pairs = [0; HALF];
                for i in 0..HALF {
                    pairs[i] = pair(ds[0][i], ds[1][i]);
                }
                to_columns[half * HALF + key / 2] = bytemuck::cast(pairs);
            }
        }
    }
}

/// The upper halves, as half of a line.
#[inline(always)]
fn store(line: &mut Line, half: usize, values: &[u32; HALF]) {
    if let Some(to) = line.0[half * HALF..].first_chunk_mut() {
        *to = upper_halves(values);
    }
}

#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the upper half, shifted down")]
fn upper_halves(values: &[u32; HALF]) -> [bf16; HALF] {
    let mut halves = [bf16::ZERO; HALF];
    for i in 0..HALF {
        halves[i] = bf16::from_bits((values[i] >> 16) as u16);
    }
    halves
}

/// As [`round`], ties to even: for what is stored.
#[inline(always)]
pub(super) fn round_even(x: f32) -> u32 {
    let bits = x.to_bits();
    bits.wrapping_add(0x7fff + (bits >> 16 & 1))
}

for_each_level! {
    /// Rounds to bf16.
    fn rounded<FUSED>(row: &[f32], out: &mut [bf16]) {
        let ((row, row_rest), (out, out_rest)) = (row.as_chunks::<HALF>(), out.as_chunks_mut::<HALF>());
        for part in 0..row.len().min(out.len()) {
            let mut bits = [0; HALF];
            for i in 0..HALF {
                bits[i] = round_even(row[part][i]);
            }
            out[part] = upper_halves(&bits);
        }
        for i in 0..row_rest.len().min(out_rest.len()) {
            out_rest[i] = upper_halves(&[round_even(row_rest[i]); HALF])[0];
        }
    }
}
