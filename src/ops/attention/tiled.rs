//! Attention in blocks of 32 queries by 32 keys on the matrix unit, forward and backward, in bf16 or fp32.
//!
//! Scores are computed as keys × queries (Sᵀ = K·Qᵀ), so that what there is one of per query (largest score, sum,
//! log-sum-exp, delta) runs along vector lanes, and the probabilities leave the block they were computed in as an
//! operand of the next product: as they lie for the gradients of keys and values, as columns for the output
//! and the gradient of the queries. Only blocks that some query sees are computed. The forward pass goes over
//! the keys with a running softmax (Dao et al. 2022, arXiv:2205.14135); the backward pass computes the probabilities
//! again from `lse`.
//!
//! Every sum runs over its blocks in one order, keys ascending or heads, then queries, ascending, however the work is
//! cut: no bit depends on the number of threads or on what else is in the micro-batch.

mod backward;
mod forward;
mod lanes;
mod tasks;

pub use lanes::Operand;

use super::{Heads, Saved};
use crate::ops::product::Output;
use crate::ops::rope::Table;
use crate::ops::tile::{Level, Line, Matrix, SIDE, Unit};
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use tasks::Task;

/// As [`super::forward`].
pub fn forward<T: Operand>(
    level: Level,
    qkv: &[T],
    cu_seqlens: &[u32],
    heads: Heads,
    out: &mut [T],
    lse: &mut [f32],
) {
    let tasks = tasks::tasks(cu_seqlens, heads.kv_heads, rayon::current_num_threads(), tasks::by_queries);
    let (out, lse) = (Output::new(out, heads.width()), Output::new(lse, heads.heads));
    let pass = forward::Forward { level, qkv, heads, out, lse };
    run(level, &tasks, |unit, task| pass.run(unit, task));
}

/// As [`super::backward`]; delta is computed where it is used.
pub fn backward<T: Operand>(
    level: Level,
    saved: &Saved<'_, T>,
    cu_seqlens: &[u32],
    positions: &[u32],
    heads: Heads,
    table: Table<'_>,
    dqkv: &mut [T],
) {
    let tasks =
        tasks::tasks(cu_seqlens, heads.kv_heads, rayon::current_num_threads(), tasks::by_queries_and_keys);
    let dqkv = Output::new(dqkv, heads.qkv_width());
    let pass = backward::Backward { level, saved, positions, heads, table, dqkv };
    run(level, &tasks, |unit, task| pass.run(unit, task));
}

/// All tasks, each by the next thread that is free.
fn run<T: Operand>(level: Level, tasks: &[Task], work: impl Fn(&Unit<T>, &Task) + Sync) {
    let next = AtomicUsize::new(0);
    let workers = rayon::current_num_threads().min(tasks.len());
    (0..workers).into_par_iter().with_max_len(1).for_each(|_| {
        let unit = Unit::new(level);
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(&unit, task);
        }
    });
}

/// Columns `column·D..` of the task's sequence, as a matrix of D columns. `width` is that of `data`'s rows.
fn head<'a, T: Operand>(data: &'a [T], width: usize, task: &Task, column: usize, d: usize) -> Matrix<'a, T> {
    Matrix::strided(&data[task.first * width + column * d..], task.rows, d, width)
}

/// First columns of the halves of block `block`.
fn halves(block: usize) -> [usize; 2] {
    [block * SIDE, block * SIDE + SIDE / 2]
}

/// `all` in parts of `most`, the last as it comes.
fn chunks(all: std::ops::Range<usize>, most: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let end = all.end;
    all.step_by(most).map(move |start| start..end.min(start + most))
}

/// Makes room for `len` elements.
fn room<T: Copy>(v: &mut Vec<T>, len: usize, zero: T) -> &mut [T] {
    if v.len() < len {
        v.resize(len, zero);
    }
    &mut v[..len]
}

/// The `at`th panel along 32 keys or queries.
fn panel<T: Operand>(lines: &mut [Line], at: usize) -> &mut [Line] {
    &mut lines[at * T::LINES..(at + 1) * T::LINES]
}
