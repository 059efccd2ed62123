//! The tokens in turn, two at a time, and what is expected of them.

use super::ParseError;
use super::lexer::{Lexeme, Lexer, Token, shortened};

/// Braces and parentheses within each other.
pub(super) const MAX_DEPTH: usize = 256;

pub(super) struct Cursor<'a> {
    lexer: Lexer<'a>,
    current: Lexeme<'a>,
    next: Lexeme<'a>,
}

impl<'a> Cursor<'a> {
    pub fn new(text: &'a str) -> Result<Self, ParseError> {
        let mut lexer = Lexer::new(text);
        Ok(Self { current: lexer.next()?, next: lexer.next()?, lexer })
    }

    pub fn token(&self) -> Token<'a> {
        self.current.token
    }

    pub fn following(&self) -> Token<'a> {
        self.next.token
    }

    /// Whether no character is between this token and the following one.
    pub fn adjoins_following(&self) -> bool {
        self.current.start + self.current.text.len() == self.next.start
    }

    /// Line of this token.
    pub fn line(&self) -> u32 {
        self.current.line
    }

    /// This token as written.
    pub fn text(&self) -> &'a str {
        self.current.text
    }

    /// Goes on to the following token.
    pub fn advance(&mut self) -> Result<(), ParseError> {
        let after = self.lexer.next()?;
        self.current = std::mem::replace(&mut self.next, after);
        Ok(())
    }

    pub fn error(&self, message: impl Into<String>) -> ParseError {
        ParseError { line: self.line(), message: message.into() }
    }

    /// `expected ..., found` this token.
    pub fn expected(&self, what: &str) -> ParseError {
        match self.token() {
            Token::End => self.error(format!("expected {what}, found the end of the text")),
            _ => self.error(format!("expected {what}, found `{}`", shortened(self.text()))),
        }
    }

    /// Whether this token is `mark`; then goes on.
    pub fn eat(&mut self, mark: char) -> Result<bool, ParseError> {
        let found = self.token() == Token::Mark(mark);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    /// Goes on over `mark`, described as `what`.
    pub fn expect(&mut self, mark: char, what: &str) -> Result<(), ParseError> {
        if self.eat(mark)? { Ok(()) } else { Err(self.expected(what)) }
    }

    pub fn word(&mut self, what: &str) -> Result<&'a str, ParseError> {
        let Token::Word(word) = self.token() else { return Err(self.expected(what)) };
        self.advance()?;
        Ok(word)
    }

    pub fn string(&mut self, what: &str) -> Result<&'a str, ParseError> {
        let Token::Text(text) = self.token() else { return Err(self.expected(what)) };
        self.advance()?;
        Ok(text)
    }

    pub fn u32(&mut self, what: &str) -> Result<u32, ParseError> {
        let Token::Integer(value) = self.token() else { return Err(self.expected(what)) };
        let value = u32::try_from(value).map_err(|_| self.expected(what))?;
        self.advance()?;
        Ok(value)
    }

    /// Whether this token is `.name`; then goes on.
    pub fn eat_directive(&mut self, name: &str) -> Result<bool, ParseError> {
        let found = self.token() == Token::Directive(name);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    /// Goes on over `"a", "b";`.
    pub fn skip_strings(&mut self) -> Result<(), ParseError> {
        self.string("a string")?;
        while self.eat(',')? {
            self.string("a string")?;
        }
        self.expect(';', "`;` after the strings")
    }
}
