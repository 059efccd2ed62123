//! The Llama family in GGUF: dimensions from the metadata, and tensor names.

use super::{Entry, Gguf, MetaValue, TensorInfo};
use crate::config::{ModelConfig, RopeScaling};
use crate::error::{Error, Result};

/// Tensor of the factors by which llama.cpp divides each rotary frequency, for Llama 3.1 and later.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Tensors outside of the layers, here and in Hugging Face.
const OUTER: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Tensors of a layer, without `blk.N.` and `model.layers.N.` and the ending `.weight` or `.bias` of both.
const LAYER: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The Hugging Face name of a tensor of the architecture `llama`; `None` for a tensor that is no parameter.
pub fn hf_name(name: &str) -> Option<String> {
    if let Some((_, hf)) = OUTER.iter().find(|(gguf, _)| *gguf == name) {
        return Some((*hf).to_owned());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (rest, what) = rest.split_once('.')?;
    let (_, hf) = LAYER.iter().find(|(gguf, hf)| *gguf == rest && has(hf, what))?;
    Some(format!("model.layers.{layer}.{hf}.{what}"))
}

/// The name in GGUF of a parameter; `None` for what is none of a Llama.
pub fn gguf_name(hf: &str) -> Option<String> {
    if let Some((gguf, _)) = OUTER.iter().find(|(_, name)| *name == hf) {
        return Some((*gguf).to_owned());
    }
    let (layer, rest) = hf.strip_prefix("model.layers.")?.split_once('.')?;
    let (rest, what) = rest.rsplit_once('.')?;
    let (gguf, _) = LAYER.iter().find(|(_, name)| *name == rest && has(name, what))?;
    Some(format!("blk.{layer}.{gguf}.{what}"))
}

/// Whether a part of a layer, by its name in Hugging Face, has a tensor `what`: a weight all, a bias projections.
fn has(part: &str, what: &str) -> bool {
    what == "weight" || (what == "bias" && part.ends_with("_proj"))
}

/// Whether a tensor only restates the rotary frequencies, which are computed from the configuration here.
pub fn is_rotary(name: &str) -> bool {
    name == ROPE_FACTORS || name.ends_with("rotary_emb.inv_freq")
}

impl ModelConfig {
    /// Dimensions from the metadata of a GGUF file of the architecture `llama`.
    ///
    /// # Errors
    /// [`Error::Input`] for another architecture, a missing or wrong value, or a property that the forward pass
    /// does not have (experts, stretched or partial rotary embedding).
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        check_kind(file)?;
        let size = |key: &str| -> Result<Option<usize>> {
            let key = format!("llama.{key}");
            let value = file.integer(&key)?;
            value
                .map(usize::try_from)
                .transpose()
                .map_err(|_| unsupported(file, &key, "too large", "a real size"))
        };
        let need = |key: &str| file.require(&format!("llama.{key}"), size(key)?);
        let hidden_size = need("embedding_length")?;
        let num_attention_heads = need("attention.head_count")?;
        let head_dim = match size("attention.key_length")? {
            Some(length) => length,
            None => hidden_size / num_attention_heads.max(1),
        };
        for key in ["attention.value_length", "rope.dimension_count"] {
            if let Some(other) = size(key)?.filter(|&n| n != head_dim) {
                let rule = format!("it must equal the width of a head, {head_dim}");
                return Err(unsupported(file, &format!("llama.{key}"), other, &rule));
            }
        }
        let embedding = file.require("tensor token_embd.weight", file.tensor("token_embd.weight"))?;
        let epsilon = "llama.attention.layer_norm_rms_epsilon";
        let epsilon = file.require(epsilon, file.float(epsilon)?)?;
        let id = |key: &str| file.integer(key).map(|id| id.and_then(|id| u32::try_from(id).ok()));
        let config = Self {
            hidden_size,
            intermediate_size: need("feed_forward_length")?,
            num_hidden_layers: need("block_count")?,
            num_attention_heads,
            num_key_value_heads: size("attention.head_count_kv")?.unwrap_or(num_attention_heads),
            head_dim,
            vocab_size: embedding.shape[0],
            max_position_embeddings: need("context_length")?,
            rms_norm_eps: crate::config::round_f32(epsilon),
            rope_theta: file.float("llama.rope.freq_base")?.unwrap_or(10_000.0),
            rope_scaling: RopeScaling::Default,
            tie_word_embeddings: file.tensor("output.weight").is_none(),
            attention_bias: file.tensor("blk.0.attn_q.bias").is_some(),
            mlp_bias: file.tensor("blk.0.ffn_gate.bias").is_some(),
            bos_token_id: id("tokenizer.ggml.bos_token_id")?,
            eos_token_ids: id("tokenizer.ggml.eos_token_id")?.into_iter().collect(),
            pad_token_id: id("tokenizer.ggml.padding_token_id")?,
        }
        .validated(file.path())?;
        let rope_scaling = rope_scaling(file, &config)?;
        Ok(Self { rope_scaling, ..config })
    }
}

