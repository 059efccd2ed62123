//! What the processor has for products of bf16.

use std::sync::OnceLock;

static BEST: OnceLock<Level> = OnceLock::new();

/// A way to multiply, from the plainest to the fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Whatever the target's baseline is.
    Portable,
    /// 8 lanes of fp32; bf16 is widened on the way.
    Avx2,
    /// 16 lanes of fp32; bf16 is widened on the way.
    Avx512,
    /// Pairs of bf16 in 16 lanes (VDPBF16PS).
    Avx512Bf16,
    /// Tiles of 16 × 32 bf16 (TDPBF16PS).
    Amx,
}

impl Level {
    /// Every level, plainest first.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// Whether this processor has it and the kernel lets us use it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Portable => true,
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            Self::Avx512Bf16 => Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            // Packing uses AVX-512; every processor with AMX has it.
            Self::Amx => Self::Avx512Bf16.is_available() && super::amx::is_permitted(),
        }
        #[cfg(not(target_arch = "x86_64"))]
        return self == Self::Portable;
    }

    /// The fastest one available, within what [`Level::limit`] allowed.
    #[inline]
    pub fn best() -> Self {
        *BEST.get_or_init(Self::of_processor)
    }

    /// The fastest one that this processor has, whatever the process is kept to; settles nothing.
    pub fn of_processor() -> Self {
        Self::fastest(Self::Amx)
    }

    fn fastest(limit: Self) -> Self {
        let within = Self::ALL.into_iter().rev().filter(|&level| level <= limit);
        within.into_iter().find(|level| level.is_available()).unwrap_or(Self::Portable)
    }

    /// Keeps this process to `limit` and plainer ones, here and in [`crate::ops::math::simd`]: for tests and measurements.
    /// False if something has been computed already, or the processor does not have it.
    pub fn limit(limit: Self) -> bool {
        limit.is_available() && BEST.set(Self::fastest(limit)).is_ok()
    }

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512_bf16",
            Self::Amx => "amx",
        }
    }

    /// Whether it multiplies bf16 as such, without widening.
    pub fn has_bf16(self) -> bool {
        self >= Self::Avx512Bf16
    }
}
