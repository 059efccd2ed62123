//! Several texts at once on a GPU: those that it writes one after the other.

use super::common::engine::sequence;
use super::decoding::Decoding;
use super::linear::has_tensor_cores;
use smolten::cuda::Rung;
use smolten::dtype::DType;
use smolten::generate::{Continuation, Sampling};

#[test]
fn texts_are_those_written_one_after_the_other() {
    let prompts: Vec<Vec<u32>> =
        [7, 1, 21, 3, 12].into_iter().zip(3..).map(|(n, seed)| sequence(n, 320, seed).ids).collect();
    let how = Continuation { sampling: Sampling::GREEDY, max_new_tokens: 5, stop_ids: &[] };
    for (dtype, rung) in
        [(DType::F32, Rung::Naive), (DType::F16, Rung::Naive), (DType::F16, Rung::Production)]
    {
        if dtype == DType::F16 && rung == Rung::Production && !has_tensor_cores(dtype) {
            continue;
        }
        let mut decoding = Decoding::new(dtype, 3, |plan| Box::new(super::engine(plan, dtype, rung)));
        let want = decoding.alone(&prompts, &how);
        assert!(want.iter().any(|a| a.ids != want[0].ids), "every text is the same, which shows little");
        assert_eq!(decoding.together(&prompts, &how).unwrap().0, want, "{dtype:?}, {rung:?}");
    }
}
