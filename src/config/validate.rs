//! Dimensions that a forward pass can be built for.

use super::{ModelConfig, RopeScaling};
use crate::error::{Error, Result};
use std::path::Path;

/// No dimension is larger; far above every published model, far below what overflows.
const LARGEST: usize = 1 << 24;
/// Most layers.
const MOST_LAYERS: usize = 4096;
/// Most weights.
const MOST_WEIGHTS: usize = 1 << 40;

impl ModelConfig {
    /// The configuration itself when its dimensions are possible and fit one another. `origin` is the file they
    /// came from, for messages.
    ///
    /// # Errors
    /// [`Error::Input`] naming the first field that is wrong.
    pub fn validated(self, origin: &Path) -> Result<Self> {
        let wrong = |field: &str, found: &dyn std::fmt::Display, rule: &str| {
            let rule = format!("{rule}; check the file or use another model");
            Err(Error::input(format!("{}, field \"{field}\"", origin.display()), found, rule))
        };
        let limits = [
            ("hidden_size", self.hidden_size, LARGEST),
            ("intermediate_size", self.intermediate_size, LARGEST),
            ("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS),
            ("num_attention_heads", self.num_attention_heads, LARGEST),
            ("num_key_value_heads", self.num_key_value_heads, LARGEST),
            ("head_dim", self.head_dim, LARGEST),
            ("vocab_size", self.vocab_size, LARGEST),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 31),
        ];
        for (field, size, most) in limits {
            if size == 0 || size > most {
                return wrong(field, &size, &format!("it must lie in 1..={most}"));
            }
        }
        if !self.head_dim.is_multiple_of(2) {
            return wrong("head_dim", &self.head_dim, "it must be even for the rotary embedding");
        }
        // Not needed here, but transformers loads no other Llama, so what would be saved could not be used.
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let rule = format!("hidden_size ({}) must be a multiple of it", self.hidden_size);
            return wrong("num_attention_heads", &self.num_attention_heads, &rule);
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let rule = format!("num_attention_heads ({}) must be a multiple of it", self.num_attention_heads);
            return wrong("num_key_value_heads", &self.num_key_value_heads, &rule);
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return wrong("rms_norm_eps", &self.rms_norm_eps, "it must be a number from 0");
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return wrong("rope_theta", &self.rope_theta, "it must be positive");
        }
        if let RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, .. } =
            self.rope_scaling
        {
            let ordered = 0.0 < low && low < high && high.is_finite();
            if !(ordered && factor.is_finite() && factor >= 1.0) {
                let found = format!("factor {factor}, low_freq_factor {low}, high_freq_factor {high}");
                return wrong("rope_scaling", &found, "factor must be at least 1 and 0 < low < high");
            }
        }
        if self.weights_checked().is_none_or(|n| n > MOST_WEIGHTS) {
            let rule = format!("the dimensions multiply to more than {MOST_WEIGHTS} weights");
            return wrong("hidden_size", &self.hidden_size, &rule);
        }
        Ok(self)
    }

    /// [`ModelConfig::num_parameters`] (with a separate head, without biases), `None` when it overflows.
    fn weights_checked(&self) -> Option<usize> {
        let (c, d) = (self.hidden_size, self.head_dim);
        let heads = self.num_attention_heads.checked_add(self.num_key_value_heads)?.checked_mul(2)?;
        let attention = heads.checked_mul(d)?.checked_mul(c)?;
        let mlp = self.intermediate_size.checked_mul(c)?.checked_mul(3)?;
        let layer = attention.checked_add(mlp)?.checked_add(c.checked_mul(2)?)?;
        let embeddings = self.vocab_size.checked_mul(c)?.checked_mul(2)?;
        layer.checked_mul(self.num_hidden_layers)?.checked_add(embeddings)
    }
}
