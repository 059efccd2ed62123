//! Declarations of variables and parameters, and initializers.

use super::ParseError;
use super::ast::{Initializer, Space, Type, Variable};
use super::constant::Constant;
use super::cursor::MAX_DEPTH;
use super::lexer::{Token, shortened};
use super::module::Parser;

/// Zeros that partial inner groups of all initializers of a module may stand for.
pub(super) const MAX_PADDING: u64 = 1_000_000;

/// What the declarators of a declaration share: `.align 4 .v2 .f32`.
pub(super) struct Head {
    align: Option<u64>,
    vector: Option<u64>,
    pub element: Type,
}

/// The space of a directive.
pub(super) fn space_named(name: &str) -> Option<Space> {
    Some(match name {
        "global" => Space::Global,
        "const" => Space::Const,
        "shared" => Space::Shared,
        "local" => Space::Local,
        "param" => Space::Param,
        _ => return None,
    })
}

/// Most bytes of one variable: what a card has of the space, at most.
fn max_bytes(space: Space) -> u64 {
    match space {
        Space::Global => 1 << 40,
        Space::Const => 64 << 10,
        Space::Shared => 227 << 10,
        Space::Local => 512 << 10,
        Space::Param => super::function::MAX_PARAM_BYTES,
    }
}

impl<'a> Parser<'a> {
    /// `.align 4 .v2 .f32`, and `.ptr .global .align 16` of a parameter (what it points to: left out).
    pub(super) fn head(&mut self, space: Space) -> Result<Head, ParseError> {
        let (mut align, mut vector, mut element) = (None, None, None);
        let mut points = false;
        while let Token::Directive(word) = self.cursor.token() {
            let line = self.cursor.line();
            self.cursor.advance()?;
            let error = |message| Err(ParseError { line, message });
            match word {
                "align" => {
                    let bytes = u64::from(self.cursor.u32("an alignment")?);
                    if !bytes.is_power_of_two() || bytes > 1 << 20 {
                        return error(format!("alignment {bytes} isn't a power of two up to 2^20"));
                    }
                    align = if points { align } else { Some(bytes) };
                }
                "v2" if space != Space::Param => vector = Some(2),
                "v4" if space != Space::Param => vector = Some(4),
                "ptr" if space == Space::Param => points = true,
                _ if points && space_named(word).is_some() => {}
                _ => match Type::from_name(word) {
                    Some(t) if element.is_none() && t != Type::Pred => element = Some(t),
                    _ => {
                        return error(format!("`.{word}` has no meaning in this declaration"));
                    }
                },
            }
        }
        let element = element.ok_or_else(|| self.cursor.expected("a type"))?;
        Ok(Head { align, vector, element })
    }

    /// `name[2][3] = {...}`. Returns the name as written too.
    pub(super) fn declarator(
        &mut self,
        space: Space,
        head: &Head,
        unsized_is_fine: bool,
    ) -> Result<(&'a str, Variable), ParseError> {
        let line = self.cursor.line();
        let name = self.cursor.word("the name of a variable")?;
        let mut dims = self.dimensions()?;
        dims.extend(head.vector.map(Some));
        let mut init = Vec::new();
        if self.cursor.eat('=')? {
            if !matches!(space, Space::Global | Space::Const) {
                return Err(self.cursor.error("only variables in .global and .const have an initial value"));
            }
            self.initializer(&dims, head.element, &mut init)?;
        }
        let rest = dims.iter().skip(1).flatten().try_fold(1u64, |product, d| product.checked_mul(*d));
        let first = match dims.first() {
            None => Some(1),
            Some(Some(first)) => Some(*first),
            Some(None) if !init.is_empty() => Some((init.len() as u64).div_ceil(rest.unwrap_or(1))),
            Some(None) if unsized_is_fine => None,
            Some(None) => {
                return Err(ParseError { line, message: format!("`{}` has no size", shortened(name)) });
            }
        };
        let count = rest.and_then(|rest| first.unwrap_or(1).checked_mul(rest));
        let limit = max_bytes(space);
        let bytes = count.and_then(|count| count.checked_mul(head.element.bytes()));
        if bytes.is_none_or(|bytes| bytes > limit) {
            let message = format!("`{}` has more than {limit} bytes", shortened(name));
            return Err(ParseError { line, message });
        }
        let align = head.align.unwrap_or(1).max(head.element.bytes() * head.vector.unwrap_or(1));
        let count = first.and(count);
        Ok((name, Variable { name: name.into(), space, align, element: head.element, count, init, line }))
    }

