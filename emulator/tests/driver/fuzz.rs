//! Random calls with handles that are live, stale, of another kind, null or invented, any device address and
//! size.
//!
//! No call may crash, hang or fail inside the emulator. One that succeeds must have had live handles and
//! memory within a live allocation, by a model kept here; and when everything is destroyed no memory of the
//! device is left taken. Host pointers are valid or null: of those the driver cannot know. The calls run in a
//! process of their own. `EMULATOR_FUZZ_CASES` is the number of calls, `EMULATOR_FUZZ_SEED` where they start.

mod arguments;
mod calls;
mod memory;
mod model;

use crate::api::*;
use crate::process::{child, succeeds};
use model::Fuzz;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Calls made, for the watchdog.
static PROGRESS: AtomicU64 = AtomicU64::new(0);

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

fn run_child(name: &str) {
    let cases = number("EMULATOR_FUZZ_CASES", 20_000).to_string();
    let seed = number("EMULATOR_FUZZ_SEED", 1).to_string();
    let variables =
        [("EMULATOR_FUZZ_CASES", &*cases), ("EMULATOR_FUZZ_SEED", &*seed), ("EMULATOR_THREADS", "1")];
    let output = child(name, &variables);
    let errors = succeeds(&output);
    assert!(!errors.contains("a bug of the emulator"), "{errors}");
    let said = String::from_utf8_lossy(&output.stdout);
    for line in said.lines().filter(|line| line.starts_with("calls")) {
        println!("{name}: {line}");
    }
}

#[test]
fn hostile_calls_are_refused() {
    run_child("fuzz::child_calls");
}

#[test]
fn hostile_calls_of_several_threads_are_refused() {
    run_child("fuzz::child_threads");
}

/// Ends the process when no call returns for a minute.
fn watch() {
    std::thread::spawn(|| {
        let mut last = u64::MAX;
        loop {
            let now = PROGRESS.load(Ordering::Relaxed);
            if now == last {
                eprintln!("no call returned for a minute, after {now}");
                std::process::abort();
            }
            last = now;
            std::thread::sleep(Duration::from_secs(60));
        }
    });
}

/// Pages of memory the process holds.
fn resident_pages() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Calls between two points where everything is destroyed.
const EPISODE: u64 = 500;

#[test]
#[ignore = "in a process of its own"]
fn child_calls() {
    ok(cuInit(0));
    watch();
    let cases = number("EMULATOR_FUZZ_CASES", EPISODE);
    let mut fuzz = Fuzz::new(number("EMULATOR_FUZZ_SEED", 1), true);
    let mut pages = None;
    let mut made = 0;
    while made < cases {
        fuzz.begin();
        for _ in 0..EPISODE.min(cases - made) {
            fuzz.call();
            PROGRESS.fetch_add(1, Ordering::Relaxed);
        }
        made += EPISODE;
        fuzz.end();
        // The first tenth reaches every table and buffer there is.
        if pages.is_none() && made >= cases / 10 {
            pages = Some(resident_pages());
        }
    }
    let grown = resident_pages().saturating_sub(pages.unwrap_or(0));
    // 16384 pages of 4 KB: 64 MB. A leak of 100 bytes a call would be twice that in 10^6 calls.
    assert!(grown < 16384, "{grown} pages more than after the first tenth of the calls");
    fuzz.report(cases);
}

#[test]
#[ignore = "in a process of its own"]
fn child_threads() {
    const THREADS: u64 = 4;
    ok(cuInit(0));
    watch();
    let cases = number("EMULATOR_FUZZ_CASES", EPISODE) / THREADS;
    let seed = number("EMULATOR_FUZZ_SEED", 1);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let mut fuzz = Fuzz::new(seed + (thread << 32), false);
                for _ in 0..cases.div_ceil(EPISODE) {
                    fuzz.begin();
                    for _ in 0..EPISODE {
                        fuzz.call();
                        PROGRESS.fetch_add(1, Ordering::Relaxed);
                    }
                    fuzz.end();
                }
            });
        }
    });
    println!("calls {}", PROGRESS.load(Ordering::Relaxed));
}
