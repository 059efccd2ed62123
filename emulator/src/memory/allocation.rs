//! One allocation: its bytes, and one bit for each that says whether it was written.

use memmap2::{MmapOptions, MmapRaw};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// One allocation, as kernels reach it.
///
/// Many threads of a launch access it at once, without locks. What a racy kernel reads is any mixture of old and new
/// bytes; bytes are values to the emulator, never its own pointers, lengths or indices, so nothing it relies on can
/// break. The bits of what was written are atomic.
pub struct Allocation {
    start: u64,
    bytes: usize,
    data: *mut u8,
    /// Bit `offset % 64` of word `offset / 64`; dangling if all counts as written.
    written: *const AtomicU64,
    all_written: bool,
    _mappings: [Option<MmapRaw>; 2],
}

// SAFETY: the pointers are to the two mappings it owns, which no thread is tied to.
unsafe impl Send for Allocation {}
// SAFETY: shared access is by copies of bytes whose values are not relied on (see the type), and by atomics.
unsafe impl Sync for Allocation {}

/// A size that was checked against an allocation's.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "usize has 64 bits, see the assertion")]
pub(super) fn index(value: u64) -> usize {
    const { assert!(usize::BITS == 64) };
    value as usize
}

/// Zeroed pages, committed when touched.
fn map(bytes: usize) -> std::io::Result<MmapRaw> {
    MmapOptions::new().len(bytes.max(1)).no_reserve_swap().map_anon().map(MmapRaw::from)
}

impl Allocation {
    /// At an address of the emulator's own.
    pub(super) fn device(start: u64, bytes: usize) -> std::io::Result<Self> {
        let data = map(bytes)?;
        let written = map(bytes.div_ceil(64) * 8)?;
        Ok(Self {
            start,
            bytes,
            data: data.as_mut_ptr(),
            written: written.as_ptr().cast(),
            all_written: false,
            _mappings: [Some(data), Some(written)],
        })
    }

    /// At the address where the host finds it.
    pub(super) fn host(bytes: usize) -> std::io::Result<Self> {
        let data = map(bytes)?;
        let pointer = data.as_mut_ptr();
        Ok(Self {
            start: pointer.addr() as u64,
            bytes,
            data: pointer,
            written: std::ptr::dangling(),
            all_written: true,
            _mappings: [Some(data), None],
        })
    }

    /// Address of the first byte.
    #[inline]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Size.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the host reaches it as well.
    pub(super) fn is_host(&self) -> bool {
        self.all_written
    }

    /// The offset of `address`, if all of `bytes` bytes there are within.
    #[inline]
    pub(super) fn offset_of(&self, address: u64, bytes: u64) -> Option<usize> {
        let (size, offset) = (self.bytes as u64, address.wrapping_sub(self.start));
        (bytes <= size && offset <= size - bytes).then_some(index(offset))
    }

    #[inline]
    fn check(&self, offset: usize, bytes: usize) {
        assert!(bytes <= self.bytes && offset <= self.bytes - bytes, "access outside the allocation");
    }

    /// Pointer to a byte, or to the end.
    #[inline]
    fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
        self.check(offset, bytes);
        // SAFETY: the mapping has `self.bytes` bytes (device, host), and `check` found the offset not above them.
        unsafe { self.data.add(offset) }
    }
}

/// Offsets and sizes are within what [`View::locate`](super::View::locate) allowed; every function asserts that.
impl Allocation {
    /// Copies `N` bytes: those of a lane, or of a whole warp.
    #[inline]
    pub fn load<const N: usize>(&self, offset: usize) -> [u8; N] {
        let from = self.at(offset, N).cast::<[u8; N]>();
        // SAFETY: `at` checked that N bytes from here are in the mapping, which lives as long as self; an array of
        // bytes has no alignment and no invalid values. A concurrent store may tear it: see the type.
        unsafe { from.read() }
    }

    /// Stores `N` bytes; does not mark.
    #[inline]
    pub fn store<const N: usize>(&self, offset: usize, bytes: [u8; N]) {
        let to = self.at(offset, N).cast::<[u8; N]>();
        // SAFETY: as in `load`; the mapping is writable and no reference into it exists but to atomics.
        unsafe { to.write(bytes) }
    }

    /// For atomics; offset aligned.
    #[inline]
    pub fn atomic_u16(&self, offset: usize) -> &AtomicU16 {
        assert!(offset.is_multiple_of(2), "misaligned atomic");
        let at = self.at(offset, 2).cast::<u16>();
        // SAFETY: as in `atomic_u32`, with 2 bytes.
        unsafe { AtomicU16::from_ptr(at) }
    }

