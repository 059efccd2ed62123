//! Asynchronous copies (`cp.async`) of a warp: issued, in groups, waited for.

use super::Stop;
use super::block::Core;
use crate::settings::Order;
use std::collections::VecDeque;

/// One `cp.async` of a warp.
#[derive(Clone)]
pub struct Copy {
    /// Lanes that issued it and have not waited yet.
    pub lanes: u32,
    /// Destinations in shared memory.
    pub to: [u32; 32],
    /// Device addresses of the sources.
    pub from: [u64; 32],
    /// Bytes to read of each source; the rest of the destination becomes zero.
    pub read: [u8; 32],
    /// Bytes of each destination.
    pub bytes: u8,
    /// The bytes were moved at once; only their visibility is pending.
    pub moved: bool,
}

/// Copies of a warp.
#[derive(Default)]
pub struct Copies {
    /// Not yet in a group.
    open: Vec<Copy>,
    /// Groups in the order of their commits: committing lanes, copies.
    groups: VecDeque<(u32, Vec<Copy>)>,
}

impl Copies {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.open.clear();
        self.groups.clear();
    }

    /// Adds a copy to the open group.
    pub fn issue(&mut self, copy: Copy) {
        self.open.push(copy);
    }

    /// `cp.async.commit_group` by the lanes of a mask.
    pub fn commit(&mut self, mask: u32) {
        self.groups.push_back((mask, Self::take(&mut self.open, mask)));
    }

    /// The copies of these lanes, taken out of a list.
    fn take(list: &mut Vec<Copy>, mask: u32) -> Vec<Copy> {
        if list.iter().all(|copy| copy.lanes & !mask == 0) {
            return std::mem::take(list);
        }
        let mut taken = Vec::new();
        for copy in list.iter_mut() {
            let mine = copy.lanes & mask;
            if mine != 0 {
                taken.push(Copy { lanes: mine, ..copy.clone() });
                copy.lanes &= !mine;
            }
        }
        list.retain(|copy| copy.lanes != 0);
        taken
    }

    /// `cp.async.wait_group n` by the lanes of a mask: every lane keeps its last `n` groups pending.
    fn waited(&mut self, mask: u32, n: u32) -> Vec<Copy> {
        let mut seen = [0u32; 32];
        let mut done = Vec::new();
        for (committed, copies) in self.groups.iter_mut().rev() {
            let mine = *committed & mask;
            let mut due = 0;
            for (lane, seen) in seen.iter_mut().enumerate() {
                if mine >> lane & 1 == 1 {
                    due |= u32::from(*seen >= n) << lane;
                    *seen += 1;
                }
            }
            if due != 0 {
                *committed &= !due;
                done.push(Self::take(copies, due));
            }
        }
        self.groups.retain(|(committed, _)| *committed != 0);
        done.into_iter().rev().flatten().collect()
    }

    /// Everything these lanes issued.
    fn all(&mut self, mask: u32) -> Vec<Copy> {
        self.commit(mask);
        self.waited(mask, 0)
    }
}

impl Core<'_> {
    /// Completes what a wait waits for; `None` waits for everything.
    pub(super) fn complete(
        &mut self,
        warp: u32,
        copies: &mut Copies,
        mask: u32,
        keep: Option<u32>,
    ) -> Result<(), Box<Stop>> {
        let due = match keep {
            Some(n) => copies.waited(mask, n),
            None => copies.all(mask),
        };
        for copy in due {
            if !copy.moved {
                self.move_bytes(&copy);
            }
            if self.shadowed {
                let done = self.shadow.complete_async(warp, copy.lanes, &copy.to, u32::from(copy.bytes));
                done.map_err(|hazard| self.hazard(warp, hazard))?;
            }
        }
        Ok(())
    }

    /// Lanes leave: what they never waited for still arrives.
    pub(super) fn abandon(&mut self, copies: &mut Copies, mask: u32) {
        for copy in copies.all(mask) {
            if !copy.moved {
                self.move_bytes(&copy);
            }
        }
    }

    /// Whether a copy moves its bytes at once.
    pub(super) fn copies_early(&mut self) -> bool {
        match self.launch.settings.order {
            Order::Early => true,
            Order::Late => false,
            Order::Seed(_) => self.random() & 1 == 0,
        }
    }

    /// Moves the bytes. Addresses were checked when the copy was issued; a source that was freed since cannot be, as
    /// the launch's view keeps it.
    pub(super) fn move_bytes(&mut self, copy: &Copy) {
        let mut hint = 0;
        for lane in (0..32).filter(|lane| copy.lanes >> lane & 1 == 1) {
            let (to, bytes) = (copy.to[lane] as usize, usize::from(copy.bytes));
            let mut data = [0u8; 16];
            let read = usize::from(copy.read[lane]);
            if read > 0
                && let Some((allocation, offset)) =
                    self.launch.view.locate(&mut hint, copy.from[lane], read as u64)
            {
                match read {
                    16 => data = allocation.load(offset),
                    8 => data[..8].copy_from_slice(&allocation.load::<8>(offset)),
                    4 => data[..4].copy_from_slice(&allocation.load::<4>(offset)),
                    _ => (0..read).for_each(|k| data[k] = allocation.load::<1>(offset + k)[0]),
                }
            }
            self.shared[to..to + bytes].copy_from_slice(&data[..bytes]);
        }
    }
}
