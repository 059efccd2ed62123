//! How a token is drawn from logits.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::cmp::Ordering;

/// How the next token is drawn from the logits, in the order of transformers' processors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the largest (greedy).
    pub temperature: f32,
    /// Only this many of the largest logits stay; 0 keeps all.
    pub top_k: usize,
    /// Only the most probable tokens whose sum reaches this stay; 1 keeps all.
    pub top_p: f32,
    /// Logits of tokens seen before are divided (positive) or multiplied (negative) by it; 1 does nothing.
    pub repetition_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Sampling {
    /// The largest logit, always.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 };
}

/// Draws tokens.
pub(super) struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    pub(super) fn new(sampling: Sampling) -> Self {
        Self { sampling, rng: ChaCha8Rng::seed_from_u64(sampling.seed) }
    }

    /// The token after `seen`. The logits are changed.
    pub(super) fn next(&mut self, logits: &mut [f32], seen: &[u32]) -> u32 {
        penalise(logits, seen, self.sampling.repetition_penalty);
        if self.sampling.temperature == 0.0 {
            return largest(logits);
        }
        let kept = kept(logits, &self.sampling);
        let total: f64 = kept.iter().map(|&(_, p)| p).sum();
        // 53 random bits: uniform in [0, 1).
        let unit = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = unit * total;
        for &(id, p) in &kept {
            left -= p;
            if left < 0.0 {
                return id;
            }
        }
        kept[kept.len() - 1].0
    }
}

/// Keskar et al. 2019 (CTRL): each token seen before becomes less likely, once.
fn penalise(logits: &mut [f32], seen: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let distinct: std::collections::BTreeSet<u32> = seen.iter().copied().collect();
    for id in distinct {
        let l = &mut logits[id as usize];
        *l = if *l < 0.0 { *l * penalty } else { *l / penalty };
    }
}

/// Index of the largest logit, the lowest of equals.
fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, l) in logits.iter().enumerate() {
        if l.total_cmp(&logits[best]) == Ordering::Greater {
            best = i;
        }
    }
    u32::try_from(best).expect("ids fit 32 bits")
}

/// 32 bits that order floats as `total_cmp` does, the largest first: of integers, a whole vocabulary is sorted in a fraction
/// of the time that comparisons of its logits take.
fn descending(x: f32) -> u64 {
    let bits = x.to_bits();
    u64::from(if x.is_sign_negative() { bits } else { 0x7fff_ffff - bits })
}

/// The tokens that temperature, top-k and top-p leave, most probable first, with unnormalised probabilities.
fn kept(logits: &[f32], sampling: &Sampling) -> Vec<(u32, f64)> {
    let mut order: Vec<u64> = (0..).zip(logits).map(|(id, &logit)| descending(logit) << 32 | id).collect();
    if (1..order.len()).contains(&sampling.top_k) {
        order.select_nth_unstable(sampling.top_k);
        order.truncate(sampling.top_k);
    }
    order.sort_unstable(); // no two are equal
    let id = |key: u64| u32::try_from(key & u64::from(u32::MAX)).expect("the lower half");
    let logit = |id: u32| logits[id as usize];
    let highest = logit(id(order[0]));
    let weigh = |id: u32| f64::from((logit(id) - highest) / sampling.temperature).exp();
    let weighed: Vec<(u32, f64)> = order.into_iter().map(|key| (id(key), weigh(id(key)))).collect();
    let limit = f64::from(sampling.top_p) * weighed.iter().map(|&(_, p)| p).sum::<f64>();
    let mut reached = 0.0;
    weighed
        .into_iter()
        .take_while(|&(_, p)| {
            let needed = reached < limit || reached == 0.0;
            reached += p;
            needed
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -1.0];

    #[test]
    fn greedy_takes_the_lowest_of_equal_logits() {
        assert_eq!(Sampler::new(Sampling::GREEDY).next(&mut LOGITS.clone(), &[]), 1);
    }

    #[test]
    fn the_penalty_divides_positive_and_multiplies_negative_logits_once() {
        let mut logits = LOGITS;
        penalise(&mut logits, &[1, 4, 1], 2.0);
        assert_eq!(logits, [1.0, 1.5, 2.0, 3.0, -2.0]);
    }

    #[test]
    fn top_k_and_top_p_keep_the_most_probable() {
        let s = Sampling { temperature: 1.0, ..Sampling::GREEDY };
        let ids = |s: &Sampling| kept(&LOGITS, s).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        assert_eq!(ids(&s), [1, 3, 2, 0, 4]);
        assert_eq!(ids(&Sampling { top_k: 3, ..s }), [1, 3, 2]);
        // Probabilities 0.40 0.40 0.15 …: 0.5 needs two, a tiny share still keeps one.
        assert_eq!(ids(&Sampling { top_p: 0.5, ..s }), [1, 3]);
        assert_eq!(ids(&Sampling { top_p: 1e-9, ..s }), [1]);
    }

    #[test]
    fn keys_order_as_total_cmp() {
        let bits =
            [0, 1, 0x7f_ffff, 0x80_0000, 0x3f80_0000, 0x7f7f_ffff, 0x7f80_0000, 0x7fc0_0000, 0x7fff_ffff];
        let all = bits.iter().flat_map(|&bits| [f32::from_bits(bits), -f32::from_bits(bits)]);
        let all: Vec<f32> = all.collect();
        for (a, b) in all.iter().flat_map(|a| all.iter().map(move |b| (*a, *b))) {
            assert_eq!(descending(a).cmp(&descending(b)), b.total_cmp(&a), "{a} {b}");
        }
    }

    #[test]
    fn draws_follow_the_probabilities_and_repeat_with_the_seed() {
        let s = Sampling { temperature: 1.0, seed: 7, ..Sampling::GREEDY };
        let draw = || {
            let mut sampler = Sampler::new(s);
            (0..20_000).map(|_| sampler.next(&mut LOGITS.clone(), &[])).collect::<Vec<_>>()
        };
        let draws = draw();
        assert_eq!(draws, draw());
        let total: f64 = LOGITS.iter().map(|&l| f64::from(l).exp()).sum();
        for (id, &l) in LOGITS.iter().enumerate() {
            let want = f64::from(l).exp() / total;
            let got = draws.iter().filter(|&&d| d as usize == id).count() as f64 / 20_000.0;
            // Five standard deviations of a binomial share.
            assert!(
                (got - want).abs() <= 5.0 * (want * (1.0 - want) / 20_000.0).sqrt(),
                "{id}: {got} {want}"
            );
        }
    }
}
