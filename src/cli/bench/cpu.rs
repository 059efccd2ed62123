//! `smolten bench kernels` on the processor.

use super::{provenance, table};
use serde_json::{Map, Value, json};
use smolten::bench::{Case, CpuBench, CpuMeasured, FLUSH_BYTES, Figure, Limits, cpu_figures, nearest};
use smolten::dtype::DType;
use smolten::error::Result;
use smolten::metrics::processor;

/// Measures the cases, prints a table or a document.
pub fn run(cases: &[Case], dtype: DType, repeats: usize, as_json: bool) -> Result<()> {
    let mut bench = CpuBench::new(cases, dtype, repeats)?;
    let table = Table { dtype, limits: bench.limits, figures: cpu_figures(dtype) };
    if !as_json {
        table.print_head();
    }
    let mut operations = Vec::new();
    for case in cases {
        let Some(measured) = bench.measure(case)? else { continue };
        if as_json {
            operations.push(table.json(&measured));
        } else {
            table.print(&measured);
        }
    }
    if !as_json {
        table.print_foot();
        return Ok(());
    }
    let mut document = provenance();
    let rest = json!({
        "machine": processor(), "threads": rayon::current_num_threads(), "precision": dtype,
        "flush_bytes": FLUSH_BYTES, "calibration": table.limits, "operations": operations,
    });
    document.extend(rest.as_object().cloned().unwrap_or_default());
    say!("{}", Value::Object(document));
    Ok(())
}

struct Table {
    dtype: DType,
    limits: Limits,
    figures: Vec<Figure>,
}

/// What one operation reached.
struct Rates {
    gflops: f64,
    gb_per_s: f64,
    /// Of what the processor does at best.
    share: f64,
    of: &'static str,
}

impl Table {
    fn rates(&self, m: &CpuMeasured) -> Rates {
        let work = m.case.operation.work(self.dtype);
        let (gflops, gb_per_s) =
            (work.flops / m.times.median_us * 1e-3, work.bytes() / m.times.median_us * 1e-3);
        let (share, of) = if work.flops > 0.0 {
            (gflops / self.limits.product_gflops, "product")
        } else {
            (gb_per_s / self.limits.copy_gb_per_s, "copy")
        };
        Rates { gflops, gb_per_s, share, of }
    }

    fn nearest(&self, case: &Case) -> Option<&Figure> {
        nearest(&self.figures, case, "")
    }

    fn print_head(&self) {
        let l = &self.limits;
        say!(
            "machine: {}; {} threads; precision {:?}",
            processor(),
            rayon::current_num_threads(),
            self.dtype
        );
        say!(
            "copy: {:.1} GB/s read and written, a plain copy of {} MiB",
            l.copy_gb_per_s,
            l.copy_bytes >> 20
        );
        say!("product: {:.0} GFLOP/s, the matrix unit on panels in L1", l.product_gflops);
        say!(
            "\n{:<36} {:<62} {:>10} {:>9} {:>8} {:>15}  others",
            "operation",
            "shape",
            "median us",
            "GFLOP/s",
            "GB/s",
            "of this machine"
        );
    }

    fn print(&self, m: &CpuMeasured) {
        let rates = self.rates(m);
        let shape: Vec<String> =
            m.case.operation.shape().iter().map(|(name, n)| format!("{name}={n}")).collect();
        let gflops = if rates.gflops > 0.0 { format!("{:.0}", rates.gflops) } else { "-".to_owned() };
        say!(
            "{:<36} {:<62} {:>10.1} {gflops:>9} {:>8.1} {:>15}  {}",
            format!("{} {}", m.case.model, m.case.name()),
            shape.join(" "),
            m.times.median_us,
            rates.gb_per_s,
            format!("{:.0} % of {}", 100.0 * rates.share, rates.of),
            self.nearest(&m.case).map_or_else(String::new, table::describe)
        );
    }

    fn print_foot(&self) {
        say!(
            "\nrates are of the median; the work is what any code has to do (src/bench/operation.rs), epilogues not counted."
        );
        say!(
            "before each call all threads write {} MiB, so that nothing is left in their L2 caches.",
            FLUSH_BYTES >> 20
        );
        say!(
            "others: the figure whose shape is nearest (benches/reference/cpu.toml), unfused, of another run."
        );
    }

    fn json(&self, m: &CpuMeasured) -> Value {
        let (rates, work) = (self.rates(m), m.case.operation.work(self.dtype));
        let shape: Map<String, Value> =
            m.case.operation.shape().into_iter().map(|(name, n)| (name.to_owned(), n.into())).collect();
        json!({
            "model": m.case.model,
            "name": m.case.name(),
            "shape": shape,
            "median_us": m.times.median_us,
            "min_us": m.times.min_us,
            "repeats": m.times.repeats,
            "flops": work.flops,
            "bytes": work.bytes(),
            "gflops": rates.gflops,
            "gb_per_s": rates.gb_per_s,
            "share": rates.share,
            "share_of": rates.of,
            "others": self.nearest(&m.case),
        })
    }
}
