//! Functions: what stands before the body.

use super::ParseError;
use super::ast::{Function, MaxThreads, Space, Type, Variable};
use super::body::Body;
use super::lexer::Token;
use super::module::{Linkage, Parser};

/// Most bytes of all parameters of a kernel, by the ISA.
pub(super) const MAX_PARAM_BYTES: u64 = 32_764;

/// A parameter of a function or what it returns.
pub(super) struct Formal<'a> {
    /// As written.
    pub name: &'a str,
    pub variable: Variable,
    /// In a register rather than in `.param`.
    pub is_register: bool,
}

impl<'a> Parser<'a> {
    /// `.entry name (params) directives { body }`, or `.func` with what it returns.
    pub(super) fn function(&mut self, linkage: Linkage) -> Result<(), ParseError> {
        let is_entry = self.cursor.token() == Token::Directive("entry");
        self.cursor.advance()?;
        let returns = if is_entry { Vec::new() } else { self.formals(is_entry)? };
        let line = self.cursor.line();
        let name = self.cursor.word("the name of a function")?;
        let params = self.formals(is_entry)?;
        let max_threads = self.performance_directives()?;
        let is_declaration = self.cursor.token() == Token::Mark(';');
        let known = self.functions.get(name).copied();
        if known == Some(true) && !is_declaration || known.is_none() && self.globals.contains(name) {
            return Err(ParseError { line, message: format!("`{name}` is declared twice") });
        }
        if known.is_none() && !self.globals.insert(name) {
            return Err(ParseError { line, message: format!("`{name}` is declared twice") });
        }
        if is_declaration {
            self.functions.entry(name).or_insert(false);
            return self.cursor.advance();
        }
        if linkage == Linkage::Extern {
            return Err(self.cursor.expected("`;` after the declaration of a function of another module"));
        }
        self.functions.insert(name, true);
        let function = Function {
            name: name.into(),
            is_entry,
            returns: Vec::new(),
            params: Vec::new(),
            max_threads,
            registers: Vec::new(),
            register_names: Vec::new(),
            variables: Vec::new(),
            labels: Vec::new(),
            instructions: Vec::new(),
            line,
        };
        let function = Body::new(self, function).read(returns, params)?;
        self.module.functions.push(function);
        Ok(())
    }

    /// `(.param .b32 a, .reg .b32 b)`, or nothing.
    fn formals(&mut self, is_entry: bool) -> Result<Vec<Formal<'a>>, ParseError> {
        let mut formals = Vec::new();
        if !self.cursor.eat('(')? || self.cursor.eat(')')? {
            return Ok(formals);
        }
        let mut end = 0u64;
        loop {
            let is_register = !is_entry && self.cursor.eat_directive("reg")?;
            if !is_register && !self.cursor.eat_directive("param")? {
                return Err(self.cursor.expected("`.param`"));
            }
            let (name, variable) = self.formal(is_register)?;
            let bytes = variable.count.unwrap_or(0).saturating_mul(variable.element.bytes());
            end = end.next_multiple_of(variable.align).saturating_add(bytes);
            if end > MAX_PARAM_BYTES {
                return Err(self
                    .cursor
                    .error(format!("the parameters have more than {MAX_PARAM_BYTES} bytes")));
            }
            formals.push(Formal { name, variable, is_register });
            if !self.cursor.eat(',')? {
                self.cursor.expect(')', "`,` or `)`")?;
                return Ok(formals);
            }
        }
    }

    fn formal(&mut self, is_register: bool) -> Result<(&'a str, Variable), ParseError> {
        if !is_register {
            let head = self.head(Space::Param)?;
            return self.declarator(Space::Param, &head, false);
        }
        let element = self.register_type()?;
        let line = self.cursor.line();
        let name = self.cursor.word("the name of a register")?;
        let align = element.bytes().max(1);
        let (space, count, init) = (Space::Param, Some(1), Vec::new());
        Ok((name, Variable { name: name.into(), space, align, element, count, init, line }))
    }

    /// `.b32` of `.reg .b32 %r1`.
    pub(super) fn register_type(&mut self) -> Result<Type, ParseError> {
        let Token::Directive(word) = self.cursor.token() else {
            return Err(self.cursor.expected("the type of registers"));
        };
        let element = Type::from_name(word).ok_or_else(|| self.cursor.expected("the type of registers"))?;
        self.cursor.advance()?;
        Ok(element)
    }

    /// Directives between the parameters and the body. Those that only advise the assembler are skipped.
    fn performance_directives(&mut self) -> Result<Option<MaxThreads>, ParseError> {
        let mut max_threads = None;
        while let Token::Directive(word) = self.cursor.token() {
            let line = self.cursor.line();
            self.cursor.advance()?;
            match word {
                "maxntid" | "reqntid" => {
                    let mut size = [1; 3];
                    for (i, length) in size.iter_mut().enumerate() {
                        if i > 0 && !self.cursor.eat(',')? {
                            break;
                        }
                        *length = self.cursor.u32("a number of threads")?;
                    }
                    max_threads = Some(MaxThreads { size, exact: word == "reqntid" });
                }
                "minnctapersm"
                | "maxnctapersm"
                | "maxnreg"
                | "maxclusterrank"
                | "abi_preserve"
                | "abi_preserve_control" => {
                    self.cursor.u32("a number")?;
                }
                "noreturn" => {}
                "pragma" => self.cursor.skip_strings()?,
                _ => {
                    let message =
                        format!("`.{word}` isn't a directive that is read before a function's body");
                    return Err(ParseError { line, message });
                }
            }
        }
        Ok(max_threads)
    }
}
