//! The code books of blockwise 8-bit AdamW, and the quantiser.
//!
//! A block is stored as its largest magnitude and one byte per element, an index into a book of 256 values in
//! [-1, 1] ("dynamic" quantisation, Dettmers et al. 2022, <https://arxiv.org/abs/2110.02861>). The books are those
//! of bitsandbytes, as bit patterns: the formula behind them gives other last bits in other floating-point
//! libraries.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;

use std::sync::LazyLock;

/// Words of [`Codebook::buckets`].
pub const BUCKETS: usize = 4096;

/// Low bits of a magnitude that lie within one bucket, in the signed book: 6 fraction bits select the bucket.
pub const SIGNED_SHIFT: u32 = 17;

/// The same of the unsigned book, whose entries lie twice as close: 7 fraction bits.
pub const UNSIGNED_SHIFT: u32 = 16;

/// Bits of 2^-23: smaller magnitudes are below every threshold but those at zero.
const LOWEST: u32 = (127 - 23) << 23;

/// Bits of the greatest f32 below 1.0; 1.0 takes the same code.
const HIGHEST: u32 = (127 << 23) - 1;

/// Buckets of negative values begin here; the signed book fills 1,472 of either half, the unsigned one 2,944.
const NEGATIVE: u32 = 2048;

/// For the first moment: zero at 127, no -1.0.
pub static SIGNED: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(&SIGNED_BITS, SIGNED_SHIFT));

/// For the second moment: zero at 0, nothing negative.
pub static UNSIGNED: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(&UNSIGNED_BITS, UNSIGNED_SHIFT));

/// One code book, and the table that makes the search for the nearest value one look-up.
pub struct Codebook {
    /// The value of each code, ascending.
    pub values: [f32; 256],
    /// See [`Codebook::quantise`]; a GPU reads the same words.
    pub buckets: Box<[u32; BUCKETS]>,
    /// The book in registers, where the processor can.
    #[cfg(target_arch = "x86_64")]
    pub(super) tables: Option<avx512::Tables>,
}

impl Codebook {
    fn new(bits: &[u32; 256], shift: u32) -> Self {
        let values = bits.map(f32::from_bits);
        let thresholds = std::array::from_fn(|i| threshold(&values, i));
        Self {
            values,
            buckets: buckets(&thresholds, shift),
            #[cfg(target_arch = "x86_64")]
            tables: avx512::Tables::new(&values),
        }
    }

    /// The code of the value nearest to `x`, `|x| <= 1`; a tie goes to the even code, and `x < 0.0` never takes a
    /// non-negative value. Of any other `x`, NaN included, only this is promised: it returns.
    ///
    /// `SHIFT` is that of the book. A bucket is the set of magnitudes that agree in all but their low `SHIFT` bits;
    /// it holds at most one threshold. Its word: those bits of the last magnitude before the threshold, then in
    /// the low 8 bits the code there. Beyond the threshold lies the next code, upwards or downwards as the sign is.
    pub fn quantise<const SHIFT: u32>(&self, x: f32) -> u8 {
        code::<SHIFT>(x, self.buckets[bucket::<SHIFT>(x) as usize])
    }

    /// The values of the codes, times `absmax`; `codes` is as long as `x`.
    #[inline(always)]
    pub fn dequantise_block(&self, codes: &[u8], absmax: f32, x: &mut [f32]) {
        for (x, &code) in x.iter_mut().zip(codes) {
            *x = self.values[usize::from(code)] * absmax;
        }
    }

