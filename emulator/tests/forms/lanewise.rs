//! Forms that compute lane by lane. Each is executed plainly, under a guard, and with its destination among its sources.

use crate::grammar::Form;
use crate::harness::{Device, Job, kernel, words64};
use crate::registers::{GUARD, REGISTERS, guard, letters, named, sentinel, set, store};
use crate::soft::{F32, F64};
use crate::values::{Kind, operands};
use crate::{approximate, compare, convert, float, integer, moves, table};

/// What an instruction must leave in its destinations.
#[derive(Clone, Copy, Debug)]
pub enum Want {
    /// These bits; predicates are 0 or 1.
    Bits([u64; 4]),
    /// An f32 next to this value.
    Near(f64),
    /// An f64 within this relative error of the value; in the upper word alone if so.
    Within { value: f64, error: f64, upper_word: bool },
}

/// Kinds of the sources, and the results of their values.
pub struct Spec {
    pub kinds: Vec<Kind>,
    pub oracle: Box<dyn Fn([u64; 4]) -> Want>,
}

impl Spec {
    pub fn bits(kinds: Vec<Kind>, oracle: impl Fn([u64; 4]) -> u64 + 'static) -> Self {
        Self { kinds, oracle: Box::new(move |v| Want::Bits([oracle(v), 0, 0, 0])) }
    }
}

fn spec(form: &Form) -> Option<Spec> {
    let words = form.words();
    moves::spec(form, &words)
        .or_else(|| convert::spec(form, &words))
        .or_else(|| compare::spec(form, &words))
        .or_else(|| approximate::spec(&words))
        .or_else(|| float::spec(&words))
        .or_else(|| integer::spec(form, &words))
}

/// Executed plainly, under a guard, and with the destination among the sources.
const RUNS: usize = 3;

/// An instruction of a form, and what stands before and after it.
struct Instruction<'a> {
    form: &'a Form,
    /// `add.cc` and the like: the flag comes from the last source and goes to the second output.
    carries: bool,
    /// A constant in the place of a source.
    constant: Option<(usize, String)>,
}

impl<'a> Instruction<'a> {
    fn new(form: &'a Form) -> Self {
        let words = form.words();
        let carries = words.contains(&"cc") || matches!(words[0], "addc" | "subc" | "madc");
        Self { form, carries, constant: None }
    }

    fn outputs(&self) -> Vec<char> {
        let more = if self.carries { "r" } else { "" };
        letters(&self.form.operands[0]).chain(more.chars()).collect()
    }

    /// Bytes of a thread's results.
    fn record(&self) -> usize {
        8 * RUNS * self.outputs().len()
    }

    fn sources(&self) -> Vec<char> {
        let more = if self.carries { "r" } else { "" };
        self.form.operands[1..].iter().flat_map(|operand| letters(operand)).chain(more.chars()).collect()
    }

    /// The instruction; `in_place`: its destination is its first source of that size.
    fn text(&self, guard: &str, in_place: bool) -> String {
        let (mut outputs, mut sources) = (0, 0);
        let mut list = vec![named(&self.form.operands[0], 'd', &mut outputs)];
        for operand in &self.form.operands[1..] {
            let first = sources;
            let name = named(operand, 's', &mut sources);
            let replaced = self.constant.as_ref().filter(|(slot, _)| *slot == first && sources > first);
            list.push(replaced.map_or(name, |(_, constant)| constant.clone()));
        }
        if in_place {
            list[0] = list[0].replace("%d", "%s").replace('0', &self.same_size().to_string());
        }
        let text = format!("{guard}{} {};", self.form.name, list.join(", "));
        if self.carries {
            let last = self.sources().len() - 1;
            return format!("add.cc.u32 %t, %sr{last}, -1;\n{text}\naddc.u32 %dr1, 0, 0;");
        }
        text
    }

