//! The engine's products on tensor cores. Inputs are whole numbers, or eighths, so that sums are exact in any order.

use super::engine::{Step, number, word};
use super::near::{Element, Near, TINY};
use super::sample::Argument::{Buffer as At, F32, U32, U64};
use super::sample::{Argument, Buffer, Case, Launched, Sample};
use super::small::{bytes_f32, bytes_u32, whole};

#[derive(Clone, Copy, PartialEq)]
enum Product {
    Linear,
    Wide,
    Residual,
    Rope,
    Swiglu,
    InputGradient,
    SwigluBackward,
    WeightGradient,
}

impl Product {
    /// An adapter's part is multiplied by a mask.
    fn is_masked(self) -> bool {
        matches!(self, Product::InputGradient | Product::SwigluBackward)
    }
}

/// Which rows are in use: `first` and `rows` of `LinearArgs`, and the counts of the step.
#[derive(Clone, Copy)]
struct Rows {
    first: i32,
    planned: usize,
    tokens: usize,
    supervised: usize,
}

impl Rows {
    /// All tokens; the other count is another.
    fn tokens(t: usize) -> Self {
        Self { first: -1, planned: t + 2, tokens: t, supervised: t + 5 }
    }

    /// All that are planned.
    fn planned(t: usize) -> Self {
        Self { first: -2, planned: t, tokens: t + 1, supervised: 1 }
    }

    /// From `first` on of the supervised ones.
    fn chunk(first: u16, planned: usize, supervised: usize) -> Self {
        Self { first: first.into(), planned, tokens: planned + 3, supervised }
    }
}

/// Pointers of `LinearArgs` of `kernels/gemm.cu`, each to the buffer of its number.
const POINTERS: usize = 10;
const PARTIALS: usize = 10;
const BIAS: usize = 11;
const C: usize = 3;
const RESIDUAL: usize = 4;
const POSITIONS: usize = 5;
const COS: usize = 6;
const SIN: usize = 7;
const GATE_UP: usize = 8;
const ACT: usize = 9;

/// An adapter's mask in a gradient: below what numbers it drops, by what it multiplies the others.
#[derive(Clone, Copy)]
struct Mask {
    threshold: u32,
    factor: f32,
}

/// Which mask it is: one in which the number of row 0 and column 0 is 0.
const SITE: u32 = 0x3f47_cb62;

/// Half is dropped; to double the others is exact.
const HALF: Mask = Mask { threshold: 1 << 31, factor: 2.0 };
const NONE: Mask = Mask { threshold: 0, factor: 1.0 };

/// A kernel: rows and columns of a tile, and in how many parts the rows are summed.
#[derive(Clone, Copy)]
struct Kernel {
    name: &'static str,
    product: Product,
    tile: [usize; 2],
    parts: usize,
    mask: Mask,
}

/// All of them, each with one of its tiles. What was not compiled for Turing only is bf16.
pub fn samples() -> Vec<Sample> {
    use Product::{InputGradient, Linear, Residual, Rope, Swiglu, SwigluBackward, WeightGradient, Wide};
    let all = [
        ("gemm wide", "linear_wide_bf16", Wide, [128, 128], 1),
        ("gemm residual", "linear_residual_128x64_bf16", Residual, [128, 64], 1),
        ("gemm rope", "linear_rope_64x64_bf16", Rope, [64, 64], 1),
        ("gemm swiglu", "linear_swiglu_bf16", Swiglu, [128, 128], 1),
        ("gemm input gradient", "linear_input_gradient_128x64_bf16", InputGradient, [128, 64], 1),
        ("gemm swiglu gradient", "linear_swiglu_backward_64x64_bf16", SwigluBackward, [64, 64], 1),
        ("gemm weight gradient", "linear_weight_gradient_64x64_bf16", WeightGradient, [64, 64], 3),
        ("gemm Turing", "linear_f16", Linear, [128, 128], 1),
    ];
    let sample = |(title, name, product, tile, parts): (_, _, Product, _, _)| {
        let target = if product == Linear { 75 } else { 80 };
        let mask = if product.is_masked() { HALF } else { NONE };
        Sample::new(title, "kernels/gemm.cu", target, cases(Kernel { name, product, tile, parts, mask }))
    };
    all.map(sample).into()
}

