//! The output head through the engine, over chunks of logits, against its formula with counted roundings.
//!
//! Inputs are quarters, so that every logit is exact in any order of summing, and the best logit is often there twice.

use super::common::real::{Real, assert_allowed, reals};
use super::{LOSS_SCALE, RUNGS, common, filled};
use half::f16;
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::{
    Backend, BatchBuffers, Cpu, CudaEngine, HeadGradients, LinearCrossEntropy, Part, StepOutput, StepParams,
};
use smolten::batch::NO_TARGET;
use smolten::cuda::{Device, Rung};
use smolten::dtype::{DType, Element, Plain};

/// V, C, rows of a chunk, supervised positions: none; one; a chunk and its neighbours; many chunks; more columns than a
/// block takes at once, and a tail; a tile of rows and more; more losses than are added up side by side.
const SHAPES: [[usize; 4]; 10] = [
    [40, 24, 8, 0],
    [40, 24, 8, 1],
    [40, 24, 8, 7],
    [40, 24, 8, 8],
    [40, 24, 8, 9],
    [40, 24, 8, 43],
    [4104, 8, 3, 5],
    [8, 8, 2, 3],
    [136, 72, 131, 150],
    [8, 16, 64, 300],
];

/// What only the naive versions take.
const ODD_SHAPES: [[usize; 4]; 1] = [[37, 12, 8, 21]];

/// `inverse_denominator · loss_scale`.
const WEIGHT: f64 = 0.5;

struct Head<E> {
    plan: Plan,
    shape: [usize; 4],
    batch: BatchBuffers,
    args: LinearCrossEntropy,
    gradients: HeadGradients,
    x: Vec<E>,
    w: Vec<E>,
    /// By position.
    targets: Vec<u32>,
    /// Positions in the loss.
    rows: Vec<u32>,
}

fn quarters<E: Element>(n: usize, seed: u64) -> Vec<E> {
    common::uniform(n, seed).into_iter().map(|x| E::from_f32((x * 4.5).trunc() / 4.0)).collect()
}

impl<E: Element> Head<E> {
    /// Every other position has a target, up to the number wanted; room for more tokens than there are.
    fn new(shape: [usize; 4]) -> Self {
        let [v, c, chunk, supervised] = shape;
        let (t, planned, mut plan) = (2 * supervised + 3, 2 * supervised + 23, Plan::default());
        let mut of = |rows, cols, dtype| plan.tensor(Category::Scratch, rows, cols, dtype);
        let mut list = |n| of(1, n, DType::U32);
        let batch = BatchBuffers {
            ids: list(planned),
            positions: list(planned),
            cu_seqlens: list(planned),
            targets: list(planned),
            loss_rows: list(planned),
            by_id: list(planned),
            id_starts: list(planned + 1),
        };
        let logits = of(chunk, v, DType::F32);
        let gradients = HeadGradients {
            dx: of(planned, c, E::DTYPE),
            dw: Some(of(v, c, DType::F32)),
            dlogits: if E::DTYPE == DType::F32 { logits } else { of(chunk, v, E::DTYPE) },
            dx_chunk: of(chunk, c, E::DTYPE),
        };
        let args = LinearCrossEntropy {
            x: of(planned, c, E::DTYPE),
            w: of(v, c, E::DTYPE),
            losses: of(1, planned, DType::F32),
            entropies: of(1, planned, DType::F32),
            gradients: Some(gradients),
            x_chunk: of(chunk, c, E::DTYPE),
            logits,
        };
        let mut w = quarters(v * c, 2);
        (1..v).step_by(3).for_each(|row| w.copy_within((row - 1) * c..row * c, row * c));
        let rows: Vec<u32> = (0..).map(|i| 2 * i + 1).take(supervised).collect();
        let (x, targets) = (quarters(t * c, 1), vec![NO_TARGET; t]);
        let mut head = Self { plan, shape, batch, args, gradients, x, w, targets, rows };
        for i in 0..supervised {
            let position = head.rows[i] as usize;
            head.targets[position] = u32::try_from(head.target(i, position)).unwrap();
        }
        head
    }

