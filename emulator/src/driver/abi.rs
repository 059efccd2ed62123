//! Arguments as C passes them, and the only unsafe reads and writes of the caller's memory.
//!
//! A function of the driver is called by C (or through another language's C interface), so a pointer argument
//! comes with the promise that the driver API's reference makes its caller give: null, or valid for what the
//! function reads or writes through it. Handles and device addresses carry no such promise and are never
//! followed: they are plain numbers, looked up in registries. The types here wrap the pointers. Their fields
//! are private and they have no constructors beside those from other such arguments, so every value is an
//! argument of an exported function (or part of a structure one points to), and that promise holds for it.
//! This is what the SAFETY comments call "the caller's promise".

use super::errors::{Error, Result};
use std::ffi::{CStr, c_char, c_void};

/// Where the caller wants a result.
#[repr(transparent)]
pub(super) struct Out<T>(*mut T);

/// A value, or values in a row, the caller keeps in memory.
#[repr(transparent)]
pub(super) struct In<T>(*const T);

/// Text that ends in NUL.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Text(*const c_char);

/// A C function to call back, with its only argument.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct HostFunction(Option<unsafe extern "C" fn(*mut c_void)>);

/// `CUstreamCallback`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct StreamCallback(Option<unsafe extern "C" fn(u64, u32, *mut c_void)>);

/// `CUoccupancyB2DSize`: dynamic shared memory by size of the block.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct SharedOfBlock(Option<unsafe extern "C" fn(i32) -> usize>);

/// What a callback is given back. Never followed here.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct UserData(*mut c_void);

// SAFETY: the driver API's reference lets callbacks run on any thread, and passes the pointer on as a number.
unsafe impl Send for UserData {}
// SAFETY: as above; nothing here follows the pointer.
unsafe impl Sync for UserData {}

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Out<T> {}
impl<T> Clone for In<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for In<T> {}

impl<T> Out<T> {
    /// A result nobody wants.
    pub(super) fn none() -> Self {
        Self(std::ptr::null_mut())
    }

    /// Refuses null. For use before an operation whose result would be lost.
    pub(super) fn required(self) -> Result<Self> {
        if self.0.is_null() { Err(Error::INVALID_VALUE) } else { Ok(self) }
    }

    pub(super) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Writes; null is refused.
    pub(super) fn set(self, value: T) -> Result<()> {
        self.required()?;
        // SAFETY: not null, so by the caller's promise valid for a write of `T`; alignment is not asked for.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Writes unless null.
    pub(super) fn set_if_wanted(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: not null, so by the caller's promise valid for a write of `T`; alignment is not asked
            // for.
            unsafe { self.0.write_unaligned(value) };
        }
    }

    /// Writes values in a row; the caller said how many there is room for.
    pub(super) fn set_all(self, values: impl IntoIterator<Item = T>) -> Result<()> {
        self.required()?;
        for (i, value) in values.into_iter().enumerate() {
            // SAFETY: an index below the count the caller gave with the pointer, so inside what it promised.
            let slot = unsafe { self.0.add(i) };
            // SAFETY: as above, valid for a write.
            unsafe { slot.write_unaligned(value) };
        }
        Ok(())
    }

    /// Writes at an index below the count the caller gave; null is refused.
    pub(super) fn set_at(self, index: usize, value: T) -> Result<()> {
        self.required()?;
        // SAFETY: an index below the count the caller gave with the pointer, so inside what it promised.
        let slot = unsafe { self.0.add(index) };
        Out(slot).set(value)
    }

    /// The same memory as something to read, for arguments that go both ways.
    pub(super) fn as_in(self) -> In<T> {
        In(self.0)
    }

    /// The same memory as another type, for `void*` whose type an attribute decides.
    pub(super) fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }
}

impl Out<c_char> {
    /// Writes text and a NUL into `room` bytes, cut off if need be.
    pub(super) fn set_text(self, text: &str, room: usize) -> Result<()> {
        let Some(most) = room.checked_sub(1) else { return Err(Error::INVALID_VALUE) };
        let bytes = text.bytes().take(most).chain([0]);
        self.set_all(bytes.map(u8::cast_signed))
    }
}

impl<T: Copy> In<T> {
    pub(super) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Reads; null is refused.
    pub(super) fn get(self) -> Result<T> {
        self.at(0)
    }

    /// Reads the value at an index below the count the caller gave; null is refused.
    pub(super) fn at(self, index: usize) -> Result<T> {
        if self.0.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: an index below the count the caller gave with the pointer, so inside what it promised.
        let slot = unsafe { self.0.add(index) };
        // SAFETY: not null and promised valid for reads; `T` is an integer, a wrapper of this module or a
        // structure of those, for which every bit pattern is a value; alignment is not asked for.
        Ok(unsafe { slot.read_unaligned() })
    }

