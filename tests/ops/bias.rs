use crate::common::real::{Real, assert_allowed, values};
use half::bf16;
use smolten::dtype::Element;
use smolten::ops::bias::gradient;
use smolten::ops::rmsnorm::ROWS_PER_PARTIAL;

/// Tokens and columns: one row, a part of a partial sum, a whole one, several with a tail.
const SHAPES: [(usize, usize); 4] = [(1, 3), (5, 8), (32, 7), (101, 40)];

fn gradient_in<E: Element>() {
    for (t, n) in SHAPES {
        let (dy, before) = (values::<E>(t * n, 1.0, 1), values::<f32>(n, 1.0, 2));
        for add in [false, true] {
            let old = |c: usize| add.then(|| Real::of(before[c]));
            let column = |c: usize| (0..t).map(|t| Real::of(dy[t * n + c])).chain(old(c)).collect::<Vec<_>>();
            let want: Vec<Real> = (0..n).map(|c| Real::sum(column(c))).collect();
            let mut db = if add { before.clone() } else { vec![f32::NAN; n] };
            let mut partials = vec![f32::NAN; (t.div_ceil(ROWS_PER_PARTIAL) + 1) * n];
            gradient(&dy, &mut db, &mut partials, add);
            assert_allowed("db", &db, &want);
            assert!(partials[t.div_ceil(ROWS_PER_PARTIAL) * n..].iter().all(|p| p.is_nan()));
        }
    }
}

#[test]
fn gradient_is_the_sum_of_each_column() {
    in_each_type!(gradient_in);
}

#[test]
fn no_tokens_leave_what_was_there_or_zero() {
    let mut db = [f32::NAN; 3];
    gradient::<bf16>(&[], &mut db, &mut [], false);
    assert_eq!(db, [0.0; 3]);
    db = [1.0, 2.0, 3.0];
    gradient::<bf16>(&[], &mut db, &mut [], true);
    assert_eq!(db, [1.0, 2.0, 3.0]);
}
