//! Constants and constant expressions.

use super::ParseError;
use super::cursor::{Cursor, MAX_DEPTH};
use super::lexer::Token;

/// A constant operand or initial value.
#[derive(Clone, Copy)]
pub(super) enum Constant {
    Integer(u64),
    F32(u32),
    F64(u64),
}

/// Binding of `+` and `-`; what binds more strongly is a term of an offset.
const SUM: u8 = 5;

impl Cursor<'_> {
    /// `WARP_SZ` is a constant though it looks like a name.
    pub fn is_warp_size(&self) -> bool {
        self.token() == Token::Word("WARP_SZ")
    }

    pub fn constant(&mut self, what: &str) -> Result<Constant, ParseError> {
        let negated = self.token() == Token::Mark('-');
        let constant = match if negated { self.following() } else { self.token() } {
            Token::F32(bits) => Constant::F32(if negated { bits ^ 1 << 31 } else { bits }),
            Token::F64(bits) => Constant::F64(if negated { bits ^ 1 << 63 } else { bits }),
            _ => return Ok(Constant::Integer(self.expression(0, 0, what)?)),
        };
        if negated {
            self.advance()?;
        }
        self.advance()?;
        Ok(constant)
    }

    pub fn integer(&mut self, what: &str) -> Result<u64, ParseError> {
        self.expression(0, 0, what)
    }

    /// `+4`, `-8`, `+-8`, `+4-8`, or nothing.
    pub fn offset(&mut self) -> Result<i64, ParseError> {
        let mut offset = 0u64;
        loop {
            if self.eat('+')? {
                offset = offset.wrapping_add(self.expression(SUM + 1, 0, "an offset")?);
            } else if self.eat('-')? {
                offset = offset.wrapping_sub(self.expression(SUM + 1, 0, "an offset")?);
            } else {
                return Ok(offset.cast_signed());
            }
        }
    }

    /// Operators that bind at least as strongly as `least`. Only those whose result in two's complement is the
    /// same for signed and unsigned numbers: no `/`, `%`, `>>` or comparison.
    fn expression(&mut self, least: u8, depth: usize, what: &str) -> Result<u64, ParseError> {
        let mut left = self.unary(depth, what)?;
        loop {
            let Token::Mark(operator) = self.token() else { return Ok(left) };
            let binding = match operator {
                '|' => 1,
                '^' => 2,
                '&' => 3,
                '<' if self.following() == Token::Mark('<') && self.adjoins_following() => 4,
                '+' | '-' => SUM,
                '*' => 6,
                _ => return Ok(left),
            };
            if binding < least {
                return Ok(left);
            }
            if operator == '<' {
                self.advance()?;
            }
            self.advance()?;
            let right = self.expression(binding + 1, depth, "an integer")?;
            left = match operator {
                '|' => left | right,
                '^' => left ^ right,
                '&' => left & right,
                '<' => u32::try_from(right).ok().and_then(|by| left.checked_shl(by)).unwrap_or(0),
                '+' => left.wrapping_add(right),
                '-' => left.wrapping_sub(right),
                _ => left.wrapping_mul(right),
            };
        }
    }

    fn unary(&mut self, depth: usize, what: &str) -> Result<u64, ParseError> {
        if depth == MAX_DEPTH {
            return Err(self.error(format!("more than {MAX_DEPTH} parentheses and signs within each other")));
        }
        let value = match self.token() {
            Token::Integer(value) => value,
            Token::Word("WARP_SZ") => 32,
            Token::Mark(operator @ ('-' | '+' | '~' | '!')) => {
                self.advance()?;
                let value = self.unary(depth + 1, what)?;
                return Ok(match operator {
                    '-' => value.wrapping_neg(),
                    '+' => value,
                    '~' => !value,
                    _ => u64::from(value == 0),
                });
            }
            Token::Mark('(') => {
                self.advance()?;
                let value = self.expression(0, depth + 1, "an integer")?;
                self.expect(')', "`)`")?;
                return Ok(value);
            }
            _ => return Err(self.expected(what)),
        };
        self.advance()?;
        Ok(value)
    }
}