    /// Copies out `count` bytes; null is refused.
    pub(super) fn bytes(self, count: usize) -> Result<Vec<u8>> {
        if self.0.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: not null, and by the caller's promise valid for the bytes it counted.
        Ok(unsafe { std::slice::from_raw_parts(self.0.cast::<u8>(), count) }.to_vec())
    }

    /// The same memory as another type, for `void*` whose type an attribute decides.
    pub(super) fn cast<U>(self) -> In<U> {
        In(self.0.cast())
    }
}

impl Text {
    /// Text of our own, up to the first NUL; it must be kept while this is used.
    pub(super) fn of(bytes: &[u8]) -> Result<Self> {
        CStr::from_bytes_until_nul(bytes).map(|text| Self(text.as_ptr())).map_err(|_| Error::INVALID_VALUE)
    }

    /// The bytes before the NUL; null is refused.
    pub(super) fn bytes(&self) -> Result<&[u8]> {
        if self.0.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: not null, so by the caller's promise it ends in NUL and stays as it is during the call.
        Ok(unsafe { CStr::from_ptr(self.0) }.to_bytes())
    }

    /// As UTF-8; null and other encodings are refused.
    pub(super) fn get(&self) -> Result<&str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Error::INVALID_VALUE)
    }
}

impl HostFunction {
    /// Refuses null.
    pub(super) fn required(self) -> Result<Self> {
        self.0.map(|_| self).ok_or(Error::INVALID_VALUE)
    }

    pub(super) fn run(self, data: UserData) {
        if let Some(function) = self.0 {
            // SAFETY: the caller's promise for a callback: it may be called with the data given beside it.
            unsafe { function(data.0) };
        }
    }
}

impl StreamCallback {
    /// Refuses null.
    pub(super) fn required(self) -> Result<Self> {
        self.0.map(|_| self).ok_or(Error::INVALID_VALUE)
    }

    pub(super) fn run(self, stream: u64, status: u32, data: UserData) {
        if let Some(function) = self.0 {
            // SAFETY: the caller's promise for a callback: it may be called with the data given beside it.
            unsafe { function(stream, status, data.0) };
        }
    }
}

impl SharedOfBlock {
    /// Bytes for a block of that many threads, if the caller gave the function.
    pub(super) fn bytes(self, block: i32) -> Option<usize> {
        // SAFETY: the caller's promise for a callback: it may be called with any size of a block.
        self.0.map(|function| unsafe { function(block) })
    }
}

/// Host memory of a copy: an address, which a function has said to be one of the host.
///
/// Copies run at the call, so the caller's promise for the pointer holds. Those of a graph run later: the
/// driver API's reference makes the caller keep the memory while the graph is launched.
pub(super) mod host {
    use std::slice;

    /// The caller's bytes.
    pub(in super::super) fn source<'a>(address: u64, bytes: usize) -> &'a [u8] {
        let pointer = std::ptr::with_exposed_provenance::<u8>(index(address));
        // SAFETY: the caller's promise for the source of a copy: `bytes` bytes to read, not written
        // meanwhile. The copy refused null and device addresses.
        unsafe { slice::from_raw_parts(pointer, bytes) }
    }

    /// The caller's room.
    pub(in super::super) fn target<'a>(address: u64, bytes: usize) -> &'a mut [u8] {
        let pointer = std::ptr::with_exposed_provenance_mut::<u8>(index(address));
        // SAFETY: the caller's promise for the target of a copy: `bytes` bytes to write, not used meanwhile.
        // The copy refused null and device addresses.
        unsafe { slice::from_raw_parts_mut(pointer, bytes) }
    }

    /// From host to host; the ranges may overlap.
    pub(in super::super) fn copy(to: u64, from: u64, bytes: usize) {
        let from = std::ptr::with_exposed_provenance::<u8>(index(from));
        let to = std::ptr::with_exposed_provenance_mut::<u8>(index(to));
        // SAFETY: as for source and target; both promises are the caller's of this copy.
        unsafe { std::ptr::copy(from, to, bytes) };
    }

    fn index(address: u64) -> usize {
        usize::try_from(address).expect("addresses have 64 bits")
    }
}

/// Calls `function` when the process ends through `exit` or the end of `main`.
pub(super) fn at_exit(function: extern "C" fn()) {
    unsafe extern "C" {
        fn atexit(function: extern "C" fn()) -> i32;
    }
    // SAFETY: `atexit` takes any function without arguments; that one never unwinds, being `extern "C"`. The
    // library is not unloaded before: libc calls the functions of a library that is closed at that time.
    unsafe { atexit(function) };
}
