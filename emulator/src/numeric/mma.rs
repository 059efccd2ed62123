//! `mma.sync`: products of matrix tiles that are spread over a warp's registers.

use super::simd::Simd;

/// A register of 32 lanes.
pub type Row = [u32; 32];

/// A form of `mma.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mma {}

impl Mma {
    /// By the words after `mma`, from `sync`.
    pub fn parse(_modifiers: &[&str]) -> Option<Self> {
        todo!()
    }

    /// Registers of A.
    pub fn a_rows(&self) -> usize {
        todo!()
    }

    /// Registers of B.
    pub fn b_rows(&self) -> usize {
        todo!()
    }

    /// Registers of C.
    pub fn c_rows(&self) -> usize {
        todo!()
    }

    /// Registers of D.
    pub fn d_rows(&self) -> usize {
        todo!()
    }

    /// Lowest compute capability that has it, e.g. 80.
    pub fn minimum_capability(&self) -> u32 {
        todo!()
    }

    /// `D = A B + C` of a warp.
    pub fn run(&self, _level: Simd, _d: &mut [Row], _a: &[&Row], _b: &[&Row], _c: &[&Row]) {
        todo!()
    }
}
