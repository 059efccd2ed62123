//! What production kernels ask of global and shared memory, as the emulator counts it, against their headers.
//!
//! The emulator reports when a program ends, so the kernels run in a child process: `scripts/with-emulator cargo test
//! --release --test traffic`. On a GPU, nothing counts, and the test fails.

mod launches;
mod stated;

use launches::Expected;
use serde::Deserialize;
use smolten::cuda::Device;
use stated::{Dims, Statement, statements, value};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Part of all bytes that what is read, and what is written, may differ by from what is stated: parameters of the step,
/// bounds of sequences.
const TOLERANCE: f64 = 0.02;

/// Part of all bytes that is moved by 16 per lane.
const WIDE: f64 = 0.95;

/// Kernels that fall short of it, and why.
const NARROW: [(&str, &str); 6] = [
    ("adamw_8bit", "codes are 8 bytes per lane: 256 in a row per warp, whole sectors"),
    ("cross_entropy_finish", "two numbers per row of logits"),
    ("gather", "an adapter's columns, which may begin anywhere"),
    ("grad_norm_finish", "a number per 4096 gradients"),
    ("spread", "an adapter's columns, which may begin anywhere"),
    ("rmsnorm_backward_finish", "a sum per column, where there may be no room for 16 bytes"),
];

/// Kernels whose accesses of 16 bytes touch sectors of which they need half, and why. L1 has the other half when it is
/// loaded next; stored, it goes to L2 by itself.
const HALF_SECTORS: [(&str, &str); 14] = [
    ("adamw", "eight f32 per lane"),
    ("adamw_8bit", "eight f32 per lane"),
    ("attention_backward_keys", "eight f32 of cos and sin per lane"),
    ("attention_backward_query", "eight f32 of cos and sin per lane"),
    ("attention_cached", "a key per lane"),
    ("bias_gradient", "eight f32 of sums per lane"),
    ("cross_entropy", "eight f32 of logits per lane"),
    ("embedding_forward", "eight f32 of x per lane"),
    ("linear_residual", "eight f32 of the residual and of y per lane"),
    ("linear_rope", "eight f32 of cos and sin per lane"),
    ("linear_weight_gradient", "eight f32 of dW per lane"),
    ("linear_wide", "eight f32 of y per lane"),
    ("rmsnorm_backward", "eight f32 per lane"),
    ("rmsnorm_forward", "eight f32 of x per lane"),
];

#[derive(Deserialize)]
struct Report {
    launches: Vec<Launch>,
}

#[derive(Deserialize)]
struct Launch {
    kernel: String,
    grid: [usize; 3],
    counters: Counters,
}

#[derive(Deserialize)]
struct Counters {
    global_loads: Global,
    global_stores: Global,
    shared_phases: u64,
    shared_wavefronts: u64,
}

#[derive(Deserialize)]
struct Global {
    bytes: u64,
    wide_bytes: u64,
    wide_sectors: u64,
}

/// Not a test of its own: what the other one counts.
#[test]
#[ignore = "launches what the other test counts"]
fn every_kernel_once() {
    launches::all(Some(&Device::open(0).expect("this test needs the emulator")));
}

fn report_of_child() -> Report {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "every_kernel_once"])
        .env("EMULATOR_REPORT", &path)
        .env("EMULATOR_CHECKS", "counters")
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    serde_json::from_slice(&std::fs::read(&path).expect("a report: this test needs the emulator")).unwrap()
}

#[test]
fn kernels_move_what_their_headers_state() {
    let (report, expected, statements) = (report_of_child(), launches::all(None), statements());
    let mut complaints = Vec::new();
    let mut launched = BTreeSet::new();
    assert_eq!(report.launches.len(), expected.len(), "launches");
    for (launch, Expected { kernel, dims }) in report.launches.iter().zip(expected) {
        let name = ["_f32", "_bf16", "_f16"].iter().find_map(|a| launch.kernel.strip_suffix(a));
        assert_eq!(name.unwrap_or(&launch.kernel), kernel, "the order of launches");
        let (name, [rows, columns]) = tile(&kernel);
        let blocks = launch.grid.iter().product();
        let dims = [&dims[..], &[("B", blocks), ("rows", rows), ("columns", columns)]].concat();
        let found = check(name, &launch.counters, &statements, &dims);
        complaints.extend(found.into_iter().map(|text| format!("{kernel} {dims:?}: {text}")));
        launched.insert(name.to_owned());
    }
    let never = statements.keys().filter(|kernel| !launched.contains(*kernel));
    complaints.extend(never.map(|kernel| format!("{kernel} is never launched")));
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// Name of a product without its tile, rows and columns of that.
fn tile(kernel: &str) -> (&str, [usize; 2]) {
    let [name, rows, columns] = ["_128x64", "_64x64"]
        .iter()
        .find_map(|tile| Some([kernel.strip_suffix(tile)?, tile.split_once('x')?.0, tile.split_once('x')?.1]))
        .unwrap_or([kernel, "_128", "128"]);
    (name, [&rows[1..], columns].map(|n| n.parse().unwrap()))
}

/// What is wrong with a launch.
fn check(
    kernel: &str,
    counters: &Counters,
    statements: &BTreeMap<String, Statement>,
    dims: &Dims,
) -> Vec<String> {
    let Some(statement) = statements.get(kernel) else { return vec!["its header states no bytes".into()] };
    let mut complaints = Vec::new();
    let mut complain = |wrong: bool, text: String| complaints.extend(wrong.then_some(text));
    let Counters { global_loads: loads, global_stores: stores, shared_phases, shared_wavefronts } = counters;
    let (read, written) = (value(&statement.read, dims), value(&statement.written, dims));
    let (wide, all) = (loads.wide_bytes + stores.wide_bytes, loads.bytes + stores.bytes);
    if written == 0.0 {
        complain(wide > 0, format!("moves {wide} bytes, and there is nothing to do"));
        return complaints;
    }
    let allowed = TOLERANCE * (read + written);
    for (what, got, stated) in [("read", loads.bytes as f64, read), ("written", stores.bytes as f64, written)]
    {
        complain((got - stated).abs() > allowed, format!("{got} bytes {what}, stated {stated}"));
    }
    let is_listed = |list: &[(&str, &str)]| list.iter().any(|(name, _)| *name == kernel);
    let (share, short) = (wide as f64 / all as f64, is_listed(&NARROW));
    complain((share < WIDE) != short, format!("{share:.3} of its bytes by 16, listed: {short}"));
    let sectors = 32 * (loads.wide_sectors + stores.wide_sectors);
    let (halves, most) = (is_listed(&HALF_SECTORS), if is_listed(&HALF_SECTORS) { 2 * wide } else { wide });
    complain(sectors > most, format!("{sectors} bytes of sectors for {wide}"));
    complain(halves && sectors == wide, "uses whole sectors, listed as if not".into());
    complain(
        shared_wavefronts != shared_phases,
        format!("{shared_wavefronts} wavefronts for {shared_phases}"),
    );
    complaints
}
