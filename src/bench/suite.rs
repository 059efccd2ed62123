//! The operations of the training step at the shapes of SmolLM2.

use super::operation::{Operation, Product};
use crate::config::{ModelConfig, RopeScaling};
use crate::ops::attention::Heads;

/// Dimensions of a model; letters as in [`crate::backend`].
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// As on the command line.
    pub name: &'static str,
    /// Decoder layers.
    pub layers: usize,
    /// hidden_size.
    pub c: usize,
    /// intermediate_size.
    pub f: usize,
    /// Heads.
    pub heads: Heads,
    /// vocab_size.
    pub vocab: usize,
}

impl Size {
    /// With SmolLM2's constants.
    pub fn config(&self) -> ModelConfig {
        ModelConfig {
            hidden_size: self.c,
            intermediate_size: self.f,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads.heads,
            num_key_value_heads: self.heads.kv_heads,
            head_dim: self.heads.head_dim,
            vocab_size: self.vocab,
            max_position_embeddings: 8192,
            rms_norm_eps: 1e-5,
            rope_theta: 100_000.0,
            rope_scaling: RopeScaling::Default,
            tie_word_embeddings: true,
            attention_bias: false,
            mlp_bias: false,
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
            pad_token_id: Some(2),
        }
    }
}

const fn smollm2(name: &'static str, layers: usize, [c, f]: [usize; 2], [h, k]: [usize; 2]) -> Size {
    Size { name, layers, c, f, heads: Heads { heads: h, kv_heads: k, head_dim: 64 }, vocab: 49_152 }
}

/// SmolLM2, and one to try the command with: under the emulator a model's shapes would take hours.
pub static SIZES: [Size; 4] = [
    smollm2("135m", 30, [576, 1536], [9, 3]),
    smollm2("360m", 32, [960, 2560], [15, 5]),
    smollm2("1.7b", 24, [2048, 8192], [32, 32]),
    Size { vocab: 96, ..smollm2("tiny", 1, [64, 96], [2, 1]) },
];

/// Rows of logits at a time, as the model plans them.
const LOGIT_ROWS: usize = 1024;

/// Lengths of the sequences that attention is timed with.
const LENGTHS: [usize; 2] = [512, 2048];

/// An operation at a place of the step.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Which model's shape it has.
    pub model: &'static str,
    /// With its dimensions.
    pub operation: Operation,
    /// Where one operation has several shapes.
    pub place: Option<String>,
    /// Tokens of the micro-batch.
    pub tokens: usize,
}

impl Case {
    /// `operation` or `operation/place`: what `--only` chooses by.
    pub fn name(&self) -> String {
        let name = self.operation.name();
        self.place.as_ref().map_or_else(|| name.to_owned(), |place| format!("{name}/{place}"))
    }

    /// The same place of a micro-batch with half the tokens; none below 256.
    pub(super) fn halved(&self) -> Option<Self> {
        let mut half = self.clone();
        half.tokens /= 2;
        match &mut half.operation {
            Operation::Linear { t, .. } | Operation::Head { t, .. } => *t /= 2,
            Operation::AttentionForward { t, length, .. }
            | Operation::AttentionBackward { t, length, .. } => {
                *t /= 2;
                *length = (*length).min(*t);
            }
            _ => return None,
        }
        (half.tokens >= 256).then_some(half)
    }
}

/// One of each shape, in the order of the step.
pub fn cases(size: &Size, tokens: usize) -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |operation, place: Option<&str>| {
        all.push(Case { model: size.name, operation, place: place.map(str::to_owned), tokens });
    };
    let Size { c, f, heads, vocab, .. } = *size;
    let (t, rows, width, out) = (tokens, tokens.min(LOGIT_ROWS), heads.qkv_width(), heads.width());
    let product = |product, inputs, outputs| Operation::Linear { product, t, inputs, outputs };
    let head = |product| Operation::Linear { product, t: rows, inputs: c, outputs: vocab };
    let mut lengths = LENGTHS.map(|length| length.min(t)).to_vec();
    lengths.dedup();

    add(Operation::EmbeddingForward { t, c, vocab }, None);
    add(Operation::NormForward { t, c }, None);
    add(product(Product::Rope(heads), c, width), Some("qkv"));
    for &length in &lengths {
        add(Operation::AttentionForward { heads, t, length }, Some(&length.to_string()));
    }
    add(product(Product::Residual, out, c), Some("o"));
    add(product(Product::Swiglu, c, 2 * f), Some("gate_up"));
    add(product(Product::Residual, f, c), Some("down"));

    add(Operation::Gather { t: rows, c }, Some("head"));
    add(head(Product::Wide), Some("head"));
    add(Operation::CrossEntropy { t: rows, vocab }, None);
    add(head(Product::InputGradient), Some("head"));
    add(head(Product::WeightGradient), Some("head"));
    add(Operation::Scatter { t: rows, c }, Some("head"));
    add(Operation::Head { t: rows, c, vocab }, None);

    add(Operation::Zero { t, c }, None);
    add(Operation::NormBackward { t, c }, None);
    add(product(Product::SwigluBackward, f, c), Some("down"));
    add(product(Product::WeightGradient, f, c), Some("down"));
    add(product(Product::InputGradient, c, 2 * f), Some("gate_up"));
    add(product(Product::WeightGradient, c, 2 * f), Some("gate_up"));
    add(product(Product::InputGradient, out, c), Some("o"));
    add(product(Product::WeightGradient, out, c), Some("o"));
    for &length in &lengths {
        add(Operation::AttentionBackward { heads, t, length }, Some(&length.to_string()));
    }
    add(product(Product::InputGradient, c, width), Some("qkv"));
    add(product(Product::WeightGradient, c, width), Some("qkv"));
    add(Operation::EmbeddingBackward { t, c, vocab }, None);

    add(Operation::GradNorm { weights: weights(size) }, None);
    add(Operation::AdamW8bit { weights: weights(size) }, None);
    add(Operation::AdamW { weights: weights(size) }, None);
    all
}

/// Elements of every weight, the head being the embedding.
fn weights(size: &Size) -> Vec<usize> {
    let Size { c, f, heads, .. } = *size;
    let (q, kv) = (heads.width(), heads.kv_heads * heads.head_dim);
    let layer = [c, q * c, kv * c, kv * c, c * q, c, f * c, f * c, c * f];
    let layers = layer.iter().copied().cycle().take(9 * size.layers);
    std::iter::once(size.vocab * c).chain(layers).chain([c]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_models_have_their_published_numbers_of_parameters() {
        let counts = SIZES.each_ref().map(|size| weights(size).iter().sum::<usize>());
        assert_eq!(counts[..3], [134_515_008, 361_821_120, 1_711_376_384]);
        assert_eq!(SIZES.each_ref().map(|size| size.config().num_parameters()), counts);
    }

    #[test]
    fn names_are_unique_whatever_the_tokens() {
        for tokens in [1, 512, 8192] {
            let all = cases(&SIZES[0], tokens);
            let names: HashSet<String> = all.iter().map(Case::name).collect();
            assert_eq!(names.len(), all.len());
        }
    }
}
