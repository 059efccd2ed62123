//! Several texts at once are those that are written one after the other, in every token.

mod common;
#[path = "common/decoding.rs"]
mod decoding;

use common::engine::sequence;
use decoding::{Decoding, POSITIONS};
use smolten::backend::Cpu;
use smolten::dtype::DType;
use smolten::generate::{Answer, BatchDecoder, Continuation, Sampling, StopReason};

const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

fn on_the_cpu(dtype: DType, slots: usize) -> Decoding {
    Decoding::new(dtype, slots, |plan| Box::new(Cpu::new(plan, dtype).unwrap()))
}

/// More prompts than places, of lengths around what goes through the model at a time, one that fills the context and one
/// that leaves a single token.
fn prompts() -> Vec<Vec<u32>> {
    let lengths = [7, 1, 20, 21, 45, 3, 41, POSITIONS, 12, POSITIONS - 1, 2];
    lengths.into_iter().zip(3..).map(|(n, seed)| sequence(n, 320, seed).ids).collect()
}

fn continuation(sampling: Sampling, max_new_tokens: usize, stop_ids: &[u32]) -> Continuation<'_> {
    Continuation { sampling, max_new_tokens, stop_ids }
}

#[test]
fn texts_are_those_written_one_after_the_other() {
    let (prompts, sampled) = (prompts(), Sampling { temperature: 1.2, seed: 5, ..Sampling::GREEDY });
    let penalised = Sampling { repetition_penalty: 1.3, ..Sampling::GREEDY };
    for dtype in TYPES {
        let mut one = on_the_cpu(dtype, 1);
        for sampling in [Sampling::GREEDY, sampled, penalised] {
            // Some of the tokens that are drawn end a text.
            let drawn = one.alone(&prompts, &continuation(sampling, 15, &[]));
            let stop_ids: Vec<u32> = drawn.iter().filter_map(|a| a.ids.get(6).copied()).take(3).collect();
            let how = continuation(sampling, 15, &stop_ids);
            let want = one.alone(&prompts, &how);
            let stopped = want.iter().filter(|a| a.stop_reason == StopReason::Stop).count();
            assert!((1..want.len()).contains(&stopped), "{dtype:?}: {stopped} stop, which shows little");
            for slots in [1, 2, BatchDecoder::SLOTS] {
                let (got, told) = on_the_cpu(dtype, slots).together(&prompts, &how).unwrap();
                assert_eq!(got, want, "{dtype:?}, {sampling:?}, {slots} at a time");
                assert_eq!(told, want.iter().map(|a| a.ids.len()).sum::<usize>());
            }
        }
    }
}

#[test]
fn texts_depend_neither_on_the_others_nor_on_threads() {
    let prompts = prompts();
    let how = continuation(Sampling::GREEDY, 12, &[]);
    let run = |threads: usize, prompts: &[Vec<u32>]| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| on_the_cpu(DType::BF16, BatchDecoder::SLOTS).together(prompts, &how).unwrap().0)
    };
    let want = run(1, &prompts);
    assert_eq!(run(3, &prompts), want);
    let turned: Vec<Vec<u32>> = prompts.iter().rev().cloned().collect();
    assert_eq!(run(2, &turned), want.iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(run(2, &prompts[2..3]), want[2..3]);
}

#[test]
fn nothing_to_write_and_nothing_to_continue() {
    let mut decoding = on_the_cpu(DType::F32, 2);
    let how = continuation(Sampling::GREEDY, 0, &[]);
    let none = Answer { ids: vec![], stop_reason: StopReason::Length };
    let (answers, told) = decoding.together(&prompts()[..3], &how).unwrap();
    assert_eq!((answers, told), (vec![none; 3], 0));
    assert_eq!(decoding.together(&[], &how).unwrap().0, []);
    for bad in [vec![], vec![1; POSITIONS + 1]] {
        let error = decoding.together(&[vec![1, 2], bad], &how).unwrap_err();
        assert!(error.to_string().contains("the context holds 1 to 60"), "{error}");
    }
}
