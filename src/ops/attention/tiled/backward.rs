//! Gradients of queries, keys and values.

use super::lanes::{self, Operand, Panels, Statistics};
use super::tasks::Share;
use super::{Task, chunks, halves, head, panel, room};
use crate::ops::attention::{Heads, Saved, scale};
use crate::ops::product::Output;
use crate::ops::rope::Table;
use crate::ops::tile::{Block, HALF, Level, Line, Rows, SIDE, Unit, pack_all_rows, pack_columns, transpose};
use std::cell::RefCell;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Blocks of keys that are packed, and whose gradients are added up, at a time.
const KEYS: usize = 16;

/// Blocks of queries likewise.
const QUERIES: usize = 4;

/// A backward pass.
pub struct Backward<'a, T> {
    pub level: Level,
    pub saved: &'a Saved<'a, T>,
    pub positions: &'a [u32],
    pub heads: Heads,
    pub table: Table<'a>,
    pub dqkv: Output<'a, T>,
}

/// What a thread packs and adds up in.
#[derive(Default)]
struct Scratch {
    keys: Keys,
    queries: Queries,
    scores: Vec<Block>,
    weights: Vec<Line>,
    dq: Vec<Block>,
    rows: Vec<f32>,
}

/// Some blocks of keys.
#[derive(Default)]
struct Keys {
    /// Keys and values as rows, block by block, along D.
    k: Vec<Line>,
    v: Vec<Line>,
    /// Keys transposed: 32 of D by all keys.
    k_transposed: Vec<Line>,
    dk: Vec<Block>,
    dv: Vec<Block>,
}

/// Some blocks of queries of a head.
#[derive(Default)]
struct Queries {
    /// Queries and gradients of the output transposed, as columns, block by block, along D.
    q_transposed: Vec<Line>,
    dout_transposed: Vec<Line>,
    /// As columns: 32 of D by all queries.
    q: Vec<Line>,
    dout: Vec<Line>,
    /// Output, packed as the gradients of it, of one block.
    out: Vec<Line>,
    statistics: Vec<Statistics>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<T: Operand> Backward<'_, T> {
    /// Gradients of the task's queries, keys and values.
    pub fn run(&self, unit: &Unit<T>, task: &Task) {
        SCRATCH.with_borrow_mut(|s| self.run_in(unit, task, s));
    }

    fn run_in(&self, unit: &Unit<T>, task: &Task, s: &mut Scratch) {
        let (group, columns, all) = (self.heads.group(), self.heads.head_dim.div_ceil(SIDE), task.queries());
        room(&mut s.dq, group * all.len() * columns, Block::ZERO);
        for keys in chunks(task.keys(), KEYS) {
            self.pack_keys(task, &keys, &mut s.keys);
            for h in 0..group {
                for queries in chunks(all.start.max(keys.start)..all.end, QUERIES) {
                    self.pack_queries(task, task.kv * group + h, &queries, &mut s.queries);
                    let at = (h * all.len() + queries.start - all.start) * columns;
                    self.add(unit, task, &keys, &queries, s, [at, h]);
                    if matches!(task.share, Share::Keys(_)) {
                        continue;
                    }
                    for block in queries.start..queries.end.min(keys.end) {
                        let dq = &s.dq[at + (block - queries.start) * columns..][..columns];
                        self.store_queries(task, task.kv * group + h, block, dq, &mut s.rows);
                    }
                }
            }
            if !matches!(task.share, Share::Queries(_)) {
                self.store_keys(task, &keys, s);
            }
        }
    }

    fn pack_keys(&self, task: &Task, blocks: &Range<usize>, s: &mut Keys) {
        let (d, width) = (self.heads.head_dim, self.heads.qkv_width());
        let (lines, columns, n) = (T::panel_lines(d), d.div_ceil(SIDE), blocks.len());
        let rows = task.clip(blocks);
        let k = head(self.saved.qkv, width, task, self.heads.heads + task.kv, d).rows(rows.clone());
        let v =
            head(self.saved.qkv, width, task, self.heads.heads + self.heads.kv_heads + task.kv, d).rows(rows);
        pack_all_rows(self.level, k, 0, lines, room(&mut s.k, n * lines, Line::ZERO));
        pack_all_rows(self.level, v, 0, lines, room(&mut s.v, n * lines, Line::ZERO));
        pack_all_rows(
            self.level,
            k.t(),
            0,
            n * T::LINES,
            room(&mut s.k_transposed, columns * n * T::LINES, Line::ZERO),
        );
        room(&mut s.dk, n * columns, Block::ZERO);
        room(&mut s.dv, n * columns, Block::ZERO);
    }

