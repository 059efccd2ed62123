//! What depends on fp32: a step holds 16 keys or queries, and nothing is rounded.

use super::{Lanes, Operand, Panels, Running, Statistics, exp2, multiply_add, whole};
use crate::ops::tile::{Block, HALF, Level, Line, SIDE};

/// Lines of a panel along 32.
const LINES: usize = f32::LINES;

impl Operand for f32 {
    fn weigh(level: Level, scores: &Block, factor: f32, running: &mut Running, panel: &mut [Line]) {
        weigh(level, scores, factor, running, whole(panel));
    }

    fn lines(level: Level, block: &Block, part: usize, half: usize, factor: &Lanes) -> [Line; HALF] {
        lines(level, block, part, half, factor)
    }

    fn dots(level: Level, a: &[Line], b: &[Line]) -> Lanes {
        dots(level, a, b)
    }

    fn gradients(level: Level, scores: &Block, dp: &Block, factor: f32, of: &Statistics, panels: Panels<'_>) {
        gradients(level, scores, dp, factor, of, panels);
    }

    fn rounded(_: Level, row: &[f32], out: &mut [f32]) {
        out.copy_from_slice(row);
    }
}

/// Where a columns panel has half of a key's line.
#[inline(always)]
fn line_of(key: usize, half: usize) -> usize {
    key / HALF * SIDE + half * HALF + key % HALF
}

for_each_level! {
    fn weigh<FUSED>(scores: &Block, factor: f32, running: &mut Running, panel: &mut [Line; LINES]) {
        for half in 0..2 {
            let (mut shifts, mut totals) = ([0.0; HALF], [0.0; HALF]);
            for i in 0..HALF {
                (shifts[i], totals[i]) = (-running.shift[half * HALF + i], running.total[half * HALF + i]);
            }
            for key in (0..SIDE).step_by(2) {
                let (mut even, mut odd) = ([0.0f32; HALF], [0.0f32; HALF]);
                for i in 0..HALF {
                    let at = half * HALF + i;
                    even[i] = exp2::<FUSED>(multiply_add::<FUSED>(scores.0[key][at], factor, shifts[i]));
                    odd[i] = exp2::<FUSED>(multiply_add::<FUSED>(scores.0[key + 1][at], factor, shifts[i]));
                    totals[i] += even[i] + odd[i];
                }
                panel[line_of(key, half)] = bytemuck::cast(even);
                panel[line_of(key + 1, half)] = bytemuck::cast(odd);
            }
            for i in 0..HALF {
                running.total[half * HALF + i] = totals[i];
            }
        }
    }
}

for_each_level! {
    fn lines<FUSED>(block: &Block, part: usize, half: usize, factor: &Lanes) -> [Line; HALF] {
        let mut lines = [Line::ZERO; HALF];
        let (part, half) = (part % 2 * HALF, half % 2 * HALF);
        for row in 0..HALF {
            let mut values = [0.0; HALF];
            for i in 0..HALF {
                values[i] = block.0[part + row][half + i] * factor[half + i];
            }
            lines[row] = bytemuck::cast(values);
        }
        lines
    }
}

for_each_level! {
    fn dots<FUSED>(a: &[Line], b: &[Line]) -> Lanes {
        let mut sums = [[0.0; HALF]; 2];
        let (a, b) = (a.as_chunks::<SIDE>().0, b.as_chunks::<SIDE>().0);
        for step in 0..a.len().min(b.len()) {
            for line in 0..SIDE {
                let x: &[f32; HALF] = bytemuck::cast_ref(&a[step][line]);
                let y: &[f32; HALF] = bytemuck::cast_ref(&b[step][line]);
                let sums = &mut sums[line / HALF];
                for i in 0..HALF {
                    sums[i] = multiply_add::<FUSED>(x[i], y[i], sums[i]);
                }
            }
        }
        bytemuck::cast(sums)
    }
}

for_each_level! {
    fn gradients<FUSED>(
        scores: &Block, dp: &Block, factor: f32, of: &Statistics, panels: Panels<'_>,
    ) {
        let [to_p, to_ds, to_columns] = [panels.p, panels.ds, panels.ds_columns].map(whole::<LINES>);
        for half in 0..2 {
            let (mut lse, mut delta) = ([0.0; HALF], [0.0; HALF]);
            for i in 0..HALF {
                (lse[i], delta[i]) = (-of.lse[half * HALF + i], of.delta[half * HALF + i]);
            }
            for key in 0..SIDE {
                let (mut p, mut ds) = ([0.0f32; HALF], [0.0f32; HALF]);
                for i in 0..HALF {
                    let (score, dp) = (scores.0[key][half * HALF + i], dp.0[key][half * HALF + i]);
                    p[i] = exp2::<FUSED>(multiply_add::<FUSED>(score, factor, lse[i]));
                    ds[i] = p[i] * (dp - delta[i]);
                }
                to_p[half * SIDE + key] = bytemuck::cast(p);
                to_ds[half * SIDE + key] = bytemuck::cast(ds);
                to_columns[line_of(key, half)] = bytemuck::cast(ds);
            }
        }
    }
}
