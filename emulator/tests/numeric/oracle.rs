//! Rounding by search: the largest number of a format that is not above the exact value, and its neighbour.

use cuda_emulator::numeric::Round;
use num_bigint::BigUint;
use std::cmp::Ordering;

/// `significand * 2^exponent`, exactly.
#[derive(Clone, Debug)]
pub struct Magnitude {
    pub significand: BigUint,
    pub exponent: i32,
}

impl Magnitude {
    pub fn new(significand: impl Into<BigUint>, exponent: i32) -> Self {
        Magnitude { significand: significand.into(), exponent }
    }

    fn aligned(&self, other: &Self) -> (BigUint, BigUint, i32) {
        let low = self.exponent.min(other.exponent);
        let up = |x: &Self| &x.significand << (x.exponent - low).unsigned_abs();
        (up(self), up(other), low)
    }

    pub fn cmp(&self, other: &Self) -> Ordering {
        let (a, b, _) = self.aligned(other);
        a.cmp(&b)
    }

    pub fn times(&self, other: &Self) -> Self {
        Magnitude::new(&self.significand * &other.significand, self.exponent + other.exponent)
    }

    pub fn is_zero(&self) -> bool {
        self.significand == BigUint::ZERO
    }
}

/// The sum of signed values; `None` if it is zero.
pub fn signed_sum(a: (bool, Magnitude), b: (bool, Magnitude)) -> Option<(bool, Magnitude)> {
    let (x, y, exponent) = a.1.aligned(&b.1);
    if a.0 == b.0 {
        let sum = x + y;
        return (sum != BigUint::ZERO).then(|| (a.0, Magnitude::new(sum, exponent)));
    }
    match x.cmp(&y) {
        Ordering::Greater => Some((a.0, Magnitude::new(x - y, exponent))),
        Ordering::Less => Some((b.0, Magnitude::new(y - x, exponent))),
        Ordering::Equal => None,
    }
}

/// A format: bits of exponent and fraction; the largest finite magnitude.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub exponent: u32,
    pub fraction: u32,
    pub max: u64,
}

pub const F16: Shape = Shape { exponent: 5, fraction: 10, max: 0x7bff };
pub const BF16: Shape = Shape { exponent: 8, fraction: 7, max: 0x7f7f };
pub const TF32: Shape = Shape { exponent: 8, fraction: 10, max: 0x3_fbff };
pub const F32: Shape = Shape { exponent: 8, fraction: 23, max: 0x7f7f_ffff };
pub const F64: Shape = Shape { exponent: 11, fraction: 52, max: 0x7fef_ffff_ffff_ffff };
pub const E4M3: Shape = Shape { exponent: 4, fraction: 3, max: 0x7e };
pub const E5M2: Shape = Shape { exponent: 5, fraction: 2, max: 0x7b };

impl Shape {
    pub fn sign(self) -> u64 {
        1 << (self.exponent + self.fraction)
    }

    pub fn negative(self, bits: u64) -> bool {
        bits & self.sign() != 0
    }

    /// A finite magnitude; also of the bits after the largest one, as if the range went on.
    pub fn magnitude(self, bits: u64) -> Magnitude {
        let bits = bits & (self.sign() - 1);
        let bias = (1 << (self.exponent - 1)) - 1;
        let field = i32::try_from(bits >> self.fraction).unwrap();
        let fraction = bits & ((1 << self.fraction) - 1);
        let lowest = 1 - bias - self.fraction.cast_signed();
        match field {
            0 => Magnitude::new(fraction, lowest),
            _ => Magnitude::new(fraction + (1 << self.fraction), lowest + field - 1),
        }
    }

    pub fn signed(self, bits: u64) -> (bool, Magnitude) {
        (self.negative(bits), self.magnitude(bits))
    }

    /// Finite, by the largest one.
    pub fn finite(self, bits: u64) -> bool {
        bits & (self.sign() - 1) <= self.max
    }

    /// Rounds a magnitude known by its comparison with others; one beyond `max` in the result says overflow.
    pub fn round(self, negative: bool, round: Round, compare: impl Fn(&Magnitude) -> Ordering) -> u64 {
        let (mut low, mut high) = (0, self.max + 1);
        while high - low > 1 {
            let middle = (low + high) / 2;
            if compare(&self.magnitude(middle)).is_ge() { low = middle } else { high = middle }
        }
        let below = self.magnitude(low);
        let above = self.magnitude(low + 1);
        let sum = signed_sum((false, below.clone()), (false, above)).unwrap().1;
        let middle = Magnitude::new(sum.significand, sum.exponent - 1);
        let inexact = compare(&below).is_gt();
        let up = match round {
            Round::Zero => false,
            Round::Down => inexact && negative,
            Round::Up => inexact && !negative,
            Round::NearestAway => compare(&middle).is_ge(),
            Round::Nearest => match compare(&middle) {
                Ordering::Equal => low % 2 == 1,
                other => other.is_gt(),
            },
        };
        // An infinity is where a number above the largest one would be.
        (if negative { self.sign() } else { 0 }) | if up { low + 1 } else { low }
    }

    pub fn round_value(self, x: &(bool, Magnitude), round: Round) -> u64 {
        self.round(x.0, round, |candidate| x.1.cmp(candidate))
    }
}

pub const ROUNDS: [Round; 4] = [Round::Nearest, Round::Zero, Round::Down, Round::Up];

/// A fixed sequence.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = (self.0 ^ (self.0 >> 22)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x ^ (x >> 29)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn u32(&mut self) -> u32 {
        u32::try_from(self.next() >> 32).unwrap()
    }

    /// Bits of a format: all kinds of values, many near a power of two, many of like size.
    pub fn bits(&mut self, shape: Shape) -> u64 {
        let all = shape.sign() | (shape.sign() - 1);
        let x = self.next() & all;
        let bias = ((1u64 << (shape.exponent - 1)) - 1) << shape.fraction;
        let near_one = (x & (shape.sign() | ((1 << shape.fraction) - 1)))
            | (bias + (self.below(8) << shape.fraction) - (4 << shape.fraction));
        let low_bits = (1 << shape.fraction) - 1;
        match self.below(8) {
            0 => x,
            1 => self.special(shape),
            2 => x & !low_bits | self.below(3),
            3 => x | low_bits & !self.below(3),
            4 => near_one & !low_bits | self.next() & low_bits & self.next() & self.next(),
            5 => x & (shape.sign() | low_bits | 3 << shape.fraction), // about the subnormals
            6 => x & (low_bits | shape.sign()) | (shape.max & !low_bits), // about the largest
            _ => near_one,
        }
    }

    fn special(&mut self, shape: Shape) -> u64 {
        let one = ((1u64 << (shape.exponent - 1)) - 1) << shape.fraction;
        let list = [
            0,
            1,
            2,
            (1 << shape.fraction) - 1,
            1 << shape.fraction,
            (1 << shape.fraction) + 1,
            one,
            one + 1,
            one - 1,
            shape.max,
            shape.max - 1,
            shape.max + 1,
            shape.sign() - 1,
        ];
        let index = usize::try_from(self.below(list.len() as u64)).unwrap();
        list[index] | if self.below(2) == 0 { 0 } else { shape.sign() }
    }
}
