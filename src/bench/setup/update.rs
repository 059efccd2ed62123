//! Gradient norm and optimizer.

use super::{Buffers, Launch, WEIGHT};
use crate::arena::Tensor;
use crate::backend::{Moments, Trainable, UpdateRule};
use crate::bench::fill::Fill;
use crate::bench::operation::MIN_8BIT_ELEMENTS;
use crate::cuda::{Cuda, Rung};
use crate::dtype::DType;
use crate::ops::adamw_8bit::BLOCK;
use crate::ops::adamw_launch::DeviceWeights;
use crate::ops::grad_norm::DeviceNorm;

impl Buffers {
    pub(super) fn grad_norm(&mut self, n: usize) -> Launch {
        let grads = self.filled(1, n, DType::F32, Fill::Normal(1e-3));
        let mut norm = None;
        let gpu = move |cuda: &Cuda, rung| {
            let norm = match &mut norm {
                Some(norm) => norm,
                none => none.insert(DeviceNorm::new(cuda, n)?),
            };
            norm.launch(cuda, rung, grads)
        };
        Launch::new(gpu, move |b| b.gradient_norm(grads))
    }

    pub(super) fn adamw(&mut self, rule: UpdateRule, weights: &[usize]) -> Launch {
        let grads = self.filled(1, weights.iter().sum(), DType::F32, Fill::Normal(1e-3));
        let mut offset = grads.offset;
        let mut one = |n: usize| {
            let grad = Tensor { offset, cols: n, ..grads };
            offset += grad.bytes();
            let master = self.filled(1, n, DType::F32, Fill::Normal(WEIGHT));
            let working = if self.a == DType::F32 { master } else { self.out(1, n, self.a) };
            let moments = self.moments(rule, n);
            Trainable { master, working, grad, moments, decays: true }
        };
        let weights: Vec<Trainable> = weights.iter().map(|&n| one(n)).collect();
        let (mut table, of_backend, mut is_first) = (None, weights.clone(), true);
        // Without its norm a step may count as one to skip; in the first warm-up.
        let gpu = move |cuda: &Cuda, rung| {
            let table = match &mut table {
                Some(table) => table,
                none => {
                    DeviceNorm::new(cuda, grads.len())?.launch(cuda, Rung::Production, grads)?;
                    none.insert(DeviceWeights::new(cuda, rule, &weights)?)
                }
            };
            table.launch(cuda, rung)
        };
        Launch::new(gpu, move |b| {
            if std::mem::take(&mut is_first) {
                b.gradient_norm(grads)?;
            }
            b.adamw(rule, &of_backend)
        })
    }

    fn moments(&mut self, rule: UpdateRule, n: usize) -> Moments {
        let (small, smaller) = (Fill::Normal(1e-4), Fill::Positive(1e-8));
        if rule == UpdateRule::Torch || n < MIN_8BIT_ELEMENTS {
            let m = self.filled(1, n, DType::F32, small);
            return Moments::Full { m, v: self.filled(1, n, DType::F32, smaller) };
        }
        let blocks = n.div_ceil(BLOCK);
        Moments::Blockwise {
            m: self.filled(1, n, DType::U8, Fill::Normal(1.0)),
            v: self.filled(1, n, DType::U8, Fill::Normal(1.0)),
            m_absmax: self.filled(1, blocks, DType::F32, Fill::Positive(1e-4)),
            v_absmax: self.filled(1, blocks, DType::F32, smaller),
        }
    }
}
