//! GGUF against the `gguf` and `tokenizers` packages (fixtures and their script: `fixtures/make_tiny_gguf.py`), and
//! what is refused.

use safetensors::SafeTensors;
use smolten::checkpoint::save_pretrained;
use smolten::config::{ModelConfig, Parameter, RopeScaling};
use smolten::dtype::DType;
use smolten::error::Error;
use smolten::gguf::Gguf;
use smolten::pretrained::Pretrained;
use smolten::tokenizer::Tokenizer;
use smolten::weights::Weights;
use std::path::{Path, PathBuf};

const NAMES: [&str; 2] = ["tiny-smollm", "tiny-llama3"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn weights_are_those_of_the_gguf_package_in_every_bit() {
    for name in NAMES {
        let file = Gguf::open(&fixture(&format!("{name}.gguf"))).unwrap();
        let config = ModelConfig::from_gguf(&file).unwrap();
        let weights = Weights::from_gguf(file).unwrap();
        let expected = std::fs::read(fixture(&format!("{name}.safetensors"))).unwrap();
        let expected = SafeTensors::deserialize(&expected).unwrap();
        let parameters = config.parameters();
        assert_eq!(parameters.len(), expected.len(), "{name}");
        for parameter in parameters {
            let mut got = vec![f32::NAN; parameter.shape[0] * parameter.shape[1]];
            weights.read(&parameter, &mut got).unwrap();
            let want = expected.tensor(&parameter.name).unwrap();
            assert_eq!(want.shape(), parameter.stored_shape());
            assert!(
                bytemuck::cast_slice::<f32, u8>(&got) == want.data(),
                "{name}: {} differs",
                parameter.name
            );
        }
    }
}

#[test]
fn token_ids_are_those_of_the_tokenizers_package() {
    for name in NAMES {
        let tokenizer =
            Tokenizer::from_gguf(&Gguf::open(&fixture(&format!("{name}.gguf"))).unwrap()).unwrap();
        let file = std::fs::read(fixture(&format!("{name}.safetensors"))).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&file).unwrap();
        let tokens = &metadata.metadata().as_ref().unwrap()["tokens"];
        let tokens: Vec<(String, Vec<u32>)> = serde_json::from_str(tokens).unwrap();
        assert!(tokens.len() > 15);
        for (text, want) in tokens {
            assert_eq!(tokenizer.encode(&text, true).unwrap(), want, "{name}: {text:?}");
            let first = usize::from(name == "tiny-llama3");
            assert_eq!(tokenizer.encode(&text, false).unwrap(), want[first..], "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&want[first..], false).unwrap(), text, "{name}");
        }
    }
}

#[test]
fn rotary_factors_become_the_four_numbers_they_came_from() {
    let model = Pretrained::open(&fixture("tiny-llama3.gguf")).unwrap();
    let scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!((model.config.rope_scaling, model.config.rope_theta), (scaling, 500_000.0));
    assert!(!model.config.tie_word_embeddings);
    assert_eq!(model.config.head_dim, 16);
}

/// The folder stays in the build tree, where `external/check_formats.py small` loads it.
#[test]
fn a_llama3_file_is_saved_as_a_folder_of_the_same_model() {
    let model = Pretrained::open(&fixture("tiny-llama3.gguf")).unwrap();
    let parameters = model.config.parameters();
    let read = |model: &Pretrained, p: &Parameter| {
        let mut out = vec![f32::NAN; p.shape[0] * p.shape[1]];
        model.weights.read(p, &mut out).unwrap();
        out
    };
    let data: Vec<_> = parameters.iter().map(|p| read(&model, p)).collect();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("small/llama3");
    save_pretrained(&folder, &model, DType::F32, |p| Ok(read(&model, p))).unwrap();
    let again = Pretrained::open(&folder).unwrap();
    assert_eq!(again.config, model.config);
    assert!(parameters.iter().zip(&data).all(|(p, d)| read(&again, p) == *d));
    assert_eq!(
        again.tokenizer.encode("hello", true).unwrap(),
        model.tokenizer.encode("hello", true).unwrap()
    );
}

/// The fixture tiny-smollm with the bytes from `skip` after the last occurrence of `after` overwritten.
fn patched(after: &[u8], skip: usize, new: &[u8]) -> Vec<u8> {
    patched_file("tiny-smollm.gguf", after, skip, new)
}

fn patched_file(name: &str, after: &[u8], skip: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = std::fs::read(fixture(name)).unwrap();
    let at = bytes.windows(after.len()).rposition(|w| w == after).unwrap() + after.len() + skip;
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

fn open(bytes: &[u8]) -> smolten::error::Result<Pretrained> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    Pretrained::open(&path)
}

#[track_caller]
fn refused(bytes: &[u8], words: &[&str]) {
    match open(bytes) {
        Ok(_) => panic!("opened; {words:?} expected"),
        Err(error @ Error::Input { .. }) => {
            let text = error.to_string();
            assert!(words.iter().all(|w| text.contains(w)), "{words:?} are not all in: {text}");
        }
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn the_unpatched_file_opens() {
    // Otherwise the refusals below would prove nothing.
    let model = open(&patched(b"GGUF", 0, &3u32.to_le_bytes())).unwrap();
    assert!(model.chatml_was_set);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    // Version, type of value and length of a text precede it.
    refused(&patched(b"GGUF", 0, &1u32.to_le_bytes()), &["version 1", "convert"]);
    refused(&patched(b"GGUF", 0, &3u32.to_be_bytes()), &["big-endian"]);
    refused(b"PK\x03\x04....", &["not a GGUF file"]);
    refused(b"", &["not a GGUF file"]);
    refused(&patched(b"general.architecture", 12, b"qwenX"), &["qwenX", "general.architecture", "\"llama\""]);
    refused(&patched(b"tokenizer.ggml.pre", 12, b"dbrxxx"), &["dbrxxx", "tokenizer.ggml.pre", "smollm"]);
    refused(&patched(b"tokenizer.ggml.model", 12, b"bert"), &["bert", "tokenizer.ggml.model"]);
    // After a tensor's name: number of axes, two axes, type.
    let q = b"blk.0.attn_q.weight";
    refused(&patched(q, 20, &12u32.to_le_bytes()), &["Q4_K", "blk.0.attn_q.weight", "Q8_0"]);
    refused(&patched(q, 20, &77u32.to_le_bytes()), &["unknown type 77", "blk.0.attn_q.weight"]);
    refused(&patched(q, 12, &32u64.to_le_bytes()), &["self_attn.q_proj.weight", "[32, 64]", "[64, 64]"]);
    refused(&patched(q, 4, &33u64.to_le_bytes()), &["attn_q", "blocks of 32"]);
    refused(&patched(q, 12, &(u64::MAX / 2).to_le_bytes()), &["attn_q", "inside the file"]);
    refused(&patched(q, 24, &(1u64 << 40).to_le_bytes()), &["attn_q", "inside the file"]);
    refused(&patched(q, 0, &9u32.to_le_bytes()), &["9 axes"]);
    let stray = patched_file("tiny-llama3.gguf", b"rope_freq", 0, b"z");
    refused(&stray, &["rope_freqz.weight", "no place for it"]);
    let ones = [1f32.to_le_bytes(), 1f32.to_le_bytes()].concat();
    let blended = patched_file("tiny-llama3.gguf", &ones, 0, &2.9f32.to_le_bytes());
    refused(&blended, &["rope_freqs.weight", "another rule"]);
    refused(
        &patched(b"llama.attention.head_count_kv", 4, &3u32.to_le_bytes()),
        &["num_key_value_heads", "multiple"],
    );
    refused(
        &patched(b"llama.attention.head_count_kv", 0, &6u32.to_le_bytes()),
        &["head_count_kv", "floating-point"],
    );
    refused(
        &patched(b"llama.rope.dimension_count", 4, &8u32.to_le_bytes()),
        &["dimension_count", "width of a head"],
    );
    refused(&patched(b"llama.block_count", 4, &9u32.to_le_bytes()), &["model.layers.1", "missing"]);
    refused(&patched(b"llama.feed_forward_length", 4, &0u32.to_le_bytes()), &["intermediate_size", "1..="]);
    // The vocabulary's first token again instead of its second.
    refused(&patched(b"<|im_star", 0, b"X"), &["ChatML", "<|im_start|>"]);
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let whole = std::fs::read(fixture("tiny-smollm.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for end in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        std::fs::write(&path, &whole[..end]).unwrap();
        let error = Gguf::open(&path).err().unwrap_or_else(|| panic!("opened with {end} bytes"));
        assert!(matches!(error, Error::Input { .. }), "{error:?}");
    }
}
