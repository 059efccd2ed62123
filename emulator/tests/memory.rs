//! The device's memory against plain vectors.

use cuda_emulator::memory::{DEVICE_ADDRESSES, Memory, MemoryError};
use std::sync::Arc;

/// Which bytes of an allocation count as written.
fn written(memory: &Arc<Memory>, address: u64, bytes: usize) -> Vec<bool> {
    let view = memory.view();
    let (allocation, offset) = view.locate(&mut 0, address, bytes as u64).unwrap();
    (0..bytes).map(|i| allocation.is_written(offset + i, 1)).collect()
}

fn contents(memory: &Memory, address: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0xee; bytes];
    memory.read(address, &mut out).unwrap();
    out
}

#[test]
fn addresses_are_deterministic_aligned_and_apart() {
    let place = || {
        let memory = Memory::new(1 << 30);
        [1, 511, 512, 513, 4096, 1_000_000].map(|bytes| (memory.alloc(bytes).unwrap(), bytes))
    };
    let spans = place();
    assert_eq!(spans, place());
    for (address, bytes) in spans {
        assert_eq!(address % 512, 0);
        assert!(DEVICE_ADDRESSES.contains(&address) && DEVICE_ADDRESSES.contains(&(address + bytes)));
    }
    for pair in spans.windows(2) {
        assert!(pair[1].0 >= pair[0].0 + pair[0].1 + 4096, "{pair:x?}");
    }
}
