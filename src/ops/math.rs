//! Scalar functions that vectorise, reductions of a fixed order, and the switch to the processor's vector units.
//!
//! A loop inside [`simd`] is compiled for AVX-512, AVX2 and the baseline, and the best one runs. None of the
//! three contracts a product and a sum, and sums go through [`LANES`] accumulators whatever the vector width, so
//! all give the same bits.

use super::tile::Level;
use crate::dtype::{Element, Q8_0};

/// Independent accumulators of a reduction; they are added in pairs at the end.
pub const LANES: usize = 16;

/// Runs `f` compiled for the widest vector unit this processor has. `f` and what it calls must inline: a closure needs
/// `#[inline(always)]`, without which a long one is compiled for the baseline alone.
#[inline(always)]
pub fn simd<R>(f: impl FnMut() -> R) -> R {
    arch().dispatch(Inlined(f))
}

/// The vector unit, within what [`Level::limit`] allowed.
#[inline(always)]
pub fn arch() -> pulp::Arch {
    #[cfg(target_arch = "x86_64")]
    match Level::best() {
        Level::Amx | Level::Avx512Bf16 | Level::Avx512 => {}
        Level::Avx2 => return pulp::x86::V3::try_new().map_or(pulp::Arch::Scalar, pulp::Arch::V3),
        Level::Portable => return pulp::Arch::Scalar,
    }
    pulp::Arch::new()
}

/// Calls a closure by reference: the call by value that `FnOnce` makes of one goes through a function of its own, which
/// need not inline whatever the closure says.
struct Inlined<F>(F);

impl<R, F: FnMut() -> R> pulp::NullaryFnOnce for Inlined<F> {
    type Output = R;

    #[inline(always)]
    fn call(mut self) -> R {
        (self.0)()
    }
}

