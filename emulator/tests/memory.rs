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

#[test]
fn bounds_at_both_ends_and_near_the_end_of_the_address_space() {
    let memory = Arc::new(Memory::new(1 << 20));
    let first = memory.alloc(100).unwrap();
    let second = memory.alloc(4096).unwrap();
    let view = memory.view();
    let mut hint = 0;
    for (address, bytes, inside) in [
        (first, 100, true),
        (first, 101, false),
        (first + 99, 1, true),
        (first + 100, 0, true),
        (first + 100, 1, false),
        (first + 101, 0, false),
        (first - 1, 1, false),
        (first - 1, 2, false),
        (second - 1, 2, false),
        (second + 4092, 4, true),
        (second + 4093, 4, false),
        (first, u64::MAX, false),
        (second, u64::MAX - second + 1, false),
        (u64::MAX, 1, false),
        (u64::MAX, u64::MAX, false),
        (0, 1, false),
    ] {
        for start in [0, 1, 2, usize::MAX] {
            hint = start;
            let found = view.locate(&mut hint, address, bytes).map(|(a, offset)| a.start() + offset as u64);
            assert_eq!(found, inside.then_some(address), "{address:#x}, {bytes}");
        }
        if bytes > 0 && bytes < 8192 {
            let mut buffer = vec![0; usize::try_from(bytes).unwrap()];
            assert_eq!(memory.read(address, &mut buffer).is_ok(), inside);
            assert_eq!(memory.write(address, &buffer).is_ok(), inside);
        }
        assert_eq!(memory.fill(address, &[1], bytes).is_ok(), inside || bytes == 0);
        assert_eq!(memory.copy(first, address, bytes).is_ok(), bytes == 0 || inside && bytes <= 100);
        assert_eq!(memory.copy(address, first, bytes).is_ok(), bytes == 0 || inside && bytes <= 100);
    }
    assert!(view.locate(&mut hint, second, 1).is_some() && hint == 1);
    // Nothing to copy is no error anywhere.
    memory.read(u64::MAX, &mut []).unwrap();
    memory.write(0, &[]).unwrap();
}

#[test]
fn messages_name_the_nearest_allocation() {
    let memory = Arc::new(Memory::new(1 << 20));
    assert_eq!(memory.view().nearest(64, 4), "nothing is allocated");
    let first = memory.alloc(100).unwrap();
    let second = memory.alloc(256).unwrap();
    let view = memory.view();
    let of_first = format!("of the 100 bytes at {first:#x}");
    assert_eq!(view.nearest(first + 100, 4), format!("right at the end {of_first}"));
    assert_eq!(view.nearest(first + 108, 4), format!("8 bytes past the end {of_first}"));
    assert_eq!(view.nearest(first + 96, 16), format!("the last 12 are past the end {of_first}"));
    assert_eq!(view.nearest(second - 4, 4), format!("4 bytes before the 256 bytes at {second:#x}"));
    assert_eq!(view.nearest(0, 4), format!("{first} bytes before the 100 bytes at {first:#x}"));
    assert!(
        view.nearest(u64::MAX, u64::MAX).ends_with(&format!("past the end of the 256 bytes at {second:#x}"))
    );
    let error = memory.read(first + 108, &mut [0; 4]).unwrap_err().to_string();
    assert!(error.contains(&format!(": 8 bytes past the end {of_first}")), "{error}");
}

#[test]
fn accounts_and_refuses() {
    let memory = Arc::new(Memory::new(10_000));
    let first = memory.alloc(6000).unwrap();
    assert_eq!(memory.free_and_total(), (4000, 10_000));
    for asked in [4001, u64::MAX, u64::MAX - 4096] {
        assert_eq!(memory.alloc(asked), Err(MemoryError::OutOfMemory { asked, free: 4000 }));
        let host = memory.alloc_host(asked | 1 << 60);
        assert!(matches!(host, Err(MemoryError::OutOfMemory { .. })), "{asked}");
    }
    let host = memory.alloc_host(50_000).unwrap();
    assert_eq!(memory.free_and_total(), (4000, 10_000));
    for address in [first + 1, first - 512, 0, u64::MAX, host + 4096] {
        assert_eq!(memory.free(address), Err(MemoryError::NotAllocated { address }));
    }
    assert_eq!((memory.find(first + 5999), memory.find(first + 6000)), (Some((first, 6000)), None));
    memory.free(first).unwrap();
    memory.free(host).unwrap();
    assert_eq!(memory.free_and_total(), (10_000, 10_000));
    assert_eq!(memory.free(first), Err(MemoryError::NotAllocated { address: first }));
    assert_eq!((memory.find(first), memory.find(host)), (None, None));
    assert_ne!(memory.alloc(6000).unwrap(), first);
}

