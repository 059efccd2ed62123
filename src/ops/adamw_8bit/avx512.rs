//! The update of a whole block on AVX-512, while its moments are in registers: decoding fills the time that roots and
//! quotients take. The same operations in the same order as the plain loops, so the same bits.

use super::super::adamw::AdamWScalars;
use super::super::codebook::avx512::{STEP, Tables, floats};
use super::BLOCK;
use std::arch::x86_64::*;

/// A block of full length.
pub struct Block<'a> {
    p: &'a mut [f32; BLOCK],
    g: &'a [f32; BLOCK],
    m: &'a mut [f32; BLOCK],
    v: &'a mut [f32; BLOCK],
    m_codes: &'a [u8; BLOCK],
    v_codes: &'a [u8; BLOCK],
}

/// The constants of a step, one in each register.
struct Wide {
    scale: __m512,
    beta1: __m512,
    beta2: __m512,
    one_minus_beta1: __m512,
    one_minus_beta2: __m512,
    step_size: __m512,
    eps: __m512,
    decay: __m512,
}

impl Wide {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(s: &AdamWScalars, scale: f32) -> Self {
        Self {
            scale: _mm512_set1_ps(scale),
            beta1: _mm512_set1_ps(s.beta1),
            beta2: _mm512_set1_ps(s.beta2),
            one_minus_beta1: _mm512_set1_ps(s.one_minus_beta1),
            one_minus_beta2: _mm512_set1_ps(s.one_minus_beta2),
            step_size: _mm512_set1_ps(s.step_size),
            eps: _mm512_set1_ps(s.eps),
            decay: _mm512_set1_ps(s.decay),
        }
    }

    /// [`super::elements`] of sixteen: the new weight and moments.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn elements(&self, p: __m512, g: __m512, m: __m512, v: __m512) -> [__m512; 3] {
        let g = _mm512_mul_ps(g, self.scale);
        let m = _mm512_add_ps(_mm512_mul_ps(self.beta1, m), _mm512_mul_ps(self.one_minus_beta1, g));
        let square = _mm512_mul_ps(_mm512_mul_ps(self.one_minus_beta2, g), g);
        let v = _mm512_add_ps(_mm512_mul_ps(self.beta2, v), square);
        let quotient = _mm512_div_ps(m, _mm512_add_ps(_mm512_sqrt_ps(v), self.eps));
        let p = _mm512_add_ps(p, _mm512_mul_ps(self.step_size, quotient));
        [_mm512_mul_ps(p, self.decay), m, v]
    }
}

impl<'a> Block<'a> {
    /// `None` of a shorter block.
    #[inline(always)]
    pub fn new(
        p: &'a mut [f32],
        g: &'a [f32],
        [m, v]: [&'a mut [f32]; 2],
        [m_codes, v_codes]: [&'a [u8]; 2],
    ) -> Option<Self> {
        Some(Self {
            p: p.try_into().ok()?,
            g: g.try_into().ok()?,
            m: m.try_into().ok()?,
            v: v.try_into().ok()?,
            m_codes: m_codes.try_into().ok()?,
            v_codes: v_codes.try_into().ok()?,
        })
    }

    /// Updates weights and moments; the largest magnitudes of the new moments.
    #[inline(always)]
    pub fn update(
        &mut self,
        s: &AdamWScalars,
        scale: f32,
        books: [&Tables; 2],
        absmax: [f32; 2],
    ) -> (f32, f32) {
        // SAFETY: there are tables only where the processor has what they need.
        unsafe { self.steps(s, scale, books, absmax) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn steps(&mut self, s: &AdamWScalars, scale: f32, books: [&Tables; 2], absmax: [f32; 2]) -> (f32, f32) {
        let wide = Wide::new(s, scale);
        let (mut m_largest, mut v_largest) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        let (p, g) = (self.p.as_chunks_mut::<16>().0, self.g.as_chunks::<16>().0);
        let (m, v) = (self.m.as_chunks_mut::<16>().0, self.v.as_chunks_mut::<16>().0);
        let (m_codes, v_codes) = (self.m_codes.as_chunks::<STEP>().0, self.v_codes.as_chunks::<STEP>().0);
        for step in 0..BLOCK / STEP {
            let m_old = books[0].decode(&m_codes[step], absmax[0]);
            let v_old = books[1].decode(&v_codes[step], absmax[1]);
            for part in 0..STEP / 16 {
                let i = step * (STEP / 16) + part;
                let [new, m_new, v_new] =
                    wide.elements(floats(&p[i]), floats(&g[i]), m_old[part], v_old[part]);
                store(&mut p[i], new);
                store(&mut m[i], m_new);
                store(&mut v[i], v_new);
                m_largest = _mm512_max_epu32(m_largest, _mm512_castps_si512(_mm512_abs_ps(m_new)));
                v_largest = _mm512_max_epu32(v_largest, _mm512_castps_si512(_mm512_abs_ps(v_new)));
            }
        }
        (
            f32::from_bits(_mm512_reduce_max_epu32(m_largest)),
            f32::from_bits(_mm512_reduce_max_epu32(v_largest)),
        )
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(to: &mut [f32; 16], x: __m512) {
    // SAFETY: 16 floats.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) };
}