    /// The first of the best logits, or the last, or some other.
    fn target(&self, i: usize, position: usize) -> usize {
        let logits = self.logits(position);
        let best = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match i % 3 {
            0 => logits.iter().position(|&l| l == best).unwrap(),
            1 => logits.iter().rposition(|&l| l == best).unwrap(),
            _ => (i * 17 + 3) % logits.len(),
        }
    }

    /// Exact.
    fn logits(&self, position: usize) -> Vec<f64> {
        let c = self.shape[1];
        let x = &self.x[position * c..][..c];
        let product = |(x, w): (&E, &E)| f64::from(x.to_f32()) * f64::from(w.to_f32());
        self.w.chunks(c).map(|w| x.iter().zip(w).map(product).sum()).collect()
    }

    /// What is not in use is NaN, or leads outside the arena.
    fn prepare(&self, engine: &mut dyn Backend) {
        let (args, nan) = (&self.args, E::from_f32(f32::NAN));
        put(engine, args.x, &filled(args.x, &self.x, nan));
        put(engine, args.w, &self.w);
        put(engine, self.batch.targets, &filled(self.batch.targets, &self.targets, u32::MAX));
        put(engine, self.batch.loss_rows, &filled(self.batch.loss_rows, &self.rows, u32::MAX));
        let g = self.gradients;
        for scratch in [args.x_chunk, args.logits, g.dlogits, g.dx_chunk, g.dw.unwrap()] {
            engine.upload(scratch, &vec![0xff; scratch.bytes()]).unwrap();
        }
        for list in [args.losses, args.entropies] {
            put(engine, list, &vec![7.0_f32; list.len()]);
        }
        put(engine, g.dx, &vec![E::from_f32(7.0); g.dx.len()]);
    }

    /// With the first `supervised` positions in the loss.
    fn set_params(&self, engine: &mut dyn Backend, supervised: usize, accumulate: u32) {
        let zero: StepParams = bytemuck::Zeroable::zeroed();
        let step = StepParams {
            tokens: u32::try_from(self.targets.len()).unwrap(),
            supervised: u32::try_from(supervised).unwrap(),
            accumulate,
            inverse_denominator: 0.125,
            ..zero
        };
        engine.set_params(&step).unwrap();
        engine.set_loss_scale(LOSS_SCALE).unwrap();
    }

    fn reference(&self) -> Reference {
        let v = self.shape[0];
        // A term goes through at most as many changes of the maximum as a thread has chunks of 8 columns, then through
        // five joins of lanes and one per warp; each multiplies by an exponential.
        let raises = (v.div_ceil(8 * 512) + 5 + 16) as f64;
        let mut reference =
            Reference { losses: Vec::new(), entropies: Vec::new(), correct: 0, dlogits: Vec::new() };
        for &row in &self.rows {
            let (target, logits) = (self.targets[row as usize] as usize, self.logits(row as usize));
            let best = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exps: Vec<Real> = logits.iter().map(|l| Real::exact(l - best).exp()).collect();
            let mut total = Real::sum(exps.iter().copied());
            total.error += raises * 5.0 * f64::from(common::U_F32) * total.value;
            // Of its terms, and of the shift at every change of the maximum.
            let terms = || exps.iter().zip(&logits).filter(|(e, _)| e.value > 0.0);
            let mut weighted = Real::sum(terms().map(|(&e, l)| e * Real::exact(l - best)));
            let size: f64 = terms().map(|(e, l)| e.value * (l - best).abs()).sum::<f64>() + total.value;
            weighted.error += raises * 9.0 * f64::from(common::U_F32) * size;
            reference.entropies.push(total.ln() - weighted / total);
            reference.losses.push(total.ln() - Real::exact(logits[target] - best));
            reference.correct += u64::from(logits.iter().position(|&l| l == best) == Some(target));
            let weight = Real::exact(WEIGHT);
            reference.dlogits.extend(exps.iter().enumerate().map(|(i, &e)| {
                let p = e / total * weight;
                if i == target { p - weight } else { p }.rounded::<E>()
            }));
        }
        reference
    }

