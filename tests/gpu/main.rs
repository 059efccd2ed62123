//! Kernels against the CPU code, both rungs of each. These run on a GPU or under the emulator, and fail without.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/decoding.rs"]
mod decoding;
#[allow(dead_code, reason = "only dry runs here")]
#[path = "../common/runs.rs"]
mod runs;

/// Runs a generic check in f32, bf16 and f16.
macro_rules! in_each_type {
    ($check:ident) => {
        $check::<f32>();
        $check::<half::bf16>();
        $check::<half::f16>();
    };
}

mod adapter;
mod attention;
mod bench;
mod bias;
mod decode;
mod embedding;
mod fused;
mod head;
mod linear;
mod lora;
mod loss_scale;
mod model;
mod noise;
mod real;
mod recorded;
mod rmsnorm;
mod rows;
mod splits;
mod train;

use half::{bf16, f16};
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::{CudaEngine, Moments, StepParams, Trainable, UpdateRule};
use smolten::cuda::{Cuda, Device, LOSS_SCALE_AT, NORM_AT, Rung};
use smolten::dtype::{DType, Element, Plain};
use smolten::ops::adamw::{AdamWConfig, AdamWScalars, Weight};
use smolten::ops::adamw_launch::DeviceWeights;
use smolten::ops::codebook::SIGNED;
use smolten::ops::grad_norm::{DeviceNorm, GradNorm, sum_of_squares};
use smolten::ops::loss_scale::LossScale;
use smolten::ops::{adamw, adamw_8bit};

const RUNGS: [Rung; 2] = [Rung::Naive, Rung::Production];

fn gpu() -> Device {
    Device::open(0).expect("these tests need a GPU or the emulator")
}

fn open(plan: &Plan, dtype: DType) -> Cuda {
    Cuda::new(&gpu(), plan.bytes(), dtype).unwrap()
}

fn engine(plan: &Plan, dtype: DType, rung: Rung) -> CudaEngine {
    CudaEngine::new(&gpu(), plan, dtype, rung).unwrap()
}

