//! Pools of memory. They only count: freed memory goes back to the device at once.

use super::abi::{In, Out};
use super::context::check_device;
use super::errors::{Error, Result};
use super::exports;
use super::memory::{Kind, Record};
use super::registry::lock;
use super::state::{Driver, driver};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A pool.
pub(super) struct Pool {
    handle: u64,
    /// Attributes 1 to 3: which freed memory may be used anew.
    reuse: [AtomicU32; 3],
    threshold: AtomicU64,
    used: AtomicU64,
    most_used: AtomicU64,
}

impl Pool {
    pub(super) fn new(handle: u64) -> Self {
        let reuse = [const { AtomicU32::new(1) }; 3];
        let [threshold, used, most_used] = [const { AtomicU64::new(0) }; 3];
        Self { handle, reuse, threshold, used, most_used }
    }

    /// Counts an allocation.
    pub(super) fn took(&self, bytes: u64) {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.most_used.fetch_max(used, Ordering::Relaxed);
    }
}

impl Driver {
    /// Counts an allocation that is gone.
    pub(super) fn left_pool(&self, record: &Record) {
        if let Kind::Pool(pool) = record.kind
            && let Some(pool) = self.pools.find(pool)
        {
            pool.used.fetch_sub(record.bytes, Ordering::Relaxed);
        }
    }
}

/// `CUmemLocation`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Location {
    kind: u32,
    id: i32,
}

impl Location {
    /// The device is the only one there is.
    pub(super) const DEVICE: Self = Self { kind: 1, id: 0 };
    pub(super) const HOST: Self = Self { kind: 2, id: 0 };
}

/// `CUmemPoolProps` up to where the reserved bytes begin.
#[derive(Clone, Copy)]
#[repr(C)]
struct Props {
    allocation_type: u32,
    handle_types: u32,
    location: Location,
}

/// `CUmemAccessDesc`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Access {
    location: Location,
    flags: u32,
}

/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const READ_WRITE: u32 = 3;

/// Pools are named by values, not handles, in the driver's eyes: wrong ones are invalid values.
fn pool(handle: u64) -> Result<Arc<Pool>> {
    driver()?.pools.find(handle).ok_or(Error::INVALID_VALUE)
}

fn reuse(attribute: u32) -> Option<usize> {
    matches!(attribute, 1..=3).then(|| attribute as usize - 1)
}

fn get_attribute(handle: u64, attribute: u32, out: Out<u64>) -> Result<()> {
    let pool = pool(handle)?;
    if let Some(index) = reuse(attribute) {
        return out.cast::<u32>().set(pool.reuse[index].load(Ordering::Relaxed));
    }
    let value = match attribute {
        4 => &pool.threshold,
        5 | 7 => &pool.used,
        6 | 8 => &pool.most_used,
        _ => return Err(Error::INVALID_VALUE),
    };
    out.set(value.load(Ordering::Relaxed))
}

fn set_attribute(handle: u64, attribute: u32, value: In<u64>) -> Result<()> {
    let pool = pool(handle)?;
    if let Some(index) = reuse(attribute) {
        pool.reuse[index].store(value.cast::<u32>().get()?, Ordering::Relaxed);
        return Ok(());
    }
    match (attribute, value.get()?) {
        (4, bytes) => pool.threshold.store(bytes, Ordering::Relaxed),
        (6 | 8, 0) => pool.most_used.store(pool.used.load(Ordering::Relaxed), Ordering::Relaxed),
        _ => return Err(Error::INVALID_VALUE),
    }
    Ok(())
}

exports! {
    11020 fn cuDeviceGetDefaultMemPool(out: Out<u64>, device: i32) {
        out.set(check_device(device)?.default_pool)
    }
    11020 fn cuDeviceGetMemPool(out: Out<u64>, device: i32) {
        out.set(*lock(&check_device(device)?.current_pool))
    }
    11020 fn cuDeviceSetMemPool(device: i32, handle: u64) {
        let driver = check_device(device)?;
        *lock(&driver.current_pool) = pool(handle)?.handle;
        Ok(())
    }
    13000 fn cuMemGetDefaultMemPool(out: Out<u64>, location: In<Location>, allocation_type: u32) {
        let driver = driver()?;
        if location.get()? != Location::DEVICE || allocation_type != 1 {
            return Err(Error::NOT_SUPPORTED);
        }
        out.set(driver.default_pool)
    }
    13000 fn cuMemGetMemPool(out: Out<u64>, location: In<Location>, allocation_type: u32) {
        let driver = driver()?;
        if location.get()? != Location::DEVICE || allocation_type != 1 {
            return Err(Error::NOT_SUPPORTED);
        }
        out.set(*lock(&driver.current_pool))
    }
    13000 fn cuMemSetMemPool(location: In<Location>, allocation_type: u32, handle: u64) {
        let driver = driver()?;
        if location.get()? != Location::DEVICE || allocation_type != 1 {
            return Err(Error::NOT_SUPPORTED);
        }
        *lock(&driver.current_pool) = pool(handle)?.handle;
        Ok(())
    }
    11020 fn cuMemPoolCreate(out: Out<u64>, props: In<Props>) {
        let driver = driver()?;
        let out = out.required()?;
        let props = props.get()?;
        if props.allocation_type != 1 || props.location.kind != Location::DEVICE.kind {
            return Err(Error::INVALID_VALUE);
        }
        check_device(props.location.id)?;
        if props.handle_types != 0 {
            driver.note("memory pools shared between processes are not supported");
            return Err(Error::NOT_SUPPORTED);
        }
        out.set(driver.pools.add(Pool::new))
    }
    11020 fn cuMemPoolDestroy(handle: u64) {
        let driver = driver()?;
        let pool = pool(handle)?;
        if pool.handle == driver.default_pool {
            return Err(Error::INVALID_VALUE);
        }
        let mut current = lock(&driver.current_pool);
        if *current == handle {
            *current = driver.default_pool;
        }
        driver.pools.remove(handle).map(|_| ())
    }
    11020 fn cuMemPoolTrimTo(handle: u64, _bytes_to_keep: usize) { pool(handle).map(|_| ()) }
    11020 fn cuMemPoolGetAttribute(handle: u64, attribute: u32, out: Out<u64>) {
        get_attribute(handle, attribute, out)
    }
    11020 fn cuMemPoolSetAttribute(handle: u64, attribute: u32, value: In<u64>) {
        set_attribute(handle, attribute, value)
    }
    11020 fn cuMemPoolGetAccess(out: Out<u32>, handle: u64, location: In<Location>) {
        pool(handle)?;
        if location.get()? != Location::DEVICE {
            return Err(Error::INVALID_VALUE);
        }
        out.set(READ_WRITE)
    }
    11020 fn cuMemPoolSetAccess(handle: u64, map: In<Access>, count: usize) {
        pool(handle)?;
        for i in 0..count {
            let access = map.at(i)?;
            if access.location != Location::DEVICE || access.flags != READ_WRITE {
                return Err(Error::INVALID_VALUE); // the device it lies on always has access
            }
        }
        Ok(())
    }
}
