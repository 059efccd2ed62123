//! An instruction back as PTX, for messages.

use super::ast::{Function, Instruction, Operand};
use std::fmt::{self, Write};

impl Function {
    /// The instruction as PTX, with the names of its registers and labels.
    ///
    /// Of a table of branch targets the labels are shown, as a vector.
    pub fn text_of(&self, instruction: &Instruction) -> String {
        let mut text = String::new();
        self.write(&mut text, instruction).expect("a String takes all that is written to it");
        text
    }

    fn write(&self, out: &mut String, instruction: &Instruction) -> fmt::Result {
        if let Some(guard) = instruction.guard {
            write!(out, "@{}{} ", if guard.negated { "!" } else { "" }, self.register(guard.register))?;
        }
        out.write_str(&instruction.opcode)?;
        for modifier in &instruction.modifiers {
            write!(out, ".{modifier}")?;
        }
        for (i, operand) in instruction.operands.iter().enumerate() {
            out.write_str(if i == 0 { " " } else { ", " })?;
            self.write_operand(out, operand)?;
        }
        out.write_char(';')
    }

    fn write_operand(&self, out: &mut String, operand: &Operand) -> fmt::Result {
        match operand {
            Operand::Register(index) => out.write_str(self.register(*index)),
            Operand::Special(name) => out.write_str(name),
            Operand::Integer(bits) => write!(out, "{}", bits.cast_signed()),
            Operand::F32(bits) => write!(out, "0f{bits:08X}"),
            Operand::F64(bits) => write!(out, "0d{bits:016X}"),
            Operand::Symbol(name, offset) => {
                out.write_str(name)?;
                write_offset(out, *offset)
            }
            Operand::Address(base, offset) => {
                out.write_char('[')?;
                self.write_operand(out, base)?;
                write_offset(out, *offset)?;
                out.write_char(']')
            }
            Operand::Vector(list) => self.write_list(out, '{', list, '}'),
            Operand::List(list) => self.write_list(out, '(', list, ')'),
            Operand::Pair(first, second) => {
                self.write_operand(out, first)?;
                out.write_char('|')?;
                self.write_operand(out, second)
            }
            Operand::Not(inner) => {
                out.write_char('!')?;
                self.write_operand(out, inner)
            }
            Operand::Target(index) => self.write_label(out, *index),
            Operand::Targets(indices) => {
                for (i, index) in indices.iter().enumerate() {
                    out.write_str(if i == 0 { "{" } else { ", " })?;
                    self.write_label(out, *index)?;
                }
                out.write_char('}')
            }
            Operand::Sink => out.write_char('_'),
        }
    }

    fn write_list(&self, out: &mut String, open: char, list: &[Operand], close: char) -> fmt::Result {
        out.write_char(open)?;
        for (i, operand) in list.iter().enumerate() {
            out.write_str(if i == 0 { "" } else { ", " })?;
            self.write_operand(out, operand)?;
        }
        out.write_char(close)
    }

    fn write_label(&self, out: &mut String, index: u32) -> fmt::Result {
        let at = self.labels.partition_point(|(_, i)| *i < index);
        match self.labels.get(at) {
            Some((name, i)) if *i == index => out.write_str(name),
            _ => write!(out, "<instruction {index}>"),
        }
    }

    fn register(&self, index: u32) -> &str {
        self.register_names.get(index as usize).map_or("<register>", |name| name)
    }
}

fn write_offset(out: &mut String, offset: i64) -> fmt::Result {
    match offset {
        0 => Ok(()),
        _ => write!(out, "{offset:+}"),
    }
}