#[test]
fn addresses_are_reused_only_when_they_run_out() {
    let memory = Memory::new(1 << 50);
    let whole = DEVICE_ADDRESSES.end - DEVICE_ADDRESSES.start;
    let third = whole / 3;
    let [a, b] = [0, 1].map(|_| memory.alloc(third).unwrap());
    assert!(a < b);
    assert!(matches!(memory.alloc(third), Err(MemoryError::OutOfMemory { .. })), "two gaps take some");
    memory.free(a).unwrap();
    assert_eq!(memory.alloc(third).unwrap(), a);
    memory.free(b).unwrap();
    let between = memory.alloc(third).unwrap();
    assert!(between >= a + third + 4096);
}

#[test]
fn host_memory_is_where_the_host_finds_it() {
    let memory = Arc::new(Memory::new(1 << 20));
    let address = memory.alloc_host(5000).unwrap();
    assert!(written(&memory, address, 5000).into_iter().all(|w| w));
    assert_eq!(contents(&memory, address, 5000), vec![0; 5000]);
    let pointer = std::ptr::with_exposed_provenance_mut::<u8>(usize::try_from(address).unwrap() + 7);
    // SAFETY: `alloc_host` promises 5000 bytes there until they are freed.
    unsafe { pointer.write(42) };
    assert_eq!(contents(&memory, address + 7, 1), [42]);
    memory.write(address + 7, &[43]).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { pointer.read() }, 43);
}

/// Random writes, copies (overlapping ones, too) and fills against vectors of bytes and of flags.
#[test]
fn contents_and_written_bits_equal_a_model() {
    let memory = Arc::new(Memory::new(1 << 20));
    let sizes = [300_usize, 1000];
    let mut starts = sizes.map(|bytes| memory.alloc(bytes as u64).unwrap());
    let mut model = sizes.map(|bytes| vec![(0_u8, false); bytes]);
    let mut state = 1_u64;
    let mut below = |end: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % end
    };
    for _ in 0..4000 {
        let (a, b) = (below(2), below(2));
        let bytes = 1 + below(sizes[a].min(sizes[b]));
        let bytes = if below(2) == 0 { bytes } else { 1 + bytes % 40 };
        let (from, to) = (below(sizes[a] - bytes + 1), below(sizes[b] - bytes + 1));
        let target = starts[b] + to as u64;
        match below(8) {
            0 => {
                let data: Vec<u8> = (0..bytes).map(|_| u8::try_from(below(256)).unwrap()).collect();
                memory.write(target, &data).unwrap();
                (0..bytes).for_each(|i| model[b][to + i] = (data[i], true));
            }
            1 => {
                let pattern = &[1, 2, 3, 4][..1 << below(3)];
                memory.fill(target, pattern, bytes as u64).unwrap();
                (0..bytes).for_each(|i| model[b][to + i] = (pattern[i % pattern.len()], true));
            }
            2 if below(4) == 0 => {
                // Fresh memory: copies carry "unwritten" from it.
                memory.free(starts[b]).unwrap();
                starts[b] = memory.alloc(sizes[b] as u64).unwrap();
                model[b].fill((0, false));
                continue;
            }
            _ => {
                memory.copy(target, starts[a] + from as u64, bytes as u64).unwrap();
                let moved = model[a][from..from + bytes].to_vec();
                model[b][to..to + bytes].copy_from_slice(&moved);
            }
        }
        for (start, model) in starts.iter().zip(&model) {
            let bytes: Vec<u8> = model.iter().map(|m| m.0).collect();
            assert_eq!(contents(&memory, *start, model.len()), bytes);
            assert!(written(&memory, *start, model.len()).iter().zip(model).all(|(w, m)| *w == m.1));
        }
        let view = memory.view();
        let (allocation, offset) = view.locate(&mut 0, target, bytes as u64).unwrap();
        let all = model[b][to..to + bytes].iter().all(|m| m.1);
        assert_eq!(allocation.is_written(offset, bytes), all);
    }
}

