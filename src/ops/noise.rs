//! Random numbers that follow from where they are used: a hash of the micro-batch's key, the place in the model, the row and
//! the column. So a mask is never stored, and is the same on every device, for any number of threads, and on resuming.
//!
//! The hash is Wellons' `lowbias32` (2018), a bijection of 32 bits, once for each of key and place, row, and column.

use super::math::simd;
use crate::arena::Tensor;
use crate::cuda::{Cuda, Rung, blocks_of, cuda, dim_i32, dim_u32, expect, expect_chunks, expect_list};
use crate::dtype::{DType, Element};
use crate::error::Result;
use cudarc::driver::PushKernelArg;
use rayon::prelude::*;

/// An odd number near 2^32 over the golden ratio, by which neighbouring columns are spread.
const STRIDE: u32 = 0x9e37_79b9;

/// `lowbias32`.
#[inline(always)]
fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

/// A row or column as the hash takes it.
pub fn index(i: usize) -> u32 {
    u32::try_from(i).expect("rows and columns are counted in 32 bits")
}

/// The key of a micro-batch from a run's seed: SplitMix64 (Steele et al. 2014) over the three numbers.
#[allow(clippy::cast_possible_truncation, reason = "the two halves")]
pub fn key(seed: u64, step: u64, micro_batch: u64) -> [u32; 2] {
    let split = |x: u64| {
        let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    };
    let key = split(split(split(seed) ^ step) ^ micro_batch);
    [key as u32, (key >> 32) as u32]
}

/// What the numbers of a row follow from.
#[inline(always)]
pub fn row_key(key: [u32; 2], site: u32, row: u32) -> u32 {
    mix(mix(key[0] ^ site.wrapping_mul(STRIDE)) ^ key[1] ^ row.wrapping_mul(0x85eb_ca6b))
}

/// The number of a column: uniform over 32 bits.
#[inline(always)]
pub fn number(row_key: u32, column: u32) -> u32 {
    mix(row_key.wrapping_add(column.wrapping_mul(STRIDE)))
}

/// A mask that keeps each element with probability `1 − rate`, and by what the kept ones are multiplied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Numbers below it are dropped.
    pub threshold: u32,
    /// `1/(1 − rate)`.
    pub factor: f32,
    /// Which of the model's masks it is.
    pub site: u32,
}

impl Dropout {
    /// `rate` from 0 up to, not including, 1.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "below 2^32, and fp32 is meant"
    )]
    pub fn new(rate: f64, site: u32) -> Self {
        Self { threshold: (rate * 4_294_967_296.0) as u32, factor: (1.0 / (1.0 - rate)) as f32, site }
    }

    /// What the element in this column of a row is multiplied by.
    #[inline(always)]
    pub fn at(&self, row_key: u32, column: u32) -> f32 {
        if number(row_key, column) >= self.threshold { self.factor } else { 0.0 }
    }
}

/// `y = x∘mask`, rounded once. `x`, `y` A `[T, columns]`.
pub fn dropout<E: Element>(x: &[E], dropout: Dropout, key: [u32; 2], y: &mut [E], columns: usize) {
    let rows = x.par_chunks_exact(columns).zip(y.par_chunks_exact_mut(columns));
    rows.enumerate().for_each(|(row, (x, y))| {
        let row_key = row_key(key, dropout.site, index(row));
        simd(
            #[inline(always)]
            || {
                for ((column, x), y) in (0u32..).zip(x).zip(y.iter_mut()) {
                    *y = E::from_f32(x.to_f32() * dropout.at(row_key, column));
                }
            },
        );
    });
}

/// The site of NEFTune's noise; masks count from 0.
const EMBEDDING: u32 = u32::MAX;

/// `x[t, c] += u·alpha/√(L·C)` with u from −1 up to 1 and L the tokens of t's sequence. `x` f32 `[T, columns]`, `bounds` of
/// the sequences.
#[allow(clippy::cast_precision_loss, reason = "numbers of 24 bits, and a product of two dimensions")]
pub fn embedding(alpha: f32, key: [u32; 2], bounds: &[u32], x: &mut [f32], columns: usize) {
    let length = |row: u32| {
        let after = bounds.partition_point(|&bound| bound <= row);
        bounds[after] - bounds[after - 1]
    };
    x.par_chunks_exact_mut(columns).enumerate().for_each(|(row, x)| {
        let row = index(row);
        let scale = alpha / (length(row) as f32 * columns as f32).sqrt();
        let row_key = row_key(key, EMBEDDING, row);
        for (column, x) in (0u32..).zip(x) {
            // 24 bits, from −1 up to 1.
            let u = (number(row_key, column) >> 8) as f32 * (2.0 / 16_777_216.0) - 1.0;
            *x += u * scale;
        }
    });
}

/// Threads of a block of `kernels/adapter.cu`, and rows: a warp takes one.
const THREADS: u32 = 128;
const ROWS_PER_BLOCK: u32 = THREADS / 32;

