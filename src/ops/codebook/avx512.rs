//! Blocks of codes on AVX-512: look-ups among bytes in registers, and an estimate in place of the search.
//!
//! The codes are those of [`Codebook::quantise`] in every bit. A book is nearly linear within a decade, so a line through
//! it tells the code but where it comes out close to the middle between two; there the exact search decides.

use super::Codebook;
use std::arch::x86_64::*;

/// Values that are handled together.
pub const STEP: usize = 64;

/// Blocks with another largest magnitude take the plain way: its reciprocal is neither rounded by much nor makes the
/// smallest denormal a zero.
const LARGEST: std::ops::RangeInclusive<f32> = 1e-30..=0.5;

/// How near the middle between two codes an estimate may come. Its error is below 2^-13: 2^-23 of what is added, below
/// 2^8, from the reciprocal and the product; and the books are off their lines by twice as much.
const MARGIN: f32 = 1.0 / 4096.0;

/// 1.5·2^23: adding it rounds to an integer in the low bits.
const SHIFT: f32 = 12_582_912.0;
const SHIFT_BITS: i32 = 0x4b40_0000;

/// Segments of a book: below the first value, seven decades, and beyond the last but one.
const SEGMENTS: usize = 9;

/// A book in the form that registers want.
pub struct Tables {
    /// Byte `p` of value `64·q + i` at `[p][q][i]`.
    planes: [[[u8; 64]; 4]; 4],
    /// Segment of the magnitudes with an exponent, and up to where; what lies beyond is in the next one.
    segment: [i32; 32],
    border: [f32; 32],
    /// A magnitude's place among the codes is `slope·x + offset`, rounded, and `last` at most.
    slope: [f32; 16],
    offset: [f32; 16],
    last: [i32; 16],
    signed: bool,
}

impl Tables {
    /// Those of a book, where the processor has the instructions.
    pub fn new(values: &[f32; 256]) -> Option<Self> {
        let available = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vbmi");
        available.then(|| Self::of(values))
    }

    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32; counts below 256")]
    fn of(values: &[f32; 256]) -> Self {
        let byte = |p: usize, i: usize| values[i].to_bits().to_le_bytes()[p];
        let plane = |p| std::array::from_fn(|q| std::array::from_fn(|i| byte(p, 64 * q + i)));
        let signed = values[0] < 0.0;
        let magnitudes = if signed { &values[127..] } else { &values[..] };
        let top = magnitudes.len() - 2;
        let mut table = Self {
            planes: std::array::from_fn(plane),
            segment: [0; 32],
            border: [f32::INFINITY; 32],
            slope: [0.0; 16],
            offset: [0.0; 16],
            last: [i32::MAX; 16],
            signed,
        };
        let mut borders = [f64::from(magnitudes[1]); SEGMENTS - 1];
        table.slope[0] = (1.0 / borders[0]) as f32;
        for decade in 0..7 {
            let n = if signed { 1 << decade } else { 2 << decade }; // midpoints of linspace(0.1, 1, n)
            let first = if signed { n } else { n - 1 };
            let slope = f64::from(n) / (0.9 * 10f64.powi(decade - 6));
            let offset = f64::from(first) - f64::from(n) / 9.0 - 0.5;
            let (at, last) = (decade as usize + 1, (first + n - 1) as usize);
            (table.slope[at], table.offset[at]) = (slope as f32, offset as f32);
            if decade < 6 {
                table.last[at] = SHIFT_BITS + last as i32;
                // Beyond the border by more than an estimate's error: what is there is beyond for certain.
                let middle = f64::midpoint(f64::from(magnitudes[last]), f64::from(magnitudes[last + 1]));
                borders[at] = middle * (1.0 + 2f64.powi(-21));
            } else {
                borders[at] = (top as f64 + 0.05 - offset) / slope;
                table.slope[at + 1] = (2.0 * slope) as f32;
                table.offset[at + 1] = (2.0 * offset - top as f64) as f32;
            }
        }
        for exponent in -23..=0i32 {
            let (low, at) = (2f64.powi(exponent), (exponent + 31) as usize);
            table.segment[at] = borders.iter().filter(|b| **b <= low).count() as i32;
            let within = borders.iter().find(|b| low < **b && **b < 2.0 * low && exponent < 0);
            table.border[at] = within.map_or(f32::INFINITY, |b| *b as f32);
        }
        table
    }

