//! The token cache: the same examples on every way, and no file that is not as it was written is ever trusted.

mod common;

use common::bytes::{Setting, source};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use smolten::batch::{BatchOptions, Batches, Examples, Order, Window};
use smolten::dataset::{DataKind, DataSource, Dataset, Encoder, FieldNames, load};
use smolten::recipe::LossOn;
use smolten::template::ChatTemplate;
use std::path::{Path, PathBuf};

const HEADER: usize = 128;

/// A data file and a cache folder.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let line = |i: usize| {
            format!(
                "{{\"prompt\":\"{}\",\"response\":\"{}\"}}\n",
                "p".repeat(1 + i % 5),
                "r".repeat(1 + i % 7)
            )
        };
        std::fs::write(folder.path().join("rows.jsonl"), (0..6).map(line).collect::<String>()).unwrap();
        Self { folder }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("rows.jsonl")
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn load(&self, encoder: &Encoder<'_>) -> Dataset {
        load(&source(&self.data()), encoder, &FieldNames::default(), Some(&self.cache())).unwrap()
    }
}

/// Ids, flags and row of each example.
type All = Vec<(Vec<u32>, Vec<bool>, u64)>;

fn all(examples: &Examples) -> All {
    let one = |i| (examples.ids(i).to_vec(), examples.supervised(i).collect(), examples.origin(i).number);
    (0..examples.len()).map(one).collect()
}

/// What a fresh cache holds, and where: not mapped any more, so that a test may write into the file.
fn written(dataset: Dataset) -> (All, PathBuf) {
    (all(&dataset.examples), dataset.path.unwrap())
}

fn windows(dataset: &Dataset) -> Vec<Window> {
    let options = BatchOptions { batch_size: 2, grad_accum: 2, packing: Some(64), order: Order::Shuffled(1) };
    let chosen = (0..dataset.examples.len()).collect();
    Batches::new(dataset.examples.clone(), chosen, options).windows(0).take(6).collect()
}

#[test]
fn the_second_run_reads_what_the_first_wrote() {
    let (setting, place) = (Setting::new(), Place::new());
    let encoder = setting.encoder(LossOn::Completion, 64);
    let first = place.load(&encoder);
    let second = place.load(&encoder);
    let without = load(&source(&place.data()), &encoder, &FieldNames::default(), None).unwrap();
    assert_eq!((first.cached, second.cached, without.cached), (false, true, false));
    assert_eq!((&first.path, without.path.as_ref()), (&second.path, None));
    assert!(second.path.as_ref().unwrap().starts_with(place.cache()));
    assert!(first.notes.is_empty() && second.notes.is_empty() && without.notes.is_empty());
    for other in [&second, &without] {
        assert_eq!(other.audit, first.audit);
        assert_eq!(all(&other.examples), all(&first.examples));
        assert_eq!(windows(other), windows(&first));
    }
    assert_eq!(second.sha256, [format!("{:x}", Hex(&std::fs::read(place.data()).unwrap()))]);
    let left: Vec<_> = std::fs::read_dir(place.cache()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left, [second.path.unwrap()], "only the one file remains");
}

/// SHA-256 of bytes, as text.
struct Hex<'a>(&'a [u8]);

impl std::fmt::LowerHex for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Sha256::digest(self.0).iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The same bytes under another name are the same data, and messages name the file that was asked for.
#[test]
fn a_cache_belongs_to_the_content() {
    let (setting, place) = (Setting::new(), Place::new());
    let encoder = setting.encoder(LossOn::Completion, 24);
    let first = place.load(&encoder);
    let copy = place.folder.path().join("copy.jsonl");
    std::fs::copy(place.data(), &copy).unwrap();
    let again = load(&source(&copy), &encoder, &FieldNames::default(), Some(&place.cache())).unwrap();
    assert!(again.cached && first.audit.truncated > 0);
    assert!(again.place(0).ends_with("copy.jsonl:1"), "{}", again.place(0));
    let place = &again.audit.places["truncated"][0];
    assert!(place.contains("copy.jsonl:"), "{place}");
}

