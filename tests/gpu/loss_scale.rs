//! The loss scale that the device changes by itself, against the host's rule.

use super::{NORM_AT, RUNGS, common, open, params, write};
use smolten::arena::{Category, Plan};
use smolten::cuda::{Cuda, LOSS_SCALE_AT};
use smolten::dtype::DType;
use smolten::ops::grad_norm::{DeviceNorm, GradNorm, sum_of_squares};
use smolten::ops::loss_scale::LossScale;

const N: usize = 4100;

fn scale_of(cuda: &mut Cuda) -> LossScale {
    bytemuck::pod_read_unaligned(&cuda.read_step().unwrap()[LOSS_SCALE_AT..][..size_of::<LossScale>()])
}

/// Grows, overflows, grows again; the norm of a step is by the scale of that step.
#[test]
fn the_scale_follows_the_rule_step_by_step() {
    for (rung, growth_interval) in RUNGS.into_iter().flat_map(|rung| [0, 1, 3].map(|n| (rung, n))) {
        let mut plan = Plan::default();
        let grads = plan.tensor(Category::Gradients, 1, N, DType::F32);
        let mut cuda = open(&plan, DType::F16);
        let mut norm = DeviceNorm::new(&cuda, N).unwrap();
        let mut scale = LossScale { value: 8.0, good_steps: 0, growth_interval };
        cuda.write_step(LOSS_SCALE_AT, bytemuck::bytes_of(&scale)).unwrap();
        for step in 0..12u32 {
            let bad = matches!(step, 4 | 5 | 9);
            let mut g = common::uniform(N, u64::from(step) + 1);
            g[N - 1] = if bad { f32::INFINITY } else { g[N - 1] };
            write(&mut cuda, grads, &g);
            // The parameters of every step leave the scale alone.
            cuda.write_step(0, bytemuck::bytes_of(&params(0, bytemuck::Zeroable::zeroed()))).unwrap();
            norm.launch(&cuda, rung, grads).unwrap();
            let want = GradNorm::new(sum_of_squares(&g), scale.value, 1.0);
            let got: GradNorm =
                bytemuck::pod_read_unaligned(&cuda.read_step().unwrap()[NORM_AT..][..size_of::<GradNorm>()]);
            assert_eq!((got.scale.to_bits(), got.skip), (want.scale.to_bits(), want.skip), "step {step}");
            scale = scale.after(bad);
            assert_eq!(scale_of(&mut cuda), scale, "step {step}, interval {growth_interval}, {rung:?}");
        }
        assert_eq!(scale.value == 8.0, growth_interval == 0);
    }
}
