//! Exported GGUF files against the `gguf` package's fixtures, read again, and what is refused. With the real model and
//! other programs: `external/check_gguf.py`, `external/check_llama.py`.

mod common;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use smolten::config::{ModelConfig, Parameter, ParameterKind, RopeScaling};
use smolten::dtype::DType;
use smolten::error::Error;
use smolten::export;
use smolten::gguf::{GgmlType, Gguf, ROPE_FACTORS, TensorInfo, gguf_name, hf_name, quantise};
use smolten::pretrained::Pretrained;
use std::path::{Path, PathBuf};

const NAMES: [&str; 2] = ["tiny-smollm", "tiny-llama3"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn open(name: &str) -> Pretrained {
    Pretrained::open(&fixture(&format!("{name}.gguf"))).unwrap()
}

fn read(model: &Pretrained, parameter: &Parameter) -> Vec<f32> {
    let mut out = vec![f32::NAN; parameter.shape[0] * parameter.shape[1]];
    model.weights.read(parameter, &mut out).unwrap();
    out
}

/// A tensor as the file has it, its rows in the file's order.
fn raw(file: &Gguf, name: &str) -> Vec<f32> {
    let info = file.tensor(name).unwrap();
    let mut out = vec![f32::NAN; info.shape[0] * info.shape[1]];
    file.read(info, |row| row, &mut out);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn quantised_bytes_are_those_of_the_gguf_package() {
    let bytes = std::fs::read(fixture("q8_0.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let x: Vec<f32> = bytemuck::pod_collect_to_vec(tensors.tensor("x").unwrap().data());
    assert_eq!(x.len(), 238 * 32);
    for (name, kind) in [("q8_0", GgmlType::Q8_0), ("f16", GgmlType::F16), ("bf16", GgmlType::BF16)] {
        let clipped = |&x: &f32| if kind == GgmlType::F16 { x.clamp(-6e4, 6e4) } else { x };
        let x: Vec<f32> = x.iter().map(clipped).collect();
        let mut out = Vec::new();
        quantise(kind, &x, &mut out);
        let want = tensors.tensor(name).unwrap();
        let at = out.iter().zip(want.data()).position(|(a, b)| a != b);
        assert_eq!((out.len(), at), (want.data().len(), None), "{name}");
    }
}

#[test]
fn an_f32_file_is_the_model_again() {
    let folder = tempfile::tempdir().unwrap();
    for name in NAMES {
        let model = open(name);
        let path = folder.path().join(format!("{name}.gguf"));
        let written = export::gguf(&model, &path, GgmlType::F32, name).unwrap();
        assert_eq!((written.bytes, written.as_f16.len()), (path.metadata().unwrap().len(), 0));
        let again = Pretrained::open(&path).unwrap();
        assert_eq!(again.config, model.config, "{name}");
        assert_eq!(again.stop_ids, model.stop_ids);
        assert_eq!(again.template.source(), model.template.source());
        assert!(!again.chatml_was_set);
        assert_eq!(
            (again.bos_token, again.eos_token, again.pad_token, again.unk_token),
            (
                model.bos_token.clone(),
                model.eos_token.clone(),
                model.pad_token.clone(),
                model.unk_token.clone()
            )
        );
        for parameter in model.config.parameters() {
            let (got, want) = (read(&Pretrained::open(&path).unwrap(), &parameter), read(&model, &parameter));
            assert_eq!(bits(&got), bits(&want), "{name} {}", parameter.name);
        }
        let about = std::fs::read(fixture(&format!("{name}.safetensors"))).unwrap();
        let (_, about) = SafeTensors::read_metadata(&about).unwrap();
        let tokens: Vec<(String, Vec<u32>)> =
            serde_json::from_str(&about.metadata().as_ref().unwrap()["tokens"]).unwrap();
        assert!(tokens.len() > 15);
        for (text, ids) in tokens {
            assert_eq!(again.tokenizer.encode(&text, true).unwrap(), ids, "{name} {text:?}");
        }
        let left = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name());
        assert!(left.into_iter().all(|f| !f.to_str().unwrap().starts_with('.')), "remains of the writing");
    }
}

/// The fixtures were written by the gguf package: its order of rows, its metadata.
#[test]
fn rows_and_metadata_stand_where_the_gguf_package_put_them() {
    let folder = tempfile::tempdir().unwrap();
    for name in NAMES {
        let path = folder.path().join(format!("{name}.gguf"));
        export::gguf(&open(name), &path, GgmlType::F32, name).unwrap();
        let (ours, theirs) =
            (Gguf::open(&path).unwrap(), Gguf::open(&fixture(&format!("{name}.gguf"))).unwrap());
        assert_eq!(ours.tensors().count(), theirs.tensors().count());
        for (tensor, TensorInfo { shape, .. }) in theirs.tensors() {
            assert_eq!(ours.tensor(tensor).unwrap().shape, *shape, "{tensor}");
            let (got, want) = (raw(&ours, tensor), raw(&theirs, tensor));
            if tensor == ROPE_FACTORS {
                // theirs were computed in f64 too and rounded once, by another formula of a few operations.
                assert!(
                    got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= f32::EPSILON * b.abs()),
                    "{got:?} {want:?}"
                );
            } else {
                assert_eq!(bits(&got), bits(&want), "{name} {tensor}");
            }
        }
        for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
            assert_eq!(ours.strings(key).unwrap(), theirs.strings(key).unwrap(), "{key}");
        }
        let types = "tokenizer.ggml.token_type";
        assert_eq!(ours.integers(types).unwrap(), theirs.integers(types).unwrap());
        for key in ["tokenizer.ggml.model", "tokenizer.ggml.pre", "general.architecture"] {
            assert_eq!(ours.string(key).unwrap(), theirs.string(key).unwrap(), "{key}");
        }
        let add_bos = "tokenizer.ggml.add_bos_token";
        assert_eq!(ours.boolean(add_bos).unwrap(), theirs.boolean(add_bos).unwrap());
        for key in ["block_count", "context_length", "embedding_length", "attention.head_count_kv"] {
            let key = format!("llama.{key}");
            assert_eq!(ours.integer(&key).unwrap(), theirs.integer(&key).unwrap(), "{key}");
        }
    }
    assert!(matches!(open("tiny-llama3").config.rope_scaling, RopeScaling::Llama3 { .. }));
}

#[test]
fn smaller_types_round_once() {
    let folder = tempfile::tempdir().unwrap();
    let model = open("tiny-smollm");
    for (i, kind) in [GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0].into_iter().enumerate() {
        let path = folder.path().join(format!("{i}.gguf"));
        export::gguf(&model, &path, kind, "tiny").unwrap();
        let file = Gguf::open(&path).unwrap();
        let again = Pretrained::open(&path).unwrap();
        for p in model.config.parameters() {
            let (got, want) = (read(&again, &p), read(&model, &p));
            let stored = file.tensor(&gguf_name(&p.name).unwrap()).unwrap().kind;
            assert_eq!(
                stored,
                if p.kind == ParameterKind::Norm { GgmlType::F32 } else { kind },
                "{}",
                p.name
            );
            match stored {
                GgmlType::F32 => assert_eq!(bits(&got), bits(&want)),
                GgmlType::F16 => {
                    let rounded: Vec<f32> = want.iter().map(|&x| half::f16::from_f32(x).to_f32()).collect();
                    assert_eq!(bits(&got), bits(&rounded), "{}", p.name);
                }
                GgmlType::BF16 => {
                    let rounded: Vec<f32> = want.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
                    assert_eq!(bits(&got), bits(&rounded), "{}", p.name);
                }
                _ => got.chunks(32).zip(want.chunks(32)).for_each(|(got, want)| within_q8(got, want)),
            }
        }
    }
}

/// With d = max|x|/127: the integer is within 1/2 of x/d, up to the roundings of d, 1/d, the product and the result
/// (2^-24 each of at most 127, so 2^-21 in all of 127); the scale is rounded to fp16 (2^-11 of it, or half of its
/// smallest step, 2^-25), which counts up to 127 times.
#[track_caller]
fn within_q8(got: &[f32], want: &[f32]) {
    let d = want.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
    let bound = d * (0.5 + 127.0 * (2f32.powi(-21) + 2f32.powi(-11))) + 127.0 * 2f32.powi(-25);
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= bound, "{g} for {w}, scale {d}");
    }
}

