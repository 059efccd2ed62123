//! Every format and row shape, and what each says when a file is not as it should be.

use std::path::{Path, PathBuf};

use smolten::dataset::{FieldNames, Row, Rows, read_rows};
use smolten::error::Error;
use smolten::template::Message;

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}

fn pair(prompt: &str, response: &str) -> Row {
    Row::Completion {
        prompt: vec![message("user", prompt)],
        completion: vec![message("assistant", response)],
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rows").join(name)
}

/// Writes `bytes` as a file called `name` and reads it.
fn read_named(name: &str, bytes: impl AsRef<[u8]>, fields: &FieldNames) -> smolten::error::Result<Rows> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    read_rows(path.to_str().unwrap(), fields)
}

fn read(name: &str, bytes: impl AsRef<[u8]>) -> Vec<Row> {
    read_named(name, bytes, &FieldNames::default()).unwrap().rows
}

/// The message, with the exit code checked: bad data is the user's to correct.
fn error(name: &str, bytes: impl AsRef<[u8]>) -> String {
    text(read_named(name, bytes, &FieldNames::default()).unwrap_err())
}

fn text(error: Error) -> String {
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn every_shape_is_read() {
    let both = [pair("p", "r")];
    assert_eq!(read("a.jsonl", r#"{"prompt":"p","response":"r","text":"t"}"#), both);
    assert_eq!(read("a.jsonl", r#"{"prompt":"p","completion":"r"}"#), both);
    assert_eq!(read("a.jsonl", r#"{"instruction":"p","output":"r"}"#), both);
    assert_eq!(read("a.jsonl", r#"{"instruction":"p","input":"","output":"r"}"#), both);
    assert_eq!(read("a.jsonl", r#"{"instruction":"p","input":null,"output":"r"}"#), both);
    assert_eq!(read("a.jsonl", r#"{"instruction":"p","input":"i","output":"r"}"#), [pair("p\n\ni", "r")]);
    assert_eq!(read("a.jsonl", r#"{"question":"p","answer":"r"}"#), both);
    let lists =
        r#"{"prompt":[{"role":"user","content":"p"}],"completion":[{"role":"assistant","content":"r"}]}"#;
    assert_eq!(read("a.jsonl", lists), both);
    let messages =
        r#"{"prompt":"p","messages":[{"role":"user","content":"p"},{"role":"assistant","content":""}]}"#;
    assert_eq!(
        read("a.jsonl", messages),
        [Row::Messages(vec![message("user", "p"), message("assistant", "")])]
    );
    assert_eq!(read("a.jsonl", r#"{"text":" t\n"}"#), [Row::Text(" t\n".to_owned())]);
}

#[test]
fn the_recipe_names_other_fields() {
    let row = r#"{"prompt":"no","Frage":"p","response":"r","Antwort":"s"}"#;
    let names = |prompt: Option<&str>, response: Option<&str>| FieldNames {
        prompt: prompt.map(str::to_owned),
        response: response.map(str::to_owned),
    };
    let both = names(Some("Frage"), Some("Antwort"));
    assert_eq!(read_named("a.jsonl", row, &both).unwrap().rows, [pair("p", "s")]);
    let prompt = names(Some("Frage"), None);
    assert_eq!(read_named("a.jsonl", row, &prompt).unwrap().rows, [pair("p", "r")]);
    let response = names(None, Some("Antwort"));
    assert_eq!(read_named("a.jsonl", row, &response).unwrap().rows, [pair("no", "s")]);
    let missing = text(read_named("a.jsonl", row, &names(Some("Fragen"), None)).unwrap_err());
    assert_says(&missing, &["a.jsonl:1", "\"Fragen\" as prompt_field", "\"Frage\", \"response\""]);
}

#[test]
fn formats_agree_and_places_are_those_of_the_file() {
    let want = [pair("a", "b,\n\"c\""), pair("ü", "🙂")];
    let lines = "\u{feff}\n{\"prompt\":\"a\",\"response\":\"b,\\n\\\"c\\\"\"}\r\n\n{\"prompt\":\"ü\",\"response\":\"🙂\"}";
    let array = r#"[{"prompt":"a","response":"b,\n\"c\""}, {"prompt":"ü","response":"🙂"}]"#;
    let csv = "\u{feff}prompt,response\na,\"b,\n\"\"c\"\"\"\nü,🙂\n";
    for (name, bytes, place) in [
        ("a.jsonl", lines.to_owned(), ":4"),
        ("a.json", array.to_owned(), ", row 2"),
        ("a.JSON", format!("{{\"version\": 1, \"data\": {array}}}"), ", row 2"),
        ("a.csv", csv.to_owned(), ":4"),
    ] {
        let rows = read_named(name, bytes, &FieldNames::default()).unwrap();
        assert_eq!(rows.rows, want, "{name}");
        assert!(rows.place(1).ends_with(&format!("{name}{place}")), "{}", rows.place(1));
    }
}

#[test]
fn parquet_of_every_codec_is_read() {
    let want = [
        pair("Name a prime.", "Seven."),
        pair("Is 9 prime? 🤔", "No: 9 = 3 · 3."),
        pair("Add 2 and 2.", "4\r\nfour"),
    ];
    for codec in ["none", "snappy", "gzip", "zstd", "lz4"] {
        let path = fixture(&format!("pairs-{codec}.parquet"));
        let rows = read_rows(path.to_str().unwrap(), &FieldNames::default()).unwrap();
        assert_eq!(rows.rows, want, "{codec}");
        assert!(rows.place(2).ends_with(".parquet, row 3"));
    }
    let talk = read_rows(fixture("messages.parquet").to_str().unwrap(), &FieldNames::default()).unwrap();
    assert_eq!(talk.rows[0], Row::Messages(vec![message("user", "Hi."), message("assistant", "Hello.")]));
    assert_eq!(talk.rows.len(), 2);
}

#[test]
fn parquet_that_cannot_be_read_is_an_error() {
    let fail =
        |name: &str| text(read_rows(fixture(name).to_str().unwrap(), &FieldNames::default()).unwrap_err());
    assert_says(
        &fail("pairs-brotli.parquet"),
        &["pairs-brotli.parquet", "brotli", "snappy, gzip, zstd or lz4"],
    );
    assert_says(&fail("null.parquet"), &["null.parquet, row 2, field \"response\"", "null"]);
    for junk in [&b""[..], b"PAR1", b"PAR1PAR1PAR1", b"not parquet at all, but some text\n"] {
        assert_says(&error("a.parquet", junk), &["a.parquet", "cannot be read as parquet"]);
    }
}

/// Damage anywhere gives rows or an error, never a panic, and never an endless read.
#[test]
fn damaged_parquet_does_not_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    for name in ["pairs-none.parquet", "messages.parquet"] {
        let bytes = std::fs::read(fixture(name)).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xff;
            std::fs::write(&path, &damaged).unwrap();
            let _ = read_rows(path.to_str().unwrap(), &FieldNames::default());
        }
    }
}

#[test]
fn a_row_that_differs_from_the_first_is_named() {
    let first = r#"{"prompt":"p","response":"r"}"#;
    let fail = |row: &str| error("a.jsonl", format!("{first}\n\n{row}"));
    assert_says(
        &fail(r#"{"prompt":"p","answer":"r"}"#),
        &["a.jsonl:3, field \"response\"", "no such field", "\"prompt\", \"answer\"", "take it out"],
    );
    assert_says(&fail(r#"{"prompt":"p","response":null}"#), &["a.jsonl:3, field \"response\"", ": null"]);
    assert_says(
        &fail(r#"{"prompt":7.5,"response":"r"}"#),
        &["a.jsonl:3, field \"prompt\"", "the number 7.5"],
    );
    assert_says(&fail(r#"{"prompt":"p","response":["r"]}"#), &["field \"response\"", "a list"]);
    assert_says(&fail(r#"{"prompt":"p","response":{}}"#), &["field \"response\"", "an object"]);
    assert_says(&fail(r#"{"prompt":"p","response":true}"#), &["field \"response\"", "true"]);
    assert_says(&fail(r#"{"prompt":"p","response":" \n"}"#), &["field \"response\"", "empty text"]);
    assert_says(&fail("5"), &["a.jsonl:3", "the number 5, not an object"]);

    let input =
        "{\"instruction\":\"i\",\"output\":\"o\"}\n{\"instruction\":\"i\",\"output\":\"o\",\"input\":3}";
    assert_says(&error("a.jsonl", input), &["a.jsonl:2, field \"input\"", "the number 3"]);
    assert_says(
        &error("a.json", r#"[{"text":"t"},{"text":""}]"#),
        &["a.json, row 2, field \"text\"", "empty"],
    );
    assert_says(&error("a.csv", "text,n\na,1\n,2\n"), &["a.csv:3, field \"text\"", "empty text"]);
}

#[test]
fn messages_are_checked_one_by_one() {
    let fail = |messages: &str| error("a.jsonl", format!("{{\"messages\":{messages}}}"));
    assert_says(&fail("[]"), &["a.jsonl:1, field \"messages\"", "an empty list"]);
    assert_says(&fail("\"hi\""), &["field \"messages\"", ": text"]);
    assert_says(&fail("[\"hi\"]"), &["field \"messages[0]\"", ": text"]);
    assert_says(
        &fail(r#"[{"role":"user","content":"a"},{"from":"gpt","content":"b"}]"#),
        &["field \"messages[1].role\"", "no such field", "\"from\", \"content\""],
    );
    assert_says(&fail(r#"[{"role":"user","content":null}]"#), &["field \"messages[0].content\"", "null"]);
    let lists = r#"{"prompt":[{"role":"user","content":"p"}],"response":"r"}"#;
    assert_says(&error("a.jsonl", lists), &["field \"response\"", ": text", "a list of messages"]);
}

#[test]
fn unknown_fields_list_what_there_is() {
    let message = error("a.jsonl", r#"{"conversations":[],"id":1}"#);
    assert_says(&message, &["a.jsonl:1", "\"conversations\", \"id\"", "prompt_field", "prompt + response"]);
    assert_says(&error("a.jsonl", "{}"), &["a.jsonl:1", "the fields are none"]);
}

#[test]
fn malformed_files_are_errors_with_their_place() {
    let good = r#"{"text":"t"}"#;
    assert_says(
        &error("a.jsonl", format!("{good}\n{{\"text\": t}}\n")),
        &["a.jsonl:2:11", "not JSON", "expected ident"],
    );
    assert_says(&error("a.jsonl", format!("{good}\n{{\"text\": \"t\"")), &["a.jsonl:2:12", "EOF"]);
    assert_says(&error("a.jsonl", "[\n1]"), &["a.jsonl:1:1", ".json file"]);
    assert_says(&error("a.json", "[{\"text\":\"t\"},\n {\"text\" \"t\"}]"), &["a.json:2:10", "expected `:`"]);
    assert_says(&error("a.json", format!("{good}\n{good}")), &["a.json:2:1", "trailing", ".jsonl file"]);
    assert_says(&error("a.json", good), &["a.json", "one object, with fields text"]);
    assert_says(&error("a.json", "{\"data\": 3}"), &["a.json, field \"data\"", "the number 3"]);
    assert_says(&error("a.json", "\"x\""), &["a.json", ": text"]);
    assert_says(&error("a.json", "[[1]]"), &["a.json, row 1", "a list, not an object"]);
    assert_says(&error("a.json", "[".repeat(100_000)), &["a.json:1:", "recursion"]);
    assert_says(&error("a.csv", "prompt,response\np,r\np\n"), &["a.csv:3", "1 fields", "names 2"]);
    assert_says(&error("a.csv", "prompt,text,prompt\n1,2,3"), &["a.csv:1, field \"prompt\"", "twice"]);
    for name in ["a.jsonl", "a.json", "a.csv"] {
        let message = error(name, b"{\"text\":\"ok\"}\n{\"text\":\"\xe9\"}\n");
        assert_says(&message, &[&format!("{name}:2"), "byte 23", "0xe9", "not UTF-8"]);
    }
}

#[test]
fn files_without_rows_are_errors() {
    for (name, bytes) in
        [("a.jsonl", " \n\n"), ("a.json", "[]"), ("a.csv", "prompt,response\n"), ("a.csv", "")]
    {
        assert_says(&error(name, bytes), &[name, "no rows"]);
    }
    assert_says(&error("a.json", ""), &["a.json:1:0", "EOF"]);
}

#[test]
fn what_is_not_data_is_refused() {
    assert_says(&error("a.txt", "x"), &["a.txt", "ending", ".jsonl, .json, .csv or .parquet"]);
    let fail = |data: &str| text(read_rows(data, &FieldNames::default()).unwrap_err());
    assert_says(&fail("/nonexistent/a.jsonl"), &["/nonexistent/a.jsonl", "cannot read"]);
    assert_says(&fail("someone/some-data"), &["someone/some-data", "no such file", "hub"]);
    assert_says(&fail(env!("CARGO_MANIFEST_DIR")), &["it is a folder"]);
    assert_says(&fail("builtin:poetry"), &["no bundled data set `poetry`", "builtin:reasoning"]);
}

#[test]
fn the_bundled_rows_are_many_and_different() {
    let rows = read_rows("builtin:reasoning", &FieldNames::default()).unwrap().rows;
    assert!(rows.len() >= 120, "{}", rows.len());
    let mut prompts = std::collections::HashSet::new();
    for row in &rows {
        let Row::Completion { prompt, completion } = row else { panic!("{row:?}") };
        let words = completion[0].content.split_whitespace().count();
        assert!((80..=400).contains(&words), "{words} words: {}", prompt[0].content);
        assert!(prompts.insert(prompt[0].content.trim().to_lowercase()), "twice: {}", prompt[0].content);
    }
}
