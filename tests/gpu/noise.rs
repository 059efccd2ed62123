//! Dropout, noise on the embedding, and an adapter's B in its places: the bits of the CPU.

use super::common::real::values;
use super::{RUNGS, bits, filled, open, params, read, set_params, widen, write};
use half::f16;
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::{Dropout, Places, StepParams};
use smolten::cuda::{Cuda, Rung};
use smolten::dtype::{DType, Element};
use smolten::error::Error;
use smolten::ops::{noise, places};

const KEY: [u32; 2] = [7, 0xffff_fff0];

/// Rows planned, rows in use, columns: one chunk; less than a warp's; more; no row.
const SHAPES: [[usize; 3]; 5] = [[1, 1, 8], [6, 5, 64], [12, 11, 576], [3, 3, 1032], [4, 0, 16]];

/// What only the naive version takes.
const ODD_SHAPES: [[usize; 3]; 2] = [[4, 3, 7], [34, 33, 131]];

fn set(cuda: &mut Cuda, tokens: usize, sequences: usize) {
    let number = |n: usize| u32::try_from(n).unwrap();
    let step = params(number(tokens), bytemuck::Zeroable::zeroed());
    set_params(cuda, &StepParams { sequences: number(sequences), noise_key: KEY, ..step });
}

fn rungs(columns: usize) -> impl Iterator<Item = Rung> {
    RUNGS.into_iter().filter(move |&rung| rung == Rung::Naive || columns.is_multiple_of(8))
}

fn dropout_matches<E: Element>() {
    for [rows, t, n] in SHAPES.into_iter().chain(ODD_SHAPES) {
        let mut plan = Plan::default();
        let mut of = || plan.tensor(Category::Activations, rows, n, E::DTYPE);
        let (x, y) = (of(), of());
        let mut cuda = open(&plan, E::DTYPE);
        set(&mut cuda, t, 1);
        let host = values::<E>(t * n, 3.0, 1);
        write(&mut cuda, x, &filled(x, &host, E::from_f32(f32::NAN)));
        for (rate, site) in [(0.0, 3), (0.05, 0), (0.5, 1), (0.9, 4_000_000_000)] {
            let dropout = Dropout::new(rate, site);
            let mut want = vec![E::from_f32(0.0); t * n];
            noise::dropout(&host, dropout, KEY, &mut want, n);
            for rung in rungs(n) {
                write(&mut cuda, y, &vec![E::from_f32(7.0); y.len()]);
                noise::launch_dropout(&cuda, rung, x, dropout, y).unwrap();
                let want = filled(y, &want, E::from_f32(7.0));
                assert_eq!(
                    bits(&widen(&read::<E>(&cuda, y))),
                    bits(&widen(&want)),
                    "{t} {n} {rate} {rung:?}"
                );
            }
        }
    }
}

#[test]
fn dropout_has_the_cpus_bits() {
    in_each_type!(dropout_matches);
}

#[test]
fn embedding_noise_has_the_cpus_bits() {
    for [rows, t, c] in SHAPES.into_iter().chain(ODD_SHAPES) {
        for bounds in [vec![0, t], vec![0, t / 2, t / 2, t], vec![0, 1.min(t), t / 3 + t.min(1), t]] {
            let mut plan = Plan::default();
            let x = plan.tensor(Category::Activations, rows, c, DType::F32);
            let list = plan.tensor(Category::Batch, 1, rows.max(bounds.len()) + 1, DType::U32);
            let mut cuda = open(&plan, DType::F32);
            set(&mut cuda, t, bounds.len() - 1);
            let bounds: Vec<u32> = bounds.into_iter().map(|b| u32::try_from(b).unwrap()).collect();
            write(&mut cuda, list, &filled(list, &bounds, 0));
            let before = values::<f32>(t * c, 1.0, 2);
            let mut want = before.clone();
            noise::embedding(5.0, KEY, &bounds, &mut want, c);
            assert!(want.is_empty() || want != before);
            for rung in rungs(c) {
                write(&mut cuda, x, &filled(x, &before, 7.0));
                noise::launch_embedding(&cuda, rung, list, 5.0, x).unwrap();
                let got = read::<f32>(&cuda, x);
                assert_eq!(bits(&got), bits(&filled(x, &want, 7.0)), "{t} {c} {bounds:?} {rung:?}");
            }
        }
    }
}

