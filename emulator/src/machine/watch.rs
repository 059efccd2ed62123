//! What the shadow and the counters are told of accesses to shared memory.

use super::Stop;
use super::block::Core;
use super::warp::FULL;
use crate::program::op::Access;
use crate::shadow;
use crate::traffic::active as lanes;

type Result<T> = std::result::Result<T, Box<Stop>>;

impl Core<'_> {
    /// A read.
    #[inline(always)]
    pub fn watch_shared(
        &mut self,
        warp: u32,
        access: &Access,
        mask: u32,
        at: &[u32; 32],
        bytes: usize,
    ) -> Result<()> {
        self.count_shared(mask, at, bytes);
        if !self.shadowed {
            return Ok(());
        }
        let found = self.shadow.read(warp, mask, at, width(bytes), strength(access));
        found.map_err(|hazard| self.hazard(warp, hazard))
    }

    /// A write. Where another warp has written the same bytes, it makes no difference which of them wins:
    /// Triton's warps do so when each has a copy of the same values.
    #[inline(always)]
    pub fn watch_store<const N: usize>(
        &mut self,
        warp: u32,
        access: &Access,
        mask: u32,
        at: &[u32; 32],
        data: &[[u8; N]; 32],
    ) -> Result<()> {
        self.count_shared(mask, at, N);
        if !self.shadowed {
            return Ok(());
        }
        let mut left = mask;
        while let Err(hazard) = self.shadow.write(warp, left, at, width(N), strength(access)) {
            let lane = hazard.lane;
            let to = at[lane] as usize;
            if !hazard.of_writes || self.shared[to..to + N] != data[lane] {
                return Err(self.hazard(warp, hazard));
            }
            left &= FULL << lane << 1;
        }
        Ok(())
    }

    #[inline(always)]
    fn count_shared(&mut self, mask: u32, at: &[u32; 32], bytes: usize) {
        if self.launch.settings.checks.counters {
            self.traffic.count_shared(mask, at, width(bytes));
        }
    }
}

fn width(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("at most 32")
}

fn strength(access: &Access) -> shadow::Access {
    if access.strong { shadow::Access::Strong } else { shadow::Access::Weak }
}

/// Lanes of a store but for those that store the same bytes at the same place as a lower one: which of them wins makes
/// no difference, and Triton's reductions do it.
#[inline(always)]
pub fn distinct<const N: usize>(mask: u32, at: &[u32; 32], data: &[[u8; N]; 32]) -> u32 {
    let mut ascending = true;
    for lane in 1..32 {
        ascending &= at[lane - 1] < at[lane];
    }
    if ascending && mask == FULL {
        return mask;
    }
    let twin = |&lane: &usize| {
        lanes(mask).take_while(|&l| l < lane).any(|l| at[l] == at[lane] && data[l] == data[lane])
    };
    lanes(mask).filter(twin).fold(mask, |kept, lane| kept & !(1 << lane))
}
