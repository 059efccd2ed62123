//! The order of rows in each epoch, the same on every machine and in every version.
//!
//! The source of this trainer's own order is ChaCha8 keyed by the seed (little-endian in the first 8 of 32 key bytes, the rest 0), one stream
//! per epoch, so that the order of an epoch depends on nothing drawn before it.

use super::mersenne::torch_randperm;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The stream that picks the held-out rows; no epoch reaches it.
const HELD_OUT: u64 = u64::MAX;

/// In which order an epoch takes the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they come.
    AsGiven,
    /// Another order each epoch, from this seed.
    Shuffled(u64),
    /// Another order each epoch, that of accelerate's seedable sampler: `torch.randperm` of a CPU generator seeded
    /// with this seed plus the epoch.
    TorchRandperm(u64),
}

impl Order {
    /// `0..n` in the order of `epoch`, which counts from 0.
    ///
    /// # Panics
    /// If torch's order of 214,748,364 rows or more is asked for.
    pub fn of_epoch(self, n: usize, epoch: u64) -> Vec<usize> {
        match self {
            Self::AsGiven => (0..n).collect(),
            Self::Shuffled(seed) => permutation(n, seed, epoch),
            Self::TorchRandperm(seed) => torch_randperm(n, seed.wrapping_add(epoch)),
        }
    }
}

/// `0..n` in the order of `epoch`: Fisher and Yates's shuffle from the last place down.
pub fn permutation(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(epoch);
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        order.swap(last, below(&mut rng, last as u64 + 1));
    }
    order
}

/// Uniform in `0..bound`: the high half of a 128-bit product, draws that would favour a value thrown away (Lemire
/// 2019, "Fast Random Integer Generation in an Interval").
fn below(rng: &mut ChaCha8Rng, bound: u64) -> usize {
    let rejected_below = bound.wrapping_neg() % bound; // 2^64 mod bound
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        let low = product & u128::from(u64::MAX);
        if low >= u128::from(rejected_below) {
            return usize::try_from(product >> 64).expect("below a bound that was a usize");
        }
    }
}

/// Parts `0..n` into the rows to train on and those held out, each in rising order.
///
/// Held out are `share` of them, rounded, but at least one and at most half; none where `share` is 0 or there is
/// only one row. Which ones depends on `seed` and the number of rows alone.
pub fn split(n: usize, share: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    if share <= 0.0 || n < 2 {
        return ((0..n).collect(), Vec::new());
    }
    #[allow(clippy::cast_possible_truncation, reason = "saturates, and is clamped to n / 2")]
    #[allow(clippy::cast_sign_loss, reason = "share is positive here")]
    let held_out = ((n as f64 * share).round() as usize).clamp(1, n / 2);
    let mut is_held_out = vec![false; n];
    permutation(n, seed, HELD_OUT)[..held_out].iter().for_each(|&i| is_held_out[i] = true);
    (0..n).partition(|&i| !is_held_out[i])
}
