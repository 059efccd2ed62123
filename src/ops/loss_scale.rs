//! Dynamic loss scaling for fp16, kept where the gradients are, so that no step waits for the host.

use crate::dtype::DType;
use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};

/// Good steps after which fp16's scale is doubled (as `torch.amp.GradScaler`).
const GROWTH_INTERVAL: u32 = 2000;

/// Factor on the loss, so that small gradients do not vanish in fp16; 1 and fixed in the other precisions.
/// `struct LossScale` of `kernels/common.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable, Serialize, Deserialize)]
pub struct LossScale {
    /// The factor, a power of two.
    pub value: f32,
    /// Steps in a row whose gradient was finite.
    pub good_steps: u32,
    /// So many of them double the factor; 0 for a factor that stays.
    pub growth_interval: u32,
}

impl LossScale {
    /// At the start of a run in this precision.
    pub fn new(dtype: DType) -> Self {
        let growth_interval = if dtype == DType::F16 { GROWTH_INTERVAL } else { 0 };
        Self { value: if growth_interval > 0 { 65_536.0 } else { 1.0 }, good_steps: 0, growth_interval }
    }

    /// A factor that stays.
    pub fn fixed(value: f32) -> Self {
        Self { value, good_steps: 0, growth_interval: 0 }
    }

    /// After a step: halved when it overflowed, doubled after many that did not; powers of two, so scaling rounds
    /// nothing.
    #[must_use]
    pub fn after(self, skipped: bool) -> Self {
        match self {
            Self { growth_interval: 0, .. } => self,
            _ if skipped => Self { value: self.value / 2.0, good_steps: 0, ..self },
            _ if self.good_steps + 1 < self.growth_interval => {
                Self { good_steps: self.good_steps + 1, ..self }
            }
            _ => Self { value: self.value * 2.0, good_steps: 0, ..self },
        }
    }

    /// Skipping is part of finding the scale, until there is none left to take away.
    pub fn excuses_skipping(&self) -> bool {
        self.growth_interval > 0 && self.value >= 1.0
    }
}

impl Default for LossScale {
    fn default() -> Self {
        Self::fixed(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_scale_halves_on_overflow_and_doubles_after_many_good_steps() {
        let mut scale = LossScale::new(DType::F16).after(true);
        assert_eq!(scale.value, 32_768.0);
        (1..GROWTH_INTERVAL).for_each(|_| scale = scale.after(false));
        assert_eq!(scale.value, 32_768.0);
        scale = scale.after(false);
        assert_eq!((scale.value, scale.good_steps), (65_536.0, 0));
        (0..17).for_each(|_| scale = scale.after(true));
        assert!(!scale.excuses_skipping());
        let fixed = LossScale::new(DType::BF16).after(true);
        assert!(fixed == LossScale::fixed(1.0) && !fixed.excuses_skipping());
    }
}
