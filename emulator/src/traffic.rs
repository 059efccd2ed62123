//! What an access costs a memory system: sectors of global memory, wavefronts of shared memory.

/// Bytes of a sector.
const SECTOR: u64 = 32;

/// Banks of shared memory, each 4 bytes wide.
const BANKS: usize = 32;

/// Sectors of 32 bytes that the lanes of `lanes` touch with `bytes` bytes each: one request of a warp.
#[inline]
pub fn sectors(lanes: u32, addresses: &[u64; 32], bytes: u32) -> u32 {
    touched::<SECTOR>(lanes, addresses, bytes)
}

/// Bytes that they touch.
#[inline]
pub fn bytes(lanes: u32, addresses: &[u64; 32], bytes: u32) -> u32 {
    touched::<1>(lanes, addresses, bytes)
}

/// Units of `UNIT` bytes that they touch.
#[inline]
fn touched<const UNIT: u64>(lanes: u32, addresses: &[u64; 32], bytes: u32) -> u32 {
    let (first, bytes) = (addresses[0], u64::from(bytes));
    let (mut differ, mut expected) = (u64::from(!lanes) | u64::from(bytes == 0), first);
    for &address in addresses {
        differ |= address ^ expected;
        expected = expected.wrapping_add(bytes);
    }
    if differ == 0
        && let Some(last) = first.checked_add(32 * bytes - 1)
    {
        return narrow(last / UNIT - first / UNIT + 1);
    }
    scattered::<UNIT>(lanes, addresses, bytes)
}

fn narrow(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The active lanes' numbers.
#[inline]
pub(crate) fn active(lanes: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| lanes >> lane & 1 != 0)
}

fn scattered<const UNIT: u64>(lanes: u32, addresses: &[u64; 32], bytes: u64) -> u32 {
    if bytes == 0 {
        return 0;
    }
    let span = |lane: usize| (addresses[lane] / UNIT, addresses[lane].saturating_add(bytes - 1) / UNIT);
    // Mostly they ascend. Then a unit is new if it is above all before.
    let mut count = 0;
    let mut previous: Option<(u64, u64)> = None;
    let ascend = active(lanes).all(|lane| {
        let (first, last) = span(lane);
        let (from, above) = previous.map_or((first, first), |(from, last)| (from, last + 1));
        count += (last + 1).saturating_sub(first.max(above));
        previous = Some((first, last.max(above.saturating_sub(1))));
        first >= from
    });
    if ascend {
        return narrow(count);
    }
    let mut spans = [(0, 0); 32];
    let mut used = 0;
    for lane in active(lanes) {
        spans[used] = span(lane);
        used += 1;
    }
    spans[..used].sort_unstable();
    let (mut count, mut next) = (0, 0);
    for &(first, last) in &spans[..used] {
        count += (last + 1).saturating_sub(first.max(next));
        next = next.max(last + 1);
    }
    narrow(count)
}

/// Lanes that shared memory serves together.
#[inline]
fn lanes_of_phase(bytes: u32) -> usize {
    match bytes {
        0..=4 => 32,
        5..=8 => 16,
        _ => 8,
    }
}

/// Wavefronts of a shared-memory request without bank conflicts: groups of lanes of which any takes part.
#[inline]
pub fn phases(lanes: u32, bytes: u32) -> u32 {
    let size = lanes_of_phase(bytes);
    let group = u32::MAX >> (32 - size);
    (0..32).step_by(size).map(|lane| u32::from(lanes >> lane & group != 0)).sum()
}

/// Wavefronts of a shared-memory request: lanes in groups (32 lanes for up to 4 bytes, 16 for 8, 8 for 16), each
/// group as many wavefronts as the bank (4 bytes wide, 32 of them) with the most distinct words needs.
#[inline]
pub fn wavefronts(lanes: u32, addresses: &[u32; 32], bytes: u32) -> u32 {
    let first = addresses[0];
    let (mut differ, mut expected) = (!lanes | (first % 4), first);
    for &address in addresses {
        differ |= address ^ expected;
        expected = expected.wrapping_add(bytes);
    }
    if differ == 0 && matches!(bytes, 1 | 2 | 4 | 8 | 16) {
        // From a word's start on, a group touches each of the banks at most once.
        return bytes.div_ceil(4);
    }
    let group = lanes_of_phase(bytes);
    let groups = addresses.chunks_exact(group).zip((0..32).step_by(group));
    groups.map(|(addresses, lane)| wavefronts_of_group(lanes >> lane, addresses, bytes)).sum()
}

/// Most distinct words in one bank.
#[inline]
fn wavefronts_of_group(lanes: u32, addresses: &[u32], bytes: u32) -> u32 {
    // Aligned accesses of 4, 8 or 16 bytes that all fall into different banks.
    let (mut banks, mut odd, mut used) = (0u32, !matches!(bytes, 4 | 8 | 16), 0);
    let shift = bytes.trailing_zeros().min(4);
    for (lane, &address) in addresses.iter().enumerate() {
        let active = lanes >> lane & 1;
        banks |= active << (address >> shift & (127 >> shift) & 31);
        odd |= address % bytes.max(1) != 0;
        used += active;
    }
    if !odd && banks.count_ones() == used {
        return used.min(1);
    }
    conflicts(lanes, addresses, bytes)
}

fn conflicts(lanes: u32, addresses: &[u32], bytes: u32) -> u32 {
    // Distinct words, chained by bank: at most 32 lanes of up to two words, or 8 of up to five.
    let mut words = [(0, 0); 64];
    let mut used = 0;
    let mut heads = [usize::MAX; BANKS];
    let mut counts = [0; BANKS];
    for (_, &address) in addresses.iter().enumerate().filter(|(lane, _)| lanes >> lane & 1 != 0) {
        let last = address.saturating_add(bytes.saturating_sub(1)) / 4;
        for word in address / 4..=last {
            let bank = word as usize % BANKS;
            let mut link = heads[bank];
            while link != usize::MAX && words[link].0 != word {
                link = words[link].1;
            }
            if link == usize::MAX {
                words[used] = (word, heads[bank]);
                heads[bank] = used;
                used += 1;
                counts[bank] += 1;
            }
        }
    }
    counts.into_iter().max().unwrap_or(0)
}
