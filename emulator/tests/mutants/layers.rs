//! Embedding, rows that are moved, and the gradient of RMSNorm, against plain Rust.

use super::engine::{Step, word};
use super::near::{Element, Near, TINY};
use super::sample::Argument::{Buffer as At, U32, U64};
use super::sample::{Argument, Buffer, Case, Launched, Sample};
use super::small::{bytes_bf16, bytes_f32, bytes_u32, noise, whole};

/// Rows that are planned and not in use.
const SPARE: usize = 5;

/// All of them.
pub fn samples() -> Vec<Sample> {
    let (embedding, rows, norm) = ("kernels/embedding.cu", "kernels/rows.cu", "kernels/rmsnorm.cu");
    // A turn of a warp is 256 columns, and four turns are unrolled.
    let sizes = [(7, 264), (1, 8), (6, 1288), (0, 8), (2, 1024), (2, 768)];
    let looked_up = sizes.map(|(t, c)| embedded(t, c)).into();
    let gradients = [(21, 136, false), (21, 136, true), (1, 8, false), (13, 264, true), (18, 40, false)];
    let gradients = gradients.map(|(t, c, accumulate)| embedding_gradient(t, c, accumulate)).into();
    let norms = [
        (70, 40, true),
        (33, 264, true),
        (1, 8, false),
        (64, 512, false),
        (31, 16, true),
        (0, 8, true),
        (2, 768, true),
        (2, 1024, false),
        (2, 1288, true),
        (3, 4096, true),
    ];
    let norms = norms.map(|(t, c, rounded)| norm_gradient(t, c, rounded)).into();
    let sums = [(1100, 40, true), (33, 8, false), (32 * 132, 72, false), (0, 8, true), (32, 32, false)];
    let sums = sums.map(|(t, c, accumulate)| norm_sums(t, c, accumulate)).into();
    let biases = [(70, 40), (33, 1032), (1, 8), (0, 8), (32, 1024), (31, 2056), (64, 16)];
    let biases = biases.map(|(t, n)| bias_gradient(t, n)).into();
    let moves = [
        (9, 0, 5, 33),
        (9, 4, 5, 72),
        (9, 4, 7, 1),
        (2, 4, 3, 2),
        (12, 4, 8, 32),
        (6, 4, 3, 161),
        (6, 4, 2, 128),
        (6, 4, 2, 96),
    ];
    let moved = |gathers| {
        moves.map(|(supervised, first, most, n)| moved(gathers, [supervised, first, most, n])).into()
    };
    vec![
        Sample::new("embedding", embedding, 80, looked_up),
        Sample::new("embedding gradient", embedding, 80, gradients),
        Sample::new(
            "rows zero",
            rows,
            80,
            [(7, 33), (4, 72), (1, 1), (0, 2), (2, 161), (2, 128), (2, 96)].map(|(t, n)| zeroed(t, n)).into(),
        ),
        Sample::new("rows gather", rows, 80, moved(true)),
        Sample::new("rows scatter", rows, 80, moved(false)),
        Sample::new("bias gradient", "kernels/bias.cu", 80, biases),
        Sample::new("rmsnorm gradient", norm, 80, norms),
        Sample::new("rmsnorm gradient finish", norm, 80, sums),
    ]
}

fn launched(kernel: &'static str, blocks: usize, threads: usize, arguments: Vec<Argument>) -> Launched {
    Launched { kernel, grid: [word(blocks), 1, 1], threads: word(threads), shared: 0, arguments }
}

/// Rows of the table, some of them more than once.
const VOCABULARY: usize = 7;

fn embedded(t: usize, c: usize) -> Case {
    let ids: Vec<usize> = (0..t).map(|i| i * i % VOCABULARY).collect();
    let w = whole(1, 99, word(VOCABULARY * c));
    let x: Vec<f32> = ids.iter().flat_map(|id| &w[id * c..][..c]).copied().collect();
    let arguments = vec![At(0), At(1), At(2), At(3), U32(word(c))];
    Case {
        buffers: vec![
            Step { tokens: t, ..Step::default() }.input(),
            Buffer::input(bytes_u32(&ids.into_iter().map(word).collect::<Vec<_>>())),
            Buffer::input(bytes_bf16(&w)),
            Buffer::output(bytes_f32(&x)),
        ],
        launches: vec![launched("embedding_forward_bf16", (t + SPARE).div_ceil(4), 128, arguments)],
    }
}

