//! Where the fixtures and the program lie: in the repository, or where `scripts/gpu-check` packed them.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::{Path, PathBuf};

/// The folder that has `tests/fixtures` in it.
pub fn root() -> PathBuf {
    std::env::var_os("SMOLTEN_TEST_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), Into::into)
}

/// The program: as cargo built it, or beside the packed tests.
pub fn program() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_smolten"));
    if built.exists() { built.to_owned() } else { std::env::current_exe().unwrap().with_file_name("smolten") }
}
