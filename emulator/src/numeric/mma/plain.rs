//! The arithmetic in f32 and i32 on arrays that the compiler vectorises, for tiles without special or extreme
//! values.
//!
//! A product of two elements is exact in f32. Scaled by a power of two, so that the last kept bit is a unit, it is cut
//! by the conversion to an integer. A product or a scaled product that underflows is far below the unit.

use super::tile::{Output, Tile};
use super::{Element, FRACTION_BITS, Float, M, N};
use crate::numeric::convert::{f16_to_f32, f32_to_f16};
use crate::numeric::simd::Simd;

/// Exponent of a zero: below all others, in sums too.
const ZERO: i32 = -8192;
/// A maximum below this comes from zeros only.
const ONLY_ZEROS: i32 = -4000;
/// The largest exponents of a step for which the powers of two and the products are normal.
const LOWEST: i32 = -100;
const HIGHEST: i32 = 126;

/// Values of an element type and their exponents.
struct Operands<const ROWS: usize, const COLUMNS: usize> {
    value: [[f32; COLUMNS]; ROWS],
    exponent: [[i32; COLUMNS]; ROWS],
    finite: bool,
}

impl<const ROWS: usize, const COLUMNS: usize> Operands<ROWS, COLUMNS> {
    #[inline(always)]
    fn new(bits: &[[u32; COLUMNS]; ROWS], widen: impl Fn(u32) -> u32, lowest: i32) -> Self {
        let mut this =
            Operands { value: [[0.0; COLUMNS]; ROWS], exponent: [[0; COLUMNS]; ROWS], finite: true };
        let mut largest = 0;
        for (row, bits) in bits.iter().enumerate() {
            for (column, &bits) in bits.iter().enumerate() {
                let magnitude = widen(bits) & 0x7fff_ffff;
                this.value[row][column] = f32::from_bits(widen(bits));
                let exponent = ((magnitude >> 23) as i32).wrapping_sub(127).max(lowest);
                this.exponent[row][column] = if magnitude == 0 { ZERO } else { exponent };
                largest = largest.max(magnitude);
            }
        }
        this.finite = largest < 0x7f80_0000;
        this
    }
}

/// All outputs; `None` if a value needs the reference.
pub fn run(mma: &Float, level: Simd, tile: &Tile) -> Option<Output> {
    #[cfg(target_arch = "x86_64")]
    if level >= Simd::Avx2 {
        // SAFETY: Float::run has limited the level to what Simd::detect saw.
        return unsafe { run_avx2(mma, tile) };
    }
    let _ = level;
    run_inline(mma, tile)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2(mma: &Float, tile: &Tile) -> Option<Output> {
    run_inline(mma, tile)
}

#[inline(always)]
fn run_inline(mma: &Float, tile: &Tile) -> Option<Output> {
    let half = |x: u32| f16_to_f32(x as u16);
    let (a, b) = match mma.element {
        Element::F16 => (Operands::new(&tile.a, half, -14), Operands::new(&tile.b, half, -14)),
        Element::Bf16 => {
            (Operands::new(&tile.a, |x| x << 16, -126), Operands::new(&tile.b, |x| x << 16, -126))
        }
        Element::Tf32 => {
            let cut = |x: u32| x >> 13 << 13;
            (Operands::new(&tile.a, cut, -126), Operands::new(&tile.b, cut, -126))
        }
    };
    if !(a.finite && b.finite) {
        return None;
    }
    let mut c = tile.c;
    for step in 0..mma.steps {
        for (n, c) in c.iter_mut().enumerate() {
            let accumulator = if mma.half { c.map(half) } else { *c };
            let sum = Step { a: &a, b: &b, n, first: step * mma.step_k() };
            let lowest = if mma.half { -14 } else { -126 };
            *c = match (mma.element, mma.half) {
                (Element::Tf32, _) => sum.run::<4, false>(&accumulator, lowest)?,
                (_, false) => sum.run::<8, false>(&accumulator, lowest)?,
                (_, true) => sum.run::<8, true>(&accumulator, lowest)?,
            };
        }
    }
    Some(Output(c))
}

/// A column of the outputs of a step.
struct Step<'a> {
    a: &'a Operands<16, M>,
    b: &'a Operands<N, 16>,
    n: usize,
    /// First element of k.
    first: usize,
}

impl Step<'_> {
    #[inline(always)]
    fn run<const K: usize, const HALF: bool>(&self, c: &[u32; M], lowest: i32) -> Option<[u32; M]> {
        let c = Operands::new(&[*c], |x| x, lowest);
        let mut largest = c.exponent[0];
        for k in self.first..self.first + K {
            for row in 0..M {
                largest[row] =
                    largest[row].max(self.a.exponent[k][row].wrapping_add(self.b.exponent[self.n][k]));
            }
        }
        let in_range = |e: i32| (LOWEST..=HIGHEST).contains(&e) | (e < ONLY_ZEROS);
        if !largest.iter().fold(c.finite, |all, &e| all & in_range(e)) {
            return None;
        }
        let up = largest.map(|e| power_of_two(FRACTION_BITS.wrapping_sub(e.max(LOWEST))));
        let mut sum = [0; M];
        for row in 0..M {
            sum[row] = cut(c.value[0][row] * up[row]);
        }
        for k in self.first..self.first + K {
            for row in 0..M {
                let product = self.a.value[k][row] * self.b.value[self.n][k];
                sum[row] = sum[row].wrapping_add(cut(product * up[row]));
            }
        }
        let mut d = [0; M];
        for row in 0..M {
            let down = power_of_two(largest[row].max(LOWEST).wrapping_sub(FRACTION_BITS));
            let value = f32::from_bits(toward_zero::<HALF>(sum[row])) * down;
            d[row] = if HALF { u32::from(f32_to_f16(value.to_bits())) } else { value.to_bits() };
        }
        Some(d)
    }
}

#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits((127i32.wrapping_add(exponent) as u32) << 23)
}

/// Toward zero.
#[inline(always)]
fn cut(x: f32) -> i32 {
    // SAFETY: the term is finite and below 4 * 2^exponent, its exponent at most the step's largest, and x is the
    // term times 2^(24 - largest): below 2^26. Step::run and run_inline have checked that all of it is in range.
    unsafe { x.to_int_unchecked() }
}

/// An integer's f32 toward zero; with `ODD` an inexact one has its lowest bit set.
#[inline(always)]
fn toward_zero<const ODD: bool>(sum: i32) -> u32 {
    let nearest = sum as f32;
    // SAFETY: |sum| is at most 9 * 2^26, far below 2^31, and so is its nearest f32.
    let back: i32 = unsafe { nearest.to_int_unchecked() };
    let cut = nearest.to_bits().wrapping_sub(u32::from(back.wrapping_abs() > sum.wrapping_abs()));
    if ODD { cut | u32::from(back != sum) } else { cut }
}
