//! Registers of the tests' kernels. An operand is written in letters: `h`, `r`, `q` for registers of 16, 32 and 64
//! bits, `p` for predicates (`!p` complemented), `(h,h)` for vectors, `p|p` for two destinations, `#5` for a constant.

use crate::grammar::{Form, expand};
use crate::harness::Device;

pub const REGISTERS: &str = ".reg .b16 %dh<8>, %sh<8>;\n.reg .b32 %dr<8>, %sr<8>, %t, %g0, %two;\n\
                         .reg .b64 %dq<8>, %sq<8>, %w;\n.reg .pred %dp<8>, %sp<8>, %g, %dirty;\n";

/// Contents of the destinations before, by letter.
pub fn sentinel(letter: char, thread: u64) -> u64 {
    match letter {
        'h' => 0x5aa5,
        'r' => 0x5aa5_c33c,
        'q' => 0x5aa5_c33c_0ff0_a5a5,
        _ => thread >> 1 & 1,
    }
}

/// Whether the guard holds in a thread, if it is not complemented.
pub fn guard(thread: u64) -> bool {
    thread.wrapping_mul(0x9e37_79b1) >> 31 & 1 == 1
}

/// The letters of an operand.
pub fn letters(operand: &str) -> impl Iterator<Item = char> {
    let constant = operand.starts_with('#');
    operand.chars().filter(move |c| !constant && matches!(c, 'h' | 'r' | 'q' | 'p'))
}

/// Names registers: letters become `%<prefix><letter><number>`.
pub fn named(operand: &str, prefix: char, count: &mut usize) -> String {
    if let Some(constant) = operand.strip_prefix('#') {
        return constant.to_owned();
    }
    // A variable in brackets.
    if operand.starts_with('[') && operand.chars().filter(|c| c.is_ascii_alphabetic()).count() > 1 {
        return operand.to_owned();
    }
    let mut text = String::new();
    for c in operand.chars() {
        match c {
            'h' | 'r' | 'q' | 'p' => {
                text += &format!("%{prefix}{c}{count}");
                *count += 1;
            }
            '(' => text.push('{'),
            ')' => text.push('}'),
            c => text.push(c),
        }
    }
    text
}

/// Stores a register as 64 bits; bit 63 of a narrow one says that it holds more than 16 bits.
pub fn store(letter: char, prefix: char, number: usize, at: usize) -> String {
    let register = format!("%{prefix}{letter}{number}");
    let widen = match letter {
        'h' => format!(
            "cvt.u64.u16 %w, {register};\nsetp.hi.u16 %dirty, {register}, 0xffff;\n\
             @%dirty or.b64 %w, %w, 0x8000000000000000;\n"
        ),
        'r' => format!("cvt.u64.u32 %w, {register};\n"),
        'q' => format!("mov.b64 %w, {register};\n"),
        _ => format!("selp.b64 %w, 1, 0, {register};\n"),
    };
    format!("{widen}st.global.b64 [%out+{at}], %w;\n")
}

/// `%g`: whether the lane takes part in what is guarded; `%two`: bit 1 of the thread's number.
pub const GUARD: &str = "mul.lo.u32 %g0, %thread, 0x9e3779b1;\nshr.u32 %g0, %g0, 31;\nsetp.ne.u32 %g, %g0, 0;\n\
                         and.b32 %two, %thread, 2;\n";

/// Sets a destination to its sentinel.
pub fn set(letter: char, number: usize) -> String {
    let bits = match letter {
        'p' => return format!("setp.ne.u32 %dp{number}, %two, 0;\n"),
        'h' => 16,
        'r' => 32,
        _ => 64,
    };
    format!("mov.b{bits} %d{letter}{number}, {:#x};\n", sentinel(letter, 0))
}

/// An instruction of a form.
pub fn text(form: &Form) -> String {
    let (mut outputs, mut sources) = (0, 0);
    let mut list = Vec::new();
    if let Some(first) = form.operands.first() {
        list.push(named(first, 'd', &mut outputs));
    }
    list.extend(form.operands.iter().skip(1).map(|operand| named(operand, 's', &mut sources)));
    format!("{} {};", form.name, list.join(", "))
}

/// All forms of some lines decode and run, or, if their line starts with `-`, are refused.
pub fn check<Line: AsRef<str>>(lines: &[Line], run: impl Fn(&Device, &Form, u64) -> Result<(), String>) {
    let device = Device::new(80);
    let (refused, run_lines): (Vec<&str>, Vec<&str>) =
        lines.iter().map(AsRef::as_ref).partition(|line| line.starts_with('-'));
    let mut wrong = Vec::new();
    for form in expand(refused.iter().map(|line| &line[1..])) {
        if device.decodes(REGISTERS, &text(&form)) {
            wrong.push(format!("{} decodes now: it needs a test", form.text()));
        }
    }
    let forms = expand(run_lines);
    wrong.extend((0..).zip(&forms).filter_map(|(turn, form)| run(&device, form, turn).err()));
    assert!(wrong.is_empty(), "{} of {} forms are wrong:\n{}", wrong.len(), forms.len(), wrong.join("\n"));
    println!("{} forms", forms.len());
}
