//! What an operation has to compute and to move, whatever kernel does it.

use crate::dtype::DType;
use crate::ops::attention::Heads;

/// A product with a weight, and what is fused with it (`kernels/gemm.cu`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// Logits, f32.
    Wide,
    /// Added to the residual stream, f32.
    Residual,
    /// Queries and keys rotated.
    Rope(Heads),
    /// Gate and up, and their product; `outputs` is both.
    Swiglu,
    /// Of the input.
    InputGradient,
    /// Of the down projection's input, and through SwiGLU; `inputs` is the width between.
    SwigluBackward,
    /// Of the weight.
    WeightGradient,
}

/// An operation and its dimensions: `t` tokens or rows, `c` columns.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as in the operations' own files")]
pub enum Operation {
    Zero {
        t: usize,
        c: usize,
    },
    Gather {
        t: usize,
        c: usize,
    },
    Scatter {
        t: usize,
        c: usize,
    },
    EmbeddingForward {
        t: usize,
        c: usize,
        vocab: usize,
    },
    /// Into a gradient that the head wrote before.
    EmbeddingBackward {
        t: usize,
        c: usize,
        vocab: usize,
    },
    NormForward {
        t: usize,
        c: usize,
    },
    NormBackward {
        t: usize,
        c: usize,
    },
    Linear {
        product: Product,
        t: usize,
        inputs: usize,
        outputs: usize,
    },
    AttentionForward {
        heads: Heads,
        t: usize,
        length: usize,
    },
    AttentionBackward {
        heads: Heads,
        t: usize,
        length: usize,
    },
    CrossEntropy {
        t: usize,
        vocab: usize,
    },
    /// Gathering, logits, loss, both gradients, scattering: of rows that are all in the loss.
    Head {
        t: usize,
        c: usize,
        vocab: usize,
    },
    GradNorm {
        weights: Vec<usize>,
    },
    /// fp32 moments, torch's rule.
    AdamW {
        weights: Vec<usize>,
    },
    /// 8-bit moments of weights of 4,096 elements and more.
    AdamW8bit {
        weights: Vec<usize>,
    },
}

/// What any kernel has to do: every input read once, every output written once, nothing computed twice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Multiplications and additions of the matrix products; 0 where memory alone counts. Causal attention counts half
    /// of the square, its backward pass five products of the forward pass's two, as FlashAttention's authors count.
    pub flops: f64,
    /// Bytes read.
    pub read: f64,
    /// Bytes written.
    pub written: f64,
}

impl Work {
    /// Read and written.
    pub fn bytes(&self) -> f64 {
        self.read + self.written
    }
}

/// Elements below which the optimizer keeps fp32 moments.
pub(super) const MIN_8BIT_ELEMENTS: usize = 4096;

