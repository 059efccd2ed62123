//! The matrix unit: products of packed panels into blocks of 32 × 32 f32, by AMX, AVX-512 or plain vectors.
//!
//! The left operand is cut into panels of 32 rows, the right one into panels of 32 columns; both run along the inner
//! dimension k in steps of 32 bf16 or 16 fp32, padded with zeros. One step of a panel is 32 [`Line`]s of 64 bytes, laid out
//! as AMX wants its tiles (Intel SDM, TDPBF16PS), and every other level reads the same layout. Where AMX has pairs of
//! bf16, fp32 has single numbers:
//!
//! * rows panel: line `r` of a step holds `a[r][0..32]`, or `a[r][0..16]`;
//! * columns panel: line `16h + p` holds, for the 16 columns of half `h`, the pairs `b[2p][c], b[2p + 1][c]`, or `b[p][c]`.
//!
//! The two halves of a columns panel need not adjoin, so that an epilogue may find in one block what it combines: a
//! gate with its value, or the two coordinates that a rotation mixes.

mod amx;
mod level;
mod pack;
mod rows;
mod vector;

pub use level::Level;
pub use pack::{Matrix, pack_all_columns, pack_all_rows, pack_columns, pack_rows, transpose};
pub use rows::Rows;

use crate::dtype::Element;
use half::bf16;
use std::marker::PhantomData;

/// Rows and columns of a [`Block`], and lines of one step of a panel.
pub const SIDE: usize = 32;

/// Columns of half a columns panel.
pub const HALF: usize = SIDE / 2;

/// 32 values of a panel, or 16 of fp32.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Line(pub [bf16; SIDE]);

impl Line {
    /// Nothing but zeros.
    pub const ZERO: Self = Self([bf16::ZERO; SIDE]);

    /// Four bytes at a time: one fp32, or two bf16, the first in the lower half.
    #[inline(always)]
    fn lanes(&self) -> &[u32; HALF] {
        bytemuck::cast_ref(self)
    }
}

/// 32 × 32 sums, row by row.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Block(pub [[f32; SIDE]; SIDE]);

impl Block {
    /// Nothing but zeros.
    pub const ZERO: Self = Self([[0.0; SIDE]; SIDE]);

    /// The two halves of a row.
    #[inline(always)]
    pub fn halves(&self, row: usize) -> [&[f32; HALF]; 2] {
        let ([one, two], []) = self.0[row].as_chunks() else { unreachable!("two halves") };
        [one, two]
    }
}

/// A type that panels hold.
pub trait Packed: Element {
    /// Elements of the inner dimension in one step.
    const DEPTH: usize = size_of::<Line>() / size_of::<Self>();

    /// Lines of a panel along an inner dimension of `k`.
    fn panel_lines(k: usize) -> usize {
        k.div_ceil(Self::DEPTH) * SIDE
    }

    /// The level that multiplies this type where there is `level`.
    fn level(level: Level) -> Level;
}

impl Packed for bf16 {
    fn level(level: Level) -> Level {
        level
    }
}

impl Packed for f32 {
    fn level(level: Level) -> Level {
        level.min(Level::Avx512)
    }
}

/// A thread's hold on the matrix unit. AMX has tiles to configure before and to release after.
pub struct Unit<T = bf16> {
    level: Level,
    // Tiles belong to the thread that configured them.
    _not_send: PhantomData<(*const (), T)>,
}

impl<T: Packed> Unit<T> {
    /// Gets the unit ready on this thread.
    pub fn new(level: Level) -> Self {
        let level = T::level(level);
        if level == Level::Amx {
            amx::configure();
        }
        Self { level, _not_send: PhantomData }
    }

    /// What multiplies.
    #[inline(always)]
    pub fn level(&self) -> Level {
        self.level
    }

    /// `c = a·b`, or `c += a·b` with `add`. The sum over k goes step by step in ascending order.
    ///
    /// Levels without AMX add each product to the sum in ascending k, but for the one with AVX-512 BF16, which like AMX
    /// adds pairs and treats subnormal numbers as zero. All others have the same bits in bf16, whose products are exact;
    /// in fp32 those that fuse a product and its sum have.
    ///
    /// # Panics
    /// If the panels are not of one length, or not of whole steps.
    #[inline]
    pub fn multiply(&self, a: Rows<'_>, b: &[Line], c: &mut Block, add: bool) {
        check(a, b);
        if let Some(tiles) = self.tiles() {
            tiles.begin(add.then_some(&*c));
            for (i, b) in b.as_chunks().0.iter().enumerate() {
                tiles.step(a, i, b);
            }
            return tiles.end(c);
        }
        if !add {
            *c = Block::ZERO;
        }
        vector::multiply::<T>(self.level, a, b, c);
    }

