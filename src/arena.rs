//! One block of memory, planned before the first step; buffers are handles into it.
//!
//! A [`Plan`] hands out [`Tensor`] handles (offset, rows, columns, element type) and adds up what they need, by
//! category. A backend then allocates the whole once. The handles mean the same on every device, so the model
//! holds handles only and never a pointer.

use crate::dtype::{DType, Plain};
use crate::error::{Error, Result};
use memmap2::{Advice, MmapMut};

/// Every buffer starts on a multiple of this many bytes, unless it was asked to follow the one before directly.
pub const ALIGN: usize = 256;

/// A typed handle to `rows × cols` elements, row-major and contiguous, at a byte offset of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Bytes from the start of the arena.
    pub offset: usize,
    /// Rows; for activations the largest token count, of which an operation uses the first `tokens`.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Element type.
    pub dtype: DType,
}

impl Tensor {
    /// Number of elements.
    pub const fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// True when there is no element.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in bytes.
    pub const fn bytes(&self) -> usize {
        self.dtype.bytes(self.len())
    }

    /// The first `rows` rows.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn head(&self, rows: usize) -> Self {
        assert!(rows <= self.rows, "{rows} rows of a tensor that has {}", self.rows);
        Self { rows, ..*self }
    }

    /// `rows` rows from row `first` on.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn rows(&self, first: usize, rows: usize) -> Self {
        assert!(
            first + rows <= self.rows,
            "rows {first} to {} of a tensor that has {}",
            first + rows,
            self.rows
        );
        Self { offset: self.offset + self.dtype.bytes(first * self.cols), rows, ..*self }
    }

    /// The same bytes seen with another shape.
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn reshape(&self, rows: usize, cols: usize) -> Self {
        assert_eq!(rows * cols, self.len(), "reshape must keep the number of elements");
        Self { rows, cols, ..*self }
    }

    /// Checks the shape once, for every backend.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument.
    pub fn expect(&self, op: &'static str, arg: &'static str, want: [usize; 2]) -> Result<()> {
        let got = [self.rows, self.cols];
        if got == want { Ok(()) } else { Err(Error::Shape { op, arg, got, want }) }
    }
}

/// What a buffer is for; the memory plan is printed in these groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Working weights, and the fp32 master weights where they differ.
    Weights,
    /// fp32 gradients.
    Gradients,
    /// Moments of AdamW.
    OptimizerState,
    /// What the forward pass keeps for the backward pass.
    Activations,
    /// Reused from one operation to the next.
    Scratch,
    /// Tokens and counts of one micro-batch.
    Batch,
    /// Keys and values of generation.
    KvCache,
}

/// Adds buffers up before anything is allocated.
#[derive(Debug, Default)]
pub struct Plan {
    bytes: usize,
    by_category: std::collections::BTreeMap<Category, usize>,
    workspace: Option<Tensor>,
}

impl Plan {
    /// Reserves `rows × cols` elements on an [`ALIGN`]ed offset.
    pub fn tensor(&mut self, category: Category, rows: usize, cols: usize, dtype: DType) -> Tensor {
        self.bytes = self.bytes.next_multiple_of(ALIGN);
        self.adjoining(category, rows, cols, dtype)
    }

    /// Reserves `rows × cols` elements directly after the last buffer, so that two weights read as one.
    ///
    /// # Panics
    /// If the offset is not a multiple of what the type is aligned to.
    pub fn adjoining(&mut self, category: Category, rows: usize, cols: usize, dtype: DType) -> Tensor {
        assert!(self.bytes.is_multiple_of(dtype.align()), "{dtype:?} cannot start at byte {}", self.bytes);
        let tensor = Tensor { offset: self.bytes, rows, cols, dtype };
        self.bytes += tensor.bytes();
        *self.by_category.entry(category).or_default() += tensor.bytes();
        tensor
    }

