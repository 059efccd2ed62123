//! Register allocation: the compiler's registers, one per value, to few rows, so that a warp's rows stay in cache.
//!
//! Every lane is a thread of its own with its own column of a row, and a write under a mask leaves the other columns
//! alone. So an allocation that is right for one thread's program is right for the warp, however it diverges.

use super::op::{Instr, Kind, NONE, Op, Reg};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Register of an instruction before allocation: index of a register, or of a constant row plus [`CONSTANT`].
pub type Virtual = u32;

/// Marks a constant row.
pub const CONSTANT: Virtual = 1 << 31;

/// No register.
pub const NO_REGISTER: Virtual = u32::MAX;

/// An instruction before allocation.
#[derive(Clone, Debug)]
pub struct Draft {
    /// What to do.
    pub op: Op,
    /// Destination first, then sources.
    pub r: [(Virtual, Kind); 4],
    /// Vectors, fragments.
    pub wide: Vec<(Virtual, Kind)>,
    /// Predicate register and `@!`.
    pub guard: Option<(Virtual, bool)>,
}

/// Rows of the three files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of 32 bits.
    pub r32: usize,
    /// Of 64 bits.
    pub r64: usize,
    /// Predicates.
    pub pred: usize,
}

/// Instructions and the pool their `wide` points into.
pub struct Allocated {
    /// In the order of the drafts.
    pub code: Vec<Instr>,
    /// Registers beyond the fourth.
    pub pool: Vec<Reg>,
    /// Rows used by registers; constants follow.
    pub counts: Counts,
}

/// Allocates. `before` are the numbers of virtual registers; `None` if more rows than a [`Reg`] can name are needed.
pub fn allocate(drafts: &[Draft], tables: &[u32], before: Counts, constants: Counts) -> Option<Allocated> {
    let blocks = Blocks::of(drafts, tables);
    let maps = [
        map(drafts, &blocks, before.r32, Kind::Use32, Kind::Def32),
        map(drafts, &blocks, before.r64, Kind::Use64, Kind::Def64),
        map(drafts, &blocks, before.pred, Kind::UsePred, Kind::DefPred),
    ];
    let counts = Counts { r32: maps[0].1, r64: maps[1].1, pred: maps[2].1 };
    let most = (counts.r32 + constants.r32).max(counts.r64 + constants.r64).max(counts.pred);
    if most >= usize::from(NONE) {
        return None;
    }
    let rename = |(register, kind): (Virtual, Kind)| -> Reg {
        let file = match kind {
            Kind::None => return NONE,
            Kind::Use32 | Kind::Def32 => 0,
            Kind::Use64 | Kind::Def64 => 1,
            Kind::UsePred | Kind::DefPred => 2,
        };
        if register == NO_REGISTER {
            return NONE;
        }
        let row = if register & CONSTANT != 0 {
            maps[file].1 + (register & !CONSTANT) as usize
        } else {
            maps[file].0[register as usize] as usize
        };
        Reg::try_from(row).expect("checked against the largest above")
    };
    let mut pool = Vec::new();
    let mut code = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let wide = u32::try_from(pool.len()).ok()?;
        pool.extend(draft.wide.iter().map(|&r| rename(r)));
        code.push(Instr {
            op: draft.op,
            r: draft.r.map(rename),
            kinds: draft.r.map(|(_, kind)| kind),
            guard: draft.guard.map_or(NONE, |(p, _)| rename((p, Kind::UsePred))),
            negated: draft.guard.is_some_and(|(_, negated)| negated),
            wide_len: u8::try_from(draft.wide.len()).ok()?,
            wide,
        });
    }
    Some(Allocated { code, pool, counts })
}

/// Basic blocks: ranges of instructions, and where each goes on.
struct Blocks {
    ranges: Vec<std::ops::Range<usize>>,
    successors: Vec<Vec<usize>>,
}

impl Blocks {
    fn of(drafts: &[Draft], tables: &[u32]) -> Self {
        let n = drafts.len();
        let mut leads = vec![false; n + 1];
        leads[0] = true;
        let targets = |draft: &Draft| -> Vec<usize> {
            match draft.op {
                Op::Bra(target) => vec![target as usize],
                Op::BrxIdx { first, count } => {
                    tables[first as usize..(first + count) as usize].iter().map(|&t| t as usize).collect()
                }
                _ => Vec::new(),
            }
        };
        for (i, draft) in drafts.iter().enumerate() {
            if matches!(draft.op, Op::Bra(_) | Op::BrxIdx { .. } | Op::Exit | Op::Trap) {
                leads[i + 1] = true;
                targets(draft).into_iter().for_each(|t| leads[t] = true);
            }
        }
        let starts: Vec<usize> = (0..n).filter(|&i| leads[i]).collect();
        let mut block_of = vec![0; n];
        let mut ranges = Vec::with_capacity(starts.len());
        for (b, &start) in starts.iter().enumerate() {
            let end = starts.get(b + 1).copied().unwrap_or(n);
            block_of[start..end].fill(b);
            ranges.push(start..end);
        }
        let successors = ranges.iter().map(|range| {
            let last = &drafts[range.end - 1];
            let mut next: Vec<usize> = targets(last).into_iter().map(|t| block_of[t]).collect();
            let ends = matches!(last.op, Op::Bra(_) | Op::BrxIdx { .. } | Op::Exit | Op::Trap);
            if range.end < n && (!ends || last.guard.is_some()) {
                next.push(block_of[range.end]);
            }
            next
        });
        let successors = successors.collect();
        Self { ranges, successors }
    }
}

