//! What threads pack into.

use crate::ops::tile::{Block, Line};
use memmap2::{Advice, MmapMut};
use std::cell::RefCell;

/// What a thread packs into, kept from one product to the next. In large pages where the system has them: in small ones,
/// scattered over physical memory, some would share their places in L2 with too many others.
#[derive(Default)]
pub(super) struct Scratch {
    map: Option<MmapMut>,
}

/// Parts of a [`Scratch`].
pub(super) struct Room<'a> {
    /// Panels of all columns.
    pub(super) columns: &'a mut [Line],
    /// As many panels of rows as are packed together.
    pub(super) rows: &'a mut [Line],
    /// Of an addend, panels of all columns and one of rows.
    pub(super) addend: [&'a mut [Line]; 2],
    /// See [`super::sweep::Places`].
    pub(super) sums: &'a mut [Block],
}

impl Scratch {
    /// Room for packed columns and rows, those of an addend, and blocks. What is in it is left over.
    pub(super) fn take(&mut self, lines: [usize; 2], addend: [usize; 2], sums: usize) -> Room<'_> {
        let bytes_of = |lines: [usize; 2]| lines.map(|n| n * size_of::<Line>());
        let ([columns, rows], [addend_columns, addend_rows]) = (bytes_of(lines), bytes_of(addend));
        let bytes = columns + rows + addend_columns + addend_rows + sums * size_of::<Block>();
        if self.map.as_ref().is_none_or(|map| map.len() < bytes) {
            let map =
                MmapMut::map_anon(bytes.next_multiple_of(HUGE_PAGE)).expect("memory for packed operands");
            let _ = map.advise(Advice::HugePage);
            self.map = Some(map);
        }
        let map = &mut self.map.as_mut().expect("mapped above")[..bytes];
        let (columns, rest) = map.split_at_mut(columns);
        let (rows, rest) = rest.split_at_mut(rows);
        let (addend_columns, rest) = rest.split_at_mut(addend_columns);
        let (addend_rows, sums) = rest.split_at_mut(addend_rows);
        let [columns, rows] = [columns, rows].map(bytemuck::cast_slice_mut);
        let addend = [addend_columns, addend_rows].map(bytemuck::cast_slice_mut);
        Room { columns, rows, addend, sums: bytemuck::cast_slice_mut(sums) }
    }
}

const HUGE_PAGE: usize = 2 << 20;

thread_local! {
    /// Columns, and rows as they are needed.
    pub(super) static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// A whole left operand.
    pub(super) static LEFT: RefCell<Scratch> = RefCell::default();
}
