//! Cross-entropy, against its formula in f64.

use super::engine::{INVERSE_DENOMINATOR, LOSS_SCALE, Step, word};
use super::near::{Element, Near, TINY};
use super::sample::Argument::{Buffer as At, U32, U64};
use super::sample::{Argument, Buffer, Case, Launched, Sample};
use super::small::{bytes_f32, bytes_u32, noise, whole};

/// Bounds the relative error of what is done in f32: three exponentials whose arguments are off by a rounding, and sums of
/// twice eight numbers, by halving, and of sixteen.
const F32: f64 = 1.0 / (1 << 18) as f64;

/// What nobody writes over.
const OLD: f32 = 77.0;

/// A chunk of rows, of which the supervised positions leave some.
struct Chunk {
    kernel: &'static str,
    supervised: usize,
    first: usize,
    rows: usize,
    vocab: usize,
    /// Of the gradient, if there is one.
    element: Option<Element>,
    /// How far the logits are apart.
    step: f32,
    like: Like,
}

/// What rows are like.
#[derive(Clone, Copy)]
enum Like {
    /// The target is the best one; or behind another that is as good, or before; or no number.
    Mixed,
    /// At each place of a thread, the target alone; behind another that is as good; and one that is better.
    Ties,
    /// All minus infinity but the target, in each half of the lanes, or in another warp.
    Alone,
}

/// All of them.
pub fn samples() -> Vec<Sample> {
    let bf16 = Chunk {
        kernel: "cross_entropy_bf16",
        supervised: 7,
        first: 5,
        rows: 7,
        vocab: 4120,
        element: Some(Element::Bf16),
        step: 1.0,
        like: Like::Mixed,
    };
    let cases = |of: &Chunk| {
        vec![
            loss(of),
            loss(&Chunk { supervised: 5, first: 0, vocab: 8, ..*of }),
            loss(&Chunk { supervised: 11, first: 3, vocab: 40, step: 60.0, ..*of }),
            loss(&Chunk { supervised: 3, first: 3, vocab: 264, ..*of }),
            loss(&Chunk { supervised: 7, first: 5, vocab: 1032, ..*of }),
            loss(&Chunk { element: None, vocab: 264, ..*of }),
            loss(&Chunk { supervised: 11, first: 4, vocab: 264, ..*of }),
            loss(&Chunk { supervised: 8, first: 0, rows: 8, vocab: 40, step: 60.0, like: Like::Ties, ..*of }),
            loss(&Chunk {
                supervised: 24,
                first: 8,
                rows: 16,
                vocab: 40,
                step: 60.0,
                like: Like::Ties,
                ..*of
            }),
            loss(&Chunk { supervised: 7, first: 0, vocab: 520, step: 1e32, like: Like::Alone, ..*of }),
        ]
    };
    let file = "kernels/cross_entropy.cu";
    vec![
        Sample::new("cross_entropy", file, 80, cases(&bf16)),
        Sample::new("cross_entropy finish", file, 80, [700, 256, 3, 0].map(finish).into()),
    ]
}

/// Logits of a row, and its target.
fn row(chunk: &Chunk, i: usize) -> (Vec<f32>, usize) {
    let &Chunk { vocab, step, like, .. } = chunk;
    let mut logits: Vec<f32> = whole(word(i), 9, word(vocab)).iter().map(|x| x * step / 4.0).collect();
    let highest = 5.0 * step;
    if vocab > 4104 {
        // Threads that go on have the largest ones, and larger ones in their second turn.
        logits[24..4096].iter_mut().for_each(|l| *l -= 30.0 * step);
        logits[4096..].iter_mut().for_each(|l| *l += 2.0 * step);
    } else if i.is_multiple_of(2) {
        // Warps have larger and larger ones, or smaller and smaller ones.
        (1..=vocab / 256).for_each(|w| logits[256 * w..].iter_mut().for_each(|l| *l += step));
    } else {
        (1..=vocab / 256).for_each(|w| logits[256 * w..].iter_mut().for_each(|l| *l -= step));
    }
    let place = |salt: u32| noise(word(i) + salt).nth(5).expect("endless") as usize % vocab;
    let (target, other) = match like {
        Like::Mixed if vocab > 4104 => (place(100), 9),
        Like::Mixed => (place(100), (place(100) + 1 + place(200) % (vocab - 1)) % vocab),
        Like::Ties => (16 + i % 8, [16, 15, 24][i / 8] + i % 8),
        Like::Alone => ([128, 64, 32, 16, 8, 256, 512][i], 0),
    };
    match like {
        Like::Ties => (logits[target], logits[other]) = (highest, [highest, highest, 2.0 * highest][i / 8]),
        Like::Alone => {
            logits.fill(f32::NEG_INFINITY);
            logits[target] = highest;
        }
        Like::Mixed => match i % 5 {
            0 => logits[target] = highest,
            1 => (logits[target], logits[other]) = (highest - 0.5 * step, highest),
            2 => (logits[target], logits[other]) = (highest, highest),
            3 => (logits[target], logits[(target + 1) % vocab]) = (highest, highest),
            _ => logits[target] = f32::NAN,
        },
    }
    if matches!(like, Like::Mixed) && i.is_multiple_of(2) && target >= 8 {
        logits[..8].fill(f32::NEG_INFINITY);
    }
    (logits, target)
}