#[test]
fn names_are_those_of_the_other_direction() {
    let biased = ModelConfig { attention_bias: true, mlp_bias: true, ..open("tiny-llama3").config };
    for parameter in biased.parameters() {
        assert_eq!(hf_name(&gguf_name(&parameter.name).unwrap()).as_ref(), Some(&parameter.name));
    }
    for stray in ["model.layers.0.input_layernorm.bias", "model.layers.x", "lm_head", "blk.0.attn_q.weight"] {
        assert_eq!(gguf_name(stray), None, "{stray}");
    }
    for stray in ["blk.0.attn_norm.bias", "blk.0.attn_qkv.weight", "output", "rope_freqs.weight"] {
        assert_eq!(hf_name(stray), None, "{stray}");
    }
}

/// The tiny model as a folder, changed by the caller before it is opened.
fn folder(path: &Path, name: &str) {
    export::folder(&open(name), path, DType::F32).unwrap();
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

#[test]
fn rows_that_are_no_whole_blocks_become_f16() {
    let out = tempfile::tempdir().unwrap();
    folder(out.path(), "tiny-smollm");
    let model = open("tiny-smollm");
    // Columns of down_proj, and rows of gate and up: 80 of 96.
    let cut = |p: &Parameter, data: Vec<f32>| -> Vec<f32> {
        match p.name.rsplit('.').nth(1).unwrap() {
            "down_proj" => data.chunks(96).flat_map(|row| row[..80].to_vec()).collect(),
            "gate_proj" | "up_proj" => data[..80 * 64].to_vec(),
            _ => data,
        }
    };
    let mut config = model.config.clone();
    config.intermediate_size = 80;
    let data: Vec<Vec<f32>> = model.config.parameters().iter().map(|p| cut(p, read(&model, p))).collect();
    let views = config.parameters().into_iter().zip(&data).map(|(p, data)| {
        let bytes = bytemuck::cast_slice(data);
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, p.stored_shape(), bytes);
        (p.name, view.unwrap())
    });
    safetensors::tensor::serialize_to_file(views, None, &out.path().join("model.safetensors")).unwrap();
    edit(&out.path().join("config.json"), |config| config["intermediate_size"] = json!(80));
    let path = out.path().join("x.gguf");
    let written = export::gguf(&Pretrained::open(out.path()).unwrap(), &path, GgmlType::Q8_0, "x").unwrap();
    assert_eq!(written.as_f16, ["blk.0.ffn_down.weight"]);
    let file = Gguf::open(&path).unwrap();
    assert_eq!(file.tensor("blk.0.ffn_down.weight").unwrap().kind, GgmlType::F16);
    assert_eq!(file.tensor("blk.0.ffn_up.weight").unwrap().kind, GgmlType::Q8_0);
    Pretrained::open(&path).unwrap();
}

