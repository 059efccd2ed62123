//! A part of the step captured as a graph and replayed, through the engine: norm, linear layers, gradients, optimizer.

use super::{CONFIG, LOSS_SCALE, common, params};
use half::f16;
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::{self, Backend, CudaEngine, Moments, StepParams, Trainable, UpdateRule};
use smolten::cuda::Rung;
use smolten::dtype::{DType, Plain};
use smolten::error::{Error, Result};
use smolten::ops::adamw::{AdamWScalars, Weight};
use smolten::ops::adamw_8bit::{self, ZERO_CODE_M};
use smolten::ops::grad_norm::{GradNorm, sum_of_squares};

const ROWS: usize = 40;
const WIDTH: usize = 136;

/// `out = x + w2·norm(x)`, whose gradient by `w2` is what AdamW gets.
struct Part {
    x: Tensor,
    norm_weight: Tensor,
    normed: Tensor,
    rstd: Tensor,
    out: Tensor,
    dout: Tensor,
    dnormed: Tensor,
    weight: Trainable,
}

impl Part {
    fn new(plan: &mut Plan) -> Self {
        let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
        let blocks = (WIDTH * WIDTH).div_ceil(256);
        Self {
            x: of(ROWS, WIDTH, DType::F32),
            norm_weight: of(1, WIDTH, DType::F16),
            normed: of(ROWS, WIDTH, DType::F16),
            rstd: of(1, ROWS, DType::F32),
            out: of(ROWS, WIDTH, DType::F32),
            dout: of(ROWS, WIDTH, DType::F16),
            dnormed: of(ROWS, WIDTH, DType::F16),
            weight: Trainable {
                master: of(WIDTH, WIDTH, DType::F32),
                working: of(WIDTH, WIDTH, DType::F16),
                grad: of(WIDTH, WIDTH, DType::F32),
                moments: Moments::Blockwise {
                    m: of(WIDTH, WIDTH, DType::U8),
                    v: of(WIDTH, WIDTH, DType::U8),
                    m_absmax: of(1, blocks, DType::F32),
                    v_absmax: of(1, blocks, DType::F32),
                },
                decays: true,
            },
        }
    }

    fn step(&self, engine: &mut dyn Backend) -> Result<()> {
        let Trainable { working, grad, .. } = self.weight;
        engine.rmsnorm_forward(self.x, self.norm_weight, 1e-5, self.normed, self.rstd)?;
        engine.linear_residual(self.normed, working.into(), self.x, self.out)?;
        engine.linear_input_gradient(self.dout, working.into(), self.dnormed)?;
        engine.linear_weight_gradient(self.dout, self.normed, grad)?;
        engine.gradient_norm(Tensor { rows: 1, cols: grad.len(), ..grad })?;
        engine.adamw(UpdateRule::Blockwise, &[self.weight])
    }

    /// An engine with weights in place.
    fn open(&self, plan: &Plan) -> CudaEngine {
        let mut engine = super::engine(plan, DType::F16, Rung::Production);
        let master = common::uniform(WIDTH * WIDTH, 1);
        upload(&mut engine, self.weight.master, &master);
        upload(&mut engine, self.weight.working, &narrow(&master));
        upload(&mut engine, self.norm_weight, &narrow(&common::uniform(WIDTH, 2)));
        if let Moments::Blockwise { m, .. } = self.weight.moments {
            upload(&mut engine, m, &[ZERO_CODE_M; WIDTH * WIDTH]);
        }
        engine
    }

    /// The inputs of step `t`, which has fewer rows each time.
    fn begin(&self, engine: &mut CudaEngine, t: u64) {
        let step = StepParams {
            accumulate: u32::from(t == 3),
            ..params(u32::try_from(ROWS as u64 - 7 * t).unwrap(), AdamWScalars::adamw_8bit(&CONFIG, t))
        };
        engine.set_params(&step).unwrap();
        engine.set_loss_scale(LOSS_SCALE).unwrap();
        upload(engine, self.x, &common::uniform(ROWS * WIDTH, 10 + t));
        upload(engine, self.dout, &narrow(&common::uniform(ROWS * WIDTH, 20 + t)));
    }

    /// Every byte the step leaves.
    fn state(&self, engine: &mut CudaEngine) -> Vec<Vec<u8>> {
        let Trainable { master, working, grad, moments, .. } = self.weight;
        let Moments::Blockwise { m, v, m_absmax, v_absmax } = moments else { panic!("8-bit moments") };
        [self.out, self.dnormed, master, working, grad, m, v, m_absmax, v_absmax]
            .into_iter()
            .map(|t| {
                let mut bytes = vec![0; t.bytes()];
                engine.download(t, &mut bytes).unwrap();
                bytes
            })
            .collect()
    }
}

