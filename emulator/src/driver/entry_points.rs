//! Finding exported functions by name and version, for clients that do not link to them.

use super::abi::{Out, Text};
use super::errors::{Error, Result};
use super::{Entry, exports};
use super::{
    capture_api, context, copy_api, device, errors, event, function, graph_api, launch, library, memory,
    module, occupancy, pointer, pool, primary, stream, unsupported,
};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::LazyLock;

/// A function as it can be asked for.
struct Version {
    since: u32,
    /// Whether its default stream is the thread's own.
    is_per_thread: bool,
    /// The address, as a number: shared between threads.
    address: usize,
}

/// By name without version and variant.
static TABLE: LazyLock<HashMap<&'static str, Vec<Version>>> = LazyLock::new(|| {
    let mut entries = Vec::new();
    let chapters = [
        errors::list,
        device::list,
        context::list,
        primary::list,
        stream::list,
        event::list,
        capture_api::list,
        graph_api::list,
        memory::list,
        copy_api::list,
        pointer::list,
        pool::list,
        module::list,
        library::list,
        function::list,
        launch::list,
        occupancy::list,
        unsupported::list,
        list,
    ];
    for list in chapters {
        list(&mut entries);
    }
    let mut table: HashMap<_, Vec<_>> = HashMap::new();
    for Entry { name, since, address } in entries {
        let (versioned, is_per_thread) = match name.strip_suffix("_ptsz").or(name.strip_suffix("_ptds")) {
            Some(rest) => (rest, true),
            None => (name, false),
        };
        let version = Version { since, is_per_thread, address: address.expose_provenance() };
        table.entry(base(versioned)).or_default().push(version);
    }
    table
});

/// `cuMemAlloc` of `cuMemAlloc_v2`.
fn base(name: &str) -> &str {
    match name.rsplit_once("_v") {
        Some((base, version)) if version.bytes().all(|c| c.is_ascii_digit()) => base,
        _ => name,
    }
}

/// `CUdriverProcAddressQueryResult`.
const FOUND: u32 = 0;
const NOT_FOUND: u32 = 1;
const VERSION_NOT_SUFFICIENT: u32 = 2;

/// `CU_GET_PROC_ADDRESS_*`.
const LEGACY_STREAM: u64 = 1;
const PER_THREAD_STREAM: u64 = 2;

/// The newest function of a name that a client of `version` knows, in the variant it wants if there is one.
fn find(name: &str, version: i32, flags: u64) -> std::result::Result<usize, u32> {
    let version = u32::try_from(version).unwrap_or(0);
    let wants_per_thread = flags & PER_THREAD_STREAM != 0;
    let all = TABLE.get(name).ok_or(NOT_FOUND)?;
    let usable = all.iter().filter(|v| v.since <= version && (wants_per_thread || !v.is_per_thread));
    let best = usable.max_by_key(|v| (v.is_per_thread, v.since));
    best.map(|v| v.address).ok_or(VERSION_NOT_SUFFICIENT)
}

fn get(name: Text, out: Out<*const c_void>, version: i32, flags: u64, status: Out<u32>) -> Result<()> {
    let out = out.required()?;
    if flags > LEGACY_STREAM | PER_THREAD_STREAM {
        return Err(Error::INVALID_VALUE);
    }
    let found = find(name.get()?, version, flags);
    status.set_if_wanted(found.err().unwrap_or(FOUND));
    match found {
        Ok(address) => out.set(std::ptr::with_exposed_provenance(address)),
        Err(_) => {
            out.set(std::ptr::null())?;
            // With a status to tell the reason by, the call itself has done its work.
            if status.is_null() { Err(Error::NOT_FOUND) } else { Ok(()) }
        }
    }
}

exports! {
    11030 fn cuGetProcAddress(name: Text, out: Out<*const c_void>, version: i32, flags: u64) {
        get(name, out, version, flags, Out::none())
    }
    12000 fn cuGetProcAddress_v2(
        name: Text, out: Out<*const c_void>, version: i32, flags: u64, status: Out<u32>
    ) {
        get(name, out, version, flags, status)
    }
    3000 fn cuGetExportTable(out: Out<*const c_void>, id: Out<u8>) {
        out.required()?.set(std::ptr::null())?;
        id.required()?;
        Err(Error::NOT_FOUND) // tables of functions that NVIDIA does not document
    }
}
