//! Text to tokens.

use super::ParseError;

/// A token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Token<'a> {
    /// A name or an opcode, e.g. `mov`, `%r1`, `$L__BB0_1`, `_`.
    Word(&'a str),
    /// `.word` without its point; `shared::cta` is one word.
    Directive(&'a str),
    /// `12`, `0xC`, `014`, `0b1100`, each with `U` or without.
    Integer(u64),
    /// Bits of `0f...`.
    F32(u32),
    /// Bits of `0d...` or of a decimal number.
    F64(u64),
    /// What stands between quotation marks, escapes untouched.
    Text(&'a str),
    /// Any other character that PTX has.
    Mark(char),
    /// End of the text.
    End,
}

/// A token and its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lexeme<'a> {
    pub token: Token<'a>,
    /// As written.
    pub text: &'a str,
    /// From 1.
    pub line: u32,
    /// Byte offset of its first character.
    pub start: usize,
}

/// Position in the text.
pub(super) struct Lexer<'a> {
    text: &'a str,
    position: usize,
    line: u32,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, position: 0, line: 1 }
    }

    fn byte(&self, ahead: usize) -> Option<u8> {
        self.text.as_bytes().get(self.position + ahead).copied()
    }

    fn error(&self, message: String) -> ParseError {
        ParseError { line: self.line, message }
    }

    /// Reads the next token; after the end, `End` again.
    pub fn next(&mut self) -> Result<Lexeme<'a>, ParseError> {
        self.skip_blank()?;
        let (start, line) = (self.position, self.line);
        let token = match self.byte(0) {
            None => Token::End,
            Some(byte) if byte.is_ascii_digit() => self.number()?,
            Some(byte) if is_word(byte) || byte == b'%' => {
                self.position += 1;
                Token::Word(self.words(start, false))
            }
            Some(b'.') => {
                self.position += 1;
                match self.words(start + 1, true) {
                    "" => return Err(self.error("expected a word after `.`".into())),
                    word => Token::Directive(word),
                }
            }
            Some(b'"') => self.string()?,
            Some(byte) if b"{}[]()<>,;:=+-*~!|&^@/?".contains(&byte) => {
                self.position += 1;
                Token::Mark(char::from(byte))
            }
            Some(_) => {
                let found = self.text[start..].chars().next().unwrap_or_default();
                return Err(self.error(format!("PTX has no character {found:?}")));
            }
        };
        Ok(Lexeme { token, text: &self.text[start..self.position], line, start })
    }

    /// What stands from `start` to the end of the word at the position. A `path` goes on over `::`.
    fn words(&mut self, start: usize, path: bool) -> &'a str {
        loop {
            while self.byte(0).is_some_and(is_word) {
                self.position += 1;
            }
            let colons = self.byte(0) == Some(b':') && self.byte(1) == Some(b':');
            if !(path && colons && self.byte(2).is_some_and(is_word)) {
                return &self.text[start..self.position];
            }
            self.position += 2;
        }
    }

    fn skip_blank(&mut self) -> Result<(), ParseError> {
        loop {
            match (self.byte(0), self.byte(1)) {
                (Some(b'\n'), _) => {
                    self.line = self.line.saturating_add(1);
                    self.position += 1;
                }
                (Some(byte), _) if byte.is_ascii_whitespace() => self.position += 1,
                (Some(b'/'), Some(b'/')) => {
                    let rest = &self.text[self.position..];
                    self.position += rest.find('\n').unwrap_or(rest.len());
                }
                (Some(b'/'), Some(b'*')) => {
                    let inside = &self.text[self.position + 2..];
                    let end =
                        inside.find("*/").ok_or_else(|| self.error("this comment has no end".into()))?;
                    let lines = inside[..end].bytes().filter(|b| *b == b'\n').count();
                    self.line = self.line.saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
                    self.position += end + 4;
                }
                _ => return Ok(()),
            }
        }
    }

    fn string(&mut self) -> Result<Token<'a>, ParseError> {
        let start = self.position + 1;
        self.position = start;
        loop {
            match self.byte(0) {
                Some(b'"') => break,
                Some(b'\\') if self.byte(1).is_some_and(|b| b != b'\n') => self.position += 2,
                None | Some(b'\n') => return Err(self.error("this string has no end".into())),
                Some(_) => self.position += 1,
            }
        }
        self.position += 1;
        Ok(Token::Text(&self.text[start..self.position - 1]))
    }

    fn number(&mut self) -> Result<Token<'a>, ParseError> {
        let start = self.position;
        let word = self.words(start, false);
        let digits = |radix, digits: &str| u64::from_str_radix(digits, radix).ok();
        let integer = word.strip_suffix(['u', 'U']).unwrap_or(word);
        let decimal = word.bytes().all(|b| b.is_ascii_digit());
        let exponent = word.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with(['e', 'E']);
        let token = match word.get(..2) {
            Some("0f" | "0F") if word.len() == 10 => {
                digits(16, &word[2..]).and_then(|v| u32::try_from(v).ok()).map(Token::F32)
            }
            Some("0d" | "0D") if word.len() == 18 => digits(16, &word[2..]).map(Token::F64),
            Some("0x" | "0X") => digits(16, &integer[2..]).map(Token::Integer),
            Some("0b" | "0B") => digits(2, &integer[2..]).map(Token::Integer),
            _ if exponent || decimal && self.byte(0) == Some(b'.') => self.decimal(start).map(Token::F64),
            _ if integer.starts_with('0') => digits(8, integer).map(Token::Integer),
            _ => digits(10, integer).map(Token::Integer),
        };
        let found = &self.text[start..self.position];
        token.ok_or_else(|| self.error(format!("expected a number, found `{}`", shortened(found))))
    }

    /// Bits of the number in decimal that starts at `start`; its first digits have been read.
    fn decimal(&mut self, start: usize) -> Option<u64> {
        if self.byte(0) == Some(b'.') {
            self.position += 1;
            self.words(start, false);
        }
        let signed = matches!(self.byte(0), Some(b'+' | b'-'));
        if signed && self.text[start..self.position].ends_with(['e', 'E']) {
            self.position += 1;
            self.words(start, false);
        }
        let value: f64 = self.text[start..self.position].parse().ok()?;
        value.is_finite().then(|| value.to_bits())
    }
}

/// The first 40 characters.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_string(),
    }
}
