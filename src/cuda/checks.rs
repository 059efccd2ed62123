//! What a launch checks of its buffers before it names them to a kernel.

use super::Rung;
use crate::arena::Tensor;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// `usize` dimension to the `int` a kernel takes.
///
/// # Errors
/// [`Error::Unsupported`] above `i32::MAX`.
pub fn dim_i32(op: &'static str, dim: &'static str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| too_large(op, dim, n))
}

/// The same for `unsigned` parameters and grid sizes, which end at `i32::MAX` too.
///
/// # Errors
/// [`Error::Unsupported`] above `i32::MAX`.
pub fn dim_u32(op: &'static str, dim: &'static str, n: usize) -> Result<u32> {
    dim_i32(op, dim, n).map(i32::unsigned_abs)
}

fn too_large(op: &'static str, dim: &'static str, n: usize) -> Error {
    Error::Unsupported { op, dim, got: n.to_string(), rule: "a dimension of at most 2147483647" }
}

/// Checks the type of a buffer's elements.
///
/// # Errors
/// [`Error::Unsupported`] naming the argument.
pub fn expect_dtype(op: &'static str, arg: &'static str, t: Tensor, want: DType) -> Result<()> {
    if t.dtype == want {
        return Ok(());
    }
    let got = format!("{:?}", t.dtype);
    Err(Error::Unsupported { op, dim: arg, got, rule: "the type that was planned for it" })
}

/// Checks that a buffer starts on a multiple of 16 bytes, as 16-byte accesses require.
///
/// # Errors
/// [`Error::Unsupported`] naming the argument.
pub fn expect_aligned(op: &'static str, arg: &'static str, t: Tensor) -> Result<()> {
    if t.offset.is_multiple_of(16) {
        return Ok(()); // the arena itself starts on a multiple of 256
    }
    Err(Error::Unsupported {
        op,
        dim: arg,
        got: format!("offset {}", t.offset),
        rule: "a multiple of 16 bytes",
    })
}

/// Checks shape, type and alignment of an operation's buffers.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Unsupported`] naming the argument.
pub fn expect<const N: usize>(
    op: &'static str,
    tensors: [(&'static str, Tensor, [usize; 2], DType); N],
) -> Result<()> {
    tensors.into_iter().try_for_each(|(arg, t, shape, dtype)| {
        t.expect(op, arg, shape)?;
        expect_dtype(op, arg, t, dtype)?;
        expect_aligned(op, arg, t)
    })
}

/// Checks that a list u32 holds `n` entries or more.
///
/// # Errors
/// As [`expect`].
pub fn expect_list(op: &'static str, arg: &'static str, list: Tensor, n: usize) -> Result<()> {
    list.expect(op, arg, [1, list.cols.max(n)])?;
    expect_dtype(op, arg, list, DType::U32)
}

/// Checks a dimension that the production kernels move in chunks of eight elements.
///
/// # Errors
/// [`Error::Unsupported`] naming the dimension.
pub fn expect_chunks(op: &'static str, rung: Rung, dim: &'static str, n: usize) -> Result<()> {
    if rung == Rung::Naive || n.is_multiple_of(8) {
        return Ok(());
    }
    Err(Error::Unsupported { op, dim, got: n.to_string(), rule: "a multiple of 8" })
}