/// Tenths, whose sum depends on the order. The grid that clears is smaller than the engine's, so that it strides.
fn embedding_gradient(t: usize, c: usize, accumulate: bool) -> Case {
    let ids: Vec<usize> = (0..t).map(|i| [6, 0, 6, 4, 6, 0, 6, 6, 3, 6][i % 10]).collect();
    let mut by_id: Vec<usize> = (0..t).collect();
    by_id.sort_by_key(|&i| ids[i]);
    let mut starts: Vec<usize> = (0..t).filter(|&i| i == 0 || ids[by_id[i]] != ids[by_id[i - 1]]).collect();
    let distinct_ids = starts.len();
    starts.push(t);
    let tenths = |seed, n| whole(seed, 99, word(n)).iter().map(|x| x / 10.0).collect::<Vec<f32>>();
    let (dx, old) = (tenths(2, t * c), tenths(3, VOCABULARY * c));
    let mut dw = if accumulate { old.clone() } else { vec![0.0; old.len()] };
    for (i, id) in ids.iter().enumerate() {
        dw[id * c..][..c].iter_mut().zip(&dx[i * c..]).for_each(|(sum, x)| *sum += x);
    }
    let list = |of: Vec<usize>| Buffer::input(bytes_u32(&of.into_iter().map(word).collect::<Vec<_>>()));
    let clear = vec![At(0), At(5), U64((VOCABULARY * c) as u64)];
    let add = vec![At(0), At(1), At(2), At(3), At(4), At(5), U32(word(c))];
    Case {
        buffers: vec![
            Step { tokens: t, distinct_ids, accumulate, ..Step::default() }.input(),
            list(ids),
            list(by_id),
            list(starts),
            Buffer::input(bytes_f32(&dx)),
            Buffer { contents: Some(bytes_f32(&old)), ..Buffer::output(bytes_f32(&dw)) },
        ],
        launches: vec![
            launched("embedding_clear", 1, 128, clear),
            launched("embedding_backward", ((t + SPARE) * c.div_ceil(128)).div_ceil(4), 128, add),
        ],
    }
}

/// So many units of 16 bytes that follow no pattern.
fn units(seed: u32, n: usize) -> Vec<u8> {
    noise(seed).take(16 * n).map(|x| x.to_le_bytes()[0]).collect()
}

fn zeroed(t: usize, n: usize) -> Case {
    let x = Buffer { contents: Some(units(4, t * n)), ..Buffer::output(vec![0; 16 * t * n]) };
    let arguments = vec![At(0), At(1), U32(word(n))];
    Case {
        buffers: vec![Step { tokens: t, ..Step::default() }.input(), x],
        launches: vec![launched("rows_zero", (t + SPARE).div_ceil(4), 128, arguments)],
    }
}

/// A chunk of at most `most` rows of `n` units, from `first` on of the supervised ones.
fn moved(gathers: bool, [supervised, first, most, n]: [usize; 4]) -> Case {
    const ROWS: usize = 13;
    let list: Vec<usize> = (0..supervised).map(|i| ROWS - 1 - (5 * i + 3) % ROWS).collect();
    let count = supervised.saturating_sub(first).min(most);
    let (all, chunk) = (units(5, ROWS * n), units(6, count * n));
    let row = |i: usize| 16 * n * i..16 * n * (i + 1);
    let buffers = if gathers {
        let to = (0..count).flat_map(|i| all[row(list[first + i])].to_vec()).collect();
        [Buffer::input(all.clone()), Buffer::output(to)]
    } else {
        let mut to = all.clone();
        (0..count).for_each(|i| to[row(list[first + i])].copy_from_slice(&chunk[row(i)]));
        [Buffer::input(chunk), Buffer { contents: Some(all), ..Buffer::output(to) }]
    };
    let [from, to] = buffers;
    let list = Buffer::input(bytes_u32(&list.into_iter().map(word).collect::<Vec<_>>()));
    let arguments = vec![At(0), At(1), U32(word(first)), U32(word(most)), At(2), At(3), U32(word(n))];
    let kernel = if gathers { "rows_gather" } else { "rows_scatter" };
    Case {
        buffers: vec![Step { supervised, ..Step::default() }.input(), list, from, to],
        launches: vec![launched(kernel, most.div_ceil(4) + 1, 128, arguments)],
    }
}

/// Bounds the relative error of ten operations.
const F32: f64 = 10.0 / (1 << 24) as f64;

