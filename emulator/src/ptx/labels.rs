//! Labels of a function: by scope, and used before they are declared.

use super::ParseError;
use super::ast::{Function, Operand};
use super::lexer::shortened;
use std::collections::HashMap;

/// Targets that all `brx.idx` of a module may have in sum, since every one has its own copy of the table.
pub(super) const MAX_TABLE_TARGETS: usize = 1_000_000;

#[derive(Clone, Copy)]
enum Label {
    /// Index of the instruction after it.
    Instruction(u32),
    /// Index of a `.branchtargets`.
    Table(usize),
}

/// Where a label is used.
#[derive(Clone, Copy)]
enum Use {
    Branch { instruction: usize },
    Table { instruction: usize },
    Entry { table: usize, position: usize },
}

struct Reference<'a> {
    name: &'a str,
    line: u32,
    user: Use,
}

#[derive(Default)]
struct Scope<'a> {
    labels: HashMap<&'a str, Label>,
    /// Uses not resolved in the scopes inside.
    open: Vec<Reference<'a>>,
}

#[derive(Default)]
pub(super) struct Labels<'a> {
    scopes: Vec<Scope<'a>>,
    tables: Vec<Vec<u32>>,
    /// Instructions whose last operand is a table, resolved at the function's end.
    table_uses: Vec<(usize, usize)>,
}

impl<'a> Labels<'a> {
    pub fn open_scope(&mut self) {
        self.scopes.push(Scope::default());
    }

    /// False if the innermost scope has that label already.
    #[must_use]
    pub fn declare(&mut self, name: &'a str, instruction: u32) -> bool {
        self.insert(name, Label::Instruction(instruction))
    }

    fn insert(&mut self, name: &'a str, label: Label) -> bool {
        self.scopes.last_mut().is_some_and(|scope| scope.labels.insert(name, label).is_none())
    }

    /// Declares `name: .branchtargets`; false if the innermost scope has that label already.
    #[must_use]
    pub fn declare_table(&mut self, name: &'a str, targets: &[(&'a str, u32)]) -> bool {
        let table = self.tables.len();
        self.tables.push(vec![0; targets.len()]);
        for (position, &(name, line)) in targets.iter().enumerate() {
            self.refer(Reference { name, line, user: Use::Entry { table, position } });
        }
        self.insert(name, Label::Table(table))
    }

    fn refer(&mut self, reference: Reference<'a>) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.open.push(reference);
        }
    }

    /// The instruction that will be number `instruction` branches to `name`, its last operand.
    pub fn branch(&mut self, name: &'a str, line: u32, instruction: usize) {
        self.refer(Reference { name, line, user: Use::Branch { instruction } });
    }

    /// The instruction that will be number `instruction` has the table `name` as its last operand.
    pub fn use_table(&mut self, name: &'a str, line: u32, instruction: usize) {
        self.refer(Reference { name, line, user: Use::Table { instruction } });
    }

    /// Resolves what the innermost scope declares and leaves the rest to the scope around it.
    pub fn close_scope(&mut self, function: &mut Function) -> Result<(), ParseError> {
        let scope = self.scopes.pop().unwrap_or_default();
        let mut undeclared = Vec::new();
        for reference in scope.open {
            match (scope.labels.get(reference.name), reference.user) {
                (None, _) => undeclared.push(reference),
                (Some(Label::Instruction(target)), Use::Branch { instruction }) => {
                    set_last_operand(function, instruction, Operand::Target(*target));
                }
                (Some(Label::Instruction(target)), Use::Entry { table, position }) => {
                    self.tables[table][position] = *target;
                }
                (Some(Label::Table(table)), Use::Table { instruction }) => {
                    self.table_uses.push((instruction, *table));
                }
                (Some(Label::Instruction(_)), Use::Table { .. }) => {
                    return Err(error(&reference, "isn't that of a `.branchtargets`"));
                }
                (Some(Label::Table(_)), _) => return Err(error(&reference, "is that of a `.branchtargets`")),
            }
        }
        match (self.scopes.last_mut(), undeclared.iter().min_by_key(|reference| reference.line)) {
            (Some(outer), _) => outer.open.append(&mut undeclared),
            (None, Some(reference)) => return Err(error(reference, "isn't declared here")),
            (None, None) => {}
        }
        Ok(())
    }

    /// Fills in the tables; to be called when all scopes are closed. `budget` is what is left of
    /// [`MAX_TABLE_TARGETS`].
    pub fn finish(self, function: &mut Function, budget: &mut usize) -> Result<(), ParseError> {
        for (instruction, table) in self.table_uses {
            let targets = self.tables[table].clone();
            *budget = budget.checked_sub(targets.len()).ok_or_else(|| ParseError {
                line: function.instructions[instruction].line,
                message: format!("more than {MAX_TABLE_TARGETS} targets of `brx.idx` in a module"),
            })?;
            set_last_operand(function, instruction, Operand::Targets(targets));
        }
        Ok(())
    }
}

fn set_last_operand(function: &mut Function, instruction: usize, operand: Operand) {
    if let Some(last) = function.instructions[instruction].operands.last_mut() {
        *last = operand;
    }
}

fn error(reference: &Reference<'_>, what: &str) -> ParseError {
    ParseError { line: reference.line, message: format!("label `{}` {what}", shortened(reference.name)) }
}
