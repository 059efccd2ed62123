//! A warp: rows of registers, and its lanes' places in the program.

use super::Launch;
use super::copy::Copies;
use crate::program::op::{NONE, Reg};
use crate::program::{Constant, Special};

/// All lanes.
pub const FULL: u32 = u32::MAX;

/// A register of 32 bits of all lanes.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Row(pub [u32; 32]);

/// A register of 64 bits of all lanes.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Wide(pub [u64; 32]);

/// Lanes at one place in the program.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    /// Next instruction.
    pub pc: u32,
    /// Its lanes.
    pub mask: u32,
    /// What it waits for.
    pub wait: Wait,
}

/// What lanes wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Nothing.
    No,
    /// These lanes of the warp, at the instruction.
    Lanes(u32),
    /// These lanes, at any `bar.warp.sync`.
    Sync(u32),
    /// The barrier with this number, for which the warp has arrived.
    Barrier(u8),
}

/// A warp.
pub struct Warp<'a> {
    /// The kernel's registers beyond the fourth of an instruction.
    pub pool: &'a [Reg],
    /// Number in the block.
    pub id: u32,
    /// 32-bit rows: registers, then constants.
    pub r: Vec<Row>,
    /// 64-bit rows.
    pub q: Vec<Wide>,
    /// Predicates, a bit per lane.
    pub p: Vec<u32>,
    /// Lanes that have not exited.
    pub live: u32,
    /// Where the live lanes are.
    pub splits: Vec<Split>,
    /// Local memory, one lane after the other.
    pub local: Vec<u8>,
    /// Asynchronous copies.
    pub copies: Copies,
    /// Allocation found last.
    pub hint: usize,
}

impl<'a> Warp<'a> {
    /// A warp with its rows of constants filled in, but for those that depend on the block.
    pub fn new(launch: &Launch<'a>, id: u32) -> Self {
        let code = launch.code;
        let rows = |n| vec![Row([0; 32]); n];
        let mut warp = Self {
            pool: &code.pool,
            id,
            r: rows(code.counts.r32 + code.constants32.len()),
            q: vec![Wide([0; 32]); code.counts.r64 + code.constants64.len()],
            p: vec![0; code.counts.pred],
            live: 0,
            splits: Vec::new(),
            local: vec![0; 32 * launch.kernel.local_bytes as usize],
            copies: Copies::default(),
            hint: 0,
        };
        for (k, constant) in code.constants32.iter().enumerate() {
            for lane in 0..32 {
                let value = constant_value(launch, *constant, id, lane, [0; 3], 4);
                warp.r[code.counts.r32 + k].0[lane as usize] = value as u32;
            }
        }
        for (k, constant) in code.constants64.iter().enumerate() {
            for lane in 0..32 {
                let value = constant_value(launch, *constant, id, lane, [0; 3], 8);
                warp.q[code.counts.r64 + k].0[lane as usize] = value;
            }
        }
        warp
    }

    /// Starts a block: all threads at the first instruction.
    pub fn begin(&mut self, launch: &Launch, block: [u32; 3]) {
        let code = launch.code;
        for (k, constant) in code.constants32.iter().enumerate() {
            if let Constant::Special(Special::Ctaid(axis)) = *constant {
                self.r[code.counts.r32 + k] = Row([block[usize::from(axis)]; 32]);
            }
        }
        for (k, constant) in code.constants64.iter().enumerate() {
            if let Constant::Special(Special::Ctaid(axis)) = *constant {
                self.q[code.counts.r64 + k] = Wide([u64::from(block[usize::from(axis)]); 32]);
            }
        }
        let threads = launch.threads - 32 * self.id;
        self.live = if threads >= 32 { FULL } else { (1 << threads) - 1 };
        // What a register holds that nothing wrote does not depend on the blocks before.
        self.r[..code.counts.r32].fill(Row([0; 32]));
        self.q[..code.counts.r64].fill(Wide([0; 32]));
        self.p.fill(0);
        self.splits.clear();
        self.splits.push(Split { pc: 0, mask: self.live, wait: Wait::No });
        self.copies.clear();
    }

