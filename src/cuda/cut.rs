//! How a matrix product is cut into blocks: the tile of the result that each computes, and the parts that the sums over
//! the rows of a weight gradient are split into.

/// Rows and columns of the result per block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Rows.
    pub rows: u32,
    /// Columns.
    pub columns: u32,
}

impl Tile {
    /// The largest, which every product has.
    pub const LARGEST: Self = Self { rows: 128, columns: 128 };

    /// Largest first, so that of equals the one that copies least is chosen.
    pub const ALL: [Self; 3] =
        [Self::LARGEST, Self { rows: 128, columns: 64 }, Self { rows: 64, columns: 64 }];

    /// Blocks along the columns and along the rows of a result.
    pub fn grid(self, rows: u32, columns: u32) -> (u32, u32) {
        (columns.div_ceil(self.columns), rows.div_ceil(self.rows))
    }

    /// Time of a block per unit of depth; see [`Cut::best`].
    fn cost(self) -> u128 {
        let (rows, columns) = (u128::from(self.rows), u128::from(self.columns));
        rows * columns + COPY * (rows + columns)
    }
}

/// Products that a multiprocessor does in the time that an element of 16 bits takes to come from the L2 cache: an A100's
/// does 1024 per clock, and gets 64 bytes.
const COPY: u128 = 32;

/// The same for a launch of 2 µs.
const LAUNCH: u128 = 3 << 20;

/// Depth of a step of the kernels, which parts are a whole number of.
const STEP: u32 = 32;

/// A product that is to be cut.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Of the result.
    pub rows: u32,
    /// Of the result.
    pub columns: u32,
    /// Terms of each sum.
    pub depth: u32,
    /// Parts that the sums may be split into, at least 1.
    pub most_splits: u32,
}

/// How a product is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Of the result, per block.
    pub tile: Tile,
    /// Parts of the sums, 1 if they are not split.
    pub splits: u32,
}

impl Cut {
    /// The fastest, by planned sizes and the GPU alone: so a step's results do not depend on how many tokens the one
    /// before it had.
    ///
    /// Blocks on one multiprocessor share its tensor cores, so its time is that of its blocks together, and the whole
    /// takes as long as the multiprocessor with the most of them: ⌈blocks / multiprocessors⌉ times a block's. In units
    /// of one product that is, per unit of depth, rows × columns of the tile and 32 for each element of its operands
    /// that is copied. Small tiles and splits leave fewer multiprocessors idle, small tiles less beyond the edges; they
    /// copy more, and splits write and read 4 bytes of each partial sum, and launch once more.
    pub fn best(tiles: impl Iterator<Item = Tile>, of: Extent, multiprocessors: u32) -> Self {
        let splits = 1..=of.most_splits.min(of.depth.div_ceil(STEP)).max(1);
        tiles
            .flat_map(|tile| splits.clone().map(move |splits| Self { tile, splits }))
            .min_by_key(|cut| cut.time(of, u128::from(multiprocessors)))
            .unwrap_or(Self { tile: Tile::LARGEST, splits: 1 })
    }

    fn time(self, of: Extent, multiprocessors: u128) -> u128 {
        let (x, y) = self.tile.grid(of.rows, of.columns);
        let blocks = u128::from(x) * u128::from(y) * u128::from(self.splits);
        let depth = of.depth.div_ceil(STEP).div_ceil(self.splits) * STEP;
        let products = blocks.div_ceil(multiprocessors) * self.tile.cost() * u128::from(depth);
        if self.splits == 1 {
            return products;
        }
        let sums = u128::from(of.rows) * u128::from(of.columns) * u128::from(self.splits);
        products + (4 * COPY * sums).div_ceil(multiprocessors) + LAUNCH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const L: Tile = Tile::ALL[0];
    const M: Tile = Tile::ALL[1];
    const S: Tile = Tile::ALL[2];
    const GPUS: [u32; 3] = [40, 128, 132]; // T4, RTX 4090, H100

    fn best(rows: u32, columns: u32, depth: u32, most_splits: u32, multiprocessors: u32) -> Cut {
        let of = Extent { rows, columns, depth, most_splits };
        Cut::best(Tile::ALL.into_iter(), of, multiprocessors)
    }

    /// Outputs of SmolLM2's products by the tokens of a micro-batch.
    #[test]
    fn tiles_of_smollm2() {
        for (columns, tokens, want) in [
            (576, 256, [S, S, S]),
            (576, 1024, [L, M, M]), // 40 of 128×128, 72 of 128×64, 144 of 64×64
            (576, 4096, [L, S, S]),
            (576, 16384, [L, L, L]),
            (960, 512, [L, S, S]),
            (960, 1024, [M, M, M]),
            (960, 8192, [L, L, L]),
            (1536, 256, [L, S, S]),
            (1536, 2048, [L, M, M]),
            (2560, 512, [L, L, L]),
            (2560, 1024, [L, S, S]),
            (3072, 512, [M, L, L]),
            (5120, 512, [L, S, S]),
            (49152, 1024, [L, L, L]),
        ] {
            let got = GPUS.map(|n| best(tokens, columns, tokens, 1, n));
            assert_eq!(got.map(|cut| cut.tile), want, "{columns} of {tokens} tokens");
        }
    }

    /// Weight gradients of SmolLM2-135M and 360M: o, qkv, down; by tokens.
    #[test]
    fn splits_of_smollm2() {
        for (rows, columns, tokens, want) in [
            (576, 576, 512, [(L, 1), (S, 1), (S, 1)]),
            (576, 576, 2048, [(L, 3), (L, 5), (L, 5)]), // 25 tiles
            (576, 576, 16384, [(L, 8), (L, 5), (L, 5)]),
            (960, 576, 512, [(L, 1), (M, 1), (M, 1)]),
            (960, 576, 16384, [(L, 1), (L, 3), (L, 3)]), // 40 tiles
            (576, 1536, 16384, [(L, 2), (L, 2), (L, 2)]),
            (960, 960, 16384, [(L, 3), (L, 2), (L, 2)]),
            (1600, 960, 16384, [(M, 1), (L, 1), (M, 2)]),
            (960, 2560, 16384, [(L, 1), (S, 1), (S, 1)]),
            (3072, 576, 16384, [(L, 1), (L, 1), (L, 1)]), // 120 tiles
        ] {
            let most_splits = (16 << 20) / (4 * rows * columns);
            let got = GPUS.map(|n| best(rows, columns, tokens, most_splits, n));
            assert_eq!(got.map(|cut| (cut.tile, cut.splits)), want, "{rows} x {columns}, {tokens} tokens");
        }
    }

    #[test]
    fn what_is_there_is_chosen() {
        let best = |tiles: &[Tile], most_splits| {
            let of = Extent { rows: 64, columns: 64, depth: 1 << 20, most_splits };
            Cut::best(tiles.iter().copied(), of, 132)
        };
        assert_eq!(best(&[L], 1), Cut { tile: L, splits: 1 });
        assert_eq!(best(&[L, M], 1), Cut { tile: M, splits: 1 });
        assert_eq!(best(&[L, M], 7), Cut { tile: M, splits: 7 });
        assert_eq!(best(&[], 1), Cut { tile: L, splits: 1 }, "f32 has none");
    }

    #[test]
    fn any_size_has_one() {
        let most = i32::MAX.unsigned_abs();
        for (rows, columns, depth) in [(0, 0, 0), (1, 8, 0), (most, most, most)] {
            let cut = best(rows, columns, depth, 3, 1);
            assert!(Tile::ALL.contains(&cut.tile) && (1..=3).contains(&cut.splits));
        }
    }
}