    fn pack_queries(&self, task: &Task, h: usize, blocks: &Range<usize>, s: &mut Queries) {
        let (level, d, width) = (self.level, self.heads.head_dim, self.heads.width());
        let (lines, columns, n) = (T::panel_lines(d), d.div_ceil(SIDE), blocks.len());
        let q = head(self.saved.qkv, self.heads.qkv_width(), task, h, d).rows(task.clip(blocks));
        let dout = head(self.saved.dout, width, task, h, d).rows(task.clip(blocks));
        let out = head(self.saved.out, width, task, h, d).rows(task.clip(blocks));
        let q_transposed = room(&mut s.q_transposed, n * lines, Line::ZERO);
        let dout_transposed = room(&mut s.dout_transposed, n * lines, Line::ZERO);
        let packed_out = room(&mut s.out, lines, Line::ZERO);
        let statistics = room(&mut s.statistics, n, Statistics::NONE);
        for (i, statistics) in statistics.iter_mut().enumerate() {
            pack_columns(level, q.t(), halves(i), &mut q_transposed[i * lines..][..lines]);
            let dout_panel = &mut dout_transposed[i * lines..][..lines];
            pack_columns(level, dout.t(), halves(i), dout_panel);
            pack_columns(level, out.t(), halves(i), packed_out);
            *statistics = Statistics { delta: T::dots(level, dout_panel, packed_out), ..Statistics::NONE };
            let rows = task.clip(&(blocks.start + i..blocks.start + i + 1));
            for (lse, row) in statistics.lse.iter_mut().zip(rows) {
                *lse = self.saved.lse[(task.first + row) * self.heads.heads + h] * LOG2_E;
            }
        }
        let along = n * T::LINES;
        let q_columns = room(&mut s.q, columns * along, Line::ZERO);
        let dout_columns = room(&mut s.dout, columns * along, Line::ZERO);
        for column in 0..columns {
            pack_columns(level, q, halves(column), &mut q_columns[column * along..][..along]);
            pack_columns(level, dout, halves(column), &mut dout_columns[column * along..][..along]);
        }
    }

    /// What some blocks of queries of a head have to do with some blocks of keys. `at`: where `s.dq` has these queries.
    fn add(
        &self,
        unit: &Unit<T>,
        task: &Task,
        keys: &Range<usize>,
        queries: &Range<usize>,
        s: &mut Scratch,
        [at, h]: [usize; 2],
    ) {
        let (d, factor) = (self.heads.head_dim, scale(self.heads) * LOG2_E);
        let (lines, columns, n, stride) =
            (T::panel_lines(d), d.div_ceil(SIDE), queries.len(), keys.len() * T::LINES);
        let [scores, dp] = room(&mut s.scores, 2, Block::ZERO) else { unreachable!("two blocks") };
        let weights = room(&mut s.weights, (2 * n + n * keys.len()) * T::LINES, Line::ZERO);
        let (p, rest) = weights.split_at_mut(n * T::LINES);
        let (ds, ds_columns) = rest.split_at_mut(n * T::LINES);
        let (k, q) = (&mut s.keys, &s.queries);
        for key in keys.start..keys.end.min(queries.end) {
            let i = key - keys.start;
            let first = key.saturating_sub(queries.start);
            for j in first..n {
                unit.multiply(
                    Rows::packed(&k.k[i * lines..][..lines]),
                    &q.q_transposed[j * lines..][..lines],
                    scores,
                    false,
                );
                unit.multiply(
                    Rows::packed(&k.v[i * lines..][..lines]),
                    &q.dout_transposed[j * lines..][..lines],
                    dp,
                    false,
                );
                if queries.start + j == key {
                    lanes::mask(self.level, scores);
                }
                let ds_columns = panel::<T>(&mut ds_columns[j * stride..], i);
                let panels = Panels { p: panel::<T>(p, j), ds: panel::<T>(ds, j), ds_columns };
                T::gradients(self.level, scores, dp, factor, &q.statistics[j], panels);
            }
            if matches!(task.share, Share::Queries(_)) {
                continue;
            }
            // The first head's first queries that see the key find nothing to add to.
            let (seen, add) = (first * T::LINES..n * T::LINES, h > 0 || key < queries.start);
            for column in 0..columns {
                let [dout, q] = [&q.dout, &q.q].map(|x| &x[column * n * T::LINES..][seen.clone()]);
                unit.multiply(Rows::packed(&p[seen.clone()]), dout, &mut k.dv[i * columns + column], add);
                unit.multiply(Rows::packed(&ds[seen.clone()]), q, &mut k.dk[i * columns + column], add);
            }
        }
        if matches!(task.share, Share::Keys(_)) {
            return;
        }
        for (j, dq) in s.dq[at..].chunks_exact_mut(columns).take(n).enumerate() {
            let seen = keys.len().min(queries.start + j + 1 - keys.start) * T::LINES;
            for (column, dq) in dq.iter_mut().enumerate() {
                let (k, ds) = (&k.k_transposed[column * stride..][..seen], &ds_columns[j * stride..][..seen]);
                unit.multiply(Rows::packed(k), ds, dq, keys.start > 0);
            }
        }
    }