    /// A buffer in what is left of `spare`, which nothing else is using whenever this one is; reserved anew where it does
    /// not fit.
    pub fn sharing(&mut self, spare: &mut Tensor, rows: usize, cols: usize, dtype: DType) -> Tensor {
        let tensor = Tensor { offset: spare.offset.next_multiple_of(ALIGN), rows, cols, dtype };
        let (end, limit) = (tensor.offset + tensor.bytes(), spare.offset + spare.bytes());
        if end > limit {
            return self.tensor(Category::Scratch, rows, cols, dtype);
        }
        *spare = Tensor { offset: end, rows: 1, cols: limit - end, dtype: DType::U8 };
        tensor
    }

    /// Reserves memory that a device uses within operations; the last one reserved is the one it gets.
    pub fn reserve_workspace(&mut self, bytes: usize) {
        self.workspace = Some(self.tensor(Category::Scratch, 1, bytes / 4, DType::F32));
    }

    /// What was reserved so.
    pub fn workspace(&self) -> Option<Tensor> {
        self.workspace
    }

    /// Bytes of the whole arena.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes by category, in the order of [`Category`].
    pub fn by_category(&self) -> impl Iterator<Item = (Category, usize)> + '_ {
        self.by_category.iter().map(|(&c, &b)| (c, b))
    }
}

/// The arena on the host: anonymous pages, zero until written, touched only when used.
pub struct Memory {
    map: MmapMut,
}

impl Memory {
    /// Reserves the plan's bytes.
    ///
    /// # Errors
    /// [`Error::Run`] when the operating system has no such amount of memory.
    pub fn new(bytes: usize) -> Result<Self> {
        let map = MmapMut::map_anon(bytes.max(1)).map_err(|e| {
            Error::run(
                format!("cannot reserve {} MiB of memory: {e}", bytes >> 20),
                "use a smaller --batch-size or --max-length, or free memory",
            )
        })?;
        // Larger pages mean fewer TLB misses in the matrix products; where the kernel declines, nothing is lost.
        let _ = map.advise(Advice::HugePage);
        Ok(Self { map })
    }

    /// One buffer to read.
    pub fn get<T: Plain>(&self, t: Tensor) -> &[T] {
        assert_eq!(t.dtype, T::DTYPE, "buffer type");
        bytemuck::cast_slice(&self.map[t.offset..t.offset + t.bytes()])
    }

    /// One buffer to write.
    pub fn get_mut<T: Plain>(&mut self, t: Tensor) -> &mut [T] {
        assert_eq!(t.dtype, T::DTYPE, "buffer type");
        bytemuck::cast_slice_mut(&mut self.map[t.offset..t.offset + t.bytes()])
    }

    /// The bytes of one buffer.
    pub fn bytes(&self, t: Tensor) -> &[u8] {
        &self.map[t.offset..t.offset + t.bytes()]
    }

    /// The bytes of one buffer, to write.
    pub fn bytes_mut(&mut self, t: Tensor) -> &mut [u8] {
        &mut self.map[t.offset..t.offset + t.bytes()]
    }

    /// Several buffers at once: `reads` shared, `writes` exclusive.
    ///
    /// # Panics
    /// If a written buffer overlaps any other, or one lies outside the arena: the plan is wrong.
    pub fn lend<const R: usize, const W: usize>(
        &mut self,
        reads: [Tensor; R],
        writes: [Tensor; W],
    ) -> ([Slice<'_>; R], [SliceMut<'_>; W]) {
        let end = self.map.len();
        let apart = |a: &Tensor, b: &Tensor| {
            a.offset + a.bytes() <= b.offset
                || b.offset + b.bytes() <= a.offset
                || a.is_empty()
                || b.is_empty()
        };
        for (i, w) in writes.iter().enumerate() {
            assert!(writes[i + 1..].iter().all(|o| apart(w, o)), "two written buffers overlap: {w:?}");
            assert!(reads.iter().all(|r| apart(w, r)), "a written buffer is also read: {w:?}");
        }
        for t in reads.iter().chain(&writes) {
            assert!(t.offset + t.bytes() <= end, "{t:?} lies outside the arena of {end} bytes");
        }
        let base = self.map.as_mut_ptr();
        let reads = reads.map(|t| {
            // SAFETY: the range lies inside the mapping (asserted above), which lives as long as the borrow of
            // self; no range in `writes` overlaps it, so it is not written while the slice lives.
            let bytes = unsafe { std::slice::from_raw_parts(base.wrapping_add(t.offset), t.bytes()) };
            Slice { bytes, dtype: t.dtype }
        });
        let writes = writes.map(|t| {
            // SAFETY: as above; this range overlaps no other lent range, so the slice is exclusive.
            let bytes = unsafe { std::slice::from_raw_parts_mut(base.wrapping_add(t.offset), t.bytes()) };
            SliceMut { bytes, dtype: t.dtype }
        });
        (reads, writes)
    }
}

