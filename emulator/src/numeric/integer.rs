//! Integers: what Rust's operators do not say directly.

/// `bfe.u32`: `len` bits of a from bit `pos` (both modulo 256), zero-extended.
#[inline(always)]
pub fn bfe_u32(a: u32, pos: u32, len: u32) -> u32 {
    bfe_u64(u64::from(a), pos, len) as u32
}

/// `bfe.s32`: sign-extended by the field's highest bit, or a's if the field goes beyond it.
#[inline(always)]
pub fn bfe_s32(a: u32, pos: u32, len: u32) -> u32 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let wide = i64::from(a as i32) >> pos.min(63);
    sign_extended(wide, len) as u32
}

/// `bfe.u64`.
#[inline(always)]
pub fn bfe_u64(a: u64, pos: u32, len: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let field = if pos < 64 { a >> pos } else { 0 };
    if len < 64 { field & ((1 << len) - 1) } else { field }
}

/// `bfe.s64`.
#[inline(always)]
pub fn bfe_s64(a: u64, pos: u32, len: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    sign_extended(a as i64 >> pos.min(63), len) as u64
}

/// The low `len` bits with the sign of the highest of them.
#[inline(always)]
fn sign_extended(field: i64, len: u32) -> i64 {
    match len {
        0 => 0,
        64.. => field,
        _ => field << (64 - len) >> (64 - len),
    }
}

/// `bfi.b32`: b with its `len` bits from `pos` replaced by the low ones of a.
#[inline(always)]
pub fn bfi_b32(a: u32, b: u32, pos: u32, len: u32) -> u32 {
    bfi_b64(u64::from(a), u64::from(b), pos, len) as u32
}

/// `bfi.b64`.
#[inline(always)]
pub fn bfi_b64(a: u64, b: u64, pos: u32, len: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if pos >= 64 {
        return b;
    }
    let mask = (if len < 64 { (1 << len) - 1 } else { u64::MAX }) << pos;
    (b & !mask) | (a << pos & mask)
}

/// `bfind.u64` of a zero-extended value: the highest set bit, or all ones.
#[inline(always)]
pub fn bfind_unsigned(a: u64) -> u32 {
    63u32.wrapping_sub(a.leading_zeros())
}

/// `bfind.s64` of a sign-extended value: the highest bit unlike the sign, or all ones.
#[inline(always)]
pub fn bfind_signed(a: i64) -> u32 {
    bfind_unsigned((a ^ (a >> 63)) as u64)
}

/// `bfind.shiftamt` of a type of `width` bits, from the result without it.
#[inline(always)]
pub fn shift_amount(bit: u32, width: u32) -> u32 {
    if bit == u32::MAX { bit } else { width - 1 - bit }
}

/// What `prmt` selects by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum Permute {
    Default,
    F4e,
    B4e,
    Rc8,
    Ecl,
    Ecr,
    Rc16,
}

impl Permute {
    /// By its word.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "f4e" => Permute::F4e,
            "b4e" => Permute::B4e,
            "rc8" => Permute::Rc8,
            "ecl" => Permute::Ecl,
            "ecr" => Permute::Ecr,
            "rc16" => Permute::Rc16,
            _ => return None,
        })
    }

    /// The selectors of the four bytes, lowest byte first in the lowest four bits.
    fn selectors(self, selector: u32) -> u32 {
        let nibbles = |a: [u32; 4]| a[0] | a[1] << 4 | a[2] << 8 | a[3] << 12;
        let i = selector & 3;
        match self {
            Permute::Default => selector,
            Permute::F4e => nibbles([i, i + 1, i + 2, i + 3]),
            Permute::B4e => nibbles([i, i.wrapping_sub(1) & 7, i.wrapping_sub(2) & 7, i.wrapping_sub(3) & 7]),
            Permute::Rc8 => nibbles([i; 4]),
            Permute::Ecl => nibbles([i, i.max(1), i.max(2), 3]),
            Permute::Ecr => nibbles([0, i.min(1), i.min(2), i]),
            Permute::Rc16 => nibbles([2 * (i & 1), 2 * (i & 1) + 1, 2 * (i & 1), 2 * (i & 1) + 1]),
        }
    }
}

/// `prmt.b32`: four bytes picked from b and a, each perhaps replaced by copies of its sign.
#[inline]
pub fn prmt(a: u32, b: u32, selector: u32, mode: Permute) -> u32 {
    let bytes = (u64::from(b) << 32) | u64::from(a);
    let selectors = mode.selectors(selector);
    (0..4).fold(0, |d, i| {
        let s = selectors >> (4 * i);
        let byte = (bytes >> (8 * (s & 7))) as u32 & 0xff;
        let byte = if s & 8 == 0 { byte } else { (byte >> 7) * 0xff };
        d | byte << (8 * i)
    })
}

fn s24(a: u32) -> i64 {
    i64::from((a << 8) as i32 >> 8)
}

/// `mul24.lo.s32`, and of the low 32 bits `mul24.lo.u32`.
#[inline(always)]
pub fn mul24_lo_s32(a: u32, b: u32) -> u32 {
    (s24(a) * s24(b)) as u32
}

