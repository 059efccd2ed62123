//! mma.sync against plain integer products and against the published arithmetic, written with big integers.

use crate::oracle::{BF16, F16, F32, Magnitude, Random, Shape};
use cuda_emulator::numeric::Round;
use cuda_emulator::numeric::mma::{Mma, Row};
use cuda_emulator::numeric::simd::Simd;
use num_bigint::BigUint;

const LEVELS: [Simd; 3] = [Simd::Baseline, Simd::Avx2, Simd::Avx512];

/// A form: its words, elements and k.
#[derive(Clone, Copy)]
struct Form {
    words: &'static str,
    element: Shape,
    tf32: bool,
    k: usize,
    half: bool,
}

const FORMS: [Form; 8] = [
    form("m16n8k16.row.col.f32.bf16.bf16.f32", BF16, 16, false),
    form("m16n8k8.row.col.f32.bf16.bf16.f32", BF16, 8, false),
    form("m16n8k16.row.col.f32.f16.f16.f32", F16, 16, false),
    form("m16n8k8.row.col.f32.f16.f16.f32", F16, 8, false),
    form("m16n8k16.row.col.f16.f16.f16.f16", F16, 16, true),
    form("m16n8k8.row.col.f16.f16.f16.f16", F16, 8, true),
    Form { tf32: true, ..form("m16n8k8.row.col.f32.tf32.tf32.f32", F32, 8, false) },
    Form { tf32: true, ..form("m16n8k4.row.col.f32.tf32.tf32.f32", F32, 4, false) },
];

const fn form(words: &'static str, element: Shape, k: usize, half: bool) -> Form {
    Form { words, element, tf32: false, k, half }
}

/// Matrices of bits, `a[row][k]`, `b[k][column]`, `c[row][column]`.
#[derive(Clone, Debug, PartialEq)]
struct Matrices {
    a: Vec<[u32; 16]>,
    b: Vec<[u32; 8]>,
    c: Vec<[u32; 8]>,
}

impl Form {
    fn mma(self) -> Mma {
        let words: Vec<&str> = "sync.aligned".split('.').chain(self.words.split('.')).collect();
        Mma::parse(&words).unwrap_or_else(|| panic!("{} is not a form", self.words))
    }

