//! `config.json` as transformers reads it, and what is refused.

use serde_json::{Value, json};
use smolten::config::{ModelConfig, RopeScaling};
use smolten::dtype::DType;
use std::path::Path;

fn read(config: &Value) -> smolten::error::Result<ModelConfig> {
    ModelConfig::from_json(config, Path::new("folder/config.json"))
}

/// SmolLM2-135M's, with `changes` on top.
fn smollm2(changes: Value) -> Value {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": false,
        "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "hidden_act": "silu",
        "hidden_size": 576, "initializer_range": 0.041, "intermediate_size": 1536,
        "max_position_embeddings": 8192, "mlp_bias": false, "num_attention_heads": 9, "num_hidden_layers": 30,
        "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_interleaved": false,
        "rope_scaling": null, "rope_theta": 100_000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "vocab_size": 49152
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn absent_fields_are_those_of_llama_config() {
    // transformers 5.24, models/llama/configuration_llama.py.
    let config = read(&json!({"model_type": "llama"})).unwrap();
    let want = ModelConfig {
        hidden_size: 4096,
        intermediate_size: 11_008,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: 32,
        head_dim: 128,
        vocab_size: 32_000,
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::Default,
        tie_word_embeddings: false,
        attention_bias: false,
        mlp_bias: false,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: None,
    };
    assert_eq!(config, want);
}

#[test]
fn both_spellings_of_the_rotary_embedding_are_read() {
    let old = json!({"rope_theta": 5e5, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}});
    let older = json!({"rope_theta": 5e5, "rope_scaling": {
        "type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
        "original_max_position_embeddings": 8192}});
    let new = json!({"rope_theta": null, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}});
    let want = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    for spelling in [old, older, new] {
        let config = read(&smollm2(spelling)).unwrap();
        assert_eq!((config.rope_theta, config.rope_scaling), (5e5, want));
    }
    let plain =
        read(&smollm2(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 130000.0}}))).unwrap();
    assert_eq!((plain.rope_theta, plain.rope_scaling), (130_000.0, RopeScaling::Default));
}

#[test]
fn end_tokens_may_be_one_several_or_none() {
    let eos = |value: Value| read(&smollm2(json!({"eos_token_id": value}))).unwrap().eos_token_ids;
    assert_eq!(eos(json!(7)), [7]);
    assert_eq!(eos(json!([128001, 128008, 128009])), [128_001, 128_008, 128_009]);
    assert!(eos(Value::Null).is_empty());
    assert_eq!(read(&smollm2(json!({"bos_token_id": null}))).unwrap().bos_token_id, None);
    assert_eq!(read(&smollm2(json!({"pad_token_id": -1}))).unwrap().pad_token_id, None);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let cases = [
        ("architectures", json!(["MistralForCausalLM"]), "LlamaForCausalLM"),
        ("architectures", json!([]), "LlamaForCausalLM"),
        ("model_type", json!("qwen2"), "llama"),
        ("attention_bias", json!("yes"), "true or false"),
        ("mlp_bias", json!(1), "true or false"),
        ("hidden_act", json!("gelu"), "silu"),
        ("pretraining_tp", json!(2), "1"),
        ("attention_dropout", json!(0.1), "dropout"),
        ("quantization_config", json!({"quant_method": "gptq"}), "quantised"),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0}), "llama3"),
        ("rope_parameters", json!({"rope_type": "yarn", "factor": 2.0}), "llama3"),
        ("rope_scaling", json!({"factor": 2.0, "rope_type": 5}), "llama3"),
        ("rope_scaling", json!("linear"), "object"),
        ("low_freq_factor", json!(0), ""),
        ("partial_rotary_factor", json!(0.5), "in part"),
        ("head_dim", json!(63), "even"),
        ("num_key_value_heads", json!(2), "multiple"),
        ("num_attention_heads", json!(7), "multiple"),
        ("num_attention_heads", json!(0), "1..="),
        ("hidden_size", json!(0), "1..="),
        ("hidden_size", json!(9_000_000_000_u64), "1..="),
        ("vocab_size", json!(0), "1..="),
        ("vocab_size", json!(-5), "whole number"),
        ("vocab_size", json!(1.5), "whole number"),
        ("vocab_size", json!(u64::MAX), "1..="),
        ("num_hidden_layers", json!(1_000_000), "1..="),
        ("intermediate_size", json!("1536"), "whole number"),
        ("rms_norm_eps", json!("1e-5"), "number"),
        ("rms_norm_eps", json!(-1.0), "from 0"),
        ("rope_theta", json!(0.0), "positive"),
        ("tie_word_embeddings", json!("yes"), "true or false"),
        ("eos_token_id", json!("</s>"), "token id"),
        ("eos_token_id", json!([1, -2]), "token id"),
    ];
    for (field, value, rule) in cases {
        let config = if field == "low_freq_factor" {
            let scaling = json!({"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0,
                                 "original_max_position_embeddings": 8192});
            smollm2(json!({"rope_scaling": scaling}))
        } else {
            smollm2(json!({field: value}))
        };
        let error = read(&config).err().unwrap_or_else(|| panic!("{field} = {value} is accepted"));
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains(&format!("\"{field}\"")) && text.contains(rule), "{field} = {value}: {text}");
        assert!(text.contains("folder/config.json"), "{text}");
    }
    // Each dimension possible, all together not.
    let huge = json!({"hidden_size": 1 << 23, "num_attention_heads": 1, "num_key_value_heads": 1,
                      "intermediate_size": 1 << 24, "num_hidden_layers": 4096});
    assert!(read(&smollm2(huge)).unwrap_err().to_string().contains("multiply"));
    assert!(read(&json!({})).unwrap_err().to_string().contains("LlamaForCausalLM"));
    assert!(read(&json!([1])).is_err());
}

#[test]
fn writing_keeps_unknown_keys_and_reads_back_equal() {
    let scaling = json!({"rope_theta": 5e5, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    for changes in
        [json!({}), json!({"rope_theta": null, "rope_parameters": scaling, "eos_token_id": [2, 0]})]
    {
        let original = smollm2(changes);
        let config = read(&original).unwrap();
        let written = config.to_json(&original, DType::F32);
        assert_eq!(read(&written).unwrap(), config);
        assert_eq!(written["initializer_range"], 0.041);
        assert_eq!((&written["dtype"], &written["torch_dtype"]), (&json!("float32"), &json!("float32")));
        assert_eq!(written["rms_norm_eps"], 1e-5);
        assert!(written.get("rope_parameters").is_none());
    }
    assert_eq!(read(&smollm2(json!({}))).unwrap().to_json(&json!({}), DType::BF16)["dtype"], "bfloat16");
}
