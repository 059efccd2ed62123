//! The CPU engine: the arena in host memory, each operation a rayon loop or a matrix product.

mod head;
mod projection;
mod update;

use super::*;
use crate::arena::{Memory, Plan};
use crate::dtype::with_element;
use crate::ops::attention::{Saved, tiled};
use crate::ops::awake::awake;
use crate::ops::grad_norm::{self, GradNorm};
use crate::ops::linear::Weight;
use crate::ops::tile::Level;
use crate::ops::{attention, bias, convert, embedding, linear, noise, places, rmsnorm, rope};
use half::bf16;

/// The processor. bf16 goes through its matrix unit and fp32 through its vectors; fp16 is widened for them, and rounded
/// where the kernels round.
///
/// Work is spread over the rayon pool of the calling thread.
pub struct Cpu {
    memory: Memory,
    dtype: DType,
    params: StepParams,
    output: StepOutput,
    norm: GradNorm,
    loss_scale: LossScale,
    level: Level,
}

impl Cpu {
    /// Reserves the plan's memory; pages are touched as they are used.
    ///
    /// # Errors
    /// [`Error::Run`] when there is no such amount of memory.
    pub fn new(plan: &Plan, dtype: DType) -> Result<Self> {
        Ok(Self {
            memory: Memory::new(plan.bytes())?,
            dtype,
            params: bytemuck::Zeroable::zeroed(),
            output: StepOutput::default(),
            norm: GradNorm { norm: 0.0, scale: 1.0, skip: 0 },
            loss_scale: LossScale::default(),
            level: Level::best(),
        })
    }

    /// The rows in use of an activation.
    fn active(&self, t: Tensor) -> Tensor {
        t.head(self.params.tokens as usize)
    }

    /// The entries in use of a per-token row.
    fn per_token(&self, t: Tensor) -> Tensor {
        Tensor { cols: self.params.tokens as usize, ..t }
    }

    fn accumulates(&self) -> bool {
        self.params.accumulate != 0
    }

    /// `head` gives the first `n` entries of a `[1, capacity]` list.
    fn list(t: Tensor, n: u32) -> Tensor {
        assert!(n as usize <= t.cols, "{n} entries in a list of {}", t.cols);
        Tensor { cols: n as usize, ..t }
    }
}

fn expect_dtype(op: &'static str, t: Tensor, want: DType) -> Result<()> {
    if t.dtype == want {
        return Ok(());
    }
    let rule = "the buffer type that was planned for this operation";
    Err(Error::Unsupported { op, dim: "dtype", got: format!("{:?}", t.dtype), rule })
}

impl Backend for Cpu {
    fn activation_dtype(&self) -> DType {
        self.dtype
    }

