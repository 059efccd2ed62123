//! Named ranges for NVIDIA's profilers (NVTX). Without a profiler they cost a load and a branch.

use libloading::{Library, Symbol};
use std::ffi::{CString, c_char, c_int};
use std::fmt;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Set by a profiler for the program it starts: the library that listens to the ranges.
const PROFILER: &str = "NVTX_INJECTION64_PATH";

/// The library that passes ranges on: CUDA 12.9 and newer, and older.
const LIBRARIES: [&str; 2] = ["libnvtx3interop.so.1", "libnvToolsExt.so.1"];

struct Nvtx {
    push: unsafe extern "C" fn(*const c_char) -> c_int,
    pop: unsafe extern "C" fn() -> c_int,
    /// The functions live as long as it does.
    _library: Library,
}

/// Ends the range when it goes out of scope; ranges nest, per thread.
#[must_use]
pub struct Range(Option<&'static Nvtx>, PhantomData<*const ()>);

/// Begins a range named `name`, which is put together only where a profiler listens.
pub fn range(name: fmt::Arguments<'_>) -> Range {
    let nvtx = loaded();
    if let Some(nvtx) = nvtx {
        let name = CString::new(name.to_string()).expect("names without a zero byte");
        // SAFETY: nvtxRangePushA reads a zero-terminated text and keeps a copy.
        unsafe { (nvtx.push)(name.as_ptr()) };
    }
    Range(nvtx, PhantomData)
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Some(nvtx) = self.0 {
            // SAFETY: ends the innermost range of this thread, which is this one: a Range cannot leave its thread.
            unsafe { (nvtx.pop)() };
        }
    }
}

/// The library, where a profiler listens.
fn loaded() -> Option<&'static Nvtx> {
    static NVTX: OnceLock<Option<Nvtx>> = OnceLock::new();
    let load = || {
        std::env::var_os(PROFILER)?;
        let found = LIBRARIES.into_iter().find_map(load);
        if found.is_none() {
            eprintln!("warning: a profiler listens, but there is no {}: no ranges", LIBRARIES[0]);
        }
        found
    };
    NVTX.get_or_init(load).as_ref()
}

fn load(name: &str) -> Option<Nvtx> {
    // SAFETY: NVIDIA's library; loading it runs no code that this program could break.
    let library = unsafe { Library::new(name) }.ok()?;
    // SAFETY: int nvtxRangePushA(const char*) of nvToolsExt.h.
    let push: Symbol<unsafe extern "C" fn(*const c_char) -> c_int> =
        unsafe { library.get(b"nvtxRangePushA\0") }.ok()?;
    // SAFETY: int nvtxRangePop(void) of nvToolsExt.h.
    let pop: Symbol<unsafe extern "C" fn() -> c_int> = unsafe { library.get(b"nvtxRangePop\0") }.ok()?;
    Some(Nvtx { push: *push, pop: *pop, _library: library })
}
