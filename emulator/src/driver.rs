//! The driver's C interface: what libcuda.so.1 exports.
//!
//! Every operation runs at the call, on the calling thread: one of the schedules a card may choose. So
//! streams keep their order and a synchronise has nothing to wait for, but a fault inside a kernel is kept in
//! the context and returned from the next call on, as a card does, with the diagnosis on standard error at
//! once.
//!
//! In the order of the flow: arguments (`abi`), result codes (`errors`), handles (`registry`), what
//! there is in all (`state`), then the interface by the driver's own chapters, and what of it is not built
//! (`unsupported`). Functions keep the names, arguments and meaning of the driver API's reference, so they
//! have no documentation of their own.

mod abi;
mod capture;
mod capture_api;
mod context;
mod copy;
mod copy_api;
mod device;
mod entry_points;
mod errors;
mod event;
mod function;
mod graph;
mod graph_api;
mod launch;
mod library;
mod memory;
mod module;
mod occupancy;
mod pointer;
mod pool;
mod primary;
mod registry;
mod state;
mod stream;
mod unsupported;

use errors::Result;
use std::cell::Cell;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The stream that handle 0 names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    /// The legacy default stream.
    Legacy,
    /// The calling thread's own: functions whose names end in `_ptsz` or `_ptds`.
    PerThread,
}

thread_local! {
    static DEFAULT_STREAM: Cell<Call> = const { Cell::new(Call::Legacy) };
}

impl Call {
    /// Runs the body of an exported function and makes its outcome a number. No panic leaves it.
    fn run(self, name: &str, body: impl FnOnce() -> Result<()>) -> u32 {
        let before = DEFAULT_STREAM.replace(self);
        let outcome = catch_unwind(AssertUnwindSafe(body));
        DEFAULT_STREAM.set(before);
        match outcome {
            Ok(Ok(())) => 0,
            Ok(Err(error)) => error.code(),
            Err(_) => {
                print(&format!("{name} failed inside the emulator; this is a bug of the emulator"));
                errors::Error::UNKNOWN.code()
            }
        }
    }

    /// What handle 0 means in the call under way.
    fn current() -> Self {
        DEFAULT_STREAM.get()
    }
}

/// A line on standard error. A closed one is no reason to fail.
fn print(message: &str) {
    let _ = writeln!(std::io::stderr(), "cuda-emulator: {message}");
}

/// An exported function, as `cuGetProcAddress` finds it.
struct Entry {
    name: &'static str,
    /// Version of CUDA that introduced it, e.g. 11020.
    since: u32,
    address: *const (),
}

/// Exported functions: version of CUDA that introduced it, name, arguments, body. Where there is a variant
/// whose default stream is the thread's own, both names in brackets. Makes `list`, which lists them.
macro_rules! exports {
    ($($since:literal fn $name:tt $args:tt $body:block)*) => {
        $($crate::driver::export!($name $args $body);)*

        pub(super) fn list(entries: &mut Vec<$crate::driver::Entry>) {
            $($crate::driver::enter!(entries $since $name);)*
        }
    };
}
use exports;

/// One exported function, or the two variants of one.
macro_rules! export {
    ([$name:ident $variant:ident] $args:tt $body:block) => {
        $crate::driver::export!(Legacy $name $args $body);
        $crate::driver::export!(PerThread $variant $args $body);
    };
    ($name:ident $args:tt $body:block) => {
        $crate::driver::export!(Legacy $name $args $body);
    };
    ($call:ident $name:ident ($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, reason = "the driver's names")]
        extern "C" fn $name($($arg: $type),*) -> u32 {
            $crate::driver::Call::$call.run(stringify!($name), move || $body)
        }
    };
}
use export;

/// Lists one exported function, or the two variants of one. The variants came with CUDA 7.
macro_rules! enter {
    ($entries:ident $since:literal [$name:ident $variant:ident]) => {
        $crate::driver::enter!($entries $since $name);
        let since = std::cmp::max($since, 7000);
        let (name, address) = (stringify!($variant), $variant as *const ());
        $entries.push($crate::driver::Entry { name, since, address });
    };
    ($entries:ident $since:literal $name:ident) => {
        let (name, address) = (stringify!($name), $name as *const ());
        $entries.push($crate::driver::Entry { name, since: $since, address });
    };
}
use enter;
