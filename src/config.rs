//! The dimensions of a Llama-family model, mirroring Hugging Face's `config.json`.

mod json;
mod lora;
mod validate;

pub use lora::{AdapterParameters, LoraConfig, LoraTarget};

/// `LlamaConfig` of transformers, as far as the forward pass depends on it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Width of the residual stream (C).
    pub hidden_size: usize,
    /// Width between the two halves of the MLP (F).
    pub intermediate_size: usize,
    /// Decoder layers (L).
    pub num_hidden_layers: usize,
    /// Query heads (H).
    pub num_attention_heads: usize,
    /// Key and value heads (K); H is a multiple of it.
    pub num_key_value_heads: usize,
    /// Width of one head (D); even.
    pub head_dim: usize,
    /// Rows of the embedding (V).
    pub vocab_size: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// The output head is the embedding.
    pub tie_word_embeddings: bool,
    /// The projections of attention have biases.
    pub attention_bias: bool,
    /// Those of the MLP have.
    pub mlp_bias: bool,
    /// First token of a sequence, where the tokenizer adds one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end generation; several for some chat models.
    pub eos_token_ids: Vec<u32>,
    /// Filler token; never in a loss here.
    pub pad_token_id: Option<u32>,
}

/// `rope_scaling` of `config.json`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    Default,
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a linear blend between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length the model was first trained with.
        original_max_position_embeddings: usize,
    },
}

/// What a weight is, for initial values, decay groups and optimizer state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// `[vocab_size, hidden_size]`, the embedding or the output head.
    Embedding,
    /// A projection `[out_features, in_features]`.
    Matrix,
    /// An RMSNorm weight `[hidden_size]`; it is never decayed.
    Norm,
    /// What a projection adds, `[out_features]`; it is never decayed.
    Bias,
}

/// One weight under its Hugging Face name.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// E.g. `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// `[out_features, in_features]`, or `[1, n]` for a norm and a bias.
    pub shape: [usize; 2],
    /// What it is.
    pub kind: ParameterKind,
}

impl Parameter {
    /// The shape as Hugging Face stores it: one axis for a norm and a bias.
    pub fn stored_shape(&self) -> Vec<usize> {
        if self.is_vector() { vec![self.shape[1]] } else { self.shape.to_vec() }
    }

    /// A norm or a bias, as against a matrix.
    pub fn is_vector(&self) -> bool {
        matches!(self.kind, ParameterKind::Norm | ParameterKind::Bias)
    }
}

impl ModelConfig {
    /// Query, key and value columns of the fused projection: `(H + 2K)·D`.
    pub fn qkv_width(&self) -> usize {
        (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
    }

    /// Width of the attention output: `H·D`.
    pub fn attention_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Every weight, embedding first, then layer by layer, then the final norm and a separate head if there is one.
    ///
    /// Within a layer q, k, v follow one another, then their biases, and so gate, up: laid out in this order they read
    /// as one matrix and one bias.
    pub fn parameters(&self) -> Vec<Parameter> {
        use ParameterKind::{Bias, Embedding, Matrix, Norm};
        let (c, f, v) = (self.hidden_size, self.intermediate_size, self.vocab_size);
        let (q, kv) = (self.attention_width(), self.num_key_value_heads * self.head_dim);
        let mut all = Vec::new();
        let mut add = |name: String, shape, kind| all.push(Parameter { name, shape, kind });
        add("model.embed_tokens.weight".into(), [v, c], Embedding);
        for l in 0..self.num_hidden_layers {
            let name = |part: &str, what: &str| format!("model.layers.{l}.{part}.{what}");
            let qkv =
                [("self_attn.q_proj", [q, c]), ("self_attn.k_proj", [kv, c]), ("self_attn.v_proj", [kv, c])];
            let gate_up = [("mlp.gate_proj", [f, c]), ("mlp.up_proj", [f, c])];
            let (o, down) = ([("self_attn.o_proj", [c, q])], [("mlp.down_proj", [c, f])]);
            let attention = ("input_layernorm", [&qkv[..], &o], self.attention_bias);
            let mlp = ("post_attention_layernorm", [&gate_up[..], &down], self.mlp_bias);
            for (norm, projections, biased) in [attention, mlp] {
                add(name(norm, "weight"), [1, c], Norm);
                for side_by_side in projections {
                    side_by_side.iter().for_each(|&(p, shape)| add(name(p, "weight"), shape, Matrix));
                    let with_bias = side_by_side.iter().filter(|_| biased);
                    with_bias.for_each(|&(p, [n, _])| add(name(p, "bias"), [1, n], Bias));
                }
            }
        }
        add("model.norm.weight".into(), [1, c], Norm);
        if !self.tie_word_embeddings {
            add("lm_head.weight".into(), [v, c], Embedding);
        }
        all
    }

    /// Number of weights, a tied head counted once.
    pub fn num_parameters(&self) -> usize {
        self.parameters().iter().map(|p| p.shape[0] * p.shape[1]).sum()
    }

    /// Rotary frequency of each pair of a head's coordinates, `head_dim / 2` of them, in radians per position.
    ///
    /// `theta^(-2i/D)`, stretched as `rope_scaling` says (transformers, `_compute_llama3_parameters`).
    pub fn rope_frequencies(&self) -> Vec<f64> {
        let half = self.head_dim / 2;
        let plain = (0..half).map(|i| self.rope_theta.powf(-((2 * i) as f64) / self.head_dim as f64));
        match self.rope_scaling {
            RopeScaling::Default => plain.collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let original = original_max_position_embeddings as f64;
                let stretch = |frequency: f64| {
                    let wavelength = 2.0 * std::f64::consts::PI / frequency;
                    if wavelength > original / low_freq_factor {
                        frequency / factor
                    } else if wavelength < original / high_freq_factor {
                        frequency
                    } else {
                        let smooth =
                            (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                };
                plain.map(stretch).collect()
            }
        }
    }
}

/// To the nearest `f32`.
#[allow(clippy::cast_possible_truncation, reason = "rounding is what is asked for")]
pub(crate) fn round_f32(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SmolLM2-135M; the parameter count is published.
    fn smollm2_135m() -> ModelConfig {
        ModelConfig {
            hidden_size: 576,
            intermediate_size: 1536,
            num_hidden_layers: 30,
            num_attention_heads: 9,
            num_key_value_heads: 3,
            head_dim: 64,
            vocab_size: 49_152,
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

    #[test]
    fn counts_the_weights_of_smollm2() {
        assert_eq!(smollm2_135m().num_parameters(), 134_515_008);
        let untied = ModelConfig { tie_word_embeddings: false, ..smollm2_135m() };
        assert_eq!(untied.num_parameters(), 134_515_008 + 49_152 * 576);
    }

    #[test]
    fn rotary_frequencies_start_at_one_and_llama3_divides_the_low_ones() {
        let plain = smollm2_135m().rope_frequencies();
        assert_eq!((plain.len(), plain[0]), (32, 1.0));
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let scaled = ModelConfig { rope_scaling: scaling, ..smollm2_135m() }.rope_frequencies();
        assert_eq!(scaled[0], 1.0);
        assert_eq!(scaled[31], plain[31] / 8.0);
    }
}
