//! What there is to know of an address.

use super::abi::{In, Out};
use super::errors::{Error, Result};
use super::exports;
use super::memory::{Kind, Record};
use super::pool::Location;
use super::registry::lock;
use super::state::{Driver, driver};

/// A value as wide as its attribute's.
#[derive(Clone, Copy)]
enum Value {
    Byte(u8),
    Word(u32),
    Long(u64),
}

impl Value {
    fn set(self, out: Out<u64>) -> Result<()> {
        match self {
            Self::Byte(value) => out.cast().set(value),
            Self::Word(value) => out.cast().set(value),
            Self::Long(value) => out.set(value),
        }
    }
}

/// `CU_POINTER_ATTRIBUTE_*`. `record` is none for addresses the driver knows nothing of.
fn value(driver: &Driver, attribute: u32, address: u64, record: Option<&Record>) -> Result<Value> {
    let kind = record.map(|record| record.kind);
    let reachable_by_host = matches!(kind, Some(Kind::Host(_) | Kind::Managed));
    let value = match attribute {
        1 => Value::Long(driver.context_handle(record.map(|record| record.context))),
        2 => Value::Word(if matches!(kind, Some(Kind::Host(_))) { 1 } else { 2 }),
        3 => Value::Long(address),
        4 if reachable_by_host => Value::Long(address),
        4 => return Err(Error::INVALID_VALUE),
        6 => Value::Word(0),
        7 => Value::Long(record.map_or(0, |record| record.id)),
        8 => Value::Word(u32::from(kind == Some(Kind::Managed))),
        9 | 14 => Value::Word(0),
        10 | 15 => Value::Byte(0),
        11 | 19 => Value::Long(record.map_or(0, |record| record.start)),
        12 | 18 => Value::Long(record.map_or(0, |record| record.bytes)),
        13 => Value::Byte(1),
        16 => Value::Word(3),
        17 => Value::Long(match kind {
            Some(Kind::Pool(pool)) => pool,
            _ => 0,
        }),
        20 => Value::Long(record.map_or(0, |record| record.id)),
        _ => return Err(Error::INVALID_VALUE),
    };
    if record.is_some() { Ok(value) } else { Err(Error::INVALID_VALUE) }
}

/// What `cuPointerGetAttributes` says where there is nothing to say.
fn nothing(attribute: u32) -> Result<Value> {
    match attribute {
        1 | 3 | 4 | 7 | 11 | 12 | 17..=20 => Ok(Value::Long(0)),
        2 | 6 | 8 | 14 | 16 => Ok(Value::Word(0)),
        9 => Ok(Value::Word(0xffff_fffe)), // no device: -2
        10 | 13 | 15 => Ok(Value::Byte(0)),
        _ => Err(Error::INVALID_VALUE),
    }
}

impl Driver {
    /// The handle of a context by its number.
    fn context_handle(&self, id: Option<u64>) -> u64 {
        id.and_then(|id| self.contexts.find_by(|context| context.id == id))
            .map_or(0, |context| context.handle)
    }
}

/// Hints about managed memory: host and device take turns anyway.
fn advise(address: u64, bytes: usize, location: Location) -> Result<()> {
    let driver = driver()?;
    driver.working()?;
    let record = lock(&driver.allocations).find(address).filter(|record| record.kind == Kind::Managed);
    let fits = record.is_some_and(|record| bytes as u64 <= record.bytes - (address - record.start));
    if !fits || bytes == 0 {
        return Err(Error::INVALID_VALUE);
    }
    if location != Location::DEVICE && location != Location::HOST {
        return Err(Error::INVALID_DEVICE);
    }
    Ok(())
}

/// A device by its number; -1 is the host.
fn location(device: i32) -> Result<Location> {
    match device {
        0 => Ok(Location::DEVICE),
        -1 => Ok(Location::HOST),
        _ => Err(Error::INVALID_DEVICE),
    }
}

exports! {
    4000 fn cuPointerGetAttribute(out: Out<u64>, attribute: u32, address: u64) {
        let driver = driver()?;
        driver.current()?;
        let out = out.required()?;
        let record = lock(&driver.allocations).find(address);
        value(driver, attribute, address, record.as_ref())?.set(out)
    }
    7000 fn cuPointerGetAttributes(count: u32, attributes: In<u32>, out: In<Out<u64>>, address: u64) {
        let driver = driver()?;
        driver.current()?;
        let record = lock(&driver.allocations).find(address);
        for i in 0..count as usize {
            let attribute = attributes.at(i)?;
            let found = value(driver, attribute, address, record.as_ref());
            found.or_else(|_| nothing(attribute))?.set(out.at(i)?)?;
        }
        Ok(())
    }
    6000 fn cuPointerSetAttribute(value: In<u32>, attribute: u32, address: u64) {
        let driver = driver()?;
        driver.current()?;
        let is_known = lock(&driver.allocations).find(address).is_some();
        if value.is_null() || attribute != 6 || !is_known {
            return Err(Error::INVALID_VALUE);
        }
        Ok(()) // copies are synchronous already
    }
    8000 fn cuMemAdvise(address: u64, bytes: usize, _advice: u32, device: i32) {
        driver()?;
        advise(address, bytes, location(device)?)
    }
    12020 fn cuMemAdvise_v2(address: u64, bytes: usize, _advice: u32, location: Location) {
        advise(address, bytes, location)
    }
    8000 fn [cuMemPrefetchAsync cuMemPrefetchAsync_ptsz](
        address: u64, bytes: usize, device: i32, stream: u64
    ) {
        driver()?.stream(stream)?;
        advise(address, bytes, location(device)?)
    }
    12020 fn [cuMemPrefetchAsync_v2 cuMemPrefetchAsync_v2_ptsz](
        address: u64, bytes: usize, location: Location, _flags: u32, stream: u64
    ) {
        driver()?.stream(stream)?;
        advise(address, bytes, location)
    }
}
