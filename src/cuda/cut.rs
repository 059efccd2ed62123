//! How a matrix product is cut into blocks: the tile of the result that each computes.

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

    /// Time of a block per unit of depth, in products. To them it adds what the tile's operands take to copy: an SM of
    /// an A100 does 1024 products in the time that 64 bytes come to it from the L2 cache, 32 per 16-bit element.
    fn cost(self) -> u64 {
        let (rows, columns) = (u64::from(self.rows), u64::from(self.columns));
        rows * columns + 32 * (rows + columns)
    }

    /// The fastest for a result of `rows` × `columns`.
    ///
    /// Blocks on one multiprocessor share its tensor cores, so its time is that of its blocks together, and the whole
    /// takes as long as the multiprocessor with the most of them: ⌈blocks / multiprocessors⌉ times a block's. Small
    /// tiles have fewer idle multiprocessors and less of them beyond the edges, and copy more.
    pub fn best(tiles: impl Iterator<Item = Self>, rows: u32, columns: u32, multiprocessors: u32) -> Self {
        let time = |tile: &Self| {
            let (x, y) = tile.grid(rows, columns);
            (u64::from(x) * u64::from(y)).div_ceil(u64::from(multiprocessors)) * tile.cost()
        };
        tiles.min_by_key(time).unwrap_or(Self::LARGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const L: Tile = Tile::ALL[0];
    const M: Tile = Tile::ALL[1];
    const S: Tile = Tile::ALL[2];

    fn best(rows: u32, columns: u32, multiprocessors: u32) -> Tile {
        Tile::best(Tile::ALL.into_iter(), rows, columns, multiprocessors)
    }

    /// Outputs of the products of the three SmolLM2 by the tokens of a micro-batch, on 40 (T4), 128 (RTX 4090) and 132
    /// (H100) multiprocessors.
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
            assert_eq!(
                [40, 128, 132].map(|n| best(tokens, columns, n)),
                want,
                "{columns} of {tokens} tokens"
            );
        }
    }

    #[test]
    fn only_a_tile_that_is_there_is_chosen() {
        assert_eq!(Tile::best([L].into_iter(), 64, 64, 132), L);
        assert_eq!(Tile::best([L, M].into_iter(), 64, 64, 132), M);
        assert_eq!(Tile::best([].into_iter(), 64, 64, 132), L, "f32 has none");
    }

    #[test]
    fn any_size_has_one() {
        for (rows, columns, multiprocessors) in
            [(0, 0, 1), (1, 8, 132), (i32::MAX as u32, i32::MAX as u32, 1)]
        {
            assert!(Tile::ALL.contains(&best(rows, columns, multiprocessors)));
        }
    }
}
