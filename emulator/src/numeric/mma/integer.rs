//! Products of bytes, summed in 32 bits.

use super::Row;

/// A form of `mma.sync.aligned.m16n8k*.row.col{.satfinite}.s32` with operands of s8 or u8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Integer {
    /// Of 16 elements of k.
    pub(super) steps: usize,
    a_signed: bool,
    b_signed: bool,
    /// A sum out of range is the nearest in range; else it wraps.
    saturate: bool,
}

fn is_signed(ty: &str) -> Option<bool> {
    match ty {
        "s8" => Some(true),
        "u8" => Some(false),
        _ => None,
    }
}

impl Integer {
    /// By the words after `mma`, from `sync`.
    pub(super) fn parse(modifiers: &[&str]) -> Option<Self> {
        let ["sync", "aligned", shape, "row", "col", types @ ..] = modifiers else {
            return None;
        };
        let (saturate, a, b) = match types {
            ["s32", a, b, "s32"] => (false, a, b),
            ["satfinite", "s32", a, b, "s32"] => (true, a, b),
            _ => return None,
        };
        let steps = match *shape {
            "m16n8k16" => 1,
            "m16n8k32" => 2,
            _ => return None,
        };
        Some(Self { steps, a_signed: is_signed(a)?, b_signed: is_signed(b)?, saturate })
    }

    /// Lane 4g + t has elements 4t to 4t + 3 of a step's k: of rows g and g + 8 of A, and of column g of B. Of C and D
    /// it has columns 2t and 2t + 1 of these rows.
    pub(super) fn run(&self, d: &mut [Row], a: &[&Row], b: &[&Row], c: &[&Row]) {
        let [a, b] = [(a, self.a_signed), (b, self.b_signed)].map(|(rows, signed)| elements(rows, signed));
        for (i, d) in d.iter_mut().enumerate() {
            let (upper, odd) = (i / 2, i % 2);
            for (lane, d) in d.iter_mut().enumerate() {
                let (group, column) = (lane / 4, 2 * (lane % 4) + odd);
                let mut sum = i64::from(c[i][lane] as i32);
                for step in 0..self.steps {
                    let (row, column) = (&a[2 * step + upper][group], &b[step][column]);
                    sum += i64::from(row.iter().zip(column).map(|(x, y)| x * y).sum::<i32>());
                }
                let in_range = sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
                *d = if self.saturate { in_range } else { sum } as u32;
            }
        }
    }
}

/// Of each register, the 16 bytes of four lanes together.
fn elements(rows: &[&Row], signed: bool) -> [[[i32; 16]; 8]; 4] {
    let mut all = [[[0; 16]; 8]; 4];
    for (row, all) in rows.iter().zip(&mut all) {
        for (lane, word) in row.iter().enumerate() {
            for (i, byte) in word.to_le_bytes().into_iter().enumerate() {
                let value = if signed { i32::from(byte.cast_signed()) } else { i32::from(byte) };
                all[lane / 4][4 * (lane % 4) + i] = value;
            }
        }
    }
    all
}
