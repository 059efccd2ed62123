//! The update of a weight.

use super::*;
use crate::dtype::Element;
use crate::ops::{adamw, adamw_8bit};

impl Cpu {
    /// One weight by one rule.
    pub(super) fn update<E: Element>(&mut self, rule: UpdateRule, weight: &Trainable) -> Result<()> {
        let (scalars, scale, decays) = (&self.params.adamw, self.norm.scale, weight.decays);
        let (master, is_one) = (weight.master, weight.working == weight.master);
        let working = if is_one { master.head(0) } else { weight.working };
        match weight.moments {
            Moments::Full { m, v } => {
                let ([g], [p, working, m, v]) = self.memory.lend([weight.grad], [master, working, m, v]);
                let step = match rule {
                    UpdateRule::Torch => adamw::update::<E>,
                    UpdateRule::Blockwise => adamw_8bit::update_fp32_state::<E>,
                };
                let weight = adamw::Weight { master: p.get(), working: working.get() };
                step(scalars, scale, decays, weight, g.get(), m.get(), v.get())
            }
            Moments::Blockwise { m, m_absmax, v, v_absmax } => {
                let writes = [master, working, m, m_absmax, v, v_absmax];
                let ([g], [p, working, m_codes, m_absmax, v_codes, v_absmax]) =
                    self.memory.lend([weight.grad], writes);
                let state = adamw_8bit::State {
                    m_codes: m_codes.get(),
                    m_absmax: m_absmax.get(),
                    v_codes: v_codes.get(),
                    v_absmax: v_absmax.get(),
                };
                let weight = adamw::Weight::<E> { master: p.get(), working: working.get() };
                adamw_8bit::update(scalars, scale, decays, weight, g.get(), state)
            }
        }
    }
}