    /// The ISA's place of element i of lane's fragment of A.
    fn a_place(self, lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane >> 2, lane % 4);
        match (self.tf32, self.k) {
            (false, 16) => {
                let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
                let column = thread * 2 + (i & 1);
                (row, if i < 4 { column } else { column + 8 })
            }
            (false, _) => (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1)),
            (true, 8) => {
                (if i == 0 || i == 2 { group } else { group + 8 }, if i < 2 { thread } else { thread + 4 })
            }
            (true, _) => (if i == 0 { group } else { group + 8 }, thread),
        }
    }

    fn b_place(self, lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane >> 2, lane % 4);
        let row = match self.tf32 {
            false if i < 2 => thread * 2 + (i & 1),
            false => thread * 2 + (i & 1) + 8,
            true if i == 0 => thread,
            true => thread + 4,
        };
        (row, group)
    }

    fn c_place(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane >> 2, lane % 4);
        (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
    }

    fn run(self, level: Simd, m: &Matrices) -> Vec<[u32; 8]> {
        let mma = self.mma();
        let a = fragment(16 * self.k / 32, !self.tf32, |lane, i| {
            let (row, k) = self.a_place(lane, i);
            m.a[row][k]
        });
        let b = fragment(8 * self.k / 32, !self.tf32, |lane, i| {
            let (k, column) = self.b_place(lane, i);
            m.b[k][column]
        });
        let c = fragment(4, self.half, |lane, i| {
            let (row, column) = Self::c_place(lane, i);
            m.c[row][column]
        });
        assert_eq!((a.len(), b.len(), c.len()), (mma.a_rows(), mma.b_rows(), mma.c_rows()), "{}", self.words);
        let mut d = vec![[0xdead_beef; 32]; mma.d_rows()];
        let (a, b, c): (Vec<&Row>, Vec<&Row>, Vec<&Row>) =
            (a.iter().collect(), b.iter().collect(), c.iter().collect());
        mma.run(level, &mut d, &a, &b, &c);
        let mut out = vec![[0; 8]; 16];
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = Self::c_place(lane, i);
                out[row][column] =
                    if self.half { d[i / 2][lane] >> (16 * (i % 2)) & 0xffff } else { d[i][lane] };
            }
        }
        out
    }

    /// The published arithmetic of one output.
    fn dot(self, m: &Matrices, row: usize, column: usize) -> u32 {
        let step = if self.tf32 { 4 } else { 8 };
        let (shape, mut d) = (if self.half { F16 } else { F32 }, m.c[row][column]);
        for first in (0..self.k).step_by(step) {
            let pairs: Vec<(u32, u32)> =
                (first..first + step).map(|k| (self.cut(m.a[row][k]), self.cut(m.b[k][column]))).collect();
            d = self.step(&pairs, d, shape);
        }
        d
    }

    fn cut(self, bits: u32) -> u32 {
        if self.tf32 { bits & !0x1fff } else { bits }
    }

    fn step(self, pairs: &[(u32, u32)], c: u32, shape: Shape) -> u32 {
        let value = |bits: u32, s: Shape| {
            let x = if s.finite(bits.into()) {
                let m = s.magnitude(bits.into());
                f64::from(u32::try_from(m.significand).unwrap()) * 2f64.powi(m.exponent)
            } else if u64::from(bits) & (s.sign() - 1) == s.max + 1 {
                f64::INFINITY
            } else {
                f64::NAN
            };
            if s.negative(bits.into()) { -x } else { x }
        };
        let finite = pairs.iter().all(|p| self.element.finite(p.0.into()) && self.element.finite(p.1.into()));
        if !finite || !shape.finite(c.into()) {
            let products = pairs.iter().map(|p| value(p.0, self.element) * value(p.1, self.element));
            let sum: f64 = products.sum::<f64>() + value(c, shape);
            return match (sum.is_nan(), self.half) {
                (true, true) => 0x7fff,
                (true, false) => 0x7fff_ffff,
                (false, true) => {
                    if sum > 0.0 {
                        0x7c00
                    } else {
                        0xfc00
                    }
                }
                (false, false) => (sum as f32).to_bits(),
            };
        }
        // Sign, significand, its unit's exponent, and the nominal exponent of every term.
        let mut terms = Vec::new();
        let fraction = self.element.fraction.cast_signed();
        for &(a, b) in pairs {
            let (x, y) = (self.element.signed(a.into()), self.element.signed(b.into()));
            let product = x.1.times(&y.1);
            let exponent = x.1.exponent + fraction + y.1.exponent + fraction;
            terms.push((x.0 != y.0, product, exponent));
        }
        let (negative, magnitude) = shape.signed(c.into());
        let exponent = magnitude.exponent + shape.fraction.cast_signed();
        terms.push((negative, magnitude, exponent));
        let largest = terms.iter().map(|t| if t.1.is_zero() { -126 } else { t.2 }).max().unwrap();
        let mut sum = 0i128;
        for (negative, magnitude, _) in terms {
            let shift = magnitude.exponent - (largest - 24);
            let units: BigUint = match shift {
                0.. => magnitude.significand << shift.unsigned_abs(),
                _ => magnitude.significand >> shift.unsigned_abs(),
            };
            let units = i128::try_from(units).unwrap();
            sum += if negative { -units } else { units };
        }
        let magnitude = Magnitude::new(sum.unsigned_abs(), largest - 24);
        let beyond = magnitude.cmp(&Magnitude::new(1u32, 128)).is_ge();
        let bits = match (self.half, beyond) {
            (false, true) => 0x7f80_0000 | if sum < 0 { F32.sign() } else { 0 },
            (true, _) => shape.round_value(&(sum < 0, magnitude), Round::Nearest),
            (false, false) => shape.round_value(&(sum < 0, magnitude), Round::Zero),
        };
        u32::try_from(bits).unwrap()
    }

    fn check(self, m: &Matrices) {
        let want: Vec<[u32; 8]> =
            (0..16).map(|row| std::array::from_fn(|column| self.dot(m, row, column))).collect();
        for level in LEVELS {
            let got = self.run(level, m);
            for (row, (got, want)) in got.iter().zip(&want).enumerate() {
                assert_eq!(got, want, "{} {level:?} row {row}: {got:08x?}, not {want:08x?}", self.words);
            }
        }
    }
}

