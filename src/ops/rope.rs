//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in the halves convention of Hugging Face:
//! coordinate i of a head is paired with coordinate i + D/2.

use super::attention::Heads;
use rayon::prelude::*;

/// Which way to rotate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// By the position's angle.
    Forward,
    /// Back again: the transpose, which carries gradients through.
    Backward,
}

/// Cosines and sines, f32 `[positions, D/2]` each.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
}

/// Cosines and sines of position × frequency, computed in f64 and rounded once.
#[allow(clippy::cast_possible_truncation, reason = "f64 to f32: the rounding is meant")]
pub fn table(frequencies: &[f64], positions: usize) -> (Vec<f32>, Vec<f32>) {
    let angle = |i: usize| (i / frequencies.len()) as f64 * frequencies[i % frequencies.len()];
    let n = positions * frequencies.len();
    ((0..n).map(|i| angle(i).cos() as f32).collect(), (0..n).map(|i| angle(i).sin() as f32).collect())
}

/// Rotates the first `turned` heads of one row of `heads.qkv_width()` columns.
#[inline(always)]
fn rotate_row(row: &mut [f32], turned: usize, head_dim: usize, cos: &[f32], sin: &[f32], turn: Turn) {
    let half = head_dim / 2;
    for head in row[..turned * head_dim].chunks_exact_mut(head_dim) {
        let (a, b) = head.split_at_mut(half);
        for i in 0..half {
            let sin = if turn == Turn::Forward { sin[i] } else { -sin[i] };
            let (x, y) = (a[i], b[i]);
            a[i] = x * cos[i] - y * sin;
            b[i] = y * cos[i] + x * sin;
        }
    }
}

/// Rotates q and k of every row of `qkv` f32 `[T, (H + 2K)·D]` by its position; v stays.
pub fn rotate(qkv: &mut [f32], heads: Heads, positions: &[u32], table: Table<'_>, turn: Turn) {
    let half = heads.head_dim / 2;
    qkv.par_chunks_exact_mut(heads.qkv_width()).zip(positions).for_each(|(row, &position)| {
        let at = position as usize * half;
        let (cos, sin) = (&table.cos[at..][..half], &table.sin[at..][..half]);
        super::math::simd(
            #[inline(always)]
            || {
                rotate_row(row, heads.heads + heads.kv_heads, heads.head_dim, cos, sin, turn);
            },
        );
    });
}
