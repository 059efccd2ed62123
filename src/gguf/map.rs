//! A read-only memory map that gives its pages back.

use crate::error::{Error, Result};
use memmap2::Mmap;
use memmap2::UncheckedAdvice::DontNeed;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A file mapped to be read.
pub struct Mapped {
    map: Mmap,
    path: PathBuf,
}

impl Mapped {
    /// Maps a file.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        // SAFETY: the mapping is private and read-only. That nobody truncates the file meanwhile is out of the
        // program's hands, as with every reader of model files; it writes such files beside and renames them, which
        // leaves a mapped file as it was.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Ok(Self { map, path: path.to_owned() })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the range's pages out of the process; reading them again loads them from the file.
    pub fn release(&self, range: Range<usize>) {
        if range.end > self.map.len() || range.is_empty() {
            return;
        }
        // SAFETY: the range lies inside the mapping (checked above). The pages were never written (the mapping is
        // read-only), so dropping them loses nothing: a later read sees the same bytes of the file.
        let released = unsafe { self.map.unchecked_advise_range(DontNeed, range.start, range.len()) };
        // Advice only: where the system declines, the pages stay and nothing is wrong.
        let _ = released;
    }
}
