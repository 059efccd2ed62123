//! Approximate functions: within half a unit in the last place and a bit (see [`crate::lanewise::Want::Near`]) of the
//! C library's f64 functions, which is better than the ISA asks for; special operands by the ISA's tables.

use crate::lanewise::{Spec, Want};
use crate::soft::{F32, F64, Format, Rounding};
use crate::values::{Kind, half};

pub fn spec(words: &[&str]) -> Option<Spec> {
    let ty = *words.last()?;
    let approximate = words.contains(&"approx") || words.contains(&"full");
    if !approximate {
        return None;
    }
    let (name, ftz) = (words[0].to_owned(), words.contains(&"ftz"));
    if let Some(f) = half(ty) {
        return Some(sixteen(name, f, ftz, ty.ends_with("x2")));
    }
    if ty == "f64" {
        return Some(upper_words(name, ftz));
    }
    let full = words.contains(&"full");
    let kinds = vec![Kind::Float(F32); if name == "div" { 2 } else { 1 }];
    let oracle = move |[a, b, ..]: [u64; 4]| {
        let flush = |x: u64| if ftz { F32.flush(x) } else { x };
        let value = function(&name, full, F32.value(flush(a)), F32.value(flush(b)));
        if ftz && value.abs() < f64::from(f32::MIN_POSITIVE) {
            // What rounds up to the least normal number is near it all the same.
            let rounded = F32.flush(u64::from((value as f32).to_bits()));
            return Want::Near(F32.value(rounded));
        }
        Want::Near(value)
    };
    Some(Spec { kinds, oracle: Box::new(oracle) })
}

fn function(name: &str, full: bool, x: f64, y: f64) -> f64 {
    match name {
        "rcp" => 1.0 / x,
        "sqrt" => x.sqrt(),
        "rsqrt" => 1.0 / x.sqrt(),
        "sin" => x.sin(),
        "cos" => x.cos(),
        "lg2" if x == 0.0 => f64::NEG_INFINITY,
        "lg2" => x.log2(),
        "ex2" => x.exp2(),
        "tanh" => x.tanh(),
        // By a reciprocal, which is 0 for divisors above 2^126.
        _ if !full && y.abs() > 2f64.powi(126) && y.is_finite() => x * 0f64.copysign(y),
        _ => x / y,
    }
}

/// `ex2` and `tanh` of 16 bits: the nearest number.
fn sixteen(name: String, f: Format, ftz: bool, packed: bool) -> Spec {
    let one = move |a: u64| {
        let flush = |x: u64| if ftz { f.flush(x) } else { x };
        let value = function(&name, false, f.value(flush(a)), 0.0);
        if value.is_nan() {
            return f.nan;
        }
        let bits = match F64.decode(value.to_bits()) {
            crate::soft::Number::Finite(x) => f.round(x, Rounding::Nearest),
            _ => f.signed(value < 0.0, f.max + 1),
        };
        flush(bits)
    };
    if packed {
        return Spec::bits(vec![Kind::Packed(f)], move |[a, ..]| one(a & 0xffff) | one(a >> 16) << 16);
    }
    Spec::bits(vec![Kind::Float(f)], move |[a, ..]| one(a))
}

/// `rcp.approx.ftz.f64` and `rsqrt.approx.ftz.f64` work on upper words, whose fractions have 20 bits;
/// `rsqrt.approx.f64` on all, with a root and a quotient that are each off by up to half of 2^-52.
fn upper_words(name: String, ftz: bool) -> Spec {
    let oracle = move |[a, ..]: [u64; 4]| {
        let bits = if ftz { F64.flush(a & !0xffff_ffff) } else { a };
        let value = function(&name, true, F64.value(bits), 0.0);
        let value = if ftz { F64.value(F64.flush(value.to_bits())) } else { value };
        let error = if ftz { 2f64.powi(-20) } else { 2f64.powi(-51) };
        Want::Within { value, error, upper_word: ftz }
    };
    Spec { kinds: vec![Kind::Float(F64)], oracle: Box::new(oracle) }
}
