//! Attention, forward and backward.

use super::{Buffers, Launch};
use crate::arena::Tensor;
use crate::backend::{AttentionBackward, BatchBuffers, RopeTable};
use crate::cuda::Rung;
use crate::dtype::DType;
use crate::ops::attention::Heads;
use crate::ops::attention_launch;

impl Buffers {
    /// Bounds of sequences of `length` tokens, the last of which may be shorter.
    fn sequences(&mut self, t: usize, length: usize) -> Tensor {
        let bounds = (0..t).step_by(length).chain([t]);
        let bounds: Vec<u32> = bounds.map(|i| u32::try_from(i).expect("at most the tokens")).collect();
        self.params.tokens = *bounds.last().expect("the end");
        self.params.sequences = u32::try_from(bounds.len() - 1).expect("at most the tokens");
        self.list(bounds)
    }

    pub(super) fn attention_forward(&mut self, heads: Heads, t: usize, length: usize) -> Launch {
        let (sequences, qkv) = (self.sequences(t, length), self.activation(t, heads.qkv_width()));
        let (out, lse) = (self.out(t, heads.width(), self.a), self.out(t, heads.heads, DType::F32));
        let batch = BatchBuffers { cu_seqlens: sequences, ..self.batch() };
        Launch::new(
            move |cuda, rung| attention_launch::forward(cuda, rung, heads, sequences, qkv, out, lse),
            move |b| b.attention_forward(&batch, heads, qkv, out, lse),
        )
    }

    pub(super) fn attention_backward(&mut self, heads: Heads, t: usize, length: usize) -> Launch {
        let sequences = self.sequences(t, length);
        let [positions, cos, sin] = self.rotation(t, heads.head_dim / 2);
        let of = AttentionBackward {
            qkv: self.activation(t, heads.qkv_width()),
            out: self.out(t, heads.width(), self.a),
            lse: self.out(t, heads.heads, DType::F32),
            dout: self.activation(t, heads.width()),
            dqkv: self.out(t, heads.qkv_width(), self.a),
            delta: self.out(t, heads.heads, DType::F32),
        };
        let (batch, table) =
            (BatchBuffers { cu_seqlens: sequences, positions, ..self.batch() }, RopeTable { cos, sin });
        // Output and log-sum-exp that belong to the scores; in the first warm-up.
        let mut is_first = [true; 2];
        Launch::new(
            move |cuda, rung| {
                if std::mem::take(&mut is_first[0]) {
                    let rung = Rung::Production;
                    attention_launch::forward(cuda, rung, heads, sequences, of.qkv, of.out, of.lse)?;
                }
                attention_launch::backward(cuda, rung, heads, sequences, positions, [cos, sin], of)
            },
            move |b| {
                if std::mem::take(&mut is_first[1]) {
                    b.attention_forward(&batch, heads, of.qkv, of.out, of.lse)?;
                }
                b.attention_backward(&batch, heads, table, of)
            },
        )
    }
}
