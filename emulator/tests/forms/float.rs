//! Floating-point arithmetic, by the ISA's text: exact or sticky intermediate results, rounded once.

use crate::lanewise::Spec;
use crate::soft::{Exact, F32, F64, Format, Number, Rounding, product, quotient, root, sum};
use crate::values::{Kind, half};

/// Modifiers of an instruction.
#[derive(Clone, Debug)]
struct Mode {
    rounding: Rounding,
    ftz: bool,
    sat: bool,
    relu: bool,
    nan: bool,
    xorsign: bool,
}

impl Mode {
    fn parse(words: &[&str]) -> Self {
        let has = |word: &str| words.contains(&word);
        Self {
            rounding: words.iter().find_map(|word| Rounding::parse(word)).unwrap_or(Rounding::Nearest),
            ftz: has("ftz"),
            sat: has("sat"),
            relu: has("relu"),
            nan: has("NaN"),
            xorsign: has("xorsign"),
        }
    }
}

pub fn format(word: &str) -> Option<Format> {
    match word {
        "f32" => Some(F32),
        "f64" => Some(F64),
        word => half(word),
    }
}

pub fn spec(words: &[&str]) -> Option<Spec> {
    let f = format(words.last()?)?;
    if words[0] == "testp" {
        return Some(classes(words, f));
    }
    let sources = match words[0] {
        "abs" | "neg" | "rcp" | "sqrt" => 1,
        "add" | "sub" | "mul" | "div" | "min" | "max" | "copysign" => 2,
        "fma" | "mad" => 3,
        _ => return None,
    };
    let (name, mode, packed) = (words[0].to_owned(), Mode::parse(words), words.last()?.ends_with("x2"));
    let kind = if packed { Kind::Packed(f) } else { Kind::Float(f) };
    Some(Spec::bits(vec![kind; sources], move |v| {
        if !packed {
            return one(&name, f, &mode, v);
        }
        let high = one(&name, f, &mode, v.map(|x| x >> 16 & 0xffff));
        one(&name, f, &mode, v.map(|x| x & 0xffff)) | high << 16
    }))
}

fn one(name: &str, f: Format, mode: &Mode, v: [u64; 4]) -> u64 {
    let flush = |x: u64| if mode.ftz { f.flush(x) } else { x };
    let [a, b, c, _] = v.map(flush);
    match name {
        "abs" => return a & !f.sign(),
        "neg" => return a ^ f.sign(),
        // The first operand gives the sign.
        "copysign" => return a & f.sign() | b & !f.sign(),
        "min" | "max" => return extremum(name == "max", f, mode, a, b),
        _ => {}
    }
    let operands = match name {
        // Negated first, and so is a NaN.
        "sub" => [a, b ^ f.sign(), c],
        "rcp" => [f.one(), a, c],
        _ => [a, b, c],
    };
    finish(flush(arithmetic(name, f, mode.rounding, operands)), f, mode)
}

fn finish(bits: u64, f: Format, mode: &Mode) -> u64 {
    let (nan, negative) = (f.is_nan(bits), bits & f.sign() != 0);
    if mode.sat {
        return if nan || negative { 0 } else { bits.min(f.one()) };
    }
    if mode.relu && negative && !nan { 0 } else { bits }
}

fn arithmetic(name: &str, f: Format, rounding: Rounding, [a, b, c]: [u64; 3]) -> u64 {
    let used = match name {
        "sqrt" => 1,
        "fma" | "mad" => 3,
        _ => 2,
    };
    let operands = &[a, b, c][..used];
    if let Some(nan) = operands.iter().find(|&&x| f.is_nan(x)) {
        // A double keeps the payload.
        return if f == F64 { nan | 1 << 51 } else { f.nan };
    }
    let (x, y, z) = (f.value(a), f.value(b), f.value(c));
    let finite = operands.iter().all(|&x| matches!(f.decode(x), Number::Finite(_)));
    let special = match name {
        "add" | "sub" => x + y,
        "mul" => x * y,
        "div" | "rcp" => x / y,
        "sqrt" => x.sqrt(),
        _ => x.mul_add(y, z),
    };
    // Without finite operands, or at a pole or a zero, the result does not depend on the rounding.
    let exact = |bits| match f.decode(bits) {
        Number::Finite(x) => x,
        _ => unreachable!("checked"),
    };
    let zero = match name {
        "div" | "rcp" => x == 0.0 || y == 0.0,
        "sqrt" => x <= 0.0,
        _ => false,
    };
    if !finite || zero {
        return of_special(special, f);
    }
    let (a, b) = (exact(a), exact(b));
    let result: Exact = match name {
        "add" | "sub" => sum(a, b, rounding),
        "mul" => product(a, b),
        "div" | "rcp" => quotient(a, b),
        "sqrt" => root(a),
        _ => sum(product(a, b), exact(c), rounding),
    };
    f.round(result, rounding)
}

/// NaN, an infinity or a zero.
fn of_special(x: f64, f: Format) -> u64 {
    if x.is_nan() {
        return f.nan;
    }
    f.signed(x.is_sign_negative(), if x == 0.0 { 0 } else { f.max + 1 })
}

fn extremum(max: bool, f: Format, mode: &Mode, a: u64, b: u64) -> u64 {
    let negative = (a ^ b) & f.sign() != 0;
    let strip = |x: u64| if mode.xorsign { x & !f.sign() } else { x };
    let (a, b) = (strip(a), strip(b));
    let chosen = match (f.is_nan(a), f.is_nan(b)) {
        (true, true) => return f.nan,
        (true, _) | (_, true) if mode.nan => return f.nan,
        (true, false) => b,
        (false, true) => a,
        _ => {
            let (x, y) = (f.value(a), f.value(b));
            // -0 is less than +0.
            let less = x < y || x == y && a & f.sign() != 0;
            if less != max { a } else { b }
        }
    };
    if mode.xorsign { f.signed(negative, chosen) } else { chosen }
}

fn classes(words: &[&str], f: Format) -> Spec {
    let class = words[1].to_owned();
    Spec::bits(vec![Kind::Float(f)], move |[a, ..]| {
        let (x, least) = (f.value(a).abs(), f.value(1 << f.fraction));
        u64::from(match class.as_str() {
            "finite" => x < f64::INFINITY,
            "infinite" => x == f64::INFINITY,
            "number" => !x.is_nan(),
            "notanumber" => x.is_nan(),
            "normal" => x >= least && x < f64::INFINITY,
            _ => x > 0.0 && x < least,
        })
    })
}
