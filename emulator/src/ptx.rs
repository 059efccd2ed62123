//! PTX text to syntax tree.

pub mod ast;
mod print;

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
pub fn parse(_text: &str) -> Result<ast::Module, ParseError> {
    todo!("helper: ptx")
}
