//! The output head over chunks of logits: loss, accuracy, gradients of input and weight, with any number of rows.

use crate::arena::{Arena, arena};
use crate::common::real::{Real, assert_allowed, reals, values};
use smolten::arena::Tensor;
use smolten::backend::{Backend, BatchBuffers, HeadGradients, LinearCrossEntropy, StepOutput};
use smolten::batch::NO_TARGET;
use smolten::dtype::{DType, Element};
use smolten::ops::loss_scale::LossScale;

const V: usize = 37;
const C: usize = 12;
/// Rows of logits at a time.
const CHUNK: usize = 8;

struct Head<E: Element> {
    arena: Arena<E>,
    batch: BatchBuffers,
    args: LinearCrossEntropy,
    dw: Tensor,
    dx: Tensor,
    x: Vec<E>,
    w: Vec<E>,
    targets: Vec<u32>,
}

impl<E: Element> Head<E> {
    /// `t` tokens of which every position `p` with `in_loss(p)` has a target; room for three tokens more.
    fn new(t: usize, train: bool, in_loss: impl Fn(usize) -> bool) -> Self {
        let (mut arena, (batch, args, dw, dx)) = arena::<E, _>(|l| {
            let logits = l.wide(CHUNK, V);
            let dlogits = if E::DTYPE == DType::F32 { logits } else { l.narrow(CHUNK, V) };
            let (dw, dx) = (l.wide(V, C), l.narrow(t + 3, C));
            let gradients =
                train.then(|| HeadGradients { dx, dw: Some(dw), dlogits, dx_chunk: l.narrow(CHUNK, C) });
            let (x, w, losses) = (l.narrow(t + 3, C), l.narrow(V, C), l.wide(1, t + 3));
            let (entropies, x_chunk) = (l.wide(1, t + 3), l.narrow(CHUNK, C));
            (l.batch(), LinearCrossEntropy { x, w, losses, entropies, gradients, x_chunk, logits }, dw, dx)
        });
        let (x, w) = (values::<E>(t * C, 2.0, 1), values::<E>(V * C, 1.0, 2));
        let target = |p: usize| if in_loss(p) { u32::try_from((p * 17 + 3) % V).unwrap() } else { NO_TARGET };
        let targets: Vec<u32> = (0..t).map(target).collect();
        let rows: Vec<u32> = (0..).zip(&targets).filter(|(_, t)| **t != NO_TARGET).map(|(p, _)| p).collect();
        arena.put(args.x, &x);
        arena.put(args.w, &w);
        arena.put(batch.targets, &targets);
        arena.put(batch.loss_rows, &rows);
        arena.params.supervised = u32::try_from(rows.len()).unwrap();
        arena.params.inverse_denominator = 0.125;
        arena.cpu.set_loss_scale(LossScale::fixed(4.0)).unwrap();
        Self { arena, batch, args, dw, dx, x, w, targets }
    }

    fn run(&mut self, accumulate: u32) {
        self.arena.params.accumulate = accumulate;
        self.arena.tokens(self.targets.len());
        self.arena.cpu.linear_cross_entropy(&self.batch, self.args).unwrap();
    }

    fn reference(&self) -> Reference {
        let (x, w) = (reals(&self.x), reals(&self.w));
        let (mut losses, mut correct, mut rows, mut dlogits) = (Vec::new(), 0, Vec::new(), Vec::new());
        for (t, &target) in self.targets.iter().enumerate().filter(|(_, t)| **t != NO_TARGET) {
            let target = target as usize;
            let logits: Vec<Real> = w.chunks(C).map(|w| Real::dot(&x[t * C..][..C], w)).collect();
            let best = logits.iter().map(|l| l.value).fold(f64::NEG_INFINITY, f64::max);
            let exps: Vec<Real> = logits.iter().map(|&l| (l - Real::exact(best)).exp()).collect();
            let total = Real::sum(exps.iter().copied());
            losses.push(total.ln() - (logits[target] - Real::exact(best)));
            correct += u64::from(logits[target].value == best);
            rows.push(t);
            let weight = Real::exact(0.5);
            dlogits.extend(exps.iter().enumerate().map(|(i, &e)| {
                let p = e / total * weight;
                if i == target { p - weight } else { p }.rounded::<E>()
            }));
        }
        Reference { losses, correct, rows, dlogits }
    }
}

struct Reference {
    losses: Vec<Real>,
    correct: u64,
    /// Tokens in the loss.
    rows: Vec<usize>,
    /// `[rows, V]`
    dlogits: Vec<Real>,
}

