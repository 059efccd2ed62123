//! Packing, order and windows: what every epoch must hold, for any examples and sizes.

use proptest::prelude::*;
use smolten::batch::{
    Arrays, BatchOptions, Batches, Example, Examples, MicroBatch, NO_TARGET, Order, Window,
    best_fit_decreasing, permutation, split,
};

/// Examples of these lengths, each token unique: example index · 1000 + position.
fn examples(lengths: &[usize]) -> Vec<Example> {
    let example = |(i, &n): (usize, &usize)| Example {
        ids: (0..n).map(|t| u32::try_from(i * 1000 + t).unwrap()).collect(),
        supervised: (0..n).map(|t| t > 0 && (t + i) % 3 != 0 || t == n - 1).collect(),
    };
    lengths.iter().enumerate().map(example).collect()
}

/// All of them chosen.
fn batches(lengths: &[usize], options: BatchOptions) -> Batches {
    Batches::new(Examples::from_examples(examples(lengths)), (0..lengths.len()).collect(), options)
}

fn options(batch_size: usize, grad_accum: usize) -> BatchOptions {
    BatchOptions { batch_size, grad_accum, packing: None, order: Order::Shuffled(7) }
}

/// Which examples a window holds, in order, read off the first token of each sequence.
fn held(window: &Window) -> Vec<usize> {
    let of_batch = |batch: &MicroBatch| {
        let starts = &batch.cu_seqlens[..batch.cu_seqlens.len() - 1];
        starts.iter().map(|&at| batch.ids[at as usize] as usize / 1000).collect::<Vec<_>>()
    };
    window.micro_batches.iter().flat_map(of_batch).collect()
}

/// Length of each sequence, and position, id and target of each token.
fn lists(batches: &[MicroBatch]) -> (Vec<u32>, Vec<[u32; 3]>) {
    let lengths = |b: &MicroBatch| b.cu_seqlens.windows(2).map(|w| w[1] - w[0]).collect::<Vec<_>>();
    let token = |b: &MicroBatch| {
        (0..b.tokens()).map(|t| [b.positions[t], b.ids[t], b.targets[t]]).collect::<Vec<_>>()
    };
    (batches.iter().flat_map(lengths).collect(), batches.iter().flat_map(token).collect())
}

fn epoch(batches: &Batches, epoch: usize) -> Vec<Window> {
    let steps = batches.steps_per_epoch();
    batches.windows(epoch * steps).take(steps).collect()
}

/// Fewest rows for a few items, by trying every way.
fn fewest_rows(lengths: &[usize], free: &mut Vec<usize>, capacity: usize) -> usize {
    let Some((&length, rest)) = lengths.split_first() else { return free.len() };
    let mut best = usize::MAX;
    for row in 0..free.len() {
        if free[row] >= length {
            free[row] -= length;
            best = best.min(fewest_rows(rest, free, capacity));
            free[row] += length;
        }
    }
    free.push(capacity - length);
    best = best.min(fewest_rows(rest, free, capacity));
    free.pop();
    best
}

/// Best fit as its definition says, in O(n²): of the rows with room the fullest, of those the oldest.
fn naive_best_fit(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by(|&a, &b| lengths[b].cmp(&lengths[a]).then(a.cmp(&b)));
    let mut rows: Vec<(usize, Vec<usize>)> = Vec::new();
    for item in order {
        let fits = |(_, (used, _)): &(usize, &(usize, Vec<usize>))| used + lengths[item] <= capacity;
        let best = rows.iter().enumerate().filter(fits).max_by_key(|(i, (used, _))| (*used, usize::MAX - i));
        match best.map(|(i, _)| i) {
            Some(i) => {
                rows[i].0 += lengths[item];
                rows[i].1.push(item);
            }
            None => rows.push((lengths[item], vec![item])),
        }
    }
    rows.iter_mut().for_each(|(_, row)| row.sort_unstable());
    rows.into_iter().map(|(_, row)| row).collect()
}

