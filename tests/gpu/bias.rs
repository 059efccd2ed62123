//! The gradient of a bias: partial sums in the CPU's bits, their sum within counted roundings of the true one.

use super::common::real::{Real, assert_allowed, reals, values};
use super::{RUNGS, bits, filled, open, params, read, set_params, write};
use half::f16;
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::StepParams;
use smolten::cuda::{Cuda, Rung};
use smolten::dtype::{DType, Element};
use smolten::error::Error;
use smolten::ops::bias;
use smolten::ops::rmsnorm::ROWS_PER_PARTIAL;

/// Rows planned, rows in use, columns: one row; a part of a partial sum; a whole one; several with a tail; no row; more
/// columns than a block takes; more partial sums than are added up side by side.
const SHAPES: [[usize; 3]; 7] =
    [[1, 1, 8], [4, 3, 64], [33, 32, 1016], [200, 97, 136], [70, 0, 16], [34, 33, 2056], [1130, 1100, 8]];

/// What only the naive version takes.
const ODD_SHAPES: [[usize; 3]; 2] = [[5, 4, 7], [40, 39, 131]];

struct Case<E> {
    shape: [usize; 3],
    dy: Vec<E>,
    db: Vec<f32>,
    buffers: [Tensor; 3],
}

impl<E: Element> Case<E> {
    fn new(plan: &mut Plan, shape: [usize; 3]) -> Self {
        let [rows, t, n] = shape;
        let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
        let partials = of(rows.div_ceil(ROWS_PER_PARTIAL), n, DType::F32);
        let buffers = [of(rows, n, E::DTYPE), of(1, n, DType::F32), partials];
        Self { shape, dy: values(t * n, 1.0, 1), db: values(n, 1.0, 2), buffers }
    }

    /// Partial sums and their sum. Rows that are not in use hold NaN, and so do partial sums before.
    fn on_the_gpu(&self, cuda: &mut Cuda, rung: Rung, accumulate: u32) -> [Vec<f32>; 2] {
        let ([_, t, n], [dy, db, partials]) = (self.shape, self.buffers);
        write(cuda, dy, &filled(dy, &self.dy, E::from_f32(f32::NAN)));
        write(cuda, partials, &vec![f32::NAN; partials.len()]);
        write(cuda, db, &if accumulate == 1 { self.db.clone() } else { vec![f32::NAN; n] });
        let step = params(u32::try_from(t).unwrap(), bytemuck::Zeroable::zeroed());
        set_params(cuda, &StepParams { accumulate, ..step });
        bias::launch(cuda, rung, dy, db, partials).unwrap();
        let mut written = read::<f32>(cuda, partials);
        let unused = written.split_off(t.div_ceil(ROWS_PER_PARTIAL) * n);
        assert!(unused.iter().all(|p| p.is_nan()), "partial sums of no rows were written");
        [written, read(cuda, db)]
    }

    fn check(&self, cuda: &mut Cuda, rung: Rung) {
        let [_, t, n] = self.shape;
        let wide = reals(&self.dy);
        for accumulate in [0, 1] {
            let name = |what| format!("{what} of {:?}, {rung:?}, accumulate {accumulate}", self.shape);
            let [partials, db] = self.on_the_gpu(cuda, rung, accumulate);
            let (mut want, mut want_partials) = (self.db.clone(), vec![f32::NAN; partials.len()]);
            bias::gradient(&self.dy, &mut want, &mut want_partials, accumulate == 1);
            assert_eq!(bits(&partials), bits(&want_partials), "{}", name("partials"));
            if rung == Rung::Naive {
                assert_eq!(bits(&db), bits(&want), "{}", name("db"));
            }
            let old = |c: usize| (accumulate == 1).then(|| Real::of(self.db[c]));
            let column = |c: usize| (0..t).map(|t| wide[t * n + c]).chain(old(c)).collect::<Vec<_>>();
            let sums: Vec<Real> = (0..n).map(|c| Real::sum(column(c))).collect();
            assert_allowed(&name("db"), &db, &sums);
        }
    }
}

fn gradient_matches<E: Element>() {
    for shape in SHAPES.into_iter().chain(ODD_SHAPES) {
        let mut plan = Plan::default();
        let case = Case::<E>::new(&mut plan, shape);
        let mut cuda = open(&plan, E::DTYPE);
        let odd = ODD_SHAPES.contains(&shape);
        RUNGS.into_iter().take(if odd { 1 } else { 2 }).for_each(|rung| case.check(&mut cuda, rung));
    }
}

#[test]
fn bias_gradient() {
    in_each_type!(gradient_matches);
}

#[test]
fn what_the_kernel_does_not_take_is_refused() {
    let refused = |shape: [usize; 3], change: fn(&mut [Tensor; 3])| {
        let mut plan = Plan::default();
        let mut case = Case::<f16>::new(&mut plan, shape);
        let cuda = open(&plan, DType::F16);
        change(&mut case.buffers);
        let [dy, db, partials] = case.buffers;
        match bias::launch(&cuda, Rung::Production, dy, db, partials) {
            Err(Error::Unsupported { dim, .. }) => dim,
            Err(Error::Shape { arg, .. }) => arg,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused([2, 1, 12], |_| ()), "N");
    assert_eq!(refused([34, 1, 8], |b| b[2] = b[2].head(1)), "partials");
    assert_eq!(refused([34, 1, 8], |b| b[1].cols = 7), "db");
    assert_eq!(refused([34, 1, 8], |b| b[0].dtype = DType::BF16), "dy");
    assert_eq!(refused([34, 1, 8], |b| b[0].offset += 8), "dy");
}