/// A lent buffer, to read.
#[derive(Clone, Copy)]
pub struct Slice<'a> {
    bytes: &'a [u8],
    /// Type of the elements.
    pub dtype: DType,
}

/// A lent buffer, to write.
pub struct SliceMut<'a> {
    bytes: &'a mut [u8],
    dtype: DType,
}

impl<'a> Slice<'a> {
    /// The elements.
    ///
    /// # Panics
    /// If the buffer holds another type.
    pub fn get<T: Plain>(self) -> &'a [T] {
        assert_eq!(self.dtype, T::DTYPE, "buffer type");
        bytemuck::cast_slice(self.bytes)
    }
}

impl<'a> SliceMut<'a> {
    /// The elements.
    ///
    /// # Panics
    /// If the buffer holds another type.
    pub fn get<T: Plain>(self) -> &'a mut [T] {
        assert_eq!(self.dtype, T::DTYPE, "buffer type");
        bytemuck::cast_slice_mut(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_adjoining_ones_touch() {
        let mut plan = Plan::default();
        let a = plan.tensor(Category::Weights, 3, 5, DType::F32);
        let b = plan.adjoining(Category::Weights, 1, 5, DType::F32);
        let c = plan.tensor(Category::Scratch, 2, 2, DType::BF16);
        assert_eq!((a.offset, b.offset, c.offset), (0, 60, ALIGN));
        assert_eq!(plan.bytes(), ALIGN + 8);
        assert_eq!(plan.by_category().collect::<Vec<_>>(), [(Category::Weights, 80), (Category::Scratch, 8)]);
    }

    #[test]
    fn shared_buffers_lie_apart_in_the_spare_one_while_they_fit() {
        let mut plan = Plan::default();
        let outer = plan.tensor(Category::Scratch, 1, 3 * ALIGN, DType::U8);
        let (end, mut spare) = (plan.bytes(), outer);
        let a = plan.sharing(&mut spare, 1, ALIGN + 2, DType::U8);
        let b = plan.sharing(&mut spare, 1, ALIGN / 4, DType::F32);
        assert_eq!((a.offset, b.offset, plan.bytes()), (outer.offset, outer.offset + 2 * ALIGN, end));
        let c = plan.sharing(&mut spare, 1, 1, DType::U8);
        assert_eq!((c.offset, plan.bytes()), (end, end + 1), "nothing was left");
    }

    #[test]
    fn lent_buffers_are_the_same_memory() {
        let mut plan = Plan::default();
        let a = plan.tensor(Category::Scratch, 1, 2, DType::F32);
        let b = plan.tensor(Category::Scratch, 1, 2, DType::F32);
        let mut memory = Memory::new(plan.bytes()).unwrap();
        memory.get_mut::<f32>(a).copy_from_slice(&[1.0, 2.0]);
        let ([a_in], [b_out]) = memory.lend([a], [b]);
        b_out.get::<f32>().copy_from_slice(a_in.get());
        assert_eq!(memory.get::<f32>(b), [1.0, 2.0]);
    }

    #[test]
    #[should_panic(expected = "also read")]
    fn a_buffer_cannot_be_read_and_written_at_once() {
        let mut plan = Plan::default();
        let a = plan.tensor(Category::Scratch, 2, 2, DType::F32);
        let _ = Memory::new(plan.bytes()).unwrap().lend([a.head(1)], [a]);
    }
}
