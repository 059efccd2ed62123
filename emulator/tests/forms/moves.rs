//! `mov` between registers, of constants, and of parts.

use crate::grammar::Form;
use crate::lanewise::{Spec, Want};
use crate::values::Kind;

fn bits(letter: char) -> u32 {
    match letter {
        'h' => 16,
        'r' => 32,
        _ => 64,
    }
}

pub fn spec(form: &Form, words: &[&str]) -> Option<Spec> {
    if words[0] != "mov" {
        return None;
    }
    let (to, from) = (form.operands[0].clone(), form.operands[1].clone());
    if let Some(text) = from.strip_prefix('#') {
        let value = constant(text, words[1]);
        return Some(Spec::bits(vec![], move |_| value));
    }
    if from.ends_with('p') {
        let inverted = from.starts_with('!');
        return Some(Spec::bits(vec![Kind::Predicate], move |[a, ..]| a ^ u64::from(inverted)));
    }
    if from.starts_with('(') {
        let parts: Vec<u32> = from.chars().filter(char::is_ascii_alphabetic).map(bits).collect();
        let kinds = parts.iter().map(|&bits| Kind::Integer(bits)).collect();
        return Some(Spec::bits(kinds, move |v| {
            parts.iter().rev().zip(v[..parts.len()].iter().rev()).fold(0, |d, (bits, part)| d << bits | part)
        }));
    }
    let kinds = vec![Kind::Integer(from.chars().map(bits).sum())];
    if !to.starts_with('(') {
        return Some(Spec::bits(kinds, |[a, ..]| a));
    }
    let parts: Vec<char> = to.chars().filter(|c| c.is_ascii_alphabetic() || *c == '_').collect();
    let width = bits(*parts.iter().find(|c| **c != '_')?);
    let oracle = move |[a, ..]: [u64; 4]| {
        let mut out = [0; 4];
        let kept = parts.iter().enumerate().filter(|(_, part)| **part != '_');
        for (slot, (k, _)) in out.iter_mut().zip(kept) {
            *slot = a >> (width * k as u32) & ((1 << width) - 1);
        }
        Want::Bits(out)
    };
    Some(Spec { kinds, oracle: Box::new(oracle) })
}

/// Bits of a constant of a type.
fn constant(text: &str, ty: &str) -> u64 {
    let hex = |digits: &str| u64::from_str_radix(digits, 16).expect("hexadecimal digits");
    let float = |x: f64| if ty == "f32" { u64::from((x as f32).to_bits()) } else { x.to_bits() };
    if let Some(digits) = ["0x", "0f", "0d"].iter().find_map(|prefix| text.strip_prefix(prefix)) {
        return hex(digits);
    }
    if matches!(ty, "f32" | "f64") {
        return float(text.parse().expect("a number"));
    }
    let value: i64 = text.parse().expect("a number");
    let width =
        [("16", 16), ("32", 32), ("x2", 32)].iter().find(|(end, _)| ty.ends_with(end)).map_or(64, |w| w.1);
    value.cast_unsigned() & u64::MAX >> (64 - width)
}