    /// [`Codebook::quantise`] of `x / absmax` for up to 256 `x`; `absmax` is their largest magnitude, and zeros take
    /// the zero code. `codes` is as long as `x`.
    ///
    /// Three loops, because only the look-up in the middle one resists vector instructions.
    #[inline(always)]
    pub fn quantise_block<const SHIFT: u32>(&self, x: &[f32], absmax: f32, codes: &mut [u8]) {
        if absmax == 0.0 {
            codes.fill(self.quantise::<SHIFT>(0.0));
            return;
        }
        let (mut scaled, mut words) = ([0.0; 256], [0; 256]);
        let (scaled, words) = (&mut scaled[..x.len()], &mut words[..x.len()]);
        for ((word, scaled), x) in words.iter_mut().zip(scaled.iter_mut()).zip(x) {
            *scaled = x / absmax;
            *word = bucket::<SHIFT>(*scaled);
        }
        for word in words.iter_mut() {
            *word = self.buckets[*word as usize % BUCKETS];
        }
        for ((c, &word), &scaled) in codes.iter_mut().zip(words.iter()).zip(scaled.iter()) {
            *c = code::<SHIFT>(scaled, word);
        }
    }
}

/// Index of the bucket of `x`, less than [`BUCKETS`].
#[inline(always)]
fn bucket<const SHIFT: u32>(x: f32) -> u32 {
    let half = if x < 0.0 { NEGATIVE } else { 0 }; // -0.0 is zero
    (magnitude(x).wrapping_sub(LOWEST) >> SHIFT) | half
}

/// The code of `x`, given the word of its bucket.
#[inline(always)]
fn code<const SHIFT: u32>(x: f32, word: u32) -> u8 {
    let beyond = u32::from(magnitude(x) & ((1 << SHIFT) - 1) > word >> 8);
    let code = if x < 0.0 { word.wrapping_sub(beyond) } else { word.wrapping_add(beyond) };
    code.to_le_bytes()[0]
}

/// Bits of `|x|`, kept within the range of the buckets.
#[inline(always)]
fn magnitude(x: f32) -> u32 {
    (x.to_bits() & 0x7fff_ffff).clamp(LOWEST, HIGHEST)
}

/// The greatest f32 that still takes code `i` rather than `i + 1`: the midpoint, with a tie given to the even code.
/// Nothing below zero reaches the zero entry.
fn threshold(values: &[f32; 256], i: usize) -> f32 {
    if values[i + 1] == 0.0 {
        return 0f32.next_down(); // the greatest x < 0.0
    }
    let middle = f64::midpoint(f64::from(values[i]), f64::from(values[i + 1])); // exact: neighbours are of like size
    #[expect(clippy::cast_possible_truncation, reason = "rounding is the point")]
    let nearest = middle as f32;
    let error = f64::from(nearest) - middle;
    if error < 0.0 || (error == 0.0 && i.is_multiple_of(2)) { nearest } else { nearest.next_down() }
}

/// The table of [`Codebook::quantise`].
///
/// # Panics
/// If a bucket holds two thresholds: the shift is too large for this book.
fn buckets(thresholds: &[f32; 255], shift: u32) -> Box<[u32; BUCKETS]> {
    let signed = thresholds[0] < 0.0;
    let code = |x: f32| u32::try_from(thresholds.partition_point(|&t| t < x)).expect("at most 255");
    let mut table = Box::new([0; BUCKETS]);
    for (bucket, word) in (0..).zip(table.iter_mut()) {
        let negative = signed && bucket >= NEGATIVE;
        let first = LOWEST + ((bucket - if negative { NEGATIVE } else { 0 }) << shift);
        let value = |low: u32| f32::from_bits(first + low) * if negative { -1.0 } else { 1.0 };
        let (mut same, mut end) = (0, (1 << shift) - 1); // `same` takes the code of the bucket's first magnitude
        assert!(code(value(0)).abs_diff(code(value(end))) <= 1, "two thresholds in bucket {bucket}");
        while same < end {
            let middle = (same + end).div_ceil(2);
            if code(value(middle)) == code(value(0)) { same = middle } else { end = middle - 1 }
        }
        *word = same << 8 | code(value(0));
    }
    table
}

