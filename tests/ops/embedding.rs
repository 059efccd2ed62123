//! Embedding: rows looked up in bits, gradients added in the stated order in bits.

use crate::common::real::values;
use smolten::dtype::Element;
use smolten::ops::embedding::{backward, forward};

/// Rows on both sides of the blocks of 256 that the backward pass works in.
const VOCAB: usize = 700;

fn ids(n: usize) -> Vec<u32> {
    let edges = [0, 699, 255, 256, 511, 512, 0, 0, 256, 699];
    (0..n).map(|t| edges.get(t).copied().unwrap_or(u32::try_from(t * 37 % 61 * 11).unwrap())).collect()
}

fn looks_up<E: Element>() {
    for (t, c) in [(1, 1), (1, 16), (10, 17), (130, 33)] {
        let (ids, w) = (ids(t), values::<E>(VOCAB * c, 1.0, 1));
        let mut x = vec![f32::NAN; t * c];
        forward(&ids, &w, &mut x, c);
        for (i, &got) in x.iter().enumerate() {
            let want = w[ids[i / c] as usize * c + i % c].to_f32();
            assert_eq!(got.to_bits(), want.to_bits());
        }
    }
}

#[test]
fn forward_is_a_copy() {
    in_each_type!(looks_up);
}

/// Tokens sorted by id and then by position, and where each distinct id begins.
fn sorted(ids: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let mut pairs: Vec<(u32, u32)> = ids.iter().copied().zip(0..).collect();
    pairs.sort_unstable();
    let mut starts: Vec<u32> = (0..)
        .zip(&pairs)
        .filter(|&(i, p)| i == 0 || pairs[i as usize - 1].0 != p.0)
        .map(|(i, _)| i)
        .collect();
    starts.push(u32::try_from(ids.len()).unwrap());
    (pairs.into_iter().map(|p| p.1).collect(), starts)
}

#[test]
fn backward_adds_tokens_in_ascending_order() {
    for (t, c) in [(0, 3), (1, 1), (1, 16), (10, 17), (130, 33), (400, 5)] {
        let ids = ids(t);
        let (by_id, starts) = sorted(&ids);
        // Magnitudes so different that another order gives other bits.
        let scales = [1.0, 1e6, 1e-3, 3e7];
        let dx: Vec<f32> =
            values::<f32>(t * c, 1.0, 2).iter().zip(0..).map(|(x, i)| x * scales[i / c % 4]).collect();
        let before = values::<f32>(VOCAB * c, 1.0, 3);
        for add in [false, true] {
            let start = if add { before.clone() } else { vec![f32::NAN; VOCAB * c] };
            let mut want = if add { before.clone() } else { vec![0.0; VOCAB * c] };
            for (t, &id) in ids.iter().enumerate() {
                for i in 0..c {
                    want[id as usize * c + i] += dx[t * c + i];
                }
            }
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut dw = start.clone();
                pool.install(|| backward(&ids, &by_id, &starts, &dx, &mut dw, c, add));
                let same = dw.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{t} tokens, {c} columns, add {add}, {threads} threads");
            }
        }
    }
}