fn read<T: Plain>(cuda: &Cuda, t: Tensor) -> Vec<T> {
    let mut values = vec![T::zeroed(); t.len()];
    cuda.download(t, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

fn write<T: Plain>(cuda: &mut Cuda, t: Tensor, values: &[T]) {
    cuda.upload(t, bytemuck::cast_slice(values)).unwrap();
}

fn set_params(cuda: &mut Cuda, params: &StepParams) {
    cuda.write_step(0, bytemuck::bytes_of(params)).unwrap();
    cuda.write_step(LOSS_SCALE_AT, bytemuck::bytes_of(&LOSS_SCALE)).unwrap();
}

fn params(tokens: u32, adamw: AdamWScalars) -> StepParams {
    let zero: StepParams = bytemuck::Zeroable::zeroed();
    StepParams { tokens, max_grad_norm: 1.0, adamw, ..zero }
}

const LOSS_SCALE: LossScale = LossScale { value: 4.0, good_steps: 0, growth_interval: 0 };

fn norm_of(cuda: &mut Cuda) -> GradNorm {
    bytemuck::pod_read_unaligned(&cuda.read_step().unwrap()[NORM_AT..][..size_of::<GradNorm>()])
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn widen<E: Element>(values: &[E]) -> Vec<f32> {
    values.iter().map(|x| x.to_f32()).collect()
}

/// `values`, and behind them `fill` up to the length of `t`.
fn filled<T: Plain>(t: Tensor, values: &[T], fill: T) -> Vec<T> {
    let mut all = vec![fill; t.len()];
    all[..values.len()].copy_from_slice(values);
    all
}

const CONFIG: AdamWConfig = AdamWConfig { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };

/// Through the staging memory, whose halves of 1 MiB take turns, and around it.
#[test]
fn uploads_arrive_whatever_their_size() {
    let sizes = [1, 255, 1 << 20, 300_000, 700_000, 48_576, 3, (1 << 20) + 1, 900_000, 900_000, 64, 0];
    let mut plan = Plan::default();
    let tensors = sizes.map(|n| plan.tensor(Category::Batch, 1, n, DType::U8));
    let mut cuda = open(&plan, DType::F32);
    let bytes = |i: usize| {
        let byte = |k: usize| u8::try_from((k * (2 * i + 1) + k / 251 + i) % 256).unwrap();
        (0..sizes[i]).map(byte).collect::<Vec<_>>()
    };
    tensors.iter().enumerate().for_each(|(i, &t)| cuda.upload(t, &bytes(i)).unwrap());
    for (i, &t) in tensors.iter().enumerate() {
        assert!(read::<u8>(&cuda, t) == bytes(i), "{} bytes", sizes[i]);
    }
}

#[test]
fn grad_norm_has_the_cpus_bits() {
    for n in [1, 255, 4095, 4096, 4097, 5000, 300 * 4096 + 3] {
        let mut plan = Plan::default();
        let grads = plan.tensor(Category::Gradients, 1, n, DType::F32);
        let mut cuda = open(&plan, DType::F32);
        set_params(&mut cuda, &params(0, bytemuck::Zeroable::zeroed()));
        let mut norm = DeviceNorm::new(&cuda, n).unwrap();
        let mut g = common::uniform(n, 3);
        for bad in [None, Some(f32::NAN), Some(f32::INFINITY)] {
            g[n / 2] = bad.unwrap_or(g[n / 2]);
            write(&mut cuda, grads, &g);
            let want = GradNorm::new(sum_of_squares(&g), 4.0, 1.0);
            for rung in RUNGS {
                norm.launch(&cuda, rung, grads).unwrap();
                let got = norm_of(&mut cuda);
                assert_eq!(got.skip, want.skip, "n = {n}, {rung:?}, {bad:?}");
                if bad.is_none() {
                    assert_eq!(
                        (got.norm.to_bits(), got.scale.to_bits()),
                        (want.norm.to_bits(), want.scale.to_bits())
                    );
                }
            }
        }
    }
}

/// A weight of every kind: 8-bit with a partial last block, 8-bit, fp32 moments, without decay.
fn plan_weights(plan: &mut Plan, rule: UpdateRule, dtype: DType) -> (Tensor, Vec<Trainable>) {
    let sizes = [(4104, true), (512, false), (8192, true)];
    let grads = plan.tensor(Category::Gradients, 1, sizes.iter().map(|s| s.0).sum(), DType::F32);
    let mut offset = grads.offset;
    let mut weights = Vec::new();
    for (n, large) in sizes {
        let mut of = |cols, dtype| plan.tensor(Category::OptimizerState, 1, cols, dtype);
        let master = of(n, DType::F32);
        let working = if dtype == DType::F32 { master } else { of(n, dtype) };
        let blocks = n.div_ceil(256);
        let moments = if rule == UpdateRule::Blockwise && large {
            let (m, v) = (of(n, DType::U8), of(n, DType::U8));
            Moments::Blockwise { m, v, m_absmax: of(blocks, DType::F32), v_absmax: of(blocks, DType::F32) }
        } else {
            Moments::Full { m: of(n, DType::F32), v: of(n, DType::F32) }
        };
        let grad = Tensor { offset, cols: n, ..grads };
        offset += grad.bytes();
        weights.push(Trainable { master, working, grad, moments, decays: large });
    }
    (grads, weights)
}

/// One weight on the host.
struct Host {
    p: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
    m_codes: Vec<u8>,
    v_codes: Vec<u8>,
    m_absmax: Vec<f32>,
    v_absmax: Vec<f32>,
}

impl Host {
    fn step(&mut self, rule: UpdateRule, weight: &Trainable, scalars: &AdamWScalars, scale: f32, g: &[f32]) {
        let (p, m, v, decays) = (&mut self.p, &mut self.m, &mut self.v, weight.decays);
        match (weight.moments, rule) {
            (Moments::Blockwise { .. }, _) => {
                let state = adamw_8bit::State {
                    m_codes: &mut self.m_codes,
                    m_absmax: &mut self.m_absmax,
                    v_codes: &mut self.v_codes,
                    v_absmax: &mut self.v_absmax,
                };
                adamw_8bit::update(scalars, scale, decays, Weight::only(p), g, state)
            }
            (_, UpdateRule::Torch) => adamw::update(scalars, scale, decays, Weight::only(p), g, m, v),
            _ => adamw_8bit::update_fp32_state(scalars, scale, decays, Weight::only(p), g, m, v),
        }
        .unwrap();
    }

    fn check(&self, cuda: &Cuda, weight: &Trainable) {
        let same = |t, want: &[f32]| assert_eq!(bits(&read::<f32>(cuda, t)), bits(want));
        same(weight.master, &self.p);
        match weight.working.dtype {
            DType::BF16 => {
                let want: Vec<_> = self.p.iter().map(|&p| bf16::from_f32(p)).collect();
                assert_eq!(read::<bf16>(cuda, weight.working), want);
            }
            DType::F16 => {
                let want: Vec<_> = self.p.iter().map(|&p| f16::from_f32(p)).collect();
                assert_eq!(read::<f16>(cuda, weight.working), want);
            }
            _ => {}
        }
        match weight.moments {
            Moments::Full { m, v } => {
                same(m, &self.m);
                same(v, &self.v);
            }
            Moments::Blockwise { m, v, m_absmax, v_absmax } => {
                assert_eq!(read::<u8>(cuda, m), self.m_codes);
                assert_eq!(read::<u8>(cuda, v), self.v_codes);
                same(m_absmax, &self.m_absmax);
                same(v_absmax, &self.v_absmax);
            }
        }
    }
}

fn adamw_has_the_cpus_bits(rule: UpdateRule, dtype: DType, rung: Rung) {
    let mut plan = Plan::default();
    let (grads, weights) = plan_weights(&mut plan, rule, dtype);
    let mut cuda = open(&plan, dtype);
    let mut hosts = Vec::new();
    for (seed, weight) in (10..).zip(&weights) {
        let (n, p) = (weight.master.len(), common::uniform(weight.master.len(), seed));
        write(&mut cuda, weight.master, &p);
        let blocks = n.div_ceil(256);
        let m_codes = vec![adamw_8bit::ZERO_CODE_M; n];
        assert_eq!(SIGNED.values[127], 0.0);
        if let Moments::Blockwise { m, .. } = weight.moments {
            write(&mut cuda, m, &m_codes);
        }
        let (m, v, v_codes) = (vec![0.0; n], vec![0.0; n], vec![0; n]);
        let (m_absmax, v_absmax) = (vec![0.0; blocks], vec![0.0; blocks]);
        hosts.push(Host { p, m, v, m_codes, v_codes, m_absmax, v_absmax });
    }
    let mut norm = DeviceNorm::new(&cuda, grads.len()).unwrap();
    let mut table = DeviceWeights::new(&cuda, rule, &weights).unwrap();
    for t in 1..=4 {
        let scalars = match rule {
            UpdateRule::Torch => AdamWScalars::adamw(&CONFIG, t),
            UpdateRule::Blockwise => AdamWScalars::adamw_8bit(&CONFIG, t),
        };
        set_params(&mut cuda, &params(0, scalars));
        let mut g: Vec<f32> = common::uniform(grads.len(), t).iter().map(|g| g.powi(7)).collect();
        g[..300].fill(0.0); // a block of zeros
        if t == 3 {
            g[5000] = f32::NAN; // this step must change nothing
        }
        write(&mut cuda, grads, &g);
        norm.launch(&cuda, rung, grads).unwrap();
        table.launch(&cuda, rung).unwrap();
        let mut rest = &g[..];
        let of_step = GradNorm::new(sum_of_squares(&g), 4.0, 1.0);
        for (host, weight) in hosts.iter_mut().zip(&weights) {
            let (own, others) = rest.split_at(weight.master.len());
            rest = others;
            if of_step.skip == 0 {
                host.step(rule, weight, &scalars, of_step.scale, own);
            }
            host.check(&cuda, weight);
        }
    }
}

#[test]
fn adamw_of_both_rules_has_the_cpus_bits() {
    for rule in [UpdateRule::Blockwise, UpdateRule::Torch] {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for rung in RUNGS {
                adamw_has_the_cpus_bits(rule, dtype, rung);
            }
        }
    }
}