    /// Lanes of `mask` for which a guard holds.
    #[inline(always)]
    pub fn guarded(&self, guard: Reg, negated: bool, mask: u32) -> u32 {
        if guard == NONE {
            return mask;
        }
        let p = self.p[usize::from(guard)];
        mask & if negated { !p } else { p }
    }

    /// Sets a predicate in the lanes of a mask.
    #[inline(always)]
    pub fn set_pred(&mut self, register: Reg, value: u32, mask: u32) {
        if register != NONE {
            let p = &mut self.p[usize::from(register)];
            *p = (*p & !mask) | (value & mask);
        }
    }

    /// Sets a row in the lanes of a mask.
    #[inline(always)]
    pub fn set32(&mut self, register: Reg, value: &[u32; 32], mask: u32) {
        if register == NONE {
            return;
        }
        let row = &mut self.r[usize::from(register)].0;
        if mask == FULL {
            *row = *value;
        } else {
            for lane in 0..32 {
                let keep = (mask >> lane & 1).wrapping_sub(1);
                row[lane] = (row[lane] & keep) | (value[lane] & !keep);
            }
        }
    }

    /// Sets a 64-bit row in the lanes of a mask.
    #[inline(always)]
    pub fn set64(&mut self, register: Reg, value: &[u64; 32], mask: u32) {
        if register == NONE {
            return;
        }
        let row = &mut self.q[usize::from(register)].0;
        if mask == FULL {
            *row = *value;
        } else {
            for lane in 0..32 {
                let keep = u64::from(mask >> lane & 1).wrapping_sub(1);
                row[lane] = (row[lane] & keep) | (value[lane] & !keep);
            }
        }
    }
}

/// A constant's value in a lane, of up to `width` bytes.
fn constant_value(
    launch: &Launch,
    constant: Constant,
    warp: u32,
    lane: u32,
    block: [u32; 3],
    width: usize,
) -> u64 {
    match constant {
        Constant::Bits(bits) => bits,
        Constant::Param(offset, bytes, signed) => {
            let (offset, bytes) = (offset as usize, usize::from(bytes));
            let mut value = [0; 8];
            if let Some(source) = launch.params.get(offset..offset + bytes) {
                value[..bytes].copy_from_slice(source);
            }
            let value = u64::from_le_bytes(value);
            let shift = 64 - 8 * bytes.min(width);
            if signed { ((value << shift) as i64 >> shift) as u64 } else { value }
        }
        Constant::Special(special) => u64::from(special_value(launch, special, warp, lane, block)),
    }
}

fn special_value(launch: &Launch, special: Special, warp: u32, lane: u32, block: [u32; 3]) -> u32 {
    let tid = launch.thread_index(32 * warp + lane);
    let eq = 1u32 << lane;
    match special {
        Special::Tid(axis) => tid[usize::from(axis)],
        Special::Ntid(axis) => launch.config.block[usize::from(axis)],
        Special::Ctaid(axis) => block[usize::from(axis)],
        Special::Nctaid(axis) => launch.config.grid[usize::from(axis)],
        Special::LaneId => lane,
        Special::WarpId => warp,
        Special::NWarpId => launch.threads.div_ceil(32),
        // All blocks run on one multiprocessor as far as they can tell; so results cannot depend on the worker.
        Special::SmId => 0,
        Special::NSmId => 1,
        Special::GridId => 0,
        Special::LanemaskEq => eq,
        Special::LanemaskLe => eq | (eq - 1),
        Special::LanemaskLt => eq - 1,
        Special::LanemaskGe => !(eq - 1),
        Special::LanemaskGt => !(eq | (eq - 1)),
        Special::TotalSmem => launch.kernel.static_shared + launch.config.dynamic_shared,
        Special::DynamicSmem => launch.config.dynamic_shared,
    }
}
