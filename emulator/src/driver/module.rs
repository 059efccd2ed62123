//! Modules: PTX text loaded into a context.

use super::abi::{In, Out, Text};
use super::errors::{Error, Result};
use super::exports;
use super::function::Function;
use super::print;
use super::state::{Driver, driver};
use crate::program::{self, LoadError};
use std::ffi::c_char;

/// A loaded module.
pub(super) struct Module {
    program: program::Module,
    /// Handles of the kernels, in the order of the text.
    pub(super) functions: Vec<u64>,
    /// Number of the context it is in; none for a library's.
    pub(super) context: Option<u64>,
}

impl Module {
    /// Frees its variables and makes the handles of its kernels stale.
    pub(super) fn unload(&self, driver: &Driver) {
        for &function in &self.functions {
            let _ = driver.functions.remove(function);
        }
        self.program.unload(&driver.memory);
    }

    pub(super) fn function(&self, name: Text) -> Result<u64> {
        let name = name.get()?;
        let named = self.program.kernels.iter().position(|kernel| kernel.name == name);
        named.map(|index| self.functions[index]).ok_or(Error::NOT_FOUND)
    }

    /// Address and size of a variable.
    pub(super) fn global(&self, name: Text) -> Result<(u64, usize)> {
        let name = name.get()?;
        let found = self.program.globals.iter().find(|global| global.0 == name).ok_or(Error::NOT_FOUND)?;
        Ok((found.1, usize::try_from(found.2).map_err(|_| Error::INVALID_VALUE)?))
    }
}

/// What a failed load is to the client.
fn code(error: &LoadError) -> Error {
    match error {
        LoadError::Target { .. } => Error::NO_BINARY_FOR_GPU,
        LoadError::Memory(_) => Error::OUT_OF_MEMORY,
        _ => Error::INVALID_PTX,
    }
}

/// Beginnings of an ELF file (a cubin), a fat binary, and the wrapper around one.
const BINARIES: [&[u8]; 3] = [b"\x7fELF", b"\x50\xed\x55\xba", b"\xb1\x43\x62\x46"];

/// Loads an image under new handles. `log` gets the reason of a failure.
pub(super) fn load(
    driver: &Driver,
    image: Text,
    context: Option<u64>,
    library: Option<u64>,
    log: impl Fn(&str) -> Result<()>,
) -> Result<u64> {
    let bytes = image.bytes()?;
    let refuse = |text: &str, error| {
        print(text);
        log(text)?;
        Err(error)
    };
    if BINARIES.iter().any(|binary| bytes.starts_with(binary)) {
        log("the image is machine code; the emulator takes PTX")?;
        return Err(Error::NO_BINARY_FOR_GPU);
    }
    let text = String::from_utf8_lossy(bytes);
    if !text.contains(".version") {
        return refuse("the image is no PTX: it has no .version", Error::INVALID_IMAGE);
    }
    let program = match program::Module::load(&text, driver.settings.capability, &driver.memory) {
        Ok(program) => program,
        Err(error) => return refuse(&error.to_string(), code(&error)),
    };
    let handle = driver.modules.reserve();
    let function =
        |kernel: &_| driver.functions.add(|_| Function::new(Clone::clone(kernel), handle, context, library));
    let functions = program.kernels.iter().map(function).collect();
    driver.modules.insert(handle, Module { program, functions, context });
    Ok(handle)
}

/// Options of the compiler: only the logs mean something here.
#[derive(Clone, Copy)]
pub(super) struct Options {
    pub(super) count: u32,
    pub(super) names: In<u32>,
    /// As wide as pointers, which some of them are.
    pub(super) values: Out<Value>,
}

/// The value of an option: a number, or a pointer to room for text.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union Value {
    number: usize,
    text: Out<c_char>,
}

/// `CU_JIT_*`.
const INFO_LOG: u32 = 3;
const INFO_LOG_BYTES: u32 = 4;
const ERROR_LOG: u32 = 5;
const ERROR_LOG_BYTES: u32 = 6;

impl Options {
    pub(super) fn none() -> Self {
        Self { count: 0, names: Out::none().as_in(), values: Out::none() }
    }

    fn find(&self, option: u32) -> Result<Option<usize>> {
        for i in 0..self.count as usize {
            if self.names.at(i)? == option {
                return Ok(Some(i));
            }
        }
        Ok(None)
    }

