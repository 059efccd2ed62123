//! Instructions in which the lanes of a warp work together: shuffles, votes, matrix fragments and products.

use super::Stop;
use super::block::Core;
use super::run::Step;
use super::warp::{FULL, Warp};
use crate::fault::FaultKind;
use crate::numeric::mma::Mma;
use crate::program::op::{Instr, Kind, Op, ShuffleMode, VoteMode};
use crate::traffic::active as lanes;

type Result<T> = std::result::Result<T, Box<Stop>>;

/// What a shuffle reads from a lane that takes no part: undefined on a card, no plausible value here.
const UNDEFINED: u32 = 0x7fff_dead;

impl Core<'_> {
    /// Lanes that must meet at a collective instruction: the union of the members' masks, or all of the warp.
    pub fn needed(&self, warp: &Warp, instr: &Instr, m: u32) -> u32 {
        let register = match instr.op {
            Op::Shuffle(_) => warp.pool[instr.wide as usize],
            Op::Vote(..) | Op::Match { .. } | Op::Redux(_) => instr.r[2],
            _ => return warp.live,
        };
        let masks = &warp.r[usize::from(register)].0;
        let mut need = 0;
        for lane in 0..32 {
            need |= masks[lane] & (m >> lane & 1).wrapping_neg();
        }
        need
    }

    /// Executes a collective instruction once its lanes have met.
    pub fn collective(&mut self, warp: &mut Warp, instr: &Instr, mask: u32, m: u32) -> Result<Step> {
        let aligned = matches!(instr.op, Op::Mma(_) | Op::LoadMatrix { .. } | Op::StoreMatrix { .. });
        let first = m.trailing_zeros() as usize;
        if aligned && m != mask {
            let message = format!("only lanes {m:#010x} of {mask:#010x} execute it: its guard differs");
            return Err(self.stop(FaultKind::Divergence, warp.id, Some(first), message));
        }
        if self.needed(warp, instr, m) & warp.live & !m != 0 {
            return Ok(Step::Blocked);
        }
        if aligned && m != FULL {
            let message = format!("needs all 32 lanes, and the warp has {m:#010x}");
            return Err(self.stop(FaultKind::Divergence, warp.id, Some(first), message));
        }
        match instr.op {
            Op::Mma(mma) => self.mma(warp, instr, mma),
            Op::LoadMatrix { transposed, offset } => self.load_matrix(warp, instr, transposed, offset)?,
            Op::StoreMatrix { transposed, offset } => self.store_matrix(warp, instr, transposed, offset)?,
            _ => {
                self.own_bits(warp, instr, m)?;
                match instr.op {
                    Op::Shuffle(mode) => shuffle(warp, instr, mode, m),
                    Op::Vote(mode, negated) => vote(warp, instr, mode, negated, m),
                    Op::Match { all, .. } => match_lanes(warp, instr, all, m),
                    _ => redux(warp, instr, m),
                }
            }
        }
        Ok(Step::Next)
    }

    /// Every lane must be in its own member mask.
    fn own_bits(&self, warp: &Warp, instr: &Instr, m: u32) -> Result<()> {
        let register =
            if let Op::Shuffle(_) = instr.op { warp.pool[instr.wide as usize] } else { instr.r[2] };
        let masks = &warp.r[usize::from(register)].0;
        let mut members = 0;
        for lane in 0..32 {
            members |= masks[lane] & 1 << lane;
        }
        if m & !members == 0 {
            return Ok(());
        }
        let lane = (m & !members).trailing_zeros() as usize;
        let message = format!("the member mask {:#010x} leaves out the lane itself", masks[lane]);
        Err(self.stop(FaultKind::Divergence, warp.id, Some(lane), message))
    }

    fn mma(&mut self, warp: &mut Warp, instr: &Instr, mma: Mma) {
        let registers = &warp.pool[instr.wide as usize..];
        let (d, rest) = registers.split_at(mma.d_rows());
        let (a, rest) = rest.split_at(mma.a_rows());
        let (b, rest) = rest.split_at(mma.b_rows());
        let row = |r: &u16| &warp.r[usize::from(*r)].0;
        let (mut rows, zero) = ([[0u32; 32]; 4], [0u32; 32]);
        let (mut of_a, mut of_b, mut of_c) = ([&zero; 4], [&zero; 2], [&zero; 4]);
        a.iter().zip(&mut of_a).for_each(|(r, to)| *to = row(r));
        b.iter().zip(&mut of_b).for_each(|(r, to)| *to = row(r));
        rest[..mma.c_rows()].iter().zip(&mut of_c).for_each(|(r, to)| *to = row(r));
        let result = &mut rows[..d.len()];
        mma.run(self.launch.simd, result, &of_a[..a.len()], &of_b[..b.len()], &of_c[..mma.c_rows()]);
        for (register, row) in d.iter().zip(&rows) {
            warp.set32(*register, row, FULL);
        }
    }

    /// Row addresses of `ldmatrix` and `stmatrix`: eight per matrix, one from each lane.
    fn row_addresses(&self, warp: &Warp, instr: &Instr, offset: i32) -> Result<[u32; 32]> {
        let mut at = [0u32; 32];
        let rows = 8 * usize::from(instr.wide_len);
        for lane in 0..32 {
            let base = match instr.kinds[1] {
                Kind::Use64 => warp.q[usize::from(instr.r[1])].0[lane] as u32,
                _ => warp.r[usize::from(instr.r[1])].0[lane],
            };
            at[lane] = base.wrapping_add_signed(offset);
            if lane >= rows {
                continue;
            }
            if at[lane] as usize + 16 > self.shared.len() {
                let message = format!("row at shared[{}] of {}", at[lane], self.shared.len());
                return Err(self.stop(FaultKind::OutOfBounds, warp.id, Some(lane), message));
            }
            if at[lane] % 16 != 0 {
                let message = format!("row of 16 bytes at shared[{}]", at[lane]);
                return Err(self.stop(FaultKind::Misaligned, warp.id, Some(lane), message));
            }
        }
        Ok(at)
    }

    /// Wavefronts: eight rows of 16 bytes at a time.
    fn count_rows(&mut self, at: &[u32; 32], rows: usize) {
        if self.launch.settings.checks.counters {
            let mask = if rows == 32 { FULL } else { (1 << rows) - 1 };
            self.traffic.count_shared(mask, at, 16);
        }
    }

    fn load_matrix(&mut self, warp: &mut Warp, instr: &Instr, transposed: bool, offset: i32) -> Result<()> {
        let at = self.row_addresses(warp, instr, offset)?;
        let matrices = usize::from(instr.wide_len);
        self.count_rows(&at, 8 * matrices);
        if self.shadowed {
            let found = self.shadow.read_rows(warp.id, &at[..8 * matrices]);
            found.map_err(|hazard| self.hazard(warp.id, hazard))?;
        }
        for k in 0..matrices {
            // A lane gets two neighbours of a row: a word. Transposed, two neighbours of a column.
            let mut v = [0u32; 32];
            for (row, words) in v.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *words = self.shared_words(at[8 * k + row] as usize);
            }
            if transposed {
                v = transpose(&v);
            }
            warp.set32(warp.pool[instr.wide as usize + k], &v, FULL);
        }
        Ok(())
    }

    /// The 16 bytes of a row.
    #[inline(always)]
    fn shared_words(&self, from: usize) -> [u32; 4] {
        let bytes: &[u8; 16] = self.shared[from..].first_chunk().expect("row_addresses checked the bounds");
        let (words, _) = bytes.as_chunks::<4>();
        [words[0], words[1], words[2], words[3]].map(u32::from_le_bytes)
    }

    fn store_matrix(&mut self, warp: &mut Warp, instr: &Instr, transposed: bool, offset: i32) -> Result<()> {
        let at = self.row_addresses(warp, instr, offset)?;
        let matrices = usize::from(instr.wide_len);
        self.count_rows(&at, 8 * matrices);
        if self.shadowed {
            let found = self.shadow.write_rows(warp.id, &at[..8 * matrices]);
            found.map_err(|hazard| self.hazard(warp.id, hazard))?;
        }
        for k in 0..matrices {
            let v = warp.r[usize::from(warp.pool[instr.wide as usize + k])].0;
            for (lane, v) in v.iter().enumerate() {
                let (i, j) = (lane / 4, lane % 4 * 2);
                for (half, value) in [(0, *v as u16), (1, (*v >> 16) as u16)] {
                    let (row, column) = if transposed { (j + half, i) } else { (i, j + half) };
                    let to = at[8 * k + row] as usize + 2 * column;
                    self.shared[to..to + 2].copy_from_slice(&value.to_le_bytes());
                }
            }
        }
        Ok(())
    }
}

