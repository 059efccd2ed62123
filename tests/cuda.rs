//! The CUDA side as far as it shows without a GPU: the layout shared with the kernels, and what is said without a driver.

use smolten::backend::StepParams;
use smolten::cuda::{self, Device, PARAMS_BYTES};
use smolten::error::Error;
use smolten::ops::adamw::AdamWScalars;
use smolten::ops::grad_norm::GradNorm;
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;

/// `kernels/common.cuh` declares the fields in this order, each of 4 bytes.
#[test]
fn step_params_are_laid_out_as_the_kernels_read_them() {
    let params = [
        offset_of!(StepParams, tokens),
        offset_of!(StepParams, sequences),
        offset_of!(StepParams, supervised),
        offset_of!(StepParams, distinct_ids),
        offset_of!(StepParams, accumulate),
        offset_of!(StepParams, inverse_denominator),
        offset_of!(StepParams, max_grad_norm),
        offset_of!(StepParams, adamw),
        offset_of!(StepParams, noise_key),
    ];
    assert_eq!(params, [0, 4, 8, 12, 16, 20, 24, 28, 60]);
    assert_eq!(size_of::<StepParams>(), PARAMS_BYTES);
    let scalars = [
        offset_of!(AdamWScalars, beta1),
        offset_of!(AdamWScalars, beta2),
        offset_of!(AdamWScalars, one_minus_beta1),
        offset_of!(AdamWScalars, one_minus_beta2),
        offset_of!(AdamWScalars, step_size),
        offset_of!(AdamWScalars, eps),
        offset_of!(AdamWScalars, sqrt_bias_correction2),
        offset_of!(AdamWScalars, decay),
    ];
    assert_eq!(scalars, [0, 4, 8, 12, 16, 20, 24, 28]);
    assert_eq!(size_of::<AdamWScalars>(), 32);
    let norm = [offset_of!(GradNorm, norm), offset_of!(GradNorm, scale), offset_of!(GradNorm, skip)];
    assert_eq!((norm, size_of::<GradNorm>()), ([0, 8, 12], 16));
}

/// On a machine without libcuda a GPU that is asked for is an error to print, not a panic.
#[test]
fn a_missing_driver_is_said() {
    if cuda::driver_present() {
        return; // this machine has one; tests/gpu uses it
    }
    assert_eq!(cuda::device_count().unwrap(), 0);
    let Err(error) = Device::open(1) else { panic!("opened a GPU without a driver") };
    assert_eq!(error.exit_code(), 2);
    let Error::Input { asked, found, remedy } = &error else { panic!("{error:?}") };
    assert_eq!(asked, "--device cuda:1");
    assert!(found.contains("libcuda.so.1 is not found"), "{found}");
    assert!(remedy.contains("--device cpu"), "{remedy}");
}

