//! What `bench kernels` says of each operation.

use serde_json::{Value, json};
use smolten::bench::{Calibration, Card, Case, Figure, Measured, figures, nearest};
use smolten::cuda::Rung;
use smolten::dtype::DType;

/// Everything the rows have in common.
pub struct Table<'a> {
    card: &'a Card,
    dtype: DType,
    calibration: Calibration,
    figures: Vec<Figure>,
}

/// A rate, and what it is a share of.
struct Rate {
    value: f64,
    unit: &'static str,
    /// Of the copy's bandwidth or of the best matrix rate.
    share: f64,
    of: &'static str,
}

impl<'a> Table<'a> {
    pub fn new(card: &'a Card, dtype: DType, calibration: Calibration) -> Self {
        Self { card, dtype, calibration, figures: figures() }
    }

    /// Card, calibration, and the columns' names.
    pub fn print_head(&self) {
        let (card, c) = (self.card, &self.calibration);
        self.warn();
        let driver = card.driver.as_deref().unwrap_or("not known");
        say!(
            "card: {}, compute capability {}, {} multiprocessors, {} MiB of L2, at most {} MHz, memory {} MHz",
            card.name,
            card.compute_capability,
            card.multiprocessors,
            card.l2_bytes >> 20,
            card.clock_mhz,
            card.memory_clock_mhz
        );
        say!("driver: {driver}, CUDA {}; precision {:?}", card.cuda, self.dtype);
        say!(
            "copy: {:.0} GB/s, a plain copy of {} MiB in device memory",
            c.copy_gb_per_s,
            c.copy_bytes >> 20
        );
        let n = c.matrix_size;
        say!("matrix rate: {:.1} TFLOP/s, the fastest of our own products of {n}×{n}×{n}", c.matrix_tflops);
        for figure in self.figures.iter().filter(|f| f.driver_names.contains(&card.name) && f.peak.is_some())
        {
            let peak = figure.peak.unwrap_or_default();
            say!("published: peak {peak:.0} {}; {} {:.1}", figure.unit, figure.of, figure.value);
        }
        say!(
            "\n{:<36} {:<62} {:>9} {:>9} {:>14} {:>15} {:>9}  published",
            "operation",
            "shape",
            "median us",
            "min us",
            "rate",
            "of card",
            "naive"
        );
    }

    /// One line.
    pub fn print(&self, m: &Measured) {
        let rate = self.rate(m);
        let naive = m.comparison.as_ref().map_or_else(String::new, |c| {
            let mark = if c.tokens == m.case.tokens { "" } else { "*" };
            format!("× {:.1}{mark}", c.ratio)
        });
        let shape: Vec<String> =
            m.case.operation.shape().iter().map(|(name, n)| format!("{name}={n}")).collect();
        let rung = if m.rung == Rung::Naive { " naive" } else { "" };
        say!(
            "{:<36} {:<62} {:>9.1} {:>9.1} {:>14} {:>15} {:>9}  {}",
            format!("{} {}{rung}", m.case.model, m.case.name()),
            shape.join(" "),
            m.times.median_us,
            m.times.min_us,
            format!("{:.1} {}", rate.value, rate.unit),
            format!("{:.0} % of {}", 100.0 * rate.share, rate.of),
            naive,
            self.nearest(&m.case).map_or_else(String::new, describe)
        );
    }

    /// What the columns mean.
    pub fn print_foot(&self) {
        say!(
            "\nrate and share are of the median; the work is what any kernel has to do (src/bench/operation.rs)."
        );
        say!("naive: × the naive kernel's time on the same data; * with fewer tokens, for both.");
        say!("published: the figure of others whose shape is nearest (benches/reference), unfused.");
        self.warn();
    }

    /// The same as an object.
    pub fn json(&self, m: &Measured) -> Value {
        let (rate, work) = (self.rate(m), m.case.operation.work(self.dtype));
        let shape: serde_json::Map<String, Value> =
            m.case.operation.shape().into_iter().map(|(name, n)| (name.to_owned(), n.into())).collect();
        json!({
            "model": m.case.model,
            "name": m.case.name(),
            "shape": shape,
            "rung": if m.rung == Rung::Naive { "naive" } else { "production" },
            "median_us": m.times.median_us,
            "min_us": m.times.min_us,
            "repeats": m.times.repeats,
            "flops": work.flops,
            "bytes": work.bytes(),
            "tflops": work.flops / m.times.median_us * 1e-6,
            "gb_per_s": work.bytes() / m.times.median_us * 1e-3,
            "share": rate.share,
            "share_of": rate.of,
            "naive": m.comparison.as_ref().map(|c| json!({ "ratio": c.ratio, "tokens": c.tokens })),
            "published": self.nearest(&m.case),
        })
    }

    fn rate(&self, m: &Measured) -> Rate {
        let work = m.case.operation.work(self.dtype);
        if work.flops > 0.0 {
            let value = work.flops / m.times.median_us * 1e-6;
            return Rate {
                value,
                unit: "TFLOP/s",
                share: value / self.calibration.matrix_tflops,
                of: "matrix",
            };
        }
        let value = work.bytes() / m.times.median_us * 1e-3;
        Rate { value, unit: "GB/s", share: value / self.calibration.copy_gb_per_s, of: "copy" }
    }

    fn nearest(&self, case: &Case) -> Option<&Figure> {
        nearest(&self.figures, case, &self.card.name)
    }

    /// Nothing of an emulated run may be taken for a card's.
    fn warn(&self) {
        if self.card.not_a_gpu {
            say!("NOT A GPU: {} computes on a CPU; these times say nothing of any card", self.card.name);
        }
    }
}

/// A figure of others.
pub fn describe(figure: &Figure) -> String {
    let shape: Vec<String> = figure.shape.iter().map(|(name, n)| format!("{name}={n}")).collect();
    format!("{} {} ({}, {}, {})", figure.value, figure.unit, figure.of, figure.card, shape.join(" "))
}