impl Reference {
    fn dx<E: Element>(&self, head: &Head<E>) -> Vec<Real> {
        let columns: Vec<Vec<Real>> =
            (0..C).map(|c| reals(&head.w).into_iter().skip(c).step_by(C).collect()).collect();
        let mut dx = vec![Real::ZERO; head.targets.len() * C];
        for (d, &t) in self.dlogits.chunks(V).zip(&self.rows) {
            (0..C).for_each(|c| dx[t * C + c] = Real::dot(d, &columns[c]));
        }
        dx
    }
    /// `times` this micro-batch's, one after the other, and what was there `before`.
    fn dw<E: Element>(&self, head: &Head<E>, times: usize, before: &[Real]) -> Vec<Real> {
        let x = reals(&head.x);
        let terms = |v: usize, c: usize| {
            let rows = self.dlogits.chunks(V).zip(&self.rows).cycle().take(times * self.rows.len());
            let x = &x;
            rows.map(move |(d, &t)| d[v] * x[t * C + c])
        };
        (0..V * C).map(|i| Real::sum(terms(i / C, i % C).chain(before.get(i).copied()))).collect()
    }
}

fn check_output(got: StepOutput, want: &Reference, times: usize, losses: &[f32], entropies: &[f32]) {
    assert_eq!(got.correct, times as u64 * want.correct);
    for (got, terms) in [(got.loss_sum, losses), (got.entropy_sum, entropies)] {
        let sum: f64 = terms.iter().map(|&x| f64::from(x)).sum();
        assert!((got - times as f64 * sum).abs() <= 1e-12 * sum, "{got} {sum}");
        assert!(sum > 0.0 || terms.is_empty());
    }
}

fn trains<E: Element>() {
    // No row, one, a chunk and its neighbours, several chunks with a tail; always rows without a target around them.
    for supervised in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 3] {
        let t = 2 * supervised + 3;
        let mut head = Head::<E>::new(t, true, |p| p % 2 == 1 && p < 2 * supervised);
        let want = head.reference();
        assert_eq!(want.rows.len(), supervised);
        for round in 1..=2 {
            head.run(u32::from(round > 1));
            let dx = head.arena.get::<E>(head.dx);
            assert_allowed("dx", &dx[..t * C], &want.dx(&head));
            for (p, row) in dx[..t * C].chunks(C).enumerate().filter(|(p, _)| head.targets[*p] == NO_TARGET) {
                assert!(row.iter().all(|x| x.to_f32() == 0.0), "row {p} has no target");
            }
            assert!(head.arena.untouched_behind(head.dx, t));
            assert_allowed("dw", &head.arena.get::<f32>(head.dw), &want.dw(&head, round, &[]));
        }
        let losses = head.arena.get::<f32>(head.args.losses)[..supervised].to_vec();
        assert_allowed("losses", &losses, &want.losses);
        let entropies = head.arena.get::<f32>(head.args.entropies)[..supervised].to_vec();
        check_output(head.arena.cpu.take_output().unwrap(), &want, 2, &losses, &entropies);
        let nothing = StepOutput { loss_scale: LossScale::fixed(4.0), ..StepOutput::default() };
        assert_eq!(head.arena.cpu.take_output().unwrap(), nothing, "sums start again");
    }
}

#[test]
fn training_overwrites_in_the_first_micro_batch_and_adds_in_the_next() {
    in_each_type!(trains);
}

/// Accumulating onto what another micro-batch left, also where this one has nothing in the loss.
#[test]
fn adds_to_what_is_there() {
    for supervised in [0, 20] {
        let mut head = Head::<f32>::new(25, true, |p| p < supervised);
        let before = values::<f32>(V * C, 1.0, 7);
        head.arena.put(head.dw, &before);
        head.run(1);
        let want = head.reference().dw(&head, 1, &reals(&before));
        assert_allowed("dw", &head.arena.get::<f32>(head.dw), &want);
    }
}

fn evaluates<E: Element>() {
    let mut head = Head::<E>::new(50, false, |p| p != 7 && p != 49);
    let want = head.reference();
    head.run(0);
    let losses = head.arena.get::<f32>(head.args.losses)[..48].to_vec();
    assert_allowed("losses", &losses, &want.losses);
    let entropies = head.arena.get::<f32>(head.args.entropies)[..want.rows.len()].to_vec();
    check_output(head.arena.cpu.take_output().unwrap(), &want, 1, &losses, &entropies);
    assert!(head.arena.untouched_behind(head.dw, 0) && head.arena.untouched_behind(head.dx, 0));
}

#[test]
fn evaluation_touches_no_gradient() {
    in_each_type!(evaluates);
}
