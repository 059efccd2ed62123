//! Model folders: shards, element types, tied heads, missing and stray parts, base models.
//!
//! The folders of `tied_heads_…` stay in the build tree, where `external/check_formats.py small` loads them.

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use smolten::checkpoint::{save_pretrained, write_beside};
use smolten::config::Parameter;
use smolten::dtype::DType;
use smolten::pretrained::Pretrained;
use smolten::template::Message;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

fn tiny() -> Pretrained {
    Pretrained::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-smollm.gguf")).unwrap()
}

fn read(model: &Pretrained, parameter: &Parameter) -> Vec<f32> {
    let mut out = vec![f32::NAN; parameter.shape[0] * parameter.shape[1]];
    model.weights.read(parameter, &mut out).unwrap();
    out
}

/// Shape, type and bytes of tensors by name: what a test changes before writing.
type Tensors = BTreeMap<String, (Vec<usize>, Dtype, Vec<u8>)>;

/// The tiny model as a folder, and its tensors.
fn folder(path: &Path) -> Tensors {
    let model = tiny();
    let parameters = model.config.parameters();
    let data: Vec<_> = parameters.iter().map(|p| read(&model, p)).collect();
    save_pretrained(path, &model, DType::F32, |p| Ok(read(&model, p))).unwrap();
    let bytes = |data: &[f32]| bytemuck::cast_slice(data).to_vec();
    parameters
        .iter()
        .zip(&data)
        .map(|(p, d)| (p.name.clone(), (p.stored_shape(), Dtype::F32, bytes(d))))
        .collect()
}