    /// Turns columns into rows, and stores them.
    fn store_queries(&self, task: &Task, h: usize, block: usize, dq: &[Block], rows: &mut Vec<f32>) {
        let stride = dq.len() * SIDE;
        let rows = room(rows, SIDE * stride, 0.0);
        for (column, dq) in dq.iter().enumerate() {
            // 16 × 16 at a time: as they lie, each half of a row of the block is a line.
            let (halves, _) = bytemuck::cast_slice::<Block, Line>(std::slice::from_ref(dq)).as_chunks::<2>();
            for (part, half) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let mut lines = [Line::ZERO; HALF];
                for i in 0..HALF {
                    lines[i] = halves[part * HALF + i][half];
                }
                transpose(self.level, &mut lines);
                let first = half * HALF * stride + column * SIDE + part * HALF;
                for (row, line) in rows[first..].chunks_mut(stride).zip(lines) {
                    if let Some(to) = row.first_chunk_mut::<HALF>() {
                        *to = bytemuck::cast(line);
                    }
                }
            }
        }
        self.store(task, h, block, true, rows);
    }

    fn store_keys(&self, task: &Task, blocks: &Range<usize>, s: &mut Scratch) {
        let columns = self.heads.head_dim.div_ceil(SIDE);
        let stride = columns * SIDE;
        let rows = room(&mut s.rows, SIDE * stride, 0.0);
        let k = self.heads.heads + task.kv;
        for (column, gradients, turned) in
            [(k, &s.keys.dk, true), (k + self.heads.kv_heads, &s.keys.dv, false)]
        {
            for (block, gradient) in blocks.clone().zip(gradients.chunks_exact(columns)) {
                for (i, row) in rows.chunks_exact_mut(stride).enumerate() {
                    for (to, from) in row.as_chunks_mut().0.iter_mut().zip(gradient) {
                        *to = from.0[i];
                    }
                }
                self.store(task, column, block, turned, rows);
            }
        }
    }

    /// Stores a block's rows of one head, those of queries and keys scaled as the scores were and rotated back.
    fn store(&self, task: &Task, column: usize, block: usize, turned: bool, rows: &mut [f32]) {
        let (d, stride) = (self.heads.head_dim, rows.len() / SIDE);
        for (row, values) in task.clip(&(block..block + 1)).zip(rows.chunks_exact_mut(stride)) {
            let row = task.first + row;
            if turned {
                let at = self.positions[row] as usize * (d / 2);
                let (cos, sin) = (&self.table.cos[at..][..d / 2], &self.table.sin[at..][..d / 2]);
                lanes::finish(self.level, &mut values[..d], scale(self.heads), cos, sin);
            }
            // SAFETY: every row of a head's gradient is written by the one task that has it.
            let to = unsafe { self.dqkv.row(row, column * d, d) };
            T::rounded(self.level, &values[..d], to);
        }
    }
}
