//! Weight gradients whose sums over the tokens are split into parts, which one more kernel adds up.

use super::linear::has_tensor_cores;
use super::runs::{gpu_model, program, said, sums};

use super::{bits, common, open, params, read, set_params, write};
use half::{bf16, f16};
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::{self, Backend, StepParams};
use smolten::cuda::{Cuda, Cut, Rung, Tile};
use smolten::dtype::DType;
use smolten::ops::linear::{self, Operand};
use smolten::ops::linear_launch::{self, Rows, WORKSPACE_BYTES};
use smolten::ops::tile::Level;

/// Rows planned and in use, inputs, outputs, parts, and those of them that have rows: tails in each direction; a part of
/// one row; parts without any; one row; none at all; one step of depth more than the parts can have alike; no split.
const SHAPES: [[usize; 6]; 8] = [
    [130, 130, 136, 264, 2, 2],
    [130, 97, 72, 136, 4, 4],
    [300, 33, 64, 24, 3, 2],
    [300, 1, 8, 8, 5, 1],
    [64, 0, 16, 16, 2, 0],
    [520, 513, 24, 40, 7, 6],
    [96, 96, 200, 72, 3, 3],
    [96, 50, 64, 64, 1, 0],
];

/// Elements behind the workspace's room that nothing may touch.
const GUARD: usize = 8;

struct Split<E> {
    shape: [usize; 6],
    cuda: Cuda,
    tensors: [Tensor; 3],
    room: Tensor,
    dy: Vec<E>,
    x: Vec<E>,
    old: Vec<f32>,
}

impl<E: Operand> Split<E> {
    fn new(shape: [usize; 6], value: impl Fn(f32) -> f32) -> Self {
        let [planned, t, inputs, outputs, splits, _] = shape;
        let mut plan = Plan::default();
        let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
        let tensors =
            [of(planned, outputs, E::DTYPE), of(planned, inputs, E::DTYPE), of(outputs, inputs, DType::F32)];
        let room = of(1, splits * outputs * inputs + GUARD, DType::F32);
        let mut cuda = open(&plan, E::DTYPE);
        cuda.workspace = Some(room);
        let of = |n, seed| common::uniform(n, seed).into_iter().map(&value).collect::<Vec<_>>();
        let narrow = |n, seed| of(n, seed).into_iter().map(E::from_f32).collect();
        let (dy, x) = (narrow(t * outputs, 1), narrow(t * inputs, 2));
        Self { shape, cuda, tensors, room, dy, x, old: of(outputs * inputs, 3) }
    }

    /// `dw`, and what became of the workspace. Everything that is not to be read is NaN before.
    fn run(&mut self, tile: Tile, rows: Rows, accumulate: u32) -> [Vec<f32>; 2] {
        let ([_, t, _, _, splits, _], cuda) = (self.shape, &mut self.cuda);
        let [dy, x, dw] = self.tensors;
        let first = if let Rows::Supervised { first } = rows { first } else { 0 };
        write(cuda, dy, &super::filled(dy, &self.dy, E::from_f32(f32::NAN)));
        write(cuda, x, &super::filled(x, &self.x, E::from_f32(f32::NAN)));
        let adds = accumulate == 1 || first > 0;
        let before = if adds { self.old.clone() } else { vec![f32::NAN; dw.len()] };
        write(cuda, dw, &before);
        write(cuda, self.room, &vec![f32::NAN; self.room.len()]);
        let [tokens, supervised] = if rows == Rows::Tokens { [t, 1] } else { [1, first + t] };
        let [tokens, supervised] = [tokens, supervised].map(|n| u32::try_from(n).unwrap());
        let step = StepParams { supervised, accumulate, ..params(tokens, bytemuck::Zeroable::zeroed()) };
        set_params(cuda, &step);
        cuda.cut = Some(Cut { tile, splits: u32::try_from(splits).unwrap() });
        linear_launch::weight_gradient(cuda, Rung::Production, rows, dy, x, dw).unwrap();
        [read(cuda, dw), read(cuda, self.room)]
    }

