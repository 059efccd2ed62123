//! The words for a conflict.

use super::access::Instruction;
use super::bytes::{Action, Conflict};
use super::order::{Party, Past, bits};
use super::{Hazard, Shadow};
use crate::fault::FaultKind;

impl Shadow {
    /// `instruction`: lanes, addresses and bytes of an access whose lanes are taken in turn.
    #[cold]
    pub(super) fn hazard(
        &self,
        conflict: &Conflict,
        party: Party,
        action: Action,
        instruction: Option<Instruction<'_>>,
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
        let of_writes = matches!(action, Action::Write | Action::StrongWrite)
            && past.is_some_and(|past| past.write && past.warp != party.warp);
        Hazard { kind: conflict.kind, lane: lane as usize, of_writes, message }
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
