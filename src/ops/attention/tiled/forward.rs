//! Output and log-sum-exp.

use super::lanes::{self, Running};
use super::{Task, chunks, halves, head, room};
use crate::ops::attention::{Heads, scale};
use crate::ops::product::Output;
use crate::ops::tile::{
    Block, HALF, Level, Line, SIDE, Unit, pack_columns, pack_rows, panel_lines, steps, transpose,
};
use half::bf16;
use std::cell::RefCell;
use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;

/// Blocks of queries that share a pass over the keys.
const QUERIES: usize = 16;

/// Blocks of keys for which the running maximum is renewed once. The result depends on it.
const KEYS: usize = 4;

/// A forward pass.
pub struct Forward<'a> {
    pub level: Level,
    pub qkv: &'a [bf16],
    pub heads: Heads,
    pub out: Output<'a, bf16>,
    pub lse: Output<'a, f32>,
}

/// What a thread packs and adds up in.
#[derive(Default)]
struct Scratch {
    queries: Vec<Line>,
    keys: Vec<Line>,
    values: Vec<Line>,
    weights: Vec<Line>,
    scores: Vec<Block>,
    running: Vec<Running>,
    sums: Vec<Block>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Forward<'_> {
    /// Output of the task's queries.
    pub fn run(&self, unit: &Unit, task: &Task) {
        SCRATCH.with_borrow_mut(|scratch| {
            for queries in chunks(task.queries(), QUERIES) {
                self.queries(unit, task, &queries, scratch);
            }
        });
    }

    /// Blocks of queries of all heads of the group.
    fn queries(&self, unit: &Unit, task: &Task, blocks: &Range<usize>, s: &mut Scratch) {
        let (d, width) = (self.heads.head_dim, self.heads.qkv_width());
        let (lines, columns, n) = (panel_lines(d), steps(d), blocks.len());
        let states = self.heads.group() * n;
        let queries = room(&mut s.queries, states * lines, Line::ZERO);
        for (i, panel) in queries.chunks_exact_mut(lines).enumerate() {
            let q = head(self.qkv, width, task, task.kv * self.heads.group() + i / n, d);
            pack_columns(self.level, q.t(), halves(blocks.start + i % n), panel);
        }
        let sums = room(&mut s.sums, states * columns, Block::ZERO);
        let running = room(&mut s.running, states, Running::START);
        running.fill(Running::START);
        let k = head(self.qkv, width, task, self.heads.heads + task.kv, d);
        let v = head(self.qkv, width, task, self.heads.heads + self.heads.kv_heads + task.kv, d);
        for keys in chunks(0..blocks.end, KEYS) {
            let rows = task.clip(&keys);
            let packed = room(&mut s.keys, keys.len() * lines, Line::ZERO);
            pack_rows(self.level, k.rows(rows.clone()), 0, lines, packed);
            let values = room(&mut s.values, columns * keys.len() * SIDE, Line::ZERO);
            pack_rows(self.level, v.rows(rows).t(), 0, keys.len() * SIDE, values);
            let mut step = Step {
                keys: packed,
                values,
                value_lines: keys.len() * SIDE,
                level: self.level,
                first: keys.start == 0,
                factor: scale(self.heads) * LOG2_E,
                scores: room(&mut s.scores, KEYS, Block::ZERO),
                weights: room(&mut s.weights, KEYS * SIDE, Line::ZERO),
            };
            for (i, query) in queries.chunks_exact(lines).enumerate() {
                let block = blocks.start + i % n;
                if block >= keys.start {
                    let visible = keys.len().min(block + 1 - keys.start);
                    let own = block < keys.end;
                    let sums = &mut sums[i * columns..][..columns];
                    step.add(unit, query, visible, own, &mut running[i], sums);
                }
            }
        }
        for (i, (running, sums)) in running.iter().zip(sums.chunks_exact(columns)).enumerate() {
            self.store(task, task.kv * self.heads.group() + i / n, blocks.start + i % n, running, sums);
        }
    }

    /// Divides by the totals, and turns queries from columns into rows.
    fn store(&self, task: &Task, h: usize, block: usize, running: &Running, sums: &[Block]) {
        let (d, rows) = (self.heads.head_dim, task.clip(&(block..block + 1)));
        let mut inverse = running.total;
        for total in &mut inverse {
            *total = 1.0 / *total;
        }
        for (column, sums) in sums.iter().enumerate() {
            for half in 0..2 {
                let mut lines = lanes::pairs(self.level, sums, half, &inverse);
                transpose(self.level, &mut lines);
                let first = rows.start + half * HALF;
                for (row, line) in (first..rows.end).zip(&lines) {
                    for (at, values) in (column * SIDE..d).step_by(HALF).zip(line.0.as_chunks::<HALF>().0) {
                        let width = (d - at).min(HALF);
                        // SAFETY: every row of a head's output is written by the one task that has its queries.
                        unsafe { self.out.put(task.first + row, h * d + at, width, *values) };
                    }
                }
            }
        }
        for (i, row) in rows.enumerate() {
            let lse = running.shift[i] * LN_2 + running.total[i].ln();
            // SAFETY: as above.
            unsafe { self.lse.put(task.first + row, h, 1, [lse; HALF]) };
        }
    }
}

/// Some blocks of keys and values.
struct Step<'a> {
    keys: &'a [Line],
    values: &'a [Line],
    value_lines: usize,
    level: Level,
    first: bool,
    factor: f32,
    scores: &'a mut [Block],
    weights: &'a mut [Line],
}

impl Step<'_> {
    /// Adds the first `visible` blocks to what a block of queries has; `own`: the last of them is its own.
    fn add(
        &mut self,
        unit: &Unit,
        query: &[Line],
        visible: usize,
        own: bool,
        running: &mut Running,
        sums: &mut [Block],
    ) {
        let scores = &mut self.scores[..visible];
        for (scores, keys) in scores.iter_mut().zip(self.keys.chunks_exact(query.len())) {
            unit.multiply(keys, query, scores, false);
        }
        if own {
            lanes::mask(self.level, &mut scores[visible - 1]);
        }
        let rescale = lanes::make_way(self.level, running, scores, self.factor) && !self.first;
        for (scores, panel) in scores.iter().zip(self.weights.as_chunks_mut().0) {
            lanes::weigh(self.level, scores, self.factor, running, panel);
        }
        let weights = &self.weights[..visible * SIDE];
        for (sums, values) in sums.iter_mut().zip(self.values.chunks_exact(self.value_lines)) {
            if rescale {
                lanes::scale(self.level, sums, &running.shrink);
            }
            unit.multiply(&values[..weights.len()], weights, sums, !self.first);
        }
    }
}