    fn upload(&mut self, to: Tensor, bytes: &[u8]) -> Result<()> {
        self.memory.bytes_mut(to)[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn download(&mut self, from: Tensor, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(&self.memory.bytes(from)[..bytes.len()]);
        Ok(())
    }

    fn set_params(&mut self, params: &StepParams) -> Result<()> {
        self.params = *params;
        Ok(())
    }

    fn take_output(&mut self) -> Result<StepOutput> {
        let output = std::mem::take(&mut self.output);
        Ok(StepOutput { loss_scale: self.loss_scale, ..output })
    }

    fn set_loss_scale(&mut self, scale: LossScale) -> Result<()> {
        self.loss_scale = scale;
        Ok(())
    }

    fn run(&mut self, _: Part, operations: &mut dyn FnMut(&mut dyn Backend) -> Result<()>) -> Result<()> {
        awake(|| operations(self))
    }

    fn zero(&mut self, t: Tensor) -> Result<()> {
        let t = self.active(t);
        self.memory.bytes_mut(t).fill(0);
        Ok(())
    }

    fn embedding_forward(&mut self, batch: &BatchBuffers, w: Tensor, x: Tensor) -> Result<()> {
        let c = w.cols;
        let x = self.active(x);
        x.expect("embedding_forward", "x", [x.rows, c])?;
        let ([ids, weight], [x]) = self.memory.lend([Self::list(batch.ids, self.params.tokens), w], [x]);
        if w.dtype == DType::Q8_0 {
            embedding::forward_q8_0(ids.get(), weight.get(), x.get(), c);
            return Ok(());
        }
        with_element!(w.dtype, E => embedding::forward::<E>(ids.get(), weight.get(), x.get(), c));
        Ok(())
    }

    fn embedding_noise(&mut self, batch: &BatchBuffers, alpha: f32, x: Tensor) -> Result<()> {
        let x = self.active(x);
        let (bounds, key) = (Self::list(batch.cu_seqlens, self.params.sequences + 1), self.params.noise_key);
        let ([bounds], [out]) = self.memory.lend([bounds], [x]);
        noise::embedding(alpha, key, bounds.get(), out.get(), x.cols);
        Ok(())
    }

    fn embedding_backward(&mut self, batch: &BatchBuffers, dx: Tensor, dw: Tensor, tied: bool) -> Result<()> {
        let (dx, tokens) = (self.active(dx), self.params.tokens);
        dx.expect("embedding_backward", "dx", [dx.rows, dw.cols])?;
        let add = tied || self.accumulates();
        let lists = [Self::list(batch.ids, tokens), Self::list(batch.by_id, tokens)];
        let starts = Self::list(batch.id_starts, self.params.distinct_ids + 1);
        let ([ids, by_id, starts, dx], [grad]) = self.memory.lend([lists[0], lists[1], starts, dx], [dw]);
        embedding::backward(ids.get(), by_id.get(), starts.get(), dx.get(), grad.get(), dw.cols, add);
        Ok(())
    }

    fn rmsnorm_forward(&mut self, x: Tensor, w: Tensor, eps: f32, y: Tensor, rstd: Tensor) -> Result<()> {
        let (x, y, rstd) = (self.active(x), self.active(y), self.per_token(rstd));
        x.expect("rmsnorm_forward", "x", [y.rows, w.cols])?;
        y.expect("rmsnorm_forward", "y", [x.rows, w.cols])?;
        expect_dtype("rmsnorm_forward", y, w.dtype)?;
        let ([x, weight], [y, rstd]) = self.memory.lend([x, w], [y, rstd]);
        with_element!(w.dtype, E => rmsnorm::forward::<E>(x.get(), weight.get(), eps, y.get(), rstd.get()));
        Ok(())
    }

    fn rmsnorm_backward(&mut self, args: RmsNormBackward) -> Result<()> {
        let op = "rmsnorm_backward";
        let (x, dy, dx) = (self.active(args.x), self.active(args.dy), self.active(args.dx));
        let rstd = self.per_token(args.rstd);
        let (w, add) = (args.w, self.accumulates());
        for (name, t) in [("x", x), ("dy", dy), ("dx", dx)] {
            t.expect(op, name, [x.rows, w.cols])?;
        }
        let ([input, weight, scales, grad], [out]) = self.memory.lend([x, w, rstd, dy], [dx]);
        with_element!(w.dtype, E => {
            rmsnorm::backward_input::<E>(input.get(), weight.get(), scales.get(), grad.get(), out.get());
        });
        if let Some(dw) = args.dw {
            dw.expect(op, "dw", [1, w.cols])?;
            let ([x, rstd, dy], [dw, partials]) = self.memory.lend([x, rstd, dy], [dw, args.partials]);
            with_element!(w.dtype, E => {
                rmsnorm::backward_weight::<E>(x.get(), rstd.get(), dy.get(), dw.get(), partials.get(), add);
            });
        }
        if let Some(rounded) = args.dx_rounded {
            let rounded = self.active(rounded);
            let ([dx], [out]) = self.memory.lend([dx], [rounded]);
            with_element!(rounded.dtype, E => {
                convert::round::<E>(dx.get(), out.get());
            });
        }
        Ok(())
    }

    fn linear(&mut self, x: Tensor, w: Tensor, y: Tensor) -> Result<()> {
        self.affine("linear", x, w.into(), y)
    }

    fn linear_residual(&mut self, x: Tensor, w: Projection, residual: Tensor, y: Tensor) -> Result<()> {
        self.residual(x, w, residual, y)
    }

    fn linear_input_gradient(&mut self, dy: Tensor, w: Projection, dx: Tensor) -> Result<()> {
        self.input_gradient(dy, w, dx)
    }

    fn linear_weight_gradient(&mut self, dy: Tensor, x: Tensor, dw: Tensor) -> Result<()> {
        let (dy, x, add) = (self.active(dy), self.active(x), self.accumulates());
        dw.expect("linear_weight_gradient", "dw", [dy.cols, x.cols])?;
        expect_dtype("linear_weight_gradient", dy, x.dtype)?;
        let level = self.level;
        let ([grad, input], [out]) = self.memory.lend([dy, x], [dw]);
        with_element!(x.dtype, E => {
            linear::weight_gradient::<E>(level, grad.get(), input.get(), out.get(), x.cols, add);
        });
        Ok(())
    }

    fn bias_gradient(&mut self, dy: Tensor, db: Tensor, partials: Tensor) -> Result<()> {
        let (dy, add) = (self.active(dy), self.accumulates());
        db.expect("bias_gradient", "db", [1, dy.cols])?;
        partials.expect("bias_gradient", "partials", [partials.rows, dy.cols])?;
        let ([grad], [db, partials]) = self.memory.lend([dy], [db, partials]);
        with_element!(dy.dtype, E => bias::gradient::<E>(grad.get(), db.get(), partials.get(), add));
        Ok(())
    }

    fn linear_rope(
        &mut self,
        batch: &BatchBuffers,
        heads: Heads,
        rope: RopeTable,
        x: Tensor,
        w: Projection,
        qkv: Tensor,
    ) -> Result<()> {
        self.rotated(batch, heads, rope, x, w, qkv)
    }

    fn attention_forward(
        &mut self,
        batch: &BatchBuffers,
        heads: Heads,
        qkv: Tensor,
        out: Tensor,
        lse: Tensor,
    ) -> Result<()> {
        let (qkv, out, lse) = (self.active(qkv), self.active(out), self.active(lse));
        qkv.expect("attention_forward", "qkv", [out.rows, heads.qkv_width()])?;
        out.expect("attention_forward", "out", [qkv.rows, heads.width()])?;
        lse.expect("attention_forward", "lse", [qkv.rows, heads.heads])?;
        let bounds = Self::list(batch.cu_seqlens, self.params.sequences + 1);
        let level = self.level;
        let ([input, bounds], [output, lse]) = self.memory.lend([qkv, bounds], [out, lse]);
        let bounds = bounds.get();
        match qkv.dtype {
            DType::F32 => {
                tiled::forward::<f32>(level, input.get(), bounds, heads, output.get(), lse.get());
            }
            DType::BF16 => {
                tiled::forward::<bf16>(level, input.get(), bounds, heads, output.get(), lse.get());
            }
            _ => with_element!(qkv.dtype, E => {
                attention::forward::<E>(input.get(), bounds, heads, output.get(), lse.get());
            }),
        }
        Ok(())
    }

    fn attention_backward(
        &mut self,
        batch: &BatchBuffers,
        heads: Heads,
        rope: RopeTable,
        args: AttentionBackward,
    ) -> Result<()> {
        let op = "attention_backward";
        let [qkv, out, lse] = [args.qkv, args.out, args.lse].map(|t| self.active(t));
        let [dout, dqkv, delta] = [args.dout, args.dqkv, args.delta].map(|t| self.active(t));
        qkv.expect(op, "qkv", [dqkv.rows, heads.qkv_width()])?;
        dqkv.expect(op, "dqkv", [qkv.rows, heads.qkv_width()])?;
        dout.expect(op, "dout", [qkv.rows, heads.width()])?;
        let bounds = Self::list(batch.cu_seqlens, self.params.sequences + 1);
        let positions = Self::list(batch.positions, self.params.tokens);
        let reads = [qkv, out, lse, dout, bounds, positions, rope.cos, rope.sin];
        let level = self.level;
        let ([q, o, l, d, bounds, positions, cos, sin], [dq, delta]) = self.memory.lend(reads, [dqkv, delta]);
        let (bounds, positions) = (bounds.get(), positions.get());
        let table = rope::Table { cos: cos.get(), sin: sin.get() };
        match qkv.dtype {
            DType::F32 => {
                let saved = Saved::<f32> { qkv: q.get(), out: o.get(), lse: l.get(), dout: d.get() };
                tiled::backward(level, &saved, bounds, positions, heads, table, dq.get());
            }
            DType::BF16 => {
                let saved = Saved::<bf16> { qkv: q.get(), out: o.get(), lse: l.get(), dout: d.get() };
                tiled::backward(level, &saved, bounds, positions, heads, table, dq.get());
            }
            _ => with_element!(qkv.dtype, E => {
                let saved = Saved::<E> { qkv: q.get(), out: o.get(), lse: l.get(), dout: d.get() };
                attention::backward(&saved, bounds, positions, heads, table, delta.get(), dq.get());
            }),
        }
        Ok(())
    }

    fn attention_cached(
        &mut self,
        heads: Heads,
        sequences: &[CachedSequence],
        qkv: Tensor,
        cache: KvCache,
        out: Tensor,
    ) -> Result<()> {
        let (qkv, out) = (self.active(qkv), self.active(out));
        qkv.expect("attention_cached", "qkv", [out.rows, heads.qkv_width()])?;
        cache.expect(qkv.rows, sequences)?;
        let ([input], [keys, values, output]) = self.memory.lend([qkv], [cache.keys, cache.values, out]);
        with_element!(qkv.dtype, E => {
            let (qkv, keys, values) = (input.get::<E>(), keys.get(), values.get());
            attention::cached(qkv, heads, sequences, cache.positions(), keys, values, output.get());
        });
        Ok(())
    }

    fn linear_swiglu(&mut self, x: Tensor, w: Projection, gate_up: Tensor, act: Tensor) -> Result<()> {
        self.gated(x, w, gate_up, act)
    }

    fn linear_swiglu_backward(&mut self, args: SwigluBackward) -> Result<()> {
        self.gated_backward(&args)
    }

    fn linear_cross_entropy(&mut self, batch: &BatchBuffers, args: LinearCrossEntropy) -> Result<()> {
        with_element!(args.w.dtype, E => self.head::<E>(batch, &args))
    }

    fn logits(&mut self, x: Tensor, w: Tensor, logits: Tensor) -> Result<()> {
        let tokens = self.params.tokens as usize;
        let n = logits.rows.min(tokens);
        let last = Tensor { offset: x.offset + (tokens - n) * x.cols * x.dtype.size(), rows: n, ..x };
        let logits = logits.head(n);
        logits.expect("logits", "logits", [n, w.rows])?;
        let level = self.level;
        let ([input, weight], [output]) = self.memory.lend([last, w], [logits]);
        with_element!(x.dtype, E => {
            linear::forward_f32::<E>(level, input.get(), Weight::of(weight), output.get(), w.cols);
        });
        Ok(())
    }

    fn dropout(&mut self, x: Tensor, dropout: Dropout, y: Tensor) -> Result<()> {
        let (x, y, key) = (self.active(x), self.active(y), self.params.noise_key);
        x.expect("dropout", "x", [y.rows, y.cols])?;
        expect_dtype("dropout", y, x.dtype)?;
        let ([input], [out]) = self.memory.lend([x], [y]);
        with_element!(x.dtype, E => noise::dropout::<E>(input.get(), dropout, key, out.get(), x.cols));
        Ok(())
    }

    fn spread(&mut self, at: Places) -> Result<()> {
        at.expect("spread")?;
        let widths = [at.narrow.cols, at.wide.cols];
        let ([narrow], [wide]) = self.memory.lend([at.narrow], [at.wide]);
        with_element!(at.wide.dtype, E => {
            places::spread::<E>(narrow.get(), wide.get(), widths, at.column, at.factor);
        });
        Ok(())
    }

    fn gather(&mut self, at: Places) -> Result<()> {
        at.expect("gather")?;
        let widths = [at.narrow.cols, at.wide.cols];
        let ([wide], [narrow]) = self.memory.lend([at.wide], [at.narrow]);
        places::gather(wide.get(), narrow.get(), widths, at.column, at.factor);
        Ok(())
    }

    fn gradient_norm(&mut self, grads: Tensor) -> Result<()> {
        let sum = grad_norm::sum_of_squares(self.memory.get(grads));
        self.norm = GradNorm::new(sum, self.loss_scale.value, f64::from(self.params.max_grad_norm));
        self.loss_scale = self.loss_scale.after(self.norm.skip != 0);
        self.output.grad_norm = self.norm.norm;
        self.output.skipped = self.norm.skip != 0;
        Ok(())
    }

    fn adamw(&mut self, rule: UpdateRule, weights: &[Trainable]) -> Result<()> {
        if self.norm.skip != 0 {
            return Ok(());
        }
        for weight in weights {
            with_element!(weight.working.dtype, E => self.update::<E>(rule, weight)?);
        }
        Ok(())
    }
}
