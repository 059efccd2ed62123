//! The device's primary context.

use super::abi::Out;
use super::context::check_device;
use super::errors::{Error, Result};
use super::exports;
use super::registry::lock;
use super::state::Driver;
use std::sync::atomic::Ordering;

/// Destroys the primary context if it is active.
fn deactivate(driver: &Driver, handle: Option<u64>) -> Result<()> {
    match handle.filter(|&handle| driver.contexts.find(handle).is_some()) {
        Some(handle) => driver.destroy_context(handle),
        None => Ok(()),
    }
}

fn set_flags(device: i32, flags: u32) -> Result<()> {
    let driver = check_device(device)?;
    if flags & !0x7f != 0 {
        return Err(Error::INVALID_VALUE);
    }
    let mut primary = lock(&driver.primary);
    primary.flags = flags;
    if let Some(context) = primary.handle.and_then(|handle| driver.contexts.find(handle)) {
        context.flags.store(flags, Ordering::Relaxed);
    }
    Ok(())
}

fn release(device: i32) -> Result<()> {
    let driver = check_device(device)?;
    let mut primary = lock(&driver.primary);
    primary.retained = primary.retained.checked_sub(1).ok_or(Error::INVALID_CONTEXT)?;
    if primary.retained == 0 { deactivate(driver, primary.handle) } else { Ok(()) }
}

fn reset(device: i32) -> Result<()> {
    let driver = check_device(device)?;
    let mut primary = lock(&driver.primary);
    deactivate(driver, primary.handle)?;
    // Those who retained it still hold it: it is active again at once, empty and without error.
    if primary.retained > 0 {
        let handle = *primary.handle.get_or_insert_with(|| driver.contexts.reserve());
        driver.create_context(handle, primary.flags);
    }
    Ok(())
}

exports! {
    7000 fn cuDevicePrimaryCtxRetain(out: Out<u64>, device: i32) {
        let driver = check_device(device)?;
        let out = out.required()?;
        let mut primary = lock(&driver.primary);
        let handle = *primary.handle.get_or_insert_with(|| driver.contexts.reserve());
        if driver.contexts.find(handle).is_none() {
            driver.create_context(handle, primary.flags);
        }
        primary.retained = primary.retained.checked_add(1).ok_or(Error::INVALID_VALUE)?;
        out.set(handle)
    }
    7000 fn cuDevicePrimaryCtxRelease(device: i32) { release(device) }
    11000 fn cuDevicePrimaryCtxRelease_v2(device: i32) { release(device) }
    7000 fn cuDevicePrimaryCtxReset(device: i32) { reset(device) }
    11000 fn cuDevicePrimaryCtxReset_v2(device: i32) { reset(device) }
    7000 fn cuDevicePrimaryCtxSetFlags(device: i32, flags: u32) { set_flags(device, flags) }
    11000 fn cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32) { set_flags(device, flags) }
    7000 fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) {
        let driver = check_device(device)?;
        let primary = lock(&driver.primary);
        flags.set_if_wanted(primary.flags);
        let is_active = primary.handle.is_some_and(|handle| driver.contexts.find(handle).is_some());
        active.set_if_wanted(i32::from(is_active));
        Ok(())
    }
}
