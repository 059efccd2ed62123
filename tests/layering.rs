//! Data and dependencies flow one way: a module may name only modules to its left.

use std::path::{Path, PathBuf};

const ORDER: [&str; 28] = [
    "error",
    "dtype",
    "config",
    "recipe",
    "hub",
    "gguf",
    "weights",
    "tokenizer",
    "template",
    "pretrained",
    "batch",
    "dataset",
    "arena",
    "cuda",
    "ops",
    "backend",
    "model",
    "optimizer",
    "checkpoint",
    "export",
    "metrics",
    "report",
    "generate",
    "eval",
    "trainer",
    "bench",
    "cli",
    "main",
];

/// Every `crate::module` that stands to the right of the module naming it, as `file uses crate::module`; a file
/// that is in no module of [`ORDER`] is reported too.
fn violations(src: &Path) -> Vec<String> {
    let rank = |module: &str| ORDER.iter().position(|&m| m == module);
    let mut found = Vec::new();
    let mut files = vec![src.to_owned()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        let module = path.strip_prefix(src).unwrap().components().next().unwrap();
        let module = module.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if module == "lib" {
            continue;
        }
        let Some(own) = rank(&module) else {
            found.push(format!("{} is not in the module order", path.display()));
            continue;
        };
        let text = std::fs::read_to_string(&path).unwrap();
        for used in text.split("crate::").skip(1).chain(text.split("smolten::").skip(1)) {
            let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if rank(&used).is_some_and(|r| r > own) {
                found.push(format!("{} uses crate::{used}", path.display()));
            }
        }
    }
    found
}

#[test]
fn modules_depend_leftwards_only() {
    let found = violations(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_planted_violation_is_found() {
    let src = tempfile::tempdir().unwrap();
    std::fs::write(src.path().join("arena.rs"), "use crate::model::Model;\nuse crate::dtype::DType;\n")
        .unwrap();
    std::fs::create_dir(src.path().join("ops")).unwrap();
    std::fs::write(src.path().join("ops/rope.rs"), "fn f() { crate::trainer::run() }\n").unwrap();
    std::fs::write(src.path().join("stray.rs"), "").unwrap();
    let mut found = violations(src.path());
    found.sort();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].ends_with("arena.rs uses crate::model"), "{found:?}");
    assert!(found[1].ends_with("ops/rope.rs uses crate::trainer"), "{found:?}");
    assert!(found[2].ends_with("stray.rs is not in the module order"), "{found:?}");
}