/// In parts: those that have several steps each; few rows; and the same kernel without parts.
fn cases(kernel: Kernel) -> Vec<Case> {
    if kernel.product.is_masked() {
        return sized(kernel, 0).into_iter().chain(masks(kernel)).collect();
    }
    if kernel.parts == 1 {
        return sized(kernel, 0);
    }
    let few = |t| case(Kernel { parts: 2, ..kernel }, [t, 24, 40], t % 2 == 0, Rows::tokens(t));
    let few = [0, 1, 32, 33, 64, 65, 97].map(few);
    let whole = sized(Kernel { parts: 1, ..kernel }, 0);
    sized(kernel, 300).into_iter().chain(few).chain(whole).collect()
}

/// Masks that drop nothing, double nothing, do neither; that drop one number or all, and double nothing. Then, for each of
/// a lane's elements, one whose number is the very threshold, or the one below it: of eight rows the one where it shows
/// most.
fn masks(kernel: Kernel) -> Vec<Case> {
    let masked = |mask, size: [usize; 3]| case(Kernel { mask, ..kernel }, size, true, Rows::tokens(size[0]));
    let few = [Mask { threshold: 0, ..HALF }, Mask { factor: 1.0, ..HALF }, NONE];
    let few = few.into_iter().chain([1, u32::MAX].map(|threshold| Mask { threshold, ..NONE }));
    let edge = |i: usize, j: usize| {
        let (size, column) = ([8 * i + 8, 8, j / 2 * 8 + 8], j / 2 * 8 + j % 2);
        let problem = Problem::new(kernel, size, true);
        let adapter = |row: &usize| problem.adapter(*row, column).abs();
        let row = (8 * i..8 * i + 8).max_by(|a, b| adapter(a).total_cmp(&adapter(b))).expect("eight");
        let number = number(SITE, word(row), word(column));
        [0, 1].map(|above| masked(Mask { threshold: number + above, ..HALF }, size))
    };
    let edges = (0..kernel.tile[0] / 32).flat_map(|i| (0..16).flat_map(move |j| edge(i, j)));
    few.map(|mask| masked(mask, [10, 24, 40])).chain(edges).collect()
}

/// A whole tile, and more steps than stages; then all remainders of a tile, and several of them. `more` rows in each.
fn sized(kernel: Kernel, more: usize) -> Vec<Case> {
    let of = |t, o, i, accumulate| case(kernel, [t + more, o, i], accumulate, Rows::tokens(t + more));
    let mut cases = vec![of(125, 128, 104, true)];
    let (outputs, inputs) = ([8, 16, 24, 32, 40, 48, 56, 64, 72, 104], [8, 40, 72, 104]);
    cases.extend((0..24).map(|j| of(4 * j + 2, outputs[j % 10], inputs[(j + j / 4) % 4], j % 2 == 0)));
    let others = [
        (122, 104, 40),
        (70, 72, 8),
        (74, 72, 40),
        (82, 104, 8),
        (100, 104, 72),
        (1, 8, 8),
        (0, 8, 8),
        (133, 136, 16),
    ];
    cases.extend(others.map(|(t, o, i)| of(t, o, i, true)));
    cases.push(of(0, 8, 8, false));
    // First and later chunks, of which some rows are left, all or none; all rows of the plan.
    let rows = [
        (6 + more, Rows::chunk(0, 8 + more, 6 + more)),
        (0, Rows::chunk(0, 8, 0)),
        (6 + more, Rows::chunk(1, 6 + more, 9 + more)),
        (0, Rows::chunk(1, 8, 1)),
        (0, Rows::chunk(9, 8, 4)),
        (7 + more, Rows::chunk(2, 8 + more, 9 + more)),
        (6 + more, Rows::planned(6 + more)),
    ];
    cases.extend(rows.map(|(t, rows)| case(kernel, [t, 128, 104], false, rows)));
    cases
}