#[test]
fn the_key_changes_with_everything_that_matters() {
    let (setting, place) = (Setting::new(), Place::new());
    let encoder = setting.encoder(LossOn::Completion, 64);
    let (names, cache) = (FieldNames::default(), place.cache());
    let mut paths = vec![place.load(&encoder).path.unwrap()];
    let mut other = |source: &DataSource, encoder: &Encoder<'_>, names: &FieldNames| {
        let loaded = load(source, encoder, names, Some(&cache)).unwrap();
        assert!(!loaded.cached, "{:?}", loaded.audit);
        paths.push(loaded.path.unwrap());
    };
    let data = source(&place.data());
    for changed in [
        Encoder { eos: None, ..encoder },
        Encoder { loss_on: LossOn::All, ..encoder },
        Encoder { loss_on: LossOn::Assistant, ..encoder },
        Encoder { max_length: 63, ..encoder },
        Encoder { system: Some("s"), ..encoder },
        Encoder { system: Some(""), ..encoder },
        Encoder { strip: true, ..encoder },
        Encoder { pad_with: Some(0), ..encoder },
        Encoder { pad_with: Some(258), ..encoder },
    ] {
        other(&data, &changed, &names);
    }
    let source_text = setting.template.source();
    for (text, bos, eos) in [
        (source_text, "", "<|im_end|>"),
        (source_text, "<|im_start|>", ""),
        (&format!(" {source_text}"), "", ""),
    ] {
        let template = ChatTemplate::new(text, bos, eos).unwrap();
        other(&data, &Encoder { template: &template, ..encoder }, &names);
    }
    let json = setting.tokenizer.to_json().unwrap().replace("<|im_start|>", "<|im_begin|>");
    let tokenizer = smolten::tokenizer::Tokenizer::from_json(json.as_bytes(), Path::new("t")).unwrap();
    other(&data, &Encoder { tokenizer: &tokenizer, ..encoder }, &names);
    for names in [("prompt", "response"), ("response", "prompt")] {
        let names = FieldNames { prompt: Some(names.0.to_owned()), response: Some(names.1.to_owned()) };
        other(&data, &encoder, &names);
    }
    // Another content, another format of the same content, the same content twice.
    let text = std::fs::read(place.data()).unwrap();
    let named = |name: &str, bytes: &[u8]| {
        let path = place.folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    other(&source(&named("more.jsonl", &[&text[..], b"\n"].concat())), &encoder, &names);
    let both = br#"{"text":"abc","data":[{"text":"def"}]}"#; // a row of one format, a list of rows in the other
    other(&source(&named("a.jsonl", both)), &encoder, &names);
    other(&source(&named("a.json", both)), &encoder, &names);
    let twice = DataKind::Files(vec![place.data(), place.data()]);
    other(&DataSource { name: "twice".to_owned(), kind: twice }, &encoder, &names);
    let count = paths.len();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), count);
}

/// Every byte of the file, and every length: noticed, said, and mended.
#[test]
fn any_damage_is_noticed_and_mended() {
    let (setting, place) = (Setting::new(), Place::new());
    let encoder = setting.encoder(LossOn::Completion, 64);
    let (want, path) = written(place.load(&encoder));
    let bytes = std::fs::read(&path).unwrap();
    let check = |damaged: &[u8], what: &str| {
        std::fs::write(&path, damaged).unwrap();
        let again = place.load(&encoder);
        assert!(!again.cached, "{what} was not noticed");
        assert!(again.notes.len() == 1 && again.notes[0].contains("made anew"), "{what}: {:?}", again.notes);
        assert_eq!(all(&again.examples), want, "{what}");
        assert!(std::fs::read(&path).unwrap() == bytes, "{what} was not mended");
    };
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        check(&damaged, &format!("byte {at}"));
        check(&bytes[..at], &format!("the cut at {at}"));
    }
    check(&[&bytes[..], b"\0"].concat(), "a byte more");
    assert!(place.load(&encoder).cached);
    // The file of another key at this place.
    let other = place.load(&setting.encoder(LossOn::All, 64)).path.unwrap();
    check(&std::fs::read(other).unwrap(), "the cache of other data");
}

