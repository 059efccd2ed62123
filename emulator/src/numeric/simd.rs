//! Which vector instructions this machine has.

use std::sync::OnceLock;

/// A set of vector instructions that code is compiled for. All sets give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Simd {
    /// What every machine of the target has.
    Baseline,
    /// AVX2, FMA, F16C, and the bit instructions that come with them.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, besides [`Simd::Avx2`].
    Avx512,
}

impl Simd {
    /// The widest set of this machine.
    pub fn detect() -> Self {
        static DETECTED: OnceLock<Simd> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            {
                let avx2 = is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2")
                    && is_x86_feature_detected!("lzcnt")
                    && is_x86_feature_detected!("popcnt");
                let avx512 = is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl");
                if avx2 {
                    return if avx512 { Simd::Avx512 } else { Simd::Avx2 };
                }
            }
            Simd::Baseline
        })
    }
}
