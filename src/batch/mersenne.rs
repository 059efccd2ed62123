//! The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998), seeded as torch's CPU generator seeds it, and the
//! permutation that torch draws from it.

/// Words of state.
const N: usize = 624;

/// Distance between the words that a new word is made from.
const M: usize = 397;

/// The generator; its numbers are those of `torch.Generator().manual_seed(seed)`.
struct Mersenne {
    state: [u32; N],
    next: usize,
}

impl Mersenne {
    /// Torch uses the low 32 bits of the seed.
    fn new(seed: u64) -> Self {
        let low = u32::try_from(seed & u64::from(u32::MAX)).expect("32 bits");
        let mut state = [low; N];
        let mut last = low;
        for (i, word) in (1u32..).zip(&mut state[1..]) {
            last = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i);
            *word = last;
        }
        Self { state, next: N }
    }

    /// Uniform in all 32-bit numbers.
    fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.turn();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// The next 624 words, before tempering.
    fn turn(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twist;
        }
        self.next = 0;
    }
}

/// Rows from which torch draws 64-bit numbers, in another way.
const TORCH_SMALL: usize = u32::MAX as usize / 20;

/// `torch.randperm(n)` of a CPU generator seeded `seed`: from the first place up, each swapped with one of those not
/// yet placed, which one by a remainder (so that low places are favoured by about n / 2³²).
///
/// # Panics
/// If `n` is 214,748,364 or more, where torch goes another way.
pub(super) fn torch_randperm(n: usize, seed: u64) -> Vec<usize> {
    assert!(n < TORCH_SMALL, "{n} rows in torch's order");
    let mut random = Mersenne::new(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for first in 0..n.saturating_sub(1) {
        order.swap(first, first + random.next_u32() as usize % (n - first));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ten-thousandth number from seed 5489, which the C++ standard gives for `std::mt19937` [rand.predef].
    #[test]
    fn the_ten_thousandth_number_is_that_of_the_standard() {
        let mut random = Mersenne::new(5489);
        let last = (0..10_000).map(|_| random.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn only_the_low_half_of_a_seed_counts() {
        assert_eq!(torch_randperm(7, (9 << 32) + 5), torch_randperm(7, 5));
    }
}
