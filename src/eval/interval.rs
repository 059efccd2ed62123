//! How far a figure over rows would move with other rows of the same kind.
//!
//! The unit is the row, not the token: the tokens of a row stand or fall together, so an interval that took each for a
//! draw of its own would be far too narrow.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::Serialize;

/// Share of such intervals that hold what they are about.
pub const LEVEL: f64 = 0.95;

/// Samples that a bootstrap draws.
pub const RESAMPLES: usize = 10_000;

/// Quantile of the standard normal distribution that leaves half of 1 - [`LEVEL`] above it.
const NORMAL: f64 = 1.959_963_984_540_054;

/// Every bootstrap draws the same rows for the same number of rows, so a figure has one interval.
const SEED: u64 = 0;

/// From where to where a figure may reasonably lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// [`LEVEL`].
    pub level: f64,
    /// How it was found.
    pub method: &'static str,
    /// Samples drawn, where some were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resamples: Option<usize>,
}

impl Interval {
    /// Percentile bootstrap (Efron 1979) over `rows` rows: `figure` of as many rows drawn with replacement, again and
    /// again, and what lies in the middle [`LEVEL`] of it. Several samples of a call have the same draws, so a figure
    /// that is a difference over the same rows is paired. None for fewer than two rows, which show no spread.
    ///
    /// Of few rows, twenty or less, it is somewhat too narrow.
    pub fn bootstrap(rows: usize, figure: impl Fn(&[usize]) -> f64 + Sync) -> Option<Self> {
        if rows < 2 {
            return None;
        }
        let sample = |drawn: &mut Vec<usize>, i: usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(SEED);
            rng.set_stream(i as u64); // its own draws, whichever thread has it
            drawn.iter_mut().for_each(|row| *row = below(rows, &mut rng));
            figure(drawn)
        };
        let mut figures: Vec<f64> =
            (0..RESAMPLES).into_par_iter().map_init(|| vec![0; rows], sample).collect();
        figures.par_sort_unstable_by(f64::total_cmp);
        let tail = (1.0 - LEVEL) / 2.0;
        let (low, high) = (quantile(&figures, tail), quantile(&figures, 1.0 - tail));
        let method = "percentile bootstrap over rows";
        Some(Self { low, high, level: LEVEL, method, resamples: Some(RESAMPLES) })
    }

    /// Of a share: Wilson's (1927) score interval, which also holds where none or all are `right`. Of at least one row.
    pub fn wilson(right: usize, rows: usize) -> Self {
        let (n, share, z2) = (rows as f64, right as f64 / rows as f64, NORMAL * NORMAL);
        let centre = share + z2 / (2.0 * n);
        let half = NORMAL * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
        let [low, high] = [centre - half, centre + half].map(|x| (x / (1.0 + z2 / n)).clamp(0.0, 1.0));
        Self { low, high, level: LEVEL, method: "Wilson", resamples: None }
    }

    /// Of `f` of the figure, where `f` rises.
    pub fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self { low: f(self.low), high: f(self.high), ..self }
    }

    /// Both ends, the lower one first.
    pub fn ends(&self) -> [f64; 2] {
        [self.low, self.high]
    }

    /// Whether a difference with this interval may be none.
    pub fn holds_zero(&self) -> bool {
        // An end that is NaN rules nothing out.
        !(self.low > 0.0 || self.high < 0.0)
    }
}

/// Uniform below `n`, but for one part in 2^64 / n.
fn below(n: usize, rng: &mut impl Rng) -> usize {
    let wide = u128::from(rng.next_u64()) * n as u128;
    usize::try_from(wide >> 64).expect("below n")
}

/// As NumPy's default: linear between the two nearest.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (below, above) = (at.floor(), at.ceil());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of the list")]
    let value = |i: f64| sorted[i as usize];
    value(below) + (at - below) * (value(above) - value(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3; to the four digits given there.
    #[test]
    fn wilson_is_the_published_one() {
        for (right, rows, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let interval = Interval::wilson(right, rows);
            for (got, want) in [(interval.low, low), (interval.high, high)] {
                assert!((got - want).abs() <= 0.5001e-4, "{right} of {rows}: {got}, want {want}");
            }
            let other = Interval::wilson(rows - right, rows);
            assert!((other.high - (1.0 - interval.low)).abs() < 1e-12, "it is not symmetric");
        }
    }

    /// The mean of as many draws from 0 and 1 is a binomial share, whose quantiles are known.
    #[test]
    fn a_bootstrap_of_zeros_and_ones_is_binomial() {
        let ones = |rows: &[usize]| rows.iter().filter(|&&r| r < 30).count() as f64 / rows.len() as f64;
        let interval = Interval::bootstrap(100, ones).unwrap();
        // Of Binomial(100, 0.3): P(X <= 21) = 0.029, P(X <= 39) = 0.979; a quantile's draw moves it by one at most.
        assert!((0.20..=0.22).contains(&interval.low), "{interval:?}");
        assert!((0.38..=0.40).contains(&interval.high), "{interval:?}");
        assert_eq!(Interval::bootstrap(100, ones), Some(interval));
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(alone.install(|| Interval::bootstrap(100, ones)), Some(interval), "one thread");
        assert_eq!(Interval::bootstrap(1, ones), None);
    }

    /// Every row is drawn as often as any other, and each sample is another.
    #[test]
    fn draws_are_uniform() {
        let rows = 7;
        let counts: Vec<std::sync::atomic::AtomicUsize> = (0..rows).map(|_| 0.into()).collect();
        let figure = |drawn: &[usize]| {
            let mut number = 0;
            for &row in drawn {
                counts[row].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                number = number * rows + row;
            }
            number as f64
        };
        let interval = Interval::bootstrap(rows, figure).unwrap();
        let (all, share) = ((RESAMPLES * rows) as f64, 1.0 / rows as f64);
        for count in counts {
            let got = count.into_inner() as f64 / all;
            // Five standard deviations of a binomial share.
            assert!((got - share).abs() <= 5.0 * (share * (1.0 - share) / all).sqrt(), "{got}, want {share}");
        }
        // As a number to the base of seven a sample is uniform, so the interval is the middle 95 % of it.
        let most = 7f64.powi(7);
        assert!((interval.low / most - 0.025).abs() < 0.01 && (interval.high / most - 0.975).abs() < 0.01);
    }

    #[test]
    fn a_figure_that_is_not_a_number_has_no_interval_that_rules_out_zero() {
        let interval = Interval::bootstrap(5, |_| f64::NAN).unwrap();
        assert!(interval.low.is_nan() && interval.holds_zero());
        let of = |low, high| Interval { low, high, level: LEVEL, method: "", resamples: None };
        assert!(of(-1.0, 0.0).holds_zero() && of(0.0, 1.0).holds_zero() && of(-1.0, 1.0).holds_zero());
        assert!(!of(0.1, 1.0).holds_zero() && !of(-2.0, -1.0).holds_zero());
    }
}
