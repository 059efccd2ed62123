//! `cargo bench -p cuda-emulator --bench mma`: matrix products per second of one core, by form and level.

use cuda_emulator::numeric::mma::{Mma, Row};
use cuda_emulator::numeric::simd::Simd;
use std::time::Instant;

/// Each is run this often per measurement; the best of five is printed.
const RUNS: u32 = 100_000;

fn main() {
    let forms = [
        "sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        "sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        "sync.aligned.m16n8k16.row.col.f16.f16.f16.f16",
        "sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    ];
    for form in forms {
        let mma = Mma::parse(&form.split('.').collect::<Vec<_>>()).expect("a form");
        for level in [Simd::Baseline, Simd::Avx2, Simd::Avx512] {
            if level <= Simd::detect() {
                println!("{form} {level:?}: {:.2} M mma/s", measure(&mma, form, level));
            }
        }
    }
}

fn measure(mma: &Mma, form: &str, level: Simd) -> f64 {
    // Values between 1 and 2, of both signs, from a fixed sequence.
    let mut state = 1u64;
    let mut random = |one: u32, mask: u32| -> Row {
        std::array::from_fn(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            one | ((state >> 33) as u32 & mask)
        })
    };
    let (one, mask) = match form {
        _ if form.contains("bf16") => (0x3f80_3f80, 0x807f_807f),
        _ if form.contains("tf32") => (0x3f80_0000, 0x807f_ffff),
        _ => (0x3c00_3c00, 0x83ff_83ff),
    };
    let a: Vec<Row> = (0..mma.a_rows()).map(|_| random(one, mask)).collect();
    let b: Vec<Row> = (0..mma.b_rows()).map(|_| random(one, mask)).collect();
    let (a, b): (Vec<&Row>, Vec<&Row>) = (a.iter().collect(), b.iter().collect());
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        // Not a running sum: of f16 it would soon be infinite, and such tiles take a slower way.
        let (c, mut d) = ([[0; 32]; 4], [[0; 32]; 4]);
        let start = Instant::now();
        for _ in 0..RUNS {
            let c_rows: [&Row; 4] = std::array::from_fn(|i| std::hint::black_box(&c[i]));
            mma.run(level, &mut d[..mma.d_rows()], &a, &b, &c_rows[..mma.c_rows()]);
            std::hint::black_box(&d);
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    f64::from(RUNS) / best / 1e6
}