    /// The first source in a register like the only destination's.
    fn same_size(&self) -> usize {
        self.sources().iter().position(|&c| c == self.outputs()[0]).unwrap_or(0)
    }

    fn can_be_in_place(&self) -> bool {
        let single = self.form.operands[0].len() == 1 && !self.carries && self.constant.is_none();
        single && self.sources().contains(&self.outputs()[0])
    }

    fn kernel(&self, capability: u32, guard: &str) -> String {
        let mut body = format!("{REGISTERS}mul.wide.u32 %w, %thread, 32;\nadd.u64 %in, %in, %w;\n");
        body += &format!("mul.wide.u32 %w, %thread, {};\nadd.u64 %out, %out, %w;\n", self.record());
        body += GUARD;
        for (k, letter) in self.sources().into_iter().enumerate() {
            let at = 8 * k;
            body += &match letter {
                'h' => format!("ld.global.b16 %sh{k}, [%in+{at}];\n"),
                'r' => format!("ld.global.b32 %sr{k}, [%in+{at}];\n"),
                'q' => format!("ld.global.b64 %sq{k}, [%in+{at}];\n"),
                _ => format!("ld.global.b32 %g0, [%in+{at}];\nsetp.ne.u32 %sp{k}, %g0, 0;\n"),
            };
        }
        body += &self.execution(0, &self.text("", false), 'd');
        body += &self.execution(1, &self.text(guard, false), 'd');
        if self.can_be_in_place() {
            body += &format!("{}\n", self.text("", true));
            body += &store(self.outputs()[0], 's', self.same_size(), 16);
        }
        kernel(capability, "", &body)
    }

    /// Sets the destinations, executes, and stores them.
    fn execution(&self, run: usize, text: &str, prefix: char) -> String {
        let mut body = String::new();
        for (k, letter) in self.outputs().into_iter().enumerate() {
            body += &set(letter, k);
        }
        body += &format!("{text}\n");
        for (k, letter) in self.outputs().into_iter().enumerate() {
            body += &store(letter, prefix, k, 8 * (self.outputs().len() * run + k));
        }
        body
    }
}

/// Whether the destinations hold what they must.
fn holds(want: Want, got: &[u64]) -> bool {
    match want {
        Want::Bits(bits) => got == &bits[..got.len()],
        Want::Near(value) => near(value, got[0]),
        Want::Within { value, error, upper_word } => {
            let x = F64.value(got[0]);
            if upper_word && got[0] & 0xffff_ffff != 0 {
                return false;
            }
            if value.is_nan() {
                return x.is_nan();
            }
            if value == 0.0 || value.is_infinite() {
                return got[0] == value.to_bits();
            }
            ((x - value) / value).abs() <= error
        }
    }
}

/// The f32 nearest to a value, or the other one beside it if the value is all but between them: both evaluations may
/// be off by 2^-40 of the value, which is 2^-16 units in the last place.
fn near(value: f64, got: u64) -> bool {
    let x = f32::from_bits(got as u32);
    if value.is_nan() || x.is_nan() {
        return value.is_nan() && got == F32.nan;
    }
    let rounded = value as f32;
    if x == rounded {
        return x.is_sign_negative() == rounded.is_sign_negative();
    }
    let unit = (f64::from(rounded.next_up()) - f64::from(rounded)).abs();
    x.is_finite() && ((f64::from(x) - value) / unit).abs() <= 0.5 + 2f64.powi(-15)
}

