//! Axes: which range is drawn, where a value lies in it, and where its ticks are.

use super::series::{Bucket, Series};
use super::words::{figure, grouped, whole};
use serde::Serialize;

/// A mark on an axis.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tick {
    /// Share of the axis from its start, in percent.
    pub at: f64,
    /// What stands there.
    pub label: String,
}

/// How values become places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

/// Values that a few spikes would press flat are drawn up to here: so many times their usual spread.
const SPIKE: f64 = 3.0;
/// Share of the values that are usual.
const USUAL: f64 = 0.98;
/// Below so many values none counts as a spike.
const FEW: usize = 20;
/// Positive values that spread over more than this factor get a logarithmic axis where that is asked for.
const WIDE: f64 = 30.0;

/// What the y axis begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The smallest value.
    Data,
    /// Zero.
    Zero,
    /// The smallest value, on a logarithmic axis where the values spread widely.
    Wide,
}

impl Scale {
    /// Steps from `first` to `last`.
    pub fn steps(first: usize, last: usize) -> Self {
        Self { low: first as f64, high: last.max(first + 1) as f64, logarithmic: false }
    }

    /// The range of these series; and the largest value, where it is a spike beyond that.
    pub fn values(series: &[&Series], from: From) -> (Self, Option<(usize, f64)>) {
        let buckets = || series.iter().flat_map(|s| s.buckets()).filter(|b| b.finite > 0);
        let low = buckets().map(|b| b.low.1).fold(f64::INFINITY, f64::min);
        let largest = buckets().map(|b| b.high).max_by(|a, b| a.1.total_cmp(&b.1));
        let Some(largest) = largest else {
            return (Self { low: 0.0, high: 1.0, logarithmic: false }, None);
        };
        if from == From::Wide && low > 0.0 && largest.1 / low > WIDE {
            // Room above and below, as on a linear axis.
            let room = (largest.1 / low).powf(0.05);
            return (Self { low: low / room, high: largest.1 * room, logarithmic: true }, None);
        }
        let usual = usual(buckets());
        let spikes = usual.is_some_and(|usual| largest.1 - usual > SPIKE * (usual - low));
        let high =
            if spikes { usual.map_or(largest.1, |usual| usual + 0.25 * (usual - low)) } else { largest.1 };
        let low = if from == From::Zero { low.min(0.0) } else { low };
        // One value, or many that are the same but for their rounding, lie in the middle.
        let room = if high - low > 1e-9 * high.abs() {
            0.05 * (high - low)
        } else {
            (0.05 * high.abs()).max(f64::MIN_POSITIVE)
        };
        let low = if low == 0.0 { low } else { low - room };
        (Self { low, high: high + room, logarithmic: false }, spikes.then_some(largest))
    }

    /// Share of the axis below a value; outside of 0 to 1 where the value is.
    pub fn share(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        // A line that leaves the picture needs to go no farther.
        if share.is_nan() { -1.0 } else { share.clamp(-1.0, 2.0) }
    }

    /// The ends.
    pub fn ends(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    /// Round numbers of which about `about` lie on the axis.
    pub fn ticks(&self, about: usize) -> Vec<Tick> {
        let values = if self.logarithmic { self.powers() } else { self.multiples(about) };
        let unit = values.windows(2).map(|w| w[1] - w[0]).fold(f64::INFINITY, f64::min);
        values.into_iter().map(|v| Tick { at: 100.0 * self.share(v), label: label(v, unit) }).collect()
    }

    /// Whole steps.
    pub fn step_ticks(&self, about: usize) -> Vec<Tick> {
        let mut ticks = self.multiples(about);
        ticks.retain(|v| v.fract() == 0.0);
        ticks.into_iter().map(|v| Tick { at: 100.0 * self.share(v), label: grouped(whole(v)) }).collect()
    }

    fn multiples(&self, about: usize) -> Vec<f64> {
        let rough = (self.high - self.low) / about as f64;
        let power = 10f64.powf(rough.log10().floor());
        let unit = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|&unit| unit >= rough);
        let Some(unit) = unit.filter(|u| u.is_finite() && *u > 0.0) else { return vec![self.low] };
        let first = (self.low / unit).ceil();
        // Multiplied, not added up, so that 3 × 0.1 is the nearest number to 0.3 but one.
        (0..=2 * about).map(|i| (first + i as f64) * unit).take_while(|&v| v <= self.high).collect()
    }

    fn powers(&self) -> Vec<f64> {
        let decades = self.low.log10().floor()..=self.high.log10().ceil();
        let mut power = *decades.start();
        let mut all = Vec::new();
        while power <= *decades.end() {
            all.push(10f64.powf(power));
            power += 1.0;
        }
        all.retain(|v| (self.low..=self.high).contains(v));
        if all.len() > 6 {
            let every = all.len().div_ceil(6);
            all = all.into_iter().step_by(every).collect();
        }
        all
    }
}