/// C `[m, n]` = A `[m, k]` · B `[k, n]`, over `t` rows with `o` outputs and `i` inputs.
struct Problem {
    product: Product,
    element: Element,
    m: usize,
    n: usize,
    k: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    /// Empty: none.
    bias: Vec<f32>,
    /// Of an adapter's product, which comes first; 0: none.
    rank: usize,
    left: Vec<f32>,
    right: Vec<f32>,
    mask: Mask,
    /// Exactly, with the bias.
    sums: Vec<f32>,
    /// Columns of a head, and how many are rotated.
    head_dim: usize,
    turned: usize,
}

impl Problem {
    fn new(kernel: Kernel, [t, o, i]: [usize; 3], biased: bool) -> Self {
        let Kernel { product, mask, .. } = kernel;
        let head_dim = if product == Product::Rope { [16, 32, 64][t % 3] } else { 0 };
        let o = match product {
            Product::Rope => o.next_multiple_of(head_dim),
            Product::Swiglu => 2 * o,
            _ => o,
        };
        let (m, n, k) = match product {
            Product::InputGradient | Product::SwigluBackward => (t, i, o),
            Product::WeightGradient => (o, i, t),
            _ => (t, o, i),
        };
        let scale = if matches!(product, Product::Swiglu | Product::SwigluBackward) { 0.125 } else { 1.0 };
        let numbers = |seed, n| whole(seed, 4, word(n)).iter().map(|x| x * scale).collect::<Vec<f32>>();
        let (a, b) = (numbers(4, m * k), numbers(5, k * n));
        let takes_bias = matches!(product, Product::Residual | Product::Rope | Product::Swiglu);
        let bias = if biased && takes_bias { numbers(10, n) } else { vec![] };
        let rank = if biased && (takes_bias || product.is_masked()) { [8, 40, 104][t / 2 % 3] } else { 0 };
        let (left, right) = (numbers(14, m * rank), numbers(12, rank * n));
        let element = if product == Product::Linear { Element::F16 } else { Element::Bf16 };
        let turned = if head_dim == 0 || n == head_dim { n } else { n - head_dim };
        let sums = vec![];
        let mut problem =
            Self { product, element, m, n, k, a, b, bias, rank, left, right, mask, sums, head_dim, turned };
        problem.sums = (0..m * n).map(|at| problem.sum(at / n, at % n)).collect();
        problem
    }

    fn sum(&self, row: usize, column: usize) -> f32 {
        let &Self { product, m, n, k, .. } = self;
        let of_a = |d: usize| if product == Product::WeightGradient { d * m + row } else { row * k + d };
        let is_turned = product.is_masked() || product == Product::WeightGradient;
        let of_b = |d: usize| if is_turned { d * n + column } else { column * k + d };
        let Mask { threshold, factor } = self.mask;
        let is_dropped = number(SITE, word(row), word(column)) < threshold;
        let adapter = self.adapter(row, column) * if is_dropped { 0.0 } else { factor };
        let sum = (0..k).map(|d| self.a[of_a(d)] * self.b[of_b(d)]).fold(adapter, |sum, x| sum + x);
        sum + self.bias.get(column).unwrap_or(&0.0)
    }

    /// Its product, of which `sum` would be -0 without one.
    fn adapter(&self, row: usize, column: usize) -> f32 {
        let &Self { n, rank, .. } = self;
        let right = |d: usize| if self.product.is_masked() { d * n + column } else { column * rank + d };
        (0..rank).map(|d| self.left[row * rank + d] * self.right[right(d)]).fold(0.0, |sum, x| sum + x)
    }

    fn output(&self, values: &[f32]) -> Buffer {
        Buffer::output(self.element.bytes(values))
    }

