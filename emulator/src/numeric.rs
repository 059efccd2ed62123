//! Arithmetic of PTX on bits: of single values, and of matrix tiles ([`mma`]).
//!
//! A value is its bits in an unsigned integer. Operations are IEEE 754's, correctly rounded; what the ISA adds
//! (flushing of subnormals, saturation, clamping) is a mode. A NaN result is the canonical one of its type, but for
//! f64, whose payloads the ISA keeps.
#![allow(clippy::cast_possible_truncation, reason = "bits are cut and values rounded on purpose")]

pub mod approximate;
pub mod compare;
pub mod convert;
pub mod double;
mod exact;
pub mod half;
pub mod integer;
pub mod mma;
pub mod simd;
pub mod single;

/// The NaN that f32 operations return.
pub const NAN_F32: u32 = 0x7fff_ffff;
/// The NaN that f64 operations return where no operand is one.
pub const NAN_F64: u64 = 0xfff8_0000_0000_0000;
/// The NaN that f16 and bf16 operations return.
pub const NAN_16: u16 = 0x7fff;

/// Rounding to a floating-point format or to an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Round {
    /// To nearest, ties to even: `.rn`, `.rni`.
    Nearest,
    /// To nearest, ties away from zero: `.rna`.
    NearestAway,
    /// Toward zero: `.rz`, `.rzi`.
    Zero,
    /// Toward minus infinity: `.rm`, `.rmi`.
    Down,
    /// Toward plus infinity: `.rp`, `.rpi`.
    Up,
}

impl Round {
    /// Whether a magnitude with this remainder (`half`: compared with half a unit; `inexact`: not 0) goes up.
    fn goes_up(self, negative: bool, odd: bool, inexact: bool, half: std::cmp::Ordering) -> bool {
        match self {
            Round::Nearest => half.is_gt() || half.is_eq() && odd,
            Round::NearestAway => half.is_ge(),
            Round::Zero => false,
            Round::Down => negative && inexact,
            Round::Up => !negative && inexact,
        }
    }
}

/// How an f32 operation rounds and treats extremes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mode {
    /// `.rn`, `.rz`, `.rm`, `.rp`.
    pub round: Round,
    /// `.ftz`: subnormal operands and results become zeros of the same sign.
    pub ftz: bool,
    /// `.sat`: the result is clamped to [0, 1]; NaN becomes +0.
    pub saturate: bool,
}

/// How `min` and `max` treat special operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MinMax {
    /// `.ftz`.
    pub ftz: bool,
    /// `.NaN`: NaN if an operand is; otherwise the other operand wins.
    pub nan: bool,
    /// `.xorsign.abs`: of the magnitudes, with the exclusive or of the signs.
    pub xorsign_abs: bool,
}

/// A class that `testp` tests for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum Class {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}