fn write(tensors: &Tensors, path: &Path) {
    let views = tensors
        .iter()
        .map(|(name, (shape, dtype, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    serialize_to_file(views, None, path).unwrap();
}

fn set_config(path: &Path, changes: Value) {
    let file = path.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(file, config.to_string()).unwrap();
}

#[track_caller]
fn refused(path: &Path, words: &[&str]) {
    let error = Pretrained::open(path).err().expect("it should be refused");
    assert_eq!(error.exit_code(), 2, "{error}");
    let text = error.to_string();
    assert!(words.iter().all(|w| text.contains(w)), "{words:?} are not all in: {text}");
}

#[test]
fn shards_and_element_types_are_read() {
    let out = tempfile::tempdir().unwrap();
    let mut tensors = folder(out.path());
    std::fs::remove_file(out.path().join("model.safetensors")).unwrap();
    // Half of the tensors in bf16 and fp16, values that these types hold exactly.
    let mut expected = BTreeMap::new();
    for (i, (name, (_, dtype, data))) in tensors.iter_mut().enumerate() {
        let values: Vec<f32> = data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let rounded: Vec<f32> =
            values.iter().map(|&x| half::bf16::from_f32(x).to_f32().clamp(-1.0, 1.0)).collect();
        match i % 3 {
            0 => {}
            1 => {
                let stored: Vec<_> = rounded.iter().map(|&x| half::bf16::from_f32(x)).collect();
                (*dtype, *data) = (Dtype::BF16, bytemuck::cast_slice(&stored).to_vec());
            }
            _ => {
                let stored: Vec<_> = values.iter().map(|&x| half::f16::from_f32(x)).collect();
                (*dtype, *data) = (Dtype::F16, bytemuck::cast_slice(&stored).to_vec());
            }
        }
        let f16 = || values.iter().map(|&x| half::f16::from_f32(x).to_f32()).collect();
        expected.insert(name.clone(), [values.clone(), rounded, f16()][i % 3].clone());
    }
    let mut map = serde_json::Map::new();
    for shard in 0..2 {
        let name = format!("model-0000{}-of-00002.safetensors", shard + 1);
        let part: Tensors =
            tensors.iter().skip(shard).step_by(2).map(|(n, t)| (n.clone(), t.clone())).collect();
        map.extend(part.keys().map(|tensor| (tensor.clone(), json!(name))));
        write(&part, &out.path().join(name));
    }
    let index = out.path().join("model.safetensors.index.json");
    std::fs::write(&index, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    let model = Pretrained::open(out.path()).unwrap();
    for parameter in model.config.parameters() {
        let (got, want) = (read(&model, &parameter), &expected[&parameter.name]);
        assert!(got.iter().map(|x| x.to_bits()).eq(want.iter().map(|x| x.to_bits())), "{}", parameter.name);
    }
    assert!(model.description[0].contains("safetensors"), "{:?}", model.description);

    map.insert(EMBEDDING.to_owned(), json!("../elsewhere.safetensors"));
    std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    refused(out.path(), &["index.json", EMBEDDING, "no file name"]);
    map.insert(EMBEDDING.to_owned(), json!("model-00003-of-00002.safetensors"));
    std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    refused(out.path(), &["model-00003-of-00002.safetensors", "not in the folder"]);
}

/// What transformers 5 makes of each (see `PreTrainedModel.tie_weights`).
#[test]
fn tied_heads_are_handled_as_transformers_does() {
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("small");
    let change = |name: &str, tied: bool, edit: &dyn Fn(&mut Tensors)| {
        let path = out.join(name);
        let mut tensors = folder(&path);
        edit(&mut tensors);
        write(&tensors, &path.join("model.safetensors"));
        set_config(&path, json!({"tie_word_embeddings": tied}));
        path
    };
    let head_of = |path: &Path| {
        let model = Pretrained::open(path).unwrap();
        let parameters = model.config.parameters();
        let find = |name: &str| parameters.iter().find(|p| p.name == name).map(|p| read(&model, p));
        (model.config.tie_word_embeddings, find(EMBEDDING).unwrap(), find(HEAD))
    };
    let copy = |t: &mut Tensors| t.insert(HEAD.to_owned(), t[EMBEDDING].clone());
    let other = |t: &mut Tensors| {
        copy(t);
        t.get_mut(HEAD).unwrap().2[0] ^= 1;
    };
    let (tied, embedding, head) = head_of(&change("tied-same", true, &|t| drop(copy(t))));
    assert!(tied && head.is_none());
    let (tied, same, head) = head_of(&change("tied-different", true, &other));
    assert!(!tied && same == embedding && head.is_some_and(|h| h != embedding));
    let (tied, swapped, head) = head_of(&change("tied-head-only", true, &|t| {
        copy(t);
        t.remove(EMBEDDING);
    }));
    assert!(tied && swapped == embedding && head.is_none());
    let (tied, _, head) = head_of(&change("untied-same", false, &|t| drop(copy(t))));
    assert!(!tied && head == Some(embedding));
    refused(&change("untied-no-head", false, &|_| {}), &[HEAD, "missing", "tie_word_embeddings"]);
    std::fs::remove_dir_all(out.join("untied-no-head")).unwrap();
}

#[test]
fn missing_and_stray_tensors_are_named() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("model.safetensors");
    let whole = folder(out.path());
    let norm = "model.layers.0.input_layernorm.weight";
    let with = |edit: &dyn Fn(&mut Tensors)| {
        let mut tensors = whole.clone();
        edit(&mut tensors);
        write(&tensors, &file);
    };
    let small = (vec![2], Dtype::F32, vec![0; 8]);
    with(&|t| drop(t.remove(norm)));
    refused(out.path(), &[norm, "missing"]);
    with(&|t| drop(t.insert(norm.to_owned(), small.clone())));
    refused(out.path(), &[norm, "[2]", "[64]"]);
    with(&|t| drop(t.insert(norm.to_owned(), (vec![64], Dtype::I64, vec![0; 512]))));
    refused(out.path(), &[norm, "I64", "BF16"]);
    with(&|t| {
        t.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), small.clone());
        t.insert("model.extra.weight".to_owned(), small.clone());
    });
    let lines = Pretrained::open(out.path()).unwrap().description.join("\n");
    assert!(lines.contains("model.extra.weight") && !lines.contains("inv_freq"), "{lines}");
    // Two rows of the embedding fewer than the tokenizer has tokens.
    with(&|t| {
        let embedding = t.get_mut(EMBEDDING).unwrap();
        embedding.0[0] -= 2;
        embedding.2.truncate(embedding.0[0] * 64 * 4);
    });
    set_config(out.path(), json!({"vocab_size": 298}));
    refused(out.path(), &["300 tokens", "298 rows"]);
}

#[test]
fn a_base_model_gets_chatml_and_its_tokens() {
    let out = tempfile::tempdir().unwrap();
    folder(out.path());
    // As SmolLM2's base models are: first and last token are <|endoftext|>, no filler, no template.
    std::fs::remove_file(out.path().join("chat_template.jinja")).unwrap();
    set_config(out.path(), json!({"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": null}));
    let tokens = json!({"bos_token": {"content": "<|endoftext|>"}, "eos_token": "<|endoftext|>", "padding_side": "left"});
    std::fs::write(out.path().join("tokenizer_config.json"), tokens.to_string()).unwrap();
    let generation = json!({"bos_token_id": 0, "eos_token_id": 0, "max_length": 77});
    std::fs::write(out.path().join("generation_config.json"), generation.to_string()).unwrap();

    let model = Pretrained::open(out.path()).unwrap();
    assert!(model.chatml_was_set);
    assert!(model.description.iter().any(|line| line.contains("ChatML")), "{:?}", model.description);
    assert_eq!((model.config.bos_token_id, model.config.pad_token_id), (Some(1), Some(2)));
    assert_eq!((&model.config.eos_token_ids[..], &model.stop_ids[..]), (&[2][..], &[2][..]));
    assert_eq!(
        (model.bos_token.as_deref(), model.pad_token.as_deref()),
        (Some("<|im_start|>"), Some("<|im_end|>"))
    );
    let text = model.template.render(&[Message::new("user", "x")], true).unwrap();
    assert_eq!(text, "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n");

    let again = tempfile::tempdir().unwrap();
    save_pretrained(again.path(), &model, DType::F32, |p| Ok(read(&model, p))).unwrap();
    let json = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(again.path().join(name)).unwrap()).unwrap()
    };
    assert_eq!(
        json("generation_config.json"),
        json!({"bos_token_id": 1, "eos_token_id": 2, "max_length": 77, "pad_token_id": 2})
    );
    let tokenizer = json("tokenizer_config.json");
    assert_eq!((&tokenizer["eos_token"], &tokenizer["padding_side"]), (&json!("<|im_end|>"), &json!("left")));
    assert_eq!(tokenizer["tokenizer_class"], "PreTrainedTokenizerFast");
    let opened = Pretrained::open(again.path()).unwrap();
    assert!(!opened.chatml_was_set && opened.config == model.config);
}

