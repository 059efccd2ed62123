//! Softmax cross-entropy over rows: loss, gradient in place, which row counts as correct.

use crate::common::real::{Real, assert_allowed, assert_within, values};
use half::{bf16, f16};
use smolten::dtype::Element;
use smolten::ops::cross_entropy::{RowLoss, rows, rows_into};

/// Probabilities and log-sum-exp of a row. Any shift gives the same, so the highest logit may be taken as exact.
fn softmax(row: &[f32]) -> (Vec<Real>, Real) {
    let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<Real> = row.iter().map(|&l| (Real::of(l) - Real::of(highest)).exp()).collect();
    let total = Real::sum(exps.iter().copied());
    (exps.into_iter().map(|e| e / total).collect(), total.ln())
}

fn check(logits: &[f32], vocab: usize, targets: &[u32]) {
    let n = targets.len();
    let highest = |r: usize| logits[r * vocab..][..vocab].iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let want: Vec<Real> = (0..n)
        .map(|r| {
            let best = Real::of(logits[r * vocab + targets[r] as usize]);
            softmax(&logits[r * vocab..][..vocab]).1 - (best - Real::of(highest(r)))
        })
        .collect();
    let entropy = |r: usize| {
        let row = &logits[r * vocab..][..vocab];
        let (p, log_sum) = softmax(row);
        let terms = p.into_iter().zip(row).filter(|(p, _)| p.value > 0.0);
        log_sum - Real::sum(terms.map(|(p, &l)| p * (Real::of(l) - Real::of(highest(r)))))
    };
    let want_entropies: Vec<Real> = (0..n).map(entropy).collect();
    for weight in [None, Some(1.0f32), Some(0.037)] {
        let mut work = logits.to_vec();
        let got = rows(&mut work, vocab, targets, weight);
        let losses: Vec<f32> = got.iter().map(|r| r.loss).collect();
        assert_allowed("loss", &losses, &want);
        let entropies: Vec<f32> = got.iter().map(|r| r.entropy).collect();
        assert_allowed("entropy", &entropies, &want_entropies);
        for (r, row) in got.iter().enumerate() {
            let row_logits = &logits[r * vocab..][..vocab];
            let first_best = row_logits.iter().position(|&l| l == highest(r)).unwrap();
            assert_eq!(row.correct, first_best == targets[r] as usize, "row {r}");
        }
        let Some(weight) = weight else {
            assert_eq!(work, logits, "logits must stay without a gradient");
            continue;
        };
        let mut gradient = Vec::new();
        for r in 0..n {
            for (i, p) in softmax(&logits[r * vocab..][..vocab]).0.into_iter().enumerate() {
                let scaled = p * Real::of(weight);
                gradient.push(if i == targets[r] as usize { scaled - Real::of(weight) } else { scaled });
            }
        }
        assert_allowed("gradient", &work, &gradient);
        check_into::<f32>(logits, vocab, targets, weight, &got, &gradient);
        check_into::<bf16>(logits, vocab, targets, weight, &got, &gradient);
        check_into::<f16>(logits, vocab, targets, weight, &got, &gradient);
    }
}

/// Into another buffer: the same losses in every bit, and the gradient rounded once to A.
fn check_into<A: Element>(
    logits: &[f32],
    vocab: usize,
    targets: &[u32],
    weight: f32,
    losses: &[RowLoss],
    gradient: &[Real],
) {
    let mut got = vec![A::from_f32(f32::NAN); logits.len()];
    assert_eq!(rows_into(logits, &mut got, vocab, targets, weight), losses);
    assert_within("gradient elsewhere", &got, gradient);
}

/// Long rows, whose exponentials are kept by each thread from one row to the next.
#[test]
fn thread_count_changes_no_bit() {
    let (vocab, n) = (5003, 37);
    let logits = values::<f32>(n * vocab, 9.0, 4);
    let targets: Vec<u32> = (0..n).map(|r| u32::try_from(r * 131 % vocab).unwrap()).collect();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut gradient = vec![bf16::NAN; n * vocab];
        let losses = pool.install(|| rows_into(&logits, &mut gradient, vocab, &targets, 0.01));
        (losses, gradient.into_iter().map(bf16::to_bits).collect::<Vec<_>>())
    };
    let one = run(1);
    assert!(one == run(2) && one == run(5));
}

#[test]
fn loss_and_gradient_over_a_grid_of_widths() {
    for (vocab, n) in [(1, 1), (2, 3), (15, 2), (16, 5), (17, 1), (64, 9), (65, 63), (322, 40), (1000, 3)] {
        for scale in [1.0, 20.0] {
            let seed = vocab as u64 + 1;
            let logits = values::<f32>(n * vocab, scale, seed);
            let targets: Vec<u32> = (0..n).map(|r| u32::try_from((r * 31 + 7) % vocab).unwrap()).collect();
            check(&logits, vocab, &targets);
        }
    }
    // The ends of a row.
    check(&values::<f32>(2 * 35, 3.0, 9), 35, &[0, 34]);
    assert_eq!(rows(&mut [], 7, &[], Some(1.0)), []);
}

#[test]
fn huge_logits() {
    let mut logits = values::<f32>(4 * 20, 1e4, 3);
    logits[20] = 3e38;
    logits[21] = 2.9e38;
    logits[41] = f32::NEG_INFINITY;
    check(&logits[..20], 20, &[3]);
    for (row, target, loss) in [(1, 0, 0.0), (1, 1, 1e37), (2, 1, f32::INFINITY)] {
        let mut work = logits[row * 20..][..20].to_vec();
        let got = rows(&mut work, 20, &[target], Some(1.0))[0];
        assert!((got.loss - loss).abs() <= 1e-6 * loss || got.loss == loss, "{got:?}");
        assert!(work.iter().all(|g| g.is_finite()), "{work:?}");
        assert!(work.iter().sum::<f32>().abs() < 1e-6);
    }
}

#[test]
fn the_first_of_equal_logits_is_the_prediction() {
    let mut logits = vec![0.0f32; 3 * 40];
    (logits[5], logits[33]) = (2.0, 2.0);
    (logits[40 + 5], logits[40 + 33]) = (2.0, 2.0);
    let got: Vec<bool> =
        rows(&mut logits, 40, &[5, 33, 0], None).iter().map(|r: &RowLoss| r.correct).collect();
    assert_eq!(got, [true, false, true]);
}

/// A logit that is no number must reach the loss, and through the gradient the norm that skips the step.
#[test]
fn nan_is_not_hidden() {
    for at in [0, 3, 20] {
        let mut logits = vec![0.5f32; 21];
        logits[at] = f32::NAN;
        let got = rows(&mut logits, 21, &[3], Some(1.0))[0];
        assert!(got.loss.is_nan() && logits[3].is_nan(), "NaN at {at}: {got:?}");
    }
}