/// Registers from elements, in pairs if packed.
fn fragment(elements: usize, packed: bool, element: impl Fn(usize, usize) -> u32) -> Vec<Row> {
    let row = |register: usize| -> Row {
        std::array::from_fn(|lane| match packed {
            true => element(lane, 2 * register) | element(lane, 2 * register + 1) << 16,
            false => element(lane, register),
        })
    };
    (0..if packed { elements / 2 } else { elements }).map(row).collect()
}

/// Matrices of drawn elements.
fn draw(mut a: impl FnMut() -> u32, mut c: impl FnMut() -> u32) -> Matrices {
    Matrices {
        a: (0..16).map(|_| std::array::from_fn(|_| a())).collect(),
        b: (0..16).map(|_| std::array::from_fn(|_| a())).collect(),
        c: (0..16).map(|_| std::array::from_fn(|_| c())).collect(),
    }
}

fn exact(shape: Shape, value: i64) -> u32 {
    let bits = shape.round_value(&(value < 0, Magnitude::new(value.unsigned_abs(), 0)), Round::Nearest);
    u32::try_from(bits).unwrap()
}

#[test]
fn integers_multiply_exactly() {
    for form in FORMS {
        let mut random = Random::new(7);
        let shape = if form.half { F16 } else { F32 };
        for _ in 0..20 {
            // Products sum to at most 16 * 10 * 10 + 400 = 2000, exact in f16 too.
            let mut a = vec![[0i64; 16]; 16];
            let mut b = vec![[0i64; 8]; 16];
            let mut c = vec![[0i64; 8]; 16];
            a.iter_mut()
                .flatten()
                .chain(b.iter_mut().flatten())
                .for_each(|x| *x = random.below(21).cast_signed() - 10);
            c.iter_mut().flatten().for_each(|x| *x = random.below(801).cast_signed() - 400);
            let m = Matrices {
                a: a.iter().map(|row| row.map(|x| exact(form.element, x))).collect(),
                b: b.iter().map(|row| row.map(|x| exact(form.element, x))).collect(),
                c: c.iter().map(|row| row.map(|x| exact(shape, x))).collect(),
            };
            for level in LEVELS {
                let got = form.run(level, &m);
                for row in 0..16 {
                    for column in 0..8 {
                        let dot: i64 = (0..form.k).map(|k| a[row][k] * b[k][column]).sum();
                        let want = exact(shape, dot + c[row][column]);
                        assert_eq!(got[row][column], want, "{} {level:?} {row} {column}", form.words);
                    }
                }
            }
        }
    }
}

#[test]
fn every_element_has_its_place() {
    // One element of A and one of B are 1: the product has a single 1, where the ISA's tables say.
    for form in FORMS {
        let (one, d_one) = (exact(form.element, 1), exact(if form.half { F16 } else { F32 }, 1));
        for row in 0..16 {
            for k in 0..form.k {
                let column = (row + k) % 8;
                let mut m = draw(|| 0, || 0);
                m.a[row][k] = one;
                m.b[k][column] = one;
                let mut want = vec![[0; 8]; 16];
                want[row][column] = d_one;
                for level in LEVELS {
                    assert_eq!(form.run(level, &m), want, "{} {level:?} {row} {k} {column}", form.words);
                }
            }
        }
    }
}

/// A number with an exponent field drawn from a range, or sometimes zero.
fn within(random: &mut Random, shape: Shape, low: u64, high: u64, zeros: u64) -> u32 {
    if random.below(100) < zeros {
        return u32::try_from(if random.below(2) == 0 { 0 } else { shape.sign() }).unwrap();
    }
    let field = low + random.below(high - low + 1);
    let bits = random.next() & (shape.sign() | ((1 << shape.fraction) - 1)) | field << shape.fraction;
    u32::try_from(bits).unwrap()
}

/// Ranges of exponent fields of A and B, and of C, and a share of zeros in percent.
fn ranges(form: Form) -> Vec<((u64, u64), (u64, u64), u64)> {
    let (wide, c_wide) = (form.element.max >> form.element.fraction, if form.half { 30 } else { 254 });
    let middle = wide / 2;
    let c_middle = c_wide / 2;
    vec![
        ((middle - 2, middle + 1), (c_middle - 2, c_middle + 2), 0),
        ((middle - 6, middle + 6), (c_middle - 10, c_middle + 10), 30),
        ((0, wide), (0, c_wide), 10),
        ((0, 3), (0, 3), 30),
        ((0, 0), (0, 0), 50),
        ((wide - 3, wide), (c_wide - 3, c_wide), 5),
        ((middle / 2 - 5, middle / 2 + 5), (0, 40.min(c_wide)), 20),
        ((middle - 3, middle + 3), (c_middle, c_middle), 95),
        ((0, 0), (c_middle - 3, c_middle), 100),
        ((middle, middle), (0, 0), 100),
    ]
}