/// A driver that refuses: as much of libcuda as is called before anything is allocated.
const REFUSING: &str = r#"
#include <stdlib.h>
static int of(const char* name, int otherwise) { const char* text = getenv(name); return text ? atoi(text) : otherwise; }
int cuGetErrorName(int code, const char** text) { *text = "its name"; return 0; }
int cuGetErrorString(int code, const char** text) { *text = "what it means"; return 0; }
int cuInit(unsigned flags) { return of("STUB_INIT", 0); }
int cuDriverGetVersion(int* version) { *version = of("STUB_VERSION", 13000); return 0; }
int cuDeviceGetCount(int* count) { *count = of("STUB_COUNT", 1); return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { return of("STUB_CONTEXT", 2); }
"#;

/// Every command that computes says why a GPU cannot be used, and what mends it, whether it was asked for or found.
#[test]
fn a_driver_that_refuses_is_explained() {
    if cuda::driver_present() {
        return; // the loader would find that one
    }
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("stub.c"), folder.path().join("libcuda.so.1"));
    std::fs::write(&source, REFUSING).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(built.unwrap().success());
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-smollm.gguf");
    let rows = folder.path().join("rows.jsonl");
    std::fs::write(&rows, "{\"prompt\": \"a\", \"response\": \"b\"}\n").unwrap();
    let run = |command: &str, device: &str, settings: &[(&str, &str)]| {
        let words = command.split(' ').map(|word| match word {
            "MODEL" => model.to_str().unwrap(),
            "ROWS" => rows.to_str().unwrap(),
            other => other,
        });
        let ran = Command::new(env!("CARGO_BIN_EXE_smolten"))
            .args(words)
            .args(["--device", device])
            .env("LD_LIBRARY_PATH", folder.path())
            .env("SMOLTEN_CACHE", folder.path().join("cache"))
            .env_remove("CUDA_VISIBLE_DEVICES")
            .envs(settings.iter().copied())
            .current_dir(folder.path())
            .output()
            .unwrap();
        (ran.status.code(), String::from_utf8(ran.stderr).unwrap())
    };
    let explained = |command: &str, device: &str, settings: &[(&str, &str)], parts: &[&str]| {
        let (code, said) = run(command, device, settings);
        assert_eq!(code, Some(2), "{command} {device} {settings:?}: {said}");
        let all = parts.iter().chain(&["--device c"]).all(|part| said.contains(part));
        assert!(all && !said.contains("panicked"), "{command} {device} {settings:?}: {parts:?} in {said}");
    };
    let generate = "generate --model MODEL --prompt x --max-new-tokens 1";
    for command in [
        generate,
        "train --model MODEL --data ROWS --dry-run",
        "eval --model MODEL --data ROWS",
        "compare --base MODEL --tuned MODEL --max-new-tokens 1",
        "bench kernels",
        "bench train --model MODEL",
    ] {
        for device in ["auto", "cuda"] {
            explained(
                command,
                device,
                &[("STUB_INIT", "803")],
                &["SYSTEM_DRIVER_MISMATCH", "restart the machine"],
            );
        }
    }
    for (code, remedy) in [
        ("34", "LD_LIBRARY_PATH"),
        ("304", "/dev/nvidia*"),
        ("802", "nvidia-fabricmanager"),
        ("804", "compatibility package"),
        ("999", "nvidia-smi"),
    ] {
        explained(generate, "auto", &[("STUB_INIT", code)], &["the NVIDIA driver refuses", remedy]);
    }
    explained(generate, "cuda:3", &[("STUB_COUNT", "2")], &["gives 2 GPUs", "cuda:0 to cuda:1"]);
    explained(generate, "cuda", &[("STUB_COUNT", "0")], &["gives 0 GPUs", "nvidia-smi"]);
    explained(generate, "cuda", &[("STUB_INIT", "100")], &["gives 0 GPUs"]);
    let hidden = [("STUB_COUNT", "0"), ("CUDA_VISIBLE_DEVICES", "9")];
    explained(generate, "cuda", &hidden, &["(CUDA_VISIBLE_DEVICES=9)", "take CUDA_VISIBLE_DEVICES out"]);
    // No GPU, and none asked for by name: the CPU, without a word.
    assert_eq!(run(generate, "auto", &[("STUB_INIT", "100")]), (Some(0), String::new()));
    if cuda::Images::of_this_binary().is_none() {
        for device in ["auto", "cuda"] {
            explained(generate, device, &[("STUB_INIT", "0")], &["holds no kernels", "get-nvcc"]);
        }
        return;
    }
    explained(generate, "auto", &[("STUB_VERSION", "11040")], &["CUDA 11.4", "update the NVIDIA driver"]);
    explained(generate, "auto", &[("STUB_CONTEXT", "2")], &["OUT_OF_MEMORY", "nvidia-smi"]);
    explained(
        generate,
        "auto",
        &[("STUB_CONTEXT", "46")],
        &["DEVICE_UNAVAILABLE", "another process has the GPU"],
    );
    explained(generate, "auto", &[("STUB_CONTEXT", "214")], &["ECC", "faulty"]);
}
