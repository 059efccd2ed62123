//! Data larger than memory: what is held at once does not grow with the data. In a process of its own, as it reads
//! the process's peak.

#![cfg(target_os = "linux")]

mod common;

use common::bytes::{Setting, source};
use smolten::batch::{BatchOptions, Batches, Order};
use smolten::dataset::{FieldNames, load};
use smolten::metrics::peak_memory_bytes;
use smolten::recipe::LossOn;
use std::io::Write;

/// Bytes of memory that belong to the process alone, mapped files not counted.
fn own_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn memory_does_not_grow_with_the_data() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("rows.jsonl");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&data).unwrap());
    for i in 0..10_000 {
        let text: String =
            (0..2000u32).map(|t| char::from_digit(10 + (t * 31 + i) % 26, 36).unwrap()).collect();
        writeln!(file, "{{\"prompt\":\"{i}\",\"response\":\"{text}\"}}").unwrap();
    }
    drop(file);
    let setting = Setting::new();
    let encoder = setting.encoder(LossOn::Completion, 4096);
    let cache = folder.path().join("cache");
    for cached in [false, true] {
        let before = peak_memory_bytes().unwrap();
        let loaded = load(&source(&data), &encoder, &FieldNames::default(), Some(&cache)).unwrap();
        assert_eq!((loaded.cached, loaded.examples.len()), (cached, 10_000));
        let tokens = loaded.path.unwrap().metadata().unwrap().len();
        let grown = peak_memory_bytes().unwrap() - before;
        println!("{tokens} bytes of tokens, the peak grew by {grown}");
        assert!(tokens > 90 << 20 && grown < tokens / 4, "{grown} bytes for {tokens}");

        let options = BatchOptions { batch_size: 8, grad_accum: 2, packing: None, order: Order::Shuffled(3) };
        let before = own_memory();
        let batches = Batches::new(loaded.examples, (0..10_000).collect(), options);
        let trained: usize = batches.windows(0).take(625).map(|w| w.tokens()).sum();
        let grown = own_memory().saturating_sub(before);
        println!("{trained} tokens trained on, {grown} bytes more");
        assert!(grown < tokens / 8, "{grown} bytes for {tokens}");
        assert_eq!(trained, batches.examples().tokens());
    }
}
