//! Damaged and hostile files: an error, never a panic, never memory out of proportion to the file.
//!
//! Every reader gets valid files with a few edits: bytes overwritten by extreme numbers and by words of the format,
//! pieces inserted, removed, repeated, the end cut off. `SMOLTEN_FUZZ_CASES` says how many for each reader; a run
//! prints its count.

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use smolten::checkpoint::save_pretrained;
use smolten::config::ModelConfig;
use smolten::dataset::{FieldNames, read_rows};
use smolten::dtype::DType;
use smolten::pretrained::Pretrained;
use smolten::recipe::{Recipe, RecipeOverrides};
use smolten::template::{ChatTemplate, Message};
use smolten::weights::Weights;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Cases of each reader in an ordinary run.
const CASES: u32 = 2000;

thread_local! {
    /// Bytes this thread holds, and the most it has held.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

struct Watched;

impl Watched {
    fn note(change: isize) {
        // A thread that ends has no counters any more, and is not watched any more.
        let _ = HELD.try_with(|held| {
            held.set(held.get() + change);
            let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
        });
    }
}

// SAFETY: every call goes to the system's allocator unchanged; only its size is noted, without allocating.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size().cast_signed());
        // SAFETY: the caller's promise about the layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::note(-layout.size().cast_signed());
        // SAFETY: the pointer came from `alloc` above with this layout, as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// One change of a file; places and lengths are shares of what there is.
#[derive(Clone, Debug)]
enum Edit {
    Overwrite(f64, Vec<u8>),
    Insert(f64, Vec<u8>),
    Remove(f64, f64),
    Repeat(f64, f64),
    CutOff(f64),
}

/// Edits whose words are numbers of all sizes and `words`. `head` is the share of the file that most of them hit.
fn edits(words: &'static [&'static str], head: f64) -> impl Strategy<Value = Vec<Edit>> {
    let piece = prop_oneof![
        3 => any::<u8>().prop_map(|b| vec![b]),
        1 => any::<u32>().prop_map(|n| n.to_le_bytes().to_vec()),
        1 => any::<u64>().prop_map(|n| n.to_le_bytes().to_vec()),
        2 => (0u64..400).prop_map(|n| n.to_le_bytes().to_vec()),
        1 => (0u32..64).prop_map(|bits| (u64::MAX >> bits).to_le_bytes().to_vec()),
        1 => (0u32..40).prop_map(|n| n.to_le_bytes().to_vec()),
        4 => prop::sample::select(words).prop_map(|word| word.as_bytes().to_vec()),
    ];
    let place = prop_oneof![9 => 0.0..head, 1 => 0.0..1.0];
    let edit = prop_oneof![
        6 => (place.clone(), piece.clone()).prop_map(|(at, new)| Edit::Overwrite(at, new)),
        3 => (place.clone(), piece).prop_map(|(at, new)| Edit::Insert(at, new)),
        1 => (place.clone(), 0.0..0.1).prop_map(|(at, length)| Edit::Remove(at, length)),
        1 => (place, 0.0..0.1).prop_map(|(at, length)| Edit::Repeat(at, length)),
        1 => (0.0..1.0).prop_map(Edit::CutOff),
    ];
    prop::collection::vec(edit, 1..4)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length")]
fn at(share: f64, length: usize) -> usize {
    (share * length as f64) as usize
}

fn apply(bytes: &mut Vec<u8>, edits: &[Edit]) {
    for edit in edits {
        let length = bytes.len();
        match edit {
            Edit::Overwrite(place, new) => {
                let start = at(*place, length);
                let end = (start + new.len()).min(length);
                bytes[start..end].copy_from_slice(&new[..end - start]);
            }
            Edit::Insert(place, new) => {
                let start = at(*place, length);
                bytes.splice(start..start, new.iter().copied());
            }
            Edit::Remove(place, share) => {
                let start = at(*place, length);
                bytes.drain(start..(start + at(*share, length)).min(length));
            }
            Edit::Repeat(place, share) => {
                let start = at(*place, length);
                let piece = bytes[start..(start + at(*share, length)).min(length)].to_vec();
                bytes.splice(start..start, piece);
            }
            Edit::CutOff(share) => bytes.truncate(at(*share, length)),
        }
    }
}

/// Gives `read` the edited files of `seeds`, one after the other, as a file called `name`.
fn fuzz(
    reader: &str,
    name: &str,
    seeds: &[Vec<u8>],
    (words, head): (&'static [&'static str], f64),
    read: impl Fn(&Path),
) {
    let cases = std::env::var("SMOLTEN_FUZZ_CASES").ok();
    let cases = cases.map_or(CASES, |n| n.parse().expect("SMOLTEN_FUZZ_CASES is a number"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[34; 32]);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, rng);
    let strategy = (0..seeds.len(), edits(words, head));
    let result = runner.run(&strategy, |(seed, edits)| {
        let mut bytes = seeds[seed].clone();
        apply(&mut bytes, &edits);
        std::fs::write(&path, &bytes).unwrap();
        let before = HELD.get();
        MOST.set(before);
        read(&path);
        let (most, limit) = (MOST.get() - before, 2 * bytes.len() + (64 << 20));
        let text = || String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned();
        prop_assert!(most <= limit.cast_signed(), "{most} bytes for a file of {}: {}", bytes.len(), text());
        Ok(())
    });
    println!("{reader}: {cases} inputs");
    if let Err(error) = result {
        panic!("{reader}: {error}");
    }
}

