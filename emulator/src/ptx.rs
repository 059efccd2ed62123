//! PTX text to syntax tree.
//!
//! The text goes through a lexer and a cursor that sees two tokens ahead. A module's own level, its variables, its
//! functions, their bodies and operands have a file each. Names and labels are resolved while reading: what a scope
//! repeats gets a name of its own. Time and memory are linear in the length of the text.

pub mod ast;
mod body;
mod constant;
mod cursor;
mod function;
mod labels;
mod lexer;
mod location;
mod module;
mod names;
mod operand;
mod print;
mod variable;

/// Text that is not PTX, or PTX beyond what is read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {message}")]
pub struct ParseError {
    /// From 1.
    pub line: u32,
    /// What was expected and found.
    pub message: String,
}

/// Reads a module.
///
/// # Errors
/// [`ParseError`] with the line.
pub fn parse(text: &str) -> Result<ast::Module, ParseError> {
    module::Parser::new(text)?.parse()
}
