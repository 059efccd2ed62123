//! Blocks of codes on AVX-512: look-ups among bytes in registers, and an estimate in place of the search.
//!
//! The codes are those of [`Codebook::quantise`] in every bit. A book is nearly linear within a decade, so a line through
//! it tells the code but where it comes out close to the middle between two; there the exact search decides.

use super::{Codebook, SIGNED_SHIFT};
use std::arch::x86_64::*;

/// Values that are handled together.
pub const STEP: usize = 64;

/// Blocks with another largest magnitude take the plain way: its reciprocal is a normal number, and does not make the
/// smallest denormal a zero.
const LARGEST: std::ops::RangeInclusive<f32> = f32::MIN_POSITIVE..=0.5;

/// How near the middle between two codes an estimate may come. Its error is below 2^-13: 2^-23 of what is added, below
/// 2^8, from the reciprocal and the product; and the books are off their lines by twice as much.
const MARGIN: f32 = 1.0 / 4096.0;

/// Segments of a book: below the first value, seven decades, and beyond the last but one.
const SEGMENTS: usize = 9;

/// A book in the form that registers want.
#[repr(align(64))]
pub struct Tables {
    /// Byte `p` of value `64·q + i` at `[p][q][i]`.
    planes: [[[u8; 64]; 4]; 4],
    /// By the low bits of a magnitude's exponent: added to its bits, it puts the segment where the exponent was. Within an
    /// exponent there is one border at most; beyond it the sum of the fractions carries into the next segment.
    segment: [i32; 32],
    /// A magnitude's place among the codes is `slope·x + offset`, rounded, and `last` at most.
    slope: [f32; 16],
    offset: [f32; 16],
    last: [i32; 16],
}

impl Tables {
    /// Those of a book, where the processor has the instructions.
    pub fn new(values: &[f32; 256]) -> Option<Self> {
        let available = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
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
            slope: [0.0; 16],
            offset: [0.0; 16],
            last: [i32::MAX; 16],
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
                table.last[at] = last as i32;
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
            let (low, biased) = (2f64.powi(exponent), exponent + 127);
            let first = borders.iter().filter(|b| **b <= low).count() as i32;
            let within = borders.iter().find(|b| low < **b && **b < 2.0 * low && exponent < 0);
            let rest = within.map_or(0, |b| (1 << 23) - ((*b as f32).to_bits() & 0x7f_ffff));
            table.segment[biased as usize % 32] = ((first - biased) << 23) + rest as i32;
        }
        table
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
}

/// A book and the largest magnitude of a block.
pub struct Quantiser<'a, const SHIFT: u32> {
    book: &'a Codebook,
    tables: &'a Tables,
    absmax: f32,
    reciprocal: f32,
}

impl<'a, const SHIFT: u32> Quantiser<'a, SHIFT> {
    /// `None` where this way is not open to the block.
    #[inline(always)]
    pub fn new(book: &'a Codebook, tables: &'a Tables, absmax: f32) -> Option<Self> {
        if !LARGEST.contains(&absmax) {
            return None;
        }
        Some(Self { book, tables, absmax, reciprocal: 1.0 / absmax })
    }

    /// [`Codebook::quantise`] of every `x / absmax`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
    pub fn quantise(&self, x: &[f32; STEP], codes: &mut [u8; STEP]) {
        let (rows, _) = x.as_chunks();
        let (a, b) = (self.estimate(floats(&rows[0])), self.estimate(floats(&rows[1])));
        let (c, d) = (self.estimate(floats(&rows[2])), self.estimate(floats(&rows[3])));
        self.finish([a, b, c, d], x, codes);
    }