    /// A sum of products as [`Real::sum`] bounds it, and what tensor cores cut off more (see `linear.rs`), where
    /// `depth` terms go through them at a time.
    fn sum(&self, depth: usize, terms: impl Iterator<Item = Real>) -> Real {
        let terms: Vec<Real> = terms.collect();
        let size: f64 = terms.iter().map(|t| t.value.abs() + t.error).sum();
        let cut = (depth.div_ceil(8) + 1) as f64 * 11.0 * f64::from(common::U_F32);
        let sum = Real::sum(terms);
        Real { error: sum.error + if E::DTYPE == DType::F32 { 0.0 } else { cut * size }, ..sum }
    }

    fn dx(&self, reference: &Reference) -> Vec<Real> {
        let ([v, c, ..], w) = (self.shape, reals(&self.w));
        let mut dx = vec![Real::ZERO; self.targets.len() * c];
        for (d, &t) in reference.dlogits.chunks(v).zip(&self.rows) {
            for k in 0..c {
                dx[t as usize * c + k] = self.sum(v, (0..v).map(|i| d[i] * w[i * c + k]));
            }
        }
        dx
    }

    /// `times` this micro-batch's, one after the other.
    fn dw(&self, reference: &Reference, times: usize) -> Vec<Real> {
        let ([v, c, chunk, _], x) = (self.shape, reals(&self.x));
        let term = |i: usize, row: usize| {
            reference.dlogits[row * v + i / c] * x[self.rows[row] as usize * c + i % c]
        };
        let rows = || (0..times).flat_map(|_| 0..self.rows.len());
        (0..v * c).map(|i| self.sum(chunk, rows().map(|row| term(i, row)))).collect()
    }

    fn check_gradients(&self, engine: &mut dyn Backend, reference: &Reference, times: usize) {
        let (t, c, g) = (self.targets.len(), self.shape[1], self.gradients);
        let dx: Vec<E> = get(engine, g.dx);
        assert!(dx[t * c..].iter().all(|x| x.to_f32() == 7.0), "a row that is not in use was written");
        for (row, &target) in dx.chunks(c).zip(&self.targets) {
            let zero = row.iter().all(|x| x.to_f32() == 0.0);
            assert!(target != NO_TARGET || zero, "a row without a target: {}", row[0].to_f32());
        }
        let dw = get::<f32>(engine, g.dw.unwrap());
        if self.rows.is_empty() {
            assert!(dw.iter().all(|&x| x == 0.0), "nothing is in the loss");
            return;
        }
        assert_allowed("dx", &dx[..t * c], &self.dx(reference));
        assert_allowed("dw", &dw, &self.dw(reference, times));
    }

    fn check_losses(&self, engine: &mut dyn Backend, reference: &Reference, times: usize) {
        let (n, losses) = (self.rows.len(), get::<f32>(engine, self.args.losses));
        assert!(losses[n..].iter().all(|&l| l == 7.0), "a loss that is not in use was written");
        assert_allowed("losses", &losses[..n], &reference.losses);
        let entropies = get::<f32>(engine, self.args.entropies);
        assert!(entropies[n..].iter().all(|&e| e == 7.0), "an entropy that is not in use was written");
        assert_allowed("entropies", &entropies[..n], &reference.entropies);
        let got = engine.take_output().unwrap();
        assert_eq!(got.correct, times as u64 * reference.correct);
        for (got, terms) in [(got.loss_sum, losses), (got.entropy_sum, entropies)] {
            // Fewer than 2^29 terms of f64, each within a unit of 2^-53.
            let want = times as f64 * terms[..n].iter().map(|&l| f64::from(l)).sum::<f64>();
            assert!((got - want).abs() <= (times * n) as f64 * f64::EPSILON * want.abs(), "{got}, {want}");
        }
        let nothing = StepOutput { loss_scale: LOSS_SCALE, ..StepOutput::default() };
        assert_eq!(engine.take_output().unwrap(), nothing, "the sums start again");
    }
}