/// Rows, columns of the narrow and of the wide matrix, the first of its places.
const PLACES: [[usize; 4]; 4] = [[1, 1, 1, 0], [10, 8, 24, 8], [130, 16, 48, 32], [33, 5, 16, 10]];

fn places_match<E: Element>() {
    for [rows, r, all, column] in PLACES {
        let mut plan = Plan::default();
        let mut of = |cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
        let (narrow, wide, wide_f32) = (of(r, DType::F32), of(all, E::DTYPE), of(all, DType::F32));
        let mut cuda = open(&plan, E::DTYPE);
        let at = Places { narrow, wide, column, factor: 0.3 };
        let (from, before) = (values::<f32>(rows * r, 2.0, 1), values::<E>(rows * all, 1.0, 2));
        write(&mut cuda, narrow, &from);
        write(&mut cuda, wide, &before);
        places::launch_spread(&cuda, at).unwrap();
        let mut want = before.clone();
        places::spread(&from, &mut want, [r, all], column, 0.3);
        assert_eq!(bits(&widen(&read::<E>(&cuda, wide))), bits(&widen(&want)), "spread {rows} {r} {all}");

        let from = values::<f32>(rows * all, 2.0, 3);
        write(&mut cuda, wide_f32, &from);
        write(&mut cuda, narrow, &vec![f32::NAN; narrow.len()]);
        places::launch_gather(&cuda, Places { wide: wide_f32, ..at }).unwrap();
        let mut want = vec![0.0; rows * r];
        places::gather(&from, &mut want, [r, all], column, 0.3);
        assert_eq!(bits(&read::<f32>(&cuda, narrow)), bits(&want), "gather {rows} {r} {all}");
    }
}

#[test]
fn spread_and_gather_have_the_cpus_bits() {
    in_each_type!(places_match);
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut plan = Plan::default();
    let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
    let (x, y, narrow) = (of(4, 12, DType::F16), of(4, 12, DType::F16), of(4, 8, DType::F32));
    let (wide, list) = (of(4, 12, DType::F32), of(1, 5, DType::U32));
    let cuda = open(&plan, DType::F16);
    let refused = |result: smolten::error::Result<()>| match result {
        Err(Error::Unsupported { dim, .. }) => dim,
        Err(Error::Shape { arg, .. }) => arg,
        other => panic!("{other:?}"),
    };
    let dropout = |rung, x, y| refused(noise::launch_dropout(&cuda, rung, x, Dropout::new(0.5, 1), y));
    assert_eq!(dropout(Rung::Production, x, y), "N");
    assert_eq!(dropout(Rung::Naive, x, y.head(3)), "y");
    assert_eq!(dropout(Rung::Naive, wide, y), "x");
    assert_eq!(dropout(Rung::Naive, Tensor { offset: x.offset + 2, rows: 3, ..x }, y.head(3)), "x");
    let noise = |rung, list, x| refused(noise::launch_embedding(&cuda, rung, list, 5.0, x));
    assert_eq!(noise(Rung::Production, list, wide), "C");
    assert_eq!(noise(Rung::Naive, list, x), "x");
    assert_eq!(noise(Rung::Naive, list.reshape(5, 1), wide), "cu_seqlens");
    let at = Places { narrow, wide: y, column: 4, factor: 2.0 };
    assert_eq!(refused(places::launch_spread(&cuda, Places { column: 5, ..at })), "wide");
    assert_eq!(refused(places::launch_spread(&cuda, Places { narrow: narrow.head(3), ..at })), "narrow");
    assert_eq!(refused(places::launch_spread(&cuda, Places { wide, ..at })), "wide");
    assert_eq!(refused(places::launch_gather(&cuda, at)), "wide");
    assert_eq!(bits(&widen(&read::<f16>(&cuda, y))), bits(&vec![0.0; y.len()]), "something was launched");
}
