//! The forward and backward pass over one micro-batch that was fed before.

use super::{Fused, Layer, Model};
use crate::arena::Tensor;
use crate::backend::{
    AttentionBackward, Backend, CachedSequence, KvCache, LowRank, RmsNormBackward, SwigluBackward,
};
use crate::cuda::range;
use crate::error::Result;

/// What attention looks at, and whether the pass is one of training.
#[derive(Clone, Copy)]
enum Attend<'a> {
    /// The sequences of the micro-batch; with noise and dropout, where they are wanted.
    Train,
    /// The sequences of the micro-batch.
    Batch,
    /// Sequences of which tokens are in the caches, one a layer.
    Cached { sequences: &'a [CachedSequence], caches: &'a [KvCache] },
}

impl Model {
    /// Loss and accuracy of the micro-batch, into [`Backend::take_output`]. No gradients.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn evaluate(&self, b: &mut dyn Backend) -> Result<()> {
        self.forward(b, Attend::Batch)?;
        b.linear_cross_entropy(&self.batch, self.cross_entropy(false))
    }

    /// Loss, accuracy, and the gradient of every weight, overwritten or added to as `params.accumulate` says.
    ///
    /// # Errors
    /// Those of the backend.
    ///
    /// # Panics
    /// If the plan was not for training.
    pub fn train(&self, b: &mut dyn Backend) -> Result<()> {
        self.forward(b, Attend::Train)?;
        b.linear_cross_entropy(&self.batch, self.cross_entropy(true))?;
        self.backward(b)
    }

    /// Runs new tokens, as many of each of these sequences, that the caches, one a layer, hold the beginning of.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn extend(
        &self,
        b: &mut dyn Backend,
        sequences: &[CachedSequence],
        caches: &[KvCache],
    ) -> Result<()> {
        self.forward(b, Attend::Cached { sequences, caches })
    }

    /// Logits of the last `logits.rows` tokens of the last pass, f32.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn logits(&self, b: &mut dyn Backend, logits: Tensor) -> Result<()> {
        b.logits(self.scratch.norm, self.head.w, logits)
    }

    /// Losses of the first `n` supervised tokens of the last pass, in their order, f32.
    pub(crate) fn token_losses(&self, n: usize) -> Tensor {
        Tensor { cols: n, ..self.scratch.losses }
    }

    /// Residual stream after block `l`.
    fn after(&self, l: usize) -> Tensor {
        self.layers.get(l + 1).map_or(self.scratch.last, |next| next.kept.x)
    }

    /// Up to the output of the last norm.
    fn forward(&self, b: &mut dyn Backend, attend: Attend<'_>) -> Result<()> {
        let first = self.layers[0].kept.x;
        b.embedding_forward(&self.batch, self.embedding.w, first)?;
        if self.neftune_alpha > 0.0 && matches!(attend, Attend::Train) {
            b.embedding_noise(&self.batch, self.neftune_alpha, first)?;
        }
        for l in 0..self.layers.len() {
            self.block_forward(b, l, attend)?;
        }
        let s = &self.scratch;
        b.rmsnorm_forward(s.last, self.norm.w, self.config.rms_norm_eps, s.norm, s.rstd)
    }

    fn block_forward(&self, b: &mut dyn Backend, l: usize, attend: Attend<'_>) -> Result<()> {
        let _range = range(format_args!("layer {l} forward"));
        let (layer, eps) = (&self.layers[l], self.config.rms_norm_eps);
        let (k, heads, training) = (&layer.kept, self.heads(), matches!(attend, Attend::Train));
        b.rmsnorm_forward(k.x, layer.norm1.w, eps, k.norm1, k.rstd1)?;
        let qkv = self.projection(b, &layer.qkv, k.norm1, training)?;
        b.linear_rope(&self.batch, heads, self.rope, k.norm1, qkv, k.qkv)?;
        match attend {
            Attend::Train | Attend::Batch => {
                b.attention_forward(&self.batch, heads, k.qkv, k.attention, k.lse)?
            }
            Attend::Cached { sequences, caches } => {
                b.attention_cached(heads, sequences, k.qkv, caches[l], k.attention)?;
            }
        }
        let o = self.projection(b, &layer.o, k.attention, training)?;
        b.linear_residual(k.attention, o, k.x, k.mid)?;
        b.rmsnorm_forward(k.mid, layer.norm2.w, eps, k.norm2, k.rstd2)?;
        let gate_up = self.projection(b, &layer.gate_up, k.norm2, training)?;
        b.linear_swiglu(k.norm2, gate_up, k.gate_up, k.act)?;
        let down = self.projection(b, &layer.down, k.act, training)?;
        b.linear_residual(k.act, down, k.mid, self.after(l))
    }

    /// From the head's gradient down to the embedding.
    fn backward(&self, b: &mut dyn Backend) -> Result<()> {
        let g = self.backward.as_ref().expect("planned for training");
        let s = &self.scratch;
        b.zero(g.dx)?;
        b.rmsnorm_backward(RmsNormBackward {
            x: s.last,
            w: self.norm.w,
            rstd: s.rstd,
            dy: g.head.dx,
            dx: g.dx,
            dx_rounded: self.rounded(),
            dw: self.norm.dw,
            partials: g.partials_of(self.config.hidden_size),
        })?;
        for (l, layer) in self.layers.iter().enumerate().rev() {
            let _range = range(format_args!("layer {l} backward"));
            self.mlp_backward(b, layer)?;
            self.attention_backward(b, layer)?;
        }
        let Some(dw) = self.embedding.dw else { return Ok(()) };
        b.embedding_backward(&self.batch, g.dx, dw, self.config.tie_word_embeddings)
    }

    /// Gradients of a projection of `x`: of its weight and, where it has one, its bias; or of its adapter, with the part
    /// of the latter in the input's gradient.
    fn projection_gradients(
        &self,
        b: &mut dyn Backend,
        dy: Tensor,
        x: Tensor,
        of: &Fused,
        part: Option<LowRank>,
    ) -> Result<()> {
        self.adapter_weight_gradients(b, dy, x, of, part)?;
        if let Some(dw) = of.dw {
            b.linear_weight_gradient(dy, x, dw)?;
        }
        let Some(dbias) = of.dbias else { return Ok(()) };
        let g = self.backward.as_ref().expect("planned for training");
        b.bias_gradient(dy, dbias, g.partials_of(dbias.cols))
    }

    /// `dx` as the matrix products read it, where that is another buffer.
    fn rounded(&self) -> Option<Tensor> {
        self.backward.as_ref().filter(|g| g.dx_a != g.dx).map(|g| g.dx_a)
    }

    /// Second half of a block: `dx` comes in as the gradient after it and leaves as the gradient between the halves.
    fn mlp_backward(&self, b: &mut dyn Backend, layer: &Layer) -> Result<()> {
        let g = self.backward.as_ref().expect("planned for training");
        let (k, eps) = (&layer.kept, self.config.rms_norm_eps);
        let down = self.adapter_gradient(b, g.dx_a, &layer.down)?;
        b.linear_swiglu_backward(SwigluBackward {
            dy: g.dx_a,
            w: layer.down.w,
            adapter: down,
            gate_up: k.gate_up,
            act: k.act,
            act_is_kept: !self.recomputes,
            dgate_up: g.dgate_up,
        })?;
        self.projection_gradients(b, g.dx_a, k.act, &layer.down, down)?;
        if self.recomputes {
            b.rmsnorm_forward(k.mid, layer.norm2.w, eps, k.norm2, k.rstd2)?;
        }
        let gate_up = self.adapter_gradient(b, g.dgate_up, &layer.gate_up)?;
        self.projection_gradients(b, g.dgate_up, k.norm2, &layer.gate_up, gate_up)?;
        b.linear_input_gradient(g.dgate_up, layer.gate_up.through(gate_up), g.dnorm)?;
        b.rmsnorm_backward(RmsNormBackward {
            x: k.mid,
            w: layer.norm2.w,
            rstd: k.rstd2,
            dy: g.dnorm,
            dx: g.dx,
            dx_rounded: self.rounded(),
            dw: layer.norm2.dw,
            partials: g.partials_of(self.config.hidden_size),
        })
    }

    /// First half of a block.
    fn attention_backward(&self, b: &mut dyn Backend, layer: &Layer) -> Result<()> {
        let g = self.backward.as_ref().expect("planned for training");
        let (k, eps) = (&layer.kept, self.config.rms_norm_eps);
        let o = self.adapter_gradient(b, g.dx_a, &layer.o)?;
        self.projection_gradients(b, g.dx_a, k.attention, &layer.o, o)?;
        b.linear_input_gradient(g.dx_a, layer.o.through(o), g.dattention)?;
        let saved = AttentionBackward {
            qkv: k.qkv,
            out: k.attention,
            lse: k.lse,
            dout: g.dattention,
            dqkv: g.dqkv,
            delta: g.delta,
        };
        b.attention_backward(&self.batch, self.heads(), self.rope, saved)?;
        if self.recomputes {
            b.rmsnorm_forward(k.x, layer.norm1.w, eps, k.norm1, k.rstd1)?;
        }
        let qkv = self.adapter_gradient(b, g.dqkv, &layer.qkv)?;
        self.projection_gradients(b, g.dqkv, k.norm1, &layer.qkv, qkv)?;
        b.linear_input_gradient(g.dqkv, layer.qkv.through(qkv), g.dnorm)?;
        b.rmsnorm_backward(RmsNormBackward {
            x: k.x,
            w: layer.norm1.w,
            rstd: k.rstd1,
            dy: g.dnorm,
            dx: g.dx,
            dx_rounded: self.rounded(),
            dw: layer.norm1.dw,
            partials: g.partials_of(self.config.hidden_size),
        })
    }
}
