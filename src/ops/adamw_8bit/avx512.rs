//! Whole blocks on AVX-512. The same operations in the same order as the plain loops, so the same bits.
//!
//! Roots and quotients take about 24 cycles for 16 elements on the processor's one divider. The moments are decoded
//! and updated in registers meanwhile, and the block before is quantised, which needs no divider at all.

use super::super::adamw::AdamWScalars;
use super::super::codebook::avx512::{Quantiser, STEP, Tables, floats};
use super::super::codebook::{SIGNED_SHIFT, UNSIGNED_SHIFT};
use super::super::math::{self, prefetch};
use super::{BLOCK, Step, Task};
use crate::dtype::Element;
use std::arch::x86_64::*;

/// Blocks between the one that is updated and the one that memory is asked for: far enough for memory to answer, and all
/// of it stays in L1.
const AHEAD: usize = 2;

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

/// The new moments of a block.
#[repr(align(64))]
struct Moments {
    m: [f32; BLOCK],
    v: [f32; BLOCK],
}

impl Moments {
    const ZERO: Self = Self { m: [0.0; BLOCK], v: [0.0; BLOCK] };
}

/// The whole blocks of a task; all slices are of one length.
struct Blocks<'a> {
    p: &'a mut [[f32; BLOCK]],
    g: &'a [[f32; BLOCK]],
    m_codes: &'a mut [[u8; BLOCK]],
    m_absmax: &'a mut [f32],
    v_codes: &'a mut [[u8; BLOCK]],
    v_absmax: &'a mut [f32],
}

/// Updates the whole blocks of a task if the books are at hand in registers; how many it has updated.
#[inline(always)]
pub fn whole_blocks<A: Element>(step: &Step, task: &mut Task<'_, A>) -> usize {
    let (Some(signed), Some(unsigned)) = (&step.signed.tables, &step.unsigned.tables) else { return 0 };
    let state = &mut task.state;
    let mut blocks = Blocks {
        p: task.weight.master.as_chunks_mut().0,
        g: task.g.as_chunks().0,
        m_codes: state.m_codes.as_chunks_mut().0,
        m_absmax: state.m_absmax,
        v_codes: state.v_codes.as_chunks_mut().0,
        v_absmax: state.v_absmax,
    };
    // SAFETY: there are tables only where the processor has what they need.
    unsafe { blocks.update(step, [signed, unsigned], task.weight.working) };
    blocks.g.len()
}

impl Blocks<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
    fn update<A: Element>(&mut self, step: &Step, tables: [&Tables; 2], working: &mut [A]) {
        let wide = Wide::new(&step.s, step.scale);
        let [mut a, mut b] = [Moments::ZERO; 2];
        let (mut new, mut old) = (&mut a, &mut b);
        let n = self.g.len();
        for i in 0..=n {
            let before = self.quantisers(step, tables, i);
            if i > 0 && before.is_none() {
                self.quantise(step, i - 1, old);
            }
            let mut largest = [_mm512_setzero_si512(); 2];
            for part in 0..BLOCK / STEP {
                if i < n {
                    self.prefetch(working, (i + AHEAD) * BLOCK + part * STEP);
                    self.update_part(&wide, tables, (i, part), new, &mut largest);
                }
                if let Some((m, v)) = &before {
                    let (m_codes, v_codes) = (&mut self.m_codes[i - 1], &mut self.v_codes[i - 1]);
                    m.quantise(parts(&old.m, part), &mut m_codes.as_chunks_mut().0[part]);
                    v.quantise(parts(&old.v, part), &mut v_codes.as_chunks_mut().0[part]);
                }
            }
            if i < n {
                self.m_absmax[i] = f32::from_bits(_mm512_reduce_max_epu32(largest[0]));
                self.v_absmax[i] = f32::from_bits(_mm512_reduce_max_epu32(largest[1]));
                if let Some(working) = working.as_chunks_mut::<BLOCK>().0.get_mut(i) {
                    math::round(&self.p[i], working);
                }
            }
            std::mem::swap(&mut new, &mut old);
        }
    }

    /// Those of the block before `i`, if it can be quantised in registers.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn quantisers<'a>(
        &self,
        step: &'a Step,
        [signed, unsigned]: [&'a Tables; 2],
        i: usize,
    ) -> Option<(Quantiser<'a, SIGNED_SHIFT>, Quantiser<'a, UNSIGNED_SHIFT>)> {
        let before = i.checked_sub(1)?;
        let m = Quantiser::new(step.signed, signed, self.m_absmax[before])?;
        Some((m, Quantiser::new(step.unsigned, unsigned, self.v_absmax[before])?))
    }

    /// Quantises block `i` by the plain loops.
    #[cold]
    #[inline(never)]
    fn quantise(&mut self, step: &Step, i: usize, moments: &Moments) {
        let (m_codes, v_codes) = (&mut self.m_codes[i], &mut self.v_codes[i]);
        step.signed.quantise_block::<SIGNED_SHIFT>(&moments.m, self.m_absmax[i], m_codes);
        step.unsigned.quantise_block::<UNSIGNED_SHIFT>(&moments.v, self.v_absmax[i], v_codes);
    }

    /// Asks for the memory of a part that will be updated later, wherever there is one.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn prefetch<A>(&self, working: &[A], first: usize) {
        ask(self.p.as_ptr().cast::<f32>(), first);
        ask(self.g.as_ptr().cast::<f32>(), first);
        ask(self.m_codes.as_ptr().cast::<u8>(), first);
        ask(self.v_codes.as_ptr().cast::<u8>(), first);
        if !working.is_empty() {
            ask(working.as_ptr(), first);
        }
    }

    /// Weights and moments of a part of block `i`, and its largest magnitudes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn update_part(
        &mut self,
        wide: &Wide,
        [signed, unsigned]: [&Tables; 2],
        (i, part): (usize, usize),
        new: &mut Moments,
        largest: &mut [__m512i; 2],
    ) {
        let m_old = signed.decode(&self.m_codes[i].as_chunks().0[part], self.m_absmax[i]);
        let v_old = unsigned.decode(&self.v_codes[i].as_chunks().0[part], self.v_absmax[i]);
        for row in 0..STEP / 16 {
            let at = part * (STEP / 16) + row;
            let p = &mut self.p[i].as_chunks_mut().0[at];
            let g = floats(&self.g[i].as_chunks().0[at]);
            let [p_new, m_new, v_new] = wide.elements(floats(p), g, m_old[row], v_old[row]);
            store(p, p_new);
            store(&mut new.m.as_chunks_mut().0[at], m_new);
            store(&mut new.v.as_chunks_mut().0[at], v_new);
            largest[0] = _mm512_max_epu32(largest[0], _mm512_castps_si512(_mm512_abs_ps(m_new)));
            largest[1] = _mm512_max_epu32(largest[1], _mm512_castps_si512(_mm512_abs_ps(v_new)));
        }
    }
}

/// Part of a block's moments.
#[inline(always)]
fn parts(x: &[f32; BLOCK], part: usize) -> &[f32; STEP] {
    &x.as_chunks().0[part]
}

/// Asks for `STEP` elements from `first` on.
#[inline(always)]
fn ask<T>(start: *const T, first: usize) {
    let start = start.wrapping_add(first).cast::<[u8; 64]>();
    for line in 0..STEP * size_of::<T>() / 64 {
        prefetch(start.wrapping_add(line));
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(to: &mut [f32; 16], x: __m512) {
    // SAFETY: 16 floats.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) };
}
