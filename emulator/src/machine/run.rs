//! The loop over a warp's instructions.

use super::Stop;
use super::block::{Core, Pause};
use super::warp::{Split, Wait, Warp};
use crate::fault::FaultKind;
#[cfg(target_arch = "x86_64")]
use crate::numeric::simd::Simd;
use crate::program::op::{BarrierAction, BarrierMode, Instr, NONE, Op};
use crate::settings::Order;

type Result<T> = std::result::Result<T, Box<Stop>>;

/// What follows a collective instruction.
pub enum Step {
    /// It was executed.
    Next,
    /// Its lanes wait for others.
    Blocked,
}

impl Core<'_> {
    /// Runs a warp until it must wait, has used up its turn or ends.
    pub fn run_warp(&mut self, warp: &mut Warp) -> Result<Pause> {
        let checks = self.launch.settings.checks;
        let checked = self.shadowed || checks.alignment || checks.initialised || checks.counters;
        match checked {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Simd::detect` found the features that the level stands for.
            true if self.launch.simd >= Simd::Avx2 => unsafe { run_avx2::<true>(self, warp) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            false if self.launch.simd >= Simd::Avx2 => unsafe { run_avx2::<false>(self, warp) },
            true => run::<true>(self, warp),
            false => run::<false>(self, warp),
        }
    }
}

// AVX-512 gains nothing here (measured); `mma` has code of its own for it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
fn run_avx2<const CHECKED: bool>(core: &mut Core, warp: &mut Warp) -> Result<Pause> {
    run::<CHECKED>(core, warp)
}

#[inline(always)]
fn run<const CHECKED: bool>(core: &mut Core, warp: &mut Warp) -> Result<Pause> {
    let launch = core.launch;
    let code = &launch.code.instrs[..];
    let mut fuel = core.fuel();
    'pick: loop {
        let Some((mut pc, mut mask)) = core.pick(warp)? else {
            return Ok(if warp.live == 0 { Pause::Done } else { Pause::Waiting });
        };
        let divergent = !warp.splits.is_empty();
        loop {
            if fuel == 0 || (divergent && core.must_yield(warp, pc)) {
                warp.splits.push(Split { pc, mask, wait: Wait::No });
                if fuel == 0 {
                    return Ok(Pause::More);
                }
                fuel -= 1;
                continue 'pick;
            }
            fuel -= 1;
            let instr = &code[pc as usize];
            core.pc = pc;
            core.clock += 1;
            core.executed[pc as usize] += 1;
            let m = warp.guarded(instr.guard, instr.negated, mask);
            if CHECKED {
                core.traffic.active_lanes += u64::from(m.count_ones());
            }
            if m == 0 {
                pc += 1;
                continue;
            }
            match instr.op {
                Op::Bra(target) => {
                    if m == mask {
                        pc = target;
                        continue;
                    }
                    core.traffic.divergent_branches += 1;
                    warp.splits.push(Split { pc: target, mask: m, wait: Wait::No });
                    warp.splits.push(Split { pc: pc + 1, mask: mask & !m, wait: Wait::No });
                    continue 'pick;
                }
                Op::BrxIdx { .. } => {
                    core.branch_indexed(warp, instr, pc, mask, m)?;
                    continue 'pick;
                }
                Op::Exit => {
                    core.exit(warp, m);
                    mask &= !m;
                    if mask == 0 {
                        continue 'pick;
                    }
                }
                Op::WarpSync => {
                    core.warp_sync(warp, instr, pc, mask, m)?;
                    continue 'pick;
                }
                Op::Barrier(mode) => match core.barrier(warp, instr, mode, pc, mask, m)? {
                    Some(pause) => return Ok(pause),
                    None => continue 'pick,
                },
                Op::Mma(_)
                | Op::LoadMatrix { .. }
                | Op::StoreMatrix { .. }
                | Op::Shuffle(_)
                | Op::Vote(..)
                | Op::Match { .. }
                | Op::Redux(_) => {
                    if let Step::Blocked = core.collective(warp, instr, mask, m)? {
                        core.block(warp, instr, pc, mask, m);
                        continue 'pick;
                    }
                }
                Op::Load(access) => core.load::<CHECKED>(warp, instr, access, m)?,
                Op::Store(access) => core.store::<CHECKED>(warp, instr, access, m)?,
                _ => {
                    if !super::alu::execute(warp, instr, m) {
                        core.rare(warp, instr, m)?;
                    }
                }
            }
            pc += 1;
        }
    }
}

impl Core<'_> {
    /// Chooses the lanes to run next and takes them out of the list: those at the lowest instruction, so that lanes
    /// meet again; or any, by the seed.
    fn pick(&mut self, warp: &mut Warp) -> Result<Option<(u32, u32)>> {
        if let [Split { pc, mask, wait: Wait::No }] = warp.splits[..] {
            warp.splits.clear();
            return Ok(Some((pc, mask)));
        }
        let ready = warp.splits.iter().filter(|split| split.wait == Wait::No);
        let pc = match self.launch.settings.order {
            Order::Seed(_) => {
                let ready: Vec<u32> = ready.map(|split| split.pc).collect();
                let choice = (self.random() >> 32) as usize;
                ready.get(choice.checked_rem(ready.len()).unwrap_or(0)).copied()
            }
            // Once in a while the last ones, in case the first ones wait in a loop for them.
            _ if self.clock & 0xffff > 0xc000 => ready.map(|split| split.pc).max(),
            _ => ready.map(|split| split.pc).min(),
        };
        let Some(pc) = pc else {
            let waits = |split: &Split| matches!(split.wait, Wait::Barrier(_));
            if warp.splits.iter().all(waits) {
                return Ok(None);
            }
            return Err(self.never_met(warp));
        };
        let mut mask = 0;
        warp.splits.retain(|split| {
            let meets = split.pc == pc && matches!(split.wait, Wait::No | Wait::Lanes(_));
            mask |= if meets { split.mask } else { 0 };
            !meets
        });
        Ok(Some((pc, mask)))
    }

    /// Whether lanes about to execute `pc` should let others go first, or meet others there.
    fn must_yield(&mut self, warp: &Warp, pc: u32) -> bool {
        let lowest_first = match self.launch.settings.order {
            Order::Seed(_) => {
                if self.random() & 15 == 0 {
                    return true;
                }
                false
            }
            _ => self.clock & 0xffff <= 0xc000,
        };
        warp.splits.iter().any(|split| match split.wait {
            Wait::No => split.pc == pc || (lowest_first && split.pc < pc),
            Wait::Lanes(_) => split.pc == pc,
            Wait::Sync(_) | Wait::Barrier(_) => false,
        })
    }

    /// No lane of the warp can run, and not all wait at one barrier.
    #[cold]
    fn never_met(&mut self, warp: &Warp) -> Box<Stop> {
        let describe = |split: &Split| {
            let (line, text, _) = self.launch.kernel.describe(split.pc as usize);
            format!("lanes {:#010x} at line {line}: {text}", split.mask)
        };
        let places: Vec<String> = warp.splits.iter().take(4).map(describe).collect();
        let first = warp.splits[0];
        let missing = match first.wait {
            Wait::Lanes(need) | Wait::Sync(need) => need & warp.live & !first.mask,
            _ => warp.live & !first.mask,
        };
        self.pc = first.pc;
        let lane = first.mask.trailing_zeros() as usize;
        let message = format!("lanes {missing:#010x} never come: {}", places.join("; "));
        self.stop(FaultKind::Divergence, warp.id, Some(lane), message)
    }

    /// Lanes that are not guarded go on; the others wait where they are.
    fn block(&mut self, warp: &mut Warp, instr: &Instr, pc: u32, mask: u32, m: u32) {
        let need = self.needed(warp, instr, m);
        warp.splits.push(Split { pc, mask: m, wait: Wait::Lanes(need) });
        if mask & !m != 0 {
            warp.splits.push(Split { pc: pc + 1, mask: mask & !m, wait: Wait::No });
        }
    }

    fn branch_indexed(&mut self, warp: &mut Warp, instr: &Instr, pc: u32, mask: u32, m: u32) -> Result<()> {
        let Op::BrxIdx { first, count } = instr.op else { return Ok(()) };
        let index = warp.r[usize::from(instr.r[1])].0;
        if mask & !m != 0 {
            warp.splits.push(Split { pc: pc + 1, mask: mask & !m, wait: Wait::No });
        }
        let mut left = m;
        while left != 0 {
            let lane = left.trailing_zeros() as usize;
            let chosen = index[lane];
            if chosen >= count {
                let message = format!("branch index {chosen} of {count}");
                return Err(self.stop(FaultKind::OutOfBounds, warp.id, Some(lane), message));
            }
            let same = (0..32).filter(|&l| left >> l & 1 == 1 && index[l as usize] == chosen);
            let group = same.fold(0u32, |group, l| group | 1 << l);
            let target = self.launch.code.tables[(first + chosen) as usize];
            warp.splits.push(Split { pc: target, mask: group, wait: Wait::No });
            left &= !group;
        }
        Ok(())
    }

    fn exit(&mut self, warp: &mut Warp, m: u32) {
        self.abandon(&mut warp.copies, m);
        warp.live &= !m;
        // Those that wait may wait for nobody else now.
        for split in &mut warp.splits {
            if let Wait::Lanes(_) | Wait::Sync(_) = split.wait {
                split.wait = Wait::No;
            }
        }
    }

    /// `bar.warp.sync`: lanes wait for their fellows at any such instruction.
    fn warp_sync(&mut self, warp: &mut Warp, instr: &Instr, pc: u32, mask: u32, m: u32) -> Result<()> {
        if mask & !m != 0 {
            warp.splits.push(Split { pc: pc + 1, mask: mask & !m, wait: Wait::No });
        }
        let masks = warp.r[usize::from(instr.r[1])].0;
        let mut left = m;
        while left != 0 {
            let lane = left.trailing_zeros() as usize;
            let need = masks[lane];
            if need >> lane & 1 == 0 {
                let message = format!("the member mask {need:#010x} leaves out the lane itself");
                return Err(self.stop(FaultKind::Divergence, warp.id, Some(lane), message));
            }
            let group = (0..32).filter(|&l| left >> l & 1 == 1 && masks[l] == need);
            let group = group.fold(0u32, |group, l| group | 1 << l);
            left &= !group;
            let fellows = warp.splits.iter().filter(|split| split.wait == Wait::Sync(need));
            let met = fellows.fold(group, |met, split| met | split.mask);
            if need & warp.live & !met != 0 {
                warp.splits.push(Split { pc, mask: group, wait: Wait::Sync(need) });
                continue;
            }
            if self.shadowed {
                self.shadow.warp_barrier(warp.id, met);
            }
            for split in warp.splits.iter_mut().filter(|split| split.wait == Wait::Sync(need)) {
                *split = Split { pc: split.pc + 1, mask: split.mask, wait: Wait::No };
            }
            warp.splits.push(Split { pc: pc + 1, mask: group, wait: Wait::No });
        }
        Ok(())
    }

    /// `bar`, `barrier`: the warp arrives when all its lanes did.
    fn barrier(
        &mut self,
        warp: &mut Warp,
        instr: &Instr,
        mode: BarrierMode,
        pc: u32,
        mask: u32,
        m: u32,
    ) -> Result<Option<Pause>> {
        let lane = m.trailing_zeros() as usize;
        if mode.aligned && m != mask {
            let message = format!("only lanes {m:#010x} of {mask:#010x} execute it: its guard differs");
            return Err(self.stop(FaultKind::Divergence, warp.id, Some(lane), message));
        }
        if mask & !m != 0 {
            warp.splits.push(Split { pc: pc + 1, mask: mask & !m, wait: Wait::No });
        }
        // Lanes that need not be aligned may wait at several barrier instructions.
        let code = &self.launch.code.instrs[..];
        let joins =
            |split: &Split| matches!(split.wait, Wait::Lanes(_)) && same_barrier(code, instr, split.pc);
        let met = if mode.aligned {
            m
        } else {
            warp.splits.iter().filter(|split| joins(split)).fold(m, |met, split| met | split.mask)
        };
        if met != warp.live {
            warp.splits.push(Split { pc, mask: m, wait: Wait::Lanes(warp.live) });
            return Ok(None);
        }
        let number = warp.r[usize::from(instr.r[1])].0;
        let threads = instr.r[2];
        let threads = (threads != NONE).then(|| warp.r[usize::from(threads)].0[lane]);
        if (0..32).any(|l| m >> l & 1 == 1 && number[l] != number[lane]) {
            let message = "lanes of one warp name different barriers".to_owned();
            return Err(self.stop(FaultKind::Barrier, warp.id, Some(lane), message));
        }
        let votes = match mode.action {
            BarrierAction::Reduce(_, negated) => {
                let p = warp.p[usize::from(instr.r[3])];
                (m & if negated { !p } else { p }).count_ones()
            }
            _ => 0,
        };
        self.traffic.barriers += 1;
        let arrived = self.arrive(warp, number[lane], threads, mode.action, votes)?;
        let waits = mode.action != BarrierAction::Arrive;
        let wait = if waits { Wait::Barrier(arrived) } else { Wait::No };
        let joining: Vec<u32> = warp.splits.iter().filter(|split| joins(split)).map(|s| s.pc).collect();
        for split in warp.splits.iter_mut().filter(|split| !mode.aligned && joining.contains(&split.pc)) {
            *split = Split { pc: split.pc + u32::from(!waits), mask: split.mask, wait };
        }
        warp.splits.push(Split { pc: pc + u32::from(!waits), mask: m, wait });
        Ok(Some(Pause::Arrived(arrived)))
    }
}

/// Whether the instruction at `pc` is a barrier of the same kind.
fn same_barrier(code: &[Instr], instr: &Instr, pc: u32) -> bool {
    match (instr.op, code[pc as usize].op) {
        (Op::Barrier(a), Op::Barrier(b)) => a == b,
        _ => false,
    }
}
