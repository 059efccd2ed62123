//! `mma.sync`: products of matrix tiles that are spread over a warp's registers.
//!
//! The arithmetic is the published one (arXiv 2511.10909) of Turing, Ampere and Ada. In steps of 16 bytes of k, the
//! exact products and the accumulator are aligned to the largest exponent among them, cut toward zero at 24 bits
//! below it, and summed exactly; the sum is rounded toward zero to f32, or to nearest to f16. The exponent of a
//! product is the sum of its operands' exponents, a subnormal has its format's lowest exponent, a zero -126. A sum
//! of zero is +0; an f32 sum beyond the range is infinite. Integers are summed exactly.

#![allow(clippy::needless_range_loop, reason = "a loop over rows or lanes indexes several arrays at once")]

mod integer;
mod plain;
mod reference;
mod tile;
#[cfg(target_arch = "x86_64")]
mod wide;

use super::simd::Simd;
use integer::Integer;

/// A register of 32 lanes.
pub type Row = [u32; 32];

/// Bits that are kept below the largest exponent.
const FRACTION_BITS: i32 = 24;

/// Rows of A, C and D.
const M: usize = 16;
/// Columns of B, C and D.
const N: usize = 8;

/// Type of the elements of A and B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    F16,
    Bf16,
    Tf32,
}

/// A form of `mma.sync.aligned.m16n8k*.row.col`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mma {
    /// Of f16, bf16 or tf32.
    Float(Float),
    /// Of bytes.
    Integer(Integer),
}

/// The forms of floating-point numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Float {
    element: Element,
    /// Of 8 elements of k, or 4 of tf32.
    steps: usize,
    /// C and D are f16.
    half: bool,
}

impl Mma {
    /// By the words after `mma`, from `sync`.
    pub fn parse(modifiers: &[&str]) -> Option<Self> {
        Float::parse(modifiers).map(Self::Float).or_else(|| Integer::parse(modifiers).map(Self::Integer))
    }

    /// Steps of 16 bytes of k.
    fn steps(&self) -> usize {
        match self {
            Self::Float(form) => form.steps,
            Self::Integer(form) => form.steps,
        }
    }

    /// Registers of A.
    pub fn a_rows(&self) -> usize {
        2 * self.steps()
    }

    /// Registers of B.
    pub fn b_rows(&self) -> usize {
        self.steps()
    }

    /// Registers of C.
    pub fn c_rows(&self) -> usize {
        if matches!(self, Self::Float(form) if form.half) { 2 } else { 4 }
    }

    /// Registers of D.
    pub fn d_rows(&self) -> usize {
        self.c_rows()
    }

    /// Lowest compute capability that has it, e.g. 80.
    pub fn minimum_capability(&self) -> u32 {
        if matches!(self, Self::Float(form) if form.element == Element::F16 && form.steps == 1) {
            75
        } else {
            80
        }
    }

    /// `D = A B + C` of a warp: `d` has [`Mma::d_rows`] rows, and so on.
    pub fn run(&self, level: Simd, d: &mut [Row], a: &[&Row], b: &[&Row], c: &[&Row]) {
        assert_eq!(
            (d.len(), a.len(), b.len(), c.len()),
            (self.d_rows(), self.a_rows(), self.b_rows(), self.c_rows())
        );
        match self {
            Self::Float(form) => form.run(level, d, a, b, c),
            Self::Integer(form) => form.run(d, a, b, c),
        }
    }
}

impl Float {
    fn parse(modifiers: &[&str]) -> Option<Self> {
        let ["sync", "aligned", shape, "row", "col", d, a, b, c] = modifiers else {
            return None;
        };
        if a != b || c != d {
            return None;
        }
        let element = match *a {
            "f16" => Element::F16,
            "bf16" => Element::Bf16,
            "tf32" => Element::Tf32,
            _ => return None,
        };
        let steps = match (element, *shape) {
            (Element::Tf32, "m16n8k4") => 1,
            (Element::Tf32, "m16n8k8") => 2,
            (Element::F16 | Element::Bf16, "m16n8k8") => 1,
            (Element::F16 | Element::Bf16, "m16n8k16") => 2,
            _ => return None,
        };
        match (*d, element) {
            ("f32", _) => Some(Float { element, steps, half: false }),
            ("f16", Element::F16) => Some(Float { element, steps, half: true }),
            _ => None,
        }
    }

    /// Elements of k in a step.
    fn step_k(&self) -> usize {
        if self.element == Element::Tf32 { 4 } else { 8 }
    }

    fn run(&self, level: Simd, d: &mut [Row], a: &[&Row], b: &[&Row], c: &[&Row]) {
        let level = level.min(Simd::detect());
        #[cfg(target_arch = "x86_64")]
        if level == Simd::Avx512 && !self.half && self.element != Element::Tf32 {
            // SAFETY: Simd::detect saw the features.
            if !unsafe { wide::run(self, d, a, b, c) } {
                reference::run(self, &tile::Tile::load(self, a, b, c)).store(self, d);
            }
            return;
        }
        let tile = tile::Tile::load(self, a, b, c);
        let result = plain::run(self, level, &tile).unwrap_or_else(|| reference::run(self, &tile));
        result.store(self, d);
    }
}
