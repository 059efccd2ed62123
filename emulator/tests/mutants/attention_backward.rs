//! The gradient of attention, and of the rotation before it.

use super::attention::{F32, Loudness, OLD, Problem, Shape, activations, dot, grid, over_tiles};
use super::near::{Element, Near, TINY};
use super::sample::{Buffer, Case, Sample};
use super::small::bytes_f32;

/// Buffers of a case.
const LSE: usize = 7;
const OUT: usize = 6;
const DOUT: usize = 8;
const DQKV: usize = 9;
const DELTA: usize = 10;

/// All of them.
pub fn samples() -> Vec<Sample> {
    let (bf16, f16) = (Element::Bf16, Element::F16);
    vec![
        over_tiles("attention query", "attention_backward_query_bf16", bf16, query),
        over_tiles("attention query Turing", "attention_backward_query_f16", f16, query),
        over_tiles("attention keys", "attention_backward_keys_bf16", bf16, keys),
        over_tiles("attention keys Turing", "attention_backward_keys_f16", f16, keys),
    ]
}

/// What the forward pass left, and the gradient of its output.
struct Given {
    out: Vec<f32>,
    lse: Vec<f32>,
    dout: Vec<f32>,
}

#[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
fn rounded(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&x| x as f32).collect()
}

impl Given {
    fn new(problem: &Problem) -> Self {
        let Shape { element, heads, head_dim, .. } = problem.shape;
        let [out, lse] = problem.forward(0..problem.tokens());
        let out = element.bytes(&rounded(&out.values));
        let loudness = Loudness { others: 3, zeros: 0, loud: [8.0, 0.0], step: 5 };
        Self {
            out: rounded(&element.values(&out)),
            lse: rounded(&lse.values),
            dout: activations(4, [problem.tokens(), heads, head_dim], |_| loudness),
        }
    }
}

/// A number, and how far off it may be.
type Bounded = (f64, f64);

/// Gradients of q, k and v, `[T, H + 2K, D]`.
struct Gradients<'a> {
    problem: &'a Problem,
    sums: Vec<Bounded>,
}

impl Gradients<'_> {
    fn head(&mut self, t: usize, slot: usize) -> &mut [Bounded] {
        let d = self.problem.shape.head_dim;
        &mut self.sums[(t * self.problem.slots() + slot) * d..][..d]
    }

    /// Adds a row times a factor.
    fn add(&mut self, t: usize, slot: usize, (factor, within): Bounded, row: &[f32]) {
        for (sum, &x) in self.head(t, slot).iter_mut().zip(row) {
            let x = f64::from(x);
            *sum = (sum.0 + factor * x, sum.1 + (within + F32 * factor.abs()) * x.abs());
        }
    }

    /// Turned back by the angles of a row.
    fn turn(&mut self, t: usize, slot: usize, [cos, sin]: [&[f32]; 2]) {
        let half = self.problem.shape.head_dim / 2;
        let (first, second) = self.head(t, slot).split_at_mut(half);
        for ((x, y), (&cos, &sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
            let (cos, sin) = (f64::from(cos), f64::from(sin));
            let along = |a: f64, b: f64| (a * cos).abs() + (b * sin).abs();
            let within = |a: &Bounded, b: &Bounded| along(a.1, b.1) + F32 * along(a.0, b.0);
            let turned = (x.0 * cos + y.0 * sin, within(x, y));
            *y = (y.0 * cos - x.0 * sin, within(y, x));
            *x = turned;
        }
    }

    /// As stored.
    fn near(&self) -> Near {
        let element = self.problem.shape.element;
        let mut near = Near::empty(element);
        self.sums.iter().for_each(|(x, within)| near.push(*x, within + element.unit() * x.abs() + TINY));
        near
    }
}

/// `delta` and `dqkv`.
fn gradients(problem: &Problem, given: &Given) -> [Near; 2] {
    let Shape { element, heads, head_dim, .. } = problem.shape;
    let (unit, scale) = (element.unit(), problem.scale());
    let mut gradients = Gradients { problem, sums: vec![(0.0, 0.0); problem.qkv.len()] };
    let mut deltas = Near::empty(Element::F32);
    for (t, h) in (0..problem.tokens()).flat_map(|t| (0..heads).map(move |h| (t, h))) {
        let row = |of: &'_ [f32]| of[(t * heads + h) * head_dim..][..head_dim].to_vec();
        let (out, dout, q) = (row(&given.out), row(&given.dout), problem.head(t, h));
        let delta = dot(&dout, &out);
        let loud: f64 = dout.iter().zip(&out).map(|(x, y)| f64::from(x * y).abs()).sum();
        deltas.push(delta, F32 * loud);
        let [key, value] = problem.key_and_value(h);
        let lse = f64::from(given.lse[t * heads + h]);
        for j in problem.first_of(t)..=t {
            let (k, v) = (problem.head(j, key), problem.head(j, value));
            let (p, dp) = ((dot(q, k) * scale - lse).exp(), dot(&dout, v));
            let ds = p * (dp - delta) * scale;
            let within = 4.0 * F32 * p * (dp.abs() + loud) * scale + unit * ds.abs() + TINY;
            gradients.add(t, h, (ds, within), k);
            gradients.add(j, key, (ds, within), q);
            gradients.add(j, value, (p, p * (unit + F32) + TINY), &dout);
        }
    }
    let [cos, sin] = problem.angles();
    for t in 0..problem.tokens() {
        let angle = (t - problem.first_of(t)) * head_dim / 2;
        for slot in 0..heads + problem.shape.kv_heads {
            gradients.turn(t, slot, [&cos[angle..], &sin[angle..]]);
        }
    }
    [deltas, gradients.near()]
}

fn query(kernel: &'static str, shape: &Shape) -> Case {
    case(kernel, shape, true)
}

fn keys(kernel: &'static str, shape: &Shape) -> Case {
    case(kernel, shape, false)
}

/// One of the kernels writes the gradients of q and delta, the other one those of k and v.
fn case(kernel: &'static str, shape: &Shape, of_queries: bool) -> Case {
    let problem = Problem::new(shape);
    let given = Given::new(&problem);
    let [delta, mut dqkv] = gradients(&problem, &given);
    let mut old = vec![0.0; dqkv.values.len()];
    let (d, slots) = (shape.head_dim, problem.slots());
    for (i, old) in old.iter_mut().enumerate() {
        if (i / d % slots < shape.heads) != of_queries {
            (dqkv.values[i], dqkv.within[i], *old) = (f64::from(OLD), 0.0, OLD);
        }
    }
    let mut buffers = problem.buffers(problem.tokens());
    buffers[OUT] = Buffer::input(shape.element.bytes(&given.out));
    buffers[LSE] = Buffer::input(bytes_f32(&given.lse));
    buffers[DOUT] = Buffer::input(shape.element.bytes(&given.dout));
    let deltas = Buffer::input(bytes_f32(&rounded(&delta.values)));
    buffers[DELTA] = if of_queries { Buffer::output_near(delta) } else { deltas };
    buffers[DQKV] = Buffer { contents: Some(shape.element.bytes(&old)), ..Buffer::output_near(dqkv) };
    let heads = if of_queries { shape.heads } else { shape.kv_heads };
    let launched = problem.launched(kernel, grid(&problem, heads), [0, 0]);
    Case { buffers, launches: vec![launched] }
}
