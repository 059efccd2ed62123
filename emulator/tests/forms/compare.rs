//! `setp`, `set`, `selp` and `slct`, by the ISA's text.

use crate::float::format;
use crate::grammar::Form;
use crate::integer::{int_type, number};
use crate::lanewise::{Spec, Want};
use crate::soft::F32;
use crate::values::Kind;
use std::cmp::Ordering;

/// What is compared, and whether subnormals are zeros.
#[derive(Clone, Debug)]
struct Comparison {
    test: String,
    ty: String,
    ftz: bool,
}

impl Comparison {
    fn holds(&self, a: u64, b: u64) -> bool {
        let order = match int_type(&self.ty) {
            Some((bits, signed)) => Some(number(a, bits, signed).cmp(&number(b, bits, signed))),
            None => {
                let f = format(&self.ty).expect("a float");
                let value = |x: u64| f.value(if self.ftz { f.flush(x) } else { x });
                value(a).partial_cmp(&value(b))
            }
        };
        let Some(order) = order else {
            return matches!(self.test.as_str(), "equ" | "neu" | "ltu" | "leu" | "gtu" | "geu" | "nan");
        };
        match self.test.as_str() {
            "eq" | "equ" => order == Ordering::Equal,
            "ne" | "neu" => order != Ordering::Equal,
            "lt" | "ltu" | "lo" => order == Ordering::Less,
            "le" | "leu" | "ls" => order != Ordering::Greater,
            "gt" | "gtu" | "hi" => order == Ordering::Greater,
            "ge" | "geu" | "hs" => order != Ordering::Less,
            "num" => true,
            "nan" => false,
            other => unreachable!("{other}"),
        }
    }
}

fn kind(ty: &str) -> Kind {
    match (int_type(ty), format(ty)) {
        (Some((bits, _)), _) => Kind::Integer(bits),
        (_, Some(f)) if ty.ends_with("x2") => Kind::Packed(f),
        (_, Some(f)) => Kind::Float(f),
        _ => unreachable!("{ty}"),
    }
}

pub fn spec(form: &Form, words: &[&str]) -> Option<Spec> {
    let ty = (*words.last()?).to_owned();
    match words[0] {
        "setp" => Some(setp(form, words, ty)),
        "set" => {
            let comparison = Comparison { test: words[1].to_owned(), ftz: words.contains(&"ftz"), ty };
            Some(set(comparison, words[words.len() - 2]))
        }
        "selp" => {
            let inverted = form.operands[3] == "!p";
            let kinds = vec![kind(&ty), kind(&ty), Kind::Predicate];
            Some(Spec::bits(kinds, move |[a, b, c, _]| if (c == 1) != inverted { a } else { b }))
        }
        "slct" => {
            let (ftz, chooser) =
                (words.contains(&"ftz"), if ty == "s32" { Kind::Integer(32) } else { Kind::Float(F32) });
            let value = kind(words[words.len() - 2]);
            Some(Spec::bits(vec![value, value, chooser], move |[a, b, c, _]| {
                let c = if ftz { F32.flush(c) } else { c };
                // A NaN chooses b.
                let first = if ty == "s32" { number(c, 32, true) >= 0 } else { F32.value(c) >= 0.0 };
                if first { a } else { b }
            }))
        }
        _ => None,
    }
}

/// All ones of an integer type, 1.0 of a float; packed in each half by itself.
fn set(comparison: Comparison, to: &str) -> Spec {
    let kinds = vec![kind(&comparison.ty); 2];
    let Some(element) = comparison.ty.strip_suffix("x2").map(str::to_owned) else {
        let truth = format(to).map_or(0xffff_ffff, |f| f.one());
        return Spec::bits(kinds, move |[a, b, ..]| if comparison.holds(a, b) { truth } else { 0 });
    };
    let truth = format(&element).expect("packed floats").one();
    let comparison = Comparison { ty: element, ..comparison };
    Spec::bits(kinds, move |[a, b, ..]| {
        let half = |shift: u32| {
            let holds = comparison.holds(a >> shift & 0xffff, b >> shift & 0xffff);
            if holds { truth << shift } else { 0 }
        };
        half(0) | half(16)
    })
}

/// The first predicate is the comparison (of the low halves), the second its complement (or the high halves'), each
/// combined with the last source.
fn setp(form: &Form, words: &[&str], ty: String) -> Spec {
    let packed = ty.ends_with("x2");
    let mut kinds = vec![kind(&ty); 2];
    let logic =
        words.iter().find(|word| matches!(**word, "and" | "or" | "xor")).map(|word| (*word).to_owned());
    if logic.is_some() {
        kinds.push(Kind::Predicate);
    }
    let element = ty.strip_suffix("x2").unwrap_or(&ty).to_owned();
    let comparison = Comparison { test: words[1].to_owned(), ftz: words.contains(&"ftz"), ty: element };
    let inverted = form.operands.last().is_some_and(|operand| operand == "!p");
    let pair = form.operands[0] == "p|p";
    let oracle = move |[a, b, c, _]: [u64; 4]| {
        let low = |x: u64| if packed { x & 0xffff } else { x };
        let first = comparison.holds(low(a), low(b));
        let second = if packed { comparison.holds(a >> 16, b >> 16) } else { !first };
        let c = (c == 1) != inverted;
        let combined = |found: bool| match logic.as_deref() {
            Some("and") => found && c,
            Some("or") => found || c,
            Some(_) => found != c,
            None => found,
        };
        Want::Bits([u64::from(combined(first)), u64::from(pair && combined(second)), 0, 0])
    };
    Spec { kinds, oracle: Box::new(oracle) }
}
