//! Products of linear layers: exact where all sums are whole numbers; else within counted roundings.

use super::{bits, common, open, params, read, set_params, widen, write};
use half::{bf16, f16};
use smolten::arena::{Category, Plan, Tensor};
use smolten::cuda::{Cuda, Cut, Device, Rung, Tile};
use smolten::dtype::{DType, Element};
use smolten::error::Error;
use smolten::ops::linear::{self, Operand, Projection, Weight};
use smolten::ops::linear_launch::{self, Rows};
use smolten::ops::tile::Level;

/// Rows planned, rows in use, inputs, outputs: less than a tile in each direction; tails in each; a tile and a row; more
/// stages than the ring has; no row at all.
const SHAPES: [[usize; 4]; 7] = [
    [1, 1, 8, 8],
    [4, 3, 64, 24],
    [131, 130, 72, 136],
    [130, 129, 136, 264],
    [260, 128, 192, 64],
    [34, 33, 576, 192],
    [2, 0, 16, 16],
];

/// The buffers of all four products.
struct Buffers {
    x: Tensor,
    w: Tensor,
    dy: Tensor,
    bias: Tensor,
    residual: Tensor,
    y: Tensor,
    sum: Tensor,
    dx: Tensor,
    dw: Tensor,
}

impl Buffers {
    fn new<E: Element>(plan: &mut Plan, rows: usize, inputs: usize, outputs: usize) -> Self {
        let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
        Self {
            x: of(rows, inputs, E::DTYPE),
            w: of(outputs, inputs, E::DTYPE),
            dy: of(rows, outputs, E::DTYPE),
            bias: of(1, outputs, E::DTYPE),
            residual: of(rows, outputs, DType::F32),
            y: of(rows, outputs, E::DTYPE),
            sum: of(rows, outputs, DType::F32),
            dx: of(rows, inputs, E::DTYPE),
            dw: of(outputs, inputs, DType::F32),
        }
    }
}

/// Inputs, of the rows in use.
struct Host<E> {
    x: Vec<E>,
    w: Vec<E>,
    dy: Vec<E>,
    bias: Vec<E>,
    residual: Vec<f32>,
    dw: Vec<f32>,
}

/// Results, widened.
struct Results {
    y: Vec<f32>,
    sum: Vec<f32>,
    dx: Vec<f32>,
    /// Overwritten, then added to.
    dw: [Vec<f32>; 2],
}

impl<E: Operand> Host<E> {
    fn new([_, t, inputs, outputs]: [usize; 4], value: impl Fn(f32) -> f32) -> Self {
        let of = |n, seed| common::uniform(n, seed).into_iter().map(&value).collect::<Vec<_>>();
        let narrow = |n, seed| of(n, seed).into_iter().map(E::from_f32).collect();
        Self {
            x: narrow(t * inputs, 1),
            w: narrow(outputs * inputs, 2),
            dy: narrow(t * outputs, 3),
            residual: of(t * outputs, 4),
            dw: of(outputs * inputs, 5),
            bias: narrow(outputs, 6),
        }
    }

    /// Without signs: the sums of magnitudes that bounds are made of.
    fn magnitudes(&self) -> Self {
        let narrow = |v: &[E]| v.iter().map(|x| E::from_f32(x.to_f32().abs())).collect();
        let wide = |v: &[f32]| v.iter().map(|x| x.abs()).collect();
        Self {
            x: narrow(&self.x),
            w: narrow(&self.w),
            dy: narrow(&self.dy),
            bias: narrow(&self.bias),
            residual: wide(&self.residual),
            dw: wide(&self.dw),
        }
    }

    fn on_the_cpu(&self, [_, t, inputs, outputs]: [usize; 4]) -> Results {
        let (mut y, mut dx) = (vec![E::from_f32(0.0); t * outputs], vec![E::from_f32(0.0); t * inputs]);
        let mut sum = vec![0.0; t * outputs];
        let mut dw = [vec![0.0; outputs * inputs], self.dw.clone()];
        let (level, bias, residual) = (Level::best(), widen(&self.bias), &self.residual);
        linear::forward(level, &self.x, Weight::Plain(&self.w), None, &mut y, inputs);
        linear::forward_residual(
            level,
            &self.x,
            Weight::Plain(&self.w),
            Some(&bias),
            residual,
            &mut sum,
            inputs,
        );
        linear::input_gradient(level, &self.dy, &self.w, None, &mut dx, inputs);
        linear::weight_gradient(level, &self.dy, &self.x, &mut dw[0], inputs, false);
        linear::weight_gradient(level, &self.dy, &self.x, &mut dw[1], inputs, true);
        Results { y: widen(&y), sum, dx: widen(&dx), dw }
    }

