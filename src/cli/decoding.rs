//! Flags that say how a text is continued.

use clap::Args;
use serde::Serialize;
use smolten::generate::{Continuation, Sampling};

/// Flags of `generate` and `compare`.
#[derive(Args, Clone, Copy, Serialize)]
pub struct DecodingArguments {
    /// Tokens at most in an answer
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_new_tokens: usize,
    /// Randomness; 0 always takes the likeliest token (greedy)
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = at_least_zero, allow_negative_numbers = true)]
    temperature: f32,
    /// Draw from the N likeliest tokens only; 0: all
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,
    /// Draw from the likeliest tokens that add up to this probability only; 1: all
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = probability, allow_negative_numbers = true)]
    top_p: f32,
    /// Makes tokens seen before less likely; 1: off
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = above_zero, allow_negative_numbers = true)]
    repetition_penalty: f32,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl DecodingArguments {
    /// For a model that ends a text with any of `stop_ids`.
    pub fn continuation<'a>(&self, stop_ids: &'a [u32]) -> Continuation<'a> {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        };
        Continuation { sampling, max_new_tokens: self.max_new_tokens, stop_ids }
    }
}

impl std::fmt::Display for DecodingArguments {
    /// For people: `greedy, up to 256 new tokens`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.temperature == 0.0 {
            f.write_str("greedy")?;
        } else {
            write!(f, "sampled at temperature {}", self.temperature)?;
            if self.top_k > 0 {
                write!(f, ", top-k {}", self.top_k)?;
            }
            if self.top_p < 1.0 {
                write!(f, ", top-p {}", self.top_p)?;
            }
            write!(f, ", seed {}", self.seed)?;
        }
        if self.repetition_penalty != 1.0 {
            write!(f, ", repetition penalty {}", self.repetition_penalty)?;
        }
        write!(f, ", up to {} new tokens", self.max_new_tokens)
    }
}

fn number(text: &str, allowed: impl Fn(f32) -> bool, rule: &str) -> std::result::Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x.is_finite() && allowed(x) => Ok(x),
        _ => Err(format!("give a number {rule}")),
    }
}

fn at_least_zero(text: &str) -> std::result::Result<f32, String> {
    number(text, |x| x >= 0.0, "of at least 0")
}

fn above_zero(text: &str) -> std::result::Result<f32, String> {
    number(text, |x| x > 0.0, "above 0")
}

fn probability(text: &str) -> std::result::Result<f32, String> {
    number(text, |x| x > 0.0 && x <= 1.0, "above 0, and 1 at most")
}
