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
    /// Of the gradient, if there is one; it replaces the logits where it is f32.
    element: Option<Element>,
    /// How far the logits are apart.
    step: f32,
}

/// All of them.
pub fn samples() -> Vec<Sample> {
    let bf16 = Chunk {
        kernel: "cross_entropy_bf16",
        supervised: 9,
        first: 4,
        rows: 8,
        vocab: 4120,
        element: Some(Element::Bf16),
        step: 1.0,
    };
    let f32 = Chunk { kernel: "cross_entropy_f32", element: Some(Element::F32), ..bf16 };
    let cases = |of: &Chunk| {
        vec![
            loss(of),
            loss(&Chunk { supervised: 5, first: 0, vocab: 8, ..*of }),
            loss(&Chunk { supervised: 11, first: 3, vocab: 40, step: 60.0, ..*of }),
            loss(&Chunk { supervised: 3, first: 3, vocab: 264, ..*of }),
            loss(&Chunk { supervised: 7, first: 5, vocab: 4096, step: 60.0, ..*of }),
            loss(&Chunk { element: None, vocab: 264, ..*of }),
        ]
    };
    let file = "kernels/cross_entropy.cu";
    vec![
        Sample::new("cross_entropy", file, 80, cases(&bf16)),
        Sample::new("cross_entropy in place", file, 80, cases(&f32)),
        Sample::new("cross_entropy finish", file, 80, [700, 256, 3, 0].map(finish).into()),
    ]
}

/// Logits of a row, and its target: the best one; behind another that is as good, or before; or no number.
fn row(chunk: &Chunk, i: usize) -> (Vec<f32>, usize) {
    let mut logits: Vec<f32> = whole(word(i), 9, word(chunk.vocab)).iter().map(|x| x * chunk.step / 4.0).collect();
    let highest = 10.0 * chunk.step / 4.0;
    let place = |salt: u32| noise(word(i) + salt).nth(5).expect("endless") as usize % chunk.vocab;
    let (target, other) = (place(100), (place(100) + 1 + place(200) % (chunk.vocab - 1)) % chunk.vocab);
    match i % 5 {
        0 => logits[target] = highest,
        1 => logits[other] = highest,
        2 => (logits[target], logits[other]) = (highest, highest),
        3 => (logits[target], logits[(target + 1) % chunk.vocab]) = (highest, highest),
        _ => logits[target] = f32::NAN,
    }
    (logits, target)
}

/// Loss, and whether no logit is above the target's, none before it as high.
fn judged(logits: &[f32], target: usize) -> (f64, bool) {
    let best = logits[target];
    let beats = |(v, &l): (usize, &f32)| l > best || (l == best && v < target);
    let total: f64 = logits.iter().map(|&l| f64::from(l - best).exp()).sum();
    (total.ln(), !best.is_nan() && !logits.iter().enumerate().any(beats))
}

/// Sums of a window so far.
const SUMS: (f64, u64) = (2.5, 40);

fn loss(chunk: &Chunk) -> Case {
    let &Chunk { kernel, supervised, first, rows, vocab, element, .. } = chunk;
    let count = supervised.saturating_sub(first).min(rows);
    let weight = f64::from(INVERSE_DENOMINATOR * LOSS_SCALE);
    let mut losses = Near::exactly(Element::F32, &vec![OLD; supervised]);
    let mut gradient = Near::empty(element.unwrap_or(Element::F32));
    let (mut logits, mut targets, mut correct) = (Vec::new(), vec![word(vocab); 2 * supervised], SUMS.1);
    for i in 0..count {
        let (of_row, target) = row(chunk, i);
        let (loss, is_correct) = judged(&of_row, target);
        losses.values[first + i] = loss;
        losses.within[first + i] = F32 * (1.0 + loss.abs()) + F32 * f64::from(4.0 * chunk.step);
        correct += u64::from(is_correct);
        for (v, &l) in of_row.iter().enumerate() {
            let p = weight * (f64::from(l - of_row[target]) - loss).exp();
            let exact = p - if v == target { weight } else { 0.0 };
            gradient.push(exact, F32 * (p + weight) + gradient.element.unit() * exact.abs() + TINY);
        }
        targets[2 * (first + i)] = word(target);
        logits.extend(of_row);
    }
    // Positions in the loss are every other one, the last of the chunk first.
    let loss_rows: Vec<u32> = (0..supervised).map(|i| word(2 * i)).collect();
    let input = |logits: &[f32]| Buffer::input(bytes_f32(logits));
    let in_place = element == Some(Element::F32);
    let mut arguments: Vec<Argument> = (0..7).map(At).collect();
    arguments[2] = if in_place { At(1) } else { element.map_or(U64(0), |_| At(2)) };
    arguments.extend([first, rows, vocab, 0].map(|n| U32(word(n))));
    let [of_logits, of_gradient] = match element {
        Some(Element::F32) => [Buffer { near: Some(gradient), ..input(&logits) }, Buffer::default()],
        Some(_) => [input(&logits), Buffer::output_near(gradient)],
        None => [Buffer { expected: Some(bytes_f32(&logits)), ..input(&logits) }, Buffer::default()],
    };
    let sums = |count: u64| [SUMS.0.to_le_bytes(), count.to_le_bytes()].concat();
    Case {
        buffers: vec![
            Step { supervised, ..Step::default() }.input(),
            of_logits,
            of_gradient,
            Buffer::input(bytes_u32(&targets)),
            Buffer::input(bytes_u32(&loss_rows)),
            Buffer { contents: Some(bytes_f32(&vec![OLD; supervised])), ..Buffer::output_near(losses) },
            Buffer { contents: Some(sums(SUMS.1)), ..Buffer::output(sums(correct)) },
        ],
        launches: vec![Launched { kernel, grid: [word(rows), 1, 1], threads: 512, shared: 0, arguments }],
    }
}

fn finish(supervised: usize) -> Case {
    let losses = whole(9, 99, word(supervised));
    let sum = SUMS.0 + losses.iter().map(|&x| f64::from(x)).sum::<f64>();
    let sums = |sum: f64| [sum.to_le_bytes(), SUMS.1.to_le_bytes()].concat();
    let launched = Launched {
        kernel: "cross_entropy_finish",
        grid: [1, 1, 1],
        threads: 256,
        shared: 0,
        arguments: vec![At(0), At(1), At(2)],
    };
    Case {
        buffers: vec![
            Step { supervised, ..Step::default() }.input(),
            Buffer::input(bytes_f32(&losses)),
            Buffer { contents: Some(sums(SUMS.0)), ..Buffer::output(sums(sum)) },
        ],
        launches: vec![launched],
    }
}
