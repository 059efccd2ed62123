//! Random contents of buffers: cards draw less power, and run faster, on zeros.

use crate::arena::Tensor;
use crate::dtype::{DType, Element, with_element};
use crate::error::Result;

/// What a buffer is filled with before its operation is timed.
pub(super) enum Fill {
    /// Normal values of this deviation; bytes without any order in a buffer of codes.
    Normal(f32),
    /// The magnitudes of such values.
    Positive(f32),
    /// A list.
    Numbers(Vec<u32>),
}

/// Elements after which normal values come again: a prime, so that no row begins like the one before.
const PERIOD: usize = 1_048_573;

/// Copies bytes into a buffer.
pub(super) type Upload<'a> = dyn FnMut(Tensor, &[u8]) -> Result<()> + 'a;

/// Fills `t`, with other values for another `seed`.
pub(super) fn fill(upload: &mut Upload<'_>, t: Tensor, fill: &Fill, seed: u64) -> Result<()> {
    let mut random = Random(seed);
    let n = t.len().min(PERIOD);
    let pattern = match (fill, t.dtype) {
        (Fill::Numbers(values), _) => bytemuck::cast_slice(values).to_vec(),
        (_, DType::U8) => (0..n).map(|_| random.next().to_le_bytes()[0]).collect(),
        (Fill::Normal(deviation), dtype) => floats(dtype, n, || deviation * random.normal()),
        (Fill::Positive(deviation), dtype) => floats(dtype, n, || (deviation * random.normal()).abs()),
    };
    let mut done = 0;
    while done < t.bytes() {
        let bytes = &pattern[..pattern.len().min(t.bytes() - done)];
        let part = Tensor { offset: t.offset + done, rows: 1, cols: bytes.len() / t.dtype.size(), ..t };
        upload(part, bytes)?;
        done += bytes.len();
    }
    Ok(())
}

fn floats(dtype: DType, n: usize, mut next: impl FnMut() -> f32) -> Vec<u8> {
    with_element!(dtype, E => {
        let values: Vec<E> = (0..n).map(|_| E::from_f32(next())).collect();
        bytemuck::cast_slice::<E, u8>(&values).to_vec()
    })
}

/// SplitMix64 (Steele, Lea & Flood 2014).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform in (0, 1].
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Standard normal (Box & Muller 1958).
    #[expect(clippy::cast_possible_truncation, reason = "random values in f32 are meant")]
    pub(super) fn normal(&mut self) -> f32 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_values_have_the_moments_of_a_normal_distribution() {
        let mut random = Random(1);
        let n = 100_000;
        let values: Vec<f64> = (0..n).map(|_| f64::from(random.normal())).collect();
        let mean = |f: &dyn Fn(f64) -> f64| values.iter().map(|&x| f(x)).sum::<f64>() / n as f64;
        // Deviations of the sample moments are √(1/n), √(2/n) and √(96/n); five of them.
        let allowed = 5.0 / (n as f64).sqrt();
        assert!(mean(&|x| x).abs() <= allowed);
        assert!((mean(&|x| x * x) - 1.0).abs() <= 2_f64.sqrt() * allowed);
        assert!((mean(&|x| x.powi(4)) - 3.0).abs() <= 96_f64.sqrt() * allowed);
    }
}
