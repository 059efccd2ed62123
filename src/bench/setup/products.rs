//! Products with a weight, and the head.

use super::{Buffers, Launch, below};
use crate::arena::Tensor;
use crate::backend::{BatchBuffers, HeadGradients, LinearCrossEntropy, RopeTable, SwigluBackward};
use crate::bench::operation::Product;
use crate::dtype::DType;
use crate::ops::cross_entropy_launch::{self, HeadRungs};
use crate::ops::linear_launch::{self, Rotation, Rows, WORKSPACE_BYTES};

impl Buffers {
    pub(super) fn linear(&mut self, product: Product, t: usize, inputs: usize, outputs: usize) -> Launch {
        let (a, rows) = (self.a, Rows::Tokens);
        let w = match product {
            Product::WeightGradient => self.out(outputs, inputs, DType::F32),
            _ => self.weight(outputs, inputs),
        };
        // Rows of the head are the positions in the loss, here as many as there are.
        self.params.tokens = u32::try_from(t).expect("at most the tokens");
        match product {
            Product::Wide => {
                let (x, y) = (self.activation(t, inputs), self.out(t, outputs, DType::F32));
                Launch::new(
                    move |cuda, rung| linear_launch::linear_wide(cuda, rung, rows, x, w, y),
                    move |b| b.logits(x, w, y),
                )
            }
            Product::Residual => {
                let (x, residual) = (self.activation(t, inputs), self.wide(t, outputs));
                let y = self.out(t, outputs, DType::F32);
                Launch::new(
                    move |cuda, rung| linear_launch::linear_residual(cuda, rung, x, w, residual, y),
                    move |b| b.linear_residual(x, w.into(), residual, y),
                )
            }
            Product::Rope(heads) => {
                let (x, y) = (self.activation(t, inputs), self.out(t, outputs, a));
                let [positions, cos, sin] = self.rotation(t, heads.head_dim / 2);
                let rotation = Rotation { heads, positions, cos, sin };
                let (batch, table) = (BatchBuffers { positions, ..self.batch() }, RopeTable { cos, sin });
                Launch::new(
                    move |cuda, rung| linear_launch::linear_rope(cuda, rung, rotation, x, w, y),
                    move |b| b.linear_rope(&batch, heads, table, x, w.into(), y),
                )
            }
            Product::Swiglu => {
                let (x, y) = (self.activation(t, inputs), self.out(t, outputs, a));
                let act = self.out(t, outputs / 2, a);
                Launch::new(
                    move |cuda, rung| linear_launch::linear_swiglu(cuda, rung, x, w, y, act),
                    move |b| b.linear_swiglu(x, w.into(), y, act),
                )
            }
            Product::InputGradient => {
                let (dy, dx) = (self.activation(t, outputs), self.out(t, inputs, a));
                Launch::new(
                    move |cuda, rung| linear_launch::input_gradient(cuda, rung, rows, dy, w, dx),
                    move |b| b.linear_input_gradient(dy, w.into(), dx),
                )
            }
            Product::SwigluBackward => {
                let (dy, gate_up) = (self.activation(t, outputs), self.activation(t, 2 * inputs));
                let (act, dgate_up) = (self.out(t, inputs, a), self.out(t, 2 * inputs, a));
                let of = SwigluBackward { dy, w, adapter: None, gate_up, act, act_is_kept: false, dgate_up };
                Launch::new(
                    move |cuda, rung| {
                        linear_launch::swiglu_backward(cuda, rung, dy, w, gate_up, Some(act), dgate_up)
                    },
                    move |b| b.linear_swiglu_backward(of),
                )
            }
            Product::WeightGradient => {
                self.plan.reserve_workspace(WORKSPACE_BYTES);
                let (dy, x) = (self.activation(t, outputs), self.activation(t, inputs));
                Launch::new(
                    move |cuda, rung| linear_launch::weight_gradient(cuda, rung, rows, dy, x, w),
                    move |b| b.linear_weight_gradient(dy, x, w),
                )
            }
        }
    }

    /// Positions, and numbers in place of cosines and sines.
    pub(super) fn rotation(&mut self, t: usize, half: usize) -> [Tensor; 3] {
        [self.ascending(t), self.wide(t, half), self.wide(t, half)]
    }

    pub(super) fn cross_entropy(&mut self, t: usize, vocab: usize) -> Launch {
        const UNREAD: usize = 8; // columns of buffers that only the products of the head read
        let lists = [self.list(below(vocab, t)), self.ascending(t)];
        let (x, logits) = (self.out(t, UNREAD, self.a), self.wide(t, vocab));
        let args = LinearCrossEntropy {
            x,
            w: self.out(vocab, UNREAD, self.a),
            losses: self.out(1, t, DType::F32),
            entropies: self.out(1, t, DType::F32),
            gradients: Some(HeadGradients {
                dx: x,
                dw: Some(x),
                dlogits: self.out(t, vocab, self.a),
                dx_chunk: x,
            }),
            x_chunk: x,
            logits,
        };
        Launch::of_gpu(move |cuda, rung| cross_entropy_launch::launch_first_rows(cuda, rung, lists, &args))
    }

    pub(super) fn head(&mut self, t: usize, c: usize, vocab: usize) -> Launch {
        let [targets, loss_rows] = [self.list(below(vocab, t)), self.ascending(t)];
        let (x, w, logits) = (self.activation(t, c), self.weight(vocab, c), self.out(t, vocab, DType::F32));
        let dlogits = if self.a == DType::F32 { logits } else { self.out(t, vocab, self.a) };
        let (dx, dx_chunk) = (self.out(t, c, self.a), self.out(t, c, self.a));
        let gradients = HeadGradients { dx, dw: Some(self.out(vocab, c, DType::F32)), dlogits, dx_chunk };
        let args = LinearCrossEntropy {
            x,
            w,
            losses: self.out(1, t, DType::F32),
            entropies: self.out(1, t, DType::F32),
            gradients: Some(gradients),
            x_chunk: self.out(t, c, self.a),
            logits,
        };
        self.plan.reserve_workspace(WORKSPACE_BYTES);
        let tokens = u32::try_from(t).expect("at most the tokens");
        (self.params.tokens, self.params.supervised) = (tokens, tokens);
        let batch = BatchBuffers { targets, loss_rows, ..self.batch() };
        Launch::new(
            move |cuda, rung| {
                let rungs = HeadRungs { rows: rung, products: rung };
                cross_entropy_launch::launch(cuda, rungs, [targets, loss_rows], &args)
            },
            move |b| b.linear_cross_entropy(&batch, args),
        )
    }
}
