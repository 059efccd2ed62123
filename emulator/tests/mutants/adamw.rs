//! The engine's AdamW kernels, and the same step in plain Rust: every operation rounded by itself, codes by search.

use super::sample::Argument::{Buffer as At, U32};
use super::sample::{Buffer, Case, Launched, Sample};
use super::small::{bytes_bf16, bytes_f32, noise, whole};

/// Elements of a block, and where its parts go in `Weight` of `kernels/adamw.cu`.
const BLOCK: usize = 256;
const WEIGHT: usize = 72;

const LOWEST: u32 = (127 - 23) << 23;
const NEGATIVE: u32 = 2048;

/// 0.1, 0.001 and so on as the kernels get them: beta1, beta2, their complements, step, eps, root, decay.
const SCALARS: [f32; 8] = [0.9, 0.999, 0.1, 0.001, -0.01, 1e-8, 0.05, 0.999];
const SCALE: f32 = 0.5;

/// All of them.
pub fn samples() -> Vec<Sample> {
    let sample = |name, kernel, quantised| Sample {
        name,
        file: "kernels/adamw.cu",
        target: 80,
        stage: None,
        cases: [[552, 264, 2056], [8, 256, 16]]
            .iter()
            .flat_map(|sizes| [false, true].map(|skip| case(kernel, quantised, sizes, skip)))
            .collect(),
    };
    vec![sample("adamw 8-bit", "adamw_8bit", true), sample("adamw", "adamw", false)]
}

/// Values in ascending order; `per_octave` to each power of two from 2^-16 on, and as many negative ones.
struct Book {
    values: Vec<f32>,
    shift: u32,
}

impl Book {
    fn signed() -> Self {
        let magnitudes: Vec<f32> = magnitudes(8).take(128).collect();
        let negative = magnitudes[..127].iter().rev().map(|x| -x);
        Self { values: negative.chain([0.0]).chain(magnitudes.iter().copied()).collect(), shift: 17 }
    }

    fn unsigned() -> Self {
        Self { values: [0.0].into_iter().chain(magnitudes(16).take(255)).collect(), shift: 16 }
    }

    /// Least distance, a tie to the even code, a negative number among negative values only.
    fn nearest(&self, x: f32) -> u8 {
        let distance = |code: usize| (f64::from(x) - f64::from(self.values[code])).abs();
        let allowed = (0..256).filter(|&code| x >= 0.0 || self.values[code] < 0.0);
        let better = |a: usize, b: usize| match distance(a).total_cmp(&distance(b)) {
            std::cmp::Ordering::Greater => b,
            std::cmp::Ordering::Equal if b % 2 == 0 => b,
            _ => a,
        };
        u8::try_from(allowed.reduce(better).expect("there are some")).expect("a code")
    }

    /// As the kernel wants it: of all numbers that agree but for their low bits, the code of the lowest magnitude
    /// and the last one that takes it.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = bytes_f32(&self.values);
        let signed = self.values[0] < 0.0;
        for bucket in 0..4096 {
            let is_negative = signed && bucket >= NEGATIVE;
            let first = LOWEST + ((bucket - if is_negative { NEGATIVE } else { 0 }) << self.shift);
            let code = |low: u32| {
                let magnitude = f32::from_bits((first + low).min(127 << 23));
                self.nearest(if is_negative { -magnitude } else { magnitude })
            };
            let (mut same, mut end) = (0_u32, (1 << self.shift) - 1);
            while same < end {
                let middle = (same + end).div_ceil(2);
                if code(middle) == code(0) { same = middle } else { end = middle - 1 }
            }
            bytes.extend((same << 8 | u32::from(code(0))).to_le_bytes());
        }
        bytes
    }
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn magnitudes(per_octave: u32) -> impl Iterator<Item = f32> {
    (0..).map(move |j: u32| {
        (1.0 + (j % per_octave) as f32 / per_octave as f32) * f32::from_bits((j / per_octave + 127 - 16) << 23)
    })
}

/// One element under the rule of bitsandbytes or of torch: p, m, v.
fn update(quantised: bool, decays: bool, grad: f32, [p, m, v]: [f32; 3]) -> [f32; 3] {
    let [beta1, beta2, not_beta1, not_beta2, step, eps, root, decay] = SCALARS;
    let decay = if decays { decay } else { 1.0 };
    let g = grad * SCALE;
    let new_v = beta2 * v + not_beta2 * g * g;
    if quantised {
        let new_m = beta1 * m + not_beta1 * g;
        [(p + step * (new_m / (new_v.sqrt() + eps))) * decay, new_m, new_v]
    } else {
        let new_m = m + not_beta1 * (g - m);
        [p * decay + step * new_m / (new_v.sqrt() / root + eps), new_m, new_v]
    }
}

