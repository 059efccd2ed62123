//! Atomics, and the other instructions that are rare: asynchronous copies, clocks, address spaces.

use super::Stop;
use super::block::Core;
use super::copy::Copy;
use super::lanes::by_lane;
use super::warp::Warp;
use super::window;
use crate::fault::FaultKind;
use crate::program::lanes::LaneOp;
use crate::program::op::{Access, Instr, Kind, NONE, Op, Space};
use crate::settings::Order;
use crate::traffic::active as lanes;
use std::sync::atomic::Ordering;

type Result<T> = std::result::Result<T, Box<Stop>>;

impl Core<'_> {
    /// An instruction that has no vectorised arm.
    pub fn rare(&mut self, warp: &mut Warp, instr: &Instr, m: u32) -> Result<()> {
        if by_lane(warp, instr, m) {
            return Ok(());
        }
        match instr.op {
            Op::Atomic { access, function, .. } => self.atomic(warp, instr, access, function, m)?,
            Op::IsSpace(space) => {
                let at = &warp.q[usize::from(instr.r[1])].0;
                // The parameters' window is part of global memory's.
                let within = |found| found == space || (space, found) == (Space::Global, Space::Param);
                let found = lanes(m).filter(|&lane| within(window::space(at[lane])));
                let found = found.fold(0u32, |found, lane| found | 1 << lane);
                warp.set_pred(instr.r[0], found, m);
            }
            Op::Clock if instr.kinds[0] == Kind::Def64 => {
                warp.set64(instr.r[0], &[self.clock; 32], m);
            }
            Op::Clock => warp.set32(instr.r[0], &[self.clock as u32; 32], m),
            Op::ActiveMask => warp.set32(instr.r[0], &[m; 32], m),
            Op::CopyAsync { to, from, bytes, .. } => self.copy_async(warp, instr, to, from, bytes, m)?,
            Op::CopyCommit => warp.copies.commit(m),
            Op::CopyWait(keep) => self.complete(warp.id, &mut warp.copies, m, Some(keep))?,
            Op::CopyWaitAll => self.complete(warp.id, &mut warp.copies, m, None)?,
            Op::AssertFail { params } => return Err(self.assert_fail(warp, params, m)),
            Op::Printf { params } => self.printf(warp, params, m)?,
            _ => {
                let lane = m.trailing_zeros() as usize;
                let message = "the kernel executed a trap".to_owned();
                return Err(self.stop(FaultKind::Trap, warp.id, Some(lane), message));
            }
        }
        Ok(())
    }

    /// Lanes in the order in which their atomics happen.
    fn atomic_order(&mut self, m: u32) -> Vec<usize> {
        let mut order: Vec<usize> = lanes(m).collect();
        match self.launch.settings.order {
            Order::Early => {}
            Order::Late => order.reverse(),
            Order::Seed(_) => {
                for k in (1..order.len()).rev() {
                    let other = (self.random() >> 32) as usize % (k + 1);
                    order.swap(k, other);
                }
            }
        }
        order
    }

    fn atomic(
        &mut self,
        warp: &mut Warp,
        instr: &Instr,
        access: Access,
        function: LaneOp,
        m: u32,
    ) -> Result<()> {
        let mut old = [0u64; 32];
        let mut left = m;
        let bytes = usize::from(access.bytes);
        while left != 0 {
            let (place, rest) = self.places(warp, instr.r[1], &access, left);
            left = rest;
            // Atomics of misaligned addresses cannot be carried out at all, whatever is checked.
            if let Some(lane) = lanes(place.mask).find(|&lane| place.at[lane] % bytes as u64 != 0) {
                let message = format!("atomic of {bytes} bytes at {:#x}", place.at[lane]);
                return Err(self.stop(FaultKind::Misaligned, warp.id, Some(lane), message));
            }
            if self.launch.settings.checks.counters {
                self.traffic.atomics += 1;
            }
            let shared = match place.space {
                Space::Shared => {
                    let at = self.shared_addresses(warp.id, &place, bytes)?;
                    self.watch_atomic(warp.id, &access, place.mask, &at, bytes)?;
                    true
                }
                Space::Global | Space::Generic => false,
                _ => {
                    let lane = place.mask.trailing_zeros() as usize;
                    let message = "atomic on local or parameter memory".to_owned();
                    return Err(self.stop(FaultKind::OutOfBounds, warp.id, Some(lane), message));
                }
            };
            let function = if shared { function.in_shared() } else { function };
            for lane in self.atomic_order(place.mask) {
                let source = |k: usize| match instr.kinds[k] {
                    Kind::Use32 => u64::from(warp.r[usize::from(instr.r[k])].0[lane]),
                    Kind::Use64 => warp.q[usize::from(instr.r[k])].0[lane],
                    _ => 0,
                };
                let (b, c) = (source(2), source(3));
                old[lane] = if shared {
                    let at = place.at[lane] as usize;
                    let mut cell = [0; 8];
                    cell[..bytes].copy_from_slice(&self.shared[at..at + bytes]);
                    let before = u64::from_le_bytes(cell);
                    let after = function.apply([before, b, c]).to_le_bytes();
                    self.shared[at..at + bytes].copy_from_slice(&after[..bytes]);
                    before
                } else {
                    self.atomic_global(warp, lane, place.at[lane], bytes, |before| {
                        function.apply([before, b, c])
                    })?
                };
            }
        }
        if instr.r[0] != NONE {
            if instr.kinds[0] == Kind::Def64 {
                warp.set64(instr.r[0], &old, m);
            } else {
                warp.set32(instr.r[0], &old.map(|v| v as u32), m);
            }
        }
        Ok(())
    }

    /// An atomic both reads and writes, and does not race with other atomics.
    fn watch_atomic(
        &mut self,
        warp: u32,
        access: &Access,
        mask: u32,
        at: &[u32; 32],
        bytes: usize,
    ) -> Result<()> {
        self.watch_shared(warp, access, mask, at, bytes)?;
        if self.shadowed {
            // One lane after the other: two lanes may well update one word.
            for lane in lanes(mask) {
                let bytes = u32::try_from(bytes).expect("at most 8");
                let found = self.shadow.write(warp, 1 << lane, at, bytes, crate::shadow::Access::Strong);
                found.map_err(|hazard| self.hazard(warp, hazard))?;
            }
        }
        Ok(())
    }

    fn atomic_global(
        &mut self,
        warp: &mut Warp,
        lane: usize,
        address: u64,
        bytes: usize,
        update: impl Fn(u64) -> u64,
    ) -> Result<u64> {
        let found = self.launch.view.locate(&mut warp.hint, address, bytes as u64);
        let Some((allocation, offset)) = found else {
            return Err(self.outside(warp.id, lane, "atomic", address, bytes));
        };
        if self.launch.settings.checks.initialised && !allocation.is_written(offset, bytes) {
            let message = format!("atomic of {bytes} bytes at {address:#x} that nothing wrote");
            return Err(self.stop(FaultKind::Uninitialised, warp.id, Some(lane), message));
        }
        let relaxed = Ordering::Relaxed;
        let old = match bytes {
            8 => {
                let cell = allocation.atomic_u64(offset);
                cell.fetch_update(relaxed, relaxed, |old| Some(update(old))).unwrap_or_else(|old| old)
            }
            4 => {
                let cell = allocation.atomic_u32(offset);
                let update = |old: u32| Some(update(u64::from(old)) as u32);
                u64::from(cell.fetch_update(relaxed, relaxed, update).unwrap_or_else(|old| old))
            }
            _ => {
                let cell = allocation.atomic_u16(offset);
                let update = |old: u16| Some(update(u64::from(old)) as u16);
                u64::from(cell.fetch_update(relaxed, relaxed, update).unwrap_or_else(|old| old))
            }
        };
        allocation.mark_written(offset, bytes);
        Ok(old)
    }

    fn copy_async(
        &mut self,
        warp: &mut Warp,
        instr: &Instr,
        to: i32,
        from: i32,
        bytes: u8,
        m: u32,
    ) -> Result<()> {
        let access = |space, offset, wide_address| Access {
            wide_address,
            offset: i64::from(offset),
            ..Access::new(space, bytes)
        };
        let size = usize::from(bytes);
        let wide = instr.kinds[1] == Kind::Use64;
        let (target, _) = self.places(warp, instr.r[1], &access(Space::Shared, to, wide), m);
        let (source, _) = self.places(warp, instr.r[2], &access(Space::Global, from, true), m);
        self.check_alignment(warp.id, &target, size)?;
        self.check_alignment(warp.id, &source, size)?;
        let at = self.shared_addresses(warp.id, &target, size)?;
        let mut copy = Copy { lanes: m, to: at, from: source.at, read: [bytes; 32], bytes, moved: false };
        for lane in lanes(m) {
            if instr.r[3] != NONE {
                let asked = warp.r[usize::from(instr.r[3])].0[lane];
                copy.read[lane] = u8::try_from(asked).unwrap_or(u8::MAX);
                if copy.read[lane] > bytes {
                    let message = format!("source size {asked} of a copy of {bytes} bytes");
                    return Err(self.stop(FaultKind::OutOfBounds, warp.id, Some(lane), message));
                }
            }
            let read = usize::from(copy.read[lane]);
            if read == 0 {
                continue;
            }
            let found = self.launch.view.locate(&mut warp.hint, source.at[lane], read as u64);
            let Some((allocation, offset)) = found else {
                return Err(self.outside(warp.id, lane, "copy", source.at[lane], read));
            };
            if self.launch.settings.checks.initialised && !allocation.is_written(offset, read) {
                let message = format!("copy of {read} bytes at {:#x} that nothing wrote", source.at[lane]);
                return Err(self.stop(FaultKind::Uninitialised, warp.id, Some(lane), message));
            }
        }
        if self.launch.settings.checks.counters {
            let reads =
                lanes(m).filter(|&lane| copy.read[lane] > 0).fold(0u32, |reads, lane| reads | 1 << lane);
            // A lane that reads some of the bytes and fills up with zeros counts as if it read all.
            self.traffic.global_loads.count(reads, &source.at, u32::from(bytes));
            self.traffic.count_shared(m, &at, u32::from(bytes));
        }
        if self.shadowed {
            let found = self.shadow.issue_async(warp.id, m, &at, u32::from(bytes));
            found.map_err(|hazard| self.hazard(warp.id, hazard))?;
        }
        if self.copies_early() {
            self.move_bytes(&copy);
            copy.moved = true;
        }
        warp.copies.issue(copy);
        Ok(())
    }
}
