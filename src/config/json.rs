//! `config.json`, read and written.

use super::{ModelConfig, RopeScaling, round_f32};
use crate::dtype::DType;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The one architecture there is a forward pass for.
const ARCHITECTURE: &str = "LlamaForCausalLM";

/// A field, whether a value of it is supported, and what another value would mean.
type Rule = (&'static str, fn(&Value) -> bool, &'static str);

/// Fields that may be absent but not of another kind.
const RULES: [Rule; 4] = [
    ("hidden_act", |v| v == "silu" || v == "swish", "only the activation silu is supported"),
    ("pretraining_tp", |v| v == 1, "split projections are not supported: set it to 1"),
    ("quantization_config", |_| false, "quantised folders are not supported: use one in fp32, bf16 or fp16"),
    ("attention_dropout", |v| v.as_f64() == Some(0.0), "dropout is not supported: set it to 0"),
];

impl ModelConfig {
    /// From the content of a `config.json`, with the defaults of transformers' `LlamaConfig`, in the spelling of
    /// transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`). `origin` is the file, for messages.
    ///
    /// # Errors
    /// [`Error::Input`] naming the field: for another architecture, for a property the forward pass does not
    /// have, for a wrong type, and for dimensions that contradict each other.
    pub fn from_json(config: &Value, origin: &Path) -> Result<Self> {
        let Some(object) = config.as_object() else {
            return Err(Error::input(origin.display(), "no JSON object", "give a Hugging Face model folder"));
        };
        let fields = Fields { object, origin };
        fields.check_architecture()?;
        for (key, allowed, rule) in RULES {
            if let Some(value) = fields.get(key).filter(|v| !allowed(v)) {
                return Err(fields.error(key, value, rule));
            }
        }
        let hidden_size = fields.size("hidden_size", 4096)?;
        let num_attention_heads = fields.size("num_attention_heads", 32)?;
        let (rope_theta, rope_scaling) = fields.rope()?;
        Self {
            hidden_size,
            intermediate_size: fields.size("intermediate_size", 11_008)?,
            num_hidden_layers: fields.size("num_hidden_layers", 32)?,
            num_attention_heads,
            num_key_value_heads: fields.size("num_key_value_heads", num_attention_heads)?,
            head_dim: fields.size("head_dim", hidden_size / num_attention_heads.max(1))?,
            vocab_size: fields.size("vocab_size", 32_000)?,
            max_position_embeddings: fields.size("max_position_embeddings", 2048)?,
            rms_norm_eps: round_f32(fields.number(object, "rms_norm_eps", Some(1e-6))?),
            rope_theta,
            rope_scaling,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            attention_bias: fields.flag("attention_bias")?,
            mlp_bias: fields.flag("mlp_bias")?,
            bos_token_id: fields.ids("bos_token_id", Some(1))?.first().copied(),
            eos_token_ids: fields.ids("eos_token_id", Some(2))?,
            pad_token_id: fields.ids("pad_token_id", None)?.first().copied(),
        }
        .validated(origin)
    }

    /// A `config.json` that transformers 4 and 5 load: the keys of `original` (an object; `{}` when there is
    /// none), with the dimensions of this model and `dtype` as the stored element type.
    pub fn to_json(&self, original: &Value, dtype: DType) -> Value {
        let mut config = original.as_object().cloned().unwrap_or_default();
        let dtype = match dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        };
        let eos = match self.eos_token_ids[..] {
            [] => Value::Null,
            [one] => json!(one),
            _ => json!(self.eos_token_ids),
        };
        // The shortest decimal of the fp32 number, not the sixteen digits of its double.
        let epsilon: f64 = self.rms_norm_eps.to_string().parse().expect("Rust reads its own numbers");
        // Spelt as transformers 4 does, which transformers 5 reads too; the other way round it is not so.
        config.remove("rope_parameters");
        for (key, value) in [
            ("architectures", json!([ARCHITECTURE])),
            ("model_type", json!("llama")),
            ("hidden_act", json!("silu")),
            ("hidden_size", json!(self.hidden_size)),
            ("intermediate_size", json!(self.intermediate_size)),
            ("num_hidden_layers", json!(self.num_hidden_layers)),
            ("num_attention_heads", json!(self.num_attention_heads)),
            ("num_key_value_heads", json!(self.num_key_value_heads)),
            ("head_dim", json!(self.head_dim)),
            ("vocab_size", json!(self.vocab_size)),
            ("max_position_embeddings", json!(self.max_position_embeddings)),
            ("rms_norm_eps", json!(epsilon)),
            ("rope_theta", json!(self.rope_theta)),
            ("rope_scaling", self.rope_scaling_json()),
            ("tie_word_embeddings", json!(self.tie_word_embeddings)),
            ("attention_bias", json!(self.attention_bias)),
            ("mlp_bias", json!(self.mlp_bias)),
            ("bos_token_id", json!(self.bos_token_id)),
            ("eos_token_id", eos),
            ("pad_token_id", json!(self.pad_token_id)),
            ("dtype", json!(dtype)),
            ("torch_dtype", json!(dtype)),
        ] {
            config.insert(key.to_owned(), value);
        }
        Value::Object(config)
    }
}