/// Moments as stored: bytes, and each block's largest magnitude.
struct Moments {
    values: Vec<f32>,
    bytes: Vec<u8>,
    absmax: Vec<f32>,
}

impl Moments {
    /// Codes that follow no pattern, or numbers.
    fn noise(book: Option<&Book>, seed: u32, n: usize) -> Self {
        let Some(book) = book else {
            let values: Vec<f32> = whole(seed, 50, u32::try_from(n).expect("small")).iter().map(|x| x.abs()).collect();
            return Self { bytes: bytes_f32(&values), values, absmax: vec![] };
        };
        let bytes: Vec<u8> = noise(seed).take(n).map(|x| x.to_le_bytes()[0]).collect();
        let absmax: Vec<f32> =
            whole(seed + 1, 9, u32::try_from(n.div_ceil(BLOCK)).expect("small")).iter().map(|x| x.abs()).collect();
        let value = |i: usize| book.values[usize::from(bytes[i])] * absmax[i / BLOCK];
        Self { values: (0..n).map(value).collect(), bytes, absmax }
    }

    fn of(book: Option<&Book>, values: Vec<f32>) -> Self {
        let Some(book) = book else {
            return Self { bytes: bytes_f32(&values), values, absmax: vec![] };
        };
        let largest = |block: &[f32]| block.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
        let absmax: Vec<f32> = values.chunks(BLOCK).map(largest).collect();
        let code = |i: usize| book.nearest(values[i] / if absmax[i / BLOCK] == 0.0 { 1.0 } else { absmax[i / BLOCK] });
        Self { bytes: (0..values.len()).map(code).collect(), values, absmax }
    }
}

/// Three weights: the first has a copy in bf16, the second does not decay, the last has moments of full precision.
fn case(kernel: &'static str, quantised: bool, sizes: &[usize; 3], skip: bool) -> Case {
    let (signed, unsigned) = (Book::signed(), Book::unsigned());
    let mut step = vec![0; 32];
    step.extend(bytes_f32(&SCALARS));
    let norm = [&1.0_f64.to_le_bytes()[..], &SCALE.to_le_bytes(), &u32::from(skip).to_le_bytes()].concat();
    let books = [signed.bytes(), unsigned.bytes()].concat();
    let mut buffers = vec![Buffer::input(step), Buffer::input(norm), Buffer::default(), Buffer::input(books)];
    let (mut entries, mut pointers, mut blocks) = (Vec::new(), Vec::new(), 0);
    for (k, &n) in sizes.iter().enumerate() {
        let with_codes = quantised && k < 2;
        let books = [&signed, &unsigned].map(|book| with_codes.then_some(book));
        let seed = 10 * u32::try_from(k).expect("small");
        let old = [0, 1].map(|i| Moments::noise(books[i], seed + 2 + 3 * u32::from(i == 1), n));
        let count = u32::try_from(n).expect("small");
        let (p, g) = (whole(seed, 99, count), whole(seed + 1, 9, count));
        let new: Vec<[f32; 3]> =
            (0..n).map(|i| update(quantised, k != 1, g[i], [p[i], old[0].values[i], old[1].values[i]])).collect();
        let column = |c: usize| new.iter().map(|row| row[c]).collect::<Vec<f32>>();
        let [new_m, new_v] = [0, 1].map(|i| Moments::of(books[i], column(1 + i)));
        let mut point = |field: usize, old: Vec<u8>, new: Vec<u8>| {
            pointers.push((WEIGHT * k + 8 * field, buffers.len()));
            let expected = if skip { old.clone() } else { new };
            buffers.push(Buffer { contents: Some(old), ..Buffer::output(expected) });
        };
        point(0, bytes_f32(&p), bytes_f32(&column(0)));
        if k == 0 {
            point(1, bytes_bf16(&p), bytes_bf16(&column(0)));
        }
        point(2, bytes_f32(&g), bytes_f32(&g));
        for (i, (old, new)) in old.iter().zip([new_m, new_v]).enumerate() {
            point(3 + i, old.bytes.clone(), new.bytes);
            if with_codes {
                point(5 + i, bytes_f32(&old.absmax), bytes_f32(&new.absmax));
            }
        }
        entries.extend([0; 56]);
        entries.extend((n as u64).to_le_bytes());
        entries.extend([blocks, u32::from(k != 1)].map(u32::to_le_bytes).concat());
        blocks += u32::try_from(n.div_ceil(BLOCK)).expect("small");
    }
    buffers[2] = Buffer { pointers, ..Buffer::input(entries) };
    let arguments = vec![At(0), At(1), At(2), U32(3), U32(blocks), U32(0), At(3)];
    Case { buffers, launches: vec![Launched { kernel, grid: [1, 1, 1], threads: 256, shared: 0, arguments }] }
}