    /// Writes a log where the client wants it, and its length in place of the room.
    fn write(&self, log: u32, log_bytes: u32, text: &str) -> Result<()> {
        let (Some(log), Some(room_at)) = (self.find(log)?, self.find(log_bytes)?) else { return Ok(()) };
        // SAFETY: a field of this union is read as the option's name has it, which the caller promises.
        let room = unsafe { self.values.as_in().at(room_at)?.number };
        // SAFETY: as above: the option of this name is a pointer.
        let out = unsafe { self.values.as_in().at(log)?.text };
        if room == 0 || out.is_null() {
            return Ok(());
        }
        out.set_text(text, room)?;
        let written = text.len().min(room - 1) + 1;
        self.values.set_at(room_at, Value { number: written })
    }

    /// The outcome of a load: empty logs, or the reason of the failure.
    pub(super) fn report(&self, text: &str) -> Result<()> {
        self.write(INFO_LOG, INFO_LOG_BYTES, "")?;
        self.write(ERROR_LOG, ERROR_LOG_BYTES, text)
    }
}

/// Loads into the current context.
fn load_here(out: Out<u64>, image: Text, options: Options) -> Result<()> {
    let driver = driver()?;
    let context = driver.working()?;
    let out = out.required()?;
    driver.captures.refuse_unsafe()?;
    let handle = load(driver, image, Some(context.id), None, |text| options.report(text))?;
    options.report("")?;
    out.set(handle)
}

/// Reads a file as text that ends in NUL, and has it loaded.
pub(super) fn with_file<T>(name: Text, load: impl FnOnce(Text) -> Result<T>) -> Result<T> {
    let name = name.get()?;
    let mut image = std::fs::read(name).map_err(|_| Error::FILE_NOT_FOUND)?;
    image.push(0);
    load(Text::of(&image)?)
}

/// Writes handles, at most as many as there is room for.
pub(super) fn enumerate(handles: &[u64], out: Out<u64>, room: u32) -> Result<()> {
    out.set_all(handles.iter().copied().take(room as usize))
}

exports! {
    2000 fn cuModuleLoad(out: Out<u64>, name: Text) {
        driver()?;
        with_file(name, |image| load_here(out, image, Options::none()))
    }
    2000 fn cuModuleLoadData(out: Out<u64>, image: Text) { load_here(out, image, Options::none()) }
    2010 fn cuModuleLoadDataEx(
        out: Out<u64>, image: Text, count: u32, names: In<u32>, values: Out<Value>
    ) {
        load_here(out, image, Options { count, names, values })
    }
    2000 fn cuModuleLoadFatBinary(_out: Out<u64>, image: In<u8>) {
        driver()?.working()?;
        if image.is_null() { Err(Error::INVALID_VALUE) } else { Err(Error::NO_BINARY_FOR_GPU) }
    }
    2000 fn cuModuleUnload(handle: u64) {
        let driver = driver()?;
        let context = driver.current()?;
        driver.captures.refuse_unsafe()?;
        let module = driver.modules.get(handle)?;
        if module.context != Some(context.id) {
            return Err(Error::INVALID_HANDLE); // of another context, or a library's
        }
        driver.modules.remove(handle)?.unload(driver);
        Ok(())
    }
    11070 fn cuModuleGetLoadingMode(out: Out<u32>) {
        driver()?;
        out.set(1) // eager
    }
    2000 fn cuModuleGetFunction(out: Out<u64>, handle: u64, name: Text) {
        let driver = driver()?;
        driver.current()?;
        let out = out.required()?;
        out.set(driver.modules.get(handle)?.function(name)?)
    }
    12040 fn cuModuleGetFunctionCount(out: Out<u32>, handle: u64) {
        let count = driver()?.modules.get(handle)?.functions.len();
        out.set(u32::try_from(count).unwrap_or(u32::MAX))
    }
    12040 fn cuModuleEnumerateFunctions(out: Out<u64>, room: u32, handle: u64) {
        enumerate(&driver()?.modules.get(handle)?.functions, out, room)
    }
    3020 fn cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, handle: u64, name: Text) {
        let driver = driver()?;
        driver.current()?;
        let (found, size) = driver.modules.get(handle)?.global(name)?;
        address.set_if_wanted(found);
        bytes.set_if_wanted(size);
        Ok(())
    }
}