/// Whole numbers, so that `dot` is exact; the partials are the very numbers, rounded after each operation.
fn norm_gradient(t: usize, c: usize, rounds: bool) -> Case {
    let (x, w, dy) = (whole(1, 9, word(t * c)), whole(2, 9, word(c)), whole(3, 9, word(t * c)));
    let (rstd, old) = (whole(4, 7, word(t)), whole(5, 99, word(t * c)));
    let rstd: Vec<f32> = rstd.iter().map(|r| (r.abs() + 0.5) / 9.0).collect();
    let [mut dx, mut rounded] = [Element::F32, Element::Bf16].map(Near::empty);
    let mut partials = vec![0.0; t.div_ceil(32) * c];
    for row in 0..t {
        let at = |i: usize| row * c + i;
        let r = f64::from(rstd[row]);
        let product = |i: usize| f64::from(w[i] * dy[at(i)]);
        let dot: f64 = (0..c).map(|i| product(i) * f64::from(x[at(i)])).sum();
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let along = dot * r * r / c as f64;
        for i in 0..c {
            let (old, behind) = (f64::from(old[at(i)]), f64::from(x[at(i)]) * along);
            let (d, loud) =
                (old + r * (product(i) - behind), old.abs() + r * (product(i).abs() + behind.abs()));
            dx.push(d, F32 * loud);
            rounded.push(d, F32 * loud + Element::Bf16.unit() * d.abs() + TINY);
            let sum: &mut f32 = &mut partials[row / 32 * c + i];
            *sum += dy[at(i)] * (x[at(i)] * rstd[row]);
        }
    }
    let mut arguments: Vec<Argument> = (0..8).map(At).collect();
    if !rounds {
        arguments[6] = U64(0);
    }
    arguments.push(U32(word(c)));
    let threads = c.div_ceil(8).next_multiple_of(32);
    Case {
        buffers: vec![
            Step { tokens: t, ..Step::default() }.input(),
            Buffer::input(bytes_f32(&x)),
            Buffer::input(bytes_bf16(&w)),
            Buffer::input(bytes_f32(&rstd)),
            Buffer::input(bytes_bf16(&dy)),
            Buffer { contents: Some(bytes_f32(&old)), ..Buffer::output_near(dx) },
            if rounds { Buffer::output_near(rounded) } else { Buffer::default() },
            Buffer::output(bytes_f32(&partials)),
        ],
        launches: vec![launched("rmsnorm_backward_bf16", t.div_ceil(32) + 1, threads, arguments)],
    }
}

fn bias_gradient(t: usize, n: usize) -> Case {
    let dy = whole(8, 99, word(t * n));
    let mut partials = vec![0.0_f32; t.div_ceil(32) * n];
    dy.iter().enumerate().for_each(|(i, dy)| partials[i / n / 32 * n + i % n] += dy);
    let arguments = vec![At(0), At(1), At(2), U32(word(n))];
    let (kernel, grid) = ("bias_gradient_bf16", [word(t.div_ceil(32) + 1), word(n.div_ceil(1024)), 1]);
    Case {
        buffers: vec![
            Step { tokens: t, ..Step::default() }.input(),
            Buffer::input(bytes_bf16(&dy)),
            Buffer::output(bytes_f32(&partials)),
        ],
        launches: vec![Launched { kernel, grid, threads: 128, shared: 0, arguments }],
    }
}

fn norm_sums(t: usize, c: usize, accumulate: bool) -> Case {
    let blocks = t.div_ceil(32);
    let (partials, old) = (whole(6, 99, word(blocks * c)), whole(7, 99, word(c)));
    let sum = |i: usize| (0..blocks).fold(0.0, |sum, b| sum + partials[b * c + i]);
    let dw: Vec<f32> = (0..c).map(|i| if accumulate { old[i] + sum(i) } else { sum(i) }).collect();
    let contents = accumulate.then(|| bytes_f32(&old));
    let arguments = vec![At(0), At(1), At(2), U32(word(c))];
    Case {
        buffers: vec![
            Step { tokens: t, accumulate, ..Step::default() }.input(),
            Buffer::input(bytes_f32(&partials)),
            Buffer { contents, ..Buffer::output(bytes_f32(&dw)) },
        ],
        launches: vec![launched("rmsnorm_backward_finish", c.div_ceil(32), 256, arguments)],
    }
}
