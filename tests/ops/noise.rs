//! Random numbers by place, and an adapter's columns, through the CPU engine: against plain loops, and in bits for any
//! number of threads.

use crate::adapter::kept;
use crate::arena::arena;
use crate::common::real::{Real, assert_allowed, values};
use smolten::backend::{Backend, Dropout, Places};
use smolten::dtype::{DType, Element};
use smolten::ops::noise::{number, row_key};

/// Room for T rows, of which N are in use.
const T: usize = 40;
const N: usize = 37;
const KEY: [u32; 2] = [0xdead_beef, 7];

fn bits<E: Element>(x: &[E]) -> Vec<u32> {
    x.iter().map(|x| x.to_f32().to_bits()).collect()
}

fn in_pool<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

fn dropout_in<E: Element>(rate: f64) {
    let cols = 70;
    let (mut a, (x, y)) = arena::<E, _>(|l| (l.narrow(T, cols), l.narrow(T, cols)));
    let vx = values::<E>(N * cols, 1.0, 1);
    a.put(x, &vx);
    a.params.noise_key = KEY;
    a.tokens(N);
    let want: Vec<E> = (0..N * cols)
        .map(|i| E::from_f32(vx[i].to_f32() * kept(rate, 12, KEY, i / cols, i % cols)))
        .collect();
    for threads in [1, 2, 5] {
        a.cpu.zero(y).unwrap();
        in_pool(threads, || a.cpu.dropout(x, Dropout::new(rate, 12), y)).unwrap();
        assert_eq!(bits(&a.get::<E>(y)[..N * cols]), bits(&want), "{threads} threads");
    }
    assert!(a.untouched_behind(y, N));
}

#[test]
fn dropout_is_its_mask() {
    for rate in [0.0, 0.05, 0.5, 0.9] {
        in_each_type!(dropout_in, rate);
    }
}

#[test]
fn dropout_refuses_other_shapes_and_types() {
    let (mut a, (x, y)) = arena::<f32, _>(|l| (l.narrow(T, 6), l.narrow(T, 6)));
    a.tokens(N);
    let dropout = Dropout::new(0.5, 0);
    let other = |t: smolten::arena::Tensor| smolten::arena::Tensor { dtype: DType::BF16, ..t };
    assert!(a.cpu.dropout(smolten::arena::Tensor { cols: 5, ..x }, dropout, y).is_err());
    assert!(a.cpu.dropout(x, dropout, other(y)).is_err());
    assert!(a.cpu.dropout(x, dropout, y).is_ok());
}

#[test]
#[expect(clippy::cast_possible_truncation, reason = "small numbers")]
fn embedding_noise_is_its_formula() {
    let (cols, alpha) = (48, 5.0f32);
    let (mut a, (batch, x)) = arena::<f32, _>(|l| (l.batch(), l.wide(T, cols)));
    let before = values::<f32>(N * cols, 1.0, 1);
    let bounds: Vec<u32> = vec![0, 4, 5, 21, N as u32];
    a.put(batch.cu_seqlens, &bounds);
    a.params.noise_key = KEY;
    a.params.sequences = 4;
    a.tokens(N);
    let want: Vec<Real> = (0..N * cols)
        .map(|i| {
            let (row, column) = ((i / cols) as u32, (i % cols) as u32);
            let sequence = bounds.windows(2).find(|pair| (pair[0]..pair[1]).contains(&row)).unwrap();
            let length = f64::from(sequence[1] - sequence[0]);
            let u = f64::from(number(row_key(KEY, u32::MAX, row), column) >> 8) / f64::from(1 << 23) - 1.0;
            let root = Real::rounded_once((length * cols as f64).sqrt());
            Real::of(before[i]) + Real::exact(u) * (Real::of(alpha) / root)
        })
        .collect();
    let mut first = None;
    for threads in [1, 2, 5] {
        a.put(x, &before);
        in_pool(threads, || a.cpu.embedding_noise(&batch, alpha, x)).unwrap();
        let got = a.get::<f32>(x)[..N * cols].to_vec();
        assert_allowed("x", &got, &want);
        assert_eq!(bits(&got), *first.get_or_insert_with(|| bits(&got)), "{threads} threads");
    }
    assert!(a.untouched_behind(x, N));
}

fn places_in<E: Element>() {
    let (out, r, all, column, factor) = (33, 5, 14, 8, 0.3f32);
    let (mut a, (narrow, wide, gradient, sums)) =
        arena::<E, _>(|l| (l.wide(out, r), l.narrow(out, all), l.wide(out, all), l.wide(out, r)));
    let (vb, before) = (values::<f32>(out * r, 1.0, 1), values::<E>(out * all, 1.0, 2));
    let vg = values::<f32>(out * all, 1.0, 3);
    a.put(narrow, &vb);
    a.put(gradient, &vg);
    let mut want = before.clone();
    let mut want_sums = vec![0.0; out * r];
    for (row, i) in (0..out).flat_map(|row| (0..r).map(move |i| (row, i))) {
        want[row * all + column + i] = E::from_f32(factor * vb[row * r + i]);
        want_sums[row * r + i] = factor * vg[row * all + column + i];
    }
    for threads in [1, 2, 5] {
        a.put(wide, &before);
        a.put(sums, &vec![f32::NAN; out * r]);
        let at = Places { narrow, wide, column, factor };
        in_pool(threads, || a.cpu.spread(at)).unwrap();
        in_pool(threads, || a.cpu.gather(Places { narrow: sums, wide: gradient, ..at })).unwrap();
        assert_eq!(bits(&a.get::<E>(wide)), bits(&want), "{threads} threads");
        assert_eq!(bits(&a.get::<f32>(sums)), bits(&want_sums), "{threads} threads");
    }
    for at in [
        Places { narrow, wide, column: all - r + 1, factor },
        Places { narrow: narrow.head(out - 1), wide, column, factor },
    ] {
        assert!(a.cpu.spread(at).is_err() && a.cpu.gather(Places { wide: gradient, ..at }).is_err());
    }
}

#[test]
fn columns_are_spread_and_gathered() {
    in_each_type!(places_in);
}
