//! What the headers of `kernels/*.cu` say about bytes: statements `NAME: read FORMULA, written FORMULA` in the part
//! `Bytes`, between semicolons or full stops.

use std::collections::BTreeMap;

/// Dimensions by the names that the headers use.
pub type Dims = [(&'static str, usize)];

/// Bytes of one launch, as formulas.
#[derive(Clone, Debug)]
pub struct Statement {
    pub read: String,
    pub written: String,
}

/// All statements, by kernel.
pub fn statements() -> BTreeMap<String, Statement> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let sources = paths.filter(|path| path.extension().is_some_and(|e| e == "cu"));
    sources.flat_map(|path| of_header(&std::fs::read_to_string(path).unwrap())).collect()
}

fn of_header(source: &str) -> Vec<(String, Statement)> {
    let header = source.lines().map_while(|line| line.strip_prefix("//"));
    let mut bytes = String::new();
    let mut inside = false;
    for line in header {
        // A part begins with its name, and goes on in lines that begin with more blanks than its name has before it.
        inside = line.starts_with(" Bytes ") || (inside && line.starts_with("   "));
        if inside {
            bytes += line.strip_prefix(" Bytes ").unwrap_or(line);
        }
    }
    let bytes = bytes.split_whitespace().collect::<Vec<_>>().join(" ");
    let statement = |text: &str| {
        let (name, rest) = text.split_once(": read ")?;
        let (read, written) = rest.split_once(", written ")?;
        Some((name.trim().to_owned(), Statement { read: read.to_owned(), written: written.to_owned() }))
    };
    bytes.split([';', '.']).filter_map(statement).collect()
}

/// The value of a formula: numbers, dimensions, `+`, `-`, `*`, `/`, brackets, `ceil(..)`, `sizeof(..)` of a dimension
/// that is one already.
pub fn value(formula: &str, dims: &Dims) -> f64 {
    let mut rest = formula;
    let value = sum(&mut rest, dims);
    assert!(rest.trim().is_empty(), "{formula}: {rest:?} is left over");
    value
}

/// Takes `token` off the front.
fn take(rest: &mut &str, token: char) -> bool {
    let stripped = rest.trim_start().strip_prefix(token);
    *rest = stripped.unwrap_or(rest);
    stripped.is_some()
}

fn sum(rest: &mut &str, dims: &Dims) -> f64 {
    let mut value = product(rest, dims);
    loop {
        if take(rest, '+') {
            value += product(rest, dims);
        } else if take(rest, '-') {
            value -= product(rest, dims);
        } else {
            return value;
        }
    }
}

fn product(rest: &mut &str, dims: &Dims) -> f64 {
    let mut value = factor(rest, dims);
    loop {
        if take(rest, '*') {
            value *= factor(rest, dims);
        } else if take(rest, '/') {
            value /= factor(rest, dims);
        } else {
            return value;
        }
    }
}

fn factor(rest: &mut &str, dims: &Dims) -> f64 {
    *rest = rest.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
    let (word, behind) = rest.split_at(end);
    *rest = behind;
    if word.is_empty() || matches!(word, "ceil" | "sizeof") {
        assert!(take(rest, '('), "a bracket before {rest:?}");
        let value = sum(rest, dims);
        assert!(take(rest, ')'), "a bracket before {rest:?}");
        return if word == "ceil" { value.ceil() } else { value };
    }
    let dim = dims.iter().find(|(name, _)| *name == word).map(|&(_, n)| n as f64);
    dim.or_else(|| word.parse().ok()).unwrap_or_else(|| panic!("{word} is no dimension of {dims:?}"))
}

#[test]
fn formulas_have_values() {
    let dims = [("T", 100), ("A", 2)];
    for (formula, want) in
        [("7", 7.0), ("2*T + 4*T*sizeof(A)", 1000.0), ("3*(T - 4)/2", 144.0), ("ceil(T/64)*8", 16.0)]
    {
        assert!(value(formula, &dims).to_bits() == f64::to_bits(want), "{formula}");
    }
    let source = "// A kernel.\n// Bytes      a: read 2*T, written\n//            T. Some words; b: read 0, written 3\n// Ladder\n";
    let found = of_header(source);
    let text: Vec<_> = found.iter().map(|(name, s)| format!("{name} {} {}", s.read, s.written)).collect();
    assert_eq!(text.join("|").split_whitespace().collect::<Vec<_>>().join(" "), "a 2*T T|b 0 3");
}
