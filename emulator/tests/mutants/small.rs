//! The samples in this folder, and what they compute in plain Rust. All numbers are whole and small, so that sums are
//! exact in any order.

use super::sample::Argument::{Buffer as At, F32, U32};
use super::sample::{Buffer, Case, Launched, Sample};

/// Whole numbers that follow no pattern.
pub fn noise(seed: u32) -> impl Iterator<Item = u32> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16
    })
}

/// From `-most` to `most`, without zero.
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
pub fn whole(seed: u32, most: u32, count: u32) -> Vec<f32> {
    let signed = |n: u32| {
        let magnitude = (n % most + 1) as f32;
        if (n / most).is_multiple_of(2) { magnitude } else { -magnitude }
    };
    noise(seed).take(count as usize).map(signed).collect()
}

/// As stored.
pub fn bytes_f32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// As stored.
pub fn bytes_u32(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Rounded, as stored.
pub fn bytes_bf16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect()
}

/// Rounded, as stored.
pub fn bytes_f16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect()
}

/// All of them.
pub fn samples() -> Vec<Sample> {
    let sample = |name, file, stage, cases| Sample { stage, ..Sample::new(name, file, 80, cases) };
    vec![
        sample("matmul", "emulator/tests/mutants/matmul.cu", Some(MATMUL_STAGE), matmuls()),
        sample(
            "softmax",
            "emulator/tests/mutants/softmax.cu",
            None,
            vec![softmax(230), softmax(161), softmax(128), softmax(97), softmax(5)],
        ),
        sample(
            "transpose",
            "emulator/tests/mutants/transpose.cu",
            None,
            vec![transpose(44, 72), transpose(48, 20), transpose(56, 36)],
        ),
        sample(
            "histogram",
            "emulator/tests/mutants/histogram.cu",
            None,
            vec![histogram(64 * 13 + 37, 2), histogram(64 * 6, 2), histogram(1, 2), histogram(300, 1)],
        ),
    ]
}

const MATMUL_STAGE: u32 = 12_288;

/// More steps than stages; then all remainders of tiles, in the first steps and in later ones.
fn matmuls() -> Vec<Case> {
    let mut cases = vec![matmul(40, 72, 264)];
    for j in 0..4 {
        let n = [72, 80, 88, 96][j as usize];
        cases.push(matmul(20 + j, n, 8 + 16 * j));
        cases.push(matmul(4 + 17 * j, n, 136 + 16 * j));
        cases.push(matmul(33 + 10 * j, 8 * (j + 1), 72 + 16 * j));
    }
    cases
}

fn matmul(m: u32, n: u32, k: u32) -> Case {
    let (a, b) = (whole(1, 8, m * k), whole(2, 8, k * n));
    let dot = |i: u32| (0..k).map(|l| a[(i / n * k + l) as usize] * b[(l * n + i % n) as usize]).sum();
    let c: Vec<f32> = (0..m * n).map(dot).collect();
    let launched = Launched {
        kernel: "matmul",
        grid: [n.div_ceil(64), m.div_ceil(32), 1],
        threads: 128,
        shared: 3 * MATMUL_STAGE,
        arguments: vec![At(0), At(1), At(2), U32(m), U32(n), U32(k)],
    };
    Case {
        buffers: vec![
            Buffer::input(bytes_bf16(&a)),
            Buffer::input(bytes_bf16(&b)),
            Buffer::output(bytes_f32(&c)),
        ],
        launches: vec![launched],
    }
}

/// The largest element of a row is in another warp's columns each time.
fn softmax(c: u32) -> Case {
    let (rows, floor) = (3, 2.0);
    let mut x = whole(3, 6, rows * c);
    (0..rows).for_each(|row| x[(row * c + (row * 37 + 3) % c) as usize] = 7.0);
    (0..rows).for_each(|row| x[(row * c + c - 1) as usize] = 7.0);
    let (mut y, mut above) = (Vec::new(), Vec::new());
    for row in x.chunks_exact(c as usize) {
        let powers: Vec<f32> = row.iter().map(|x| (x - 7.0).exp2()).collect();
        let sum = powers.iter().sum::<f32>(); // below 2^8, in units of 2^-13
        y.extend(powers.iter().map(|power| power / sum));
        above.push(row.iter().filter(|x| **x > floor).fold(0, |count, _| count + 1));
    }
    let launched = Launched {
        kernel: "softmax",
        grid: [rows, 1, 1],
        threads: 128,
        shared: 0,
        arguments: vec![At(0), At(1), At(2), F32(floor), U32(c)],
    };
    Case {
        buffers: vec![
            Buffer::input(bytes_f32(&x)),
            Buffer::output(bytes_f32(&y)),
            Buffer::output(bytes_u32(&above)),
        ],
        launches: vec![launched],
    }
}

fn transpose(m: u32, n: u32) -> Case {
    let x = whole(4, 1000, m * n);
    let y: Vec<f32> = (0..m * n).map(|i| x[(i % m * n + i / m) as usize]).collect();
    let launched = Launched {
        kernel: "transpose",
        grid: [n.div_ceil(32), m.div_ceil(32), 1],
        threads: 128,
        shared: 0,
        arguments: vec![At(0), At(1), U32(m), U32(n)],
    };
    Case {
        buffers: vec![Buffer::input(bytes_f32(&x)), Buffer::output(bytes_f32(&y))],
        launches: vec![launched],
    }
}

fn histogram(n: u32, blocks: u32) -> Case {
    let x: Vec<u32> = noise(5).take(n as usize).map(|n| n % 64).collect();
    let mut bins = vec![0; 64];
    x.iter().for_each(|&value| bins[value as usize] += 1);
    let parts = Launched {
        kernel: "histogram_parts",
        grid: [blocks, 1, 1],
        threads: 128,
        shared: 0,
        arguments: vec![At(0), U32(n), At(1)],
    };
    let finish = Launched {
        kernel: "histogram_finish",
        grid: [1, 1, 1],
        threads: 64,
        shared: 0,
        arguments: vec![At(1), U32(blocks), At(2)],
    };
    Case {
        buffers: vec![
            Buffer::input(bytes_u32(&x)),
            Buffer { bytes: 64 * 4 * blocks as usize, ..Buffer::default() },
            Buffer::output(bytes_u32(&bins)),
        ],
        launches: vec![parts, finish],
    }
}
