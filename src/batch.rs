//! Micro-batches without padding: sequences lie end to end, and `cu_seqlens` says where each begins.
//! [`Batches`] cuts the examples of a run into the [`Window`]s of its optimizer steps.

mod examples;
mod mersenne;
mod order;
mod packing;
mod windows;

pub use examples::{Arrays, Examples, Origin};
pub use order::{Order, permutation, split};
pub use packing::best_fit_decreasing;
pub use windows::{BatchOptions, Batches, Window, Windows};

/// Target of a position that is not in the loss.
pub const NO_TARGET: u32 = u32::MAX;

/// One tokenised row of the data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Whether the token at this position is to be learnt. The first one never is: nothing precedes it.
    pub supervised: Vec<bool>,
}

/// The sequences of one micro-batch, end to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MicroBatch {
    /// Token ids, `[T]`.
    pub ids: Vec<u32>,
    /// Position of each token within its own sequence, `[T]`.
    pub positions: Vec<u32>,
    /// Sequence `i` is tokens `cu_seqlens[i]..cu_seqlens[i + 1]`; one more entry than sequences.
    pub cu_seqlens: Vec<u32>,
    /// The next token of the same sequence where it is supervised, else [`NO_TARGET`]; `[T]`.
    pub targets: Vec<u32>,
}

impl MicroBatch {
    /// Lays the examples at these indices end to end.
    pub fn from_examples(examples: &Examples, indices: impl IntoIterator<Item = usize>) -> Self {
        let mut batch = Self { cu_seqlens: vec![0], ..Self::default() };
        for index in indices {
            let ids = examples.ids(index);
            batch.ids.extend(ids);
            batch.positions.extend((0..ids.len()).map(|i| u32::try_from(i).expect("a row fits 32 bits")));
            // Each position's target is the token after it; the last has none.
            let next = ids.iter().zip(examples.supervised(index)).skip(1);
            batch.targets.extend(next.map(|(&id, supervised)| if supervised { id } else { NO_TARGET }));
            batch.targets.resize(batch.ids.len(), NO_TARGET);
            batch.cu_seqlens.push(u32::try_from(batch.ids.len()).expect("a micro-batch fits 32 bits"));
        }
        batch
    }

    /// Adds the sequences of `other` behind its own.
    fn append(&mut self, other: &Self) {
        let before = u32::try_from(self.ids.len()).expect("a micro-batch fits 32 bits");
        self.ids.extend(&other.ids);
        self.positions.extend(&other.positions);
        self.cu_seqlens.extend(other.cu_seqlens[1..].iter().map(|end| before + end));
        self.targets.extend(&other.targets);
    }

    /// Number of tokens (T).
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of positions in the loss.
    pub fn supervised(&self) -> usize {
        self.targets.iter().filter(|&&t| t != NO_TARGET).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_restart_and_targets_stay_within_their_sequence() {
        let a = Example { ids: vec![5, 6, 7], supervised: vec![false, false, true] };
        let b = Example { ids: vec![8, 9], supervised: vec![true, true] };
        let batch = MicroBatch::from_examples(&Examples::from_examples([a, b]), [0, 1]);
        assert_eq!(batch.ids, [5, 6, 7, 8, 9]);
        assert_eq!(batch.positions, [0, 1, 2, 0, 1]);
        assert_eq!(batch.cu_seqlens, [0, 3, 5]);
        assert_eq!(batch.targets, [NO_TARGET, 7, NO_TARGET, 9, NO_TARGET]);
        assert_eq!((batch.tokens(), batch.supervised()), (5, 2));
    }

    #[test]
    fn appending_is_laying_end_to_end() {
        let example = |n: u32| Example { ids: (0..n).collect(), supervised: vec![true; n as usize] };
        let examples = Examples::from_examples([3, 1, 2, 5].map(example));
        let mut joined = MicroBatch::from_examples(&examples, [0, 1]);
        joined.append(&MicroBatch::from_examples(&examples, [2, 3]));
        assert_eq!(joined, MicroBatch::from_examples(&examples, 0..4));
    }
}