#[test]
fn rows_of_every_size_and_atomics() {
    let memory = Arc::new(Memory::new(1 << 20));
    let address = memory.alloc(1024).unwrap();
    let view = memory.view();
    let (allocation, _) = view.locate(&mut 0, address, 1024).unwrap();
    let row: [u8; 512] = std::array::from_fn(|i| u8::try_from(i % 251).unwrap());
    allocation.store(3, row);
    assert!(!allocation.is_written(3, 512));
    allocation.mark_written(3, 512);
    assert!(allocation.is_written(3, 512) && !allocation.is_written(2, 1) && !allocation.is_written(3, 513));
    assert_eq!(allocation.load::<512>(3), row);
    assert_eq!(allocation.load::<4>(3 + 100), [100, 101, 102, 103]);
    allocation.atomic_u32(8).store(0x0403_0201, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(allocation.load::<4>(8), [1, 2, 3, 4]);
    allocation.atomic_u64(1016).fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(allocation.load::<8>(1016)[0], 1);
}

#[test]
#[should_panic(expected = "outside the allocation")]
fn loads_assert_their_bounds() {
    let memory = Arc::new(Memory::new(1 << 20));
    let address = memory.alloc(64).unwrap();
    let view = memory.view();
    view.locate(&mut 0, address, 64).unwrap().0.load::<8>(57);
}

#[test]
fn a_view_keeps_what_is_freed() {
    let memory = Arc::new(Memory::new(1 << 20));
    let address = memory.alloc(100_000).unwrap();
    memory.fill(address, &[7], 100_000).unwrap();
    let view = memory.view();
    memory.free(address).unwrap();
    assert!(memory.read(address, &mut [0]).is_err());
    let later = memory.alloc(4).unwrap();
    assert!(view.locate(&mut 0, later, 4).is_none(), "a view is of the time it was made");
    assert_eq!(view.locate(&mut 0, address, 100_000).unwrap().0.load::<2>(99_998), [7, 7]);
}

/// Threads allocate, write, copy, mark and free at once, views alive: every one finds its own bytes.
#[test]
fn eight_threads_at_once() {
    let memory = Arc::new(Memory::new(1 << 30));
    let shared = memory.alloc(8 * 1000).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8_u8 {
            let memory = memory.clone();
            scope.spawn(move || {
                for round in 0..150_u64 {
                    let bytes = 1 + (round * 977 + u64::from(thread) * 131) % 9000;
                    let address = memory.alloc(bytes).unwrap();
                    memory.fill(address, &[thread], bytes).unwrap();
                    let view = memory.view();
                    memory.free(address).unwrap();
                    let mut hint = 0;
                    let (allocation, _) = view.locate(&mut hint, address, bytes).unwrap();
                    let last = usize::try_from(bytes).unwrap() - 1;
                    assert_eq!(allocation.load::<1>(last), [thread]);
                    // Interleaved bytes: words of bits are shared by all threads.
                    let (common, _) = view.locate(&mut hint, shared, 8000).unwrap();
                    let per_round = 1000 / 150;
                    for i in 0..per_round {
                        let at = 8 * (usize::try_from(round).unwrap() * per_round + i) + usize::from(thread);
                        assert!(!common.is_written(at, 1));
                        common.store(at, [thread]);
                        common.mark_written(at, 1);
                        assert!(common.is_written(at, 1));
                    }
                }
            });
        }
    });
    let marked = 8 * 150 * (1000 / 150);
    assert!(written(&memory, shared, 8000).iter().enumerate().all(|(i, w)| *w == (i < marked)));
    for (i, byte) in contents(&memory, shared, marked).into_iter().enumerate() {
        assert_eq!(usize::from(byte), i % 8);
    }
    assert_eq!(memory.free_and_total(), ((1 << 30) - 8000, 1 << 30));
}
