//! The output head: logits, loss and gradients, a chunk of rows at a time.

use super::Cpu;
use crate::arena::Tensor;
use crate::backend::{BatchBuffers, LinearCrossEntropy};
use crate::error::Result;
use crate::ops::cross_entropy::{self, RowLoss};
use crate::ops::linear::{self, Operand, Weight};

impl Cpu {
    /// The head over all supervised positions, a chunk of logits at a time.
    pub(super) fn head<E: Operand>(&mut self, batch: &BatchBuffers, args: &LinearCrossEntropy) -> Result<()> {
        let supervised = self.params.supervised;
        let rows = self.memory.get::<u32>(Self::list(batch.loss_rows, supervised)).to_vec();
        let all = self.memory.get::<u32>(Self::list(batch.targets, self.params.tokens));
        let targets: Vec<u32> = rows.iter().map(|&r| all[r as usize]).collect();
        if let Some(g) = args.gradients {
            let dx = self.active(g.dx);
            self.memory.bytes_mut(dx).fill(0);
            if let Some(dw) = g.dw.filter(|_| rows.is_empty() && !self.accumulates()) {
                self.memory.get_mut::<f32>(dw).fill(0.0);
            }
        }
        let chunk = args.logits.rows;
        for (i, (rows, targets)) in rows.chunks(chunk).zip(targets.chunks(chunk)).enumerate() {
            self.head_chunk::<E>(args, rows, targets, i * chunk)?;
        }
        Ok(())
    }

    /// One chunk: gather, logits, loss and, when training, `dx` and `dw`.
    fn head_chunk<E: Operand>(
        &mut self,
        args: &LinearCrossEntropy,
        rows: &[u32],
        targets: &[u32],
        first: usize,
    ) -> Result<()> {
        let (n, w) = (rows.len(), args.w);
        let c = w.cols;
        let (x_chunk, logits) = (args.x_chunk.head(n), args.logits.head(n));
        let level = self.level;
        let ([x, head], [gathered, logits_out]) = self.memory.lend([args.x, w], [x_chunk, logits]);
        let (x, gathered, scores) = (x.get::<E>(), gathered.get::<E>(), logits_out.get::<f32>());
        for (to, &row) in gathered.chunks_exact_mut(c).zip(rows) {
            to.copy_from_slice(&x[row as usize * c..][..c]);
        }
        linear::forward_f32::<E>(level, gathered, Weight::of(head), scores, c);
        let losses = self.losses::<E>(args, n, targets);
        for row in &losses {
            self.output.loss_sum += f64::from(row.loss);
            self.output.entropy_sum += f64::from(row.entropy);
            self.output.correct += u64::from(row.correct);
        }
        let kept = |t: Tensor| Tensor { offset: t.offset + 4 * first, cols: n, ..t };
        let ([], [kept_losses, entropies]) = self.memory.lend([], [kept(args.losses), kept(args.entropies)]);
        for ((row, loss), entropy) in losses.iter().zip(kept_losses.get()).zip(entropies.get()) {
            (*loss, *entropy) = (row.loss, row.entropy);
        }
        let Some(g) = args.gradients else { return Ok(()) };

        let dlogits = g.dlogits.head(n);
        let add = first > 0 || self.accumulates();
        if let Some(dw) = g.dw {
            let ([d, x], [dw]) = self.memory.lend([dlogits, x_chunk], [dw]);
            linear::weight_gradient::<E>(level, d.get(), x.get(), dw.get(), c, add);
        }
        let ([d, head], [dx_chunk, dx]) = self.memory.lend([dlogits, w], [g.dx_chunk.head(n), g.dx]);
        let (dx_chunk, dx) = (dx_chunk.get::<E>(), dx.get::<E>());
        linear::input_gradient::<E>(level, d.get(), head.get(), None, dx_chunk, c);
        for (from, &row) in dx_chunk.chunks_exact(c).zip(rows) {
            dx[row as usize * c..][..c].copy_from_slice(from);
        }
        Ok(())
    }

    /// Losses of the first `n` rows of logits and, when training, their gradient.
    fn losses<E: Operand>(&mut self, args: &LinearCrossEntropy, n: usize, targets: &[u32]) -> Vec<RowLoss> {
        let (logits, v) = (args.logits.head(n), args.w.rows);
        let weight = args.gradients.map(|_| self.params.inverse_denominator * self.loss_scale.value);
        match (args.gradients, weight) {
            (Some(g), Some(weight)) if g.dlogits.offset != logits.offset => {
                let ([scores], [out]) = self.memory.lend([logits], [g.dlogits.head(n)]);
                cross_entropy::rows_into::<E>(scores.get(), out.get(), v, targets, weight)
            }
            _ => cross_entropy::rows(self.memory.get_mut(logits), v, targets, weight),
        }
    }
}