#[test]
fn templates_and_stop_tokens_come_from_where_transformers_looks() {
    let out = tempfile::tempdir().unwrap();
    folder(out.path());
    let named = json!([{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]);
    let tokens = json!({"chat_template": named, "eos_token": "<|im_end|>"});
    std::fs::write(out.path().join("tokenizer_config.json"), tokens.to_string()).unwrap();
    std::fs::write(out.path().join("generation_config.json"), json!({"eos_token_id": [5, 2, 7]}).to_string())
        .unwrap();
    std::fs::write(out.path().join("chat_template.jinja"), "J").unwrap();
    let model = Pretrained::open(out.path()).unwrap();
    assert_eq!((model.template.source(), &model.stop_ids[..]), ("J", &[5, 2, 7][..]));
    std::fs::remove_file(out.path().join("chat_template.jinja")).unwrap();
    std::fs::write(out.path().join("generation_config.json"), json!({"eos_token_id": [5]}).to_string())
        .unwrap();
    let model = Pretrained::open(out.path()).unwrap();
    assert_eq!((model.template.source(), &model.stop_ids[..]), ("D", &[5, 2][..]));
}

#[test]
fn what_is_no_model_is_refused_with_the_way_out() {
    let out = tempfile::tempdir().unwrap();
    refused(
        Path::new("HuggingFaceTB/SmolLM2-135M"),
        &["HuggingFaceTB/SmolLM2-135M", "no such file", "org/name"],
    );
    let text = out.path().join("model.bin");
    std::fs::write(&text, "x").unwrap();
    refused(&text, &["neither a folder nor a .gguf file"]);
    refused(out.path(), &["config.json"]);
    folder(out.path());
    std::fs::remove_file(out.path().join("model.safetensors")).unwrap();
    refused(out.path(), &["model.safetensors.index.json"]);
    std::fs::write(out.path().join("pytorch_model.bin"), "x").unwrap();
    refused(out.path(), &["pytorch_model.bin", "safetensors"]);
    std::fs::write(out.path().join("model.safetensors"), "x").unwrap();
    refused(out.path(), &["model.safetensors", "not a whole safetensors file"]);
    std::fs::remove_file(out.path().join("tokenizer.json")).unwrap();
    refused(out.path(), &["tokenizer.json"]);
}

#[test]
fn a_file_is_whole_or_not_there() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("metrics.json");
    write_beside(&path, |file| file.write_all(b"first")).unwrap();
    let error = write_beside(&path, |file| {
        file.write_all(b"second, only ha")?;
        Err(std::io::Error::other("the disk is full"))
    });
    assert!(error.unwrap_err().to_string().contains("the disk is full"));
    assert_eq!(std::fs::read(&path).unwrap(), b"first");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1, "remains of the failed write");
}

#[test]
#[should_panic(expected = "values of model.norm.weight")]
fn a_tensor_of_another_size_is_not_saved_in_silence() {
    let out = tempfile::tempdir().unwrap();
    let model = tiny();
    let _ = save_pretrained(out.path(), &model, DType::F32, |p| {
        let mut data = read(&model, p);
        data.truncate(if p.name == "model.norm.weight" { 1 } else { data.len() });
        Ok(data)
    });
}