    /// The same for two panels of columns, with the same bits.
    ///
    /// # Panics
    /// As [`Unit::multiply`].
    #[inline]
    pub fn multiply_two(&self, a: Rows<'_>, b: [&[Line]; 2], c: &mut [Block; 2], add: bool) {
        if self.tiles().is_some() {
            b.into_iter().zip(c).for_each(|(b, c)| self.multiply(a, b, c, add));
            return;
        }
        b.iter().for_each(|b| check(a, b));
        if !add {
            *c = [Block::ZERO; 2];
        }
        vector::multiply_two::<T>(self.level, a, b, c);
    }

    /// The tiles, for callers with something to do between the steps, where the unit has tiles.
    #[inline(always)]
    pub fn tiles(&self) -> Option<Tiles<'_>> {
        if self.level == Level::Amx { Some(Tiles { _configured: PhantomData }) } else { None }
    }
}

fn check(a: Rows<'_>, b: &[Line]) {
    assert!(a.steps() * SIDE == b.len(), "{} steps of rows, {} lines of columns", a.steps(), b.len());
}

/// The three parts of [`Unit::multiply`] on tiles.
#[derive(Clone, Copy)]
pub struct Tiles<'a> {
    _configured: PhantomData<(&'a (), *const ())>,
}

impl Tiles<'_> {
    /// First: the sums begin as `from`, or with zeros.
    #[inline(always)]
    pub fn begin(self, from: Option<&Block>) {
        amx::begin(from);
    }

    /// Step `i` of the rows with that of a panel of columns.
    #[inline(always)]
    pub fn step(self, a: Rows<'_>, i: usize, b: &[Line; SIDE]) {
        amx::step(a, i, b);
    }

    /// Last: the sums go to `to`.
    #[inline(always)]
    pub fn end(self, to: &mut Block) {
        amx::end(to);
    }
}

