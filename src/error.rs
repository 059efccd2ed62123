//! The crate's one error type. Every variant says what was asked, what was found, and what to do.

use std::path::{Path, PathBuf};

/// Errors a caller can act on. Bugs inside the crate panic instead (see CONTRIBUTING, "Errors").
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Wrong use or bad input; the command line exits with 2.
    #[error("{asked}: {found}\n  {remedy}")]
    Input {
        /// What was asked, with file, line and field where there are any: `rows.jsonl:3, field "prompt"`.
        asked: String,
        /// What was found instead.
        found: String,
        /// What to do about it.
        remedy: String,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}\n  {}", path.display(), remedy(source))]
    Io {
        /// `read`, `write`, `create`, `map`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The run cannot go on, though nothing was wrong with what the user gave; exits with 1.
    #[error("{what}\n  {remedy}")]
    Run {
        /// What happened.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// A buffer's shape does not match the operation it was given to.
    #[error("{op}: `{arg}` is [{}, {}], expected [{}, {}]", got[0], got[1], want[0], want[1])]
    Shape {
        /// Operation, e.g. `rmsnorm_forward`.
        op: &'static str,
        /// Argument name as in the signature.
        arg: &'static str,
        /// Rows and columns found.
        got: [usize; 2],
        /// Rows and columns expected.
        want: [usize; 2],
    },
    /// A dimension breaks an operation's stated requirement, or this engine lacks the operation.
    #[error("{op}: {dim} = {got}, but {rule} is required")]
    Unsupported {
        /// Operation.
        op: &'static str,
        /// Dimension or property.
        dim: &'static str,
        /// Value found.
        got: String,
        /// The requirement, in words, e.g. `C % 8 == 0`.
        rule: &'static str,
    },
    /// The CUDA driver refused a call.
    #[error("{op}: {source}")]
    Cuda {
        /// Operation in flight.
        op: &'static str,
        /// Driver error, with its code and text.
        #[source]
        source: cudarc::driver::DriverError,
    },
}

/// What to do about an error of the file system.
fn remedy(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::NotFound => "check the path",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "check its permissions and its owner",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room on that disk",
        _ => "check the path and the disk",
    }
}

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// [`Error::Input`] from anything that prints.
    pub fn input(asked: impl ToString, found: impl ToString, remedy: impl ToString) -> Self {
        Self::Input { asked: asked.to_string(), found: found.to_string(), remedy: remedy.to_string() }
    }

    /// [`Error::Run`] from anything that prints.
    pub fn run(what: impl ToString, remedy: impl ToString) -> Self {
        Self::Run { what: what.to_string(), remedy: remedy.to_string() }
    }

    /// With the place in a file before what was asked of it; any error about a row is the row's to correct.
    pub fn at(self, place: &str) -> Self {
        match self {
            Self::Input { asked, found, remedy } => Self::input(format!("{place}, {asked}"), found, remedy),
            other => Self::input(place, other, "correct this row or take it out"),
        }
    }

    /// For `map_err`: [`Error::Io`] that names the action and the path.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// The exit code the command line ends with: 2 for wrong use or bad input, 1 for a failed run.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input { .. } => 2,
            Self::Io { action: "read" | "map" | "open", .. } => 2,
            _ => 1,
        }
    }
}
