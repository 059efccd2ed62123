//! Output and log-sum-exp.

use super::lanes::{self, Operand, Running};
use super::{Task, chunks, halves, head, room};
use crate::ops::attention::{Heads, scale};
use crate::ops::product::Output;
use crate::ops::tile::{Block, HALF, Level, Line, Rows, SIDE, Unit, pack_all_rows, pack_columns, transpose};
use std::cell::RefCell;
use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;

/// Blocks of queries that share a pass over the keys.
const QUERIES: usize = 16;

/// Blocks of keys and values that are packed at a time.
const KEYS: usize = 32;

/// Blocks of keys whose weights are multiplied with the values at a time.
const WEIGHTS: usize = 4;

/// A forward pass.
pub struct Forward<'a, T> {
    pub level: Level,
    pub qkv: &'a [T],
    pub heads: Heads,
    pub out: Output<'a, T>,
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

impl<T: Operand> Forward<'_, T> {
    /// Output of the task's queries.
    pub fn run(&self, unit: &Unit<T>, task: &Task) {
        SCRATCH.with_borrow_mut(|scratch| {
            for queries in chunks(task.queries(), QUERIES) {
                self.queries(unit, task, &queries, scratch);
            }
        });
    }

    /// Blocks of queries of all heads of the group.
    fn queries(&self, unit: &Unit<T>, task: &Task, blocks: &Range<usize>, s: &mut Scratch) {
        let (d, width) = (self.heads.head_dim, self.heads.qkv_width());
        let (lines, columns, n) = (T::panel_lines(d), d.div_ceil(SIDE), blocks.len());
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
            pack_all_rows(self.level, k.rows(rows.clone()), 0, lines, packed);
            let value_lines = keys.len() * T::LINES;
            let values = room(&mut s.values, columns * value_lines, Line::ZERO);
            pack_all_rows(self.level, v.rows(rows).t(), 0, value_lines, values);
            let scores = room(&mut s.scores, 2, Block::ZERO);
            let mut step = Step {
                keys: packed,
                values,
                value_lines,
                level: self.level,
                first: keys.start == 0,
                factor: scale(self.heads) * LOG2_E,
                weights: room(&mut s.weights, WEIGHTS * T::LINES, Line::ZERO),
            };
            for (i, query) in queries.chunks_exact(lines).enumerate() {
                let block = blocks.start + i % n;
                if block >= keys.start {
                    let visible = keys.len().min(block + 1 - keys.start);
                    let own = if block < keys.end { visible - 1 } else { usize::MAX };
                    let sums = &mut sums[i * columns..][..columns];
                    step.add(unit, query, [visible, own], scores, &mut running[i], sums);
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
            for (part, half) in (0..SIDE / T::DEPTH).flat_map(|part| [(part, 0), (part, 1)]) {
                let mut lines = T::lines(self.level, sums, part, half, &inverse);
                transpose(self.level, &mut lines);
                let (first, from) = (rows.start + half * HALF, column * SIDE + part * T::DEPTH);
                for (row, line) in (first..rows.end).zip(&lines) {
                    let values = bytemuck::cast_slice(std::slice::from_ref(line)).as_chunks::<HALF>().0;
                    for (at, values) in (from..d).step_by(HALF).zip(values) {
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
    weights: &'a mut [Line],
}

impl Step<'_> {
    /// Adds the first `visible` blocks of keys, one of which may be its `own`, to what a block of queries has.
    fn add<T: Operand>(
        &mut self,
        unit: &Unit<T>,
        query: &[Line],
        [visible, own]: [usize; 2],
        scores: &mut [Block],
        running: &mut Running,
        sums: &mut [Block],
    ) {
        let [current, next] = scores else { unreachable!("two blocks") };
        let (mut current, mut next) = (current, next);
        let (lines, mut pending) = (query.len(), 0..0);
        unit.multiply(Rows::packed(&self.keys[..lines]), query, current, false);
        for block in 0..visible {
            // Ahead, so that the matrix unit works while the vector unit does.
            if block + 1 < visible {
                unit.multiply(Rows::packed(&self.keys[(block + 1) * lines..][..lines]), query, next, false);
            }
            if block == own {
                lanes::mask(self.level, current);
            }
            if lanes::make_way(self.level, running, current, self.factor) && (pending.end > 0 || !self.first)
            {
                self.multiply(unit, &pending, sums);
                pending.start = pending.end;
                sums.iter_mut().for_each(|sums| lanes::scale(self.level, sums, &running.shrink));
            }
            let panel = super::panel::<T>(self.weights, pending.len());
            T::weigh(self.level, current, self.factor, running, panel);
            pending.end += 1;
            if pending.len() == WEIGHTS || block + 1 == visible {
                self.multiply(unit, &pending, sums);
                pending.start = pending.end;
            }
            (current, next) = (next, current);
        }
    }

    /// Adds the values of blocks `keys`, weighed.
    fn multiply<T: Operand>(&self, unit: &Unit<T>, keys: &Range<usize>, sums: &mut [Block]) {
        let weights = &self.weights[..keys.len() * T::LINES];
        for (column, sums) in sums.iter_mut().enumerate() {
            let values = &self.values[column * self.value_lines + keys.start * T::LINES..][..weights.len()];
            unit.multiply(Rows::packed(values), weights, sums, !(self.first && keys.start == 0));
        }
    }
}
