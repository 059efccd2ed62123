//! From a warp's access to its runs of bytes: the fast path if it applies, else the general one.

use super::bytes::Action;
use super::fast::{Limits, are_contiguous, is_broadcast, run, run_mut};
use super::order::{CLOCK_END, Party, bits};
use super::stamp::{self, GROUP, LANE, WEAK};
use super::{Hazard, Lanes, Shadow};

/// Lanes, their addresses, bytes of each.
pub(super) type Instruction<'a> = (Lanes, &'a [u32; 32], usize);

/// Calls the method of that name with wider vectors if the machine has them.
macro_rules! widest {
    ($name:ident $(<$(const $constant:ident: $kind:ty),+>)?, $wide:ident, $body:ident,
     $doc:literal, ($($argument:ident: $type:ty),*)) => {
        #[doc = $doc]
        #[inline]
        pub(super) fn $name $(<$(const $constant: $kind),+>)? (&mut self, $($argument: $type),*)
            -> Result<(), Hazard> {
            #[cfg(target_arch = "x86_64")]
            if self.has_avx2 {
                // SAFETY: `has_avx2` is what the machine said when the shadow was made.
                return unsafe { self.$wide $(::<$($constant),+>)? ($($argument),*) };
            }
            self.$body $(::<$($constant),+>)? ($($argument),*)
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,bmi1,bmi2")]
        fn $wide $(<$(const $constant: $kind),+>)? (&mut self, $($argument: $type),*) -> Result<(), Hazard> {
            self.$body $(::<$($constant),+>)? ($($argument),*)
        }
    };
}

impl Shadow {
    widest!(weak<const N: usize, const WRITE: bool>, weak_avx2, weak_body,
        "A weak read or write of `N` bytes a lane.",
        (warp: u32, lanes: Lanes, addresses: &[u32; 32]));
    widest!(rows, rows_avx2, rows_body, "Rows of 16 bytes read by the whole warp.",
        (warp: u32, addresses: &[u32]));
    widest!(each<const N: usize>, each_avx2, each_body, "Any access, lane by lane.",
        (warp: u32, lanes: Lanes, addresses: &[u32; 32], action: Action));

    #[inline(always)]
    fn weak_body<const N: usize, const WRITE: bool>(
        &mut self,
        warp: u32,
        lanes: Lanes,
        addresses: &[u32; 32],
    ) -> Result<(), Hazard> {
        let limits = Limits::new(&self.order, warp, !WRITE && self.bytes.initialised, self.bytes.races);
        let stamp = stamp::of(self.order.clock[warp as usize], LANE, warp, 0);
        if lanes == u32::MAX && are_contiguous::<N>(addresses) {
            if self.contiguous::<N, WRITE>(addresses[0] as usize, &limits, stamp) {
                return Ok(());
            }
        } else if (WRITE || !is_broadcast(lanes, addresses))
            && self.scattered::<N, WRITE>(lanes, addresses, &limits, stamp)
        {
            return Ok(());
        }
        if WRITE {
            self.lanes_in_turn::<N>(lanes, addresses, &limits, stamp)
        } else {
            self.lanes_together::<N>(lanes, addresses, &limits, stamp)
        }
    }

    /// All lanes, one behind the other: done if all is old or ordered.
    #[inline(always)]
    fn contiguous<const N: usize, const WRITE: bool>(
        &mut self,
        first: usize,
        limits: &Limits,
        stamp: u32,
    ) -> bool {
        let writes = &mut self.bytes.writes[first..first + 32 * N];
        let reads = &mut self.bytes.reads[first..first + 32 * N];
        if !limits.all_are_old(writes, reads) && !limits.all_are_ordered::<N>(writes, reads) {
            return false;
        }
        let target = if WRITE { writes } else { reads };
        for (bytes, lane) in target.as_chunks_mut::<N>().0.iter_mut().zip(0..) {
            *bytes = [stamp | lane; N];
        }
        true
    }

    /// Done if all is old or ordered and no byte is accessed twice.
    #[inline(always)]
    fn scattered<const N: usize, const WRITE: bool>(
        &mut self,
        lanes: Lanes,
        addresses: &[u32; 32],
        limits: &Limits,
        stamp: u32,
    ) -> bool {
        let byte = |lane: u32| addresses[lane as usize] as usize;
        let mut bad = [0; N];
        for lane in bits(lanes) {
            let (writes, reads) = (run(&self.bytes.writes, byte(lane)), run(&self.bytes.reads, byte(lane)));
            limits.gather_old(&mut bad, writes, reads);
        }
        if bad.iter().any(|&bad| bad < 0) {
            bad = [0; N];
            for lane in bits(lanes) {
                let (writes, reads) =
                    (run(&self.bytes.writes, byte(lane)), run(&self.bytes.reads, byte(lane)));
                limits.gather_ordered(&mut bad, writes, reads, lane);
            }
            if bad.iter().any(|&bad| bad < 0) {
                return false;
            }
        }
        let target = if WRITE { &mut self.bytes.writes } else { &mut self.bytes.reads };
        for lane in bits(lanes) {
            *run_mut(target, byte(lane)) = [stamp | lane; N];
        }
        let mut differ = [0; N];
        for lane in bits(lanes) {
            let found: &[u32; N] = run(target, byte(lane));
            (0..N).for_each(|i| differ[i] |= found[i] ^ (stamp | lane));
        }
        if differ == [0; N] {
            return true;
        }
        // Lanes overlap: they are taken in turn. Forgetting is right: what was there is ordered before this access, so
        // reads before these reads count no more, and of bytes that are written twice only that is told.
        for lane in bits(lanes) {
            *run_mut(target, byte(lane)) = [0; N];
        }
        false
    }

    /// Writes.
    #[inline(always)]
    fn lanes_in_turn<const N: usize>(
        &mut self,
        lanes: Lanes,
        addresses: &[u32; 32],
        limits: &Limits,
        stamp: u32,
    ) -> Result<(), Hazard> {
        for lane in bits(lanes) {
            let byte = addresses[lane as usize] as usize;
            let writes: &mut [u32; N] = run_mut(&mut self.bytes.writes, byte);
            if limits.are_ordered(writes, run(&self.bytes.reads, byte), lane) {
                *writes = [stamp | lane; N];
                continue;
            }
            let party = Party { warp: stamp::warp(stamp), lanes: 1 << lane };
            let done = self.bytes.access::<N>(&self.order, byte, party, Action::Write);
            done.map_err(|conflict| {
                self.hazard(&conflict, party, Action::Write, Some((lanes, addresses, N)))
            })?;
        }
        Ok(())
    }

    /// Reads: lanes of the same address that follow each other at once.
    #[inline(always)]
    fn lanes_together<const N: usize>(
        &mut self,
        lanes: Lanes,
        addresses: &[u32; 32],
        limits: &Limits,
        stamp: u32,
    ) -> Result<(), Hazard> {
        let mut rest = lanes;
        while rest != 0 {
            let lane = rest.trailing_zeros();
            let address = addresses[lane as usize];
            let same =
                (0..32).zip(addresses).fold(0, |set, (l, &a)| set | u32::from(a == address) << l) & rest;
            rest &= !same;
            let byte = address as usize;
            let reads: &mut [u32; N] = run_mut(&mut self.bytes.reads, byte);
            if same == 1 << lane && limits.are_ordered(run(&self.bytes.writes, byte), reads, lane) {
                *reads = [stamp | lane; N];
                continue;
            }
            let party = Party { warp: stamp::warp(stamp), lanes: same };
            let done = self.bytes.access::<N>(&self.order, byte, party, Action::Read);
            done.map_err(|conflict| self.hazard(&conflict, party, Action::Read, None))?;
        }
        Ok(())
    }

    #[inline(always)]
    fn each_body<const N: usize>(
        &mut self,
        warp: u32,
        lanes: Lanes,
        addresses: &[u32; 32],
        action: Action,
    ) -> Result<(), Hazard> {
        let limits = Limits::new(&self.order, warp, false, self.bytes.races);
        for lane in bits(lanes) {
            let byte = addresses[lane as usize] as usize;
            let writes: &mut [u32; N] = run_mut(&mut self.bytes.writes, byte);
            let in_flight = stamp::of(CLOCK_END, WEAK, warp, lane);
            if action == Action::Issue
                && self.bytes.races
                && limits.are_old(writes, run(&self.bytes.reads, byte))
            {
                *writes = [in_flight; N];
                self.bytes.in_flight += N;
                continue;
            }
            if action == Action::Complete && *writes == [in_flight; N] {
                *writes = [stamp::of(self.order.clock[warp as usize], WEAK, warp, lane); N];
                self.bytes.in_flight -= N;
                continue;
            }
            let party = Party { warp, lanes: 1 << lane };
            let done = self.bytes.access::<N>(&self.order, byte, party, action);
            done.map_err(|conflict| self.hazard(&conflict, party, action, Some((lanes, addresses, N))))?;
        }
        Ok(())
    }

    #[inline(always)]
    fn rows_body(&mut self, warp: u32, addresses: &[u32]) -> Result<(), Hazard> {
        let limits = Limits::new(&self.order, warp, self.bytes.initialised, self.bytes.races);
        let stamp = stamp::of(self.order.clock[warp as usize], GROUP, warp, 0);
        for (row, &address) in addresses.iter().enumerate() {
            let byte = address as usize;
            let reads: &mut [u32; 16] = run_mut(&mut self.bytes.reads, byte);
            if limits.are_old(run(&self.bytes.writes, byte), reads) {
                *reads = [stamp; 16];
                continue;
            }
            let party = Party { warp, lanes: u32::MAX };
            let done = self.bytes.access::<16>(&self.order, byte, party, Action::Read);
            done.map_err(|conflict| Hazard {
                lane: row,
                ..self.hazard(&conflict, party, Action::Read, None)
            })?;
        }
        Ok(())
    }

    pub(super) fn write_row(&mut self, warp: u32, row: usize, address: u32) -> Result<(), Hazard> {
        for part in 0..4_u32 {
            let party = Party { warp, lanes: 1 << (4 * (row % 8)) << part };
            let byte = (address + 4 * part) as usize;
            let done = self.bytes.access::<4>(&self.order, byte, party, Action::Write);
            done.map_err(|conflict| Hazard {
                lane: row,
                ..self.hazard(&conflict, party, Action::Write, None)
            })?;
        }
        Ok(())
    }
}