    /// `x[i] = value[codes[i]]·absmax`, if there is a whole number of steps; returns whether.
    #[inline(always)]
    pub fn dequantise(&self, codes: &[u8], absmax: f32, x: &mut [f32]) -> bool {
        let whole = codes.len() == x.len() && x.len().is_multiple_of(STEP);
        if whole {
            // SAFETY: the processor has what it needs, or `new` had given no tables.
            unsafe { self.dequantise_steps(codes, absmax, x) };
        }
        whole
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn dequantise_steps(&self, codes: &[u8], absmax: f32, x: &mut [f32]) {
        for (codes, x) in codes.as_chunks::<STEP>().0.iter().zip(x.as_chunks_mut::<STEP>().0) {
            let values = self.decode(codes, absmax);
            for (x, value) in x.as_chunks_mut::<16>().0.iter_mut().zip(values) {
                // SAFETY: 16 floats.
                unsafe { _mm512_storeu_ps(x.as_mut_ptr(), value) };
            }
        }
    }

    /// The values of a step's codes, times `absmax`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub fn decode(&self, codes: &[u8; STEP], absmax: f32) -> [__m512; 4] {
        // Four neighbours of each quarter of a step into each quarter of a register, whence unpacking puts them in order.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let scale = _mm512_set1_ps(absmax);
        let codes = _mm512_permutexvar_epi32(order, bytes(codes));
        let high = _mm512_movepi8_mask(codes);
        let middle = _mm512_movepi8_mask(_mm512_add_epi8(codes, codes));
        let masks = [middle & !high, high & !middle, high & middle];
        let [a, b, c, d] = &self.planes;
        let (a, b) = (look_up(a, codes, masks), look_up(b, codes, masks));
        let (c, d) = (look_up(c, codes, masks), look_up(d, codes, masks));
        let (low, low_rest) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
        let (up, up_rest) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
        [
            _mm512_mul_ps(_mm512_castsi512_ps(_mm512_unpacklo_epi16(low, up)), scale),
            _mm512_mul_ps(_mm512_castsi512_ps(_mm512_unpackhi_epi16(low, up)), scale),
            _mm512_mul_ps(_mm512_castsi512_ps(_mm512_unpacklo_epi16(low_rest, up_rest)), scale),
            _mm512_mul_ps(_mm512_castsi512_ps(_mm512_unpackhi_epi16(low_rest, up_rest)), scale),
        ]
    }

    /// [`Codebook::quantise`] of every `x / absmax`, if this way is open to them; returns whether.
    #[inline(always)]
    pub fn quantise<const SHIFT: u32>(
        &self,
        book: &Codebook,
        x: &[f32],
        absmax: f32,
        codes: &mut [u8],
    ) -> bool {
        let open = codes.len() == x.len() && x.len().is_multiple_of(STEP) && LARGEST.contains(&absmax);
        if open {
            // SAFETY: the processor has what it needs, or `new` had given no tables.
            unsafe { self.quantise_steps::<SHIFT>(book, x, absmax, codes) };
        }
        open
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn quantise_steps<const SHIFT: u32>(&self, book: &Codebook, x: &[f32], absmax: f32, codes: &mut [u8]) {
        // Two rounds of packing leave four neighbours of each register in each quarter.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let byte = _mm512_set1_epi32(0xff);
        let reciprocal = _mm512_set1_ps(1.0 / absmax);
        for (x, codes) in x.as_chunks::<STEP>().0.iter().zip(codes.as_chunks_mut::<STEP>().0) {
            let (parts, _) = x.as_chunks::<16>();
            let (a, close_a) = self.estimate(floats(&parts[0]), reciprocal);
            let (b, close_b) = self.estimate(floats(&parts[1]), reciprocal);
            let (c, close_c) = self.estimate(floats(&parts[2]), reciprocal);
            let (d, close_d) = self.estimate(floats(&parts[3]), reciprocal);
            let ab = _mm512_packus_epi32(_mm512_and_si512(a, byte), _mm512_and_si512(b, byte));
            let cd = _mm512_packus_epi32(_mm512_and_si512(c, byte), _mm512_and_si512(d, byte));
            let packed = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(ab, cd));
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(codes.as_mut_ptr().cast(), packed) };
            let (low, high) = (
                u64::from(close_a) | u64::from(close_b) << 16,
                u64::from(close_c) | u64::from(close_d) << 16,
            );
            let mut close = low | high << 32;
            while close != 0 {
                let at = close.trailing_zeros() as usize % STEP;
                codes[at] = book.quantise::<SHIFT>(x[at] / absmax);
                close &= close - 1;
            }
        }
    }

    /// The codes in the low bytes, and which of them are too close to the middle between two.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn estimate(&self, x: __m512, reciprocal: __m512) -> (__m512i, __mmask16) {
        let ([segment, segment_rest], [border, border_rest]) = (halves(&self.segment), halves(&self.border));
        let (segment, segment_rest) = (integers(segment), integers(segment_rest));
        let (border, border_rest) = (floats(border), floats(border_rest));
        let shift = _mm512_set1_ps(SHIFT);
        let lowest = _mm512_set1_ps(f32::from_bits(super::LOWEST));
        let magnitude = _mm512_max_ps(_mm512_abs_ps(_mm512_mul_ps(x, reciprocal)), lowest);
        let exponent = _mm512_srli_epi32::<23>(_mm512_castps_si512(magnitude)); // the low five bits count
        let border = _mm512_permutex2var_ps(border, exponent, border_rest);
        let beyond = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(magnitude, border);
        let segment = _mm512_permutex2var_epi32(segment, exponent, segment_rest);
        let segment = _mm512_mask_add_epi32(segment, beyond, segment, _mm512_set1_epi32(1));
        let slope = _mm512_permutexvar_ps(segment, floats(&self.slope));
        let offset = _mm512_permutexvar_ps(segment, floats(&self.offset));
        let place = _mm512_fmadd_ps(magnitude, slope, offset);
        let shifted = _mm512_add_ps(place, shift);
        let off = _mm512_abs_ps(_mm512_sub_ps(place, _mm512_sub_ps(shifted, shift)));
        let close = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(off, _mm512_set1_ps(0.5 - MARGIN));
        let last = _mm512_permutexvar_epi32(segment, integers(&self.last));
        let place = _mm512_min_epi32(_mm512_castps_si512(shifted), last);
        if !self.signed {
            return (place, close);
        }
        let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_setzero_ps());
        let zero = _mm512_set1_epi32(127);
        let (first, last) = (_mm512_set1_epi32(SHIFT_BITS + 1), _mm512_set1_epi32(SHIFT_BITS + 127));
        // Nothing negative is zero, and there is no -1.
        let below = _mm512_sub_epi32(zero, _mm512_min_epi32(_mm512_max_epi32(place, first), last));
        (_mm512_mask_mov_epi32(_mm512_add_epi32(zero, place), negative, below), close)
    }
}

