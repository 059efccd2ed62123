//! The keys of adapters.

use super::Recipe;
use crate::config::LoraConfig;
use crate::dtype::DType;
use crate::error::{Error, Result};

impl Recipe {
    /// The adapters that are trained in place of the weights.
    pub fn lora(&self) -> Option<LoraConfig> {
        (self.lora_rank > 0).then(|| LoraConfig {
            rank: self.lora_rank,
            alpha: self.lora_alpha.unwrap_or(self.lora_rank as f64),
            dropout: self.lora_dropout,
            rslora: self.lora_rslora,
            targets: self.lora_targets.clone(),
        })
    }

    /// Without adapters there is nothing for their keys to mean.
    pub(super) fn check_lora(&self) -> Result<()> {
        if self.lora_rank > 0 && self.save_dtype != DType::F32 {
            let remedy = "drop save_dtype; smolten export --type writes the merged model in another type";
            return Err(Error::input("key `save_dtype`", "not fp32, in which adapters are saved", remedy));
        }
        if self.lora_rank > 0 {
            return Ok(());
        }
        let default = Self::default();
        let set = [
            ("lora_alpha", self.lora_alpha.is_some()),
            ("lora_dropout", self.lora_dropout > 0.0),
            ("lora_rslora", self.lora_rslora),
            ("lora_targets", self.lora_targets != default.lora_targets),
        ];
        if let Some((key, _)) = set.into_iter().find(|(_, is_set)| *is_set) {
            let remedy = format!("set lora_rank too, e.g. lora_rank = 16, or leave out {key}");
            return Err(Error::input(
                format!("key `{key}`"),
                "lora_rank is 0: no adapters are trained",
                remedy,
            ));
        }
        Ok(())
    }
}
