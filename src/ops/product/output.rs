//! Results that several threads write at the same time.

use crate::ops::math::prefetch_to_write;
use crate::ops::tile::HALF;
use bytemuck::Pod;
use std::marker::PhantomData;

/// What half of a block has of a row. A fixed length, for which loops become single instructions.
pub type Lanes<T> = [T; HALF];

/// Rows of a result that threads write in blocks.
pub struct Output<'a, T> {
    data: *mut T,
    len: usize,
    stride: usize,
    lent: PhantomData<&'a mut [T]>,
}

// SAFETY: written through only by functions whose callers give each thread elements that no other thread has.
unsafe impl<T: Send> Sync for Output<'_, T> {}

impl<'a, T> Output<'a, T> {
    /// Rows of `stride` elements.
    pub fn new(data: &'a mut [T], stride: usize) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), stride, lent: PhantomData }
    }

    /// A whole row.
    #[inline(always)]
    pub fn whole(&self, row: usize) -> OutputRow<'_, T> {
        let at = row * self.stride;
        assert!(at + self.stride <= self.len, "a row outside the result");
        OutputRow { data: self.data.wrapping_add(at), len: self.stride, lent: PhantomData }
    }

    /// `width` elements of a row, to be written.
    ///
    /// # Safety
    /// No reference to these elements exists while the result does, and no other thread uses them.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "what the caller promises")]
    pub unsafe fn row(&self, row: usize, column: usize, width: usize) -> &mut [T] {
        let at = row * self.stride + column;
        assert!(at + width <= self.len && column + width <= self.stride, "a block outside the result");
        // SAFETY: inside the slice that `new` borrowed for the life of self (asserted), and not aliased (the caller).
        unsafe { std::slice::from_raw_parts_mut(self.data.wrapping_add(at), width) }
    }

    /// Stores the first `width` of the lanes in a row.
    ///
    /// # Safety
    /// No reference to these elements exists, and no other thread uses them.
    #[inline(always)]
    pub unsafe fn put(&self, row: usize, column: usize, width: usize, lanes: Lanes<T>)
    where
        T: Copy,
    {
        // SAFETY: as the caller promises.
        let to = unsafe { self.row(row, column, width) };
        if let Some(to) = to.first_chunk_mut() {
            *to = lanes;
        } else {
            to.copy_from_slice(&lanes[..width]);
        }
    }
}

/// A row of an [`Output`], looked up once for all of its blocks.
#[derive(Clone, Copy)]
pub struct OutputRow<'a, T> {
    data: *mut T,
    len: usize,
    lent: PhantomData<&'a mut [T]>,
}

impl<T: Pod> OutputRow<'_, T> {
    /// Elements of the row.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The part that ends before `at`, and the other.
    #[inline(always)]
    pub fn split(self, at: usize) -> [Self; 2] {
        let rest = self.len.checked_sub(at).expect("inside the row");
        [Self { len: at, ..self }, Self { data: self.data.wrapping_add(at), len: rest, ..self }]
    }

    /// Asks for the memory of what will be stored from `column` on.
    #[inline(always)]
    pub fn bring(&self, column: usize) {
        prefetch_to_write(self.data.wrapping_add(column));
    }

    /// Stores the lanes that lie within the row.
    ///
    /// # Safety
    /// No reference to these elements exists, and no other thread uses them.
    #[inline(always)]
    pub unsafe fn put(&self, column: usize, lanes: Lanes<T>) {
        let to = self.data.wrapping_add(column);
        match self.len.checked_sub(column) {
            // SAFETY: 16 elements of the row, which `whole` found inside the result, and the caller's alone.
            Some(HALF..) => unsafe { to.cast::<Lanes<T>>().write_unaligned(lanes) },
            Some(width) => {
                // SAFETY: as many elements as the row has from there on, likewise.
                let to = unsafe { std::slice::from_raw_parts_mut(to, width) };
                to.copy_from_slice(&lanes[..width]);
            }
            None => {}
        }
    }

    /// As [`OutputRow::put`], past the caches: what is not read soon need not be brought into them first, nor take their
    /// room.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub unsafe fn stream(&self, column: usize, lanes: Lanes<T>) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
            let to: *mut __m128i = self.data.wrapping_add(column).cast();
            if column <= self.len && self.len - column >= HALF && to.is_aligned() {
                let from: *const __m128i = lanes.as_ptr().cast();
                for i in 0..size_of::<Lanes<T>>() / size_of::<__m128i>() {
                    // SAFETY: one of the lanes' parts of 16 bytes.
                    let part = unsafe { _mm_loadu_si128(from.wrapping_add(i)) };
                    // SAFETY: the same part of 16 elements of the row on a multiple of 16 bytes, which are the caller's.
                    unsafe { _mm_stream_si128(to.wrapping_add(i), part) };
                }
                return;
            }
        }
        // SAFETY: as the caller promises.
        unsafe { self.put(column, lanes) };
    }

    /// What the row has from `column` on, and zeros.
    ///
    /// # Safety
    /// As for [`OutputRow::put`].
    #[inline(always)]
    pub unsafe fn get(&self, column: usize) -> Lanes<T> {
        let from = self.data.wrapping_add(column);
        match self.len.checked_sub(column) {
            // SAFETY: 16 elements of the row, which `whole` found inside the result, and not written meanwhile.
            Some(HALF..) => unsafe { from.cast::<Lanes<T>>().read_unaligned() },
            // SAFETY: as many elements as the row has from there on, likewise.
            Some(width) => load(unsafe { std::slice::from_raw_parts(from, width) }, 0),
            None => bytemuck::Zeroable::zeroed(),
        }
    }
}

/// What there is from `at` on, and zeros.
#[inline(always)]
pub fn load<T: Pod>(from: &[T], at: usize) -> Lanes<T> {
    let Some(rest) = from.get(at..) else { return bytemuck::Zeroable::zeroed() };
    if let Some(lanes) = rest.first_chunk() {
        return *lanes;
    }
    let mut lanes: Lanes<T> = bytemuck::Zeroable::zeroed();
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}
