//! A function's body: declarations, labels and instructions.

use super::ParseError;
use super::ast::{Function, Guard, Instruction, Space, Type, Variable};
use super::cursor::MAX_DEPTH;
use super::function::Formal;
use super::labels::Labels;
use super::lexer::{Token, shortened};
use super::location::Locations;
use super::module::Parser;
use super::names::{Name, Names};
use super::variable::space_named;

/// Registers that a function may declare.
const MAX_REGISTERS: u32 = 1_000_000;

pub(super) struct Body<'p, 'a> {
    pub parser: &'p mut Parser<'a>,
    pub function: Function,
    pub names: Names<'a>,
    pub labels: Labels<'a>,
    locations: Locations,
    declared_registers: u32,
}

impl<'p, 'a> Body<'p, 'a> {
    pub fn new(parser: &'p mut Parser<'a>, function: Function) -> Self {
        Self {
            parser,
            function,
            names: Names::default(),
            labels: Labels::default(),
            locations: Locations::default(),
            declared_registers: 0,
        }
    }

    /// Reads from `{` to its `}`.
    pub fn read(mut self, returns: Vec<Formal<'a>>, params: Vec<Formal<'a>>) -> Result<Function, ParseError> {
        self.open_scope()?;
        for formal in returns {
            let variable = self.declare_formal(formal)?;
            self.function.returns.push(variable);
        }
        for formal in params {
            let variable = self.declare_formal(formal)?;
            self.function.params.push(variable);
        }
        self.parser.cursor.expect('{', "`{` or `;`")?;
        self.open_scope()?;
        while self.names.depth() > 1 {
            self.statement()?;
        }
        self.close_scope()?;
        self.labels.finish(&mut self.function, &mut self.parser.targets_left)?;
        Ok(self.function)
    }

    fn open_scope(&mut self) -> Result<(), ParseError> {
        if self.names.depth() > MAX_DEPTH {
            return Err(self.parser.cursor.error(format!("more than {MAX_DEPTH} scopes within each other")));
        }
        self.names.open_scope();
        self.labels.open_scope();
        Ok(())
    }

    fn close_scope(&mut self) -> Result<(), ParseError> {
        self.names.close_scope();
        self.labels.close_scope(&mut self.function)
    }

    fn declare_formal(&mut self, formal: Formal<'a>) -> Result<Variable, ParseError> {
        let Formal { name, mut variable, is_register } = formal;
        variable.name = if is_register {
            let declared = self.names.declare(name, Name::Unused(variable.element));
            self.check_declared(declared, name, variable.line)?;
            self.count_registers(1)?;
            self.resolve(name);
            self.function.register_names.last().cloned().unwrap_or_default()
        } else {
            let unique = self.names.unique(name, &mut self.parser.globals);
            let declared = self.names.declare(name, Name::Variable(unique.clone()));
            self.check_declared(declared, name, variable.line)?;
            unique
        };
        Ok(variable)
    }

    fn check_declared(&self, declared: bool, name: &str, line: u32) -> Result<(), ParseError> {
        if declared {
            return Ok(());
        }
        Err(ParseError { line, message: format!("`{}` is declared twice in a scope", shortened(name)) })
    }

    pub fn resolve(&mut self, name: &'a str) -> Option<Name> {
        self.names.resolve(name, &mut self.function, &mut self.parser.globals)
    }

    fn statement(&mut self) -> Result<(), ParseError> {
        let cursor = &mut self.parser.cursor;
        match cursor.token() {
            Token::Mark('{') => {
                cursor.advance()?;
                self.open_scope()
            }
            Token::Mark('}') => {
                cursor.advance()?;
                self.close_scope()
            }
            Token::Directive(word) => {
                let line = cursor.line();
                cursor.advance()?;
                self.directive(word, line)
            }
            Token::Word(name) if cursor.following() == Token::Mark(':') => {
                let line = cursor.line();
                cursor.advance()?;
                cursor.advance()?;
                self.label(name, line)
            }
            Token::Word(_) | Token::Mark('@') => self.instruction(),
            _ => Err(cursor.expected("an instruction or `}`")),
        }
    }

    fn directive(&mut self, word: &str, line: u32) -> Result<(), ParseError> {
        match (word, space_named(word)) {
            ("reg", _) => self.registers(),
            ("loc", _) => self.locations.read(&mut self.parser.cursor),
            ("pragma", _) => self.parser.cursor.skip_strings(),
            (_, Some(space)) => self.variables(space),
            _ => {
                let message = format!("`.{word}` isn't a directive that is read in a function");
                Err(ParseError { line, message })
            }
        }
    }