    fn on_the_cpu(&self, add: bool, value: impl Fn(f32) -> f32) -> Vec<f32> {
        let [_, _, inputs, ..] = self.shape;
        let narrow = |v: &[E]| v.iter().map(|x| E::from_f32(value(x.to_f32()))).collect::<Vec<E>>();
        let mut dw =
            if add { self.old.iter().map(|&x| value(x)).collect() } else { vec![0.0; self.old.len()] };
        linear::weight_gradient(Level::best(), &narrow(&self.dy), &narrow(&self.x), &mut dw, inputs, add);
        dw
    }
}

/// Whole numbers up to 4 have exact sums in any order: every bit must be right but a zero's sign.
fn exact<E: Operand>() {
    for shape in SHAPES {
        let mut split = Split::<E>::new(shape, |x| (x * 4.5).trunc());
        let [.., splits, used] = shape;
        let per_part = split.old.len();
        for tile in Tile::ALL {
            for accumulate in [0, 1] {
                let [dw, room] = split.run(tile, Rows::Tokens, accumulate);
                let want = split.on_the_cpu(accumulate == 1, |x| x);
                assert!(dw == want, "{shape:?} {tile:?} {accumulate}: {:?} for {want:?}", &dw[..8]);
                let (parts, rest) = room.split_at(used * per_part);
                assert!(
                    parts.iter().all(|x| x.is_finite()),
                    "{shape:?} {tile:?}: {splits} parts were asked for"
                );
                assert!(rest.iter().all(|x| x.is_nan()), "{shape:?} {tile:?}: written behind {used} parts");
            }
        }
    }
}

#[test]
fn sums_of_whole_numbers_are_exact() {
    exact::<f16>();
    if has_tensor_cores(DType::BF16) {
        exact::<bf16>();
    }
}

/// The bound of `linear.rs`, and a rounding for each part and for the old gradient. Twice the same bits, and those of
/// every other tile.
fn bounded<E: Operand>(unit: f32) {
    for shape in SHAPES {
        let mut split = Split::<E>::new(shape, |x| x * 1.5);
        let [_, t, _, _, splits, _] = shape;
        let roundings = (t.div_ceil(8) + 1) as f32 * 11.0 + (t + 1) as f32 + (splits + 1) as f32;
        for accumulate in [0, 1] {
            let want = split.on_the_cpu(accumulate == 1, |x| x);
            let sizes = split.on_the_cpu(accumulate == 1, f32::abs);
            let mut seen = Vec::new();
            for tile in [Tile::ALL, Tile::ALL].concat() {
                let [dw, _] = split.run(tile, Rows::Tokens, accumulate);
                for i in 0..dw.len() {
                    let atol = roundings * common::U_F32 * sizes[i] * (1.0 + unit);
                    let close = common::close(dw[i], want[i], 0.0, atol);
                    assert!(close, "{shape:?} {tile:?} [{i}]: {} for {}", dw[i], want[i]);
                }
                seen.push(bits(&dw));
            }
            assert!(seen.windows(2).all(|w| w[0] == w[1]), "{shape:?}: tiles, or twice the same, differ");
        }
    }
}

#[test]
fn sums_of_fractions_are_within_counted_roundings() {
    bounded::<f16>(common::U_F16);
    if has_tensor_cores(DType::BF16) {
        bounded::<bf16>(common::U_BF16);
    }
}

/// The head's: a first chunk overwrites, a later one adds, and one without rows leaves what is there.
#[test]
fn chunks_of_supervised_rows() {
    for (t, first, accumulate) in [(100, 0, 0), (100, 130, 0), (100, 0, 1), (0, 130, 0), (0, 0, 1), (0, 0, 0)]
    {
        let mut split = Split::<f16>::new([130, t, 72, 136, 4, 4], |x| (x * 4.5).trunc());
        let [dw, _] = split.run(Tile::LARGEST, Rows::Supervised { first }, accumulate);
        assert!(dw == split.on_the_cpu(first > 0 || accumulate == 1, |x| x), "{t} rows from {first} on");
    }
}