/// Eight rows of eight 16-bit elements, two to a word, to columns.
fn transpose(rows: &[u32; 32]) -> [u32; 32] {
    let mut cells = [[0u16; 8]; 8];
    for (lane, word) in rows.iter().enumerate() {
        let (row, column) = (lane / 4, lane % 4 * 2);
        cells[column][row] = *word as u16;
        cells[column + 1][row] = (*word >> 16) as u16;
    }
    let mut columns = [0u32; 32];
    for (lane, word) in columns.iter_mut().enumerate() {
        let (column, row) = (lane / 4, lane % 4 * 2);
        *word = u32::from(cells[column][row]) | u32::from(cells[column][row + 1]) << 16;
    }
    columns
}

/// Source lane of each lane and whether it lies in its segment, by the ISA's formulas.
#[inline(always)]
fn source(mode: ShuffleMode, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let most = (lane & segment) | (clamp & !segment);
    let least = lane & segment;
    let (from, inside) = match mode {
        ShuffleMode::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= most as i32),
        ShuffleMode::Down => (lane + b, lane + b <= most),
        ShuffleMode::Bfly => (lane ^ b, lane ^ b <= most),
        ShuffleMode::Idx => (least | (b & !segment), least | (b & !segment) <= most),
    };
    (if inside { from } else { lane }, inside)
}

