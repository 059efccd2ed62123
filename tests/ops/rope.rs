//! Rotary embedding: the table, the rotation in the halves convention, and back again.

use crate::common::real::{Real, assert_allowed, reals, values};
use smolten::ops::attention::Heads;
use smolten::ops::rope::{Table, Turn, rotate, table};

const HEADS: [Heads; 4] = [
    Heads { heads: 1, kv_heads: 1, head_dim: 2 },
    Heads { heads: 2, kv_heads: 1, head_dim: 16 },
    Heads { heads: 4, kv_heads: 2, head_dim: 34 },
    Heads { heads: 3, kv_heads: 3, head_dim: 128 },
];

fn frequencies(half: usize) -> Vec<f64> {
    (0..half).map(|i| 10_000f64.powf(-(i as f64) / half as f64)).collect()
}

#[test]
fn table_holds_cosine_and_sine_of_position_times_frequency() {
    let frequencies = frequencies(8);
    let (cos, sin) = table(&frequencies, 300);
    assert_eq!((cos.len(), sin.len()), (300 * 8, 300 * 8));
    let angle = |i: usize| (i / 8) as f64 * frequencies[i % 8];
    let want = |f: fn(f64) -> f64| (0..300 * 8).map(|i| Real::rounded_once(f(angle(i)))).collect::<Vec<_>>();
    assert_allowed("cos", &cos, &want(f64::cos));
    assert_allowed("sin", &sin, &want(f64::sin));
}

/// One row by the formula: coordinate i of q and k heads is paired with i + D/2; v stays.
fn rotated(row: &[Real], heads: Heads, cos: &[f32], sin: &[f32], turn: Turn) -> Vec<Real> {
    let (d, half) = (heads.head_dim, heads.head_dim / 2);
    let mut out = row.to_vec();
    for h in 0..heads.heads + heads.kv_heads {
        for i in 0..half {
            let (x, y) = (row[h * d + i], row[h * d + i + half]);
            let c = Real::of(cos[i]);
            let s = if turn == Turn::Forward { Real::of(sin[i]) } else { -Real::of(sin[i]) };
            out[h * d + i] = x * c - y * s;
            out[h * d + i + half] = y * c + x * s;
        }
    }
    out
}

#[test]
fn rotates_q_and_k_of_each_row_by_its_own_position() {
    let positions = [0, 1, 2, 0, 17, 63, 64, 1];
    for heads in HEADS {
        let (width, half) = (heads.qkv_width(), heads.head_dim / 2);
        let (cos, sin) = table(&frequencies(half), 65);
        let qkv = values::<f32>(positions.len() * width, 2.0, 1);
        for turn in [Turn::Forward, Turn::Backward] {
            let mut got = qkv.clone();
            rotate(&mut got, heads, &positions, Table { cos: &cos, sin: &sin }, turn);
            for (t, &p) in positions.iter().enumerate() {
                let at = p as usize * half;
                let (row, source) = (&got[t * width..][..width], &qkv[t * width..][..width]);
                let want = rotated(&reals(source), heads, &cos[at..], &sin[at..], turn);
                assert_allowed("rotated", row, &want);
                let first_v = (heads.heads + heads.kv_heads) * heads.head_dim;
                assert_eq!(row[first_v..], source[first_v..], "values must stay");
                if p == 0 {
                    assert_eq!(row, source, "position 0 turns nothing");
                }
            }
        }
    }
}

/// Backward is the transpose, hence the inverse, but for the rounding of cos² + sin² and of two rotations.
#[test]
fn back_again() {
    let heads = HEADS[2];
    let (cos, sin) = table(&frequencies(17), 40);
    let positions: Vec<u32> = (0..40).collect();
    let qkv = values::<f32>(40 * heads.qkv_width(), 2.0, 2);
    let mut got = qkv.clone();
    for turn in [Turn::Forward, Turn::Backward] {
        rotate(&mut got, heads, &positions, Table { cos: &cos, sin: &sin }, turn);
    }
    // Per rotation: table entries and three operations, each U, on |x| + |y| ≤ 4.
    crate::common::assert_close("there and back", &got, &qkv, 0.0, 2.0 * 4.0 * 4.0 * crate::common::U_F32);
}
