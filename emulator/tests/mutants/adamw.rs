//! The engine's AdamW kernels, and the same step in plain Rust: every operation rounded by itself, codes by search.

use super::sample::Argument::{Buffer as At, U32};
use super::sample::{Buffer, Case, Launched, Sample};
use super::small::{bytes_bf16, bytes_f16, bytes_f32, noise, whole};

/// Elements of a block, and where its parts go in `Weight` of `kernels/adamw.cu`.
const BLOCK: usize = 256;
const WEIGHT: usize = 72;

const LOWEST: u32 = (127 - 23) << 23;
const NEGATIVE: u32 = 2048;

/// beta1, beta2, their complements, step, eps, root, decay.
const SCALARS: [f32; 8] = [0.9, 0.999, 0.1, 0.001, -0.01, 1e-8, 0.05, 0.999];
/// So that the new moments are the gradient and its square.
const FORGETFUL: [f32; 8] = [0.0, 0.0, 1.0, 1.0, -0.01, 1e-8, 0.05, 0.999];

/// A step.
struct Step {
    quantised: bool,
    scalars: [f32; 8],
    scale: f32,
    skip: bool,
    /// Copies of the weights are f16 rather than bf16.
    f16: bool,
    /// The weight with neither copy nor decay.
    plain: usize,
}

/// All of them.
pub fn samples() -> Vec<Sample> {
    let sample = |name, kernel, quantised| {
        let step = || Step { quantised, scalars: SCALARS, scale: 0.5, skip: false, f16: false, plain: 1 };
        let cases = vec![
            case(kernel, &step(), &[552, 264, 2056]),
            case(kernel, &Step { skip: true, ..step() }, &[552, 264, 2056]),
            case(kernel, &Step { f16: true, ..step() }, &[8, 256, 16]),
            case(kernel, &Step { f16: true, ..step() }, &[264]),
            case(kernel, &step(), &[40]),
            case(kernel, &step(), &[264, 40]),
            case(kernel, &step(), &[2056]),
            case(kernel, &Step { plain: 0, ..step() }, &[256]),
            case(kernel, &Step { scalars: FORGETFUL, scale: 1.0, ..step() }, &[512]),
        ];
        Sample::new(name, "kernels/adamw.cu", 80, cases)
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
            std::cmp::Ordering::Equal if b.is_multiple_of(2) => b,
            _ => a,
        };
        u8::try_from(allowed.reduce(better).expect("there are some")).expect("a code")
    }

    /// Of all magnitudes that agree but for their low bits: the lowest, its code, and how far up that code goes.
    fn bucket(&self, bucket: u32) -> (u32, u8, u32) {
        let is_negative = self.values[0] < 0.0 && bucket >= NEGATIVE;
        let first = LOWEST + ((bucket - if is_negative { NEGATIVE } else { 0 }) << self.shift);
        let code = |low: u32| {
            let magnitude = f32::from_bits((first + low).min(127 << 23));
            self.nearest(if is_negative { -magnitude } else { magnitude })
        };
        let (mut same, mut end) = (0, (1 << self.shift) - 1);
        while same < end {
            let middle = u32::midpoint(same, end + 1);
            if code(middle) == code(0) { same = middle } else { end = middle - 1 }
        }
        (first, code(0), same)
    }

    /// As the kernel wants it.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = bytes_f32(&self.values);
        for bucket in 0..4096 {
            let (_, code, same) = self.bucket(bucket);
            bytes.extend((same << 8 | u32::from(code)).to_le_bytes());
        }
        bytes
    }

    /// Magnitudes below one where the code changes: the last one before, and the first one after.
    fn edges(&self) -> Vec<[f32; 2]> {
        let last = |bucket: u32| {
            let (first, _, same) = self.bucket(bucket);
            (same + 1 < 1 << self.shift).then(|| [same, same + 1].map(|low| f32::from_bits(first + low)))
        };
        (0..((127 << 23) - LOWEST) >> self.shift).filter_map(last).collect()
    }
}