impl Operation {
    /// The launch's name, which is also that of its kernels, less rung and type.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Zero { .. } => "rows_zero",
            Self::Gather { .. } => "rows_gather",
            Self::Scatter { .. } => "rows_scatter",
            Self::EmbeddingForward { .. } => "embedding_forward",
            Self::EmbeddingBackward { .. } => "embedding_backward",
            Self::NormForward { .. } => "rmsnorm_forward",
            Self::NormBackward { .. } => "rmsnorm_backward",
            Self::Linear { product, .. } => match product {
                Product::Wide => "linear_wide",
                Product::Residual => "linear_residual",
                Product::Rope(_) => "linear_rope",
                Product::Swiglu => "linear_swiglu",
                Product::InputGradient => "linear_input_gradient",
                Product::SwigluBackward => "linear_swiglu_backward",
                Product::WeightGradient => "linear_weight_gradient",
            },
            Self::AttentionForward { .. } => "attention_forward",
            Self::AttentionBackward { .. } => "attention_backward",
            Self::CrossEntropy { .. } => "cross_entropy",
            Self::Head { .. } => "linear_cross_entropy",
            Self::GradNorm { .. } => "grad_norm",
            Self::AdamW { .. } => "adamw",
            Self::AdamW8bit { .. } => "adamw_8bit",
        }
    }

    /// Dimensions by name, as figures of others are compared by. A product is M×N×K as its kernel computes it.
    pub fn shape(&self) -> Vec<(&'static str, usize)> {
        match self {
            Self::Linear { product, t, inputs, outputs } => {
                let [m, n, k] = match product {
                    Product::InputGradient | Product::SwigluBackward => [*t, *inputs, *outputs],
                    Product::WeightGradient => [*outputs, *inputs, *t],
                    _ => [*t, *outputs, *inputs],
                };
                vec![("m", m), ("n", n), ("k", k)]
            }
            Self::AttentionForward { heads, t, length } | Self::AttentionBackward { heads, t, length } => {
                vec![
                    ("tokens", *t),
                    ("sequence", *length),
                    ("heads", heads.heads),
                    ("kv_heads", heads.kv_heads),
                    ("head_dim", heads.head_dim),
                ]
            }
            Self::Zero { t, c } | Self::Gather { t, c } | Self::Scatter { t, c } => {
                vec![("rows", *t), ("columns", *c)]
            }
            Self::NormForward { t, c } | Self::NormBackward { t, c } => vec![("rows", *t), ("columns", *c)],
            Self::EmbeddingForward { t, c, vocab } | Self::EmbeddingBackward { t, c, vocab } => {
                vec![("rows", *t), ("columns", *c), ("vocabulary", *vocab)]
            }
            Self::CrossEntropy { t, vocab } => vec![("rows", *t), ("columns", *vocab)],
            Self::Head { t, c, vocab } => vec![("rows", *t), ("columns", *c), ("vocabulary", *vocab)],
            Self::GradNorm { weights } | Self::AdamW { weights } | Self::AdamW8bit { weights } => {
                vec![("parameters", weights.iter().sum())]
            }
        }
    }

    /// The one table of operations and bytes, for weights and activations of type `dtype`.
    pub fn work(&self, dtype: DType) -> Work {
        let a = dtype.size();
        // What is kept in fp32 and, where A is narrower, rounded beside it.
        let rounded = if dtype == DType::F32 { 0 } else { a };
        let (flops, read, written) = match self {
            Self::Zero { t, c } => (0, 0, 4 * t * c),
            Self::Gather { t, c } | Self::Scatter { t, c } => (0, a * t * c + 4 * t, a * t * c),
            Self::EmbeddingForward { t, c, .. } => (0, a * t * c + 4 * t, 4 * t * c),
            // Every row of the gradient that has a token: as many as there are tokens, at most the vocabulary's.
            Self::EmbeddingBackward { t, c, vocab } => {
                let rows = t.min(vocab);
                (0, 4 * t * c + 4 * rows * c + 4 * t, 4 * rows * c)
            }
            Self::NormForward { t, c } => (0, 4 * t * c + a * c, a * t * c + 4 * t),
            Self::NormBackward { t, c } => {
                (0, (8 + a) * t * c + 4 * t + a * c, (4 + rounded) * t * c + 4 * c)
            }
            Self::Linear { product, t, inputs, outputs } => product.work(a, *t, *inputs, *outputs),
            Self::AttentionForward { heads, t, length } => {
                let (qkv, out) = (heads.qkv_width(), heads.width());
                (2 * t * length * out, a * t * qkv, a * t * out + 4 * t * heads.heads)
            }
            Self::AttentionBackward { heads, t, length } => {
                let (qkv, out) = (heads.qkv_width(), heads.width());
                (5 * t * length * out, a * t * (qkv + 2 * out) + 4 * t * heads.heads, a * t * qkv)
            }
            Self::CrossEntropy { t, vocab } => (0, 4 * t * vocab + 8 * t, a * t * vocab + 8 * t),
            Self::Head { t, c, vocab } => {
                (6 * t * c * vocab, a * (t + vocab) * c + 8 * t, a * t * c + 4 * vocab * c + 8 * t)
            }
            Self::GradNorm { weights } => (0, 4 * weights.iter().sum::<usize>(), 0),
            Self::AdamW { weights } => {
                (0, 16 * weights.iter().sum::<usize>(), (12 + rounded) * weights.iter().sum::<usize>())
            }
            Self::AdamW8bit { weights } => {
                let small: usize = weights.iter().filter(|&&n| n < MIN_8BIT_ELEMENTS).sum();
                let large = weights.iter().sum::<usize>() - small;
                let absmax = 8 * (large / crate::ops::adamw_8bit::BLOCK);
                (0, 10 * large + absmax + 16 * small, (6 + rounded) * large + absmax + (12 + rounded) * small)
            }
        };
        Work { flops: flops as f64, read: read as f64, written: written as f64 }
    }
}

