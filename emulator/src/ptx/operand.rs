//! Operands of instructions.

use super::ParseError;
use super::ast::Operand;
use super::body::Body;
use super::constant::Constant;
use super::lexer::{Token, shortened};
use super::names::Name;

/// Special registers, without `%`; `true` if they have components `.x` to `.w`.
const SPECIALS: [(&str, bool); 23] = [
    ("tid", true),
    ("ntid", true),
    ("ctaid", true),
    ("nctaid", true),
    ("laneid", false),
    ("warpid", false),
    ("nwarpid", false),
    ("smid", false),
    ("nsmid", false),
    ("gridid", false),
    ("lanemask_eq", false),
    ("lanemask_le", false),
    ("lanemask_lt", false),
    ("lanemask_ge", false),
    ("lanemask_gt", false),
    ("clock", false),
    ("clock_hi", false),
    ("clock64", false),
    ("globaltimer", false),
    ("globaltimer_lo", false),
    ("globaltimer_hi", false),
    ("total_smem_size", false),
    ("dynamic_smem_size", false),
];

impl<'a> Body<'_, 'a> {
    /// Operand number `position` of an instruction.
    pub(super) fn operand(&mut self, opcode: &str, position: usize) -> Result<Operand, ParseError> {
        match (opcode, self.parser.cursor.token()) {
            ("bra", _) => self.label_operand(false),
            ("brx", _) if position == 1 => self.label_operand(true),
            ("call", Token::Mark('(')) => Ok(Operand::List(self.list(')', "`,` or `)`")?)),
            (_, Token::Mark('{')) => Ok(Operand::Vector(self.list('}', "`,` or `}`")?)),
            (_, Token::Mark('[')) => self.address(),
            _ => self.value_or_pair(),
        }
    }

    /// A label to be resolved at the end of its scope.
    fn label_operand(&mut self, is_table: bool) -> Result<Operand, ParseError> {
        let line = self.parser.cursor.line();
        let name = self.parser.cursor.word("a label")?;
        if self.parser.cursor.token() != Token::Mark(';') {
            return Err(self.parser.cursor.expected("`;` after the label"));
        }
        let instruction = self.function.instructions.len();
        if is_table {
            self.labels.use_table(name, line, instruction);
        } else {
            self.labels.branch(name, line, instruction);
        }
        Ok(Operand::Target(u32::MAX))
    }

    /// Values between an opening mark and `close`.
    fn list(&mut self, close: char, separators: &str) -> Result<Vec<Operand>, ParseError> {
        let mut list = Vec::new();
        self.parser.cursor.advance()?;
        while self.parser.cursor.token() != Token::Mark(close) {
            list.push(self.value()?);
            if !self.parser.cursor.eat(',')? {
                break;
            }
        }
        self.parser.cursor.expect(close, separators)?;
        Ok(list)
    }

    fn value_or_pair(&mut self) -> Result<Operand, ParseError> {
        let first = self.value()?;
        if !matches!(first, Operand::Register(_) | Operand::Sink) || !self.parser.cursor.eat('|')? {
            return Ok(first);
        }
        let line = self.parser.cursor.line();
        match self.value()? {
            second @ (Operand::Register(_) | Operand::Sink) => Ok(Operand::Pair(first.into(), second.into())),
            _ => Err(ParseError { line, message: "expected a register or `_` after `|`".into() }),
        }
    }

    /// A register, a variable, a constant, or `_`.
    fn value(&mut self) -> Result<Operand, ParseError> {
        let cursor = &mut self.parser.cursor;
        match cursor.token() {
            Token::Word("_") => {
                cursor.advance()?;
                Ok(Operand::Sink)
            }
            Token::Mark('!') if matches!(cursor.following(), Token::Word(name) if name != "WARP_SZ") => {
                cursor.advance()?;
                let line = cursor.line();
                match self.named(true)? {
                    register @ Operand::Register(_) => Ok(Operand::Not(register.into())),
                    _ => Err(ParseError { line, message: "expected a register after `!`".into() }),
                }
            }
            Token::Word(_) if !cursor.is_warp_size() => self.named(true),
            _ => Ok(match cursor.constant("an operand")? {
                Constant::Integer(value) => Operand::Integer(value),
                Constant::F32(bits) => Operand::F32(bits),
                Constant::F64(bits) => Operand::F64(bits),
            }),
        }
    }

    /// What a name stands for. With `with_offset`, a number may be added to a variable.
    fn named(&mut self, with_offset: bool) -> Result<Operand, ParseError> {
        let line = self.parser.cursor.line();
        let name = self.parser.cursor.word("a register or a variable")?;
        let symbol = match self.resolve(name) {
            Some(Name::Register(index)) => return Ok(Operand::Register(index)),
            Some(Name::Variable(unique)) => unique,
            _ if self.parser.globals.contains(name) => name.to_string(),
            _ => {
                let undeclared = || format!("`{}` isn't declared here", shortened(name));
                return self.special(name)?.ok_or_else(|| ParseError { line, message: undeclared() });
            }
        };
        let offset = if with_offset { self.parser.cursor.offset()? } else { 0 };
        Ok(Operand::Symbol(symbol, offset))
    }

    /// A special register, whose name has been read up to a component.
    fn special(&mut self, name: &'a str) -> Result<Option<Operand>, ParseError> {
        let known = name.strip_prefix('%').and_then(|n| SPECIALS.iter().find(|(known, _)| *known == n));
        let Some((_, is_vector)) = known else { return Ok(None) };
        if let (true, Token::Directive(component @ ("x" | "y" | "z" | "w"))) =
            (is_vector, self.parser.cursor.token())
        {
            self.parser.cursor.advance()?;
            return Ok(Some(Operand::Special(format!("{name}.{component}"))));
        }
        Ok(Some(Operand::Special(name.into())))
    }

    /// `[base + offset]`
    fn address(&mut self) -> Result<Operand, ParseError> {
        self.parser.cursor.advance()?;
        let base = match self.parser.cursor.token() {
            Token::Word(_) if !self.parser.cursor.is_warp_size() => {
                let line = self.parser.cursor.line();
                match self.named(false)? {
                    Operand::Special(name) => {
                        return Err(ParseError {
                            line,
                            message: format!("an address can't start with `{name}`"),
                        });
                    }
                    base => base,
                }
            }
            _ => Operand::Integer(self.parser.cursor.integer("a register, a variable or an integer")?),
        };
        let offset = self.parser.cursor.offset()?;
        self.parser.cursor.expect(']', "`]`")?;
        Ok(Operand::Address(base.into(), offset))
    }
}
