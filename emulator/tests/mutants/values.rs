//! What people get wrong in what is computed: factors, clamps, conditions.

use super::operators::{Edit, replaced, statement};
use super::statement::Statement;

/// A sixteenth, which is added to a factor.
const SIXTEENTH: [(&str, &str); 2] = [("f32", "0f3D800000"), ("f64", "0d3FB0000000000000")];

/// Type, and the constant of that type.
fn of_floats(s: &Statement) -> Option<(&'static str, &'static str)> {
    let kind = s.opcode.rsplit('.').next()?;
    SIXTEENTH.into_iter().find(|(float, _)| kind == *float)
}

/// Whether an operand is a constant, also one that stands in a register.
fn is_constant(lines: &[String], operand: &str) -> bool {
    let sets = |line: &String| {
        Statement::of(line)
            .is_some_and(|s| s.is(&["mov.f"]) && s.operands[0] == operand && !s.operands[1].starts_with('%'))
    };
    !operand.starts_with('%') || lines.iter().any(sets)
}

/// A product added to something, of numbers that are computed. Those with constants are inside of the compiler's expf
/// and logf.
fn is_product_and_sum(lines: &[String], s: &Statement) -> bool {
    s.is(&["fma."]) && s.operands[1..3].iter().all(|operand| !is_constant(lines, operand))
}

/// A product becomes either factor, a quotient what is divided, a reciprocal its number; of a product that is added, the
/// first factor stays.
pub fn factor_dropped(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(s) = statement(lines, at) else { return vec![] };
    let Some((kind, _)) = of_floats(&s) else { return vec![] };
    let Statement { guard, operands, .. } = &s;
    let becomes = |operand: &str| vec![(at, format!("{guard} mov.{kind} {}, {operand};", operands[0]))];
    if s.is(&["mul."]) {
        let factors = operands[1..].iter().filter(|operand| operand.starts_with('%'));
        return factors.map(|factor| becomes(factor)).collect();
    }
    if s.is(&["div.", "rcp."]) {
        return vec![becomes(operands[1])];
    }
    if is_product_and_sum(lines, &s) {
        return replaced(
            at,
            format!("{guard} add.{kind} {}, {}, {};", operands[0], operands[1], operands[3]),
        );
    }
    vec![]
}

/// A product, quotient or reciprocal, by a sixteenth.
pub fn factor_changed(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(s) = statement(lines, at) else { return vec![] };
    let Some((kind, by)) = of_floats(&s) else { return vec![] };
    let Statement { guard, operands, .. } = &s;
    if !s.is(&["mul.", "div.", "rcp."]) {
        return vec![];
    }
    let d = operands[0];
    replaced(at, format!("{} {guard} fma.rn.{kind} {d}, {d}, {by}, {d};", s.text()))
}

/// A minimum or maximum becomes either number.
pub fn clamp_dropped(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(s) = statement(lines, at).filter(|s| s.is(&["min.", "max."])) else { return vec![] };
    let kind = s.opcode.rsplit('.').next().unwrap_or_default();
    let becomes =
        |operand: &&str| vec![(at, format!("{} mov.{kind} {}, {operand};", s.guard, s.operands[0]))];
    s.operands[1..].iter().map(becomes).collect()
}

/// Comparisons and their opposites; of floats also where one is no number.
const OPPOSITES: [(&str, &str); 10] = [
    ("lt", "ge"),
    ("le", "gt"),
    ("eq", "ne"),
    ("lt", "geu"),
    ("le", "gtu"),
    ("gt", "leu"),
    ("ge", "ltu"),
    ("eq", "neu"),
    ("ne", "equ"),
    ("num", "nan"),
];

/// Holds where it should not, and the other way round.
pub fn condition_inverted(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(s) = statement(lines, at).filter(|s| s.is(&["setp."]) && s.operands.len() == 3) else {
        return vec![];
    };
    let float = of_floats(&s).is_some();
    let mut pairs = OPPOSITES[if float { 3..10 } else { 0..3 }].iter();
    let mut parts: Vec<&str> = s.opcode.split('.').collect();
    let opposite = pairs.find_map(|(a, b)| match parts[1] {
        x if x == *a => Some(b),
        x if x == *b => Some(a),
        _ => None,
    });
    let Some(opposite) = opposite else { return vec![] };
    parts[1] = opposite;
    replaced(at, s.with_opcode(&parts.join(".")))
}

/// Of two that are joined, either counts alone.
pub fn condition_dropped(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(s) = statement(lines, at).filter(|s| s.is(&["and.pred", "or.pred"])) else { return vec![] };
    let becomes = |operand: &&str| vec![(at, format!("{} mov.pred {}, {operand};", s.guard, s.operands[0]))];
    s.operands[1..].iter().map(becomes).collect()
}

/// A copy brings what is there also where there should be zeros.
pub fn zero_fill_dropped(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let copies = |s: &Statement| s.is(&["cp.async.c"]) && s.operands.len() == 4;
    let Some(s) = statement(lines, at).filter(copies) else { return vec![] };
    replaced(at, s.with_operand(3, s.operands[2]))
}
