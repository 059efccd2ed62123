//! Scalar functions that vectorise, reductions of a fixed order, and the switch to the processor's vector units.
//!
//! A loop inside [`simd`] is compiled for AVX-512, AVX2 and the baseline, and the best one runs. None of the
//! three contracts a product and a sum, and sums go through [`LANES`] accumulators whatever the vector width, so
//! all give the same bits.

use super::tile::Level;
use crate::dtype::Element;

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
    let mut lanes = [0.0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            lanes[l] += a[l] * b[l];
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += a * b;
    }
    halve(lanes)
}

/// `Σ w[i]·x[i]`: 32 lanes, of which the upper half is then added to the lower, and those as in [`sum`]. One vector of
/// lanes would wait for itself. `next` gets the address of each 32 elements before they are read.
#[inline(always)]
pub fn dot<E: Element>(w: &[E], x: &[f32], next: impl Fn(*const E)) -> f32 {
    let mut lanes = [0.0f32; 2 * LANES];
    let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<{ 2 * LANES }>(), x.as_chunks::<{ 2 * LANES }>());
    let n = w.len().min(x.len());
    let mut i = 0;
    while i < n {
        next(w[i].as_ptr());
        for l in 0..2 * LANES {
            lanes[l] += w[i][l].to_f32() * x[i][l];
        }
        i += 1;
    }
    let n = w_rest.len().min(x_rest.len());
    let mut i = 0;
    while i < n {
        lanes[i % (2 * LANES)] += w_rest[i].to_f32() * x_rest[i];
        i += 1;
    }
    let mut sums = [0.0; LANES];
    for l in 0..LANES {
        sums[l] = lanes[l] + lanes[l + LANES];
    }
    halve(sums)
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
            assert_eq!(sum_squares(&x), x.iter().map(|&v| f64::from(v * v)).sum::<f64>());
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
