//! The tokenised examples of a data set in flat arrays, in memory or mapped from a file.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable, cast_slice, try_cast_slice};
use memmap2::Mmap;

use super::Example;

/// The row that an example was made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable, serde::Serialize, serde::Deserialize)]
#[repr(C)]
pub struct Origin {
    /// Which of the data set's files, from 0.
    pub file: u64,
    /// Line or row of that file, from 1.
    pub number: u64,
}

/// Tokenised examples in one flat store. A clone shares the store; of a mapped one, memory holds only what is read.
#[derive(Clone, Debug)]
pub struct Examples(Arc<Store>);

#[derive(Debug)]
enum Store {
    Memory { offsets: Vec<u64>, origins: Vec<Origin>, ids: Vec<u32>, supervised: Vec<u8> },
    Mapped { map: Mmap, arrays: Arrays },
}

/// Where the arrays lie in a mapped file, each in bytes from its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrays {
    /// u64: example `i` is tokens `offsets[i]..offsets[i + 1]`; one more than there are examples.
    pub offsets: Range<usize>,
    /// [`Origin`], one an example.
    pub origins: Range<usize>,
    /// u32: the ids of all examples, end to end.
    pub ids: Range<usize>,
    /// u8: 1 for each of these tokens that is supervised, else 0.
    pub supervised: Range<usize>,
}

impl Examples {
    /// Copies them into one store; the `i`-th counts as row `i + 1` of the one file.
    pub fn from_examples(examples: impl IntoIterator<Item = Example>) -> Self {
        let (mut offsets, mut origins) = (vec![0], Vec::new());
        let (mut ids, mut supervised) = (Vec::new(), Vec::new());
        for example in examples {
            assert_eq!(example.ids.len(), example.supervised.len(), "a flag for every token");
            ids.extend(example.ids);
            supervised.extend(example.supervised.into_iter().map(u8::from));
            offsets.push(ids.len() as u64);
            origins.push(Origin { file: 0, number: origins.len() as u64 + 1 });
        }
        Self(Arc::new(Store::Memory { offsets, origins, ids, supervised }))
    }

    /// Those of a mapped file; `None` where the arrays do not lie within it, are not aligned, or contradict one
    /// another. Reads every offset, and nothing else.
    pub fn from_map(map: Mmap, arrays: Arrays) -> Option<Self> {
        fn array<'a, T: Pod>(map: &'a Mmap, range: &Range<usize>) -> Option<&'a [T]> {
            try_cast_slice(map.get(range.clone())?).ok()
        }
        let offsets: &[u64] = array(&map, &arrays.offsets)?;
        let origins: &[Origin] = array(&map, &arrays.origins)?;
        let tokens = array::<u32>(&map, &arrays.ids)?.len();
        let fits = map.get(arrays.supervised.clone())?.len() == tokens
            && offsets.len().checked_sub(1) == Some(origins.len())
            && offsets.first() == Some(&0)
            && offsets.last() == Some(&(tokens as u64))
            && offsets.is_sorted();
        fits.then(|| Self(Arc::new(Store::Mapped { map, arrays })))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.offsets().len() - 1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of all of them.
    pub fn tokens(&self) -> usize {
        self.all_ids().len()
    }

    /// Tokens of one.
    pub fn tokens_of(&self, index: usize) -> usize {
        self.range(index).len()
    }

    /// Token ids of one.
    pub fn ids(&self, index: usize) -> &[u32] {
        &self.all_ids()[self.range(index)]
    }

    /// Whether each token of one is to be learnt. The first never is: nothing precedes it.
    pub fn supervised(&self, index: usize) -> impl ExactSizeIterator<Item = bool> + '_ {
        let all = match &*self.0 {
            Store::Memory { supervised, .. } => supervised,
            Store::Mapped { map, arrays } => &map[arrays.supervised.clone()],
        };
        all[self.range(index)].iter().map(|&flag| flag != 0)
    }

    /// The row that one was made from.
    pub fn origin(&self, index: usize) -> Origin {
        match &*self.0 {
            Store::Memory { origins, .. } => origins[index],
            Store::Mapped { map, arrays } => cast_slice(&map[arrays.origins.clone()])[index],
        }
    }

    /// One of them, copied.
    pub fn get(&self, index: usize) -> Example {
        Example { ids: self.ids(index).to_vec(), supervised: self.supervised(index).collect() }
    }

    fn range(&self, index: usize) -> Range<usize> {
        // from_map has checked that the last, and so every, offset is a number of tokens of this store.
        let at = |i: usize| usize::try_from(self.offsets()[i]).expect("within the store");
        at(index)..at(index + 1)
    }

    fn offsets(&self) -> &[u64] {
        match &*self.0 {
            Store::Memory { offsets, .. } => offsets,
            Store::Mapped { map, arrays } => cast_slice(&map[arrays.offsets.clone()]),
        }
    }

    fn all_ids(&self) -> &[u32] {
        match &*self.0 {
            Store::Memory { ids, .. } => ids,
            Store::Mapped { map, arrays } => cast_slice(&map[arrays.ids.clone()]),
        }
    }
}
