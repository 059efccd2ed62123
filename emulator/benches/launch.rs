//! `cargo bench -p cuda-emulator --bench launch -- FOLDER`: whole launches, as warp instructions and `mma.sync` per
//! second, with all checks and with none, on one thread and on all. FOLDER holds `rmsnorm.80.ptx` with a kernel
//! `rmsnorm_bf16(y, rstd, x, w, width, eps)` of a block per row, and `gemm.80.ptx` with `gemm_bf16(c, a, b, m, n, k)` of
//! 64×64 per block of 128 threads: those of the prototype that this emulator is measured against.

use cuda_emulator::machine::{LaunchConfig, launch};
use cuda_emulator::memory::Memory;
use cuda_emulator::program::Module;
use cuda_emulator::settings::{Checks, Order, Settings};
use half::bf16;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const RUNS: usize = 5;

fn main() {
    let Some(folder) = std::env::args().skip(1).find(|argument| argument != "--bench") else {
        eprintln!(
            "usage: cargo bench -p cuda-emulator --bench launch -- FOLDER (of rmsnorm.80.ptx and gemm.80.ptx)"
        );
        std::process::exit(2);
    };
    let folder = Path::new(&folder);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for (name, checks) in [("none", Checks::NONE), ("all", Checks::ALL)] {
        for threads in [1, threads] {
            let settings = Settings { capability: 80, checks, order: Order::Early, threads, report: None };
            let (rows, width) = (4096, 576);
            let rmsnorm = Case::new(folder, "rmsnorm", &settings).buffers(&[rows * width * 2, rows * 4]);
            let rmsnorm = rmsnorm.random(&[rows * width, width]).words(&[576, 1e-5_f32.to_bits()]);
            rmsnorm.measure(&format!("checks {name}, {threads} threads"), [4096, 1, 1], 256);
            let (m, n, k) = (512, 512, 1024);
            let gemm = Case::new(folder, "gemm", &settings).buffers(&[m * n * 2]).random(&[m * k, n * k]);
            let gemm = gemm.words(&[512, 512, 1024]);
            gemm.measure(&format!("checks {name}, {threads} threads"), [8, 8, 1], 128);
        }
    }
}

/// A kernel with its arguments.
struct Case<'a> {
    name: &'a str,
    memory: Arc<Memory>,
    module: Module,
    settings: &'a Settings,
    params: Vec<u8>,
}

impl<'a> Case<'a> {
    fn new(folder: &Path, name: &'a str, settings: &'a Settings) -> Self {
        let path = folder.join(format!("{name}.80.ptx"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let memory = Arc::new(Memory::new(1 << 30));
        let module = Module::load(&text, settings.capability, &memory).expect("a module that loads");
        Self { name, memory, module, settings, params: Vec::new() }
    }

    /// Arguments: buffers of so many bytes.
    fn buffers(mut self, sizes: &[usize]) -> Self {
        for &size in sizes {
            let address = self.memory.alloc(size as u64).expect("room");
            self.params.extend(address.to_le_bytes());
        }
        self
    }

    /// Arguments: buffers of so many bf16 numbers in [-1, 1).
    fn random(mut self, lengths: &[usize]) -> Self {
        let mut state = 1u64;
        for &length in lengths {
            let bytes: Vec<u8> = (0..length)
                .flat_map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    bf16::from_f32((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0).to_le_bytes()
                })
                .collect();
            let address = self.memory.alloc(bytes.len() as u64).expect("room");
            self.memory.write(address, &bytes).expect("it was allocated");
            self.params.extend(address.to_le_bytes());
        }
        self
    }

    /// Arguments of 32 bits.
    fn words(mut self, words: &[u32]) -> Self {
        words.iter().for_each(|word| self.params.extend(word.to_le_bytes()));
        self
    }

    /// Median and best of a few launches.
    fn measure(&self, what: &str, grid: [u32; 3], threads: u32) {
        let config = LaunchConfig { grid, block: [threads, 1, 1], dynamic_shared: 0 };
        let mut seconds = Vec::new();
        let mut counted = (0, 0);
        for _ in 0..RUNS {
            let start = Instant::now();
            let counters =
                launch(&self.memory, &self.module.kernels[0], &config, &self.params, self.settings)
                    .unwrap_or_else(|fault| panic!("{fault}"));
            seconds.push(start.elapsed().as_secs_f64());
            counted = (counters.warp_instructions, counters.mma);
        }
        seconds.sort_by(f64::total_cmp);
        let rate = |count: u64, seconds: f64| count as f64 / seconds / 1e6;
        let (best, median) = (seconds[0], seconds[RUNS / 2]);
        println!(
            "{} {what}: {} warp instructions, best {:.1} median {:.1} M/s; {} mma, best {:.2} median {:.2} M/s",
            self.name,
            counted.0,
            rate(counted.0, best),
            rate(counted.0, median),
            counted.1,
            rate(counted.1, best),
            rate(counted.1, median),
        );
    }
}