fn shuffle(warp: &mut Warp, instr: &Instr, mode: ShuffleMode, m: u32) {
    // Each with a loop of its own, which the compiler vectorises.
    match mode {
        ShuffleMode::Up => shuffle_from(warp, instr, m, |l, b, c| source(ShuffleMode::Up, l, b, c)),
        ShuffleMode::Down => shuffle_from(warp, instr, m, |l, b, c| source(ShuffleMode::Down, l, b, c)),
        ShuffleMode::Bfly => shuffle_from(warp, instr, m, |l, b, c| source(ShuffleMode::Bfly, l, b, c)),
        ShuffleMode::Idx => shuffle_from(warp, instr, m, |l, b, c| source(ShuffleMode::Idx, l, b, c)),
    }
}

#[inline(always)]
fn shuffle_from(warp: &mut Warp, instr: &Instr, m: u32, source: impl Fn(u32, u32, u32) -> (u32, bool)) {
    let (b, c) = (&warp.r[usize::from(instr.r[2])].0, &warp.r[usize::from(instr.r[3])].0);
    let (mut from, mut p) = ([0u32; 32], 0u32);
    for lane in 0..32 {
        let (lane_of, inside) = source(lane as u32, b[lane], c[lane]);
        from[lane] = lane_of & 31;
        p |= u32::from(inside) << lane;
    }
    let a = &warp.r[usize::from(instr.r[1])].0;
    let mut v = [0u32; 32];
    for lane in 0..32 {
        let value = a[from[lane] as usize & 31];
        v[lane] = if m >> from[lane] & 1 == 1 { value } else { UNDEFINED };
    }
    warp.set32(instr.r[0], &v, m);
    warp.set_pred(warp.pool[instr.wide as usize + 1], p & m, m);
}

/// Lanes of `m` that share a lane's member mask.
fn group(masks: &[u32; 32], lane: usize, m: u32) -> u32 {
    masks[lane] & m
}

fn vote(warp: &mut Warp, instr: &Instr, mode: VoteMode, negated: bool, m: u32) {
    let masks = warp.r[usize::from(instr.r[2])].0;
    let p = match instr.kinds[1] {
        Kind::UsePred => warp.p[usize::from(instr.r[1])],
        _ => {
            if warp.r[usize::from(instr.r[1])].0[0] != 0 {
                FULL
            } else {
                0
            }
        }
    };
    let p = if negated { !p } else { p };
    let (mut ballots, mut found) = ([0u32; 32], 0u32);
    for lane in lanes(m) {
        let members = group(&masks, lane, m);
        let yes = p & members;
        ballots[lane] = yes;
        let holds = match mode {
            VoteMode::All => yes == members,
            VoteMode::Any => yes != 0,
            VoteMode::Uni => yes == 0 || yes == members,
            VoteMode::Ballot => false,
        };
        found |= u32::from(holds) << lane;
    }
    if mode == VoteMode::Ballot {
        warp.set32(instr.r[0], &ballots, m);
    } else {
        warp.set_pred(instr.r[0], found, m);
    }
}

fn match_lanes(warp: &mut Warp, instr: &Instr, all: bool, m: u32) {
    let masks = warp.r[usize::from(instr.r[2])].0;
    let values: [u64; 32] = match instr.kinds[1] {
        Kind::Use64 => warp.q[usize::from(instr.r[1])].0,
        _ => warp.r[usize::from(instr.r[1])].0.map(u64::from),
    };
    let (mut v, mut p) = ([0u32; 32], 0u32);
    for lane in lanes(m) {
        let members = group(&masks, lane, m);
        let same = lanes(members).filter(|&l| values[l] == values[lane]).fold(0u32, |same, l| same | 1 << l);
        p |= u32::from(same == members) << lane;
        v[lane] = if all && same != members { 0 } else { same };
    }
    warp.set32(instr.r[0], &v, m);
    warp.set_pred(warp.pool[instr.wide as usize], p, m);
}

fn redux(warp: &mut Warp, instr: &Instr, m: u32) {
    let Op::Redux(function) = instr.op else { return };
    let masks = warp.r[usize::from(instr.r[2])].0;
    let a = warp.r[usize::from(instr.r[1])].0;
    let mut v = [0u32; 32];
    for lane in lanes(m) {
        let mut members = lanes(group(&masks, lane, m)).map(|l| u64::from(a[l]));
        let first = members.next().unwrap_or(0);
        v[lane] = members.fold(first, |x, y| function.apply([x, y, 0])) as u32;
    }
    warp.set32(instr.r[0], &v, m);
}