impl<T> Drop for Unit<T> {
    fn drop(&mut self) {
        if self.level == Level::Amx {
            amx::release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of few bits, so that every sum is exact.
    fn integers<T: Packed>(n: usize, seed: usize) -> Vec<T> {
        (0..n).map(|i| T::from_f32(((i * 31 + i / 7 + seed * 17) % 13) as f32 - 6.0)).collect()
    }

    fn at<T: Packed>(m: Matrix<'_, T>, data: &[T], stride: usize, i: usize, j: usize) -> f32 {
        let [rows, cols] = m.shape();
        if i >= rows || j >= cols {
            return 0.0;
        }
        data[if m.is_transposed() { j * stride + i } else { i * stride + j }].to_f32()
    }

    fn available() -> impl Iterator<Item = Level> {
        Level::ALL.into_iter().filter(|level| level.is_available())
    }

    /// Both orientations of both operands, inside and across every edge, against the definition; exact.
    #[test]
    fn every_level_multiplies_what_it_packed() {
        multiplies_what_it_packed::<bf16>();
        multiplies_what_it_packed::<f32>();
    }

    fn multiplies_what_it_packed<T: Packed>() {
        for (m, n, k) in [(32, 32, 32), (40, 50, 70), (5, 3, 1), (64, 64, 64), (33, 17, 96)] {
            let stride = |cols: usize| cols + 6;
            let (a, b) =
                (integers::<T>(m.max(k) * (m.max(k) + 6), 1), integers::<T>(n.max(k) * (n.max(k) + 6), 2));
            let left = [Matrix::strided(&a, m, k, stride(k)), Matrix::strided(&a, k, m, stride(m)).t()];
            let right = [Matrix::strided(&b, k, n, stride(n)), Matrix::strided(&b, n, k, stride(k)).t()];
            let strides = [(stride(k), stride(m)), (stride(n), stride(k))];
            for level in available() {
                let unit = Unit::<T>::new(level);
                for (x, y) in left.iter().flat_map(|&x| right.iter().map(move |&y| (x, y))) {
                    let sa = if x.is_transposed() { strides[0].1 } else { strides[0].0 };
                    let sb = if y.is_transposed() { strides[1].1 } else { strides[1].0 };
                    let mut panels =
                        [vec![Line::ZERO; T::panel_lines(k)], vec![Line::ZERO; T::panel_lines(k)]];
                    let (row, firsts) = (m / 3, [n / 4, n / 2]);
                    pack_rows(level, x, row, &mut panels[0]);
                    pack_columns(level, y, firsts, &mut panels[1]);
                    let mut c = Block([[1.0; SIDE]; SIDE]);
                    for add in [false, true] {
                        unit.multiply(Rows::packed(&panels[0]), &panels[1], &mut c, add);
                    }
                    let mut other = vec![Line::ZERO; T::panel_lines(k)];
                    pack_columns(level, y, [0, n / 3], &mut other);
                    let (mut one, mut two) = (Block::ZERO, [Block([[1.0; SIDE]; SIDE]); 2]);
                    for add in [false, true] {
                        unit.multiply(Rows::packed(&panels[0]), &other, &mut one, add);
                        unit.multiply_two(Rows::packed(&panels[0]), [&other, &panels[1]], &mut two, add);
                    }
                    assert_eq!(two, [one, c], "{level:?} {m}x{n}x{k}, two together");
                    for (i, got) in c.0.iter().enumerate() {
                        for (j, got) in got.iter().enumerate() {
                            let column = firsts[j / HALF] + j % HALF;
                            let dot: f32 =
                                (0..k).map(|l| at(x, &a, sa, row + i, l) * at(y, &b, sb, l, column)).sum();
                            assert_eq!(*got, 2.0 * dot, "{level:?} {m}x{n}x{k} at {i}, {j}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_level_transposes() {
        let element = |p: usize, q: usize| (p * 100 + q) as f32;
        let line = |p| bytemuck::cast(std::array::from_fn::<f32, HALF, _>(|q| element(p, q)));
        let want = |p| bytemuck::cast(std::array::from_fn::<f32, HALF, _>(|q| element(q, p)));
        for level in available() {
            let mut lines: [Line; HALF] = std::array::from_fn(line);
            transpose(level, &mut lines);
            assert_eq!(lines, std::array::from_fn(want), "{level:?}");
        }
    }

    /// In bf16 the levels that add single products agree in bits, in fp32 those that fuse; the others within the roundings of one sum of 96 products.
    #[test]
    fn levels_agree_on_numbers_that_round() {
        agree_on_numbers_that_round::<bf16>(|level, other| level.max(other) < Level::Avx512Bf16);
        agree_on_numbers_that_round::<f32>(|level, other| level.min(other) > Level::Portable);
    }

    fn agree_on_numbers_that_round<T: Packed>(in_bits: impl Fn(Level, Level) -> bool) {
        let noise = |n: usize, seed: f32| -> Vec<T> {
            (0..n).map(|i| T::from_f32((i as f32 * 0.7 + seed).sin())).collect()
        };
        let k = 96;
        let (a, b) = (noise(SIDE * k, 1.0), noise(SIDE * k, 2.0));
        let run = |level| {
            let mut panels = [vec![Line::ZERO; T::panel_lines(k)], vec![Line::ZERO; T::panel_lines(k)]];
            pack_rows(level, Matrix::new(&a, SIDE, k), 0, &mut panels[0]);
            pack_columns(level, Matrix::new(&b, SIDE, k).t(), [0, HALF], &mut panels[1]);
            let mut c = Block::ZERO;
            Unit::<T>::new(level).multiply(Rows::packed(&panels[0]), &panels[1], &mut c, false);
            c
        };
        for (level, other) in available().flat_map(|level| available().map(move |other| (level, other))) {
            let (got, want) = (run(level), run(other));
            // 96 products below 1 in either order, each sum rounded once or, where pairs are added or products are not
            // fused, at most twice.
            let allowed =
                if level == other || in_bits(level, other) { 0.0 } else { 2.0 * 96.0 * 96.0 * f32::EPSILON };
            for (got, want) in got.0.iter().flatten().zip(want.0.iter().flatten()) {
                assert!((got - want).abs() <= allowed, "{level:?} {other:?}: {got} {want}");
            }
        }
    }
}
