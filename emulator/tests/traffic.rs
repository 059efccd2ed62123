//! Sectors and wavefronts against sets.

use cuda_emulator::traffic::{bytes as bytes_touched, phases, sectors, wavefronts};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};

fn is_active(lanes: u32, lane: usize) -> bool {
    (lanes >> lane) & 1 == 1
}

fn naive_units(unit: u64, lanes: u32, addresses: &[u64; 32], bytes: u32) -> u32 {
    let mut touched = HashSet::new();
    for lane in (0..32).filter(|&lane| is_active(lanes, lane)) {
        for byte in 0..u64::from(bytes) {
            touched.insert((addresses[lane] + byte) / unit);
        }
    }
    u32::try_from(touched.len()).unwrap()
}

fn naive_wavefronts(lanes: u32, addresses: &[u32; 32], bytes: u32) -> u32 {
    let lanes_per_group = if bytes <= 4 { 32 } else { 128 / bytes as usize };
    let mut sum = 0;
    for group in 0..32 / lanes_per_group {
        let mut banks: BTreeMap<u32, HashSet<u32>> = BTreeMap::new();
        let of_group = |&(lane, _): &(usize, &u32)| lane / lanes_per_group == group && is_active(lanes, lane);
        for (_, address) in addresses.iter().enumerate().filter(of_group) {
            for word in (0..bytes).map(|byte| (address + byte) / 4) {
                banks.entry(word % 32).or_default().insert(word);
            }
        }
        sum += banks.values().map(HashSet::len).max().unwrap_or(0);
    }
    u32::try_from(sum).unwrap()
}

/// Addresses as kernels have them: strides, permuted or swizzled, broadcast in part, and without any order.
fn addresses() -> impl Strategy<Value = [u32; 32]> {
    let strides = (0..70_000_u32, 0..140_u32, 0..32_u32, 0..64_u32, 0..6_u32).prop_map(
        |(base, stride, rotate, swizzle, broadcast)| {
            std::array::from_fn(|lane| {
                let lane = ((u32::try_from(lane).unwrap() + rotate) % 32) >> broadcast << broadcast;
                (base + lane * stride) ^ swizzle
            })
        },
    );
    let scattered = prop::array::uniform32(0..5000_u32);
    let contiguous = (0..1000_u32, 0..5_u32)
        .prop_map(|(base, log)| std::array::from_fn(|lane| base + (u32::try_from(lane).unwrap() << log)));
    prop_oneof![strides, scattered, contiguous]
}

fn lanes() -> impl Strategy<Value = u32> {
    prop_oneof![Just(u32::MAX), any::<u32>(), (0..32_u32).prop_map(|lane| 1 << lane), Just(0), Just(0xffff)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn both_equal_the_sets(addresses in addresses(), lanes in lanes(), log in 0..5_u32, high in any::<bool>()) {
        let bytes = 1 << log;
        prop_assert_eq!(wavefronts(lanes, &addresses, bytes), naive_wavefronts(lanes, &addresses, bytes));
        let base = if high { 0x1000_0000_0000 } else { 0 };
        let addresses = addresses.map(|address| base + u64::from(address));
        prop_assert_eq!(bytes_touched(lanes, &addresses, bytes), naive_units(1, lanes, &addresses, bytes));
        prop_assert_eq!(sectors(lanes, &addresses, bytes), naive_units(32, lanes, &addresses, bytes));
    }
}

#[test]
fn known_patterns() {
    let linear = |step: u32| -> [u32; 32] { std::array::from_fn(|lane| u32::try_from(lane).unwrap() * step) };
    let wide = |addresses: [u32; 32]| addresses.map(u64::from);
    // Coalesced: 128 bytes are 4 sectors, misaligned 5; a column takes one a lane.
    assert_eq!(sectors(u32::MAX, &wide(linear(4)), 4), 4);
    assert_eq!(sectors(u32::MAX, &wide(linear(4).map(|a| a + 4)), 4), 5);
    assert_eq!(sectors(u32::MAX, &wide(linear(128)), 4), 32);
    assert_eq!(sectors(u32::MAX, &wide(linear(0)), 4), 1);
    assert_eq!(sectors(0, &wide(linear(4)), 4), 0);
    assert_eq!(bytes_touched(u32::MAX, &wide(linear(0)), 4), 4);
    assert_eq!(bytes_touched(u32::MAX, &wide(linear(8)), 4), 128);
    // A phase for every group of lanes of which any takes part.
    assert_eq!([4, 8, 16].map(|bytes| phases(u32::MAX, bytes)), [1, 2, 4]);
    assert_eq!([4, 8, 16].map(|bytes| phases(0x8000_0001, bytes)), [1, 2, 2]);
    assert_eq!(phases(0, 16), 0);
    // A 32 x 32 matrix of floats: rows are free, columns 32 ways in conflict, padded columns free.
    assert_eq!(wavefronts(u32::MAX, &linear(4), 4), 1);
    assert_eq!(wavefronts(u32::MAX, &linear(128), 4), 32);
    assert_eq!(wavefronts(u32::MAX, &linear(132), 4), 1);
    assert_eq!(wavefronts(u32::MAX, &linear(8), 4), 2);
    assert_eq!(wavefronts(u32::MAX, &linear(0), 4), 1);
    assert_eq!((wavefronts(u32::MAX, &linear(8), 8), wavefronts(u32::MAX, &linear(16), 16)), (2, 4));
    assert_eq!(wavefronts(0, &linear(4), 4), 0);
    // The last lanes only: one group of four.
    assert_eq!(wavefronts(0xff00_0000, &linear(16), 16), 1);
}

#[test]
fn the_ends_of_the_address_space_do_not_panic() {
    for bytes in [0, 1, 4, 16, u32::MAX] {
        for lanes in [0, 1, 0x8000_0001, u32::MAX] {
            sectors(lanes, &[u64::MAX; 32], bytes);
            sectors(lanes, &std::array::from_fn(|lane| u64::MAX - lane as u64), bytes);
        }
    }
    for bytes in [0, 1, 4, 16] {
        wavefronts(u32::MAX, &[u32::MAX; 32], bytes);
    }
}