    /// For atomics; offset aligned.
    #[inline]
    pub fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "misaligned atomic");
        let at = self.at(offset, 4).cast::<u32>();
        // SAFETY: `at` checked that the 4 bytes are in the mapping, which lives as long as the reference; mappings
        // start on pages, so a multiple of 4 is aligned.
        unsafe { AtomicU32::from_ptr(at) }
    }

    /// For atomics; offset aligned.
    #[inline]
    pub fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8), "misaligned atomic");
        let at = self.at(offset, 8).cast::<u64>();
        // SAFETY: as in `atomic_u32`, with 8 bytes.
        unsafe { AtomicU64::from_ptr(at) }
    }

    /// Copies out.
    pub(super) fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len());
        // SAFETY: `at` checked the range; the slice is the caller's own, so apart from the mapping. (Host memory is
        // reachable from outside: a caller's slice over it is `copy`'s business, so overlap is allowed here.)
        unsafe { std::ptr::copy(from, bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Copies in; marks as written.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy(bytes.as_ptr(), to, bytes.len()) }
        self.mark_written(offset, bytes.len());
    }

    /// Copies from another allocation or from itself (memmove), with the bits of what was written.
    pub(super) fn copy_from(&self, offset: usize, from: &Self, from_offset: usize, bytes: usize) {
        let source = from.at(from_offset, bytes);
        let target = self.at(offset, bytes);
        // All bits before any changes: the ranges may overlap.
        let bits: Vec<u64> = (0..bytes.div_ceil(64))
            .map(|word| from.written_bits(from_offset + 64 * word, 64.min(bytes - 64 * word)))
            .collect();
        // SAFETY: `at` checked both ranges; `copy` allows overlap.
        unsafe { std::ptr::copy(source, target, bytes) }
        for (word, bits) in bits.into_iter().enumerate() {
            self.set_written_bits(offset + 64 * word, 64.min(bytes - 64 * word), bits);
        }
    }
}

/// Bits `low..high` of a word, 0 ≤ low < high ≤ 64.
#[inline]
fn mask(low: usize, high: usize) -> u64 {
    (u64::MAX << low) & (u64::MAX >> (64 - high))
}

/// The words that hold the bits of a range: index and mask.
#[inline]
fn words(offset: usize, bytes: usize) -> impl Iterator<Item = (usize, u64)> {
    let end = offset + bytes;
    (offset / 64..end.div_ceil(64)).map(move |word| {
        let first = 64 * word;
        (word, mask(offset.saturating_sub(first), (end - first).min(64)))
    })
}

/// What was written. Relaxed: the bits order nothing; launches and copies are ordered by their streams.
impl Allocation {
    #[inline]
    fn word(&self, index: usize) -> &AtomicU64 {
        debug_assert!(!self.all_written && index < self.bytes.div_ceil(64));
        // SAFETY: the bitmap has a word for every 64 bytes begun (`device`); callers checked the range of bytes and
        // that there is a bitmap.
        let word = unsafe { self.written.add(index) };
        // SAFETY: it is a word of the bitmap, which lives as long as self and is only accessed as AtomicU64.
        unsafe { &*word }
    }

    /// Whether all of the bytes were written.
    #[inline]
    pub fn is_written(&self, offset: usize, bytes: usize) -> bool {
        self.check(offset, bytes);
        if self.all_written || bytes == 0 {
            return true;
        }
        let low = offset % 64;
        if low + bytes <= 64 {
            let mask = mask(low, low + bytes);
            return self.word(offset / 64).load(Ordering::Relaxed) & mask == mask;
        }
        words(offset, bytes).all(|(word, mask)| self.word(word).load(Ordering::Relaxed) & mask == mask)
    }

    /// Marks as written.
    #[inline]
    pub fn mark_written(&self, offset: usize, bytes: usize) {
        self.check(offset, bytes);
        if self.all_written || bytes == 0 {
            return;
        }
        for (index, mask) in words(offset, bytes) {
            let word = self.word(index);
            // Mostly all is written already, and a load leaves the line shared.
            if word.load(Ordering::Relaxed) & mask != mask {
                word.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    /// The bits of at most 64 bytes, that of the first byte lowest.
    fn written_bits(&self, offset: usize, bytes: usize) -> u64 {
        self.check(offset, bytes);
        if self.all_written {
            return mask(0, bytes);
        }
        let low = offset % 64;
        let mut bits = self.word(offset / 64).load(Ordering::Relaxed) >> low;
        if low + bytes > 64 {
            bits |= self.word(offset / 64 + 1).load(Ordering::Relaxed) << (64 - low);
        }
        bits & mask(0, bytes)
    }

    /// Sets and clears the bits of at most 64 bytes.
    fn set_written_bits(&self, offset: usize, bytes: usize, bits: u64) {
        self.check(offset, bytes);
        if self.all_written {
            return;
        }
        let low = offset % 64;
        for (index, mask) in words(offset, bytes) {
            let bits = if index == offset / 64 { bits << low } else { bits >> (64 - low) } & mask;
            let word = self.word(index);
            word.fetch_or(bits, Ordering::Relaxed);
            word.fetch_and(bits | !mask, Ordering::Relaxed);
        }
    }
}
