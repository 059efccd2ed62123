//! Copies and memsets: linear and by rows.

use super::abi::host;
use super::errors::{Error, Result};
use super::state::Driver;
use crate::memory::DEVICE_ADDRESSES;

/// One end of a copy, as the client named it.
#[derive(Clone, Copy)]
pub(super) enum End {
    /// An address of the device, pinned and managed memory included.
    Device(u64),
    /// A pointer of the host.
    Host(u64),
    /// Either; the address tells.
    Unified(u64),
}

/// Where an end is found to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the emulator's memory: bounds are known.
    Allocated(u64),
    /// Anywhere else: a pointer the caller vouches for.
    Caller(u64),
}

/// `height` rows of `width` bytes.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) width: u64,
    pub(super) height: u64,
}

/// A copy.
pub(super) struct Transfer {
    pub(super) to: End,
    pub(super) from: End,
    pub(super) rows: Rows,
    /// From one row to the next.
    pub(super) to_pitch: u64,
    pub(super) from_pitch: u64,
}

/// A memset.
pub(super) struct Fill {
    pub(super) address: u64,
    pub(super) value: u32,
    /// How many bytes of the value: 1, 2 or 4.
    pub(super) unit: usize,
    pub(super) rows: Rows,
    pub(super) pitch: u64,
}

impl Rows {
    /// Bytes from the start of the first to the end of the last row; none if there is nothing to do.
    fn span(self, pitch: u64) -> Result<Option<u64>> {
        if self.width == 0 || self.height == 0 {
            return Ok(None);
        }
        if self.height > 1 && pitch < self.width {
            return Err(Error::INVALID_VALUE);
        }
        let before_last = (self.height - 1).checked_mul(pitch).ok_or(Error::INVALID_VALUE)?;
        before_last.checked_add(self.width).map(Some).ok_or(Error::INVALID_VALUE)
    }
}

/// Refuses device addresses that are not `span` bytes of one allocation.
fn check_device(driver: &Driver, address: u64, span: u64) -> Result<()> {
    let fits = match driver.memory.find(address) {
        Some((start, bytes)) => span <= bytes - (address - start),
        None => false,
    };
    if !fits {
        driver.note(&format!("{span} bytes at {address:#x} are not within one allocation"));
    }
    if fits { Ok(()) } else { Err(Error::INVALID_VALUE) }
}

impl End {
    fn place(self, driver: &Driver) -> Place {
        match self {
            Self::Device(address) => Place::Allocated(address),
            Self::Host(address) | Self::Unified(address) => match driver.memory.find(address) {
                Some(_) => Place::Allocated(address),
                None => Place::Caller(address),
            },
        }
    }

    fn check(self, driver: &Driver, span: u64) -> Result<()> {
        match self.place(driver) {
            Place::Allocated(address) => check_device(driver, address, span),
            Place::Caller(0) => Err(Error::INVALID_VALUE),
            // No host memory lies there: a freed or invented device address.
            Place::Caller(address) if DEVICE_ADDRESSES.contains(&address) => {
                check_device(driver, address, span)
            }
            Place::Caller(address) if address.checked_add(span).is_none() => Err(Error::INVALID_VALUE),
            Place::Caller(_) if i64::try_from(span).is_err() => Err(Error::INVALID_VALUE),
            Place::Caller(_) => Ok(()),
        }
    }
}

impl Transfer {
    /// `bytes` bytes in a row.
    pub(super) fn linear(to: End, from: End, bytes: usize) -> Self {
        let rows = Rows { width: bytes as u64, height: 1 };
        Self { to, from, rows, to_pitch: rows.width, from_pitch: rows.width }
    }

    pub(super) fn check(&self, driver: &Driver) -> Result<()> {
        if let Some(span) = self.rows.span(self.to_pitch)? {
            self.to.check(driver, span)?;
        }
        match self.rows.span(self.from_pitch)? {
            Some(span) => self.from.check(driver, span),
            None => Ok(()),
        }
    }

    /// Copies; checked before.
    pub(super) fn run(&self, driver: &Driver) -> Result<()> {
        let bytes = usize::try_from(self.rows.width).map_err(|_| Error::INVALID_VALUE)?;
        if bytes == 0 {
            return Ok(());
        }
        let (to, from) = (self.to.place(driver), self.from.place(driver));
        for row in 0..self.rows.height {
            let (to, from) = (to.plus(row * self.to_pitch), from.plus(row * self.from_pitch));
            let copied = match (to, from) {
                (Place::Allocated(to), Place::Allocated(from)) => {
                    driver.memory.copy(to, from, self.rows.width)
                }
                (Place::Allocated(to), Place::Caller(from)) => {
                    driver.memory.write(to, host::source(from, bytes))
                }
                (Place::Caller(to), Place::Allocated(from)) => {
                    driver.memory.read(from, host::target(to, bytes))
                }
                (Place::Caller(to), Place::Caller(from)) => {
                    host::copy(to, from, bytes);
                    Ok(())
                }
            };
            copied.map_err(|_| Error::INVALID_VALUE)?;
        }
        Ok(())
    }
}

impl Place {
    fn plus(self, bytes: u64) -> Self {
        match self {
            Self::Allocated(address) => Self::Allocated(address + bytes),
            Self::Caller(address) => Self::Caller(address + bytes),
        }
    }
}

impl Fill {
    pub(super) fn check(&self, driver: &Driver) -> Result<()> {
        let Some(span) = self.rows.span(self.pitch)? else { return Ok(()) };
        let unit = self.unit as u64;
        if !self.address.is_multiple_of(unit) || self.rows.height > 1 && !self.pitch.is_multiple_of(unit) {
            return Err(Error::INVALID_VALUE);
        }
        check_device(driver, self.address, span)
    }

    /// Fills; checked before.
    pub(super) fn run(&self, driver: &Driver) -> Result<()> {
        if self.rows.width == 0 {
            return Ok(());
        }
        let pattern = &self.value.to_le_bytes()[..self.unit];
        for row in 0..self.rows.height {
            let filled = driver.memory.fill(self.address + row * self.pitch, pattern, self.rows.width);
            filled.map_err(|_| Error::INVALID_VALUE)?;
        }
        Ok(())
    }
}