const JSON_WORDS: &[&str] = &[
    "9",
    "-1",
    "\"",
    "}",
    "[",
    "{",
    "null",
    "1e999",
    "18446744073709551615",
    "\\u0000",
    "\\ud800",
    "true",
    "[[[[[[",
    "99999999999999999999",
    "\"F64\"",
    "\"I4\"",
    "__metadata__",
    "\"data_offsets\":[0,4]",
    ",",
];

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-smollm.gguf")
}

/// Opens the model and reads all of it where that is possible.
fn open_and_read(path: &Path) {
    let Ok(model) = Pretrained::open(path) else { return };
    for parameter in model.config.parameters() {
        let mut out = vec![0.0; parameter.shape[0] * parameter.shape[1]];
        let _ = model.weights.read(&parameter, &mut out);
    }
    let _ = model.tokenizer.encode("a  12 <|im_end|>", true);
}

/// A saved folder's files.
fn folder() -> &'static [(String, Vec<u8>)] {
    static FILES: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let model = Pretrained::open(&tiny()).unwrap();
        let out = tempfile::tempdir().unwrap();
        save_pretrained(out.path(), &model, DType::BF16, |p| {
            let mut values = vec![0.0; p.shape[0] * p.shape[1]];
            model.weights.read(p, &mut values)?;
            Ok(values)
        })
        .unwrap();
        let files = std::fs::read_dir(out.path()).unwrap().map(|e| e.unwrap());
        files.map(|f| (f.file_name().into_string().unwrap(), std::fs::read(f.path()).unwrap())).collect()
    })
}

fn saved(name: &str) -> Vec<u8> {
    folder().iter().find(|(file, _)| file == name).unwrap().1.clone()
}

#[test]
fn gguf() {
    // Metadata and tensor table; the weights themselves may be anything.
    let words: &[&str] =
        &["llama", "GGUF", "general.alignment", "tokenizer.ggml.tokens", ".weight", "blk.0."];
    fuzz("gguf", "model.gguf", &[fixture("tiny-smollm.gguf")], (words, 0.35), open_and_read);
}

#[test]
fn safetensors() {
    let config: serde_json::Value = serde_json::from_slice(&saved("config.json")).unwrap();
    let config = ModelConfig::from_json(&config, Path::new("config.json")).unwrap();
    let seeds = [saved("model.safetensors")];
    fuzz("safetensors", "model.safetensors", &seeds, (JSON_WORDS, 0.05), |path| {
        let Ok(weights) = Weights::open(path.parent().unwrap()) else { return };
        let _ = weights.description();
        if weights.check(&config).is_ok() {
            for parameter in config.parameters() {
                let mut out = vec![0.0; parameter.shape[0] * parameter.shape[1]];
                let _ = weights.read(&parameter, &mut out);
            }
        }
    });
}

/// Each of the small files of a model's folder, the others being as they should.
#[test]
fn model_folder() {
    for (name, bytes) in folder().iter().filter(|(name, _)| name != "model.safetensors") {
        let place = tempfile::tempdir().unwrap();
        for (other, bytes) in folder() {
            std::fs::write(place.path().join(other), bytes).unwrap();
        }
        fuzz(name, name, std::slice::from_ref(bytes), (JSON_WORDS, 1.0), |path| {
            std::fs::copy(path, place.path().join(name)).unwrap();
            open_and_read(place.path());
        });
    }
}

/// Each file of an adapter, its base being as it should.
#[test]
fn adapter() {
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let place = tempfile::tempdir().unwrap();
        // The base lies where the fixture's settings say: beside the adapter's folder.
        let inside = place.path().join("adapter");
        std::fs::create_dir(&inside).unwrap();
        std::fs::copy(tiny(), place.path().join("tiny-smollm.gguf")).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::write(inside.join(file), fixture(&format!("tiny-smollm-lora/{file}"))).unwrap();
        }
        let seed = fixture(&format!("tiny-smollm-lora/{name}"));
        let head = if name.ends_with(".json") { 1.0 } else { 0.2 };
        fuzz(name, name, &[seed], (JSON_WORDS, head), |path| {
            std::fs::copy(path, inside.join(name)).unwrap();
            open_and_read(&inside);
        });
    }
}