    /// As stored.
    fn rounded(&self, values: &[f32]) -> Vec<f32> {
        #[expect(clippy::cast_possible_truncation, reason = "it was an f32")]
        let narrow = |x: f64| x as f32;
        self.element.values(&self.element.bytes(values)).into_iter().map(narrow).collect()
    }

    /// Old gradient, where it is added to; residual.
    fn added(&self, buffers: &mut [Buffer], adds: bool) {
        let old = whole(6, 99, word(self.m * self.n));
        let c: Vec<f32> =
            self.sums.iter().zip(&old).map(|(sum, old)| if adds { sum + old } else { *sum }).collect();
        buffers[C] = Buffer::output(bytes_f32(&c));
        if self.product == Product::Residual {
            buffers[RESIDUAL] = Buffer::input(bytes_f32(&old));
        } else if adds {
            buffers[C].contents = Some(bytes_f32(&old));
        }
    }

    /// Rotated by quarters in place of cosines and sines, which is exact.
    fn rotated(&self, buffers: &mut [Buffer]) {
        let &Self { m, n, head_dim, turned, .. } = self;
        let half = head_dim / 2;
        let positions: Vec<usize> = (0..m).map(|row| row * 3 % m.max(1)).collect();
        let [cos, sin] =
            [7, 8].map(|seed| whole(seed, 4, word(m * half)).iter().map(|x| x / 4.0).collect::<Vec<f32>>());
        let element = |at: usize| {
            let (row, column) = (at / n, at % n);
            let (x, place) = (self.sums[at], column % head_dim);
            if column >= turned {
                return x;
            }
            let angle = positions[row] * half + place % half;
            let other = self.sums[if place < half { at + half } else { at - half }];
            x * cos[angle] + if place < half { -other } else { other } * sin[angle]
        };
        buffers[C] = self.output(&(0..m * n).map(element).collect::<Vec<f32>>());
        let list: Vec<u32> = positions.into_iter().map(word).collect();
        buffers[POSITIONS] = Buffer::input(bytes_u32(&list));
        buffers[COS] = Buffer::input(bytes_f32(&cos));
        buffers[SIN] = Buffer::input(bytes_f32(&sin));
    }

    /// Gate and up, and what they make.
    fn activated(&self, buffers: &mut [Buffer]) {
        let half = self.n / 2;
        let stored = self.rounded(&self.sums);
        let mut act = Near::empty(self.element);
        for at in 0..self.m * half {
            let left = at / half * self.n + at % half;
            let (gate, up) = (f64::from(stored[left]), f64::from(stored[left + half]));
            self.push(&mut act, gate * sigmoid(gate) * up, (gate * up).abs());
        }
        buffers[C] = self.output(&self.sums);
        buffers[ACT] = Buffer::output_near(act);
    }

    /// Within a rounding, and what `loud` says of those in f32.
    fn push(&self, near: &mut Near, value: f64, loud: f64) {
        near.push(value, self.element.unit() * value.abs() + BY_F32 * loud + TINY);
    }

    /// The gradients of gate and up, and act again.
    fn activation_gradient(&self, buffers: &mut [Buffer]) {
        let &Self { m, n, element, .. } = self;
        let sixteenths: Vec<f32> = whole(9, 40, word(2 * m * n)).iter().map(|x| x / 16.0).collect();
        let d = self.rounded(&self.sums);
        let [mut act, mut dgate_up] = [Near::empty(element), Near::empty(element)];
        for row in 0..m {
            let gate_up = |i: usize| {
                let at = 2 * row * n + i;
                (f64::from(sixteenths[at]), f64::from(sixteenths[at + n]), f64::from(d[row * n + i]))
            };
            for (gate, up, d) in (0..n).map(gate_up) {
                let s = sigmoid(gate);
                self.push(&mut act, gate * s * up, (gate * up).abs());
                self.push(
                    &mut dgate_up,
                    d * up * (s + gate * s * (1.0 - s)),
                    (d * up).abs() * (1.0 + gate.abs()),
                );
            }
            for (gate, _, d) in (0..n).map(gate_up) {
                self.push(&mut dgate_up, d * gate * sigmoid(gate), (d * gate).abs());
            }
        }
        buffers[GATE_UP] = Buffer::input(element.bytes(&sixteenths));
        buffers[ACT] = Buffer::output_near(act);
        buffers[C] = Buffer::output_near(dgate_up);
    }
}

