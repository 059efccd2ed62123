//! Comparisons of `setp` and `set`.

use super::convert::{bf16_to_f32, f16_to_f32};
use super::half::{Bf16, F16, flush as flush_half};
use super::single::flush;

/// A comparison. Those ending in U are true of unordered operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Lo,
    Ls,
    Hi,
    Hs,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

impl Compare {
    /// By its word.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "eq" => Compare::Eq,
            "ne" => Compare::Ne,
            "lt" => Compare::Lt,
            "le" => Compare::Le,
            "gt" => Compare::Gt,
            "ge" => Compare::Ge,
            "lo" => Compare::Lo,
            "ls" => Compare::Ls,
            "hi" => Compare::Hi,
            "hs" => Compare::Hs,
            "equ" => Compare::Equ,
            "neu" => Compare::Neu,
            "ltu" => Compare::Ltu,
            "leu" => Compare::Leu,
            "gtu" => Compare::Gtu,
            "geu" => Compare::Geu,
            "num" => Compare::Num,
            "nan" => Compare::Nan,
            _ => return None,
        })
    }

    /// The relations it is true of: 1 less, 2 equal, 4 greater, 8 unordered.
    #[inline(always)]
    const fn relations(self) -> u32 {
        match self {
            Compare::Eq => 2,
            Compare::Ne => 1 | 4,
            Compare::Lt | Compare::Lo => 1,
            Compare::Le | Compare::Ls => 1 | 2,
            Compare::Gt | Compare::Hi => 4,
            Compare::Ge | Compare::Hs => 4 | 2,
            Compare::Equ => 8 | 2,
            Compare::Neu => 8 | 1 | 4,
            Compare::Ltu => 8 | 1,
            Compare::Leu => 8 | 1 | 2,
            Compare::Gtu => 8 | 4,
            Compare::Geu => 8 | 4 | 2,
            Compare::Num => 1 | 2 | 4,
            Compare::Nan => 8,
        }
    }

    /// Compares numbers. The type says whether they are signed. No branch, so that a loop vectorises.
    #[inline(always)]
    pub fn test<T: PartialOrd + Copy>(self, a: T, b: T) -> bool {
        let (less, equal, greater) = (u32::from(a < b), u32::from(a == b), u32::from(a > b));
        let ordered = less | equal << 1 | greater << 2;
        let relation = ordered | u32::from(ordered == 0) << 3;
        self.relations() & relation != 0
    }

    /// Compares f32.
    #[inline(always)]
    pub fn f32(self, a: u32, b: u32, ftz: bool) -> bool {
        let clean = |x| f32::from_bits(if ftz { flush(x) } else { x });
        self.test(clean(a), clean(b))
    }

    /// Compares f64.
    #[inline(always)]
    pub fn f64(self, a: u64, b: u64) -> bool {
        self.test(f64::from_bits(a), f64::from_bits(b))
    }

    /// Compares f16.
    #[inline(always)]
    pub fn f16(self, a: u16, b: u16, ftz: bool) -> bool {
        let clean = |x| f32::from_bits(f16_to_f32(if ftz { flush_half::<F16>(x) } else { x }));
        self.test(clean(a), clean(b))
    }

    /// Compares bf16.
    #[inline(always)]
    pub fn bf16(self, a: u16, b: u16, ftz: bool) -> bool {
        let clean = |x| f32::from_bits(bf16_to_f32(if ftz { flush_half::<Bf16>(x) } else { x }));
        self.test(clean(a), clean(b))
    }
}