/// The byte of each code; `masks` of those that are in the second, the third and the last quarter of the plane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up(plane: &[[u8; 64]; 4], codes: __m512i, masks: [__mmask64; 3]) -> __m512i {
    let mut found = _mm512_permutexvar_epi8(codes, bytes(&plane[0]));
    for (quarter, mask) in plane[1..].iter().zip(masks) {
        found = _mm512_mask_permutexvar_epi8(found, mask, codes, bytes(quarter));
    }
    found
}

fn halves<T>(x: &[T; 32]) -> [&[T; 16]; 2] {
    let (halves, _) = x.as_chunks();
    [&halves[0], &halves[1]]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn bytes(x: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

/// 16 floats in a register.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn floats(x: &[f32; 16]) -> __m512 {
    // SAFETY: 16 floats.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn integers(x: &[i32; 16]) -> __m512i {
    // SAFETY: 16 integers of 32 bits.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[cfg(test)]
mod tests {
    use super::super::{SIGNED, SIGNED_SHIFT, UNSIGNED, UNSIGNED_SHIFT};
    use super::*;

    fn check<const SHIFT: u32>(book: &Codebook, tables: &Tables, x: &[f32], absmax: f32) {
        let mut codes = vec![99; x.len()];
        assert!(tables.quantise::<SHIFT>(book, x, absmax, &mut codes));
        for (&x, code) in x.iter().zip(codes) {
            assert_eq!(code, book.quantise::<SHIFT>(x / absmax), "{x:e} of {absmax:e}");
        }
    }

    /// Around every value and every middle, 64 floats to either side; a sweep over all magnitudes; zeros and the smallest
    /// denormals; each scaled by several largest magnitudes.
    #[test]
    fn codes_are_those_of_the_search() {
        for book in [&*SIGNED, &*UNSIGNED] {
            let Some(tables) = &book.tables else { return };
            let signed = book.values[0] < 0.0;
            let edges: Vec<f32> = book
                .values
                .windows(2)
                .flat_map(|pair| [pair[0], pair[0].midpoint(pair[1]), pair[1]])
                .map(f32::abs)
                .flat_map(|x| (0..128).map(move |i| f32::from_bits((x.to_bits() + 64).saturating_sub(i))))
                .chain((0..0x3f80_0000).step_by(997).map(f32::from_bits))
                .chain((0..64).map(f32::from_bits))
                .filter(|&x| x <= 1.0)
                .collect();
            for absmax in [0.5, 0.3, 1e-3, 7.7e-11, 1.3e-30] {
                let mut x: Vec<f32> = edges.iter().map(|x| (x * absmax).min(absmax)).collect();
                if signed {
                    x.extend(x.clone().into_iter().map(|x| -x));
                }
                x.truncate(x.len() / STEP * STEP);
                if signed {
                    check::<SIGNED_SHIFT>(book, tables, &x, absmax);
                } else {
                    check::<UNSIGNED_SHIFT>(book, tables, &x, absmax);
                }
            }
        }
    }

    #[test]
    fn values_are_those_of_the_book() {
        for book in [&*SIGNED, &*UNSIGNED] {
            let Some(tables) = &book.tables else { return };
            let codes: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
            let mut x = vec![f32::NAN; codes.len()];
            assert!(tables.dequantise(&codes, 0.37, &mut x));
            for (&code, x) in codes.iter().zip(x) {
                assert_eq!(x.to_bits(), (book.values[usize::from(code)] * 0.37).to_bits(), "{code}");
            }
        }
    }
}
