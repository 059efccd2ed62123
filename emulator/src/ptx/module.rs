//! A module's own level: directives, and what it declares.

use super::ParseError;
use super::ast::{Module, Space};
use super::cursor::Cursor;
use super::labels::MAX_TABLE_TARGETS;
use super::lexer::Token;
use super::names::Globals;
use super::variable::{MAX_PADDING, space_named};
use std::collections::HashMap;

pub(super) struct Parser<'a> {
    pub cursor: Cursor<'a>,
    pub module: Module,
    /// Names of variables and functions of the module, those of other modules too.
    pub globals: Globals,
    /// The functions among them, and whether their body has been read.
    pub functions: HashMap<&'a str, bool>,
    pub padding_left: u64,
    pub targets_left: usize,
}

/// How others may see what a directive declares.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Linkage {
    /// Defined here.
    Here,
    /// `.extern`.
    Extern,
}

impl<'a> Parser<'a> {
    pub fn new(text: &'a str) -> Result<Self, ParseError> {
        Ok(Self {
            cursor: Cursor::new(text)?,
            module: Module::default(),
            globals: Globals::default(),
            functions: HashMap::new(),
            padding_left: MAX_PADDING,
            targets_left: MAX_TABLE_TARGETS,
        })
    }

    /// Reads all.
    pub fn parse(mut self) -> Result<Module, ParseError> {
        self.version()?;
        self.target()?;
        while self.cursor.token() != Token::End {
            let Token::Directive(word) = self.cursor.token() else {
                return Err(self.cursor.expected("a directive"));
            };
            self.directive(word)?;
        }
        Ok(self.module)
    }

    fn version(&mut self) -> Result<(), ParseError> {
        if !self.cursor.eat_directive("version")? {
            return Err(self.cursor.expected("`.version`"));
        }
        let version = self.cursor.text().split_once('.').map(|(major, minor)| (major.parse(), minor.parse()));
        let (Some((Ok(major), Ok(minor))), Token::F64(_)) = (version, self.cursor.token()) else {
            return Err(self.cursor.expected("a version, e.g. 8.0"));
        };
        self.module.version = (major, minor);
        self.cursor.advance()
    }

    fn target(&mut self) -> Result<(), ParseError> {
        if !self.cursor.eat_directive("target")? {
            return Err(self.cursor.expected("`.target`"));
        }
        let Token::Word(word) = self.cursor.token() else {
            return Err(self.cursor.expected("a target, e.g. sm_80"));
        };
        let target = word.strip_prefix("sm_").filter(|t| t.starts_with(|c: char| c.is_ascii_digit()));
        self.module.target = target.ok_or_else(|| self.cursor.expected("a target, e.g. sm_80"))?.into();
        self.cursor.advance()?;
        while self.cursor.eat(',')? {
            self.cursor.word("an option of the target")?;
        }
        Ok(())
    }

    fn directive(&mut self, word: &'a str) -> Result<(), ParseError> {
        let line = self.cursor.line();
        if let Some(space) = space_named(word) {
            self.cursor.advance()?;
            return self.variables(space, Linkage::Here);
        }
        match word {
            "visible" | "weak" | "common" | "extern" => {
                self.cursor.advance()?;
                let linkage = if word == "extern" { Linkage::Extern } else { Linkage::Here };
                match self.cursor.token() {
                    Token::Directive("entry" | "func") => self.function(linkage),
                    Token::Directive(word) if space_named(word).is_some() => {
                        self.cursor.advance()?;
                        self.variables(space_named(word).unwrap_or(Space::Global), linkage)
                    }
                    _ => Err(self.cursor.expected("a function or a variable")),
                }
            }
            "entry" | "func" => self.function(Linkage::Here),
            "file" => self.file(),
            "section" => self.section(),
            "address_size" => {
                self.cursor.advance()?;
                match self.cursor.u32("64")? {
                    64 => Ok(()),
                    bits => Err(ParseError {
                        line,
                        message: format!("addresses of {bits} bits; only 64 are read"),
                    }),
                }
            }
            "pragma" => {
                self.cursor.advance()?;
                self.cursor.skip_strings()
            }
            "alias" => Err(self.cursor.error("`.alias` isn't supported")),
            _ => Err(self.cursor.error(format!("`.{word}` isn't a directive that is read here"))),
        }
    }

    /// `.file 1 "name", timestamp, size`
    fn file(&mut self) -> Result<(), ParseError> {
        self.cursor.advance()?;
        let index = self.cursor.u32("a file's index")?;
        let name = self.cursor.string("a file's name")?;
        self.module.files.push((index, name.into()));
        while self.cursor.eat(',')? {
            self.cursor.integer("a time or a size")?;
        }
        Ok(())
    }

    /// `.section .debug_info { ... }`, which is for debuggers.
    fn section(&mut self) -> Result<(), ParseError> {
        self.cursor.advance()?;
        if !matches!(self.cursor.token(), Token::Directive(_) | Token::Word(_)) {
            return Err(self.cursor.expected("the name of a section"));
        }
        self.cursor.advance()?;
        self.cursor.expect('{', "`{`")?;
        while self.cursor.token() != Token::Mark('}') {
            if matches!(self.cursor.token(), Token::End | Token::Mark('{')) {
                return Err(self.cursor.expected("`}` after a section"));
            }
            self.cursor.advance()?;
        }
        self.cursor.advance()
    }

    /// Declarators after the name of a space, to `;`.
    fn variables(&mut self, space: Space, linkage: Linkage) -> Result<(), ParseError> {
        if matches!(space, Space::Local | Space::Param) {
            return Err(self.cursor.error("variables in .local and .param belong into a function"));
        }
        if linkage == Linkage::Extern && space != Space::Shared {
            return Err(self.cursor.error("variables of other modules aren't supported: there is no linker"));
        }
        let head = self.head(space)?;
        loop {
            let (name, variable) = self.declarator(space, &head, linkage == Linkage::Extern)?;
            if !self.globals.insert(name) {
                let message = format!("`{name}` is declared twice");
                return Err(ParseError { line: variable.line, message });
            }
            self.module.variables.push(variable);
            if !self.cursor.eat(',')? {
                return self.cursor.expect(';', "`,` or `;`");
            }
        }
    }

    /// Whether `name` is a variable of the module.
    pub fn is_variable(&self, name: &str) -> bool {
        self.globals.contains(name) && !self.functions.contains_key(name)
    }
}
