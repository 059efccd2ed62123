//! One test for each way an input can be bad: exit code 2, and a message with file, line or field and what to do.

#[allow(dead_code, reason = "shared between tests")]
#[path = "common/runs.rs"]
mod runs;

use runs::{program, said, sums, tiny_model};
use smolten::checkpoint::save_pretrained;
use smolten::dtype::DType;
use smolten::pretrained::Pretrained;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A dry run of `train` is refused, and the message has every part.
#[track_caller]
fn refused(folder: &TempDir, arguments: &[&Path], parts: &[&str]) {
    let ran = program(folder.path()).args(["train", "--device", "cpu"]).args(arguments).output().unwrap();
    let said = said(&ran);
    assert_eq!(ran.status.code(), Some(2), "{arguments:?}: {said}");
    for part in parts {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
    assert!(said.lines().count() >= 2, "no remedy: {said}");
    assert!(!said.contains("panicked"), "{said}");
}

/// `train` with the tiny model on a data file of this name and content.
#[track_caller]
fn refused_data(name: &str, content: &[u8], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    let out = folder.path().join("out");
    refused(
        &folder,
        &[Path::new("--model"), &tiny_model(), Path::new("--data"), &path, Path::new("--out"), &out],
        parts,
    );
    assert!(!out.exists(), "a refused run leaves a folder");
}

/// `train` with this model on good rows.
#[track_caller]
fn refused_model(folder: &TempDir, model: &Path, parts: &[&str]) {
    let data = sums(folder.path());
    let out = folder.path().join("out");
    refused(
        folder,
        &[Path::new("--model"), model, Path::new("--data"), &data, Path::new("--out"), &out],
        parts,
    );
}

/// `train` with the tiny model on good rows, and these flags.
#[track_caller]
fn refused_flags(flags: &[&str], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (model, data, out) = (tiny_model(), sums(folder.path()), folder.path().join("out"));
    let mut arguments: Vec<&Path> = vec![Path::new("--model"), &model, Path::new("--data"), &data];
    if !flags.contains(&"--out") {
        arguments.extend([Path::new("--out"), &out]);
    }
    arguments.extend(flags.iter().map(Path::new));
    refused(&folder, &arguments, parts);
}

const GOOD: &str = "{\"prompt\": \"a\", \"response\": \"b\"}\n";

#[test]
fn missing_data() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (tiny_model(), folder.path().join("none.jsonl"));
    refused(
        &folder,
        &[Path::new("--model"), &model, Path::new("--data"), &data],
        &["none.jsonl", "No such file"],
    );
}

#[test]
fn empty_data() {
    refused_data("rows.jsonl", b"\n\n", &["rows.jsonl", "no rows", "at least one"]);
    refused_data("rows.csv", b"prompt,response\n", &["rows.csv", "no rows"]);
}

#[test]
fn malformed_row() {
    refused_data("rows.jsonl", format!("{GOOD}{{\"prompt\": \n").as_bytes(), &["rows.jsonl:2", "not JSON"]);
    refused_data("rows.csv", b"prompt,response\na,b\nc\n", &["rows.csv:3", "1 fields", "names 2"]);
}

#[test]
fn wrong_fields() {
    refused_data("rows.jsonl", b"{\"frage\": \"a\"}\n", &["rows.jsonl:1", "\"frage\"", "prompt_field"]);
    let second = format!("{GOOD}{{\"prompt\": \"a\"}}\n");
    refused_data("rows.jsonl", second.as_bytes(), &["rows.jsonl:2, field \"response\"", "no such field"]);
}

#[test]
fn null_field() {
    let rows = format!("{GOOD}{GOOD}{{\"prompt\": null, \"response\": \"b\"}}\n");
    refused_data("rows.jsonl", rows.as_bytes(), &["rows.jsonl:3, field \"prompt\"", "null"]);
}

#[test]
fn non_string_field() {
    refused_data(
        "rows.jsonl",
        b"{\"prompt\": \"a\", \"response\": 5}\n",
        &["rows.jsonl:1", "response", "number 5"],
    );
    let roles = b"{\"messages\": [{\"role\": \"user\", \"content\": [1]}]}\n";
    refused_data("rows.jsonl", roles, &["rows.jsonl:1", "messages[0].content", "a list"]);
}

#[test]
fn not_utf8() {
    let mut rows = GOOD.as_bytes().to_vec();
    rows.extend(b"{\"prompt\": \"\xff\", \"response\": \"b\"}\n");
    refused_data("rows.jsonl", &rows, &["rows.jsonl:2", "0xff", "UTF-8"]);
}

