//! The CUDA side as far as it shows without a GPU: the layout shared with the kernels, and what is said without a driver.

use smolten::backend::StepParams;
use smolten::cuda::{self, Device, PARAMS_BYTES};
use smolten::error::Error;
use smolten::ops::adamw::AdamWScalars;
use smolten::ops::grad_norm::GradNorm;
use std::mem::offset_of;

/// `kernels/common.cuh` declares the fields in this order, each of 4 bytes.
#[test]
fn step_params_are_laid_out_as_the_kernels_read_them() {
    let params = [
        offset_of!(StepParams, tokens),
        offset_of!(StepParams, sequences),
        offset_of!(StepParams, supervised),
        offset_of!(StepParams, distinct_ids),
        offset_of!(StepParams, accumulate),
        offset_of!(StepParams, inverse_denominator),
        offset_of!(StepParams, max_grad_norm),
        offset_of!(StepParams, adamw),
    ];
    assert_eq!(params, [0, 4, 8, 12, 16, 20, 24, 28]);
    assert_eq!(size_of::<StepParams>(), PARAMS_BYTES);
    let scalars = [
        offset_of!(AdamWScalars, beta1),
        offset_of!(AdamWScalars, beta2),
        offset_of!(AdamWScalars, one_minus_beta1),
        offset_of!(AdamWScalars, one_minus_beta2),
        offset_of!(AdamWScalars, step_size),
        offset_of!(AdamWScalars, eps),
        offset_of!(AdamWScalars, sqrt_bias_correction2),
        offset_of!(AdamWScalars, decay),
    ];
    assert_eq!(scalars, [0, 4, 8, 12, 16, 20, 24, 28]);
    assert_eq!(size_of::<AdamWScalars>(), 32);
    let norm = [offset_of!(GradNorm, norm), offset_of!(GradNorm, scale), offset_of!(GradNorm, skip)];
    assert_eq!((norm, size_of::<GradNorm>()), ([0, 8, 12], 16));
}

/// On a machine without libcuda a GPU that is asked for is an error to print, not a panic.
#[test]
fn a_missing_driver_is_said() {
    if cuda::driver_present() {
        return; // this machine has one; tests/gpu uses it
    }
    assert_eq!(cuda::device_count().unwrap(), 0);
    let Err(error) = Device::open(1) else { panic!("opened a GPU without a driver") };
    assert_eq!(error.exit_code(), 2);
    let Error::Input { asked, found, remedy } = &error else { panic!("{error:?}") };
    assert_eq!(asked, "--device cuda:1");
    assert!(found.contains("no NVIDIA driver"), "{found}");
    assert!(remedy.contains("--device cpu"), "{remedy}");
}
