//! Libraries: modules that belong to no context. Their variables exist once, as there is one device.

use super::abi::{In, Out, Text};
use super::errors::{Error, Result};
use super::exports;
use super::module::{Module, Options, Value, enumerate, load, with_file};
use super::state::{Driver, driver};
use std::ffi::c_void;
use std::sync::Arc;

/// A loaded library.
pub(super) struct Library {
    module: u64,
}

fn load_library(out: Out<u64>, image: Text, options: Options) -> Result<()> {
    let driver = driver()?;
    let out = out.required()?;
    let handle = driver.libraries.reserve();
    let module = load(driver, image, None, Some(handle), |text| options.report(text))?;
    options.report("")?;
    driver.libraries.insert(handle, Library { module });
    out.set(handle)
}

fn module(driver: &Driver, library: u64) -> Result<Arc<Module>> {
    driver.modules.get(driver.libraries.get(library)?.module)
}

fn global(address: Out<u64>, bytes: Out<usize>, library: u64, name: Text) -> Result<()> {
    let (found, size) = module(driver()?, library)?.global(name)?;
    address.set_if_wanted(found);
    bytes.set_if_wanted(size);
    Ok(())
}

exports! {
    12000 fn cuLibraryLoadData(
        out: Out<u64>, image: Text, names: In<u32>, values: Out<Value>, count: u32,
        _library_names: In<u32>, _library_values: In<c_void>, _library_count: u32
    ) {
        load_library(out, image, Options { count, names, values })
    }
    12000 fn cuLibraryLoadFromFile(
        out: Out<u64>, name: Text, names: In<u32>, values: Out<Value>, count: u32,
        _library_names: In<u32>, _library_values: In<c_void>, _library_count: u32
    ) {
        driver()?;
        with_file(name, |image| load_library(out, image, Options { count, names, values }))
    }
    12000 fn cuLibraryUnload(library: u64) {
        let driver = driver()?;
        let library = driver.libraries.remove(library)?;
        driver.modules.remove(library.module)?.unload(driver);
        Ok(())
    }
    12000 fn cuLibraryGetKernel(out: Out<u64>, library: u64, name: Text) {
        let module = module(driver()?, library)?;
        out.required()?.set(module.function(name)?)
    }
    12040 fn cuLibraryGetKernelCount(out: Out<u32>, library: u64) {
        let count = module(driver()?, library)?.functions.len();
        out.set(u32::try_from(count).unwrap_or(u32::MAX))
    }
    12040 fn cuLibraryEnumerateKernels(out: Out<u64>, room: u32, library: u64) {
        enumerate(&module(driver()?, library)?.functions, out, room)
    }
    12000 fn cuLibraryGetModule(out: Out<u64>, library: u64) {
        let driver = driver()?;
        driver.current()?;
        out.set(driver.libraries.get(library)?.module)
    }
    12000 fn cuLibraryGetGlobal(address: Out<u64>, bytes: Out<usize>, library: u64, name: Text) {
        driver()?.current()?;
        global(address, bytes, library, name)
    }
    12000 fn cuLibraryGetManaged(_address: Out<u64>, _bytes: Out<usize>, library: u64, _name: Text) {
        module(driver()?, library)?;
        Err(Error::NOT_FOUND) // PTX variables are never managed here
    }
}