#[test]
fn junk_parquet() {
    refused_data("rows.parquet", b"PAR1 not really PAR1", &["rows.parquet", "cannot be read as parquet"]);
    refused_data("rows.parquet", b"", &["rows.parquet", "cannot be read as parquet"]);
}

#[test]
fn nothing_to_learn() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("rows.jsonl");
    std::fs::write(&data, format!("{{\"prompt\": \"{}\", \"response\": \"b\"}}\n", "a b ".repeat(400)))
        .unwrap();
    let (model, length) = (tiny_model(), PathBuf::from("32"));
    refused(
        &folder,
        &[Path::new("--model"), &model, Path::new("--data"), &data, Path::new("--max-length"), &length],
        &["none of the 1 rows has a token to learn", "--max-length", "--loss-on all"],
    );
}

/// What the audit finds stops a run, until the recipe allows it by name.
#[test]
fn findings_stop_a_run_unless_they_are_allowed() {
    let rows = GOOD.repeat(5);
    refused_data(
        "rows.jsonl",
        rows.as_bytes(),
        &["duplicates", "4 of 5 rows", "rows.jsonl:2", "--set allow"],
    );
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("rows.jsonl");
    std::fs::write(&data, rows).unwrap();
    let ran = program(folder.path())
        .args(["train", "--device", "cpu", "--dry-run", "--set", "allow=[\"duplicates\"]"])
        .args([Path::new("--model"), &tiny_model(), Path::new("--data"), &data])
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", said(&ran));
}

#[test]
fn learning_rate_not_a_number() {
    refused_flags(&["--lr", "nan"], &["--lr", "nan", "0 or more"]);
    refused_flags(&["--lr", "-1"], &["--lr", "-1"]);
}

#[test]
fn zero_batch() {
    refused_flags(&["--batch-size", "0"], &["--batch-size", "from 1"]);
    refused_flags(&["--grad-accum", "0"], &["--grad-accum", "from 1"]);
    refused_flags(&["--steps", "0"], &["--steps", "from 1"]);
}

#[test]
fn unwritable_output() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let under = file.join("out");
    refused_flags(&["--out", under.to_str().unwrap()], &["--out", "cannot write there", "another folder"]);
}

/// Two processes in one folder: tests/resume.rs.
#[test]
fn output_folder_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    std::fs::create_dir(folder.path().join("checkpoints")).unwrap();
    refused_flags(&["--out", out], &["--out", "holds a run already", "--resume"]);
    std::fs::remove_dir(folder.path().join("checkpoints")).unwrap();
    std::fs::write(folder.path().join("metrics.jsonl"), "").unwrap();
    refused_flags(&["--out", out], &["--out", "holds a run already", "--resume"]);
}

/// 404, 401, a revision that is not there, and no network: tests/hub, against a server.
#[test]
fn no_network() {
    let folder = tempfile::tempdir().unwrap();
    let ran = program(folder.path())
        .args(["train", "--model", "org/none", "--data", "builtin:reasoning", "--out"])
        .arg(folder.path().join("out"))
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .env_remove("HF_HUB_OFFLINE")
        .output()
        .unwrap();
    let said = said(&ran);
    assert_eq!(ran.status.code(), Some(2), "{said}");
    assert!(said.contains("org/none") && said.contains("HF_HUB_OFFLINE"), "{said}");
}

#[test]
fn cuda_without_driver_or_whole_kernels() {
    let folder = tempfile::tempdir().unwrap();
    let ran = program(folder.path())
        .args(["train", "--device", "cuda", "--data", "builtin:reasoning", "--model"])
        .arg(tiny_model())
        .output()
        .unwrap();
    let said = said(&ran);
    assert_eq!(ran.status.code(), Some(2), "{said}");
    assert!(said.contains("--device cuda:0") && said.contains("--device cpu"), "{said}");
}

/// The tiny model as a folder, with the fp32 weights' header as JSON changed by `edit`.
fn folder_model(edit: impl FnOnce(&mut serde_json::Value)) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    let model = Pretrained::open(&tiny_model()).unwrap();
    save_pretrained(&out, &model, DType::F32, |p| {
        let mut values = vec![0.0; p.shape[0] * p.shape[1]];
        model.weights.read(p, &mut values).map(|()| values)
    })
    .unwrap();
    let path = out.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let mut header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(&mut header);
    let text = header.to_string();
    let mut edited = (text.len() as u64).to_le_bytes().to_vec();
    edited.extend(text.as_bytes());
    edited.extend(&bytes[8 + length..]);
    std::fs::write(&path, edited).unwrap();
    (folder, out)
}