    /// `.b32 %r<14>, t;`
    fn registers(&mut self) -> Result<(), ParseError> {
        let element = self.parser.register_type()?;
        loop {
            let line = self.parser.cursor.line();
            let name = self.parser.cursor.word("the name of a register")?;
            let declared = if self.parser.cursor.eat('<')? {
                let count = self.parser.cursor.u32("a number of registers")?;
                self.parser.cursor.expect('>', "`>`")?;
                self.count_registers(count)?;
                self.names.declare_range(name, element, count)
            } else {
                self.count_registers(1)?;
                self.names.declare(name, Name::Unused(element))
            };
            self.check_declared(declared, name, line)?;
            if !self.parser.cursor.eat(',')? {
                return self.parser.cursor.expect(';', "`,` or `;`");
            }
        }
    }

    fn count_registers(&mut self, more: u32) -> Result<(), ParseError> {
        self.declared_registers = self.declared_registers.saturating_add(more);
        if self.declared_registers > MAX_REGISTERS {
            return Err(self
                .parser
                .cursor
                .error(format!("more than {MAX_REGISTERS} registers in a function")));
        }
        Ok(())
    }

    /// Declarators after the name of a space, to `;`.
    fn variables(&mut self, space: Space) -> Result<(), ParseError> {
        let head = self.parser.head(space)?;
        loop {
            let (name, mut variable) = self.parser.declarator(space, &head, false)?;
            // Variables in .global and .const live as long as the module, wherever they are declared.
            let is_global = matches!(space, Space::Global | Space::Const);
            let base = if is_global { format!("{}${name}", self.function.name) } else { name.to_string() };
            let unique = self.names.unique(&base, &mut self.parser.globals);
            variable.name.clone_from(&unique);
            let declared = self.names.declare(name, Name::Variable(unique));
            self.check_declared(declared, name, variable.line)?;
            if is_global {
                let fresh = self.parser.globals.insert(&variable.name);
                self.check_declared(fresh, name, variable.line)?;
                self.parser.module.variables.push(variable);
            } else {
                self.function.variables.push(variable);
            }
            if !self.parser.cursor.eat(',')? {
                return self.parser.cursor.expect(';', "`,` or `;`");
            }
        }
    }

    /// What stands after `name:`.
    fn label(&mut self, name: &'a str, line: u32) -> Result<(), ParseError> {
        let declared = match self.parser.cursor.token() {
            Token::Directive("branchtargets") => {
                self.parser.cursor.advance()?;
                let targets = self.branch_targets()?;
                self.labels.declare_table(name, &targets)
            }
            Token::Directive("callprototype" | "calltargets") => {
                return Err(self.parser.cursor.error("indirect calls aren't supported"));
            }
            _ => {
                let index = self.next_instruction()?;
                let unique = self.names.unique(name, &mut self.parser.globals);
                self.function.labels.push((unique, index));
                self.labels.declare(name, index)
            }
        };
        self.check_declared(declared, name, line)
    }

    /// `L1, L2;`
    fn branch_targets(&mut self) -> Result<Vec<(&'a str, u32)>, ParseError> {
        let mut targets = Vec::new();
        loop {
            let line = self.parser.cursor.line();
            targets.push((self.parser.cursor.word("a label")?, line));
            if !self.parser.cursor.eat(',')? {
                self.parser.cursor.expect(';', "`,` or `;`")?;
                return Ok(targets);
            }
        }
    }

    /// Index of the next instruction.
    fn next_instruction(&self) -> Result<u32, ParseError> {
        let index = u32::try_from(self.function.instructions.len());
        index.map_err(|_| self.parser.cursor.error("more than 2^32 instructions in a function"))
    }

    fn instruction(&mut self) -> Result<(), ParseError> {
        self.next_instruction()?;
        let line = self.parser.cursor.line();
        let guard = if self.parser.cursor.eat('@')? { Some(self.guard()?) } else { None };
        let opcode = self.parser.cursor.word("an opcode")?;
        let mut modifiers = Vec::new();
        while let Token::Directive(word) = self.parser.cursor.token() {
            modifiers.push(word.to_string());
            self.parser.cursor.advance()?;
        }
        let mut operands = Vec::new();
        while self.parser.cursor.token() != Token::Mark(';') {
            operands.push(self.operand(opcode, operands.len())?);
            if !self.parser.cursor.eat(',')? {
                break;
            }
        }
        self.parser.cursor.expect(';', "`,` or `;`")?;
        let location = self.locations.current();
        let opcode = opcode.into();
        self.function.instructions.push(Instruction { guard, opcode, modifiers, operands, line, location });
        Ok(())
    }

    /// What stands after `@`.
    fn guard(&mut self) -> Result<Guard, ParseError> {
        let negated = self.parser.cursor.eat('!')?;
        let Token::Word(name) = self.parser.cursor.token() else {
            return Err(self.parser.cursor.expected("a predicate"));
        };
        match self.resolve(name) {
            Some(Name::Register(register)) if self.function.registers[register as usize] == Type::Pred => {
                self.parser.cursor.advance()?;
                Ok(Guard { register, negated })
            }
            _ => Err(self.parser.cursor.expected("a predicate")),
        }
    }
}