/// `mul24.hi.s32`: bits 16 to 47 of the product.
#[inline(always)]
pub fn mul24_hi_s32(a: u32, b: u32) -> u32 {
    ((s24(a) * s24(b)) >> 16) as u32
}

/// `mul24.lo.u32`.
#[inline(always)]
pub fn mul24_lo_u32(a: u32, b: u32) -> u32 {
    (u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff)) as u32
}

/// `mul24.hi.u32`.
#[inline(always)]
pub fn mul24_hi_u32(a: u32, b: u32) -> u32 {
    ((u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff)) >> 16) as u32
}

/// `mul.hi.u32`.
#[inline(always)]
pub fn mul_hi_u32(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

/// `mul.hi.s32`.
#[inline(always)]
pub fn mul_hi_s32(a: u32, b: u32) -> u32 {
    ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
}

/// `mul.hi.u64`.
#[inline(always)]
pub fn mul_hi_u64(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

/// `mul.hi.s64`.
#[inline(always)]
pub fn mul_hi_s64(a: u64, b: u64) -> u64 {
    ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
}

/// `sad.u32`: `c + |a - b|`.
#[inline(always)]
pub fn sad_u32(a: u32, b: u32, c: u32) -> u32 {
    c.wrapping_add(a.abs_diff(b))
}

/// `sad.s32`.
#[inline(always)]
pub fn sad_s32(a: u32, b: u32, c: u32) -> u32 {
    c.wrapping_add((a as i32).abs_diff(b as i32))
}

/// Part `i` of `bits` bits, extended.
#[inline(always)]
fn part(a: u32, i: u32, bits: u32, signed: bool) -> u32 {
    let top = a << (32 - bits * (i + 1));
    if signed { (top as i32 >> (32 - bits)) as u32 } else { top >> (32 - bits) }
}

/// `dp4a`: c plus the dot product of four bytes each.
#[inline(always)]
pub fn dp4a(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    (0..4).fold(c, |sum, i| sum.wrapping_add(part(a, i, 8, a_signed).wrapping_mul(part(b, i, 8, b_signed))))
}

/// `dp2a`: c plus the dot product of a's two halves with the lower (or upper) two bytes of b.
#[inline(always)]
pub fn dp2a(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool, upper: bool) -> u32 {
    let first = if upper { 2 } else { 0 };
    (0..2).fold(c, |sum, i| {
        sum.wrapping_add(part(a, i, 16, a_signed).wrapping_mul(part(b, first + i, 8, b_signed)))
    })
}

/// `shf.l`: the upper half of `b:a << c`; c modulo 32, or with `clamp` at most 32.
#[inline(always)]
pub fn shf_l(a: u32, b: u32, c: u32, clamp: bool) -> u32 {
    let by = if clamp { c.min(32) } else { c & 31 };
    (((u64::from(b) << 32 | u64::from(a)) << by) >> 32) as u32
}

/// `shf.r`: the lower half of `b:a >> c`.
#[inline(always)]
pub fn shf_r(a: u32, b: u32, c: u32, clamp: bool) -> u32 {
    let by = if clamp { c.min(32) } else { c & 31 };
    ((u64::from(b) << 32 | u64::from(a)) >> by) as u32
}

/// `lop3.b32`: bit `4a + 2b + c` of the table, in each bit.
#[inline(always)]
pub fn lop3(a: u32, b: u32, c: u32, table: u32) -> u32 {
    (0..8).fold(0, |d, i: u32| {
        let pick = |x: u32, bit: u32| if i & bit != 0 { x } else { !x };
        let on = 0u32.wrapping_sub(table >> i & 1);
        d | pick(a, 4) & pick(b, 2) & pick(c, 1) & on
    })
}

/// `div.u64`; by zero all ones, as the hardware's sequences give.
#[inline(always)]
pub fn div_u64(a: u64, b: u64) -> u64 {
    a.checked_div(b).unwrap_or(u64::MAX)
}

/// `rem.u64`; by zero the dividend.
#[inline(always)]
pub fn rem_u64(a: u64, b: u64) -> u64 {
    a.checked_rem(b).unwrap_or(a)
}

/// `div.u32`.
#[inline(always)]
pub fn div_u32(a: u32, b: u32) -> u32 {
    a.checked_div(b).unwrap_or(u32::MAX)
}

/// `rem.u32`.
#[inline(always)]
pub fn rem_u32(a: u32, b: u32) -> u32 {
    a.checked_rem(b).unwrap_or(a)
}

/// `div.s64` (`div.s32` and `div.s16` of sign-extended values, cut); by zero all ones.
#[inline(always)]
pub fn div_s64(a: i64, b: i64) -> i64 {
    if b == 0 { -1 } else { a.wrapping_div(b) }
}

/// `rem.s64` (and of sign-extended values); by zero the dividend.
#[inline(always)]
pub fn rem_s64(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { a.wrapping_rem(b) }
}
