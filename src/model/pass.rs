//! The forward and backward pass over one micro-batch that was fed before.

use super::{Fused, Layer, Model};
use crate::arena::Tensor;
use crate::backend::{AttentionBackward, Backend, CachedSequence, KvCache, RmsNormBackward, SwigluBackward};
use crate::cuda::range;
use crate::error::Result;

/// What attention looks at.
#[derive(Clone, Copy)]
enum Attend<'a> {
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
        self.forward(b, Attend::Batch)?;
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
        b.embedding_forward(&self.batch, self.embedding.w, self.layers[0].kept.x)?;
        for l in 0..self.layers.len() {
            self.block_forward(b, l, attend)?;
        }
        let s = &self.scratch;
        b.rmsnorm_forward(s.last, self.norm.w, self.config.rms_norm_eps, s.norm, s.rstd)
    }

    fn block_forward(&self, b: &mut dyn Backend, l: usize, attend: Attend<'_>) -> Result<()> {
        let _range = range(format_args!("layer {l} forward"));
        let (layer, eps) = (&self.layers[l], self.config.rms_norm_eps);
        let (k, heads) = (&layer.kept, self.heads());
        b.rmsnorm_forward(k.x, layer.norm1.w, eps, k.norm1, k.rstd1)?;
        b.linear_rope(&self.batch, heads, self.rope, k.norm1, layer.qkv.projection(), k.qkv)?;
        match attend {
            Attend::Batch => b.attention_forward(&self.batch, heads, k.qkv, k.attention, k.lse)?,
            Attend::Cached { sequences, caches } => {
                b.attention_cached(heads, sequences, k.qkv, caches[l], k.attention)?;
            }
        }
        b.linear_residual(k.attention, layer.o.projection(), k.x, k.mid)?;
        b.rmsnorm_forward(k.mid, layer.norm2.w, eps, k.norm2, k.rstd2)?;
        b.linear_swiglu(k.norm2, layer.gate_up.projection(), k.gate_up, k.act)?;
        b.linear_residual(k.act, layer.down.projection(), k.mid, self.after(l))
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
        b.embedding_backward(&self.batch, g.dx, grad(self.embedding.dw), self.config.tie_word_embeddings)
    }

    /// Gradients of a projection of `x`: of its weight and, where it has one, its bias.
    fn projection_gradients(&self, b: &mut dyn Backend, dy: Tensor, x: Tensor, of: &Fused) -> Result<()> {
        b.linear_weight_gradient(dy, x, grad(of.dw))?;
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
        b.linear_swiglu_backward(SwigluBackward {
            dy: g.dx_a,
            w: layer.down.w,
            adapter: None,
            gate_up: k.gate_up,
            act: k.act,
            act_is_kept: !self.recomputes,
            dact: g.dact,
            dgate_up: g.dgate_up,
        })?;
        self.projection_gradients(b, g.dx_a, k.act, &layer.down)?;
        if self.recomputes {
            b.rmsnorm_forward(k.mid, layer.norm2.w, eps, k.norm2, k.rstd2)?;
        }
        self.projection_gradients(b, g.dgate_up, k.norm2, &layer.gate_up)?;
        b.linear_input_gradient(g.dgate_up, layer.gate_up.w.into(), g.dnorm)?;
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
        self.projection_gradients(b, g.dx_a, k.attention, &layer.o)?;
        b.linear_input_gradient(g.dx_a, layer.o.w.into(), g.dattention)?;
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
        self.projection_gradients(b, g.dqkv, k.norm1, &layer.qkv)?;
        b.linear_input_gradient(g.dqkv, layer.qkv.w.into(), g.dnorm)?;
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

fn grad(dw: Option<Tensor>) -> Tensor {
    dw.expect("planned for training")
}
