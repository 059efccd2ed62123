//! The operations of the training step on this processor, each through [`Backend`] as the model calls it.
//!
//! Times are those of the wall clock around one call. Before every call all threads write a buffer larger than their L2
//! caches, as on a GPU: what the call reads comes from L3 or from memory.

use super::room;
use super::setup::Setup;
use super::suite::Case;
use super::timer::{Times, WARM_UP};
use crate::backend::{Backend, Cpu};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::metrics::available_memory_bytes;
use crate::ops::awake::awake;
use crate::ops::tile::{Block, Level, Line, Packed, Rows, SIDE, Unit};
use rayon::prelude::*;
use serde::Serialize;
use std::hint::black_box;
use std::time::Instant;

/// Bytes written before each call.
pub const FLUSH_BYTES: usize = 64 << 20;

/// Bytes of a part that a thread writes or copies.
const PART: usize = 1 << 20;

/// What this processor does at best with the threads at hand, measured in the same run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limits {
    /// Bytes read and written per second by a plain copy, median, in GB/s.
    pub copy_gb_per_s: f64,
    /// Bytes that were copied.
    pub copy_bytes: usize,
    /// Products without memory: the matrix unit on panels that stay in L1. The fastest repeat, in GFLOP/s.
    pub product_gflops: f64,
}

/// One operation, measured.
#[derive(Clone, Debug)]
pub struct CpuMeasured {
    /// Which.
    pub case: Case,
    /// At its shape.
    pub times: Times,
}

/// This processor with memory for the largest of the cases.
pub struct CpuBench {
    /// Measured before the cases.
    pub limits: Limits,
    cpu: Cpu,
    flush: Vec<u8>,
    repeats: usize,
}

impl CpuBench {
    /// Measures the limits and reserves memory for these cases.
    ///
    /// # Errors
    /// [`Error::Input`] where a case does not fit into the free memory, named with what would fit.
    pub fn new(cases: &[Case], dtype: DType, repeats: usize) -> Result<Self> {
        let free =
            available_memory_bytes().map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let plan = room(cases, dtype, FLUSH_BYTES, free)?;
        let (limits, cpu) = (Limits::measure(dtype, repeats), Cpu::new(&plan, dtype)?);
        Ok(Self { limits, cpu, flush: vec![0; FLUSH_BYTES], repeats })
    }

    /// Times one operation; `None` where the processor has it as a part of another one only.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn measure(&mut self, case: &Case) -> Result<Option<CpuMeasured>> {
        let Self { cpu, flush, repeats, .. } = self;
        let mut setup = Setup::new(case, cpu.activation_dtype());
        let Some(mut launch) = setup.launch.backend.take() else { return Ok(None) };
        setup.fill_backend(cpu)?;
        let before = || write_all(flush);
        let times = time(*repeats, before, || launch(cpu))?;
        Ok(Some(CpuMeasured { case: case.clone(), times }))
    }

    /// Whether the last step of an optimizer was skipped, as its gradient was not finite.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn skipped(&mut self) -> Result<bool> {
        Ok(self.cpu.take_output()?.skipped)
    }
}

/// Wall-clock times of `run`, each after `before`; threads are awake, as they are in a step.
fn time(repeats: usize, mut before: impl FnMut(), mut run: impl FnMut() -> Result<()>) -> Result<Times> {
    for _ in 0..WARM_UP {
        run()?;
    }
    let mut once = || {
        before();
        let start = Instant::now();
        run()?;
        Ok::<f64, Error>(1e6 * start.elapsed().as_secs_f64())
    };
    awake(|| (0..repeats).map(|_| once()).collect::<Result<_>>().map(Times::new))
}

fn write_all(bytes: &mut [u8]) {
    bytes.par_chunks_mut(PART).for_each(|part| {
        let value = part[0].wrapping_add(1);
        part.fill(value);
    });
    black_box(bytes);
}

impl Limits {
    fn measure(dtype: DType, repeats: usize) -> Self {
        const COPY_BYTES: usize = 256 << 20;
        let (from, mut to) = (vec![1u8; COPY_BYTES], vec![0u8; COPY_BYTES]);
        let copy = || {
            to.par_chunks_mut(PART)
                .zip(from.par_chunks(PART))
                .for_each(|(to, from)| to.copy_from_slice(from));
            black_box(&mut to);
            Ok(())
        };
        let copy = time(repeats, || {}, copy).expect("a copy does not fail");
        let product_gflops = match dtype {
            DType::BF16 => fastest(repeats, blocks::<half::bf16>),
            _ => fastest(repeats, blocks::<f32>),
        };
        Self {
            copy_gb_per_s: 2.0 * COPY_BYTES as f64 / copy.median_us * 1e-3,
            copy_bytes: COPY_BYTES,
            product_gflops,
        }
    }
}

/// The highest rate, in GFLOP/s, of all threads together at work that returns its number of operations.
fn fastest(repeats: usize, work: impl Fn() -> f64 + Sync) -> f64 {
    let rate = |_| {
        let start = Instant::now();
        let flops: f64 = rayon::broadcast(|_| work()).into_iter().sum();
        flops / start.elapsed().as_secs_f64() * 1e-9
    };
    (0..repeats).map(rate).fold(0.0, f64::max)
}

/// Blocks from two panels of 16 KiB.
fn blocks<T: Packed>() -> f64 {
    const STEPS: usize = 8;
    const BLOCKS: usize = 20_000;
    let unit = Unit::<T>::new(Level::best());
    let (a, b, mut c) = ([Line::ZERO; STEPS * SIDE], [Line::ZERO; STEPS * SIDE], Block::ZERO);
    for _ in 0..BLOCKS {
        unit.multiply(black_box(Rows::packed(&a)), black_box(&b), &mut c, true);
    }
    black_box(c);
    (2 * SIDE * SIDE * STEPS * T::DEPTH * BLOCKS) as f64
}

#[cfg(test)]
mod tests {
    use super::super::suite::{SIZES, cases};
    use super::*;

    #[test]
    fn every_operation_of_the_step_runs() {
        for dtype in [DType::F32, DType::BF16] {
            let all = cases(&SIZES[3], 70);
            let mut bench = CpuBench::new(&all, dtype, 3).unwrap();
            let mut parts = Vec::new();
            for case in &all {
                match bench.measure(case).unwrap_or_else(|e| panic!("{}: {e}", case.name())) {
                    Some(CpuMeasured { times, .. }) => {
                        assert!(times.min_us > 0.0 && times.min_us <= times.median_us, "{times:?}");
                        assert_eq!(times.repeats, 3);
                    }
                    None => parts.push(case.name()),
                }
                assert!(!bench.skipped().unwrap(), "{}", case.name());
            }
            assert_eq!(parts, ["rows_gather/head", "cross_entropy", "rows_scatter/head"]);
        }
    }

    /// Each call is timed alone, and what comes before it is not.
    #[test]
    fn times_are_those_of_the_calls() {
        let sleep = |ms| std::thread::sleep(std::time::Duration::from_millis(ms));
        let mut calls = 0;
        let times = time(
            3,
            || sleep(40),
            || {
                calls += 1;
                sleep(2);
                Ok(())
            },
        );
        let times = times.unwrap();
        assert_eq!((calls, times.repeats), (WARM_UP + 3, 3));
        assert!(times.min_us >= 2e3 && times.min_us < 40e3, "{times:?}");
    }
}
