//! The hub as seen from here, against a server on this machine: what is fetched, kept, resumed, refused.
//! `external/check_hub.py` does the same with Python's huggingface_hub on the other side of the cache.

mod adapter;
mod server;

use serde_json::json;
use server::{COMMIT, Fault, Server, TOKEN, hash};
use smolten::checkpoint::save_pretrained;
use smolten::dtype::DType;
use smolten::hub::Hub;
use smolten::pretrained::Pretrained;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const WEIGHTS: &str = "model.safetensors";

/// A hub that holds the tiny model as `org/tiny`, with files that are not needed too; and an empty cache.
fn hub() -> (Server, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-smollm.gguf");
    let model = Pretrained::open(&source).unwrap();
    save_pretrained(folder.path(), &model, DType::F32, |parameter| {
        let mut out = vec![0.0; parameter.shape[0] * parameter.shape[1]];
        model.weights.read(parameter, &mut out).map(|()| out)
    })
    .unwrap();
    let files: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect();
    let mut files: Vec<(&str, &[u8])> = files.iter().map(|(n, c)| (n.as_str(), c.as_slice())).collect();
    files.extend([("pytorch_model.bin", &b"old"[..]), ("onnx/model.onnx", b"o")]);
    files.push(("README.md", b"---\nlicense: mit\n---\n# Tiny\n"));
    files.push(("adapter.safetensors", b"not this model"));
    let server = Server::start();
    server.put("models/org/tiny", &files);
    (server, tempfile::tempdir().unwrap())
}

fn weights(server: &Server) -> Vec<u8> {
    server.state().repositories["models/org/tiny"][WEIGHTS].clone()
}

/// `generate`, with the hub at `endpoint` and the cache in `cache`; nothing else of the environment matters.
fn command(endpoint: &str, cache: &TempDir, model: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smolten"));
    command.args(["generate", "--model", model, "--prompt", "x", "--max-new-tokens", "1", "--json"]);
    for name in [
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
    ] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", endpoint).env("HF_HOME", cache.path());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn answers(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("one JSON document");
    said(&output)
}

#[track_caller]
fn refused(command: &mut Command, words: &[&str]) {
    let output = command.output().unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(!text.contains("panicked") && words.iter().all(|w| text.contains(w)), "{words:?} in: {text}");
}

fn repository(cache: &TempDir) -> PathBuf {
    cache.path().join("hub/models--org--tiny")
}

fn blob(cache: &TempDir, name: &str) -> PathBuf {
    repository(cache).join("blobs").join(name)
}

/// Names in the folder of blobs.
fn blobs(cache: &TempDir) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(repository(cache).join("blobs")) else { return Vec::new() };
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_model_is_fetched_once_into_the_layout_that_others_know() {
    let (server, cache) = hub();
    let text = answers(&mut command(&server.url, &cache, "org/tiny"));
    assert!(text.contains("model org/tiny: downloading 7 files, "), "{text}");
    let mut asked: Vec<String> = server
        .take_requests()
        .iter()
        .filter(|r| !r.elsewhere && !r.path.starts_with("/api/"))
        .map(|r| r.path.rsplit('/').next().unwrap().to_owned())
        .collect();
    asked.sort();
    let needed = [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        WEIGHTS,
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(asked, needed);
    let root = repository(&cache);
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    let snapshot = root.join("snapshots").join(COMMIT);
    assert_eq!(Pretrained::open(&snapshot).unwrap().license, [("license", "mit".to_owned())]);
    let link = std::fs::read_link(snapshot.join(WEIGHTS)).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(hash(WEIGHTS, &weights(&server))));
    assert!(blobs(&cache).iter().all(|name| [40, 64].contains(&name.len())), "{:?}", blobs(&cache));

    // From here on no file is asked for again.
    let text = answers(&mut command(&server.url, &cache, "org/tiny"));
    let requests = server.take_requests();
    assert_eq!((requests.len(), text.as_str()), (1, ""), "{requests:?}");
    answers(command(&server.url, &cache, "org/tiny").env("HF_HUB_OFFLINE", "1"));
    answers(&mut command(&server.url, &cache, &format!("org/tiny@{COMMIT}")));
    assert!(server.take_requests().is_empty());
    let text = answers(&mut command(&nowhere(), &cache, "org/tiny"));
    assert!(text.contains("cannot be reached") && text.contains("the copy in the cache is used"), "{text}");
    // Another name for the same commit: the blobs are there.
    answers(&mut command(&server.url, &cache, "org/tiny@v1.0"));
    assert_eq!(server.take_requests().len(), 1);
    assert_eq!(std::fs::read_to_string(root.join("refs/v1.0")).unwrap(), COMMIT);
    // A blob that was removed is fetched again.
    std::fs::remove_file(root.join("blobs").join(hash(WEIGHTS, &weights(&server)))).unwrap();
    assert!(answers(&mut command(&server.url, &cache, "org/tiny")).contains("downloading 1 file, "));
}