proptest! {
    #[test]
    fn packing_loses_nothing_and_never_overflows(lengths in prop::collection::vec(1usize..=64, 0..200)) {
        let rows = best_fit_decreasing(&lengths, 64);
        let mut all: Vec<usize> = rows.concat();
        all.sort_unstable();
        prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
        let used: Vec<usize> = rows.iter().map(|row| row.iter().map(|&i| lengths[i]).sum()).collect();
        prop_assert!(used.iter().all(|&n| (1..=64).contains(&n)));
        prop_assert!(used.iter().filter(|&&n| n <= 32).count() <= 1, "two rows that fit in one: {:?}", used);
        prop_assert_eq!(rows, naive_best_fit(&lengths, 64));
    }

    #[test]
    fn packing_is_within_its_bound(lengths in prop::collection::vec(1usize..=20, 1..9)) {
        let rows = best_fit_decreasing(&lengths, 20).len();
        let fewest = fewest_rows(&lengths, &mut Vec::new(), 20);
        prop_assert!(9 * rows <= 11 * fewest + 6, "{} rows where {} do", rows, fewest);
    }

    #[test]
    fn every_example_comes_once_an_epoch(
        lengths in prop::collection::vec(2usize..=30, 1..60),
        batch_size in 1usize..5, grad_accum in 1usize..5, seed: u64,
        pack: bool, shuffle: bool, which in 0usize..4,
    ) {
        let options = BatchOptions {
            batch_size, grad_accum,
            packing: pack.then_some(30),
            order: if shuffle { Order::Shuffled(seed) } else { Order::AsGiven },
        };
        let all = examples(&lengths);
        let batches = batches(&lengths, options);
        let windows = epoch(&batches, which);
        let mut seen: Vec<usize> = windows.iter().flat_map(held).collect();
        prop_assert!(windows.iter().all(|w| w.examples == held(w)));
        if !shuffle && !pack {
            prop_assert!(seen.is_sorted());
        }
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());

        // Counts: tokens, supervised tokens, and no micro-batch beyond the announced size.
        let supervised = all.iter().flat_map(|e| &e.supervised).filter(|&&s| s).count();
        prop_assert_eq!(windows.iter().map(Window::tokens).sum::<usize>(), lengths.iter().sum::<usize>());
        prop_assert_eq!(windows.iter().map(Window::supervised).sum::<usize>(), supervised);
        let largest = windows.iter().flat_map(|w| &w.micro_batches).map(|b| b.tokens()).max().unwrap();
        prop_assert!(largest <= batches.max_micro_batch_tokens());
        if !shuffle {
            prop_assert_eq!(largest, batches.max_micro_batch_tokens());
        }

        // Only the last window of an epoch is short, and only its last micro-batch.
        let rows = batches.num_rows();
        prop_assert_eq!(windows.len(), rows.div_ceil(batch_size * grad_accum));
        let sizes: Vec<usize> = windows.iter().map(|w| w.micro_batches.len()).collect();
        prop_assert!(sizes[..sizes.len() - 1].iter().all(|&n| n == grad_accum));
        prop_assert_eq!(sizes.iter().sum::<usize>(), rows.div_ceil(batch_size));

        // Joined, the same sequences in the same order, and no micro-batch that there was room for in the one before.
        for window in &windows {
            let (joined, apart) = (window.joined(), &window.micro_batches);
            prop_assert_eq!(window.room, batches.max_micro_batch_tokens());
            prop_assert!(joined.iter().all(|b| b.tokens() <= window.room));
            for pair in joined.windows(2) {
                let first = apart.iter().find(|b| pair[1].ids.starts_with(&b.ids)).expect("whole micro-batches");
                prop_assert!(pair[0].tokens() + first.tokens() > window.room);
            }
            prop_assert_eq!(lists(&joined), lists(apart));
        }

        // A window is a function of its step alone.
        let later = which * windows.len() + windows.len() - 1;
        prop_assert_eq!(batches.windows(later).next().unwrap(), windows[windows.len() - 1].clone());
        prop_assert_eq!(windows[windows.len() - 1].step, later);
        prop_assert_eq!(windows[windows.len() - 1].epoch, (which + 1) as f64);
        prop_assert!(windows.is_sorted_by(|a, b| a.epoch < b.epoch));
    }

    #[test]
    fn windows_hold_the_same_rows_however_they_are_cut(
        lengths in prop::collection::vec(2usize..=30, 1..60), which in 0usize..3, pack: bool,
    ) {
        let cut = |batch_size, grad_accum| {
            let options = BatchOptions { packing: pack.then_some(40), ..options(batch_size, grad_accum) };
            let batches = batches(&lengths, options);
            let windows = epoch(&batches, which);
            windows.iter().map(|w| (held(w), w.supervised(), w.tokens())).collect::<Vec<_>>()
        };
        prop_assert_eq!(cut(8, 1), cut(2, 4));
        prop_assert_eq!(cut(2, 4), cut(1, 8));
    }

    /// Rows that are not chosen change nothing: not the order, nor how rows are packed.
    #[test]
    fn chosen_examples_are_those_of_a_store_of_their_own(
        lengths in prop::collection::vec(2usize..=30, 2..60), seed: u64, pack: bool,
    ) {
        let options = BatchOptions { packing: pack.then_some(40), ..options(2, 2) };
        let (chosen, _) = split(lengths.len(), 0.4, seed);
        let all = examples(&lengths);
        let own = chosen.iter().map(|&i| all[i].clone());
        let alone = Batches::new(Examples::from_examples(own), (0..chosen.len()).collect(), options);
        let among = Batches::new(Examples::from_examples(all), chosen, options);
        prop_assert_eq!(alone.max_micro_batch_tokens(), among.max_micro_batch_tokens());
        for (a, b) in epoch(&alone, 1).into_iter().zip(epoch(&among, 1)) {
            prop_assert_eq!((a.step, a.epoch, a.micro_batches), (b.step, b.epoch, b.micro_batches));
        }
    }

    #[test]
    fn held_out_rows_are_apart(n in 0usize..300, share in 0.0f64..=0.5, seed: u64) {
        let (train, held) = split(n, share, seed);
        prop_assert!(train.is_sorted() && held.is_sorted());
        let mut all = [train.clone(), held.clone()].concat();
        all.sort_unstable();
        prop_assert_eq!(all, (0..n).collect::<Vec<_>>());
        prop_assert!(held.len() <= n / 2);
        if n >= 2 && share > 0.0 {
            prop_assert!(!held.is_empty());
            prop_assert!((held.len() as f64 - share * n as f64).abs() <= 0.5 || held.len() == 1 || held.len() == n / 2);
        }
        prop_assert_eq!(split(n, share, seed), (train, held));
    }
}

