//! Modules and libraries: images, kernels, variables, attributes.

use crate::api::*;
use std::ffi::{CStr, c_void};
use std::ptr::{null, null_mut};

fn load(image: &[u8]) -> u32 {
    assert!(image.contains(&0));
    cuModuleLoadData(&mut 0, image.as_ptr().cast())
}

#[test]
fn machine_code_is_refused_as_a_card_refuses_a_foreign_one() {
    let _session = Session::new();
    for image in [b"\x7fELF\x02\x01\0\0", b"\x50\xed\x55\xba\x01\0\x10\0", b"\xb1\x43\x62\x46\x01\0\0\0"] {
        assert_eq!(load(image), NO_BINARY_FOR_GPU);
    }
    assert_eq!(load(b"\0"), INVALID_IMAGE);
    assert_eq!(load(b"no PTX\0"), INVALID_IMAGE);
    assert_eq!(load(b".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry\0"), INVALID_PTX);
    assert_eq!(load(b".version 8.0\n.target sm_90\n.address_size 64\n\0"), NO_BINARY_FOR_GPU);
    assert_eq!(cuModuleLoadData(&mut 0, null()), INVALID_VALUE);
    assert_eq!(cuModuleLoadData(null_mut(), PTX.as_ptr().cast()), INVALID_VALUE);
}

#[test]
fn the_reason_of_a_failure_is_in_the_log() {
    let _session = Session::new();
    let image = c(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{\n    frobnicate;\n    ,\n}\n",
    );
    // Info log, its size, error log, its size.
    let names = [3, 4, 5, 6];
    for room in [1, 8, 4096_usize] {
        let (mut info, mut error) = (vec![7_u8; 64], vec![7_u8; room + 1]);
        let size = |bytes: usize| std::ptr::without_provenance_mut::<c_void>(bytes);
        let mut values = [info.as_mut_ptr().cast(), size(64), error.as_mut_ptr().cast(), size(room)];
        let code = cuModuleLoadDataEx(&mut 0, image.as_ptr().cast(), 4, names.as_ptr(), values.as_mut_ptr());
        assert_eq!(code, INVALID_PTX);
        assert_eq!((info[0], values[1].addr()), (0, 1), "nothing to say");
        assert_eq!(error[room], 7, "written past the end");
        let log = CStr::from_bytes_until_nul(&error).unwrap().to_str().unwrap();
        assert_eq!(values[3].addr(), log.len() + 1);
        if room == 4096 {
            assert!(log.contains("line 7"), "{log}");
        } else {
            assert_eq!(log.len(), room - 1, "cut off");
        }
    }
    let (mut error, good) = ([7_u8; 64], c(PTX));
    let mut values = [error.as_mut_ptr().cast(), std::ptr::without_provenance_mut(64)];
    let module =
        get(|out| cuModuleLoadDataEx(out, good.as_ptr().cast(), 2, [5, 6].as_ptr(), values.as_mut_ptr()));
    assert_eq!(error[0], 0);
    ok(cuModuleUnload(module));
    let code = cuModuleLoadDataEx(&mut 0, good.as_ptr().cast(), 2, null(), null_mut());
    assert_eq!(code, INVALID_VALUE, "two options, and nowhere to find them");
}

#[test]
fn kernels_and_variables_are_found_by_name() {
    let _session = Session::new();
    let module = Module::load();
    let kernel = module.function("store");
    assert_eq!(module.function("store"), kernel);
    assert_ne!(module.function("trap"), kernel);
    let find = |name: &str| cuModuleGetFunction(&mut 0, module.0, c(name).as_ptr());
    assert_eq!(find("stor"), NOT_FOUND);
    assert_eq!(find("count"), NOT_FOUND, "a variable");
    assert_eq!(cuModuleGetFunction(&mut 0, module.0, null()), INVALID_VALUE);
    assert_eq!(cuModuleGetFunction(null_mut(), module.0, c("store").as_ptr()), INVALID_VALUE);
    let bytes_of_no_text = [0xff, 0];
    assert_eq!(cuModuleGetFunction(&mut 0, module.0, bytes_of_no_text.as_ptr().cast()), INVALID_VALUE);

    let (mut address, mut bytes) = (0, 0);
    ok(cuModuleGetGlobal_v2(&raw mut address, &raw mut bytes, module.0, c("count").as_ptr()));
    assert_eq!((bytes, words(address, 1)), (4, vec![7]));
    ok(cuModuleGetGlobal_v2(null_mut(), null_mut(), module.0, c("count").as_ptr()));
    assert_eq!(cuModuleGetGlobal_v2(null_mut(), null_mut(), module.0, c("store").as_ptr()), NOT_FOUND);

    let mut name = null();
    ok(cuFuncGetName(&raw mut name, kernel));
    // SAFETY: the call succeeded: text that ends in NUL, alive as long as the module.
    assert_eq!(unsafe { CStr::from_ptr(name) }, c"store");
    let param = |index| {
        let (mut offset, mut bytes) = (0, 0);
        (cuFuncGetParamInfo(kernel, index, &raw mut offset, &raw mut bytes), offset, bytes)
    };
    assert_eq!((param(0), param(1), param(2).0), ((0, 0, 8), (0, 8, 4), INVALID_VALUE));

    ok(cuModuleUnload(module.0));
    assert_eq!(cuModuleUnload(module.0), INVALID_HANDLE);
    assert_eq!(cuModuleGetFunction(&mut 0, module.0, c("store").as_ptr()), INVALID_HANDLE);
    assert_eq!(cuFuncGetAttribute(&mut 0, 0, kernel), INVALID_HANDLE);
    assert_eq!(store(kernel, 1, 0, 0, 0), INVALID_HANDLE);
    assert_eq!(cuMemsetD8_v2(address, 0, 4), INVALID_VALUE, "its variables are freed");
}