/// Gradients for which new moments of a forgetful step, and so what is quantised, lie at edges of both books: the
/// first moment or the second, before or after the edge, at each place in a lane; and zeros, and numbers below all edges.
/// Each block has a one.
fn at_edges(n: usize) -> Vec<f32> {
    let root = |square: f32| {
        let near = square.sqrt();
        [near.next_down(), near, near.next_up()].into_iter().find(|x| x * x == square)
    };
    let of_m = Book::signed().edges().concat();
    let of_v: Vec<f32> = Book::unsigned().edges().concat().into_iter().filter_map(root).collect();
    let gradient = |i: usize| {
        let (lane, pick) = (i / 8, i * 7 + i / 16);
        match lane % 4 {
            _ if i.is_multiple_of(BLOCK) => 1.0,
            _ if lane % 16 == 5 => 0.0,
            _ if lane % 16 == 13 => -1e-9,
            0 => of_m[pick % of_m.len()],
            2 => -of_m[pick % of_m.len()],
            _ => of_v[pick % of_v.len()],
        }
    };
    (0..n).map(gradient).collect()
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn magnitudes(per_octave: u32) -> impl Iterator<Item = f32> {
    (0..).map(move |j: u32| {
        (1.0 + (j % per_octave) as f32 / per_octave as f32)
            * f32::from_bits((j / per_octave + 127 - 16) << 23)
    })
}

/// One element under the rule of bitsandbytes or of torch: p, m, v.
fn update(of: &Step, decays: bool, grad: f32, [p, m, v]: [f32; 3]) -> [f32; 3] {
    let [beta1, beta2, not_beta1, not_beta2, step, eps, root, decay] = of.scalars;
    let decay = if decays { decay } else { 1.0 };
    let g = grad * of.scale;
    let new_v = beta2 * v + not_beta2 * g * g;
    if of.quantised {
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
            let values: Vec<f32> =
                whole(seed, 50, u32::try_from(n).expect("small")).iter().map(|x| x.abs()).collect();
            return Self { bytes: bytes_f32(&values), values, absmax: vec![] };
        };
        let bytes: Vec<u8> = noise(seed).take(n).map(|x| x.to_le_bytes()[0]).collect();
        let absmax: Vec<f32> = whole(seed + 1, 9, u32::try_from(n.div_ceil(BLOCK)).expect("small"))
            .iter()
            .map(|x| x.abs())
            .collect();
        let value = |i: usize| book.values[usize::from(bytes[i])] * absmax[i / BLOCK];
        Self { values: (0..n).map(value).collect(), bytes, absmax }
    }

    fn of(book: Option<&Book>, values: Vec<f32>) -> Self {
        let Some(book) = book else {
            return Self { bytes: bytes_f32(&values), values, absmax: vec![] };
        };
        let largest = |block: &[f32]| block.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
        let absmax: Vec<f32> = values.chunks(BLOCK).map(largest).collect();
        let code = |i: usize| {
            book.nearest(values[i] / if absmax[i / BLOCK] == 0.0 { 1.0 } else { absmax[i / BLOCK] })
        };
        Self { bytes: (0..values.len()).map(code).collect(), values, absmax }
    }
}

/// Pointers of a weight's entry by number, each with the contents before and after.
type Parts = Vec<(usize, Vec<u8>, Vec<u8>)>;

/// The k-th weight of a step, with moments of full precision if it is the third.
fn weight(step: &Step, k: usize, n: usize) -> Parts {
    let books = [Book::signed(), Book::unsigned()];
    let books = [0, 1].map(|i| (step.quantised && k < 2).then_some(&books[i]));
    let (seed, count) = (10 * u32::try_from(k).expect("small"), u32::try_from(n).expect("small"));
    let old = [0, 1].map(|i| Moments::noise(books[i], seed + [2, 5][i], n));
    let p = whole(seed, 99, count);
    let g = if step.scalars == FORGETFUL { at_edges(n) } else { whole(seed + 1, 9, count) };
    let decays = k != step.plain;
    let element = |i: usize| update(step, decays, g[i], [p[i], old[0].values[i], old[1].values[i]]);
    let new: Vec<[f32; 3]> = (0..n).map(element).collect();
    let column = |c: usize| new.iter().map(|row| row[c]).collect::<Vec<f32>>();
    let copy = if step.f16 { bytes_f16 } else { bytes_bf16 };
    let mut fields = vec![(0, bytes_f32(&p), bytes_f32(&column(0)))];
    if decays {
        fields.push((1, vec![0; 2 * n], copy(&column(0))));
    }
    fields.push((2, bytes_f32(&g), bytes_f32(&g)));
    for i in 0..2 {
        let new = Moments::of(books[i], column(1 + i));
        fields.push((3 + i, old[i].bytes.clone(), new.bytes));
        if books[i].is_some() {
            fields.push((5 + i, bytes_f32(&old[i].absmax), bytes_f32(&new.absmax)));
        }
    }
    fields
}

fn case(kernel: &'static str, step: &Step, sizes: &[usize]) -> Case {
    let mut params = vec![0; 28];
    params.extend(bytes_f32(&step.scalars));
    let norm =
        [&1.0_f64.to_le_bytes()[..], &step.scale.to_le_bytes(), &u32::from(step.skip).to_le_bytes()].concat();
    let books = [Book::signed().bytes(), Book::unsigned().bytes()].concat();
    let mut buffers = vec![Buffer::input(params), Buffer::input(norm), Buffer::input(books)];
    let (mut entries, mut pointers, mut blocks) = (Vec::new(), Vec::new(), 0);
    for (k, &n) in sizes.iter().enumerate() {
        for (field, old, new) in weight(step, k, n) {
            pointers.push((WEIGHT * k + 8 * field, buffers.len()));
            let expected = if step.skip { old.clone() } else { new };
            buffers.push(Buffer { contents: Some(old), ..Buffer::output(expected) });
        }
        entries.extend([0; 56]);
        entries.extend((n as u64).to_le_bytes());
        entries.extend([blocks, u32::from(k != step.plain)].map(u32::to_le_bytes).concat());
        blocks += u32::try_from(n.div_ceil(BLOCK)).expect("small");
    }
    buffers.push(Buffer { pointers, ..Buffer::input(entries) });
    let count = u32::try_from(sizes.len()).expect("small");
    let weights = At(buffers.len() - 1);
    let arguments = vec![At(0), At(1), weights, U32(count), U32(blocks), U32(u32::from(step.f16)), At(2)];
    Case { buffers, launches: vec![Launched { kernel, grid: [1, 1, 1], threads: 256, shared: 0, arguments }] }
}