/// What a row of logits makes.
struct Row {
    highest: f32,
    /// Of the exponentials of what they are below the highest.
    total: f64,
    loss: f64,
    /// No logit is above the target's, none before it as high.
    is_correct: bool,
    /// Of the softmax, and how far off it may be.
    entropy: (f64, f64),
}

impl Row {
    fn new(logits: &[f32], target: usize) -> Self {
        let (best, is_number) = (logits[target], logits.iter().all(|l| !l.is_nan()));
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (mut total, mut weighted) = (0.0, 0.0);
        for d in logits.iter().map(|l| f64::from(l - highest)).filter(|d| *d > -700.0) {
            (total, weighted) = (total + d.exp(), weighted + d * d.exp());
        }
        if !is_number {
            total = f64::NAN;
        }
        let beats = |(v, &l): (usize, &f32)| l > best || (l == best && v < target);
        Self {
            highest,
            total,
            loss: total.ln() - f64::from(best - highest),
            is_correct: is_number && !logits.iter().enumerate().any(beats),
            entropy: (total.ln() - weighted / total, F32 * (1.0 + total.ln() - 2.0 * weighted / total)),
        }
    }
}

/// Sums of a window so far: losses, entropies, right ones.
const SUMS: ([f64; 2], u64) = ([2.5, 4.25], 40);

fn sums(of: [f64; 2], correct: u64) -> Vec<u8> {
    [of[0].to_le_bytes(), of[1].to_le_bytes(), correct.to_le_bytes()].concat()
}

fn loss(chunk: &Chunk) -> Case {
    let &Chunk { kernel, supervised, first, rows, vocab, element, .. } = chunk;
    let count = supervised.saturating_sub(first).min(rows);
    let weight = f64::from(INVERSE_DENOMINATOR * LOSS_SCALE);
    let mut losses = Near::exactly(Element::F32, &vec![OLD; supervised]);
    let mut entropies = Near::exactly(Element::F32, &vec![OLD; supervised]);
    let mut gradient = Near::empty(element.unwrap_or(Element::F32));
    let (mut logits, mut targets, mut correct) = (Vec::new(), vec![word(vocab); 2 * supervised], SUMS.1);
    for i in 0..count {
        let (of_row, target) = row(chunk, first + i);
        let Row { highest, total, loss, is_correct, entropy } = Row::new(&of_row, target);
        (losses.values[first + i], losses.within[first + i]) = (loss, F32 * (1.0 + loss.abs()));
        (entropies.values[first + i], entropies.within[first + i]) = entropy;
        correct += u64::from(is_correct);
        for (v, &l) in of_row.iter().enumerate() {
            let p = weight * f64::from(l - highest).exp() / total;
            let exact = p - if v == target { weight } else { 0.0 };
            gradient.push(exact, F32 * (p + weight) + gradient.element.unit() * exact.abs() + TINY);
        }
        targets[2 * (first + i)] = word(target);
        logits.extend(of_row);
    }
    // Positions in the loss are every other one, the last of the chunk first.
    let loss_rows: Vec<u32> = (0..supervised).map(|i| word(2 * i)).collect();
    let input = |logits: &[f32]| Buffer::input(bytes_f32(logits));
    let mut arguments: Vec<Argument> = (0..7).map(At).collect();
    if element.is_none() {
        arguments[2] = U64(0);
    }
    arguments.extend([first, rows, vocab, 0].map(|n| U32(word(n))));
    arguments.push(At(7));
    let old = || Some(bytes_f32(&vec![OLD; supervised]));
    Case {
        buffers: vec![
            Step { supervised, ..Step::default() }.input(),
            Buffer { expected: Some(bytes_f32(&logits)), ..input(&logits) },
            element.map_or_else(Buffer::default, |_| Buffer::output_near(gradient)),
            Buffer::input(bytes_u32(&targets)),
            Buffer::input(bytes_u32(&loss_rows)),
            Buffer { contents: old(), ..Buffer::output_near(losses) },
            Buffer { contents: Some(sums(SUMS.0, SUMS.1)), ..Buffer::output(sums(SUMS.0, correct)) },
            Buffer { contents: old(), ..Buffer::output_near(entropies) },
        ],
        launches: vec![Launched { kernel, grid: [word(rows), 1, 1], threads: 512, shared: 0, arguments }],
    }
}

fn finish(supervised: usize) -> Case {
    let [losses, entropies] = [9, 10].map(|seed| whole(seed, 99, word(supervised)));
    let total = |of: &[f32]| of.iter().map(|&x| f64::from(x)).sum::<f64>();
    let after = sums([SUMS.0[0] + total(&losses), SUMS.0[1] + total(&entropies)], SUMS.1);
    let launched = Launched {
        kernel: "cross_entropy_finish",
        grid: [1, 1, 1],
        threads: 256,
        shared: 0,
        arguments: (0..4).map(At).collect(),
    };
    Case {
        buffers: vec![
            Step { supervised, ..Step::default() }.input(),
            Buffer::input(bytes_f32(&losses)),
            Buffer::input(bytes_f32(&entropies)),
            Buffer { contents: Some(sums(SUMS.0, SUMS.1)), ..Buffer::output(after) },
        ],
        launches: vec![launched],
    }
}
