//! Matrices out of fragments and back.

use super::{Element, Float, M, N, Row};

/// The operands' bits: `a[k][row]`, `b[n][k]`, `c[n][row]`. What a form has not is zero.
pub struct Tile {
    pub a: [[u32; M]; 16],
    pub b: [[u32; 16]; N],
    pub c: [[u32; M]; N],
}

/// The result's bits, `[n][row]`.
pub struct Output(pub [[u32; M]; N]);

fn low_half(word: u32, upper: bool) -> u32 {
    if upper { word >> 16 } else { word & 0xffff }
}

impl Tile {
    /// Lane 4g + t of a step's registers of A has rows g and g + 8, of B column g; element t of k, or the two
    /// from 2t.
    pub fn load(mma: &Float, a: &[&Row], b: &[&Row], c: &[&Row]) -> Self {
        let mut tile = Tile { a: [[0; M]; 16], b: [[0; 16]; N], c: [[0; M]; N] };
        let packed = mma.element != Element::Tf32;
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            for step in 0..mma.steps {
                let first = step * mma.step_k();
                for upper in 0..2 {
                    let row = g + 8 * upper;
                    let word = a[2 * step + upper][lane];
                    if packed {
                        tile.a[first + 2 * t][row] = low_half(word, false);
                        tile.a[first + 2 * t + 1][row] = low_half(word, true);
                    } else {
                        tile.a[first + t][row] = word;
                    }
                }
                let word = b[step][lane];
                if packed {
                    tile.b[g][first + 2 * t] = low_half(word, false);
                    tile.b[g][first + 2 * t + 1] = low_half(word, true);
                } else {
                    tile.b[g][first + t] = word;
                }
            }
            for upper in 0..2 {
                for odd in 0..2 {
                    tile.c[2 * t + odd][g + 8 * upper] =
                        if mma.half { low_half(c[upper][lane], odd == 1) } else { c[2 * upper + odd][lane] };
                }
            }
        }
        tile
    }
}

impl Output {
    /// Lane 4g + t has columns 2t and 2t + 1 of rows g and g + 8.
    pub fn store(&self, mma: &Float, d: &mut [Row]) {
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            for upper in 0..2 {
                let [even, odd] = [0, 1].map(|odd| self.0[2 * t + odd][g + 8 * upper]);
                if mma.half {
                    d[upper][lane] = even | odd << 16;
                } else {
                    d[2 * upper][lane] = even;
                    d[2 * upper + 1][lane] = odd;
                }
            }
        }
    }
}
