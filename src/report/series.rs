//! A value over the steps of a run, in bounded room: neighbours are joined as a run grows, and keep their extremes.

/// Buckets of a series at most. A page is drawn about a thousand pixels wide.
const CAPACITY: usize = 1024;

/// Steps that follow on one another, and the values at them. Values that are not finite are counted only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// First step.
    pub first: usize,
    /// Last step.
    pub last: usize,
    /// The smallest finite value and its step.
    pub low: (usize, f64),
    /// The largest finite value and its step.
    pub high: (usize, f64),
    /// Sum of the finite values.
    sum: f64,
    /// How many values are finite.
    pub finite: usize,
    /// How many are not.
    pub missing: usize,
}

impl Bucket {
    fn of(step: usize, value: f64) -> Self {
        let finite = value.is_finite();
        let kept = (step, if finite { value } else { f64::NAN });
        let sum = if finite { value } else { 0.0 };
        let (finite, missing) = (usize::from(finite), usize::from(!finite));
        Self { first: step, last: step, low: kept, high: kept, sum, finite, missing }
    }

    /// Takes in what follows.
    fn join(&mut self, next: &Self) {
        self.last = next.last;
        if self.finite == 0 || next.low.1 < self.low.1 {
            self.low = next.low;
        }
        if self.finite == 0 || next.high.1 > self.high.1 {
            self.high = next.high;
        }
        self.sum += next.sum;
        self.finite += next.finite;
        self.missing += next.missing;
    }

    /// Mean of the finite values, where there are any.
    pub fn mean(&self) -> Option<f64> {
        (self.finite > 0).then(|| self.sum / self.finite as f64)
    }
}

/// Values by ascending step. What it holds depends on the values alone, not on when they came.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    buckets: Vec<Bucket>,
    /// Values that a bucket takes.
    width: usize,
    /// The last finite value and its step.
    last: Option<(usize, f64)>,
}

impl Default for Series {
    fn default() -> Self {
        Self { buckets: Vec::new(), width: 1, last: None }
    }
}

impl Series {
    /// Takes in the value at the next step.
    pub fn push(&mut self, step: usize, value: f64) {
        if value.is_finite() {
            self.last = Some((step, value));
        }
        let next = Bucket::of(step, value);
        match self.buckets.last_mut() {
            Some(last) if last.finite + last.missing < self.width => last.join(&next),
            _ => {
                if self.buckets.len() == CAPACITY {
                    self.buckets = joined(&self.buckets, 2);
                    self.width *= 2;
                }
                self.buckets.push(next);
            }
        }
    }

    /// All buckets, by ascending step.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// The last finite value and its step.
    pub fn last(&self) -> Option<(usize, f64)> {
        self.last
    }

    /// At most `most` buckets, joined from as many neighbours each.
    pub fn rows(&self, most: usize) -> Vec<Bucket> {
        joined(&self.buckets, self.buckets.len().div_ceil(most).max(1))
    }

    /// Every step has a bucket of its own.
    pub fn is_whole(&self) -> bool {
        self.width == 1
    }
}

/// Runs of `n` buckets as one each.
fn joined(buckets: &[Bucket], n: usize) -> Vec<Bucket> {
    let one = |run: &[Bucket]| {
        let mut bucket = run[0];
        run[1..].iter().for_each(|next| bucket.join(next));
        bucket
    };
    buckets.chunks(n).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_run_is_kept_step_by_step() {
        let mut series = Series::default();
        for step in 1..=CAPACITY {
            series.push(step, step as f64);
        }
        assert!(series.is_whole() && series.buckets().len() == CAPACITY);
        let b = series.buckets()[6];
        assert_eq!((b.first, b.last, b.low, b.high, b.mean()), (7, 7, (7, 7.0), (7, 7.0), Some(7.0)));
    }

    #[test]
    fn a_long_run_keeps_every_spike_and_every_step() {
        let mut series = Series::default();
        let value = |step: usize| match step {
            31_234 => 1e9,
            77_777 => -5.0,
            50_000..50_010 => f64::NAN,
            _ => (step % 7) as f64,
        };
        (1..=100_000).for_each(|step| series.push(step, value(step)));
        let buckets = series.buckets();
        assert!((CAPACITY / 2..=CAPACITY).contains(&buckets.len()), "{}", buckets.len());
        assert_eq!((buckets[0].first, buckets.last().unwrap().last), (1, 100_000));
        assert!(buckets.windows(2).all(|w| w[0].last + 1 == w[1].first));
        let high = buckets.iter().map(|b| b.high).max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        let low = buckets.iter().map(|b| b.low).min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        assert_eq!((high, low), ((31_234, 1e9), (77_777, -5.0)));
        let counts: (usize, usize) = buckets.iter().fold((0, 0), |(f, m), b| (f + b.finite, m + b.missing));
        assert_eq!(counts, (99_990, 10));
        let rows = series.rows(40);
        assert!(rows.len() <= 40 && rows[0].first == 1 && rows.last().unwrap().last == 100_000);
    }

    #[test]
    fn what_is_not_finite_leaves_a_gap() {
        let mut series = Series::default();
        for (step, value) in [(1, f64::NAN), (2, 3.0), (3, f64::INFINITY)] {
            series.push(step, value);
        }
        assert_eq!(series.last(), Some((2, 3.0)));
        assert_eq!(series.buckets()[0].mean(), None);
        let one = series.rows(1)[0];
        assert_eq!((one.low, one.high, one.finite, one.missing), ((2, 3.0), (2, 3.0), 1, 2));
    }
}
