//! RMSNorm, forwards and backwards: bits where the CPU adds in the same order, else within counted roundings.

use super::common::real::{Real, assert_allowed, reals, values};
use super::{RUNGS, bits, common, filled, open, params, read, set_params, widen, write};
use half::{bf16, f16};
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::{RmsNormBackward, StepParams};
use smolten::cuda::{Cuda, Rung};
use smolten::dtype::{DType, Element};
use smolten::error::Error;
use smolten::ops::rmsnorm::{self, ROWS_PER_PARTIAL};

/// Rows: one; fewer than a block; a ragged width; a real one. One row of the plan stays unused.
fn rmsnorm_matches<E: Element>(unit: f32) {
    for (t, c) in [(1, 8), (3, 64), (5, 1016), (130, 576)] {
        let mut plan = Plan::default();
        let x = plan.tensor(Category::Activations, t + 1, c, DType::F32);
        let w = plan.tensor(Category::Weights, 1, c, E::DTYPE);
        let y = plan.tensor(Category::Activations, t + 1, c, E::DTYPE);
        let rstd = plan.tensor(Category::Activations, 1, t + 1, DType::F32);
        let mut cuda = open(&plan, E::DTYPE);
        let x_host: Vec<f32> = common::uniform((t + 1) * c, 1).iter().map(|x| x * 300.0).collect();
        let w_host: Vec<E> = common::uniform(c, 2).into_iter().map(E::from_f32).collect();
        write(&mut cuda, x, &x_host);
        write(&mut cuda, w, &w_host);
        set_params(&mut cuda, &params(u32::try_from(t).unwrap(), bytemuck::Zeroable::zeroed()));
        let (mut want, mut want_rstd) = (vec![E::from_f32(0.0); t * c], vec![0.0; t]);
        rmsnorm::forward(&x_host[..t * c], &w_host, 1e-5, &mut want, &mut want_rstd);
        let want: Vec<f32> = want.into_iter().map(Element::to_f32).collect();
        for rung in RUNGS {
            write(&mut cuda, y, &vec![E::from_f32(7.0); (t + 1) * c]);
            rmsnorm::launch_forward(&cuda, rung, x, w, 1e-5, y, rstd).unwrap();
            let got: Vec<f32> = read::<E>(&cuda, y).into_iter().map(Element::to_f32).collect();
            // c products and sums, a mean, eps, a root, a reciprocal; the root halves all before it. Then two
            // products, and the store, whose rounding may fall the other way: a whole unit in the last place.
            let sum = (c as f32 + 2.0) / 2.0 * common::U_F32 + 2.0 * common::U_F32;
            common::assert_close("rstd", &read::<f32>(&cuda, rstd)[..t], &want_rstd, 2.0 * sum, 0.0);
            common::assert_close(
                "y",
                &got[..t * c],
                &want,
                2.0 * sum + 4.0 * common::U_F32 + 2.0 * unit,
                0.0,
            );
            assert!(got[t * c..].iter().all(|&y| y == 7.0), "a row that is not in use was written");
        }
    }
}

#[test]
fn rmsnorm_forward() {
    rmsnorm_matches::<f32>(common::U_F32);
    rmsnorm_matches::<bf16>(common::U_BF16);
    rmsnorm_matches::<f16>(common::U_F16);
}

/// Rows planned, rows in use, columns: one row; a part of a partial sum; a whole one; more, with a tail; no row; the widest;
/// more partial sums than are added up side by side.
const SHAPES: [[usize; 3]; 8] = [
    [1, 1, 8],
    [4, 3, 64],
    [33, 32, 1016],
    [70, 65, 576],
    [200, 97, 136],
    [3, 0, 16],
    [34, 33, 4096],
    [1130, 1100, 8],
];

/// What only the naive version takes.
const ODD_SHAPES: [[usize; 3]; 2] = [[40, 35, 37], [3, 2, 1]];

struct Backward<E> {
    shape: [usize; 3],
    buffers: RmsNormBackward,
    x: Vec<f32>,
    w: Vec<E>,
    rstd: Vec<f32>,
    dy: Vec<E>,
    dx: Vec<f32>,
    dw: Vec<f32>,
}

/// What came out, and nothing of it from rows that are not in use.
struct Results {
    dx: Vec<f32>,
    partials: Vec<f32>,
    dw: Vec<f32>,
}

impl<E: Element> Backward<E> {
    fn new(plan: &mut Plan, shape: [usize; 3]) -> Self {
        let [rows, t, c] = shape;
        let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
        let buffers = RmsNormBackward {
            x: of(rows, c, DType::F32),
            w: of(1, c, E::DTYPE),
            rstd: of(1, rows, DType::F32),
            dy: of(rows, c, E::DTYPE),
            dx: of(rows, c, DType::F32),
            dx_rounded: (E::DTYPE != DType::F32).then(|| of(rows, c, E::DTYPE)),
            dw: Some(of(1, c, DType::F32)),
            partials: of(rows.div_ceil(ROWS_PER_PARTIAL), c, DType::F32),
        };
        let rstd = values::<f32>(t, 0.5, 3).into_iter().map(|r| r + 1.0).collect();
        let (x, w, dy) = (values(t * c, 2.0, 1), values(c, 1.0, 2), values(t * c, 1.0, 4));
        Self { shape, buffers, x, w, rstd, dy, dx: values(t * c, 1.0, 5), dw: values(c, 1.0, 6) }
    }

