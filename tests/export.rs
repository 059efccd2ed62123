//! `smolten export` as a user runs it, and the Modelfile against what transformers renders.

use serde_json::Value;
use smolten::dtype::DType;
use smolten::export;
use smolten::pretrained::Pretrained;
use smolten::template::Message;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn tiny() -> Pretrained {
    Pretrained::open(&fixture("tiny-smollm.gguf")).unwrap()
}

/// All weights in bits.
fn weights(model: &Pretrained, change: fn(f32) -> f32) -> Vec<u32> {
    let read = |p| {
        let p: smolten::config::Parameter = p;
        let mut out = vec![f32::NAN; p.shape[0] * p.shape[1]];
        model.weights.read(&p, &mut out).unwrap();
        out
    };
    model.config.parameters().into_iter().flat_map(read).map(|x| change(x).to_bits()).collect()
}

/// Ollama's reading of a Modelfile, as far as those written here go: messages through `TEMPLATE`, with the turn of
/// `SYSTEM` before a conversation that has none.
fn ollama(modelfile: &str, messages: &[Message]) -> Option<String> {
    let quoted = |key: &str| {
        let (_, rest) = modelfile.split_once(&format!("\n{key} \"\"\""))?;
        rest.split_once("\"\"\"\n").map(|(text, _)| text)
    };
    let (before, rest) = quoted("TEMPLATE")?.split_once("{{ range .Messages }}").unwrap();
    let (turn, after) = rest.split_once("{{ end }}").unwrap();
    let mut messages = messages.to_vec();
    if let Some(system) = quoted("SYSTEM").filter(|_| messages[0].role != "system") {
        messages.insert(0, Message::new("system", system));
    }
    let (role, content) = turn.split_once("{{ .Content }}").unwrap();
    let one = |m: &Message| role.replace("{{ .Role }}", &m.role) + &m.content + content;
    Some(messages.iter().fold(before.to_owned(), |text, m| text + &one(m)) + after)
}

/// Against what transformers rendered (fixtures/templates.json).
#[test]
fn the_modelfile_has_a_template_where_it_is_the_models() {
    let out = tempfile::tempdir().unwrap();
    export::folder(&tiny(), out.path(), DType::F32).unwrap();
    let fixture: Value = serde_json::from_slice(&std::fs::read(fixture("templates.json")).unwrap()).unwrap();
    let mut chatml = Vec::new();
    for template in fixture["templates"].as_array().unwrap() {
        let name = template["name"].as_str().unwrap();
        std::fs::write(out.path().join("chat_template.jinja"), template["template"].as_str().unwrap())
            .unwrap();
        let text = export::modelfile(&Pretrained::open(out.path()).unwrap(), "x.gguf");
        assert!(
            text.starts_with("FROM ./x.gguf\n") && text.contains("PARAMETER stop \"<|im_end|>\"\n"),
            "{text}"
        );
        let mut compared = 0;
        for case in template["cases"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let Some(rendered) = ollama(&text, &messages).filter(|_| case["add_generation_prompt"] == true)
            else {
                continue;
            };
            // What a template makes of roles of its own is not what ChatML says.
            if messages.iter().all(|m| ["system", "user", "assistant"].contains(&m.role.as_str())) {
                assert_eq!(rendered, case["text"].as_str().unwrap(), "{name}");
                compared += 1;
            }
        }
        if compared > 0 {
            assert!(compared >= 5, "{name}: {compared}");
            chatml.push(name);
        } else {
            assert!(text.contains("# No TEMPLATE") && !text.contains("SYSTEM"), "{text}");
        }
    }
    assert_eq!(chatml, ["smollm2", "chatml"]);
    // Templates that only look like it: the last is it again, with the changes taken back.
    let plain = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}";
    for (from, to) in [
        ("{{ m.content }}", "{{ m.content | trim }}"),
        ("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}"),
        ("{{ m.role }}", "{{ 'user' if m.role == 'system' else m.role }}"),
        ("{% for", "{{ bos_token }}{% for"),
        ("assistant\n", "assistant\n<think>\n"),
        ("{% for", "<|im_start|>system\n{{ strftime_now('%Y') }}<|im_end|>\n{% for"),
        ("<|im_end|>\n{%", "<|im_end|>\n{{ '' if loop.last else '-' }}{%"),
        ("x", "x"),
    ] {
        std::fs::write(out.path().join("chat_template.jinja"), plain.replace(from, to)).unwrap();
        let text = export::modelfile(&Pretrained::open(out.path()).unwrap(), "x.gguf");
        assert_eq!(text.contains("TEMPLATE \"\"\""), from == to, "{from} → {to}: {text}");
    }
}

fn smolten(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smolten")).args(arguments).output().unwrap()
}

#[test]
fn the_command_writes_and_refuses() {
    let out = tempfile::tempdir().unwrap();
    let model = fixture("tiny-smollm.gguf");
    let path = |name: &str| out.path().join(name).to_str().unwrap().to_owned();
    let export = |to: &str, more: &[&str]| {
        let mut arguments = vec!["export", "--model", model.to_str().unwrap(), "--out", to];
        arguments.extend(more);
        smolten(&arguments)
    };
    let said = |output: &Output| {
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let ran = export(&path("new/tiny.q8.gguf"), &["--type", "q8_0"]);
    assert!(ran.status.success(), "{}", said(&ran));
    assert!(said(&ran).contains("Q8_0") && said(&ran).contains("ollama create"), "{}", said(&ran));
    let modelfile = std::fs::read_to_string(path("new/tiny.q8.Modelfile")).unwrap();
    assert!(
        modelfile.contains("FROM ./tiny.q8.gguf\nTEMPLATE") && !modelfile.contains("SYSTEM"),
        "{modelfile}"
    );
    let generated = smolten(&[
        "generate",
        "--model",
        &path("new/tiny.q8.gguf"),
        "--prompt",
        "hi",
        "--max-new-tokens",
        "2",
    ]);
    assert!(generated.status.success(), "{}", said(&generated));

    let ran = export(&path("folder"), &["--format", "hf", "--type", "bf16"]);
    assert!(ran.status.success(), "{}", said(&ran));
    let saved = Pretrained::open(Path::new(&path("folder"))).unwrap();
    assert_eq!(saved.config_json["dtype"], "bfloat16");
    assert_eq!(weights(&saved, |x| x), weights(&tiny(), |x| half::bf16::from_f32(x).to_f32()));

    std::fs::write(path("mine.Modelfile"), "FROM me").unwrap();
    let refusals: [(String, &[&str], &[&str]); 6] = [
        (path("new/tiny.q8.gguf"), &[], &["exists already"]),
        (path("folder"), &["--format", "hf"], &["exists already"]),
        (path("mine.gguf"), &[], &["mine.Modelfile", "exists already"]),
        (path("model.bin"), &[], &["model.bin", ".gguf"]),
        (path("other"), &["--format", "hf", "--type", "q8_0"], &["q8_0", "--format gguf"]),
        (path("a.gguf"), &["--type", "q4_k"], &["q4_k", "q8_0"]),
    ];
    for (to, more, words) in refusals {
        let ran = export(&to, more);
        assert_eq!(ran.status.code(), Some(2), "{}", said(&ran));
        assert!(words.iter().all(|w| said(&ran).contains(w)), "{words:?}: {}", said(&ran));
    }
    let ran = smolten(&["export", "--model", "nowhere", "--out", &path("b.gguf")]);
    assert!(ran.status.code() == Some(2) && !Path::new(&path("b.gguf")).exists(), "{}", said(&ran));
    // Only one file is new beside those that were asked for.
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 3);
}