#[rustfmt::skip]
const SIGNED_BITS: [u32; 256] = [
    0xbf7e3333, 0xbf7a999a, 0xbf770000, 0xbf736666, 0xbf6fcccd, 0xbf6c3333, 0xbf68999a, 0xbf650000, 0xbf616666,
    0xbf5dcccd, 0xbf5a3333, 0xbf56999a, 0xbf530000, 0xbf4f6666, 0xbf4bcccd, 0xbf483333, 0xbf44999a, 0xbf410000,
    0xbf3d6666, 0xbf39cccd, 0xbf363334, 0xbf32999a, 0xbf2f0000, 0xbf2b6666, 0xbf27cccd, 0xbf243334, 0xbf20999a,
    0xbf1d0000, 0xbf196666, 0xbf15cccd, 0xbf123334, 0xbf0e999a, 0xbf0b0000, 0xbf076666, 0xbf03cccc, 0xbf003333,
    0xbef93332, 0xbef20000, 0xbeeacccc, 0xbee3999a, 0xbedc6666, 0xbed53333, 0xbece0000, 0xbec6cccc, 0xbebf999a,
    0xbeb86666, 0xbeb13333, 0xbeaa0000, 0xbea2cccc, 0xbe9b999a, 0xbe946666, 0xbe8d3334, 0xbe860000, 0xbe7d9999,
    0xbe6f3333, 0xbe60cccd, 0xbe526666, 0xbe440000, 0xbe35999a, 0xbe273333, 0xbe18cccd, 0xbe0a6666, 0xbdf80000,
    0xbddb3334, 0xbdc9eb85, 0xbdc428f7, 0xbdbe6667, 0xbdb8a3d7, 0xbdb2e148, 0xbdad1eb8, 0xbda75c2a, 0xbda1999a,
    0xbd9bd70a, 0xbd96147b, 0xbd9051eb, 0xbd8a8f5d, 0xbd84cccd, 0xbd7e147b, 0xbd728f5d, 0xbd670a3d, 0xbd5b851f,
    0xbd500000, 0xbd447ae1, 0xbd38f5c3, 0xbd2d70a3, 0xbd21eb85, 0xbd166667, 0xbd0ae148, 0xbcfeb852, 0xbce7ae15,
    0xbcd0a3d7, 0xbcb9999a, 0xbca28f5d, 0xbc8b851f, 0xbc68f5c3, 0xbc3ae148, 0xbc1f3b64, 0xbc160418, 0xbc0ccccd,
    0xbc039581, 0xbbf4bc6a, 0xbbe24dd3, 0xbbcfdf3b, 0xbbbd70a4, 0xbbab020d, 0xbb989374, 0xbb8624dd, 0xbb676c8a,
    0xbb428f5c, 0xbb1db22d, 0xbaf1a9fc, 0xbaa7ef9d, 0xba7765ff, 0xba59e83e, 0xba3c6a80, 0xba1eecc1, 0xba016f01,
    0xb9c7e283, 0xb98ce705, 0xb923d70b, 0xb8ba1f4b, 0xb88aefb3, 0xb8378034, 0xb7b24206, 0xb70205ff, 0xb65a1a94,
    0xb513a3b7, 0x00000000, 0x3513a3b7, 0x365a1a94, 0x370205ff, 0x37b24206, 0x38378034, 0x388aefb3, 0x38ba1f4b,
    0x3923d70b, 0x398ce705, 0x39c7e283, 0x3a016f01, 0x3a1eecc1, 0x3a3c6a80, 0x3a59e83e, 0x3a7765ff, 0x3aa7ef9d,
    0x3af1a9fc, 0x3b1db22d, 0x3b428f5c, 0x3b676c8a, 0x3b8624dd, 0x3b989374, 0x3bab020d, 0x3bbd70a4, 0x3bcfdf3b,
    0x3be24dd3, 0x3bf4bc6a, 0x3c039581, 0x3c0ccccd, 0x3c160418, 0x3c1f3b64, 0x3c3ae148, 0x3c68f5c3, 0x3c8b851f,
    0x3ca28f5d, 0x3cb9999a, 0x3cd0a3d7, 0x3ce7ae15, 0x3cfeb852, 0x3d0ae148, 0x3d166667, 0x3d21eb85, 0x3d2d70a3,
    0x3d38f5c3, 0x3d447ae1, 0x3d500000, 0x3d5b851f, 0x3d670a3d, 0x3d728f5d, 0x3d7e147b, 0x3d84cccd, 0x3d8a8f5d,
    0x3d9051eb, 0x3d96147b, 0x3d9bd70a, 0x3da1999a, 0x3da75c2a, 0x3dad1eb8, 0x3db2e148, 0x3db8a3d7, 0x3dbe6667,
    0x3dc428f7, 0x3dc9eb85, 0x3ddb3334, 0x3df80000, 0x3e0a6666, 0x3e18cccd, 0x3e273333, 0x3e35999a, 0x3e440000,
    0x3e526666, 0x3e60cccd, 0x3e6f3333, 0x3e7d9999, 0x3e860000, 0x3e8d3334, 0x3e946666, 0x3e9b999a, 0x3ea2cccc,
    0x3eaa0000, 0x3eb13333, 0x3eb86666, 0x3ebf999a, 0x3ec6cccc, 0x3ece0000, 0x3ed53333, 0x3edc6666, 0x3ee3999a,
    0x3eeacccc, 0x3ef20000, 0x3ef93332, 0x3f003333, 0x3f03cccc, 0x3f076666, 0x3f0b0000, 0x3f0e999a, 0x3f123334,
    0x3f15cccd, 0x3f196666, 0x3f1d0000, 0x3f20999a, 0x3f243334, 0x3f27cccd, 0x3f2b6666, 0x3f2f0000, 0x3f32999a,
    0x3f363334, 0x3f39cccd, 0x3f3d6666, 0x3f410000, 0x3f44999a, 0x3f483333, 0x3f4bcccd, 0x3f4f6666, 0x3f530000,
    0x3f56999a, 0x3f5a3333, 0x3f5dcccd, 0x3f616666, 0x3f650000, 0x3f68999a, 0x3f6c3333, 0x3f6fcccd, 0x3f736666,
    0x3f770000, 0x3f7a999a, 0x3f7e3333, 0x3f800000,
];