impl Product {
    fn work(self, a: usize, t: usize, inputs: usize, outputs: usize) -> (usize, usize, usize) {
        let (weight, x, y) = (inputs * outputs, t * inputs, t * outputs);
        let (read, written) = match self {
            Self::Wide => (a * (x + weight), 4 * y),
            Self::Residual => (a * (x + weight) + 4 * y, 4 * y),
            Self::Rope(_) => (a * (x + weight) + 4 * t, a * y),
            Self::Swiglu => (a * (x + weight), a * y + a * y / 2),
            Self::InputGradient => (a * (y + weight), a * x),
            Self::SwigluBackward => (a * (y + weight) + 2 * a * x, 3 * a * x),
            Self::WeightGradient => (a * (x + y), 4 * weight),
        };
        (2 * t * weight, read, written)
    }
}

#[cfg(test)]
mod tests {
    use super::super::suite::{SIZES, cases};
    use super::*;

    fn of_360m(name: &str) -> Vec<(f64, f64)> {
        let size = SIZES.iter().find(|size| size.name == "360m").unwrap();
        let cases = cases(size, 8192).into_iter().filter(|case| case.name() == name);
        cases.map(|case| case.operation.work(DType::BF16)).map(|work| (work.flops, work.bytes())).collect()
    }

    /// Bytes per parameter of the optimizer, with a master weight: 8 of it, 4 of the gradient, 2 of the working weight,
    /// and 4 or 16 of the moments, which is 18 or 30.
    #[test]
    fn the_optimizer_moves_what_its_header_says() {
        let n = 361_821_120.0;
        assert_eq!(of_360m("adamw")[0].1, 30.0 * n);
        let norms = 65.0 * 960.0; // fp32 moments
        let absmax = 16.0 / 256.0 * (n - norms);
        assert_eq!(of_360m("adamw_8bit")[0].1, 18.0 * (n - norms) + 30.0 * norms + absmax);
        assert_eq!(of_360m("grad_norm")[0].1, 4.0 * n);
        // In fp32 the weight is its own working copy.
        let adamw = Operation::AdamW { weights: vec![5000, 7] };
        let adamw_8bit = Operation::AdamW8bit { weights: vec![256 * 100, 7] };
        assert_eq!(adamw.work(DType::F32).bytes(), 28.0 * 5007.0);
        assert_eq!(adamw_8bit.work(DType::F32).bytes(), 16.0 * 25600.0 + 28.0 * 7.0 + 16.0 * 100.0);
    }

    /// Six operations per weight of a layer and token: two forward, two for each of the gradients.
    #[test]
    fn the_linear_layers_take_six_operations_per_weight_and_token() {
        let size = SIZES.iter().find(|size| size.name == "360m").unwrap();
        let linear = cases(size, 8192).into_iter().filter(|case| {
            matches!(case.operation, Operation::Linear { .. }) && case.place != Some("head".into())
        });
        let flops: f64 = linear.map(|case| case.operation.work(DType::BF16).flops).sum();
        assert_eq!(flops, 6.0 * 9_830_400.0 * 8192.0);
    }

    /// By the formulas of `kernels/rmsnorm.cu` and `attention.cu`, in numbers.
    #[test]
    fn rows_move_what_their_headers_say() {
        let tc = 8192.0 * 960.0;
        assert_eq!(of_360m("rmsnorm_forward")[0].1, 6.0 * tc + 2.0 * 960.0 + 4.0 * 8192.0);
        assert_eq!(of_360m("rmsnorm_backward")[0].1, 16.0 * tc + 4.0 * 8192.0 + 6.0 * 960.0);
        // Half of 512×512 scores, two products of 64, 15 heads, 16 sequences.
        let causal = 0.5 * 512.0 * 512.0 * 2.0 * 2.0 * 64.0 * 15.0 * 16.0;
        assert_eq!(of_360m("attention_forward/512")[0].0, causal);
        assert_eq!(of_360m("attention_backward/512")[0].0, 2.5 * causal);
    }
}