    /// Packs the codes of a step, and searches for those whose estimates were no use.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
    pub fn finish(
        &self,
        [a, b, c, d]: [(__m512i, __m512); STEP / 16],
        x: &[f32; STEP],
        codes: &mut [u8; STEP],
    ) {
        // Two rounds of packing leave four neighbours of each register in each quarter.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let (ab, cd) = (_mm512_packus_epi32(a.0, b.0), _mm512_packus_epi32(c.0, d.0));
        let packed = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(ab, cd));
        // SAFETY: 64 bytes.
        unsafe { _mm512_storeu_si512(codes.as_mut_ptr().cast(), packed) };
        if is_close(furthest(furthest(a.1, b.1), furthest(c.1, d.1))) != 0 {
            self.search([a.1, b.1, c.1, d.1], x, codes);
        }
    }

    /// The codes of those that came too close to a middle.
    #[cold]
    #[target_feature(enable = "avx512f,avx512dq")]
    fn search(&self, off: [__m512; 4], x: &[f32; STEP], codes: &mut [u8; STEP]) {
        for (part, off) in off.into_iter().enumerate() {
            let mut close = is_close(off);
            while close != 0 {
                let at = (part * 16 + close.trailing_zeros() as usize) % STEP;
                codes[at] = self.book.quantise::<SHIFT>(x[at] / self.absmax);
                close &= close - 1;
            }
        }
    }

    /// The codes, and how far from an integer each estimate was.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
    pub fn estimate(&self, x: __m512) -> (__m512i, __m512) {
        let tables = self.tables;
        let [segment, segment_rest] = halves(&tables.segment);
        let lowest = _mm512_set1_ps(f32::from_bits(super::LOWEST));
        let magnitude = furthest(_mm512_mul_ps(x, _mm512_set1_ps(self.reciprocal)), lowest);
        let bits = _mm512_castps_si512(magnitude);
        let exponent = _mm512_srli_epi32::<23>(bits); // the low five bits count
        let segment = _mm512_permutex2var_epi32(integers(segment), exponent, integers(segment_rest));
        let segment = _mm512_srli_epi32::<23>(_mm512_add_epi32(bits, segment)); // the low four bits count
        let slope = _mm512_permutexvar_ps(segment, floats(&tables.slope));
        let offset = _mm512_permutexvar_ps(segment, floats(&tables.offset));
        let place = _mm512_fmadd_ps(magnitude, slope, offset);
        let off = _mm512_reduce_ps::<0>(place);
        let last = _mm512_permutexvar_epi32(segment, integers(&tables.last));
        let place = _mm512_min_epi32(_mm512_cvtps_epi32(place), last);
        if SHIFT != SIGNED_SHIFT {
            return (place, off);
        }
        let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_setzero_ps());
        let zero = _mm512_set1_epi32(127);
        // Nothing negative is zero; and there is no -1: packing will make 0 of -1.
        let place = _mm512_mask_max_epi32(place, negative, place, _mm512_set1_epi32(1));
        (_mm512_mask_sub_epi32(_mm512_add_epi32(zero, place), negative, zero, place), off)
    }
}

/// The greater magnitude of each two.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn furthest(a: __m512, b: __m512) -> __m512 {
    _mm512_range_ps::<0b1011>(a, b)
}

/// Which estimates came too close to the middle between two codes.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn is_close(off: __m512) -> __mmask16 {
    _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_abs_ps(off), _mm512_set1_ps(0.5 - MARGIN))
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

#[inline(always)]
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
        let quantiser = Quantiser::<SHIFT>::new(book, tables, absmax).expect("a magnitude within the range");
        for (x, codes) in x.as_chunks().0.iter().zip(codes.as_chunks_mut().0) {
            // SAFETY: there are tables only where the processor has what they need.
            unsafe { quantiser.quantise(x, codes) };
        }
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
            for absmax in [0.5, 0.3, 1e-3, 7.7e-11, 1.3e-30, f32::MIN_POSITIVE] {
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
            for codes in codes.as_chunks::<STEP>().0 {
                let mut x = [[f32::NAN; 16]; STEP / 16];
                // SAFETY: there are tables only where the processor has what they need.
                let values = unsafe { tables.decode(codes, 0.37) };
                for (x, values) in x.iter_mut().zip(values) {
                    // SAFETY: 16 floats.
                    unsafe { _mm512_storeu_ps(x.as_mut_ptr(), values) };
                }
                for (&code, x) in codes.iter().zip(x.as_flattened()) {
                    assert_eq!(x.to_bits(), (book.values[usize::from(code)] * 0.37).to_bits(), "{code}");
                }
            }
        }
    }
}