/// Runs an instruction on rows of operands and compares.
fn check(
    device: &Device,
    instruction: &Instruction,
    spec: &Spec,
    rows: &[[u64; 4]],
    turn: u64,
) -> Result<(), String> {
    let negated = turn % 2 == 1;
    let text = instruction.kernel(device.capability, if negated { "@!%g " } else { "@%g " });
    let input: Vec<u8> = rows.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
    let job = Job::line(rows.len() / 128, 128, &input, rows.len() * instruction.record());
    let (results, _) = device.run(&text, &job, turn).map_err(|fault| format!("{fault}"))?;
    let results = words64(&results);
    let outputs = instruction.outputs();
    for (thread, (row, got)) in (0u64..).zip(rows.iter().zip(results.chunks_exact(RUNS * outputs.len()))) {
        let want = (spec.oracle)(*row);
        let fail = |how: &str, got: &[u64]| {
            let (row, line) = (row.map(|x| format!("{x:x}")), instruction.text("", false));
            Err(format!("{line} {how}, thread {thread}, of {row:?}: {got:x?}, not {want:x?}"))
        };
        let part = |run: usize| &got[outputs.len() * run..outputs.len() * (run + 1)];
        if !holds(want, part(0)) {
            return fail("alone", part(0));
        }
        if guard(thread) != negated {
            if !holds(want, part(1)) {
                return fail("under its guard", part(1));
            }
        } else {
            // The flag goes out as it came in.
            let carry_in = instruction.carries.then(|| row[instruction.sources().len() - 1] & 1);
            let before = outputs.iter().enumerate().map(|(k, &letter)| match (k, carry_in) {
                (1, Some(flag)) => flag,
                _ => sentinel(letter, thread),
            });
            if !before.eq(part(1).iter().copied()) {
                return fail("in a lane that takes no part", part(1));
            }
        }
        if instruction.can_be_in_place() && !holds(want, part(2)) {
            return fail("in place", part(2));
        }
    }
    Ok(())
}

/// A constant of a kind: its text and its bits.
fn constant(kind: Kind) -> Option<(&'static str, u64)> {
    match kind {
        Kind::Integer(bits) => Some(("-7", 7u64.wrapping_neg() & u64::MAX >> (64 - bits))),
        Kind::Amount => Some(("5", 5)),
        Kind::Float(F32) => Some(("0fBFC00000", 0xbfc0_0000)),
        Kind::Float(F64) => Some(("0dBFF8000000000000", 0xbff8_0000_0000_0000)),
        _ => None,
    }
}

fn check_form(device: &Device, form: &Form, turn: u64) -> Result<(), String> {
    let spec = spec(form).ok_or_else(|| format!("{}: no oracle knows it", form.text()))?;
    let mut instruction = Instruction::new(form);
    assert_eq!(instruction.sources().len(), spec.kinds.len(), "{}: operands", form.text());
    let rows = operands(&spec.kinds, turn);
    check(device, &instruction, &spec, &rows, turn)?;
    if instruction.carries || matches!(form.words()[0], "cvt" | "mov") {
        return Ok(());
    }
    for (slot, &kind) in spec.kinds.iter().enumerate() {
        if let Some((text, bits)) = constant(kind) {
            let mut few: Vec<[u64; 4]> = rows.iter().step_by(rows.len() / 128).take(128).copied().collect();
            few.iter_mut().for_each(|row| row[slot] = bits);
            instruction.constant = Some((slot, text.to_owned()));
            check(device, &instruction, &spec, &few, turn)?;
        }
    }
    Ok(())
}

#[test]
fn integers() {
    crate::registers::check(table::INTEGER, check_form);
}

#[test]
fn bit_fields_and_logic() {
    crate::registers::check(table::LOGIC, check_form);
}

#[test]
fn single_and_double_precision() {
    crate::registers::check(table::FLOAT, check_form);
}

#[test]
fn sixteen_bit_floats() {
    crate::registers::check(table::HALF, check_form);
}

#[test]
fn comparisons_and_selections() {
    crate::registers::check(table::COMPARE, check_form);
}

#[test]
fn conversions_of_integers() {
    crate::registers::check(table::CONVERT_INTEGER, check_form);
}

#[test]
fn conversions_of_floats() {
    crate::registers::check(table::CONVERT_FLOAT, check_form);
}

#[test]
fn moves_of_registers() {
    crate::registers::check(table::MOVE, check_form);
}
