//! From a warp's access to its runs of bytes: the fast path if it applies, else the general one; messages.

use super::bytes::{Action, Conflict};
use super::fast::{Limits, are_contiguous};
use super::order::{Party, Past, bits};
use super::stamp::{self, GROUP};
use super::{Hazard, Lanes, Shadow};
use crate::fault::FaultKind;

impl Shadow {
    /// A weak read or write of `N` bytes a lane.
    #[inline]
    pub(super) fn weak<const N: usize, const WRITE: bool>(
        &mut self,
        warp: u32,
        lanes: Lanes,
        addresses: &[u32; 32],
    ) -> Result<(), Hazard> {
        let limits = Limits::new(&self.order, warp, !WRITE && self.bytes.initialised, self.bytes.races);
        let stamp = stamp::of(self.order.clock[warp as usize], stamp::LANE, warp, 0);
        if lanes == u32::MAX && are_contiguous::<N>(addresses) {
            let first = addresses[0] as usize;
            let writes = &mut self.bytes.writes[first..first + 32 * N];
            let reads = &mut self.bytes.reads[first..first + 32 * N];
            if limits.are_old(writes, reads) || limits.are_ordered::<N>(writes, reads, 0) {
                let target = if WRITE { writes } else { reads };
                for (bytes, lane) in target.chunks_exact_mut(N).zip(0..) {
                    bytes.fill(stamp | lane);
                }
                return Ok(());
            }
        }
        self.weak_scattered::<N, WRITE>(warp, lanes, addresses, limits)
    }

    fn weak_scattered<const N: usize, const WRITE: bool>(
        &mut self,
        warp: u32,
        lanes: Lanes,
        addresses: &[u32; 32],
        limits: Limits,
    ) -> Result<(), Hazard> {
        let action = if WRITE { Action::Write } else { Action::Read };
        if !WRITE && is_broadcast(lanes, addresses) {
            let byte = addresses[lanes.trailing_zeros() as usize] as usize;
            let done = self.bytes.access(&self.order, byte, N, Party { warp, lanes }, action);
            return done.map_err(|conflict| self.hazard(&conflict, Party { warp, lanes }, action, None));
        }
        let stamp = stamp::of(self.order.clock[warp as usize], stamp::LANE, warp, 0);
        for lane in bits(lanes) {
            let byte = addresses[lane as usize] as usize;
            let writes = &mut self.bytes.writes[byte..byte + N];
            let reads = &mut self.bytes.reads[byte..byte + N];
            if limits.are_old(writes, reads) || limits.are_ordered::<N>(writes, reads, lane) {
                let target = if WRITE { writes } else { reads };
                target.fill(stamp | lane);
                continue;
            }
            let party = Party { warp, lanes: 1 << lane };
            let done = self.bytes.access(&self.order, byte, N, party, action);
            done.map_err(|conflict| self.hazard(&conflict, party, action, Some((lanes, addresses, N))))?;
        }
        Ok(())
    }

    /// Lane by lane.
    pub(super) fn each(
        &mut self,
        warp: u32,
        lanes: Lanes,
        addresses: &[u32; 32],
        bytes: u32,
        action: Action,
    ) -> Result<(), Hazard> {
        let bytes = bytes as usize;
        for lane in bits(lanes) {
            let party = Party { warp, lanes: 1 << lane };
            let done =
                self.bytes.access(&self.order, addresses[lane as usize] as usize, bytes, party, action);
            done.map_err(|conflict| self.hazard(&conflict, party, action, Some((lanes, addresses, bytes))))?;
        }
        Ok(())
    }

    #[inline]
    pub(super) fn read_row(&mut self, warp: u32, row: usize, address: u32) -> Result<(), Hazard> {
        let limits = Limits::new(&self.order, warp, self.bytes.initialised, self.bytes.races);
        let byte = address as usize;
        let writes = &self.bytes.writes[byte..byte + 16];
        let reads = &mut self.bytes.reads[byte..byte + 16];
        if limits.are_old(writes, reads) {
            reads.fill(stamp::of(self.order.clock[warp as usize], GROUP, warp, 0));
            return Ok(());
        }
        let party = Party { warp, lanes: u32::MAX };
        let done = self.bytes.access(&self.order, byte, 16, party, Action::Read);
        done.map_err(|conflict| Hazard { lane: row, ..self.hazard(&conflict, party, Action::Read, None) })
    }

