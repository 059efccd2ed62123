//! Functions found by name and version.

use crate::api::*;
use std::ffi::c_void;
use std::ptr::{null, null_mut};

/// Address (0 if none), status, code.
fn find(name: &str, version: i32, flags: u64) -> (usize, u32, u32) {
    let (mut pointer, mut status) = (null_mut(), 77);
    let code = cuGetProcAddress_v2(c(name).as_ptr(), &raw mut pointer, version, flags, &raw mut status);
    (pointer.addr(), status, code)
}

fn is(name: &str, version: i32, flags: u64, function: *const ()) {
    assert_eq!(find(name, version, flags), (function.addr(), 0, 0), "{name} {version} {flags}");
}

#[test]
fn the_newest_function_the_client_knows_is_found() {
    is("cuInit", 2000, 0, raw::cuInit as *const ());
    is("cuMemAlloc", 3020, 0, raw::cuMemAlloc_v2 as *const ());
    is("cuMemAlloc", 13000, 0, raw::cuMemAlloc_v2 as *const ());
    is("cuCtxCreate", 3020, 0, raw::cuCtxCreate_v2 as *const ());
    is("cuCtxCreate", 11030, 0, raw::cuCtxCreate_v2 as *const ());
    is("cuCtxCreate", 12050, 0, raw::cuCtxCreate_v4 as *const ());
    is("cuGetProcAddress", 12000, 0, raw::cuGetProcAddress_v2 as *const ());
    assert_eq!(find("cuMemAlloc", 1000, 0), (0, 2, 0), "newer than the client");
    assert_ne!(find("cuMemAlloc", 2000, 0).0, raw::cuMemAlloc_v2 as *const () as usize, "other arguments");
    for unknown in ["cuNone", "", "cuMemAlloc_v2", "cuinit"] {
        assert_eq!(find(unknown, 13000, 0), (0, 1, 0), "{unknown:?}");
    }
}

#[test]
fn per_thread_variants_are_found_where_there_are_some() {
    let variant = raw::cuStreamBeginCapture_v2_ptsz as *const ();
    is("cuStreamBeginCapture", 11000, 2, variant);
    is("cuStreamBeginCapture", 11000, 1, raw::cuStreamBeginCapture_v2 as *const ());
    is("cuInit", 11000, 2, raw::cuInit as *const ());
    assert_eq!(find("cuInit", 11000, 4).2, INVALID_VALUE);
}

#[test]
fn null_and_undocumented_things() {
    let mut pointer = null_mut();
    let name = c("cuNone");
    assert_eq!(cuGetProcAddress_v2(name.as_ptr(), &raw mut pointer, 13000, 0, null_mut()), NOT_FOUND);
    assert_eq!(cuGetProcAddress_v2(null(), &raw mut pointer, 13000, 0, null_mut()), INVALID_VALUE);
    assert_eq!(cuGetProcAddress_v2(name.as_ptr(), null_mut(), 13000, 0, null_mut()), INVALID_VALUE);
    let mut table: *const c_void = name.as_ptr().cast();
    assert_eq!(cuGetExportTable(&raw mut table, &[1; 16]), NOT_FOUND);
    assert!(table.is_null());
}

#[test]
fn what_is_not_built_says_so() {
    let _session = Session::new();
    assert_eq!(cuTexObjectCreate(), NOT_SUPPORTED);
    assert_ne!(find("cuTexObjectCreate", 5000, 0).0, 0);
}
