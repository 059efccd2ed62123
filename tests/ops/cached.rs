//! Attention with a cache of keys and values equals attention over the whole sequence, however it is cut.

use crate::attention::{Case, reference};
use crate::common::real::assert_allowed;
use smolten::dtype::Element;
use smolten::ops::attention::{CachedSequence, cached};

/// Runs one sequence in pieces; output, keys, values. The cache has room to spare, filled with NaN.
fn in_pieces<E: Element>(case: &Case<E>, pieces: &[usize]) -> [Vec<E>; 3] {
    let (heads, n) = (case.heads, case.tokens());
    let nan = |len: usize| vec![E::from_f32(f32::NAN); len];
    let kv_width = heads.kv_heads * heads.head_dim;
    let (mut keys, mut values) = (nan((n + 3) * kv_width), nan((n + 3) * kv_width));
    let (mut out, mut past) = (Vec::new(), 0);
    for &piece in pieces {
        let qkv = &case.qkv[past * heads.qkv_width()..(past + piece) * heads.qkv_width()];
        let mut new = nan(piece * heads.width());
        let sequence = [CachedSequence { slot: 0, past }];
        cached(qkv, heads, &sequence, n + 3, &mut keys, &mut values, &mut new);
        out.extend(new);
        past += piece;
    }
    assert_eq!(past, n);
    [out, keys, values]
}

fn bits<E: Element>(x: &[E]) -> Vec<u32> {
    x.iter().map(|x| x.to_f32().to_bits()).collect()
}

/// `sharp` multiplies the queries.
fn check<E: Element>(group: usize, kv_heads: usize, head_dim: usize, sharp: f32) {
    for (n, pieces) in [(1, vec![1]), (70, vec![1; 70]), (70, vec![5, 1, 1, 63]), (70, vec![64, 2, 4])] {
        let mut case = Case::<E>::new(group, kv_heads, head_dim, &[n]);
        case.sharpen(sharp);
        let whole = in_pieces(&case, &[n]);
        assert_allowed("cached", &whole[0], &reference(&case).0);
        let cut = in_pieces(&case, &pieces);
        assert!((0..3).all(|i| bits(&whole[i]) == bits(&cut[i])), "pieces {pieces:?}");

        let (width, kv_width) = (case.heads.qkv_width(), kv_heads * head_dim);
        for (t, row) in case.qkv.chunks(width).enumerate() {
            let (k, v) = row[case.heads.width()..].split_at(kv_width);
            assert_eq!(bits(&whole[1][t * kv_width..][..kv_width]), bits(k));
            assert_eq!(bits(&whole[2][t * kv_width..][..kv_width]), bits(v));
        }
        for cache in &whole[1..] {
            assert!(cache[n * kv_width..].iter().all(|x| x.to_f32().is_nan()), "written behind the end");
        }
    }
}

#[test]
fn equals_the_whole_sequence_however_it_is_cut() {
    for (group, kv_heads, head_dim) in [(1, 1, 16), (2, 2, 32), (3, 3, 64), (4, 1, 128)] {
        in_each_type!(check, group, kv_heads, head_dim, 1.0);
    }
    // Scores far beyond what `exp` holds.
    in_each_type!(check, 2, 1, 16, 100.0);
}

/// Sequences of other lengths, in any slots, a token of each at a time: every one has the bits that it has alone, and nothing
/// is written where it does not belong.
fn check_several<E: Element>(group: usize, kv_heads: usize, head_dim: usize) {
    const POSITIONS: usize = 75;
    let (lengths, slots) = ([70, 1, 33], [3, 0, 2]);
    let cases = lengths.map(|n| Case::<E>::new(group, kv_heads, head_dim, &[n]));
    let alone = [0, 1, 2].map(|i| in_pieces(&cases[i], &[lengths[i] - 1, 1][usize::from(lengths[i] == 1)..]));
    let (heads, kv_width) = (cases[0].heads, kv_heads * head_dim);
    let nan = |rows: usize, width: usize| vec![E::from_f32(f32::NAN); rows * width];
    let mut caches = [nan(4 * POSITIONS, kv_width), nan(4 * POSITIONS, kv_width)];
    for i in 0..3 {
        for (cache, of) in caches.iter_mut().zip(&alone[i][1..]) {
            let past = (lengths[i] - 1) * kv_width;
            cache[slots[i] * POSITIONS * kv_width..][..past].copy_from_slice(&of[..past]);
        }
    }
    let last = |i: usize| (lengths[i] - 1) * heads.qkv_width()..lengths[i] * heads.qkv_width();
    let qkv: Vec<E> = (0..3).flat_map(|i| cases[i].qkv[last(i)].to_vec()).collect();
    let sequences = [0, 1, 2].map(|i| CachedSequence { slot: slots[i], past: lengths[i] - 1 });
    let mut out = nan(3, heads.width());
    let [keys, values] = &mut caches;
    cached(&qkv, heads, &sequences, POSITIONS, keys, values, &mut out);
    for i in 0..3 {
        let want = &alone[i][0][(lengths[i] - 1) * heads.width()..];
        assert!(bits(&out[i * heads.width()..][..heads.width()]) == bits(want), "sequence {i}");
        for (cache, of) in caches.iter().zip(&alone[i][1..]) {
            let (own, n) =
                (&cache[slots[i] * POSITIONS * kv_width..][..POSITIONS * kv_width], lengths[i] * kv_width);
            assert!(
                bits(&own[..n]) == bits(&of[..n]) && own[n..].iter().all(|x| x.to_f32().is_nan()),
                "cache {i}"
            );
        }
    }
    assert!(caches.iter().all(|c| c[POSITIONS * kv_width..][..kv_width].iter().all(|x| x.to_f32().is_nan())));
}

#[test]
fn several_sequences_have_the_bits_of_each_alone() {
    for (group, kv_heads, head_dim) in [(1, 1, 16), (2, 2, 32), (3, 3, 64)] {
        in_each_type!(check_several, group, kv_heads, head_dim);
    }
}