    pub(super) fn write_row(&mut self, warp: u32, row: usize, address: u32) -> Result<(), Hazard> {
        for part in 0..4_u32 {
            let party = Party { warp, lanes: 1 << (4 * (row % 8)) << part };
            let byte = (address + 4 * part) as usize;
            let done = self.bytes.access(&self.order, byte, 4, party, Action::Write);
            done.map_err(|conflict| Hazard {
                lane: row,
                ..self.hazard(&conflict, party, Action::Write, None)
            })?;
        }
        Ok(())
    }

    /// `instruction`: lanes, addresses and bytes of an access whose lanes are taken in turn.
    #[cold]
    fn hazard(
        &self,
        conflict: &Conflict,
        party: Party,
        action: Action,
        instruction: Option<(Lanes, &[u32; 32], usize)>,
    ) -> Hazard {
        let byte = conflict.byte;
        let place = format!("shared[{byte}]");
        // Of several lanes that read together, one that the conflict is with.
        let guilty = |past: &Past| {
            bits(party.lanes).find(|&lane| {
                let alone = Party { warp: party.warp, lanes: 1 << lane };
                !self.order.is_before(past, alone)
            })
        };
        let past = conflict.past.as_ref().filter(|_| conflict.kind == FaultKind::Race);
        let lane = past.and_then(guilty).unwrap_or(party.lanes.trailing_zeros());
        let now = Party { warp: party.warp, lanes: 1 << lane };
        let who = thread(now);
        let does = match action {
            Action::Read | Action::StrongRead => "read",
            Action::Write | Action::StrongWrite => "written",
            Action::Issue | Action::Complete => "copied to",
        };
        let message = match (&conflict.past, conflict.kind) {
            (None, _) => format!("{place} is read by {who}, and nothing was written to it"),
            (Some(past), FaultKind::InFlight) => {
                let issuer = thread(Party { warp: past.warp, lanes: past.lanes });
                format!("{place} is {does} by {who} while a copy to it by {issuer} has not been waited for")
            }
            (Some(past), _) => {
                // Of the past's lanes, one that this one does not come after.
                let lanes =
                    if past.lanes == u32::MAX { past.lanes } else { self.order.not_before(past, now) };
                let other = Party { warp: past.warp, lanes };
                let did = if past.write { "written" } else { "read" };
                let together = instruction.is_some_and(|(lanes, addresses, bytes)| {
                    other.warp == now.warp
                        && past.clock == self.order.clock[now.warp as usize]
                        && bits(lanes & other.lanes & (now.lanes - 1))
                            .any(|l| byte.wrapping_sub(addresses[l as usize] as usize) < bytes)
                });
                let other = thread(other);
                if together {
                    format!("{place} is {does} by {who} and by {other} in one instruction")
                } else {
                    format!("{place} was {did} by {other} and is {does} by {who} with no barrier between")
                }
            }
        };
        Hazard { kind: conflict.kind, lane: lane as usize, message }
    }
}

/// The lowest of the lanes; the warp if all are meant.
fn thread(party: Party) -> String {
    let warp = party.warp;
    match party.lanes {
        u32::MAX => format!("warp {warp}"),
        lanes => format!("thread {} (warp {warp})", 32 * warp + lanes.trailing_zeros()),
    }
}

/// Whether all lanes have the same address.
fn is_broadcast(lanes: Lanes, addresses: &[u32; 32]) -> bool {
    let first = addresses[lanes.trailing_zeros() as usize % 32];
    let mut differ = 0;
    for (lane, address) in addresses.iter().enumerate() {
        differ |= (address ^ first) & (lanes >> lane & 1).wrapping_neg();
    }
    lanes & lanes.wrapping_sub(1) != 0 && differ == 0
}