    /// Rows that are not in use hold NaN before, and what is written there would be seen.
    fn on_the_gpu(
        &self,
        cuda: &mut Cuda,
        version: Version,
        b: &Buffers,
        [rows, t, ..]: [usize; 4],
    ) -> Results {
        let (rung, tile) = version;
        let nan = |values: &[E], t: Tensor| {
            let mut all = vec![E::from_f32(f32::NAN); t.len()];
            all[..values.len()].copy_from_slice(values);
            all
        };
        write(cuda, b.x, &nan(&self.x, b.x));
        write(cuda, b.dy, &nan(&self.dy, b.dy));
        write(cuda, b.w, &self.w);
        write(cuda, b.bias, &self.bias);
        write(cuda, b.residual, &self.residual);
        for unwritten in [b.y, b.dx] {
            write(cuda, unwritten, &vec![E::from_f32(7.0); unwritten.len()]);
        }
        write(cuda, b.sum, &vec![7.0_f32; b.sum.len()]);
        let mut step = params(u32::try_from(t).unwrap(), bytemuck::Zeroable::zeroed());
        set_params(cuda, &step);
        cuda.cut = None; // this one has only the largest
        linear_launch::linear(cuda, rung, b.x, b.w, b.y).unwrap();
        cuda.cut = tile.map(unsplit);
        let projection = Projection { w: b.w, bias: Some(b.bias), adapter: None };
        linear_launch::linear_residual(cuda, rung, b.x, projection, b.residual, b.sum).unwrap();
        linear_launch::input_gradient(cuda, rung, Rows::Tokens, b.dy, b.w, b.dx).unwrap();
        let dw = [0, 1].map(|accumulate| {
            step.accumulate = accumulate;
            set_params(cuda, &step);
            let before = if accumulate == 1 { self.dw.clone() } else { vec![f32::NAN; self.dw.len()] };
            write(cuda, b.dw, &before);
            linear_launch::weight_gradient(cuda, rung, Rows::Tokens, b.dy, b.x, b.dw).unwrap();
            read(cuda, b.dw)
        });
        let used = |all: Vec<f32>| {
            let used = all.len() / rows * t;
            assert!(all[used..].iter().all(|&y| y == 7.0), "a row that is not in use was written");
            all[..used].to_vec()
        };
        Results {
            y: used(widen(&read::<E>(cuda, b.y))),
            sum: used(read(cuda, b.sum)),
            dx: used(widen(&read::<E>(cuda, b.dx))),
            dw,
        }
    }
}

fn check<E: Operand>(value: impl Fn(f32) -> f32 + Copy, compare: impl Fn(&str, [usize; 2], [&[f32]; 3])) {
    for shape in SHAPES {
        let [rows, t, inputs, outputs] = shape;
        let mut plan = Plan::default();
        let buffers = Buffers::new::<E>(&mut plan, rows, inputs, outputs);
        let mut cuda = open(&plan, E::DTYPE);
        let host = Host::<E>::new(shape, value);
        let (want, sizes) = (host.on_the_cpu(shape), host.magnitudes().on_the_cpu(shape));
        let mut of_tiles = Vec::new();
        for version in versions(E::DTYPE) {
            let got = host.on_the_gpu(&mut cuda, version, &buffers, shape);
            let name = |what| format!("{what} of {shape:?}, {:?}, {version:?}", E::DTYPE);
            let narrow = usize::from(E::DTYPE != DType::F32);
            compare(&name("y"), [inputs, narrow], [&got.y, &want.y, &sizes.y]);
            compare(&name("sum"), [inputs, 0], [&got.sum, &want.sum, &sizes.sum]);
            compare(&name("dx"), [outputs, narrow], [&got.dx, &want.dx, &sizes.dx]);
            for k in 0..2 {
                compare(&name("dw"), [t, 0], [&got.dw[k], &want.dw[k], &sizes.dw[k]]);
            }
            if version.1.is_some() {
                of_tiles.push([&got.sum, &got.dx, &got.dw[0], &got.dw[1]].map(|values| bits(values)));
            }
        }
        assert!(of_tiles.windows(2).all(|w| w[0] == w[1]), "{shape:?}, {:?}: tiles differ", E::DTYPE);
    }
}

/// A version of a product: its rung, and the tile that the production rung is made to use.
pub type Version = (Rung, Option<Tile>);

/// Sums in one.
pub fn unsplit(tile: Tile) -> Cut {
    Cut { tile, splits: 1 }
}