const NORM: &str = "model.norm.weight";

#[test]
fn truncated_safetensors() {
    let (folder, model) = folder_model(|_| {});
    let path = model.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 4, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        refused_model(
            &folder,
            &model,
            &["model.safetensors", "not a whole safetensors file", "fetch it again"],
        );
    }
}

#[test]
fn safetensors_header_too_long() {
    let (folder, model) = folder_model(|_| {});
    let path = model.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    refused_model(&folder, &model, &["model.safetensors", "not a whole safetensors file"]);
}

#[test]
fn safetensors_offsets_that_overlap() {
    let (folder, model) = folder_model(|header| header[NORM]["data_offsets"] = [0, 64].into());
    refused_model(&folder, &model, &["model.safetensors", "not a whole safetensors file"]);
}

#[test]
fn safetensors_offsets_outside() {
    let (folder, model) =
        folder_model(|header| header[NORM]["data_offsets"] = [1u64 << 40, (1u64 << 40) + 64].into());
    refused_model(&folder, &model, &["model.safetensors", "not a whole safetensors file"]);
}

#[test]
fn safetensors_of_a_wrong_dtype() {
    let (folder, model) = folder_model(|header| header[NORM]["dtype"] = "I32".into());
    refused_model(&folder, &model, &[NORM, "I32", "F32, F16 and BF16"]);
}

/// The tiny model's file with `new` at byte `at`.
fn gguf_with(at: usize, new: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut bytes = std::fs::read(tiny_model()).unwrap();
    bytes[at..at + new.len()].copy_from_slice(new);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[test]
fn gguf_huge_counts() {
    // Bytes 8 to 15 count the tensors, 16 to 23 the metadata.
    for at in [8, 16] {
        let (folder, model) = gguf_with(at, &(u64::MAX >> 1).to_le_bytes());
        refused_model(&folder, &model, &["model.gguf"]);
    }
}

#[test]
fn gguf_cut_file() {
    let (folder, model) = gguf_with(0, b"GGUF");
    let bytes = std::fs::read(&model).unwrap();
    for length in [0, 3, 20, bytes.len() / 4, bytes.len() - 1] {
        std::fs::write(&model, &bytes[..length]).unwrap();
        refused_model(&folder, &model, &["model.gguf"]);
    }
}

#[test]
fn gguf_bad_alignment() {
    // A metadata entry of its own, put first: general.alignment = 3 (u32).
    let bytes = std::fs::read(tiny_model()).unwrap();
    let entries = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    let key = b"general.alignment";
    let mut edited = bytes[..16].to_vec();
    edited.extend((entries + 1).to_le_bytes());
    edited.extend((key.len() as u64).to_le_bytes());
    edited.extend(key);
    edited.extend(4u32.to_le_bytes());
    edited.extend(3u32.to_le_bytes());
    edited.extend(&bytes[24..]);
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    std::fs::write(&model, edited).unwrap();
    refused_model(&folder, &model, &["model.gguf", "general.alignment"]);
}

/// The tiny model's folder with `config.json` changed.
#[track_caller]
fn refused_config(edit: impl FnOnce(&mut serde_json::Value), parts: &[&str]) {
    let (folder, model) = folder_model(|_| {});
    let path = model.join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    refused_model(&folder, &model, parts);
}

#[test]
fn absurd_configs() {
    refused_config(|c| c["hidden_size"] = 0.into(), &["config.json", "hidden_size"]);
    refused_config(|c| c["num_hidden_layers"] = 1e30.into(), &["config.json", "num_hidden_layers"]);
    refused_config(|c| c["num_attention_heads"] = 7.into(), &["config.json"]);
    refused_config(|c| c["intermediate_size"] = (1u64 << 40).into(), &["config.json"]);
    refused_config(|c| c["rms_norm_eps"] = "small".into(), &["config.json", "rms_norm_eps"]);
    refused_config(
        |c| c["architectures"] = serde_json::json!(["GPT2LMHeadModel"]),
        &["config.json", "GPT2LMHeadModel"],
    );
    refused_config(|c| *c = serde_json::json!([1]), &["config.json"]);
}

#[test]
fn vocabulary_mismatch() {
    let (folder, model) = folder_model(|_| {});
    let path = model.join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let added = serde_json::json!({"id": 99_999, "content": "<new>", "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false});
    tokenizer["added_tokens"].as_array_mut().unwrap().push(added);
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    refused_model(&folder, &model, &["tokenizer has", "the embedding", "rows"]);
}