#[test]
fn no_more_parts_than_there_is_room_for() {
    for (parts, used) in [(0, 0), (1, 0), (2, 2)] {
        let mut split = Split::<f16>::new([300, 300, 72, 136, 7, used], |x| (x * 4.5).trunc());
        let per_part = split.old.len();
        split.cuda.workspace = (parts > 0).then(|| Tensor { cols: parts * per_part + GUARD, ..split.room });
        let [dw, room] = split.run(Tile::LARGEST, Rows::Tokens, 0);
        assert!(dw == split.on_the_cpu(false, |x| x), "{parts}");
        let written = room.iter().filter(|x| !x.is_nan()).count();
        assert_eq!(written, used * per_part, "room for {parts}");
    }
}

/// As the engine splits by itself: enough rows for few tiles, then fewer, recorded and replayed.
#[test]
fn the_engine_splits_and_replays() {
    const ROWS: usize = 4096;
    let mut plan = Plan::default();
    let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
    let (dy, x, dw) = (of(ROWS, 64, DType::F16), of(ROWS, 64, DType::F16), of(64, 64, DType::F32));
    plan.reserve_workspace(WORKSPACE_BYTES);
    let room = plan.workspace().unwrap();
    let mut engine = super::engine(&plan, DType::F16, Rung::Production);
    let whole = |seed| -> Vec<f16> {
        common::uniform(ROWS * 64, seed).iter().map(|x| f16::from_f32((x * 2.5).trunc())).collect()
    };
    let (dy_host, x_host) = (whole(1), whole(2));
    engine.upload(dy, bytemuck::cast_slice(&dy_host)).unwrap();
    engine.upload(x, bytemuck::cast_slice(&x_host)).unwrap();
    let mut want = vec![0.0; dw.len()];
    for (t, accumulate) in [(ROWS, 0), (100, 1), (ROWS, 1), (32, 1), (0, 1), (2049, 0), (0, 0)] {
        let n = 64 * t;
        let (dy_rows, x_rows) = (&dy_host[..n], &x_host[..n]);
        linear::weight_gradient(Level::best(), dy_rows, x_rows, &mut want, 64, accumulate == 1);
        engine.upload(room, &vec![0xff; room.bytes()]).unwrap();
        let tokens = u32::try_from(t).unwrap();
        let step = StepParams { accumulate, ..params(tokens, bytemuck::Zeroable::zeroed()) };
        engine.set_params(&step).unwrap();
        engine.run(backend::Part::Train, &mut |b| b.linear_weight_gradient(dy, x, dw)).unwrap();
        let (mut got, mut partials) = (vec![0.0_f32; dw.len()], vec![0.0_f32; 2 * dw.len()]);
        engine.download(dw, bytemuck::cast_slice_mut(&mut got)).unwrap();
        engine.download(room, bytemuck::cast_slice_mut(&mut partials)).unwrap();
        assert!(got == want, "{t} rows");
        let split = partials[dw.len()..].iter().all(|x| x.is_finite());
        assert_eq!(split, t > 32, "{t} rows: a second part");
    }
}

/// Of the plan that a dry run prints, in MiB.
fn planned_scratch(device: &str, precision: &str) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program(folder.path());
    command.args(["train", "--dry-run", "--device", device, "--precision", precision, "--model"]);
    let ran = command.arg(gpu_model(folder.path())).arg("--data").arg(sums(folder.path())).output().unwrap();
    let shown = String::from_utf8(ran.stdout.clone()).unwrap();
    let line = shown.lines().find_map(|line| line.strip_prefix("memory planned, MiB: "));
    let line = line.unwrap_or_else(|| panic!("{shown}\n{}", said(&ran)));
    line.split(", ").find_map(|part| part.strip_prefix("scratch ")).unwrap().parse().unwrap()
}

#[test]
fn a_dry_run_plans_the_workspace() {
    let on_the_cpu = planned_scratch("cpu", "fp16");
    assert_eq!(planned_scratch("cuda:0", "fp16"), on_the_cpu + (WORKSPACE_BYTES >> 20));
    assert_eq!(planned_scratch("cuda:0", "fp32"), planned_scratch("cpu", "fp32"), "fp32 is never split");
}