/// Puts words of 8 bytes into a file, and the checksum that belongs to them.
fn forge(path: &Path, words: &[(usize, u64)]) {
    let mut bytes = std::fs::read(path).unwrap();
    for &(at, value) in words {
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let digest = Sha256::new().chain_update(&bytes[HEADER..]).chain_update(&bytes[..HEADER - 32]).finalize();
    bytes[HEADER - 32..HEADER].copy_from_slice(&digest);
    std::fs::write(path, &bytes).unwrap();
}

/// Whoever can compute the checksum cannot give ids that are no tokens, examples that are empty, too long or out of
/// order, or files that are not there.
#[test]
fn forged_numbers_are_refused() {
    let (setting, place) = (Setting::new(), Place::new());
    let encoder = setting.encoder(LossOn::Completion, 64);
    let (want, path) = written(place.load(&encoder));
    let tokens = want.iter().map(|(ids, ..)| ids.len()).sum::<usize>();
    let flags = (HEADER + 4 * tokens).next_multiple_of(64);
    let offsets = (flags + tokens).next_multiple_of(64);
    let origins = (offsets + 8 * (want.len() + 1)).next_multiple_of(64);
    let offset = |i: usize| want[..i].iter().map(|(ids, ..)| ids.len() as u64).sum::<u64>();
    for (what, words) in [
        ("an id beyond the vocabulary", vec![(HEADER, 259)]),
        ("an example of no token", vec![(offsets + 8, offset(2))]),
        ("an example of one token", vec![(offsets + 8, offset(2) - 1)]),
        (
            "an example that is too long",
            (1..=3).map(|i| (offsets + 8 * i, offset(4) - 8 + 2 * i as u64)).collect(),
        ),
        ("offsets out of order", vec![(offsets + 8, offset(3))]),
        ("a first offset that is not 0", vec![(offsets, 1)]),
        ("a last offset beyond the tokens", vec![(offsets + 8 * want.len(), tokens as u64 + 1)]),
        ("a file that is not there", vec![(origins, 1)]),
        ("more examples", vec![(56, want.len() as u64 + 1)]),
        ("fewer tokens", vec![(48, tokens as u64 - 1)]),
        ("impossible counts", vec![(48, u64::MAX / 4), (56, u64::MAX / 8)]),
        ("an audit cut short", vec![(64, 1)]),
    ] {
        forge(&path, &words);
        let loaded = place.load(&encoder);
        assert!(!loaded.cached && loaded.notes.len() == 1, "{what} was taken");
        assert_eq!(all(&loaded.examples), want, "{what}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Somebody who can compute the checksum still cannot make the program index outside, nor panic.
    #[test]
    fn a_forged_file_does_no_harm(
        changes in prop::collection::vec((0usize..4000, any::<u64>(), 0u32..64), 1..4),
    ) {
        let (setting, place) = (Setting::new(), Place::new());
        let encoder = setting.encoder(LossOn::Completion, 64);
        let (want, path) = written(place.load(&encoder));
        let words = (std::fs::read(&path).unwrap().len() - 48) / 8;
        // The key and the magic stay, or nothing behind them would be looked at.
        let changes: Vec<_> = changes.into_iter().map(|(at, value, shift)| (48 + at % words * 8, value >> shift)).collect();
        forge(&path, &changes);
        let loaded = place.load(&encoder);
        for (ids, supervised, _) in all(&loaded.examples) {
            prop_assert!(ids.len() == supervised.len() && (2..=64).contains(&ids.len()));
            prop_assert!(ids.iter().all(|&id| id <= 258));
        }
        (0..loaded.examples.len()).for_each(|i| { loaded.place(i); });
        loaded.audit.findings();
        if loaded.cached {
            windows(&loaded);
        } else {
            prop_assert_eq!(all(&loaded.examples), want);
        }
    }
}

/// Runs beside one another write the same file, each on its own, and leave nothing else.
#[test]
fn runs_beside_one_another_do_no_harm() {
    let (setting, place) = (Setting::new(), Place::new());
    let encoder = setting.encoder(LossOn::Completion, 64);
    let want = all(&load(&source(&place.data()), &encoder, &FieldNames::default(), None).unwrap().examples);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for round in 0..20 {
                    let loaded = place.load(&encoder);
                    assert_eq!(all(&loaded.examples), want);
                    assert!(loaded.notes.is_empty(), "{:?}", loaded.notes);
                    if round % 5 == 0 {
                        let _ = std::fs::remove_file(loaded.path.unwrap());
                    }
                }
            });
        }
    });
    let names = std::fs::read_dir(place.cache()).unwrap().map(|e| e.unwrap().file_name());
    let names: Vec<String> = names.map(|n| n.into_string().unwrap()).collect();
    assert!(names.iter().all(|n| n.ends_with(".tokens")), "{names:?}");
}

