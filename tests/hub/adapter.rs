//! Adapters whose base is on the hub.

use super::{answers, command, hub, refused};
use serde_json::json;
use std::path::Path;

/// An adapter whose base is on the hub: one in a folder here, one on the hub itself.
#[test]
fn an_adapter_brings_its_base() {
    let (server, cache) = hub();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-smollm-lora");
    let text = std::fs::read_to_string(fixture.join("adapter_config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["base_model_name_or_path"] = json!("org/tiny");
    config["revision"] = json!("v1.0");
    let (config, matrices) =
        (config.to_string(), std::fs::read(fixture.join("adapter_model.safetensors")).unwrap());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), &config).unwrap();
    std::fs::write(folder.path().join("adapter_model.safetensors"), &matrices).unwrap();
    let adapter = folder.path().to_str().unwrap();

    let mut offline = command(&server.url, &cache, adapter);
    refused(offline.env("HF_HUB_OFFLINE", "1"), &["org/tiny", "HF_HUB_OFFLINE"]);
    let text = answers(&mut command(&server.url, &cache, adapter));
    assert!(text.contains("model org/tiny@v1.0: downloading 7 files, "), "{text}");
    assert_eq!(answers(&mut command(&server.url, &cache, adapter)), "");
    answers(command(&server.url, &cache, adapter).env("HF_HUB_OFFLINE", "1"));

    let files: [(&str, &[u8]); 3] = [
        ("adapter_config.json", config.as_bytes()),
        ("adapter_model.safetensors", &matrices),
        ("optimizer.pt", b"not needed"),
    ];
    server.put("models/org/adapter", &files);
    let text = answers(&mut command(&server.url, &cache, "org/adapter"));
    assert!(text.contains("model org/adapter: downloading 2 files, ") && !text.contains("tiny"), "{text}");
    answers(command(&server.url, &cache, "org/adapter").env("HF_HUB_OFFLINE", "1"));
}