/// Bounds the relative error of an exponential, a quotient and six more operations in f32.
const BY_F32: f64 = 16.0 / (1 << 24) as f64;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn case(kernel: Kernel, size: [usize; 3], accumulate: bool, rows: Rows) -> Case {
    let Kernel { name, product, tile, parts, mask } = kernel;
    let problem = Problem::new(kernel, size, accumulate);
    let &Problem { m, n, element, head_dim, turned, .. } = &problem;
    let Rows { first, planned, tokens, supervised } = rows;
    let mut buffers = vec![
        Step { tokens, supervised, accumulate, ..Step::default() }.input(),
        Buffer::input(element.bytes(&problem.a)),
        Buffer::input(element.bytes(&problem.b)),
    ];
    buffers.resize_with(POINTERS, Buffer::default);
    match product {
        Product::Linear | Product::InputGradient => buffers[C] = problem.output(&problem.sums),
        Product::Wide => problem.added(&mut buffers, false),
        Product::Residual => problem.added(&mut buffers, true),
        Product::WeightGradient => problem.added(&mut buffers, accumulate || first > 0),
        Product::Rope => problem.rotated(&mut buffers),
        Product::Swiglu => problem.activated(&mut buffers),
        Product::SwigluBackward => problem.activation_gradient(&mut buffers),
    }
    let (outputs, inputs) = match product {
        Product::InputGradient | Product::SwigluBackward => (problem.k, n),
        Product::WeightGradient => (m, n),
        _ => (n, problem.k),
    };
    let mut arguments: Vec<Argument> = (0..POINTERS).map(At).collect();
    if product == Product::SwigluBackward && !accumulate {
        arguments[ACT] = U64(0); // act is not asked for
        buffers[ACT] = Buffer::default();
    }
    arguments.extend([inputs, outputs, planned].map(|n| U32(word(n))));
    arguments.push(U32(first.cast_unsigned()));
    arguments.extend([turned, head_dim].map(|n| U32(word(n))));
    let bias = if problem.bias.is_empty() { U64(0) } else { At(BIAS) };
    // Without an adapter the rank is not asked for.
    let rank = if problem.rank > 0 { problem.rank } else { 8 };
    arguments.extend([At(PARTIALS), U32(word(parts)), U32(word(rank)), bias]);
    buffers.push(Buffer { bytes: if parts > 1 { 4 * parts * m * n } else { 0 }, ..Buffer::default() });
    if !problem.bias.is_empty() {
        buffers.push(Buffer::input(element.bytes(&problem.bias)));
    }
    if problem.rank > 0 {
        let left = buffers.len();
        arguments.extend([At(left), At(left + 1)]);
        buffers.extend([&problem.left, &problem.right].map(|x| Buffer::input(element.bytes(x))));
    } else {
        arguments.extend([U64(0), U64(0)]);
    }
    arguments.extend([U32(SITE), U32(mask.threshold), F32(mask.factor)]);
    arguments.push(U32(0));
    let grid = [word(n.div_ceil(tile[1])), word(m.div_ceil(tile[0]) + 1), word(parts)];
    let mut launches = vec![Launched { kernel: name, grid, threads: 128, shared: 0, arguments }];
    if parts > 1 {
        let (arguments, grid) = (launches[0].arguments.clone(), [word((m * n).div_ceil(512)), 1, 1]);
        let kernel = "linear_weight_gradient_finish";
        launches.push(Launched { kernel, grid, threads: 128, shared: 0, arguments });
    }
    Case { buffers, launches }
}