    /// `[2][3]`; the first may be empty.
    fn dimensions(&mut self) -> Result<Vec<Option<u64>>, ParseError> {
        let mut dims = Vec::new();
        while self.cursor.eat('[')? {
            if self.cursor.token() == Token::Mark(']') && dims.is_empty() {
                dims.push(None);
            } else {
                match self.cursor.integer("the size of a dimension")? {
                    0 => return Err(self.cursor.error("an array has at least one element")),
                    size => dims.push(Some(size)),
                }
            }
            self.cursor.expect(']', "`]`")?;
            if dims.len() > MAX_DEPTH {
                return Err(self.cursor.error(format!("more than {MAX_DEPTH} dimensions")));
            }
        }
        Ok(dims)
    }

    /// A value, or a group in braces of what the inner dimensions are initialized with.
    fn initializer(
        &mut self,
        dims: &[Option<u64>],
        element: Type,
        out: &mut Vec<Initializer>,
    ) -> Result<(), ParseError> {
        let Some((size, inner)) = dims.split_first() else {
            out.push(self.initial_value(element)?);
            return Ok(());
        };
        self.cursor.expect('{', "`{` around the initial values of an array")?;
        let start = out.len() as u64;
        let stride = inner.iter().flatten().try_fold(1u64, |product, d| product.checked_mul(*d));
        for position in 0.. {
            if self.cursor.token() == Token::Mark('}') {
                break;
            }
            if size.is_some_and(|size| position >= size) {
                return Err(self.cursor.error("more initial values than elements"));
            }
            let here = stride.and_then(|stride| stride.checked_mul(position)?.checked_add(start));
            self.pad(here, out)?;
            self.initializer(inner, element, out)?;
            if !self.cursor.eat(',')? {
                break;
            }
        }
        self.cursor.expect('}', "`,` or `}`")
    }

    /// Zeros up to element `length`.
    fn pad(&mut self, length: Option<u64>, out: &mut Vec<Initializer>) -> Result<(), ParseError> {
        let missing = length.and_then(|length| length.checked_sub(out.len() as u64));
        let left = missing.and_then(|missing| self.padding_left.checked_sub(missing));
        self.padding_left = left.ok_or_else(|| {
            self.cursor
                .error(format!("initial values leave out more than {MAX_PADDING} elements within arrays"))
        })?;
        out.extend((0..missing.unwrap_or(0)).map(|_| Initializer::Bits(0)));
        Ok(())
    }

    fn initial_value(&mut self, element: Type) -> Result<Initializer, ParseError> {
        let generic =
            self.cursor.token() == Token::Word("generic") && self.cursor.following() == Token::Mark('(');
        if generic {
            self.cursor.advance()?;
            self.cursor.advance()?;
        }
        if generic || matches!(self.cursor.token(), Token::Word(_)) && !self.cursor.is_warp_size() {
            if element.bytes() != 8 {
                return Err(self.cursor.error("an address needs an element of 64 bits"));
            }
            if !matches!(self.cursor.token(), Token::Word(name) if self.is_variable(name)) {
                return Err(self.cursor.expected("a variable declared before"));
            }
            let name = self.cursor.word("a variable")?;
            if generic {
                self.cursor.expect(')', "`)`")?;
            }
            return Ok(Initializer::Address(name.into(), self.cursor.offset()?));
        }
        match (self.cursor.constant("an initial value")?, element) {
            (Constant::Integer(_), Type::F32 | Type::F64) => {
                Err(self.cursor.error("an integer as the initial value of a floating-point element"))
            }
            (Constant::Integer(bits), _) if element.bytes() >= 8 => Ok(Initializer::Bits(bits)),
            (Constant::Integer(bits), _) => Ok(Initializer::Bits(bits & ((1 << (8 * element.bytes())) - 1))),
            (Constant::F32(bits), Type::F32 | Type::B32 | Type::U32 | Type::S32) => {
                Ok(Initializer::Bits(bits.into()))
            }
            (Constant::F64(bits), Type::F64 | Type::B64 | Type::U64 | Type::S64) => {
                Ok(Initializer::Bits(bits))
            }
            (Constant::F64(bits), Type::F32) => {
                Ok(Initializer::Bits(rounded(f64::from_bits(bits)).to_bits().into()))
            }
            (Constant::F32(bits), Type::F64) => {
                Ok(Initializer::Bits(f64::from(f32::from_bits(bits)).to_bits()))
            }
            _ => Err(self
                .cursor
                .error("a floating-point number as the initial value of an element of another type")),
        }
    }
}

/// To the nearest f32, which is what a constant of that type means.
#[allow(clippy::cast_possible_truncation, reason = "rounding is what is meant")]
fn rounded(value: f64) -> f32 {
    value as f32
}