/// The tiny model with biases in the parts that are named, as a folder; its parameters and their values.
fn biased(path: &Path, attention_bias: bool, mlp_bias: bool) -> Vec<(Parameter, Vec<f32>)> {
    let base = open("tiny-smollm");
    let mut model = open("tiny-smollm");
    (model.config.attention_bias, model.config.mlp_bias) = (attention_bias, mlp_bias);
    let values = |p: &Parameter| match p.kind {
        ParameterKind::Bias => common::uniform(p.shape[1], p.name.bytes().map(u64::from).sum()),
        _ => read(&base, p),
    };
    smolten::checkpoint::save_pretrained(path, &model, DType::F32, |p| Ok(values(p))).unwrap();
    model.config.parameters().into_iter().map(|p| (p.clone(), values(&p))).collect()
}

#[test]
fn biases_go_through_both_formats() {
    for (attention, mlp) in [(true, true), (true, false), (false, true)] {
        let out = tempfile::tempdir().unwrap();
        let all = biased(out.path(), attention, mlp);
        let model = Pretrained::open(out.path()).unwrap();
        let (file, again) = (out.path().join("x.gguf"), out.path().join("again"));
        export::gguf(&model, &file, GgmlType::Q8_0, "x").unwrap();
        let kinds = Gguf::open(&file).unwrap();
        let of_biases = kinds.tensors().filter(|(name, _)| name.ends_with(".bias"));
        assert!(of_biases.map(|(_, t)| t.kind).all(|kind| kind == GgmlType::F32));
        export::gguf(&model, &file, GgmlType::F32, "x").unwrap();
        export::folder(&model, &again, DType::F32).unwrap();
        for path in [&file, &again] {
            let read_again = Pretrained::open(path).unwrap();
            assert_eq!(read_again.config.parameters(), model.config.parameters());
            for (p, want) in &all {
                assert_eq!(bits(&read(&read_again, p)), bits(want), "{}", p.name);
            }
        }
        if attention {
            // Halves of a head interleaved, as the rows of its weight are.
            let head_dim = model.config.head_dim;
            let (_, q) = all.iter().find(|(p, _)| p.name.ends_with("0.self_attn.q_proj.bias")).unwrap();
            let stored = raw(&Gguf::open(&file).unwrap(), "blk.0.attn_q.bias");
            for i in 0..head_dim {
                assert_eq!(stored[head_dim + i], q[head_dim + i / 2 + i % 2 * head_dim / 2], "{i}");
            }
        }
    }
}