/// An address at which nobody listens.
fn nowhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn a_connection_that_is_cut_is_taken_up_again() {
    let (server, cache) = hub();
    let size = weights(&server).len();
    // More pieces than cuts without progress are put up with.
    let piece = size / 7 + 1;
    server.state().fault = Fault::Cut(piece);
    answers(&mut command(&server.url, &cache, "org/tiny"));
    let ranges: Vec<_> = (0..7).map(|n| (n > 0).then(|| format!("bytes={}-", n * piece))).collect();
    assert_eq!(server.take_ranges(), ranges);
    assert_eq!(
        std::fs::read(repository(&cache).join("snapshots").join(COMMIT).join(WEIGHTS)).unwrap(),
        weights(&server)
    );
}

#[test]
fn the_next_run_goes_on_where_the_last_one_was_cut_off() {
    for (fault, ranges_known) in [(Fault::None, true), (Fault::NoRanges, false)] {
        let (server, cache) = hub();
        server.state().fault = Fault::CutThenDown(5000);
        let words = [
            "model org/tiny, file model.safetensors",
            "503",
            "5 times",
            "kept and continued",
            "HF_HUB_OFFLINE",
        ];
        refused(&mut command(&server.url, &cache, "org/tiny"), &words);
        let part = repository(&cache).join("blobs").join(hash(WEIGHTS, &weights(&server)) + ".incomplete");
        assert_eq!(part.metadata().unwrap().len(), 5000);
        assert!(!repository(&cache).join("refs/main").exists(), "a revision must not name half a model");
        server.take_requests();
        server.state().fault = fault;
        let text = answers(&mut command(&server.url, &cache, "org/tiny"));
        assert!(
            text.contains("downloading 1 file, ") && text.contains("5 kB of them here already"),
            "{text}"
        );
        assert_eq!(server.take_ranges(), [Some("bytes=5000-".to_owned())], "{ranges_known}");
        assert!(!part.exists());
    }
}

#[test]
fn what_arrives_damaged_is_not_kept() {
    let (server, cache) = hub();
    server.state().fault = Fault::Damage;
    let sha256 = hash(WEIGHTS, &weights(&server));
    refused(
        &mut command(&server.url, &cache, "org/tiny"),
        &["model.safetensors", "SHA-256", &sha256, "try again"],
    );
    let (blob, part) = (blob(&cache, &sha256), blob(&cache, &(sha256.clone() + ".incomplete")));
    assert!(!blob.exists() && part.metadata().unwrap().len() == 0);
    // Bytes left by something else: fewer, as many, more than the file has.
    server.state().fault = Fault::None;
    let size = weights(&server).len();
    for left in [3000, size, size + 1] {
        std::fs::write(&part, vec![7; left]).unwrap();
        answers(&mut command(&server.url, &cache, "org/tiny"));
        assert!(!part.exists() && std::fs::read(&blob).unwrap() == weights(&server));
        std::fs::remove_file(&blob).unwrap();
    }
    std::fs::remove_dir_all(repository(&cache)).unwrap();
    server.state().fault = Fault::CutThenDown(5000);
    command(&server.url, &cache, "org/tiny").output().unwrap();
    server.state().fault = Fault::WrongRange;
    refused(&mut command(&server.url, &cache, "org/tiny"), &["another part of the file"]);
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let (server, cache) = hub();
    server.state().closed = Some((401, "RepoNotFound"));
    refused(&mut command(&server.url, &cache, "org/tiny"), &["model org/tiny", "no such thing", "HF_TOKEN"]);
    refused(
        command(&server.url, &cache, "org/tiny").env("HF_TOKEN", "other"),
        &["token", "does not open it"],
    );
    server.take_requests();
    answers(command(&server.url, &cache, "org/tiny").env("HF_TOKEN", TOKEN));
    let requests = server.take_requests();
    let bearer = Some(format!("Bearer {TOKEN}"));
    assert!(requests.iter().any(|r| r.elsewhere));
    for r in requests {
        assert_eq!(r.authorization, if r.elsewhere { None } else { bearer.clone() }, "{}", r.path);
    }
    // As `hf auth login` leaves it.
    let (server, cache) = hub();
    std::fs::write(cache.path().join("token"), format!("{TOKEN}\n")).unwrap();
    server.state().closed = Some((403, "GatedRepo"));
    answers(&mut command(&server.url, &cache, "org/tiny"));
    refused(
        command(&server.url, &cache, "org/tiny@v1.0").env("HF_TOKEN", "x"),
        &["restricted", "terms", "HF_TOKEN"],
    );
}