#[test]
fn jsonl() {
    let seeds = [
        b"{\"prompt\": \"a\", \"response\": \"b\"}\n{\"prompt\": \"c\", \"response\": \"d \\u00e9\"}\n".to_vec(),
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n"
            .to_vec(),
        b"{\"instruction\": \"a\", \"input\": \"\", \"output\": \"b\"}\n\n{\"instruction\": \"a\", \"output\": \"b\"}"
            .to_vec(),
    ];
    for name in ["rows.jsonl", "rows.json", "rows.csv"] {
        fuzz(name, name, &seeds, (JSON_WORDS, 1.0), read_data);
    }
}

#[test]
fn parquet() {
    let names = ["pairs-none", "pairs-snappy", "pairs-gzip", "pairs-zstd", "pairs-lz4", "messages", "null"];
    let seeds = names.map(|name| fixture(&format!("rows/{name}.parquet")));
    fuzz("parquet", "rows.parquet", &seeds, (&["PAR1", "prompt", "\u{15}\u{4}", "\u{19}"], 1.0), read_data);
}

fn read_data(path: &Path) {
    let _ = read_rows(path.to_str().unwrap(), &FieldNames::default());
}

#[test]
fn template() {
    const WORDS: &[&str] = &[
        "{{",
        "}}",
        "{%",
        "%}",
        "{% generation %}",
        "{% endgeneration %}",
        "{% for i in range(99999) %}",
        "{% endfor %}",
        "range(999999999)",
        " * 999999999",
        "'x' * 9999999",
        "messages",
        "[-9]",
        "[1:0:-1]",
        "|tojson(indent=99999999)",
        "|indent(99999999)",
        "|indent(width=99999999)",
        "{{ '%99999999d'|format(1) }}",
        ".center(99999999)",
        ".zfill(99999999)",
        "(1, 2) * 99999999",
        ".split('')",
        "loop.index",
        "{% if ",
        "{% endif %}",
        "~",
        "strftime_now('%')",
        "raise_exception(1)",
        "{% set x = ",
        "{% macro f(a) %}",
        "{{ f(f) }}",
        "{% set ns.a = ns %}",
        "{{ ns }}",
        "namespace(",
        ".replace('', 'xxxxxxxxxxxxxxxx')",
        "**99",
        "(((((((((((((((((((",
    ];
    let mut seeds = vec![saved("chat_template.jinja")];
    let real: serde_json::Value = serde_json::from_slice(&fixture("templates.json")).unwrap();
    let mut sources = Vec::new();
    collect_templates(&real, &mut sources);
    assert!(!sources.is_empty());
    seeds.extend(sources.into_iter().filter(|s| s.len() < 6000).map(String::into_bytes));
    let messages = [Message::new("system", "s"), Message::new("user", "u"), Message::new("assistant", "a")];
    fuzz("template", "chat_template.jinja", &seeds, (WORDS, 1.0), |path| {
        let Ok(source) = std::fs::read_to_string(path) else { return };
        let Ok(template) = ChatTemplate::new(&source, "<s>", "</s>") else { return };
        let _ = template.render(&messages, true);
    });
}

/// Every template of the fixture.
fn collect_templates(value: &serde_json::Value, into: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                match value.as_str() {
                    Some(text) if key.contains("template") && text.contains("{%") => {
                        into.push(text.to_owned())
                    }
                    _ => collect_templates(value, into),
                }
            }
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| collect_templates(value, into)),
        _ => {}
    }
}

#[test]
fn recipe() {
    const WORDS: &[&str] = &[
        "=",
        "\"",
        "[",
        "]",
        "[[a]]",
        "[model]",
        "{",
        "}",
        "'''",
        "\n",
        "nan",
        "-inf",
        "1e999",
        "9223372036854775808",
        "1979-05-27",
        "0x",
        "lr",
        "compat = \"trl-0.17\"",
        "epochs = 1e-300",
        "a.b.c = 1",
        "\\u0000",
    ];
    let recipes = ["quickstart", "smollm2-360m-deepthink"];
    let read =
        |name| std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("recipes/{name}.toml")));
    let seeds = recipes.map(|name| read(name).unwrap());
    fuzz("recipe", "r.toml", &seeds, (WORDS, 1.0), |path| {
        if let Ok(recipe) = Recipe::resolve(path.to_str(), &[], &RecipeOverrides::default()) {
            let _ = recipe.learning_rate(3, recipe.total_steps(7));
        }
    });
}
