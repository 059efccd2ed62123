//! Operands: special values and random ones.

use crate::soft::{BF16, F16, Format};

/// A fixed sequence.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.0 ^ self.0 >> 29;
        x.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ x >> 32
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from((self.next() >> 8) % bound as u64).expect("below a usize")
    }
}

/// What an operand is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Of so many bits.
    Integer(u32),
    /// The lowest 8 of so many bits.
    Byte(u32),
    /// 32 bits: mostly up to 70, as a shift, a position or a length is.
    Amount,
    Float(Format),
    /// Two floats of 16 bits (or 8).
    Packed(Format),
    /// Bit 0.
    Predicate,
}

impl Kind {
    pub fn bits(self) -> u32 {
        match self {
            Self::Integer(bits) | Self::Byte(bits) => bits,
            Self::Amount => 32,
            Self::Float(format) => format.bits(),
            Self::Packed(format) => 2 * format.bits(),
            Self::Predicate => 1,
        }
    }

    pub fn special(self) -> Vec<u64> {
        match self {
            Self::Predicate => vec![0, 1],
            Self::Byte(bits) => {
                let above = 0x0123_4567_89ab_cdefu64 << 8;
                (0..256)
                    .map(|x| (x | above.rotate_left(8 * x as u32) & !0xff) & u64::MAX >> (64 - bits))
                    .collect()
            }
            Self::Integer(bits) => {
                let (all, half) = (u64::MAX >> (64 - bits), 1u64 << (bits - 1));
                let list =
                    [0, 1, 2, 3, 7, half - 1, half - 2, half, half + 1, all, all - 1, all - 6, 0x80, 0x7f];
                let more = [0x5a5a_5a5a_5a5a_5a5a, 0xff, 0x0102_0304_0506_0708, 0x8000_0000, 0xffff];
                list.iter().chain(&more).map(|x| x & all).collect()
            }
            Self::Amount => {
                vec![
                    0,
                    1,
                    2,
                    7,
                    8,
                    15,
                    16,
                    17,
                    31,
                    32,
                    33,
                    63,
                    64,
                    65,
                    127,
                    128,
                    255,
                    256,
                    257,
                    0xffff,
                    0x8000_0000,
                    0xffff_ffff,
                ]
            }
            Self::Float(f) => {
                let (inf, one, least) = (f.max + 1, f.one(), 1 << f.fraction);
                let list = [
                    0,
                    1,
                    2,
                    least - 1,
                    least,
                    least + 1,
                    one,
                    one + 1,
                    one - 1,
                    one - least,
                    one + least,
                    one + (1 << f.fraction >> 1),
                    one + (3 << f.fraction >> 1),
                    f.max,
                    f.max - 1,
                    inf,
                    inf + 1,
                    f.nan & (f.sign() - 1),
                    inf | 1 << (f.fraction - 1),
                    inf | 5,
                ];
                let list = list.map(|x| x & (f.sign() - 1));
                list.iter().flat_map(|x| [*x, x | f.sign()]).collect()
            }
            Self::Packed(f) => {
                let list = Self::Float(f).special();
                let pair = |(k, low): (usize, &u64)| low | list[(7 * k + 3) % list.len()] << f.bits();
                list.iter().enumerate().map(pair).collect()
            }
        }
    }

    pub fn random(self, random: &mut Random) -> u64 {
        let x = random.next();
        match self {
            Self::Predicate => x >> 40 & 1,
            Self::Byte(bits) => x & u64::MAX >> (64 - bits),
            Self::Integer(bits) => {
                let all = u64::MAX >> (64 - bits);
                let narrow = x & all >> random.below(usize::try_from(bits).expect("at most 64"));
                if x >> 63 == 0 { narrow } else { narrow.wrapping_neg() & all }
            }
            Self::Amount => [x & 31, x & 63, x % 70, x & 0xff, x & 0xffff_ffff][random.below(5)],
            Self::Float(format) => float(format, random),
            Self::Packed(format) => float(format, random) | float(format, random) << format.bits(),
        }
    }
}

/// All kinds of floats, most of them of like size; sums of those with sparse fractions are often ties.
fn float(f: Format, random: &mut Random) -> u64 {
    let (x, fraction) = (random.next(), (1u64 << f.fraction) - 1);
    let sign = x & f.sign();
    let bits = match random.below(8) {
        0 => x & (f.sign() - 1),
        1 => x & fraction | (random.below(3) as u64) << f.fraction,
        2 => x & fraction | f.max & !fraction,
        3 => {
            (f.one() - (4 << f.fraction) + ((random.below(8) as u64) << f.fraction))
                | fraction & !(1 << random.below(4))
        }
        4 | 5 => {
            let sparse = random.next() & random.next() & random.next() & fraction;
            (f.one() - (4 << f.fraction) + ((random.below(8) as u64) << f.fraction)) | sparse
        }
        _ => {
            let span = f.fraction as usize + 4;
            let down = (random.below(span) as u64).min((f.one() >> f.fraction) - 1) << f.fraction;
            (f.one() - down) | x & fraction
        }
    };
    bits & (f.sign() - 1) | sign
}

/// Operands of a form: all values if it has one of at most 16 bits; else all pairs of special values, and as many
/// random ones; a multiple of 128 in all.
pub fn operands(kinds: &[Kind], seed: u64) -> Vec<[u64; 4]> {
    let mut random = Random::new(seed);
    let mut list = Vec::new();
    let narrow = |kind: &Kind| kind.bits() <= 16 && !matches!(kind, Kind::Predicate | Kind::Byte(_));
    if let [kind] = kinds
        && narrow(kind)
    {
        list.extend((0..1 << kind.bits()).map(|a| [a, 0, 0, 0]));
    }
    let special: Vec<Vec<u64>> = kinds.iter().map(|kind| kind.special()).collect();
    let mixed = |random: &mut Random| {
        let mut row = [0; 4];
        for (k, kind) in kinds.iter().enumerate() {
            row[k] = match random.below(3) {
                0 => special[k][random.below(special[k].len())],
                _ => kind.random(random),
            };
        }
        row
    };
    for first in 0..kinds.len() {
        for second in first + 1..kinds.len() {
            for &a in &special[first] {
                for &b in &special[second] {
                    let mut row = mixed(&mut random);
                    (row[first], row[second]) = (a, b);
                    list.push(row);
                }
            }
        }
    }
    if let [only] = special.as_slice() {
        list.extend(only.iter().map(|&a| [a, 0, 0, 0]));
    }
    let more = list.len() + if list.len() >= 65536 { 0 } else { 2000 };
    while list.len() < more || list.len() % 128 != 0 {
        list.push(mixed(&mut random));
    }
    list
}

/// The format of a word that names one of 16 bits.
pub fn half(word: &str) -> Option<Format> {
    match word.strip_suffix("x2").unwrap_or(word) {
        "f16" => Some(F16),
        "bf16" => Some(BF16),
        _ => None,
    }
}
