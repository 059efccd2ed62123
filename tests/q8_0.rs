//! Generation from a Q8_0 file whose blocks stay in memory, on the real SmolLM2-135M-Instruct: the text and the logits of
//! the widened file, in less memory, whatever the number of threads.

mod common;

use common::{close, max_abs, real_model};
use smolten::backend::Cpu;
use smolten::dtype::DType;
use smolten::export;
use smolten::generate::{Continuation, Generator, Sampling};
use smolten::gguf::GgmlType;
use smolten::pretrained::Pretrained;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const NEW_TOKENS: usize = 24;
/// Yardstick of recipe: independent PyTorch paths in fp32 lie 3e-6 of the largest logit apart. Both paths here multiply the
/// same exact weights.
const LOGITS: f32 = 1e-5;

/// The real model as Q8_0.
fn exported(folder: &Path) -> PathBuf {
    let path = folder.join("q8_0.gguf");
    export::gguf(&Pretrained::open(&real_model()).unwrap(), &path, GgmlType::Q8_0, "q8_0").unwrap();
    path
}

fn generator(model: &Pretrained, dtype: DType, kept: bool) -> Generator {
    let open = |plan: &_| -> smolten::error::Result<Box<dyn smolten::backend::Backend>> {
        Ok(Box::new(Cpu::new(plan, dtype)?))
    };
    let (config, weights) = (&model.config, &model.weights);
    if kept {
        Generator::of_q8_0(config, dtype, 128, open, weights).unwrap()
    } else {
        Generator::new(config, dtype, 128, open, |parameter, out| weights.read(parameter, out)).unwrap()
    }
}

/// Row-interleaved q and k, the tied embedding and the head, prompts of one, few and many tokens.
#[test]
fn logits_are_those_of_the_widened_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = Pretrained::open(&exported(folder.path())).unwrap();
    assert!(model.weights.are_q8_0(&model.config));
    assert!(!Pretrained::open(&real_model()).unwrap().weights.are_q8_0(&model.config), "it is Q4_1");
    let [mut kept, mut widened] = [true, false].map(|kept| generator(&model, DType::F32, kept));
    let text =
        "The lighthouse keeper learned to sail, and then he taught his daughter what he knew of the wind.";
    let ids = model.tokenizer.encode(text, true).unwrap();
    for n in [1, 3, 4, ids.len() - 1, ids.len()] {
        let (got, want) = (kept.logits(&ids[..n]).unwrap(), widened.logits(&ids[..n]).unwrap());
        let allowed = LOGITS * max_abs(&want);
        common::assert_close(&format!("{n} tokens"), &got, &want, 0.0, allowed);
        assert!(close(max_abs(&got), max_abs(&want), 0.0, allowed));
    }
}

#[test]
fn threads_change_no_token() {
    let folder = tempfile::tempdir().unwrap();
    let model = Pretrained::open(&exported(folder.path())).unwrap();
    let ids = model.tokenizer.encode("The lighthouse keeper", true).unwrap();
    let sampling = Sampling { temperature: 0.8, seed: 3, ..Sampling::GREEDY };
    let how = Continuation { sampling, max_new_tokens: NEW_TOKENS, stop_ids: &[] };
    for dtype in [DType::BF16, DType::F32] {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut generator = generator(&model, dtype, true);
                let text = generator.generate(&ids, &how, |_| Ok(())).unwrap().0;
                let last = generator.logits(&[&ids[..], &text].concat()).unwrap();
                (text, last.iter().map(|l| l.to_bits()).collect::<Vec<_>>())
            })
        };
        let want = run(1);
        for threads in [2, 5] {
            assert!(run(threads) == want, "{threads} threads in {dtype:?}");
        }
    }
}

fn generate(model: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smolten"));
    command.args(["generate", "--device", "cpu", "--prompt", "Hello", "--max-new-tokens", "4", "--model"]);
    let ran = command.arg(model).args(flags).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    ran
}

#[test]
fn the_command_keeps_blocks_unless_a_precision_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = exported(folder.path());
    let says_so = |ran: &Output| String::from_utf8_lossy(&ran.stderr).contains("Q8_0, kept in memory");
    let kept = generate(&path, &["--json"]);
    assert!(says_so(&kept));
    assert!(serde_json::from_slice::<serde_json::Value>(&kept.stdout).is_ok(), "one document");
    for flags in [["--precision", "bf16"], ["--precision", "fp32"]] {
        assert!(!says_so(&generate(&path, &flags)));
    }
    assert!(!says_so(&generate(&real_model(), &[])));
}
