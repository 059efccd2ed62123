//! References that carry their own tolerance: a real number, and how far its computation in f32 may lie from it.
//!
//! The rules are those of running error analysis (Wilkinson; Higham 2002, §3.3): every operation adds one rounding
//! to what its operands bring along. A formula written with [`Real`] therefore counts its roundings itself, element
//! by element, and a sum may be in any order. Bounds are worst cases: nothing that is only rounding exceeds them.

use smolten::dtype::{DType, Element};
use std::ops::{Add, Div, Mul, Neg, Sub};

/// Unit roundoff of f32. The added thousandth covers terms of second order and the rounding of f64.
const U: f64 = 1.001 / 16_777_216.0;
/// Half the smallest positive f32: what a product loses at most where it underflows.
const TINY: f64 = 7.1e-46;
/// `e^-87`, below which `math::exp` is zero; and `e^-88`, which `1/(1 + e^x)` does not fall below.
const FLUSHED: f64 = 1.7e-38;

/// A number and a bound on the error of its f32 computation.
#[derive(Clone, Copy, Debug)]
pub struct Real {
    pub value: f64,
    pub error: f64,
}

impl Real {
    pub const ZERO: Self = Self { value: 0.0, error: 0.0 };

    /// Free of error.
    pub fn exact(value: f64) -> Self {
        Self { value, error: 0.0 }
    }
    pub fn of<E: Element>(x: E) -> Self {
        Self::exact(f64::from(x.to_f32()))
    }
    /// A function of exact arguments that is rounded to f32 once.
    pub fn rounded_once(value: f64) -> Self {
        Self { value, error: U * value.abs() + TINY }
    }
    fn most(self) -> f64 {
        self.value.abs() + self.error
    }
    /// n terms added in any order, so that none goes through more than n − 1 additions.
    pub fn sum(terms: impl IntoIterator<Item = Self>) -> Self {
        let (mut n, mut value, mut error, mut size) = (0.0, 0.0, 0.0, 0.0);
        for term in terms {
            n += 1.0;
            value += term.value;
            error += term.error;
            size += term.most();
        }
        let growth = U * f64::max(n - 1.0, 0.0);
        Self { value, error: error + growth / (1.0 - growth) * size }
    }
    /// The same on a tensor core or off it. One adds eight terms and the sum so far with 24 fraction bits under the
    /// largest, cutting each off, and cuts the result to f32 (arXiv:2511.10909): nine losses of 2^-24 and one of 2^-23 of
    /// the sum of magnitudes. `runs`: how often the eight begin anew, before eight terms have come together.
    pub fn sum_of_eights(terms: impl IntoIterator<Item = Self>, runs: usize) -> Self {
        let (mut n, mut value, mut error, mut size) = (0.0, 0.0, 0.0, 0.0);
        for term in terms {
            n += 1.0;
            value += term.value;
            error += term.error;
            size += term.most();
        }
        let growth = 11.0 * U * (n / 8.0 + 2.0 * runs as f64);
        Self { value, error: error + growth / (1.0 - growth) * size }
    }
    pub fn dot(a: &[Self], b: &[Self]) -> Self {
        assert_eq!(a.len(), b.len());
        Self::sum(a.iter().zip(b).map(|(&a, &b)| a * b))
    }
    /// `math::exp`, relative error 2·2⁻²³.
    pub fn exp(self) -> Self {
        let value = self.value.exp();
        let flushed = if self.value - self.error < -87.0 { FLUSHED } else { 0.0 };
        let error = value * self.error.exp_m1() + 4.0 * U * (self.value + self.error).exp() + flushed;
        Self { value, error }
    }
    /// `1/(1 + e^-x)` of an exact x: the exponential's four units, the sum, the division.
    pub fn sigmoid(self) -> Self {
        assert_eq!(self.error, 0.0);
        let value = 1.0 / (1.0 + (-self.value).exp());
        Self { value, error: 6.0 * U * value + FLUSHED }
    }
    /// The standard library's logarithm, within one unit in the last place.
    pub fn ln(self) -> Self {
        let value = self.value.ln();
        Self { value, error: self.error / (self.value - self.error) + 2.0 * U * value.abs() }
    }
    /// Stored as E and loaded again.
    pub fn rounded<E: Element>(self) -> Self {
        let (unit, half_smallest) = match E::DTYPE {
            DType::BF16 => (1.0 / 256.0, TINY * 65536.0),
            DType::F16 => (1.0 / 2048.0, 1.0 / 33_554_432.0),
            _ => return self,
        };
        Self { error: self.error + unit * self.most() + half_smallest, ..self }
    }
    /// Whether `got` is the rounding to E of some number within the bound. False for NaN and infinity.
    pub fn allows<E: Element>(self, got: E) -> bool {
        let (low, high) = (down(self.value - self.error), up(self.value + self.error));
        let got = got.to_f32();
        got.is_finite() && E::from_f32(low).to_f32() <= got && got <= E::from_f32(high).to_f32()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounded outwards next")]
fn down(x: f64) -> f32 {
    let y = x as f32;
    if f64::from(y) > x { y.next_down() } else { y }
}

fn up(x: f64) -> f32 {
    -down(-x)
}

impl Add for Real {
    type Output = Self;
    fn add(self, b: Self) -> Self {
        let value = self.value + b.value;
        Self { value, error: (self.error + b.error) * (1.0 + U) + U * value.abs() }
    }
}
impl Neg for Real {
    type Output = Self;
    fn neg(self) -> Self {
        Self { value: -self.value, ..self }
    }
}
impl Sub for Real {
    type Output = Self;
    fn sub(self, b: Self) -> Self {
        self + -b
    }
}
impl Mul for Real {
    type Output = Self;
    fn mul(self, b: Self) -> Self {
        let value = self.value * b.value;
        let brought = self.value.abs() * b.error + self.error * b.most();
        Self { value, error: brought * (1.0 + U) + U * value.abs() + TINY }
    }
}
impl Div for Real {
    type Output = Self;
    fn div(self, b: Self) -> Self {
        let value = self.value / b.value;
        let brought = (self.error + value.abs() * b.error) / (b.value.abs() - b.error);
        assert!(brought >= 0.0, "division by something that may be zero");
        Self { value, error: brought * (1.0 + U) + U * value.abs() + TINY }
    }
}

/// The elements as exact numbers.
pub fn reals<E: Element>(x: &[E]) -> Vec<Real> {
    x.iter().map(|&x| Real::of(x)).collect()
}

/// `n` values in [-scale, scale) as E holds them.
pub fn values<E: Element>(n: usize, scale: f32, seed: u64) -> Vec<E> {
    super::uniform(n, seed).into_iter().map(|x| E::from_f32(scale * x)).collect()
}

/// Asserts that every element is what rounding may have made of its reference.
pub fn assert_within<E: Element>(name: &str, got: &[E], want: &[Real]) {
    assert_eq!(got.len(), want.len(), "{name}: length");
    let bad: Vec<usize> = (0..got.len()).filter(|&i| !want[i].allows(got[i])).collect();
    if let Some(&i) = bad.first() {
        let Real { value, error } = want[i];
        let (n, all, got) = (bad.len(), got.len(), got[i].to_f32());
        panic!(
            "{name} in {:?}: {n} of {all} wrong; first [{i}]: got {got}, want {value} within {error:e}",
            E::DTYPE
        );
    }
}

/// The same, and that the bounds say something: together they must stay below a tenth of the values, or 1e-5 each where
/// the values are all but zero.
pub fn assert_allowed<E: Element>(name: &str, got: &[E], want: &[Real]) {
    assert_within(name, got, want);
    let total = |f: fn(&Real) -> f64| want.iter().map(f).sum::<f64>();
    let (errors, sizes) = (total(|r| r.error), total(|r| r.value.abs()));
    assert!(
        errors <= 0.1 * sizes + 1e-5 * got.len() as f64,
        "{name} in {:?}: bounds of {errors:e} on {sizes:e}",
        E::DTYPE
    );
}
