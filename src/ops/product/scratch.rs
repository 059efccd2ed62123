//! What threads pack into.

use super::MOST_LINES;
use crate::ops::tile::{Block, Line};
use memmap2::{Advice, MmapMut};
use std::cell::RefCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// What a thread packs into, kept from one product to the next. In large pages where the system has them.
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
        let ([columns, rows], [addend_columns, addend_rows]) = (lines, addend);
        let packed = (columns + rows + addend_columns + addend_rows) * size_of::<Line>();
        let bytes = self.bytes(packed + sums * size_of::<Block>(), quickest);
        let (lines, sums) = bytes.split_at_mut(packed);
        let (columns, rest) = bytemuck::cast_slice_mut(lines).split_at_mut(columns);
        let (rows, rest) = rest.split_at_mut(rows);
        let (addend_columns, addend_rows) = rest.split_at_mut(addend_columns);
        Room { columns, rows, addend: [addend_columns, addend_rows], sums: bytemuck::cast_slice_mut(sums) }
    }

    /// Room for what no L2 holds.
    pub(super) fn lines(&mut self, lines: usize) -> &mut [Line] {
        bytemuck::cast_slice_mut(self.bytes(lines * size_of::<Line>(), anonymous))
    }

    fn bytes(&mut self, bytes: usize, map: fn(usize) -> MmapMut) -> &mut [u8] {
        if self.map.as_ref().is_none_or(|map| map.len() < bytes) {
            self.map = None;
            self.map = Some(map(bytes.next_multiple_of(HUGE_PAGE)));
        }
        &mut self.map.as_mut().expect("mapped above")[..bytes]
    }
}

fn anonymous(bytes: usize) -> MmapMut {
    let map = MmapMut::map_anon(bytes).expect("memory for packed operands");
    let _ = map.advise(Advice::HugePage);
    map
}

/// Of some mappings the one whose beginning is quickest to read again and again. In pages scattered over physical memory
/// some lines share their places in L2 with too many others: products took up to 1.5 times as long. Small pages are, and in
/// a virtual machine so is one large page in eight, which the host has put together of small ones.
fn quickest(bytes: usize) -> MmapMut {
    // All at once, or the same memory would come again.
    let tried: Vec<_> = (0..TRIED)
        .map(|_| {
            let mut map = anonymous(bytes);
            (time_to_read(&mut map), map)
        })
        .collect();
    tried.into_iter().min_by_key(|(time, _)| *time).expect("some").1
}

/// The shortest of a few readings of as many lines as columns and a panel of rows have.
fn time_to_read(map: &mut [u8]) -> Duration {
    let end = map.len().min((MOST_LINES + MOST_LINES / 8) * size_of::<Line>());
    let lines: &mut [Line] = bytemuck::cast_slice_mut(&mut map[..end]);
    // Memory that was never written is one page of zeros.
    lines.fill(Line::ZERO);
    let read = |_| {
        let start = Instant::now();
        black_box(lines.iter().fold(0, |sum: u16, line| sum.wrapping_add(line.0[0].to_bits())));
        start.elapsed()
    };
    (0..READINGS).map(read).min().expect("some")
}

const HUGE_PAGE: usize = 2 << 20;

/// Mappings of which one is kept: that all were slow was not seen.
const TRIED: usize = 4;

const READINGS: usize = 5;

thread_local! {
    /// Columns, and rows as they are needed.
    pub(super) static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// A whole left operand.
    pub(super) static LEFT: RefCell<Scratch> = RefCell::default();
}