#[test]
fn what_cannot_be_had_is_said_with_the_way_out() {
    let (server, cache) = hub();
    let url = server.url.as_str();
    refused(&mut command(url, &cache, "org/none"), &["model org/none", "no such thing", "path"]);
    refused(&mut command(url, &cache, "org/tiny@v9"), &["org/tiny@v9", "no revision `v9`", "branch"]);
    refused(
        &mut command(&nowhere(), &cache, "org/tiny"),
        &["org/tiny", "cannot be reached", "refused", "HF_HUB_OFFLINE=1", "path"],
    );
    refused(
        command(url, &cache, "org/tiny").env("HF_HUB_OFFLINE", "1"),
        &["org/tiny", "HF_HUB_OFFLINE is set", "not in the cache"],
    );
    server.put("models/org/quantised", &[("q8.gguf", b"x"), ("q4.gguf", b"y"), ("config.json", b"{}")]);
    refused(
        &mut command(url, &cache, "org/quantised"),
        &["no safetensors", "q4.gguf, q8.gguf", "give its path"],
    );
    server.put("models/org/old", &[("pytorch_model.bin", b"x"), ("config.json", b"{}")]);
    refused(&mut command(url, &cache, "org/old"), &["no model.safetensors", "save_pretrained"]);
    server.put("models/org/bare", &[(WEIGHTS, b"x"), ("config.json", b"{}")]);
    refused(&mut command(url, &cache, "org/bare"), &["no tokenizer.json"]);
    server.state().closed = Some((429, ""));
    refused(&mut command(url, &cache, "org/tiny"), &["too often", "HF_TOKEN"]);
    assert!(!cache.path().join("hub/models--org--tiny/blobs").exists(), "nothing was to be fetched");
    server.state().closed = None;
    let away = json!({"rfilename": "../../../config.json", "size": 2, "blobId": "a".repeat(40)});
    server.state().listed.insert("config.json".to_owned(), away);
    refused(&mut command(url, &cache, "org/tiny"), &["no listing"]);
    // A folder without a file in it is no model of the hub, even if it is named like one.
    refused(&mut command(url, &cache, "tests/fixtures"), &["tests/fixtures", "config.json"]);
}

#[test]
fn a_full_disk_is_an_error_that_says_so() {
    let (server, cache) = hub();
    let blobs = repository(&cache).join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(hash(WEIGHTS, &weights(&server)) + ".incomplete");
    std::os::unix::fs::symlink("/dev/full", part).unwrap();
    refused(
        &mut command(&server.url, &cache, "org/tiny"),
        &["model.safetensors", "disk", "is full", "HF_HOME"],
    );
}

#[test]
fn several_processes_at_once_fetch_every_file_once() {
    let (server, cache) = hub();
    server.state().fault = Fault::Slow;
    let start =
        || command(&server.url, &cache, "org/tiny").stderr(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let children: Vec<Child> = (0..3).map(|_| start().unwrap()).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for request in server.take_requests().into_iter().filter(|r| !r.path.starts_with("/api/")) {
        *counts.entry(request.path).or_default() += 1;
    }
    assert_eq!(counts.len(), 8, "seven files, one of them at two addresses: {counts:?}");
    assert!(counts.values().all(|&n| n == 1), "{counts:?}");
}

#[test]
fn the_rows_of_a_data_set_are_found_fetched_and_kept() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let hub = |offline| Hub {
        endpoint: Some(server.url.clone()),
        cache: folder.path().to_owned(),
        token: None,
        offline,
        retry_wait: Duration::from_millis(1),
    };
    let shard = |i: usize| (0..30_000 + i).flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    server.put(
        "datasets/org/rows",
        &[
            ("data/train-00001-of-00002.parquet", &shard(1)),
            ("data/train-00000-of-00002.parquet", &shard(0)),
            ("data/test-00000-of-00001.parquet", b"test"),
            ("README.md", b"# Rows"),
        ],
    );
    server.put("datasets/org/text", &[("a b/train #1.jsonl", b"{}\n"), ("meta/dataset_info.json", b"{}")]);
    server.state().fault = Fault::Cut(70_000);
    let mut events = Vec::new();
    let files = hub(false).data("org/rows", &mut |event| events.push(format!("{event:?}"))).unwrap();
    let names: Vec<_> = files.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]);
    assert!(files.iter().zip([shard(0), shard(1)]).all(|(f, s)| std::fs::read(f).unwrap() == s));
    assert!(events[0].contains("data set org/rows") && events[0].contains("files: 2"), "{}", events[0]);
    let total = shard(0).len() + shard(1).len();
    assert!(events[0].contains(&format!("bytes: {total}")), "{}", events[0]);
    let received: usize = events
        .iter()
        .filter_map(|e| e.strip_prefix("Received(")?.strip_suffix(')')?.parse::<usize>().ok())
        .sum();
    assert_eq!((received, events.last().unwrap().as_str()), (total, "Finished"));

    server.take_requests();
    assert_eq!(hub(true).data("org/rows", &mut |_| {}).unwrap(), files);
    assert!(server.take_requests().is_empty());
    // Half of the shards is no data set.
    std::fs::remove_file(&files[1]).unwrap();
    let error = hub(true).data("org/rows", &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("1 of 2 files"), "{error}");

    let files = hub(false).data("org/text", &mut |_| {}).unwrap();
    assert_eq!(std::fs::read(&files[0]).unwrap(), b"{}\n");
    for (id, words) in [("org/none", "no such thing"), ("no id", "no id of the hub")] {
        let error = hub(false).data(id, &mut |_| {}).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(words), "{error}");
    }
}
