//! Kernels as clients hold them: `CUfunction`, and `CUkernel`, which is one that belongs to no context.

use super::abi::Out;
use super::device::{Limits, SHARED_PER_BLOCK};
use super::errors::{Error, Result};
use super::exports;
use super::state::{Driver, driver};
use crate::program::Kernel;
use std::ffi::{CString, c_char};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

/// A kernel of a loaded module.
pub(super) struct Function {
    pub(super) kernel: Arc<Kernel>,
    name: CString,
    pub(super) module: u64,
    /// Number of the context it was loaded in; none for those of a library.
    pub(super) context: Option<u64>,
    /// Library it came with.
    pub(super) library: Option<u64>,
    /// Most bytes of dynamic shared memory of a launch.
    max_dynamic: AtomicU32,
    carveout: AtomicI32,
}

impl Function {
    pub(super) fn new(kernel: Arc<Kernel>, module: u64, context: Option<u64>, library: Option<u64>) -> Self {
        let name = CString::new(kernel.name.as_str()).unwrap_or_default();
        let max_dynamic = AtomicU32::new(SHARED_PER_BLOCK.saturating_sub(kernel.static_shared));
        Self { kernel, name, module, context, library, max_dynamic, carveout: AtomicI32::new(-1) }
    }

    pub(super) fn max_dynamic(&self) -> u32 {
        self.max_dynamic.load(Ordering::Relaxed)
    }

    /// `CU_FUNC_ATTRIBUTE_*`.
    fn attribute(&self, attribute: u32, capability: u32) -> Result<i32> {
        let kernel = &self.kernel;
        let value = match attribute {
            0 => kernel.max_threads,
            1 => kernel.static_shared,
            2 => kernel.const_bytes,
            3 => kernel.local_bytes,
            4 => kernel.registers,
            5 => kernel.ptx_version,
            6 => capability,
            8 => self.max_dynamic(),
            9 => return Ok(self.carveout.load(Ordering::Relaxed)),
            7 | 10..=15 => 0, // caching by flag, clusters
            _ => return Err(Error::INVALID_VALUE),
        };
        Ok(i32::try_from(value).unwrap_or(i32::MAX))
    }

    fn set_attribute(&self, driver: &Driver, attribute: u32, value: i32) -> Result<()> {
        match attribute {
            8 => {
                let value = u32::try_from(value).map_err(|_| Error::INVALID_VALUE)?;
                let limits = Limits::new(driver.settings.capability);
                let most = limits.shared_per_block.saturating_sub(self.kernel.static_shared);
                if value > most {
                    driver.note(&format!(
                        "{}: {value} bytes of dynamic shared memory asked for, at most {most} are left",
                        self.kernel.name
                    ));
                    return Err(Error::INVALID_VALUE);
                }
                self.max_dynamic.store(value, Ordering::Relaxed);
            }
            9 if (-1..=100).contains(&value) => self.carveout.store(value, Ordering::Relaxed),
            11..=15 if value == 0 => {}
            11..=15 => return Err(Error::NOT_SUPPORTED), // clusters
            _ => return Err(Error::INVALID_VALUE),
        }
        Ok(())
    }

    fn param(&self, index: usize, offset: Out<usize>, bytes: Out<usize>) -> Result<()> {
        let param = self.kernel.params.get(index).ok_or(Error::INVALID_VALUE)?;
        offset.required()?.set(param.offset)?;
        bytes.set_if_wanted(param.bytes);
        Ok(())
    }
}

/// A kernel of a library.
pub(super) fn library_kernel(driver: &Driver, handle: u64) -> Result<Arc<Function>> {
    driver.functions.find(handle).filter(|function| function.library.is_some()).ok_or(Error::INVALID_HANDLE)
}

fn function(handle: u64) -> Result<Arc<Function>> {
    let driver = driver()?;
    driver.current()?;
    driver.functions.get(handle)
}

/// Checks a cache configuration, which changes nothing here.
pub(super) fn check_cache(config: u32) -> Result<()> {
    if config > 3 { Err(Error::INVALID_VALUE) } else { Ok(()) }
}

exports! {
    2020 fn cuFuncGetAttribute(out: Out<i32>, attribute: u32, handle: u64) {
        let value = function(handle)?.attribute(attribute, driver()?.settings.capability);
        out.required()?.set(value?)
    }
    9000 fn cuFuncSetAttribute(handle: u64, attribute: u32, value: i32) {
        function(handle)?.set_attribute(driver()?, attribute, value)
    }
    3000 fn cuFuncSetCacheConfig(handle: u64, config: u32) {
        function(handle)?;
        check_cache(config)
    }
    4020 fn cuFuncSetSharedMemConfig(handle: u64, config: u32) {
        function(handle)?;
        if config > 2 { Err(Error::INVALID_VALUE) } else { Ok(()) }
    }
    11000 fn cuFuncGetModule(out: Out<u64>, handle: u64) { out.set(function(handle)?.module) }
    12030 fn cuFuncGetName(out: Out<*const c_char>, handle: u64) {
        out.set(function(handle)?.name.as_ptr()) // lives as long as the module
    }
    12040 fn cuFuncGetParamInfo(handle: u64, index: usize, offset: Out<usize>, bytes: Out<usize>) {
        function(handle)?.param(index, offset, bytes)
    }
    13020 fn cuFuncGetParamCount(handle: u64, out: Out<usize>) {
        out.set(function(handle)?.kernel.params.len())
    }
    12040 fn cuFuncIsLoaded(out: Out<u32>, handle: u64) {
        function(handle)?;
        out.set(1)
    }
    12040 fn cuFuncLoad(handle: u64) { function(handle).map(|_| ()) }
    12000 fn cuKernelGetFunction(out: Out<u64>, kernel: u64) {
        let driver = driver()?;
        driver.current()?;
        library_kernel(driver, kernel)?;
        out.set(kernel)
    }
    12050 fn cuKernelGetLibrary(out: Out<u64>, kernel: u64) {
        out.set(library_kernel(driver()?, kernel)?.library.unwrap_or(0))
    }
    12000 fn cuKernelGetAttribute(out: Out<i32>, attribute: u32, kernel: u64, device: i32) {
        let driver = super::context::check_device(device)?;
        out.set(library_kernel(driver, kernel)?.attribute(attribute, driver.settings.capability)?)
    }
    12000 fn cuKernelSetAttribute(attribute: u32, value: i32, kernel: u64, device: i32) {
        let driver = super::context::check_device(device)?;
        library_kernel(driver, kernel)?.set_attribute(driver, attribute, value)
    }
    12000 fn cuKernelSetCacheConfig(kernel: u64, config: u32, device: i32) {
        library_kernel(super::context::check_device(device)?, kernel)?;
        check_cache(config)
    }
    12030 fn cuKernelGetName(out: Out<*const c_char>, kernel: u64) {
        out.set(library_kernel(driver()?, kernel)?.name.as_ptr()) // lives as long as the library
    }
    12040 fn cuKernelGetParamInfo(kernel: u64, index: usize, offset: Out<usize>, bytes: Out<usize>) {
        library_kernel(driver()?, kernel)?.param(index, offset, bytes)
    }
    13020 fn cuKernelGetParamCount(kernel: u64, out: Out<usize>) {
        out.set(library_kernel(driver()?, kernel)?.kernel.params.len())
    }
    2000 fn cuFuncSetBlockShape(handle: u64, _x: i32, _y: i32, _z: i32) {
        function(handle)?;
        Err(Error::NOT_SUPPORTED) // launches of CUDA 3
    }
}