#[rustfmt::skip]
const UNSIGNED_BITS: [u32; 256] = [
    0x00000000, 0x34ae7baa, 0x35500998, 0x360e9b38, 0x3692ccf6, 0x36de4c51, 0x3714e5d5, 0x3783126e, 0x37e171a0,
    0x381fe868, 0x384f1800, 0x387e479a, 0x3896bb99, 0x38ae5364, 0x38c5eb31, 0x3906594b, 0x394154ca, 0x397c5049,
    0x399ba5e4, 0x39b923a2, 0x39d6a163, 0x39f41f22, 0x3a08ce71, 0x3a178d50, 0x3a264c30, 0x3a350b10, 0x3a43c9ef,
    0x3a5288d0, 0x3a6147af, 0x3a70068e, 0x3a7ec56e, 0x3a958106, 0x3aba5e35, 0x3adf3b64, 0x3b020c4a, 0x3b147ae1,
    0x3b26e978, 0x3b395810, 0x3b4bc6a7, 0x3b5e3540, 0x3b70a3d7, 0x3b818937, 0x3b8ac082, 0x3b93f7cf, 0x3b9d2f1a,
    0x3ba66666, 0x3baf9db2, 0x3bb8d4fd, 0x3bc20c4a, 0x3bcb4395, 0x3bd47ae1, 0x3bddb22e, 0x3be6e978, 0x3bf020c5,
    0x3bf9580f, 0x3c0147ae, 0x3c05e354, 0x3c0a7ef9, 0x3c0f1aa0, 0x3c13b645, 0x3c1851eb, 0x3c1ced92, 0x3c218937,
    0x3c2f5c2a, 0x3c466667, 0x3c5d70a3, 0x3c747ae2, 0x3c85c28f, 0x3c9147af, 0x3c9ccccd, 0x3ca851eb, 0x3cb3d70b,
    0x3cbf5c29, 0x3ccae147, 0x3cd66667, 0x3ce1eb87, 0x3ced70a3, 0x3cf8f5c3, 0x3d023d70, 0x3d080000, 0x3d0dc28f,
    0x3d13851f, 0x3d1947af, 0x3d1f0a3d, 0x3d24cccd, 0x3d2a8f5c, 0x3d3051eb, 0x3d36147b, 0x3d3bd70a, 0x3d41999a,
    0x3d475c28, 0x3d4d1eb8, 0x3d52e147, 0x3d58a3d7, 0x3d5e6667, 0x3d6428f7, 0x3d69eb87, 0x3d6fae15, 0x3d7570a3,
    0x3d7b3333, 0x3d807ae2, 0x3d835c2a, 0x3d863d71, 0x3d891eb8, 0x3d8c0000, 0x3d8ee148, 0x3d91c290, 0x3d94a3d7,
    0x3d97851f, 0x3d9a6667, 0x3d9d47af, 0x3da028f6, 0x3da30a3e, 0x3da5eb85, 0x3da8cccd, 0x3dabae15, 0x3dae8f5c,
    0x3db170a4, 0x3db451eb, 0x3db73333, 0x3dba147b, 0x3dbcf5c3, 0x3dbfd70b, 0x3dc2b852, 0x3dc5999a, 0x3dc87ae2,
    0x3dcb5c29, 0x3dd40000, 0x3de26666, 0x3df0cccd, 0x3dff3333, 0x3e06cccc, 0x3e0e0000, 0x3e153334, 0x3e1c6666,
    0x3e23999a, 0x3e2acccc, 0x3e320000, 0x3e393334, 0x3e406666, 0x3e47999a, 0x3e4ecccc, 0x3e560000, 0x3e5d3334,
    0x3e646666, 0x3e6b999a, 0x3e72cccc, 0x3e7a0000, 0x3e809999, 0x3e843333, 0x3e87cccd, 0x3e8b6666, 0x3e8f0000,
    0x3e92999a, 0x3e963333, 0x3e99cccc, 0x3e9d6666, 0x3ea10000, 0x3ea4999a, 0x3ea83333, 0x3eabcccc, 0x3eaf6666,
    0x3eb30000, 0x3eb6999a, 0x3eba3333, 0x3ebdcccc, 0x3ec16666, 0x3ec50000, 0x3ec8999a, 0x3ecc3333, 0x3ecfcccc,
    0x3ed36666, 0x3ed70000, 0x3eda999a, 0x3ede3333, 0x3ee1cccc, 0x3ee56666, 0x3ee90000, 0x3eec999a, 0x3ef03333,
    0x3ef3cccc, 0x3ef76666, 0x3efb0000, 0x3efe9999, 0x3f01199a, 0x3f02e666, 0x3f04b333, 0x3f068000, 0x3f084ccc,
    0x3f0a199a, 0x3f0be666, 0x3f0db334, 0x3f0f8000, 0x3f114ccd, 0x3f13199a, 0x3f14e666, 0x3f16b334, 0x3f188000,
    0x3f1a4ccd, 0x3f1c199a, 0x3f1de666, 0x3f1fb334, 0x3f218000, 0x3f234ccd, 0x3f25199a, 0x3f26e666, 0x3f28b334,
    0x3f2a8000, 0x3f2c4ccd, 0x3f2e199a, 0x3f2fe666, 0x3f31b334, 0x3f338000, 0x3f354ccd, 0x3f37199a, 0x3f38e666,
    0x3f3ab334, 0x3f3c8000, 0x3f3e4ccd, 0x3f40199a, 0x3f41e666, 0x3f43b334, 0x3f458000, 0x3f474ccc, 0x3f49199a,
    0x3f4ae666, 0x3f4cb334, 0x3f4e8000, 0x3f504ccc, 0x3f52199a, 0x3f53e666, 0x3f55b334, 0x3f578000, 0x3f594ccc,
    0x3f5b199a, 0x3f5ce666, 0x3f5eb334, 0x3f608000, 0x3f624ccc, 0x3f64199a, 0x3f65e666, 0x3f67b334, 0x3f698000,
    0x3f6b4ccc, 0x3f6d199a, 0x3f6ee666, 0x3f70b334, 0x3f728000, 0x3f744ccc, 0x3f76199a, 0x3f77e666, 0x3f79b334,
    0x3f7b8000, 0x3f7d4ccc, 0x3f7f199a, 0x3f800000,
];