#[test]
fn random_tiles_are_the_published_arithmetic() {
    for form in FORMS {
        let shape = if form.half { F16 } else { F32 };
        for (index, (ab, c, zeros)) in ranges(form).into_iter().enumerate() {
            for seed in 0..12 {
                let mut random = Random::new(1000 * index as u64 + seed);
                let mut other = Random::new(1000 * index as u64 + seed + 500);
                let m = draw(
                    || within(&mut random, form.element, ab.0, ab.1, zeros),
                    || within(&mut other, shape, c.0, c.1, zeros),
                );
                form.check(&m);
            }
        }
    }
}

#[test]
fn special_values_among_ordinary_ones() {
    for form in FORMS {
        let shape = if form.half { F16 } else { F32 };
        let middle = (form.element.max >> form.element.fraction) / 2;
        for seed in 0..40 {
            let mut random = Random::new(seed);
            let mut m = draw(|| 0, || 0);
            for x in m.a.iter_mut().flatten().chain(m.b.iter_mut().flatten()) {
                *x = within(&mut random, form.element, middle - 2, middle + 2, 10);
            }
            m.c.iter_mut().flatten().for_each(|x| *x = within(&mut random, shape, 14, 16, 10));
            for _ in 0..=random.below(5) {
                let (row, k) = (random.below(16) as usize, random.below(form.k as u64) as usize);
                let kind = random.below(3);
                let special = |shape: Shape, r: &mut Random| {
                    let payload = if kind == 0 { 1 + r.below((1 << shape.fraction) - 1) } else { 0 };
                    let sign = if r.below(2) == 0 { shape.sign() } else { 0 };
                    u32::try_from((shape.max + 1) | payload | sign).unwrap()
                };
                match random.below(3) {
                    0 => m.a[row][k] = special(form.element, &mut random),
                    1 => m.b[k][row % 8] = special(form.element, &mut random),
                    _ => m.c[row][k % 8] = special(shape, &mut random),
                }
            }
            form.check(&m);
        }
    }
}

#[test]
fn hand_made_roundings() {
    // Beside c = 2^24 a unit is 1: -1 - 2^-9 is cut to -1. (The exact sum toward zero is 2^24 - 2.)
    let form = FORMS[2];
    let mut m = draw(|| 0, || 0);
    m.a[0][0] = 0x3c02; // 1 + 2^-9
    m.b[0][0] = 0xbc00;
    m.c[0][0] = exact(F32, 1 << 24);
    let got = form.run(Simd::detect(), &m);
    assert_eq!(f32::from_bits(got[0][0]), 16_777_215.0);
    // With c = 2^26 a unit is 4: the product vanishes.
    m.c[0][0] = exact(F32, 1 << 26);
    assert_eq!(f32::from_bits(form.run(Simd::detect(), &m)[0][0]), 67_108_864.0);
    // Eight products of 0.75 vanish each beside 2^25, though they sum to 6.
    for k in 0..8 {
        m.a[0][k] = 0x3a00;
        m.b[k][0] = 0x3c00;
    }
    m.c[0][0] = exact(F32, 1 << 25);
    assert_eq!(f32::from_bits(form.run(Simd::detect(), &m)[0][0]), 33_554_432.0);
}

#[test]
fn other_forms_are_refused() {
    for words in [
        "sync.aligned.m16n8k16.row.col.f16.bf16.bf16.f16",
        "sync.aligned.m16n8k16.row.col.f32.tf32.tf32.f32",
        "sync.aligned.m16n8k16.col.row.f32.f16.f16.f32",
        "sync.aligned.m16n8k16.row.col.f32.f16.f16.f16",
        "sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32",
        "sync.m16n8k16.row.col.f32.f16.f16.f32",
        "sync.aligned.m16n8k32.row.col.f32.f16.f16.f32",
        "",
    ] {
        assert_eq!(Mma::parse(&words.split('.').collect::<Vec<_>>()), None, "{words}");
    }
    let capability = |form: Form| form.mma().minimum_capability();
    assert_eq!(FORMS.map(capability), [80, 80, 80, 75, 80, 75, 80, 80]);
}