#[test]
fn a_bias_that_is_missing_or_too_much_is_named() {
    let out = tempfile::tempdir().unwrap();
    biased(out.path(), true, true);
    let file = out.path().join("x.gguf");
    export::gguf(&Pretrained::open(out.path()).unwrap(), &file, GgmlType::F32, "x").unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let renamed = |from: &str, to: &str| {
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bytes = bytes.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&file, bytes).unwrap();
        Pretrained::open(&file).err().expect("refused").to_string()
    };
    let error = renamed("blk.0.ffn_down.bias", "blk.0.ffn_dawn.bias");
    assert!(error.contains("mlp.down_proj.bias") && error.contains("missing"), "{error}");
    let error = renamed("blk.0.attn_q.bias", "blk.0.attn_Q.bias");
    assert!(error.contains("attn_") && error.contains("no place"), "{error}");
    edit(&out.path().join("config.json"), |config| config["mlp_bias"] = json!("perhaps"));
    let error = Pretrained::open(out.path()).err().expect("refused").to_string();
    assert!(error.contains("mlp_bias") && error.contains("true or false"), "{error}");
}

#[test]
fn more_rows_than_tokens_are_filled_up() {
    let out = tempfile::tempdir().unwrap();
    folder(out.path(), "tiny-llama3");
    // Two tokens fewer: the last two are plain words that no merge needs.
    edit(&out.path().join("tokenizer.json"), |json| {
        json["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64() < Some(298));
    });
    let path = out.path().join("x.gguf");
    export::gguf(&Pretrained::open(out.path()).unwrap(), &path, GgmlType::F32, "x").unwrap();
    let file = Gguf::open(&path).unwrap();
    let tokens = file.strings("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(tokens[298..], ["[PAD298]", "[PAD299]"]);
    assert_eq!(file.integers("tokenizer.ggml.token_type").unwrap().unwrap()[297..], [1, 5, 5]);
    let (again, model) = (Pretrained::open(&path).unwrap(), open("tiny-llama3"));
    assert_eq!(
        again.tokenizer.encode("the 10 things", true).unwrap(),
        model.tokenizer.encode("the 10 things", true).unwrap()
    );
}

#[test]
fn what_llama_cpp_has_no_name_for_is_refused() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 8] = [
        ("normalizer", |t| t["normalizer"] = json!({"type": "NFC"})),
        ("pre_tokenizer", |t| t["pre_tokenizer"] = json!({"type": "Whitespace"})),
        ("pre_tokenizer", |t| t["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = json!(false)),
        ("pre_tokenizer", |t| t["model"]["ignore_merges"] = json!(true)),
        ("model", |t| t["model"]["byte_fallback"] = json!(true)),
        ("decoder", |t| t["decoder"] = json!({"type": "Fuse"})),
        ("added_tokens", |t| t["added_tokens"][0]["lstrip"] = json!(true)),
        ("post_processor", |t| {
            let ends = json!({"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]});
            t["post_processor"] = json!({
                "type": "TemplateProcessing", "special_tokens": {"<|im_end|>": ends},
                "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            });
        }),
    ];
    for (part, change) in changes {
        let out = tempfile::tempdir().unwrap();
        folder(out.path(), "tiny-smollm");
        edit(&out.path().join("tokenizer.json"), change);
        let model = Pretrained::open(out.path()).unwrap();
        let path = out.path().join("x.gguf");
        let error = export::gguf(&model, &path, GgmlType::F32, "x").unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, Error::Input { .. }) && text.contains(&format!("\"{part}\"")),
            "{part}: {text}"
        );
        assert!(text.contains("--format hf") && !path.exists(), "{text}");
        export::folder(&model, &out.path().join("again"), DType::F32).unwrap();
    }
}

#[test]
fn what_a_type_cannot_hold_is_refused_and_leaves_no_file() {
    let out = tempfile::tempdir().unwrap();
    folder(out.path(), "tiny-smollm");
    let model = open("tiny-smollm");
    let name = "model.layers.0.mlp.up_proj.weight";
    for (value, kinds) in
        [(65_520.0, &[GgmlType::F16][..]), (f32::NAN, &[GgmlType::F32, GgmlType::Q8_0, GgmlType::F16])]
    {
        smolten::checkpoint::save_pretrained(out.path(), &model, DType::F32, |p| {
            let mut data = read(&model, p);
            data[7] = if p.name == name { value } else { data[7] };
            Ok(data)
        })
        .unwrap();
        let before = std::fs::read_dir(out.path()).unwrap().count();
        for &kind in kinds {
            let changed = Pretrained::open(out.path()).unwrap();
            let error = export::gguf(&changed, &out.path().join("x.gguf"), kind, "x").unwrap_err();
            let text = error.to_string();
            assert!(error.exit_code() == 2 && text.contains(name) && text.contains(kind.name()), "{text}");
            assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), before);
        }
    }
}
