//! Rows that are cleared or moved: bytes.

use super::{RUNGS, filled, open, params, read, set_params, write};
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::StepParams;
use smolten::cuda::{Cuda, Rung};
use smolten::dtype::DType;
use smolten::error::Error;
use smolten::ops::rows;

fn set(cuda: &mut Cuda, tokens: usize, supervised: usize) {
    let step = params(u32::try_from(tokens).unwrap(), bytemuck::Zeroable::zeroed());
    set_params(cuda, &StepParams { supervised: u32::try_from(supervised).unwrap(), ..step });
}

/// Widths in bytes: the second only for the naive version.
const WIDTHS: [usize; 4] = [16, 7, 240, 1040];

fn rungs(width: usize) -> impl Iterator<Item = Rung> {
    RUNGS.into_iter().filter(move |&rung| rung == Rung::Naive || width.is_multiple_of(16))
}

#[test]
fn zero_clears_the_rows_in_use() {
    for width in WIDTHS {
        let mut plan = Plan::default();
        let t = plan.tensor(Category::Activations, 9, width, DType::U8);
        let mut cuda = open(&plan, DType::F32);
        for (rung, used) in rungs(width).flat_map(|rung| [0, 1, 6, 9].map(|used| (rung, used))) {
            set(&mut cuda, used, 0);
            write(&mut cuda, t, &vec![7_u8; t.len()]);
            rows::zero(&cuda, rung, t).unwrap();
            assert_eq!(
                read::<u8>(&cuda, t),
                filled(t, &vec![0; used * width], 7),
                "{width}, {used}, {rung:?}"
            );
        }
    }
}

/// Chunks of 3 of the supervised rows 1, 2, 4, 7, 8: the first two hold some, the third none.
#[test]
fn gather_and_scatter_move_the_chunks_rows() {
    let list: [u32; 5] = [1, 2, 4, 7, 8];
    for width in WIDTHS {
        let mut plan = Plan::default();
        let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
        let (all, chunk, rows) = (of(10, width, DType::U8), of(3, width, DType::U8), of(1, 10, DType::U32));
        let mut cuda = open(&plan, DType::F32);
        write(&mut cuda, rows, &filled(rows, &list, u32::MAX));
        set(&mut cuda, 10, list.len());
        let bytes: Vec<u8> = (0..u32::MAX).map(|i| (i * 37 % 251).to_le_bytes()[0]).take(all.len()).collect();
        for (rung, first) in rungs(width).flat_map(|rung| [0, 3, 6].map(|first| (rung, first))) {
            let name = format!("{width}, {first}, {rung:?}");
            let used: Vec<usize> = list.iter().skip(first).take(3).map(|&r| r as usize).collect();
            let row = |r: usize| &bytes[r * width..][..width];

            write(&mut cuda, all, &bytes);
            write(&mut cuda, chunk, &vec![252_u8; chunk.len()]);
            rows::gather(&cuda, rung, rows, first, all, chunk).unwrap();
            let want: Vec<u8> = used.iter().flat_map(|&r| row(r)).copied().collect();
            assert_eq!(read::<u8>(&cuda, chunk), filled(chunk, &want, 252), "gather {name}");

            write(&mut cuda, all, &vec![252_u8; all.len()]);
            write(&mut cuda, chunk, &filled(chunk, &want, 253));
            rows::scatter(&cuda, rung, rows, first, chunk, all).unwrap();
            let mut want = vec![252; all.len()];
            used.iter().for_each(|&r| want[r * width..][..width].copy_from_slice(row(r)));
            assert_eq!(read::<u8>(&cuda, all), want, "scatter {name}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut plan = Plan::default();
    let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
    let (all, chunk, list) = (of(9, 12, DType::F16), of(3, 12, DType::F16), of(1, 9, DType::U32));
    let wide = of(9, 16, DType::F16);
    let cuda = open(&plan, DType::F16);
    let refused = |result: smolten::error::Result<()>| match result {
        Err(Error::Unsupported { dim, .. }) => dim,
        Err(Error::Shape { arg, .. }) => arg,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(rows::zero(&cuda, Rung::Production, all)), "bytes of a row");
    let shifted = Tensor { offset: wide.offset + 2, rows: 8, ..wide };
    assert_eq!(refused(rows::zero(&cuda, Rung::Production, shifted)), "t");
    assert_eq!(refused(rows::gather(&cuda, Rung::Naive, list, 0, wide, chunk)), "to");
    assert_eq!(refused(rows::gather(&cuda, Rung::Naive, all.reshape(1, 108), 0, all, chunk)), "rows");
}
