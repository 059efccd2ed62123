//! Results that are right within a bound, where no order of the additions makes them exact.

use half::{bf16, f16};

/// Type of a buffer's elements.
#[derive(Clone, Copy, PartialEq)]
pub enum Element {
    /// 24 bits of precision.
    F32,
    /// 8 bits.
    Bf16,
    /// 11 bits.
    F16,
}

impl Element {
    /// Largest relative error of a rounding.
    pub fn unit(self) -> f64 {
        match self {
            Element::F32 => 2_f64.powi(-24),
            Element::Bf16 => 2_f64.powi(-8),
            Element::F16 => 2_f64.powi(-11),
        }
    }

    /// Rounded, as stored.
    pub fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Element::F32 => super::small::bytes_f32(values),
            Element::Bf16 => super::small::bytes_bf16(values),
            Element::F16 => super::small::bytes_f16(values),
        }
    }

    /// What is stored.
    pub fn values(self, bytes: &[u8]) -> Vec<f64> {
        let two = |of: fn([u8; 2]) -> f64| bytes.as_chunks().0.iter().map(|x| of(*x)).collect();
        match self {
            Element::F32 => bytes.as_chunks().0.iter().map(|x| f64::from(f32::from_le_bytes(*x))).collect(),
            Element::Bf16 => two(|x| f64::from(bf16::from_le_bytes(x))),
            Element::F16 => two(|x| f64::from(f16::from_le_bytes(x))),
        }
    }

    fn size(self) -> usize {
        if self == Element::F32 { 4 } else { 2 }
    }
}

/// Half the distance between the smallest numbers of f16, which bounds the error of those.
pub const TINY: f64 = 1.0 / (1 << 25) as f64;

/// Numbers, and how far off each may be.
pub struct Near {
    /// As stored.
    pub element: Element,
    /// In order. What is to be no number must be none.
    pub values: Vec<f64>,
    /// For each; zero where it must be the very number.
    pub within: Vec<f64>,
}

impl Near {
    /// Of no numbers yet.
    pub fn empty(element: Element) -> Self {
        Self { element, values: vec![], within: vec![] }
    }

    /// These very numbers.
    pub fn exactly(element: Element, values: &[f32]) -> Self {
        let values: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
        Self { element, within: vec![0.0; values.len()], values }
    }

    /// One more.
    pub fn push(&mut self, value: f64, within: f64) {
        self.values.push(value);
        self.within.push(within);
    }

    /// Bytes of the buffer.
    pub fn size(&self) -> usize {
        self.values.len() * self.element.size()
    }

    /// Whether these are right.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        let near = |((x, value), within): ((&f64, &f64), &f64)| {
            (x - value).abs() <= *within || (x.is_nan() && value.is_nan())
        };
        self.element.values(bytes).iter().zip(&self.values).zip(&self.within).all(near)
    }
}
