//! Text read piece by piece, with its encoding checked on the way.

use std::io::{self, Read};
use std::ops::Range;

use crate::error::Error;

/// Bytes of text held at a time.
const PIECE: usize = 1 << 16;

/// Hands on a reader's bytes as long as they are UTF-8, without a byte order mark at their start. Where they are not,
/// reading fails with an [`Error::Input`] that names file and line; see [`error_of`].
pub(super) struct Utf8<'a, R> {
    source: &'a str,
    inner: R,
    buffer: Vec<u8>,
    /// The part of the buffer that is checked and not handed on yet.
    ready: Range<usize>,
    /// Bytes of the buffer in use; those after `ready` are the beginning of a character.
    filled: usize,
    /// Byte of the file that the buffer begins with.
    byte: usize,
    /// Lines that ended before the buffer.
    lines: usize,
}

impl<'a, R: Read> Utf8<'a, R> {
    /// `source` is the name of the file, for messages.
    pub fn new(source: &'a str, inner: R) -> Self {
        Self { source, inner, buffer: vec![0; PIECE], ready: 0..0, filled: 0, byte: 0, lines: 0 }
    }

    fn refill(&mut self) -> io::Result<()> {
        let (begins, used) = (self.byte == 0 && self.filled == 0, self.ready.end);
        self.lines += self.buffer[..used].iter().filter(|&&b| b == b'\n').count();
        self.byte += used;
        self.buffer.copy_within(used..self.filled, 0);
        self.filled -= used;
        let mut ended = false;
        while self.filled < PIECE && !ended {
            match self.inner.read(&mut self.buffer[self.filled..]) {
                Ok(n) => (self.filled, ended) = (self.filled + n, n == 0),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let filled = &self.buffer[..self.filled];
        let end = match std::str::from_utf8(filled) {
            Ok(_) => self.filled,
            // A character that goes on beyond the buffer.
            Err(e) if e.error_len().is_none() && !ended => e.valid_up_to(),
            Err(e) => {
                let at = e.valid_up_to();
                let line = 1 + self.lines + filled[..at].iter().filter(|&&b| b == b'\n').count();
                let found =
                    format!("byte {} of the file (0x{:02x}) is not UTF-8", self.byte + at, filled[at]);
                let asked = format!("{}:{line}", self.source);
                return Err(io::Error::other(Error::input(asked, found, "save the file as UTF-8 text")));
            }
        };
        let mark = if begins && filled.starts_with("\u{feff}".as_bytes()) { 3 } else { 0 };
        self.ready = mark..end;
        Ok(())
    }
}

impl<R: Read> Read for Utf8<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.ready.is_empty() {
            self.refill()?;
        }
        let n = out.len().min(self.ready.len());
        out[..n].copy_from_slice(&self.buffer[self.ready.start..self.ready.start + n]);
        self.ready.start += n;
        Ok(n)
    }
}

/// The error that a [`Utf8`] reader failed with, or that of the file behind it.
pub(super) fn error_of(source: &str, error: io::Error) -> Error {
    error.downcast::<Error>().unwrap_or_else(Error::io("read", source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives a few bytes at a time.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(out.len()).min(7);
            out[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    proptest! {
        /// As `str::from_utf8` of the whole, wherever the pieces end.
        #[test]
        fn pieces_are_checked_as_the_whole_is(
            around in PIECE - 8..PIECE + 8, text in "[\u{0}-\u{10ffff}]{0,20}", damage in prop::option::of(0usize..90),
        ) {
            let mut bytes = vec![b'\n'; around];
            bytes.extend(text.as_bytes());
            if let Some(at) = damage.map(|d| around + d).filter(|&at| at < bytes.len()) {
                bytes[at] ^= 0x80;
            }
            let mut got = Vec::new();
            let read = Utf8::new("f", Slow(&bytes)).read_to_end(&mut got);
            match std::str::from_utf8(&bytes) {
                Ok(_) => prop_assert!(read.is_ok() && got == bytes),
                Err(e) => {
                    let at = e.valid_up_to();
                    let line = 1 + bytes[..at].iter().filter(|&&b| b == b'\n').count();
                    let message = error_of("f", read.unwrap_err()).to_string();
                    prop_assert!(message.starts_with(&format!("f:{line}: byte {at} of")), "{}", message);
                }
            }
        }
    }
}