/// What a killed run left is removed; what another run still writes is not.
#[test]
fn orphans_are_removed() {
    let (setting, place) = (Setting::new(), Place::new());
    std::fs::create_dir(place.cache()).unwrap();
    let names = [".smolten-1-0.part", ".smolten-2-0.part", "other.part"];
    let [orphan, written, foreign] = names.map(|name| place.cache().join(name));
    std::fs::write(&orphan, "half").unwrap();
    std::fs::write(&foreign, "not ours").unwrap();
    let file = std::fs::File::create(&written).unwrap();
    file.lock().unwrap();
    place.load(&setting.encoder(LossOn::Completion, 64));
    assert!(!orphan.exists() && written.exists() && foreign.exists());
}

#[test]
fn without_a_folder_the_tokens_are_not_kept() {
    let (setting, place) = (Setting::new(), Place::new());
    std::fs::write(place.cache(), "a file where the folder should be").unwrap();
    let loaded = place.load(&setting.encoder(LossOn::Completion, 64));
    assert!(loaded.path.is_none() && !loaded.cached && loaded.examples.len() == 6);
    assert!(loaded.notes.len() == 1 && loaded.notes[0].contains("not kept"), "{:?}", loaded.notes);
}

/// Several files are one data set: one shape, one order, and each row keeps its own place.
#[test]
fn several_files_are_read_as_one() {
    let (setting, place) = (Setting::new(), Place::new());
    let shard = |name: &str, text: &str| {
        let path = place.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let row = |p: &str| format!("{{\"prompt\":\"{p}\",\"response\":\"r\"}}");
    let files = vec![
        shard("0.jsonl", &format!("{}\n{}\n", row("a"), row("b"))),
        shard("1.json", &format!("[{}]", row("c"))),
        shard("2.csv", "prompt,response\nd,r\na,r\n"),
    ];
    let source = DataSource { name: "org/name".to_owned(), kind: DataKind::Files(files) };
    let encoder = setting.encoder(LossOn::Completion, 64);
    for cached in [false, true] {
        let loaded = load(&source, &encoder, &FieldNames::default(), Some(&place.cache())).unwrap();
        assert_eq!((loaded.cached, loaded.sha256.len()), (cached, 3));
        let places: Vec<String> = (0..loaded.examples.len()).map(|i| loaded.place(i)).collect();
        let want = ["0.jsonl:1", "0.jsonl:2", "1.json, row 1", "2.csv:2", "2.csv:3"];
        assert_eq!(places, want.map(|place| format!("org/name/{place}")));
        assert_eq!((loaded.audit.duplicates, &loaded.audit.places["duplicates"][0]), (1, &places[4]));
    }
}