/// `e^x` without a branch: `2^n · p(r)`, n = round(x/ln 2), |r| ≤ ln(2)/2, p of degree 6, whose upper
/// coefficients are the Chebyshev fit of (e^r − 1 − r)/r² on that interval (error 0.2 units of 2⁻²⁴). Relative error
/// below 2·2⁻²³ for x in [-87, 88]; 0 below, `e^88` above.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5·2²³: adding it rounds to an integer in the low bits
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let tail = (((1.393_373_4e-3 * r + 8.363_236e-3) * r + 4.166_646_3e-2) * r + 1.666_657_6e-1) * r + 0.5;
    let p = (tail * r) * r + r + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    let y = p * scale;
    if x < -87.0 { 0.0 } else { y }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x` as a store to A and a load from it would leave it.
#[inline(always)]
pub fn rounded<E: Element>(x: f32) -> f32 {
    E::from_f32(x).to_f32()
}

/// Rounds each element.
#[inline(always)]
pub fn round<E: Element>(from: &[f32], to: &mut [E]) {
    for i in 0..from.len().min(to.len()) {
        to[i] = E::from_f32(from[i]);
    }
}

/// Asks for the line of memory at an address, whatever is there, into every cache.
#[inline(always)]
pub fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program sees, and faults at no address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// As [`prefetch`], into the second level of caches and those behind it.
#[inline(always)]
pub fn prefetch_to_l2<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// As [`prefetch`], of a line that will be written: other cores give theirs up too. Where a processor knows no such thing,
/// the instruction does nothing.
#[inline(always)]
pub fn prefetch_to_write<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// `Σ f(i)` over `0..n`: lane `i mod 16` adds its terms in ascending order, then the lanes are halved together.
#[inline(always)]
pub fn sum(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = n - n % LANES;
    let mut i = 0;
    while i < whole {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + l);
        }
        i += LANES;
    }
    for (l, lane) in lanes[..n - whole].iter_mut().enumerate() {
        *lane += f(whole + l);
    }
    halve(lanes)
}

/// `Σ a[i]·b[i]` in the order of [`sum`]. Slices of one length, without an index into each that is checked.
#[inline(always)]
pub fn sum_products(a: &[f32], b: &[f32]) -> f32 {
    let [mut low, mut high] = [[0.0f32; OCTET]; 2];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let (n, mut i) = (a.len().min(b.len()), 0);
    while i < n {
        let (a, b) = (a[i].as_chunks().0, b[i].as_chunks().0);
        add_products(&mut low, &a[0], &b[0]);
        add_products(&mut high, &a[1], &b[1]);
        i += 1;
    }
    let mut lanes = [0.0f32; LANES];
    for l in 0..OCTET {
        (lanes[l], lanes[OCTET + l]) = (low[l], high[l]);
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += a * b;
    }
    halve(lanes)
}

/// `Σ w[i]·x[i]`: 32 lanes, of which the upper half is then added to the lower, and those as in [`sum`]. One vector of
/// lanes would wait for itself. `next` gets the address of each 32 elements before they are read.
///
/// Lanes are in arrays of the width of AVX2, each added to by a loop of its own: of longer arrays, and under adapters of
/// iterators, the compiler was seen to make scalars; of two of these it makes one vector of AVX-512.
#[inline(always)]
pub fn dot<E: Element>(w: &[E], x: &[f32], next: impl Fn(*const E)) -> f32 {
    let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<{ 2 * LANES }>(), x.as_chunks::<{ 2 * LANES }>());
    let [mut a, mut b, mut c, mut d] = [[0.0f32; OCTET]; 4];
    let n = w.len().min(x.len());
    let (w, x, mut i) = (&w[..n], &x[..n], 0);
    while i < n {
        next(w[i].as_ptr());
        let (w, x) = (w[i].as_chunks().0, x[i].as_chunks().0);
        add_products(&mut a, &w[0], &x[0]);
        add_products(&mut b, &w[1], &x[1]);
        add_products(&mut c, &w[2], &x[2]);
        add_products(&mut d, &w[3], &x[3]);
        i += 1;
    }
    let mut lanes = [0.0f32; 2 * LANES];
    for l in 0..OCTET {
        (lanes[l], lanes[OCTET + l]) = (a[l], b[l]);
        (lanes[2 * OCTET + l], lanes[3 * OCTET + l]) = (c[l], d[l]);
    }
    finish(lanes, w_rest, x_rest)
}

/// The end of [`dot`]: what is left of the slices, below 32 elements, into its lanes, and those together.
#[inline(always)]
pub fn finish<E: Element>(mut lanes: [f32; 2 * LANES], w: &[E], x: &[f32]) -> f32 {
    let (mut i, n) = (0, w.len().min(x.len()));
    while i < n {
        lanes[i] += w[i].to_f32() * x[i];
        i += 1;
    }
    let mut sums = [0.0; LANES];
    for l in 0..LANES {
        sums[l] = lanes[l] + lanes[l + LANES];
    }
    halve(sums)
}

/// `Σ w[i]·x[i]` over blocks: lane `l` gets `scale · (code[l]·x[l] + code[l + 16]·x[l + 16])` of one after the other, and
/// the lanes are added as in [`sum`]. `next` as in [`dot`].
#[inline(always)]
pub fn dot_q8_0(w: &[Q8_0], x: &[f32], next: impl Fn(*const Q8_0)) -> f32 {
    let x = x.as_chunks::<{ Q8_0::LEN }>().0;
    let [mut a, mut b] = [[0.0f32; OCTET]; 2];
    let n = w.len().min(x.len());
    let (w, x, mut i) = (&w[..n], &x[..n], 0);
    while i < n {
        next(&raw const w[i]);
        let scale = Element::to_f32(w[i].scale);
        let (codes, x) = (w[i].codes.as_chunks().0, x[i].as_chunks().0);
        add_pairs(&mut a, scale, [&codes[0], &codes[2]], [&x[0], &x[2]]);
        add_pairs(&mut b, scale, [&codes[1], &codes[3]], [&x[1], &x[3]]);
        i += 1;
    }
    let mut lanes = [0.0f32; LANES];
    for l in 0..OCTET {
        (lanes[l], lanes[OCTET + l]) = (a[l], b[l]);
    }
    halve(lanes)
}

/// Lanes of a vector of AVX2.
const OCTET: usize = 8;

#[inline(always)]
fn add_products<E: Element>(lanes: &mut [f32; OCTET], w: &[E; OCTET], x: &[f32; OCTET]) {
    let mut products = [0.0f32; OCTET];
    for l in 0..OCTET {
        products[l] = w[l].to_f32() * x[l];
    }
    for l in 0..OCTET {
        lanes[l] += products[l];
    }
}

#[inline(always)]
fn add_pairs(lanes: &mut [f32; OCTET], scale: f32, codes: [&[i8; OCTET]; 2], x: [&[f32; OCTET]; 2]) {
    let [mut first, mut second] = [[0.0f32; OCTET]; 2];
    for l in 0..OCTET {
        first[l] = f32::from(codes[0][l]) * x[0][l];
    }
    for l in 0..OCTET {
        second[l] = f32::from(codes[1][l]) * x[1][l];
    }
    for l in 0..OCTET {
        lanes[l] += scale * (first[l] + second[l]);
    }
}

/// `lane[l] += lane[l + s]` for s = 8, 4, 2, 1; the sum is in lane 0.
#[inline(always)]
pub fn halve(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Sum of squares of floats in f64, in the lanes of [`sum`].
#[inline(always)]
pub fn sum_squares(x: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        add_squares(&mut lanes, chunk);
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(v) * f64::from(v);
    }
    lanes.iter().sum()
}

/// Adds the square of each float to its lane. Two loops: of one the compiler makes shorter vectors.
#[inline(always)]
pub fn add_squares<const N: usize>(lanes: &mut [f64; N], x: &[f32; N]) {
    let mut wide = [0.0; N];
    for l in 0..N {
        wide[l] = f64::from(x[l]);
    }
    for l in 0..N {
        lanes[l] += wide[l] * wide[l];
    }
}

/// The largest element, `-inf` if there is none.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for l in 0..LANES {
            lanes[l] = if chunk[l] > lanes[l] { chunk[l] } else { lanes[l] };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_the_exact_value() {
        let mut worst = 0.0f64;
        // Every 97th float of both signs up to 88, denormals included.
        for bits in (0..88.0f32.to_bits()).step_by(97) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                if x < -87.0 {
                    continue;
                }
                let want = f64::from(x).exp();
                worst = worst.max((f64::from(exp(x)) - want).abs() / (want * f64::from(f32::EPSILON)));
            }
        }
        assert!(worst.is_finite() && worst <= 2.0, "{worst} ulp");
    }

    /// pulp has AVX-512 by a feature of its crate only: without it, AVX2 is taken in silence.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn loops_are_compiled_for_the_level() {
        let wide = matches!(arch(), pulp::Arch::V4(_));
        assert_eq!(wide, Level::best() >= Level::Avx512, "{:?}", Level::best());
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!((exp(0.0), exp(-200.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(1000.0).is_finite());
    }

    #[test]
    fn sums_and_maxima_cover_every_element() {
        for n in [0, 1, 15, 16, 17, 100] {
            let x: Vec<f32> = (0..n).map(|i| (i * 7 % 101) as f32).collect();
            assert_eq!(sum(n, |i| x[i]), x.iter().sum::<f32>());
            assert_eq!(sum_products(&x, &x), x.iter().map(|v| v * v).sum::<f32>());
            assert_eq!(sum_squares(&x), x.iter().map(|&v| f64::from(v * v)).sum::<f64>());
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
