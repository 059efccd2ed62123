//! The samples in this folder, and what they compute in plain Rust.

use super::sample::Argument::{Buffer as At, F32, U32};
use super::sample::{Buffer, Launched, Sample};

/// Whole numbers that follow no pattern.
pub fn noise(seed: u32) -> impl Iterator<Item = u32> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16
    })
}

/// As stored.
pub fn bytes_f32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// As stored.
pub fn bytes_u32(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// As stored, rounded.
pub fn bytes_bf16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect()
}

/// Whole numbers from `-most` to `most`, without zero.
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
pub fn whole(seed: u32, most: u32, count: usize) -> Vec<f32> {
    let signed = |n: u32| {
        let magnitude = (n % most + 1) as f32;
        if n / most % 2 == 0 { magnitude } else { -magnitude }
    };
    noise(seed).take(count).map(signed).collect()
}

/// Partial tiles at all edges; more steps than stages.
pub fn gemm() -> Sample {
    let (m, n, k) = (40, 72, 264);
    let (a, b) = (whole(1, 8, m * k), whole(2, 8, k * n));
    let dot = |i: usize| (0..k).map(|l| a[i / n * k + l] * b[l * n + i % n]).sum::<f32>();
    let c: Vec<f32> = (0..m * n).map(dot).collect();
    let stage = 12_288;
    let arguments = vec![At(0), At(1), At(2), U32(40), U32(72), U32(264)];
    Sample {
        name: "gemm",
        file: "emulator/tests/mutants/gemm.cu",
        target: 80,
        buffers: vec![
            Buffer::input(bytes_bf16(&a)),
            Buffer::input(bytes_bf16(&b)),
            Buffer::output(bytes_f32(&c)),
        ],
        launches: vec![Launched {
            kernel: "gemm",
            grid: [2, 2, 1],
            threads: 128,
            shared: 3 * stage,
            arguments,
        }],
        stage: Some(stage),
    }
}

/// Rows of which the last warp sees a part only.
pub fn softmax() -> Sample {
    let (t, c, floor) = (3, 230, 2.0);
    let x = whole(3, 9, t * c);
    let (mut y, mut above) = (Vec::new(), Vec::new());
    for row in x.chunks_exact(c) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f32> = row.iter().map(|x| (x - largest).exp2()).collect();
        let sum = powers.iter().sum::<f32>(); // exact: 18 binary places and less than 2^8
        y.extend(powers.iter().map(|power| power / sum));
        above.push(row.iter().filter(|x| **x > floor).fold(0, |count, _| count + 1));
    }
    let arguments = vec![At(0), At(1), At(2), F32(floor), U32(230)];
    Sample {
        name: "softmax",
        file: "emulator/tests/mutants/softmax.cu",
        target: 80,
        buffers: vec![
            Buffer::input(bytes_f32(&x)),
            Buffer::output(bytes_f32(&y)),
            Buffer::output(bytes_u32(&above)),
        ],
        launches: vec![Launched { kernel: "softmax", grid: [3, 1, 1], threads: 128, shared: 0, arguments }],
        stage: None,
    }
}

/// Partial tiles at both edges.
pub fn transpose() -> Sample {
    let (m, n) = (44, 72);
    let x = whole(4, 1000, m * n);
    let y: Vec<f32> = (0..m * n).map(|i| x[i % m * n + i / m]).collect();
    let arguments = vec![At(0), At(1), U32(44), U32(72)];
    Sample {
        name: "transpose",
        file: "emulator/tests/mutants/transpose.cu",
        target: 80,
        buffers: vec![Buffer::input(bytes_f32(&x)), Buffer::output(bytes_f32(&y))],
        launches: vec![Launched { kernel: "transpose", grid: [3, 2, 1], threads: 128, shared: 0, arguments }],
        stage: None,
    }
}

/// Chunks that are no multiple of the blocks, and a partial one.
pub fn histogram() -> Sample {
    let x: Vec<u32> = noise(5).take(64 * 13 + 37).map(|n| n % 64).collect();
    let mut bins = vec![0; 64];
    x.iter().for_each(|&value| bins[value as usize] += 1);
    let parts = Launched {
        kernel: "histogram_parts",
        grid: [2, 1, 1],
        threads: 128,
        shared: 0,
        arguments: vec![At(0), U32(64 * 13 + 37), At(1)],
    };
    let finish = Launched {
        kernel: "histogram_finish",
        grid: [1, 1, 1],
        threads: 64,
        shared: 0,
        arguments: vec![At(1), U32(2), At(2)],
    };
    Sample {
        name: "histogram",
        file: "emulator/tests/mutants/histogram.cu",
        target: 80,
        buffers: vec![
            Buffer::input(bytes_u32(&x)),
            Buffer { bytes: 2 * 64 * 4, ..Buffer::default() },
            Buffer::output(bytes_u32(&bins)),
        ],
        launches: vec![parts, finish],
        stage: None,
    }
}