    fn on_the_gpu(&self, cuda: &mut Cuda, rung: Rung, accumulate: u32) -> Results {
        let ([_, t, c], b) = (self.shape, &self.buffers);
        let nan = E::from_f32(f32::NAN);
        write(cuda, b.x, &filled(b.x, &self.x, f32::NAN));
        write(cuda, b.rstd, &filled(b.rstd, &self.rstd, f32::NAN));
        write(cuda, b.dy, &filled(b.dy, &self.dy, nan));
        write(cuda, b.w, &self.w);
        write(cuda, b.dx, &filled(b.dx, &self.dx, 7.0));
        write(cuda, b.partials, &vec![7.0_f32; b.partials.len()]);
        let old = if accumulate == 1 { self.dw.clone() } else { vec![f32::NAN; c] };
        write(cuda, b.dw.unwrap(), &old);
        if let Some(rounded) = b.dx_rounded {
            write(cuda, rounded, &vec![E::from_f32(7.0); rounded.len()]);
        }
        let step = params(u32::try_from(t).unwrap(), bytemuck::Zeroable::zeroed());
        set_params(cuda, &StepParams { accumulate, ..step });
        rmsnorm::launch_backward(cuda, rung, b).unwrap();

        let used = |mut all: Vec<f32>, n: usize| {
            assert!(all[n..].iter().all(|&x| x == 7.0), "a row that is not in use was written");
            all.truncate(n);
            all
        };
        let dx = used(read(cuda, b.dx), t * c);
        if let Some(rounded) = b.dx_rounded {
            let want: Vec<f32> = dx.iter().map(|&d| E::from_f32(d).to_f32()).collect();
            assert_eq!(bits(&used(widen(&read::<E>(cuda, rounded)), t * c)), bits(&want), "rounded dx");
        }
        let partials = used(read(cuda, b.partials), t.div_ceil(ROWS_PER_PARTIAL) * c);
        Results { dx, partials, dw: read(cuda, b.dw.unwrap()) }
    }

    /// The formula, with the bound of any order of its sum.
    fn dx(&self) -> Vec<Real> {
        let [_, t, c] = self.shape;
        let w = reals(&self.w);
        let row = |i: usize| {
            let (x, dy) = (reals(&self.x[i * c..][..c]), reals(&self.dy[i * c..][..c]));
            let (dx, r) = (reals(&self.dx[i * c..][..c]), Real::of(self.rstd[i]));
            let dot = Real::sum((0..c).map(|k| w[k] * dy[k] * x[k]));
            let along = dot * r * r / Real::exact(c as f64);
            (0..c).map(|k| dx[k] + r * (w[k] * dy[k] - x[k] * along)).collect::<Vec<_>>()
        };
        (0..t).flat_map(row).collect()
    }

    fn check(&self, cuda: &mut Cuda, rung: Rung) {
        let [_, t, c] = self.shape;
        for accumulate in [0, 1] {
            let name = |what| format!("{what} of {:?}, {rung:?}, accumulate {accumulate}", self.shape);
            let got = self.on_the_gpu(cuda, rung, accumulate);
            let mut want = Results {
                dx: self.dx.clone(),
                partials: vec![f32::NAN; got.partials.len()],
                dw: self.dw.clone(),
            };
            let (x, dy, add) = (&self.x, &self.dy, accumulate == 1);
            rmsnorm::backward_weight(x, &self.rstd, dy, &mut want.dw, &mut want.partials, add);
            assert_eq!(bits(&got.partials), bits(&want.partials), "{}", name("partials"));
            if rung == Rung::Naive {
                assert_eq!(bits(&got.dw), bits(&want.dw), "{}", name("dw"));
            }
            let old = |k: usize| add.then(|| Real::of(self.dw[k]));
            let column = |k: usize| want.partials.iter().skip(k).step_by(c).map(|&p| Real::of(p));
            let sums: Vec<Real> = (0..c).map(|k| Real::sum(column(k).chain(old(k)))).collect();
            assert_allowed(&name("dw"), &got.dw, &sums);
            if t > 0 {
                assert_allowed(&name("dx"), &got.dx, &self.dx());
            }
        }
    }
}

fn backward_matches<E: Element>() {
    for shape in SHAPES.into_iter().chain(ODD_SHAPES) {
        let mut plan = Plan::default();
        let case = Backward::<E>::new(&mut plan, shape);
        let mut cuda = open(&plan, E::DTYPE);
        case.check(&mut cuda, Rung::Naive);
        if !ODD_SHAPES.contains(&shape) {
            case.check(&mut cuda, Rung::Production);
        }
    }
}

#[test]
fn rmsnorm_backward() {
    in_each_type!(backward_matches);
}

#[test]
fn what_the_backward_kernel_does_not_take_is_refused() {
    let refused = |shape: [usize; 3], change: fn(&mut RmsNormBackward)| {
        let mut plan = Plan::default();
        let mut case = Backward::<f16>::new(&mut plan, shape);
        let cuda = open(&plan, DType::F16);
        change(&mut case.buffers);
        match rmsnorm::launch_backward(&cuda, Rung::Production, &case.buffers) {
            Err(Error::Unsupported { dim, .. }) => dim,
            Err(Error::Shape { arg, .. }) => arg,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused([2, 1, 12], |_| ()), "C");
    assert_eq!(refused([2, 1, 4104], |_| ()), "C");
    assert_eq!(refused([34, 1, 8], |b| b.partials = b.partials.head(1)), "partials");
    assert_eq!(refused([34, 1, 8], |b| b.dx_rounded = Some(b.dx)), "dx_rounded");
    assert_eq!(refused([2, 1, 8], |b| b.dy = Tensor { offset: b.dy.offset + 8, ..b.dy }), "dy");
}