#[test]
fn files_are_loaded_like_text() {
    let _session = Session::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernels.ptx");
    std::fs::write(&path, PTX).unwrap();
    let module = get(|out| cuModuleLoad(out, c(path.to_str().unwrap()).as_ptr()));
    Module(module).function("store");
    let missing = c(folder.path().join("missing").to_str().unwrap());
    assert_eq!(cuModuleLoad(&mut 0, missing.as_ptr()), 301, "file not found");
    assert_eq!(cuModuleLoad(&mut 0, c(folder.path().to_str().unwrap()).as_ptr()), 301);
}

#[test]
fn attributes_of_kernels() {
    let _session = Session::new();
    let module = Module::load();
    let attribute = |name: &str, which| get(|out| cuFuncGetAttribute(out, which, module.function(name)));
    assert_eq!(attribute("store", 0), 1024);
    assert_eq!(attribute("bounded", 0), 64);
    assert_eq!(attribute("required", 0), 64);
    assert_eq!(attribute("shared", 1), 16384);
    assert_eq!(attribute("store", 1), 0);
    assert_eq!(attribute("store", 6), 80);
    assert!((1..=255).contains(&attribute("store", 4)), "registers");
    assert_eq!(attribute("shared", 8), (48 << 10) - 16384, "dynamic beside static within 48 KB");
    let kernel = module.function("shared");
    let most = (163 << 10) - 16384;
    ok(cuFuncSetAttribute(kernel, 8, most));
    assert_eq!(attribute("shared", 8), most);
    assert_eq!(cuFuncSetAttribute(kernel, 8, most + 1), INVALID_VALUE);
    assert_eq!(cuFuncSetAttribute(kernel, 8, -1), INVALID_VALUE);
    assert_eq!(attribute("shared", 8), most);
    ok(cuFuncSetAttribute(kernel, 9, 50));
    assert_eq!(cuFuncSetAttribute(kernel, 9, 101), INVALID_VALUE);
    assert_eq!(cuFuncSetAttribute(kernel, 0, 1), INVALID_VALUE, "read only");
    assert_eq!(cuFuncGetAttribute(&mut 0, 16, kernel), INVALID_VALUE);
}

#[test]
fn libraries_belong_to_no_context() {
    let session = Session::new();
    let image = c(PTX);
    let load =
        |out| cuLibraryLoadData(out, image.as_ptr().cast(), null(), null_mut(), 0, null(), null_mut(), 0);
    let library = get(load);
    let kernel = get(|out| cuLibraryGetKernel(out, library, c("store").as_ptr()));
    assert_eq!(cuLibraryGetKernel(&mut 0, library, c("none").as_ptr()), NOT_FOUND);
    let function = get(|out| cuKernelGetFunction(out, kernel));
    let other = get(|out| cuCtxCreate_v2(out, 0, 0));
    for context in [session.context, other] {
        ok(cuCtxSetCurrent(context));
        let memory = get(|out| cuMemAlloc_v2(out, 4));
        ok(store(function, 1, 0, memory, 3));
        assert_eq!(words(memory, 1), [3]);
    }
    // A module's kernels stay in its context.
    let foreign = Module::load().function("store");
    ok(cuCtxSetCurrent(session.context));
    assert_eq!(store(foreign, 1, 0, 0, 3), INVALID_HANDLE);
    assert_eq!(cuKernelGetFunction(&mut 0, foreign), INVALID_HANDLE);
    ok(cuCtxDestroy_v2(other));
    ok(cuFuncSetAttribute(function, 8, 60000));
    ok(cuLibraryUnload(library));
    assert_eq!(cuLibraryUnload(library), INVALID_HANDLE);
    assert_eq!(cuKernelGetFunction(&mut 0, kernel), INVALID_HANDLE);
}