impl ModelConfig {
    /// The metadata `llama.*` of a file of this model, as llama.cpp's converter writes them.
    pub fn to_gguf(&self) -> Vec<Entry> {
        let size = |key: &str, n: usize| {
            let n = u32::try_from(n).expect("dimensions are at most 2^31");
            (format!("llama.{key}"), MetaValue::U32(n))
        };
        let number = |key: &str, x: f32| (format!("llama.{key}"), MetaValue::F32(x));
        vec![
            size("vocab_size", self.vocab_size),
            size("context_length", self.max_position_embeddings),
            size("embedding_length", self.hidden_size),
            size("block_count", self.num_hidden_layers),
            size("feed_forward_length", self.intermediate_size),
            size("attention.head_count", self.num_attention_heads),
            size("attention.head_count_kv", self.num_key_value_heads),
            size("attention.key_length", self.head_dim),
            size("attention.value_length", self.head_dim),
            size("rope.dimension_count", self.head_dim),
            number("rope.freq_base", crate::config::round_f32(self.rope_theta)),
            number("attention.layer_norm_rms_epsilon", self.rms_norm_eps),
        ]
    }

    /// The content of [`ROPE_FACTORS`]; `None` where the frequencies are as they are.
    pub fn rope_factors(&self) -> Option<Vec<f32>> {
        if self.rope_scaling == RopeScaling::Default {
            return None;
        }
        let plain = Self { rope_scaling: RopeScaling::Default, ..self.clone() }.rope_frequencies();
        let factors = plain.iter().zip(self.rope_frequencies()).map(|(plain, scaled)| plain / scaled);
        Some(factors.map(crate::config::round_f32).collect())
    }
}

/// Refuses what is no plain Llama.
fn check_kind(file: &Gguf) -> Result<()> {
    let key = "general.architecture";
    let architecture = file.require(key, file.string(key)?)?;
    if architecture != "llama" {
        return Err(unsupported(file, key, architecture, "only \"llama\" is supported"));
    }
    let key = "llama.expert_count";
    match file.integer(key)? {
        None | Some(0) => Ok(()),
        Some(experts) => Err(unsupported(file, key, experts, "mixtures of experts are not supported")),
    }
}

/// The stretching of the rotary frequencies.
///
/// For Llama 3.1 and later the converter writes one factor per frequency instead of the four numbers they came
/// from. The largest is `factor`; the other three are the same in every published model, which is checked by
/// computing the factors again.
fn rope_scaling(file: &Gguf, config: &ModelConfig) -> Result<RopeScaling> {
    let key = "llama.rope.scaling.type";
    if let Some(kind) = file.string(key)?.filter(|&kind| kind != "none") {
        return Err(unsupported(
            file,
            key,
            kind,
            "only unstretched frequencies and those of Llama 3 are supported",
        ));
    }
    let Some(info) = file.tensor(ROPE_FACTORS) else { return Ok(RopeScaling::Default) };
    let wrong =
        |found: &str| unsupported(file, ROPE_FACTORS, found, "only the factors of Llama 3.1 and later are");
    let TensorInfo { shape, .. } = info;
    if *shape != [1, config.head_dim / 2] {
        return Err(wrong("a shape other than half the width of a head"));
    }
    let mut factors = vec![0.0f32; shape[1]];
    file.read(info, |row| row, &mut factors);
    let scaling = RopeScaling::Llama3 {
        factor: factors.iter().copied().fold(1.0, f32::max).into(),
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let scaled = ModelConfig { rope_scaling: scaling, ..config.clone() }.rope_frequencies();
    let same =
        config.rope_frequencies().iter().zip(&scaled).zip(&factors).all(|((plain, scaled), &factor)| {
            // Factor and frequencies were computed in fp32 by the converter.
            (plain / scaled / f64::from(factor) - 1.0).abs() < 1e-4
        });
    if same { Ok(scaling) } else { Err(wrong("factors of another rule")) }
}

fn unsupported(file: &Gguf, key: &str, found: impl ToString, rule: &str) -> Error {
    Error::input(
        format!("{}, \"{key}\"", file.path().display()),
        found,
        format!("{rule}; use another model (any LlamaForCausalLM) or its Hugging Face folder"),
    )
}