struct Reference {
    losses: Vec<Real>,
    entropies: Vec<Real>,
    correct: u64,
    /// `[supervised, V]`
    dlogits: Vec<Real>,
}

fn put<T: Plain>(engine: &mut dyn Backend, t: Tensor, values: &[T]) {
    engine.upload(t, bytemuck::cast_slice(values)).unwrap();
}

fn get<T: Plain>(engine: &mut dyn Backend, t: Tensor) -> Vec<T> {
    let mut values = vec![T::zeroed(); t.len()];
    engine.download(t, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

/// The CPU, which is held to the same bounds, and both versions of the kernels where there are both.
fn engines<E: Element>(head: &Head<E>) -> Vec<Box<dyn Backend>> {
    let turing = Device::open(0).unwrap().compute_capability() < (8, 0);
    let only_naive = ODD_SHAPES.contains(&head.shape) || (E::DTYPE == DType::BF16 && turing);
    let mut engines: Vec<Box<dyn Backend>> = vec![Box::new(Cpu::new(&head.plan, E::DTYPE).unwrap())];
    for rung in RUNGS.into_iter().filter(|&rung| rung == Rung::Naive || !only_naive) {
        engines.push(Box::new(super::engine(&head.plan, E::DTYPE, rung)));
    }
    engines
}

fn trains<E: Element>() {
    for shape in SHAPES.into_iter().chain(ODD_SHAPES) {
        let head = Head::<E>::new(shape);
        let reference = head.reference();
        for (k, mut engine) in engines(&head).into_iter().enumerate() {
            println!("{shape:?} in {:?}, engine {k}", E::DTYPE);
            let engine = engine.as_mut();
            head.prepare(engine);
            for times in [1, 2] {
                head.set_params(engine, head.rows.len(), u32::from(times > 1));
                engine.linear_cross_entropy(&head.batch, head.args).unwrap();
                head.check_gradients(engine, &reference, times);
            }
            head.check_losses(engine, &reference, 2);
        }
    }
}

#[test]
fn head_trains() {
    in_each_type!(trains);
}

fn check_evaluation<E: Element>(head: &Head<E>) {
    let reference = head.reference();
    for mut engine in engines(head) {
        let engine = engine.as_mut();
        head.prepare(engine);
        head.set_params(engine, head.rows.len(), 0);
        let args = LinearCrossEntropy { gradients: None, ..head.args };
        engine.linear_cross_entropy(&head.batch, args).unwrap();
        head.check_losses(engine, &reference, 1);
        let g = head.gradients;
        assert!(get::<E>(engine, g.dx).iter().all(|x| x.to_f32() == 7.0), "dx was written");
        assert!(get::<f32>(engine, g.dw.unwrap()).iter().all(|x| x.is_nan()), "dw was written");
    }
}

fn evaluates<E: Element>() {
    check_evaluation(&Head::<E>::new([40, 24, 8, 21]));
}

#[test]
fn head_evaluates_without_gradients() {
    in_each_type!(evaluates);
}

/// As many as were planned, so that the last chunk, which is not whole, is needed.
#[test]
fn every_position_may_be_in_the_loss() {
    let mut head = Head::<f16>::new([40, 24, 4, 4]);
    head.args.x = head.args.x.head(9);
    head.x.truncate(9 * 24);
    (head.targets, head.rows) = ((0..9).map(|p| 3 * p).collect(), (0..9).collect());
    check_evaluation(&head);
}

/// Logits that are not numbers, or infinite, as fp16 may have them: on the GPU as on the CPU.
#[test]
fn a_loss_that_is_no_number_is_reported() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut head = Head::<f32>::new([40, 24, 8, 3]);
        head.w[5 * 24] = bad;
        head.x.fill(1.0);
        head.rows.iter().for_each(|&row| head.targets[row as usize] = 5);
        for mut engine in engines(&head) {
            head.prepare(engine.as_mut());
            head.set_params(engine.as_mut(), 3, 0);
            engine.linear_cross_entropy(&head.batch, head.args).unwrap();
            let output = engine.take_output().unwrap();
            assert!(output.loss_sum.is_nan(), "{bad}: {output:?}");
            assert_eq!(output.correct, if bad.is_nan() { 0 } else { 3 });
            let dw = get::<f32>(engine.as_mut(), head.gradients.dw.unwrap());
            assert!(dw.iter().any(|x| x.is_nan()), "the step will be skipped");
        }
    }
}