impl ModelConfig {
    fn rope_scaling_json(&self) -> Value {
        match self.rope_scaling {
            RopeScaling::Default => Value::Null,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
        }
    }
}

/// The object, with the file's name for messages.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    origin: &'a Path,
}

impl<'a> Fields<'a> {
    fn error(&self, key: &str, found: &Value, rule: &str) -> Error {
        Error::input(format!("{}, field \"{key}\"", self.origin.display()), found, rule)
    }

    /// A field; `null` counts as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    fn check_architecture(&self) -> Result<()> {
        let rule = format!("only {ARCHITECTURE} (model_type \"llama\") is supported: use such a model");
        let architectures = self.get("architectures");
        let model_type = self.get("model_type");
        if let Some(found) = architectures.filter(|&v| *v != json!([ARCHITECTURE])) {
            return Err(self.error("architectures", found, &rule));
        }
        if let Some(found) = model_type.filter(|&v| v != "llama") {
            return Err(self.error("model_type", found, &rule));
        }
        if architectures.or(model_type).is_none() {
            return Err(self.error("model_type", &Value::Null, &rule));
        }
        Ok(())
    }

    fn size(&self, key: &str, default: usize) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok());
        size.ok_or_else(|| self.error(key, value, "it must be a whole number"))
    }

    /// False where it is absent.
    fn flag(&self, key: &str) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.error(key, value, "it must be true or false"))
    }

    fn number(&self, object: &Map<String, Value>, key: &str, default: Option<f64>) -> Result<f64> {
        let value = object.get(key).unwrap_or(&Value::Null);
        if value.is_null() {
            return default.ok_or_else(|| self.error(key, value, "a number is needed here"));
        }
        value.as_f64().ok_or_else(|| self.error(key, value, "it must be a number"))
    }

    /// Token ids: one, a list, or none for `null`; the default only where the key is absent.
    fn ids(&self, key: &str, default: Option<u32>) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match self.object.get(key) {
            None => return Ok(default.into_iter().collect()),
            Some(Value::Null) => Some(Vec::new()),
            // Some configurations write -1 for "no such token".
            Some(v) if *v == -1 => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(one) => id(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| {
            self.error(key, &self.object[key], "it must be a token id, a list of them, or null")
        })
    }

    /// Base and stretching of the rotary frequencies.
    fn rope(&self) -> Result<(f64, RopeScaling)> {
        let nested = |key| self.get(key).filter(|v| v.as_object().is_none_or(|o| !o.is_empty()));
        let (key, nested) = match (nested("rope_scaling"), nested("rope_parameters")) {
            (Some(v), _) => ("rope_scaling", v),
            (None, Some(v)) => ("rope_parameters", v),
            (None, None) => ("rope_parameters", &Value::Null),
        };
        let empty = Map::new();
        let nested = match nested {
            Value::Null => &empty,
            Value::Object(object) => object,
            other => return Err(self.error(key, other, "it must be an object")),
        };
        let theta = self.number(self.object, "rope_theta", Some(10_000.0))?;
        let theta = self.number(nested, "rope_theta", Some(theta))?;
        for object in [self.object, nested] {
            let share = self.number(object, "partial_rotary_factor", Some(1.0))?;
            if share != 1.0 {
                let rule = "heads that are rotated in part are not supported";
                return Err(self.error("partial_rotary_factor", &json!(share), rule));
            }
        }
        let kind = nested.get("rope_type").or_else(|| nested.get("type"));
        let scaling = match kind.map(|v| v.as_str().unwrap_or("")) {
            None | Some("default") => RopeScaling::Default,
            Some("llama3") => {
                let original = "original_max_position_embeddings";
                let value = nested.get(original).unwrap_or(&Value::Null);
                let positions = value.as_u64().and_then(|n| usize::try_from(n).ok());
                RopeScaling::Llama3 {
                    factor: self.number(nested, "factor", None)?,
                    low_freq_factor: self.number(nested, "low_freq_factor", None)?,
                    high_freq_factor: self.number(nested, "high_freq_factor", None)?,
                    original_max_position_embeddings: positions
                        .ok_or_else(|| self.error(original, value, "it must be a whole number"))?,
                }
            }
            Some(_) => {
                let rule = "the rope types \"default\" and \"llama3\" are supported: use another model";
                return Err(self.error(key, kind.unwrap_or(&Value::Null), rule));
            }
        };
        Ok((theta, scaling))
    }
}