/// Values from an implementation of ChaCha8 and of the shuffle in another language: the order of a run must never
/// change with a library.
#[test]
fn the_order_is_pinned() {
    assert_eq!(permutation(10, 3407, 0), [8, 6, 1, 4, 0, 9, 2, 5, 3, 7]);
    assert_eq!(permutation(10, 3407, 1), [3, 2, 5, 9, 7, 8, 6, 4, 1, 0]);
    assert_eq!(split(10, 0.3, 3407).1, [1, 5, 6]);
}

/// Each of the 24 orders of four comes up as often as the others: 24,000 draws, 1,000 expected each, standard
/// deviation 31; six of them either way.
#[test]
fn the_shuffle_is_uniform() {
    let mut counts = std::collections::HashMap::new();
    for epoch in 0..24_000 {
        *counts.entry(permutation(4, 5, epoch)).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 24);
    assert!(counts.values().all(|n| (814..=1186).contains(n)), "{counts:?}");
}

#[test]
fn nothing_is_held_out_where_nothing_can_be() {
    assert_eq!(split(1, 0.5, 1), (vec![0], vec![]));
    assert_eq!(split(3, 0.0, 1), (vec![0, 1, 2], vec![]));
    assert_eq!(split(3, 0.01, 1).1.len(), 1);
}