/// Launches [`dropout`] on the rows in use, with the key of the step's parameters, and returns at once.
///
/// # Errors
/// [`crate::error::Error::Shape`] and `Unsupported` before anything is launched; `Cuda` if the driver refuses.
pub fn launch_dropout(device: &Cuda, rung: Rung, x: Tensor, dropout: Dropout, y: Tensor) -> Result<()> {
    const OP: &str = "dropout";
    let (shape, a) = ([x.rows, x.cols], device.dtype);
    expect(OP, [("x", x, shape, a), ("y", y, shape, a)])?;
    expect_chunks(OP, rung, "N", x.cols)?;
    let (rows, n) = (dim_u32(OP, "T", x.rows)?, dim_i32(OP, "N", x.cols)?);
    if rows == 0 {
        return Ok(()); // an empty grid is a launch error
    }
    let Dropout { site, threshold, factor } = dropout;
    let (params, [x, y]) = (device.step_address(), [x, y].map(|t| device.address(t)));
    let mut launch = device.stream.launch_builder(device.kernels.dropout.rung(OP, rung)?);
    launch.arg(&params).arg(&x).arg(&y).arg(&n).arg(&site).arg(&threshold).arg(&factor);
    // SAFETY: the seven arguments match the kernel's parameters in order and type. Shapes, types and alignment were
    // checked and the buffers lie inside the arena (`address` asserts it); a warp goes through one row below
    // `step->tokens`, which is at most the planned rows, in chunks that N is a multiple of. One stream, so nothing else
    // touches them.
    unsafe { launch.launch(blocks_of(THREADS, rows.div_ceil(ROWS_PER_BLOCK))) }.map_err(cuda(OP))?;
    Ok(())
}

/// Launches [`embedding`] on the rows in use, with the key of the step's parameters, and returns at once. `cu_seqlens` u32
/// `[1, sequences + 1]` or longer.
///
/// # Errors
/// As [`launch_dropout`].
pub fn launch_embedding(device: &Cuda, rung: Rung, cu_seqlens: Tensor, alpha: f32, x: Tensor) -> Result<()> {
    const OP: &str = "embedding_noise";
    expect(OP, [("x", x, [x.rows, x.cols], DType::F32)])?;
    expect_list(OP, "cu_seqlens", cu_seqlens, 2)?;
    expect_chunks(OP, rung, "C", x.cols)?;
    let (rows, c) = (dim_u32(OP, "T", x.rows)?, dim_i32(OP, "C", x.cols)?);
    if rows == 0 {
        return Ok(()); // an empty grid is a launch error
    }
    let (params, [bounds, x]) = (device.step_address(), [cu_seqlens, x].map(|t| device.address(t)));
    let mut launch = device.stream.launch_builder(device.kernels.embedding_noise.rung(OP, rung)?);
    launch.arg(&params).arg(&bounds).arg(&alpha).arg(&x).arg(&c);
    // SAFETY: the five arguments match the kernel's parameters in order and type. x as in `launch_dropout`; of the bounds
    // entries up to `step->sequences` are read, for which the list was planned, and a row in use means that there is a
    // sequence. Both lie inside the arena, and there is one stream.
    unsafe { launch.launch(blocks_of(THREADS, rows.div_ceil(ROWS_PER_BLOCK))) }.map_err(cuda(OP))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published vectors of the hash are few; that it is a bijection and what it gives here hold it, and the kernels are
    /// compared with it.
    #[test]
    fn numbers_are_spread_and_depend_on_every_part() {
        let n = 1 << 16;
        let row = row_key([1, 2], 3, 4);
        let mean = (0..n).map(|c| f64::from(number(row, c))).sum::<f64>() / f64::from(n) / 4_294_967_296.0;
        // Standard deviation of the mean of uniform numbers: 0.289 / √n = 0.0011.
        assert!((mean - 0.5).abs() < 0.005, "{mean}");
        let others =
            [row_key([0, 2], 3, 4), row_key([1, 0], 3, 4), row_key([1, 2], 0, 4), row_key([1, 2], 3, 0)];
        for other in others {
            let equal = (0..n).filter(|&c| number(row, c) % 2 == number(other, c) % 2).count();
            // Standard deviation: √n / 2 = 128.
            assert!((equal as f64 - f64::from(n) / 2.0).abs() < 640.0, "{equal} of {n} bits agree");
        }
    }

    #[test]
    fn dropout_keeps_its_share_and_the_mean() {
        let (rows, columns) = (64, 1000);
        let x = vec![1.0f32; rows * columns];
        for rate in [0.0, 0.05, 0.5, 0.9] {
            let mut y = vec![f32::NAN; x.len()];
            dropout(&x, Dropout::new(rate, 7), [1, 2], &mut y, columns);
            let kept = y.iter().filter(|&&y| y != 0.0).count() as f64 / y.len() as f64;
            let deviation = (rate * (1.0 - rate) / y.len() as f64).sqrt();
            assert!((kept - (1.0 - rate)).abs() <= 5.0 * deviation, "{rate}: {kept}");
            let factor = Dropout::new(rate, 7).factor;
            assert!(y.iter().all(|&y| y == 0.0 || y == factor), "{rate}");
        }
    }

    #[test]
    fn noise_is_as_large_as_its_sequence_is_short() {
        let columns = 64;
        let bounds = [0, 4, 5, 21];
        let mut x = vec![0.0; 21 * columns];
        embedding(5.0, [3, 4], &bounds, &mut x, columns);
        for pair in bounds.windows(2) {
            let scale = 5.0 / (((pair[1] - pair[0]) as usize * columns) as f32).sqrt();
            let of = &x[pair[0] as usize * columns..pair[1] as usize * columns];
            let largest = of.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            assert!(largest <= scale && largest > 0.9 * scale, "{pair:?}: {largest} of {scale}");
        }
    }
}
