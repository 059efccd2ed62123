//! Integers, by the ISA's text.

use crate::grammar::Form;
use crate::lanewise::{Spec, Want};
use crate::values::Kind;

/// Bits and signedness of an integer or untyped word.
pub fn int_type(word: &str) -> Option<(u32, bool)> {
    let (kind, bits) = word.split_at_checked(1)?;
    let bits = bits.parse().ok().filter(|bits| [8, 16, 32, 64].contains(bits))?;
    match kind {
        "u" | "b" => Some((bits, false)),
        "s" => Some((bits, true)),
        _ => None,
    }
}

/// The low bits as a number.
pub fn number(x: u64, bits: u32, signed: bool) -> i128 {
    let value = i128::from(x) & ((1i128 << bits) - 1);
    if signed && value >> (bits - 1) == 1 { value - (1i128 << bits) } else { value }
}

pub fn limits(bits: u32, signed: bool) -> (i128, i128) {
    if signed { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) }
}

fn mask(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

pub fn spec(form: &Form, words: &[&str]) -> Option<Spec> {
    let (opcode, ty) = (words[0], *words.last()?);
    if ty == "pred" {
        return Some(predicates(form, opcode));
    }
    if words.contains(&"cc") || matches!(opcode, "addc" | "subc" | "madc") {
        return Some(carry(words, ty));
    }
    let (bits, signed) = int_type(if opcode == "prmt" { "b32" } else { ty })?;
    if let Some(spec) = bit_fields(form, words, bits, signed) {
        return Some(spec);
    }
    let (wide, high, sat) = (words.contains(&"wide"), words.contains(&"hi"), words.contains(&"sat"));
    let name = opcode.to_owned();
    let int = Kind::Integer(bits);
    let kinds = match opcode {
        "abs" | "neg" | "not" | "cnot" | "popc" | "clz" | "brev" => vec![int],
        "shl" | "shr" => vec![int, Kind::Amount],
        "mad" if wide => vec![int, int, Kind::Integer(2 * bits)],
        "mad" | "sad" => vec![int; 3],
        "add" | "sub" | "mul" | "div" | "rem" | "min" | "max" | "and" | "or" | "xor" => vec![int; 2],
        _ => return None,
    };
    let out = mask(if wide { 2 * bits } else { bits });
    let oracle = move |[a, b, c, _]: [u64; 4]| {
        let value = |x| number(x, bits, signed);
        let result = lane(
            &name,
            bits,
            signed,
            wide,
            high,
            [value(a), value(b), if wide { number(c, 2 * bits, signed) } else { value(c) }],
            b,
        );
        let (low, most) = limits(bits, signed);
        let result = if sat { result.clamp(low, most) } else { result };
        result as u64 & out
    };
    Some(Spec::bits(kinds, oracle))
}

/// A result before it is cut to its bits. `amount` is the second operand as it is.
fn lane(
    name: &str,
    bits: u32,
    signed: bool,
    wide: bool,
    high: bool,
    [x, y, z]: [i128; 3],
    amount: u64,
) -> i128 {
    // Unsigned products of 64 bits fill 128.
    let product = match (signed, wide, high) {
        (false, false, true) => ((x as u128 * y as u128) >> bits) as i128,
        (true, false, true) => (x * y) >> bits,
        _ => (x as u128).wrapping_mul(y as u128) as i128,
    };
    let ones = i128::from(mask(bits));
    let pattern = (x & ones) as u64;
    match name {
        "add" => x + y,
        "sub" => x - y,
        "mul" => product,
        "mad" => product.wrapping_add(z),
        "sad" => z + if x < y { y - x } else { x - y },
        // By zero the result is not defined; the machine gives what the hardware's division gives.
        "div" => {
            if y == 0 {
                ones
            } else {
                x / y
            }
        }
        "rem" => {
            if y == 0 {
                x
            } else {
                x % y
            }
        }
        "abs" => {
            if x < 0 {
                -x
            } else {
                x
            }
        }
        "neg" => -x,
        "min" => {
            if x < y {
                x
            } else {
                y
            }
        }
        "max" => {
            if x > y {
                x
            } else {
                y
            }
        }
        "and" => x & y,
        "or" => x | y,
        "xor" => x ^ y,
        "not" => !x,
        "cnot" => i128::from(x == 0),
        "shl" => {
            if amount >= u64::from(bits) {
                0
            } else {
                x << amount
            }
        }
        "shr" => {
            if amount >= u64::from(bits) {
                x >> 64
            } else {
                x >> amount
            }
        }
        "popc" => (0..bits).map(|k| i128::from(pattern >> k & 1)).sum(),
        "clz" => (0..bits).rev().take_while(|k| pattern >> k & 1 == 0).count() as i128,
        "brev" => (0..bits).fold(0, |d, k| d | i128::from(pattern >> k & 1) << (bits - 1 - k)),
        _ => unreachable!("{name}"),
    }
}

fn predicates(form: &Form, opcode: &str) -> Spec {
    let inverted: Vec<bool> = form.operands[1..].iter().map(|operand| operand.starts_with('!')).collect();
    let opcode = opcode.to_owned();
    Spec::bits(vec![Kind::Predicate; inverted.len()], move |v| {
        let p = |k: usize| (v[k] == 1) != inverted[k];
        u64::from(match opcode.as_str() {
            "and" => p(0) && p(1),
            "or" => p(0) || p(1),
            "xor" => p(0) != p(1),
            _ => !p(0),
        })
    })
}

/// The flag comes in as the last source and goes out as the second result.
fn carry(words: &[&str], ty: &str) -> Spec {
    let (bits, signed) = int_type(ty).expect("an integer");
    let (name, sets, high) = (words[0].to_owned(), words.contains(&"cc"), words.contains(&"hi"));
    let three = name.starts_with("mad");
    let mut kinds = vec![Kind::Integer(bits); if three { 3 } else { 2 }];
    kinds.push(Kind::Predicate);
    let oracle = move |v: [u64; 4]| {
        let flag = if three { v[3] } else { v[2] };
        let plus = if name.ends_with('c') { i128::from(flag) } else { 0 };
        let unsigned = |x| number(x, bits, false);
        let (a, b) = (unsigned(v[0]), unsigned(v[1]));
        let total = match name.as_str() {
            "add" | "addc" => a + b + plus,
            "sub" | "subc" => a - (b + plus),
            _ => {
                let part = match (high, signed) {
                    (true, true) => ((number(v[0], bits, true) * number(v[1], bits, true)) >> bits) as u64,
                    (true, false) => ((a as u128 * b as u128) >> bits) as u64,
                    _ => (a as u128).wrapping_mul(b as u128) as u64,
                };
                unsigned(part) + unsigned(v[2]) + plus
            }
        };
        let out = u64::from(total < 0 || total > limits(bits, false).1);
        Want::Bits([total as u64 & mask(bits), if sets { out } else { flag }, 0, 0])
    };
    Spec { kinds, oracle: Box::new(oracle) }
}

/// Instructions on bits and parts of words.
fn bit_fields(form: &Form, words: &[&str], bits: u32, signed: bool) -> Option<Spec> {
    let int = Kind::Integer(bits);
    let (word, amount) = (Kind::Integer(32), Kind::Amount);
    let has = |word: &str| words.contains(&word);
    Some(match words[0] {
        "bfe" => Spec::bits(vec![int, amount, amount], move |[a, b, c, _]| extract(a, b, c, bits, signed)),
        "bfi" => Spec::bits(vec![int, int, amount, amount], move |[a, b, c, d]| {
            let (position, length) = (c & 255, d & 255);
            let inside = |k: u64| k >= position && k < (position + length).min(u64::from(bits));
            (0..u64::from(bits))
                .fold(0, |f, k| f | if inside(k) { a >> (k - position) & 1 } else { b >> k & 1 } << k)
        }),
        "bfind" => {
            let shift = has("shiftamt");
            Spec::bits(vec![int], move |[a, ..]| {
                let sign = if signed { a >> (bits - 1) & 1 } else { 0 };
                let found = (0..bits).rev().find(|k| a >> k & 1 != sign);
                u64::from(found.map_or(u32::MAX, |k| if shift { bits - 1 - k } else { k }))
            })
        }
        "szext" => {
            let clamp = has("clamp");
            Spec::bits(vec![word, amount], move |[a, b, ..]| {
                let length = if clamp { b.min(32) } else { b & 31 };
                let kept = (0..length).fold(0, |d, k| d | a & 1 << k);
                let negative = signed && length > 0 && a >> (length - 1) & 1 == 1;
                (length..32).fold(kept, |d, k| d | u64::from(negative) << k)
            })
        }
        "bmsk" => {
            let clamp = has("clamp");
            Spec::bits(vec![amount, amount], move |[a, b, ..]| {
                let (from, length) = if clamp { (a.min(32), b.min(32)) } else { (a & 31, b & 31) };
                (from..(from + length).min(32)).fold(0, |d, k| d | 1 << k)
            })
        }
        "shf" => {
            let (left, clamp) = (has("l"), has("clamp"));
            Spec::bits(vec![word, word, amount], move |[a, b, c, _]| {
                let n = if clamp { c.min(32) } else { c & 31 };
                let whole = u128::from(b << 32 | a);
                (if left { whole << n >> 32 } else { whole >> n }) as u64 & mask(32)
            })
        }
        "lop3" => {
            let text = form.operands[4].trim_start_matches('#');
            let table =
                text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
            let table = table.expect("a number");
            Spec::bits(vec![word; 3], move |[a, b, c, _]| {
                let index = |k: u32| (a >> k & 1) << 2 | (b >> k & 1) << 1 | (c >> k & 1);
                (0..32).fold(0, |d, k| d | (table >> index(k) & 1) << k)
            })
        }
        "prmt" => {
            let mode = words.get(2).copied().unwrap_or("").to_owned();
            Spec::bits(vec![word, word, word], move |[a, b, c, _]| permute(&mode, a | b << 32, c))
        }
        "mul24" | "mad24" => {
            let (add, high) = (words[0] == "mad24", has("hi"));
            Spec::bits(vec![word; if add { 3 } else { 2 }], move |[a, b, c, _]| {
                let product = number(a, 24, signed) * number(b, 24, signed);
                let part = (if high { product >> 16 } else { product }) as u64;
                part.wrapping_add(c) & mask(32)
            })
        }
        "dp4a" | "dp2a" => {
            let signs = [words[words.len() - 2] == "s32", signed];
            let (four, upper) = (words[0] == "dp4a", has("hi"));
            Spec::bits(vec![word; 3], move |[a, b, c, _]| {
                let products = (0..if four { 4 } else { 2 }).map(|k| {
                    let (width, at) = if four { (8, k) } else { (16, if upper { k + 2 } else { k }) };
                    number(a >> (width * k), width, signs[0]) * number(b >> (8 * at), 8, signs[1])
                });
                (products.sum::<i128>() + i128::from(c)) as u64 & mask(32)
            })
        }
        _ => return None,
    })
}

fn extract(a: u64, b: u64, c: u64, bits: u32, signed: bool) -> u64 {
    let (position, length, top) = (b & 255, c & 255, u64::from(bits) - 1);
    let fill = if !signed || length == 0 { 0 } else { a >> (position + length - 1).min(top) & 1 };
    (0..=top).fold(0, |d, k| {
        let bit = if k < length && position + k <= top { a >> (position + k) & 1 } else { fill };
        d | bit << k
    })
}

/// The ISA's tables, bytes 3 to 0 of the result.
fn permute(mode: &str, bytes: u64, selector: u64) -> u64 {
    let table: [[u64; 4]; 4] = match mode {
        "f4e" => [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]],
        "b4e" => [[5, 6, 7, 0], [6, 7, 0, 1], [7, 0, 1, 2], [0, 1, 2, 3]],
        "rc8" => [[0; 4], [1; 4], [2; 4], [3; 4]],
        "ecl" => [[3, 2, 1, 0], [3, 2, 1, 1], [3, 2, 2, 2], [3, 3, 3, 3]],
        "ecr" => [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 1, 0], [3, 2, 1, 0]],
        "rc16" => [[1, 0, 1, 0], [3, 2, 3, 2], [1, 0, 1, 0], [3, 2, 3, 2]],
        _ => [[selector >> 12 & 15, selector >> 8 & 15, selector >> 4 & 15, selector & 15]; 4],
    };
    table[usize::try_from(selector & 3).expect("below 4")].iter().fold(0, |d, &s| {
        let byte = bytes >> (8 * (s & 7)) & 255;
        let sign = if byte >> 7 == 1 { 255 } else { 0 };
        d << 8 | if s & 8 == 0 { byte } else { sign }
    })
}