/// Those that there are for a type of activations on this device.
pub fn versions(dtype: DType) -> impl Iterator<Item = Version> {
    let tiles = if has_tensor_cores(dtype) { &Tile::ALL[..] } else { &[] };
    [(Rung::Naive, None)].into_iter().chain(tiles.iter().map(|&tile| (Rung::Production, Some(tile))))
}

pub fn has_tensor_cores(dtype: DType) -> bool {
    let capability = Device::open(0).unwrap().compute_capability();
    dtype == DType::F16 || (dtype == DType::BF16 && capability >= (8, 0))
}

/// Whole numbers up to 4: every product, every sum and, below 2048 and 256 in 16 bits, most results are exact; the
/// others are rounded once from the exact sum. So no order of summing shows, and every element must be right.
fn whole_numbers<E: Operand>() {
    check::<E>(
        |x| (x * 4.5).trunc(),
        |name, _, [got, want, _]| {
            // Not in bits: a zero may have either sign.
            assert!(got == want, "{name}: {:?} for {want:?}", &got[..got.len().min(16)]);
        },
    );
}

/// A tensor core adds eight products and the sum so far with 24 fraction bits under the largest, cutting each off, and
/// cuts the result to f32 (arXiv:2511.10909): nine losses of 2^-24 and one of 2^-23 of the sum of magnitudes per eight of
/// K. A plain sum loses 2^-24 per term; bias and residual add one each, and the store may round the other way.
fn fractions<E: Operand>(unit: f32) {
    check::<E>(
        |x| x * 1.5,
        |name, [k, narrow], [got, want, sizes]| {
            let cut = (k.div_ceil(8) + 1) as f32 * 11.0 * common::U_F32;
            let plain = (k + 2) as f32 * common::U_F32;
            for i in 0..want.len() {
                // Magnitudes were rounded to 16 bits, too.
                let atol = (cut + plain) * sizes[i] * (1.0 + unit);
                let rtol = 2.0 * unit * narrow as f32 * (1.0 + cut + plain);
                assert!(
                    common::close(got[i], want[i], rtol, atol),
                    "{name} [{i}]: got {}, want {}",
                    got[i],
                    want[i]
                );
            }
        },
    );
}

#[test]
fn products_of_whole_numbers_are_exact() {
    whole_numbers::<f32>();
    whole_numbers::<bf16>();
    whole_numbers::<f16>();
}

#[test]
fn products_of_fractions_are_within_counted_roundings() {
    fractions::<f32>(common::U_F32);
    fractions::<bf16>(common::U_BF16);
    fractions::<f16>(common::U_F16);
}

#[test]
fn what_does_not_fit_is_refused_before_the_launch() {
    let mut plan = Plan::default();
    let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
    let (x, w, y) = (of(4, 12, DType::F16), of(16, 12, DType::F16), of(4, 16, DType::F16));
    let (x_f32, w_f32, y_f32) = (of(4, 8, DType::F32), of(16, 8, DType::F32), of(4, 16, DType::F32));
    let mut cuda = open(&plan, DType::F16);
    let refused = |result: smolten::error::Result<()>| match result {
        Err(Error::Unsupported { dim, .. }) => dim,
        Err(Error::Shape { arg, .. }) => arg,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(linear_launch::linear(&cuda, Rung::Production, x, w, y)), "in");
    assert_eq!(refused(linear_launch::linear(&cuda, Rung::Naive, x, w, y.head(3))), "y");
    assert_eq!(refused(linear_launch::linear(&cuda, Rung::Naive, x, w, y_f32)), "y");
    assert_eq!(refused(linear_launch::weight_gradient(&cuda, Rung::Naive, Rows::Tokens, y, x, y)), "dw");
    let bias = Some(Tensor { rows: 1, cols: 12, ..y });
    let unfit = linear_launch::linear_residual(
        &cuda,
        Rung::Naive,
        x,
        Projection { w, bias, adapter: None },
        y_f32,
        y_f32,
    );
    assert_eq!(refused(unfit), "bias");
    let shifted = Tensor { offset: x.offset + 2, ..x };
    assert_eq!(refused(linear_launch::linear(&cuda, Rung::Naive, shifted, w, y)), "x");
    let (x, w) = (Tensor { cols: 8, ..x }, Tensor { cols: 8, ..w });
    cuda.cut = Some(unsplit(Tile::ALL[2]));
    assert_eq!(refused(linear_launch::linear(&cuda, Rung::Production, x, w, y)), "tile");
    let cuda = open(&plan, DType::F32);
    assert_eq!(refused(linear_launch::linear(&cuda, Rung::Production, x_f32, w_f32, y_f32)), "type");
}