/// Registers of one file an instruction reads, then those it writes. A guarded write keeps the old value in other
/// lanes, so it reads, too.
fn touched(draft: &Draft, used: Kind, defined: Kind) -> (Vec<usize>, Vec<usize>) {
    let (mut uses, mut defs) = (Vec::new(), Vec::new());
    for &(register, kind) in draft.r.iter().chain(&draft.wide) {
        if register == NO_REGISTER || register & CONSTANT != 0 {
            continue;
        }
        if kind == used || (kind == defined && draft.guard.is_some()) {
            uses.push(register as usize);
        }
        if kind == defined {
            defs.push(register as usize);
        }
    }
    if let (Some((p, _)), Kind::UsePred) = (draft.guard, used) {
        uses.push(p as usize);
    }
    (uses, defs)
}

/// Row of every virtual register of one file, and the number of rows: linear scan over live intervals.
fn map(drafts: &[Draft], blocks: &Blocks, n: usize, used: Kind, defined: Kind) -> (Vec<u32>, usize) {
    if n == 0 {
        return (Vec::new(), 0);
    }
    let intervals = intervals(drafts, blocks, n, used, defined);
    let mut order: Vec<usize> = (0..n).filter(|&r| intervals[r].0 <= intervals[r].1).collect();
    order.sort_by_key(|&r| intervals[r].0);
    let mut rows = vec![0; n];
    let (mut free, mut active, mut next) = (Vec::new(), BinaryHeap::new(), 0u32);
    for r in order {
        let (start, end) = intervals[r];
        while let Some(&Reverse((ended, row))) = active.peek() {
            if ended >= start {
                break;
            }
            active.pop();
            free.push(row);
        }
        let row = free.pop().unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        rows[r] = row;
        active.push(Reverse((end, row)));
    }
    (rows, next as usize)
}

/// First and last instruction at which a register holds a value that is read later; (MAX, 0) if it is not used.
fn intervals(drafts: &[Draft], blocks: &Blocks, n: usize, used: Kind, defined: Kind) -> Vec<(usize, usize)> {
    let words = n.div_ceil(64);
    let count = blocks.ranges.len();
    let (mut reads, mut writes) = (vec![0u64; count * words], vec![0u64; count * words]);
    let mut found = vec![(usize::MAX, 0); n];
    for (b, range) in blocks.ranges.iter().enumerate() {
        for i in range.clone() {
            let (uses, defs) = touched(&drafts[i], used, defined);
            for r in uses {
                if writes[b * words + r / 64] >> (r % 64) & 1 == 0 {
                    reads[b * words + r / 64] |= 1 << (r % 64);
                }
                found[r] = (found[r].0.min(i), found[r].1.max(i));
            }
            for r in defs {
                writes[b * words + r / 64] |= 1 << (r % 64);
                found[r] = (found[r].0.min(i), found[r].1.max(i));
            }
        }
    }
    let mut live_in = reads.clone();
    let mut changed = true;
    while changed {
        changed = false;
        for b in (0..count).rev() {
            for w in 0..words {
                let out = blocks.successors[b].iter().fold(0, |out, &s| out | live_in[s * words + w]);
                let new = reads[b * words + w] | (out & !writes[b * words + w]);
                changed |= new != live_in[b * words + w];
                live_in[b * words + w] = new;
            }
        }
    }
    for (b, range) in blocks.ranges.iter().enumerate() {
        for w in 0..words {
            let mut at_start = live_in[b * words + w];
            let mut at_end = blocks.successors[b].iter().fold(0, |out, &s| out | live_in[s * words + w]);
            while at_start != 0 {
                let r = w * 64 + at_start.trailing_zeros() as usize;
                found[r] = (found[r].0.min(range.start), found[r].1.max(range.start));
                at_start &= at_start - 1;
            }
            while at_end != 0 {
                let r = w * 64 + at_end.trailing_zeros() as usize;
                found[r] = (found[r].0.min(range.end - 1), found[r].1.max(range.end - 1));
                at_end &= at_end - 1;
            }
        }
    }
    found
}