/// The reference run: 251 rows, 2 × 4. 32 steps an epoch, the last of 3 rows in micro-batches of 2 and 1.
#[test]
fn a_short_last_window_keeps_its_rows() {
    let batches = batches(&[2; 251], options(2, 4));
    assert_eq!(batches.steps_per_epoch(), 32);
    let windows: Vec<Window> = batches.windows(0).take(64).collect();
    let sizes = |w: &Window| w.micro_batches.iter().map(|b| b.cu_seqlens.len() - 1).collect::<Vec<_>>();
    assert_eq!(sizes(&windows[30]), [2, 2, 2, 2]);
    assert_eq!(sizes(&windows[31]), [2, 1]);
    assert_eq!((windows[0].epoch, windows[31].epoch, windows[63].epoch), (4.0 / 126.0, 1.0, 2.0));
    assert_ne!(held(&windows[0]), held(&windows[32]), "each epoch has its own order");
}

#[test]
fn packed_sequences_stay_apart() {
    let options = BatchOptions { batch_size: 1, grad_accum: 1, packing: Some(6), order: Order::AsGiven };
    let batches = batches(&[4, 3, 2, 3], options);
    assert_eq!((batches.num_rows(), batches.steps_per_epoch(), batches.max_micro_batch_tokens()), (2, 2, 6));
    let rows: Vec<_> = batches.windows(0).take(2).map(|mut w| w.micro_batches.remove(0)).collect();
    assert_eq!(rows[0].ids, [0, 1, 2, 3, 2000, 2001]);
    assert_eq!(rows[0].cu_seqlens, [0, 4, 6]);
    assert_eq!(rows[0].positions, [0, 1, 2, 3, 0, 1]);
    assert_eq!(
        rows[0].targets[3], NO_TARGET,
        "the last token of a sequence does not predict the next one's first"
    );
    assert_eq!(rows[1].cu_seqlens, [0, 3, 6]);
}

#[test]
#[should_panic(expected = "a row holds 6")]
fn an_example_beyond_the_capacity_is_a_bug() {
    best_fit_decreasing(&[3, 7], 6);
}

/// A mapped store is one only where its arrays agree; two examples of two and three tokens here.
#[test]
fn arrays_that_contradict_one_another_are_no_store() {
    let map = |offsets: [u64; 3]| {
        let mut bytes = memmap2::MmapMut::map_anon(96).unwrap();
        bytes[..24].copy_from_slice(bytemuck::cast_slice(&offsets));
        bytes[24..56].copy_from_slice(bytemuck::cast_slice(&[0u64, 7, 1, 9]));
        bytes[56..76].copy_from_slice(bytemuck::cast_slice(&[1u32, 2, 3, 4, 5]));
        bytes[76..81].copy_from_slice(&[0, 1, 0, 1, 1]);
        bytes.make_read_only().unwrap()
    };
    let arrays = Arrays { offsets: 0..24, origins: 24..56, ids: 56..76, supervised: 76..81 };
    let store = Examples::from_map(map([0, 2, 5]), arrays.clone()).unwrap();
    assert_eq!((store.len(), store.tokens(), store.tokens_of(1)), (2, 5, 3));
    assert_eq!(store.get(1), Example { ids: vec![3, 4, 5], supervised: vec![false, true, true] });
    assert_eq!((store.origin(1).file, store.origin(1).number), (1, 9));

    for offsets in [[1, 2, 5], [0, 6, 5], [0, 2, 4], [0, 2, 6], [0, 2, u64::MAX]] {
        assert!(Examples::from_map(map(offsets), arrays.clone()).is_none(), "{offsets:?}");
    }
    for wrong in [
        Arrays { supervised: 76..80, ..arrays.clone() },
        Arrays { supervised: 76..97, ..arrays.clone() },
        Arrays { ids: 57..77, ..arrays.clone() },
        Arrays { ids: 56..75, ..arrays.clone() },
        Arrays { ids: 56..72, ..arrays.clone() },
        Arrays { origins: 24..40, ..arrays.clone() },
        Arrays { offsets: 0..0, ..arrays.clone() },
        Arrays { offsets: 96..usize::MAX, ..arrays },
    ] {
        assert!(Examples::from_map(map([0, 2, 5]), wrong.clone()).is_none(), "{wrong:?}");
    }
}