/// The value below which the usual ones lie.
fn usual<'a>(buckets: impl Iterator<Item = &'a Bucket>) -> Option<f64> {
    let mut values: Vec<f64> = buckets.map(|b| b.high.1).collect();
    values.sort_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let at = (values.len() as f64 * USUAL) as usize;
    (values.len() >= FEW).then(|| values[at.min(values.len() - 1)])
}

/// A round number, with the places that tell it from its neighbours `unit` away.
fn label(value: f64, unit: f64) -> String {
    let size = value.abs().max(if unit.is_finite() { unit } else { 0.0 });
    if value == 0.0 {
        return "0".to_owned();
    }
    if !(1e-3..1e6).contains(&size) {
        // 1.5e-4 and 2e-4, not 1.5000000000000001e-4.
        let text = format!("{value:.2e}");
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'));
    }
    if value >= 1e4 && unit >= 1e3 {
        return format!("{}k", grouped(whole(value / 1e3)));
    }
    if !unit.is_finite() {
        return figure(value);
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a handful of places")]
    let places = (-unit.log10().floor()).clamp(0.0, 12.0) as usize;
    if places == 0 && value >= 0.0 { grouped(whole(value)) } else { format!("{value:.places$}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: impl IntoIterator<Item = f64>) -> Series {
        let mut series = Series::default();
        values.into_iter().enumerate().for_each(|(i, v)| series.push(i + 1, v));
        series
    }

    fn labels(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().map(|t| t.label.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_and_on_the_axis() {
        let (scale, spike) = Scale::values(&[&series([1.0, 2.5, 3.2])], From::Data);
        assert_eq!((labels(&scale.ticks(4)), spike), (vec!["1", "2", "3"], None));
        let (scale, _) = Scale::values(&[&series([0.0, 2e-4])], From::Zero);
        assert_eq!(labels(&scale.ticks(4)), ["0", "1e-4", "2e-4"]);
        let (scale, _) = Scale::values(&[&series([0.0, 25_000.0])], From::Zero);
        assert_eq!(labels(&scale.ticks(3)), ["0", "10k", "20k"]);
        let (scale, _) = Scale::values(&[&series([0.71, 0.74])], From::Data);
        assert_eq!(labels(&scale.ticks(4)), ["0.71", "0.72", "0.73", "0.74"]);
        assert_eq!(labels(&Scale::steps(0, 20).step_ticks(4)), ["0", "5", "10", "15", "20"]);
        assert_eq!(labels(&Scale::steps(0, 1).step_ticks(5)), ["0", "1"]);
        assert_eq!(labels(&Scale::steps(0, 100_000).step_ticks(5))[1], "20,000");
        for scale in [scale, Scale::steps(0, 7)] {
            assert!(scale.ticks(5).iter().all(|t| (0.0..=100.0).contains(&t.at)), "{:?}", scale.ticks(5));
        }
    }

    /// Losses that differ in their last bits were once a panic.
    #[test]
    fn values_that_are_nearly_the_same_have_an_axis() {
        for value in [10.8092f64, 1.0, 1e-5, 2e6] {
            for next in [value, value.next_up(), value * (1.0 + 1e-12), value * (1.0 + 1e-8)] {
                let (scale, _) = Scale::values(&[&series([value, next])], From::Data);
                let ticks = scale.ticks(6);
                assert!(
                    ticks.len() > 1 && ticks.iter().all(|t| t.label.len() < 20),
                    "{value} {next}: {ticks:?}"
                );
            }
        }
    }

    #[test]
    fn a_spike_does_not_press_the_rest_flat() {
        let mut values: Vec<f64> = (0..200).map(|i| 2.0 + 0.001 * f64::from(i)).collect();
        values[100] = 1e6;
        let (scale, spike) = Scale::values(&[&series(values)], From::Data);
        assert_eq!(spike, Some((101, 1e6)));
        assert!(scale.share(2.2) > 0.7 && scale.share(1e6) == 2.0);
    }

    #[test]
    fn a_wide_spread_has_powers_of_ten() {
        let (scale, spike) = Scale::values(&[&series([0.5, 3.0, 900.0])], From::Wide);
        assert_eq!((labels(&scale.ticks(4)), spike), (vec!["1", "10", "100", "1,000"], None));
        assert!(scale.share(0.0) == -1.0 && scale.share(-1.0) == -1.0);
    }

    #[test]
    fn nothing_or_one_value_has_an_axis_too() {
        for values in [vec![], vec![f64::NAN], vec![3.0], vec![0.0, 0.0], vec![-1.0], vec![1e300, -1e300]] {
            for from in [From::Data, From::Zero, From::Wide] {
                let (scale, _) = Scale::values(&[&series(values.clone())], from);
                let (low, high) = scale.ends();
                assert!(low < high, "{values:?}, {from:?}: {low} to {high}");
                assert!(scale.ticks(4).iter().all(|t| t.at.is_finite()), "{values:?}, {from:?}");
                let within =
                    values.iter().filter(|v| v.is_finite()).all(|&v| (0.0..=1.0).contains(&scale.share(v)));
                assert!(within, "{values:?}, {from:?}");
            }
        }
    }
}
