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

/// Width and signedness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int {
    /// 16, 32 or 64.
    pub bits: u32,
    /// `.s16` and the like.
    pub signed: bool,
}

/// Integer operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum IntOp {
    Add,
    AddSat,
    Sub,
    SubSat,
    MulLo,
    MulHi,
    MulWide,
    MadLo,
    MadHi,
    MadHiSat,
    MadWide,
    Sad,
    Div,
    Rem,
    Abs,
    Neg,
    Min,
    Max,
    And,
    Or,
    Xor,
    Not,
    Cnot,
    Shl,
    Shr,
    Popc,
    Clz,
    Bfind,
    BfindShift,
    Brev,
    Bfe,
    Bfi,
    Szext { clamp: bool },
    Bmsk { clamp: bool },
}

impl Int {
    fn mask(self) -> u64 {
        if self.bits == 64 { u64::MAX } else { (1 << self.bits) - 1 }
    }

    /// Value of the low bits.
    fn value(self, a: u64) -> i128 {
        if self.signed {
            i128::from((a << (64 - self.bits)) as i64 >> (64 - self.bits))
        } else {
            i128::from(a & self.mask())
        }
    }

    fn clamp(self, value: i128) -> u64 {
        let most = if self.signed { (1i128 << (self.bits - 1)) - 1 } else { (1i128 << self.bits) - 1 };
        let least = if self.signed { -1 - most } else { 0 };
        value.clamp(least, most) as u64
    }
}

impl IntOp {
    /// The result; bits above its type's are zero. Sources are in the low bits, above them may be anything.
    pub fn apply(self, int: Int, a: u64, b: u64, c: u64) -> u64 {
        let (x, y, z) = (int.value(a), int.value(b), int.value(c));
        let wide = Int { bits: (2 * int.bits).min(64), signed: int.signed };
        let result = match self {
            Self::Add => a.wrapping_add(b),
            Self::AddSat => int.clamp(x + y),
            Self::Sub => a.wrapping_sub(b),
            Self::SubSat => int.clamp(x - y),
            Self::MulLo => a.wrapping_mul(b),
            Self::MulHi => (x.wrapping_mul(y) >> int.bits) as u64,
            Self::MulWide => return x.wrapping_mul(y) as u64 & wide.mask(),
            Self::MadLo => a.wrapping_mul(b).wrapping_add(c),
            Self::MadHi => ((x.wrapping_mul(y) >> int.bits) as u64).wrapping_add(c),
            Self::MadHiSat => int.clamp((x.wrapping_mul(y) >> int.bits) + z),
            Self::MadWide => return (x.wrapping_mul(y) as u64).wrapping_add(c) & wide.mask(),
            Self::Sad => (z + (x - y).abs()) as u64,
            Self::Div => return divide(int, a, b, false),
            Self::Rem => return divide(int, a, b, true),
            Self::Abs => x.unsigned_abs() as u64,
            Self::Neg => x.wrapping_neg() as u64,
            Self::Min => x.min(y) as u64,
            Self::Max => x.max(y) as u64,
            Self::And => a & b,
            Self::Or => a | b,
            Self::Xor => a ^ b,
            Self::Not => !a,
            Self::Cnot => u64::from(a & int.mask() == 0),
            Self::Shl => a.checked_shl(b as u32).filter(|_| b < u64::from(int.bits)).unwrap_or(0),
            Self::Shr => (x >> b.min(u64::from(int.bits))) as u64,
            Self::Popc => u64::from((a & int.mask()).count_ones()),
            Self::Clz => u64::from((a & int.mask()).leading_zeros()) - u64::from(64 - int.bits),
            Self::Bfind => return u64::from(bfind(int, a)),
            Self::BfindShift => return u64::from(shift_amount(bfind(int, a), int.bits)),
            Self::Brev => (a & int.mask()).reverse_bits() >> (64 - int.bits),
            Self::Bfe => match (int.bits, int.signed) {
                (64, false) => bfe_u64(a, b as u32, c as u32),
                (64, true) => bfe_s64(a, b as u32, c as u32),
                (_, false) => u64::from(bfe_u32(a as u32, b as u32, c as u32)),
                (_, true) => u64::from(bfe_s32(a as u32, b as u32, c as u32)),
            },
            // The position and the length come packed: the fourth source does not fit.
            Self::Bfi if int.bits == 64 => bfi_b64(a, b, c as u32, (c >> 32) as u32),
            Self::Bfi => u64::from(bfi_b32(a as u32, b as u32, c as u32, (c >> 32) as u32)),
            Self::Szext { clamp } => szext(int, a, b as u32, clamp),
            Self::Bmsk { clamp } => bmsk(a as u32, b as u32, clamp),
        };
        result & int.mask()
    }
}

/// By zero the quotient is all ones and the remainder the dividend, as the hardware's sequences give.
fn divide(int: Int, a: u64, b: u64, remainder: bool) -> u64 {
    let (x, y) = (int.value(a), int.value(b));
    let result = match (y, remainder) {
        (0, false) => u64::MAX,
        (0, true) => a,
        (_, false) => (x / y) as u64,
        (_, true) => (x % y) as u64,
    };
    result & int.mask()
}

fn bfind(int: Int, a: u64) -> u32 {
    let value = int.value(a);
    if int.signed { bfind_signed(value as i64) } else { bfind_unsigned(value as u64) }
}

/// Sign- or zero-extension of the low n bits of a.
fn szext(int: Int, a: u64, n: u32, clamp: bool) -> u64 {
    let n = if clamp { n.min(32) } else { n & 31 };
    match (n, int.signed) {
        (0, _) => 0,
        (32, _) => a,
        (_, false) => a & ((1 << n) - 1),
        (_, true) => ((a << (64 - n)) as i64 >> (64 - n)) as u64,
    }
}

/// b ones from bit a on.
fn bmsk(a: u32, b: u32, clamp: bool) -> u64 {
    let (from, n) = if clamp { (a.min(32), b.min(32)) } else { (a & 31, b & 31) };
    let ones = if n == 32 { u64::from(u32::MAX) } else { (1 << n) - 1 };
    (ones << from) & u64::from(u32::MAX)
}