/// Eight neighbouring columns that are minus infinity: all that one thread sees.
#[test]
fn minus_infinity_is_a_probability_of_zero() {
    let mut head = Head::<f32>::new([40, 24, 8, 3]);
    (16..24).for_each(|v| head.w[v * 24] = f32::NEG_INFINITY);
    head.x.fill(1.0);
    head.rows.iter().for_each(|&row| head.targets[row as usize] = row);
    check_evaluation(&head);
}

#[test]
fn a_recorded_head_replays_with_another_number_of_rows() {
    let head = Head::<f16>::new([136, 72, 16, 43]);
    let open = || super::engine(&head.plan, DType::F16, Rung::Production);
    let (mut direct, mut replayed) = (open(), open());
    let (g, losses) = (head.gradients, head.args.losses);
    head.prepare(&mut replayed);
    let run = |engine: &mut CudaEngine| {
        engine.run(Part::Train, &mut |b| b.linear_cross_entropy(&head.batch, head.args)).unwrap();
    };
    run(&mut replayed);
    replayed.take_output().unwrap();
    for (supervised, accumulate) in [(43, 0), (0, 1), (17, 1), (0, 0), (32, 0)] {
        let mut results = Vec::new();
        for engine in [&mut direct, &mut replayed] {
            if accumulate == 0 {
                head.prepare(engine);
            }
            head.set_params(engine, supervised, accumulate);
        }
        direct.linear_cross_entropy(&head.batch, head.args).unwrap();
        run(&mut replayed);
        for engine in [&mut direct, &mut replayed] {
            let bytes = [g.dx, g.dw.unwrap(), losses].map(|t| get_bytes(engine, t));
            results.push((bytes, engine.take_output().unwrap()));
        }
        assert!(results[0] == results[1], "{supervised} rows");
        assert_eq!(results[0].1.loss_sum > 0.0, supervised > 0);
    }
}

fn get_bytes(engine: &mut dyn Backend, t: Tensor) -> Vec<u8> {
    let mut bytes = vec![0; t.bytes()];
    engine.download(t, &mut bytes).unwrap();
    bytes
}

fn gives_the_last_logits<E: Element>() {
    let mut head = Head::<E>::new([40, 24, 8, 5]);
    let (t, v) = (head.targets.len(), head.shape[0]);
    let outputs = [1, 3, t + 4].map(|rows| head.plan.tensor(Category::Scratch, rows, v, DType::F32));
    for mut engine in engines(&head) {
        let engine = engine.as_mut();
        head.prepare(engine);
        head.set_params(engine, 0, 0);
        for out in outputs {
            put(engine, out, &vec![7.0_f32; out.len()]);
            engine.logits(head.args.x, head.args.w, out).unwrap();
            let rows = t - out.rows.min(t)..t;
            let (want, got) = (rows.flat_map(|row| head.logits(row)), get::<f32>(engine, out));
            let unused = v * (out.rows - out.rows.min(t));
            let want = want.chain(std::iter::repeat_n(7.0, unused));
            assert!(got.into_iter().map(f64::from).eq(want), "{} rows", out.rows);
        }
    }
}

#[test]
fn logits_of_the_last_tokens() {
    in_each_type!(gives_the_last_logits);
}