fn narrow(values: &[f32]) -> Vec<f16> {
    values.iter().map(|&x| f16::from_f32(x)).collect()
}

fn upload<T: Plain>(engine: &mut CudaEngine, t: Tensor, values: &[T]) {
    engine.upload(t, bytemuck::cast_slice(values)).unwrap();
}

fn download<T: Plain>(engine: &mut CudaEngine, t: Tensor) -> Vec<T> {
    let mut values = vec![T::zeroed(); t.len()];
    engine.download(t, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

#[test]
fn a_recorded_step_replays_with_other_rows_and_parameters() {
    let mut plan = Plan::default();
    let part = Part::new(&mut plan);
    let (mut direct, mut replayed) = (part.open(&plan), part.open(&plan));
    let mut executed = 0;
    for t in 1..=5 {
        part.begin(&mut direct, t);
        part.step(&mut direct).unwrap();
        part.begin(&mut replayed, t);
        let mut step = |engine: &mut dyn Backend| {
            executed += 1;
            part.step(engine)
        };
        replayed.run(backend::Part::Train, &mut step).unwrap();
        assert!(part.state(&mut direct) == part.state(&mut replayed), "step {t}");
        assert_eq!(direct.take_output().unwrap(), replayed.take_output().unwrap());
    }
    assert_eq!(executed, 2, "once directly, once to record");
    let mut engine = part.open(&plan);
    engine.record_nothing();
    for t in 1..=3 {
        part.begin(&mut engine, t);
        let mut calls = 0;
        let mut step = |engine: &mut dyn Backend| {
            calls += 1;
            part.step(engine)
        };
        engine.run(backend::Part::Train, &mut step).unwrap();
        assert_eq!(calls, 1, "run {t} of an engine that records nothing");
    }
}

#[test]
fn the_optimizer_after_a_replay_has_the_cpus_bits() {
    let mut plan = Plan::default();
    let part = Part::new(&mut plan);
    let mut engine = part.open(&plan);
    part.begin(&mut engine, 1);
    let run = |engine: &mut CudaEngine| engine.run(backend::Part::Update, &mut |b| part.step(b)).unwrap();
    run(&mut engine);
    let Trainable { master, working, grad, moments, decays } = part.weight;
    let Moments::Blockwise { m, v, m_absmax, v_absmax } = moments else { panic!("8-bit moments") };
    for t in 2..=4 {
        part.begin(&mut engine, t);
        let mut p: Vec<f32> = download(&mut engine, master);
        let (mut m_codes, mut v_codes) = (download::<u8>(&mut engine, m), download::<u8>(&mut engine, v));
        let mut m_scale: Vec<f32> = download(&mut engine, m_absmax);
        let mut v_scale: Vec<f32> = download(&mut engine, v_absmax);
        run(&mut engine);
        let g: Vec<f32> = download(&mut engine, grad);
        assert!(common::max_abs(&g) > 0.0, "there are gradients");
        let norm = GradNorm::new(sum_of_squares(&g), 4.0, 1.0);
        let state = adamw_8bit::State {
            m_codes: &mut m_codes,
            m_absmax: &mut m_scale,
            v_codes: &mut v_codes,
            v_absmax: &mut v_scale,
        };
        let scalars = AdamWScalars::adamw_8bit(&CONFIG, t);
        adamw_8bit::update(&scalars, norm.scale, decays, Weight::only(&mut p), &g, state).unwrap();
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&download(&mut engine, master)), bits(&p), "step {t}");
        assert_eq!(download::<f16>(&mut engine, working), narrow(&p));
        assert_eq!((download(&mut engine, m), download(&mut engine, v)), (m_codes, v_codes));
        assert_eq!(bits(&download(&mut engine, m_absmax)), bits(&m_scale));
        assert_eq!(bits(&download(&mut engine, v_absmax)), bits(&v_scale));
    }
}

#[test]
fn an_error_while_recording_leaves_the_engine_as_it_was() {
    let mut plan = Plan::default();
    let part = Part::new(&mut plan);
    let mut engine = part.open(&plan);
    part.begin(&mut engine, 1);
    let run = |engine: &mut CudaEngine, fails: bool| {
        engine.run(backend::Part::Train, &mut |b| {
            part.step(b)?;
            // A shape that does not fit.
            if fails { b.linear(part.normed, part.norm_weight, part.normed) } else { Ok(()) }
        })
    };
    run(&mut engine, false).unwrap();
    let before = part.state(&mut engine);
    let refused = run(&mut engine, true).unwrap_err();
    assert!(matches!(refused, Error::Shape { op: "linear", .. }), "{refused}");
    assert!(part.state(&mut engine) == before, "what was recorded is not executed");
    run(&mut engine, false).unwrap();
    assert!(part.state(&mut engine) != before);
}
