//! Inputs and buffers of attention's tests, and its launches.

use super::super::{common, params, read, set_params, write};
use common::real::{Real, values};
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::StepParams;
use smolten::cuda::{Cuda, Rung};
use smolten::dtype::{DType, Element};
use smolten::ops::attention::{self, Heads};
use smolten::ops::attention_launch::{self, AttentionBackward};
use smolten::ops::rope;

/// Positions of the rotary tables, and of the caches.
pub const POSITIONS: usize = 200;

/// Query heads per kv head, kv heads, head_dim, lengths of the sequences.
pub type Shape = (usize, usize, usize, &'static [usize]);

/// Inputs on the host, of the rows in use.
pub struct Host<E> {
    pub heads: Heads,
    pub lengths: Vec<usize>,
    pub qkv: Vec<E>,
    pub dout: Vec<E>,
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

impl<E: Element> Host<E> {
    pub fn new((group, kv_heads, head_dim, lengths): Shape) -> Self {
        let heads = Heads { heads: group * kv_heads, kv_heads, head_dim };
        let t: usize = lengths.iter().sum();
        let frequencies: Vec<f64> =
            (0..head_dim / 2).map(|i| 100f64.powf(-((2 * i) as f64) / head_dim as f64)).collect();
        let (cos, sin) = rope::table(&frequencies, POSITIONS);
        let mut qkv = values::<E>(t * heads.qkv_width(), 1.0, 1);
        for row in qkv.chunks_mut(heads.qkv_width()) {
            // Queries are large, so that probabilities differ.
            row[..heads.width()].iter_mut().for_each(|q| *q = E::from_f32(4.0 * q.to_f32()));
        }
        let dout = values::<E>(t * heads.width(), 1.0, 2);
        Self { heads, lengths: lengths.to_vec(), qkv, dout, cos, sin }
    }
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
    pub fn cu_seqlens(&self) -> Vec<u32> {
        let ends = self.lengths.iter().scan(0, |end, n| {
            *end += u32::try_from(*n).unwrap();
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }
    pub fn positions(&self) -> Vec<u32> {
        self.lengths.iter().flat_map(|&n| 0..u32::try_from(n).unwrap()).collect()
    }
    /// For each token the first token of its sequence.
    pub fn starts(&self) -> Vec<usize> {
        self.cu_seqlens().windows(2).flat_map(|w| vec![w[0] as usize; (w[1] - w[0]) as usize]).collect()
    }
    pub fn scale(&self) -> Real {
        Real::exact(1.0) / Real::rounded_once((self.heads.head_dim as f64).sqrt())
    }
}

/// The buffers; one row and one sequence more than are in use.
pub struct Buffers {
    pub cu_seqlens: Tensor,
    pub positions: Tensor,
    pub rope: [Tensor; 2],
    pub of: AttentionBackward,
    pub cache: [Tensor; 2],
}

impl Buffers {
    pub fn new<E: Element>(plan: &mut Plan, host: &Host<E>) -> Self {
        let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
        let (t, a, heads) = (host.tokens() + 1, E::DTYPE, host.heads);
        let (wide, half, kv) = (heads.qkv_width(), heads.head_dim / 2, heads.kv_heads * heads.head_dim);
        Self {
            cu_seqlens: of(1, host.lengths.len() + 2, DType::U32),
            positions: of(1, t, DType::U32),
            rope: [of(POSITIONS, half, DType::F32), of(POSITIONS, half, DType::F32)],
            of: AttentionBackward {
                qkv: of(t, wide, a),
                out: of(t, heads.width(), a),
                lse: of(t, heads.heads, DType::F32),
                dout: of(t, heads.width(), a),
                dqkv: of(t, wide, a),
                delta: of(t, heads.heads, DType::F32),
            },
            cache: [of(POSITIONS, kv, a), of(POSITIONS, kv, a)],
        }
    }
}

pub fn step(tokens: usize, sequences: usize) -> StepParams {
    let step = params(u32::try_from(tokens).unwrap(), bytemuck::Zeroable::zeroed());
    StepParams { sequences: u32::try_from(sequences).unwrap(), ..step }
}

/// `values` in front; NaN in the rest, which no kernel may read.
pub fn write_used<E: Element>(cuda: &mut Cuda, t: Tensor, values: &[E]) {
    let mut all = vec![E::from_f32(f32::NAN); t.len()];
    all[..values.len()].copy_from_slice(values);
    write(cuda, t, &all);
}

/// What no kernel computes; so a row that should not be written is seen to be, and one that should be not to be.
pub const SENTINEL: f32 = 12345.0;

pub fn sentinels<E: Element>(cuda: &mut Cuda, t: Tensor) {
    write(cuda, t, &vec![E::from_f32(SENTINEL); t.len()]);
}

/// The rows in use; the others are as they were.
pub fn read_used<E: Element>(cuda: &Cuda, t: Tensor, rows: usize) -> Vec<E> {
    let mut all = read::<E>(cuda, t);
    let sentinel = E::from_f32(SENTINEL).to_f32();
    assert!(all[rows * t.cols..].iter().all(|x| x.to_f32() == sentinel), "an unused row was written");
    all.truncate(rows * t.cols);
    all
}

impl<E: Element> Host<E> {
    pub fn upload(&self, cuda: &mut Cuda, b: &Buffers) {
        // After the sequences in use a bound that would be believed.
        let bounds: Vec<u32> =
            self.cu_seqlens().into_iter().chain([u32::try_from(self.tokens()).unwrap() + 1]).collect();
        write(cuda, b.cu_seqlens, &bounds);
        write(cuda, b.positions, &self.positions());
        write(cuda, b.rope[0], &self.cos);
        write(cuda, b.rope[1], &self.sin);
        write_used(cuda, b.of.qkv, &self.qkv);
        write_used(cuda, b.of.dout, &self.dout);
        set_params(cuda, &step(self.tokens(), self.lengths.len()));
    }

    pub fn forward(&self, cuda: &mut Cuda, rung: Rung, b: &Buffers) -> (Vec<E>, Vec<f32>) {
        sentinels::<E>(cuda, b.of.out);
        sentinels::<f32>(cuda, b.of.lse);
        attention_launch::forward(cuda, rung, self.heads, b.cu_seqlens, b.of.qkv, b.of.out, b.of.lse)
            .unwrap();
        let t = self.tokens();
        (read_used(cuda, b.of.out, t), read_used(cuda, b.of.lse, t))
    }

    /// From the CPU's output, so that forward and backward are tested apart.
    pub fn backward(
        &self,
        cuda: &mut Cuda,
        rung: Rung,
        b: &Buffers,
        from: &Forward<E>,
    ) -> (Vec<f32>, Vec<E>) {
        write_used(cuda, b.of.out, &from.out);
        write_used(cuda, b.of.lse, &from.lse);
        sentinels::<E>(cuda, b.of.dqkv);
        sentinels::<f32>(cuda, b.of.delta);
        let (heads, bounds, positions) = (self.heads, b.cu_seqlens, b.positions);
        attention_launch::backward(cuda, rung, heads, bounds, positions, b.rope, b.of).unwrap();
        (read_used(cuda, b.of.delta, self.tokens()), read_used(cuda, b.of.dqkv, self.tokens()))
    }
}

/// The CPU's output.
pub struct Forward<E> {
    pub out: Vec<E>,
    pub lse: Vec<f32>,
}

impl<E: Element> Forward<E> {
    pub fn on_the_cpu(host: &Host<E>) -> Self {
        let (t, heads) = (host.tokens(), host.heads);
        let (mut out, mut lse) = (vec![E::from_f32(0.0); t * heads.width()], vec![0.0; t * heads.heads]);
        attention::forward(&host.qkv, &host.cu_seqlens(), heads, &mut out, &mut lse);
        Self { out, lse }
    }
}
