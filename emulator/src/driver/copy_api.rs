//! Copies and memsets, as C sees them.

use super::abi::In;
use super::copy::End::{Device, Host, Unified};
use super::copy::{End, Fill, Rows, Transfer};
use super::errors::{Error, Result};
use super::exports;
use super::graph::Op;
use super::state::driver;

/// Copies before it returns.
fn copy(transfer: &Transfer) -> Result<()> {
    let driver = driver()?;
    driver.blocking_call()?;
    transfer.check(driver)?;
    transfer.run(driver)
}

/// Copies in the order of a stream.
fn copy_async(transfer: Transfer, stream: u64) -> Result<()> {
    driver()?.submit(stream, Op::Transfer(transfer))
}

/// `count` units of memory.
fn linear(address: u64, value: u32, unit: usize, count: usize) -> Result<Fill> {
    let width = (count as u64).checked_mul(unit as u64).ok_or(Error::INVALID_VALUE)?;
    Ok(Fill { address, value, unit, rows: Rows { width, height: 1 }, pitch: width })
}

/// `height` rows of `width` units, `pitch` bytes from one to the next.
fn rows(address: u64, pitch: usize, value: u32, unit: usize, width: usize, height: usize) -> Result<Fill> {
    let fill = linear(address, value, unit, width)?;
    Ok(Fill { pitch: pitch as u64, rows: Rows { height: height as u64, ..fill.rows }, ..fill })
}

fn fill(fill: Result<Fill>) -> Result<()> {
    let driver = driver()?;
    driver.blocking_call()?;
    let fill = fill?;
    fill.check(driver)?;
    fill.run(driver)
}

fn fill_async(fill: Result<Fill>, stream: u64) -> Result<()> {
    driver()?.submit(stream, Op::Fill(fill?))
}

/// `CUDA_MEMCPY2D`: one side of it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Side {
    x_bytes: u64,
    y: u64,
    memory_type: u32,
    host: u64,
    device: u64,
    array: u64,
    pitch: u64,
}

/// `CUDA_MEMCPY2D`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Copy2D {
    from: Side,
    to: Side,
    width: u64,
    height: u64,
}

impl Side {
    /// Where it starts, and its pitch; 0 means that rows follow each other.
    fn end(&self, width: u64) -> Result<(End, u64)> {
        let pitch = if self.pitch == 0 { width } else { self.pitch };
        let skip = self.y.checked_mul(pitch).and_then(|skip| skip.checked_add(self.x_bytes));
        let at = |base: u64| skip.and_then(|skip| base.checked_add(skip)).ok_or(Error::INVALID_VALUE);
        match self.memory_type {
            1 => Ok((Host(at(self.host)?), pitch)),
            2 => Ok((Device(at(self.device)?), pitch)),
            3 => Err(Error::NOT_SUPPORTED), // arrays
            4 => Ok((Unified(at(self.device)?), pitch)),
            _ => Err(Error::INVALID_VALUE),
        }
    }
}

fn rectangle(params: In<Copy2D>) -> Result<Transfer> {
    let Copy2D { from, to, width, height } = params.get()?;
    let ((from, from_pitch), (to, to_pitch)) = (from.end(width)?, to.end(width)?);
    Ok(Transfer { to, from, rows: Rows { width, height }, to_pitch, from_pitch })
}

/// Copies between contexts: there is one device, so only the contexts are checked.
fn peer(to: u64, to_context: u64, from: u64, from_context: u64, bytes: usize) -> Result<Transfer> {
    let driver = driver()?;
    for context in [to_context, from_context] {
        driver.contexts.find(context).ok_or(Error::INVALID_CONTEXT)?;
    }
    Ok(Transfer::linear(Device(to), Device(from), bytes))
}

exports! {
    3020 fn [cuMemcpyHtoD_v2 cuMemcpyHtoD_v2_ptds](to: u64, from: u64, bytes: usize) {
        copy(&Transfer::linear(Device(to), Host(from), bytes))
    }
    3020 fn [cuMemcpyDtoH_v2 cuMemcpyDtoH_v2_ptds](to: u64, from: u64, bytes: usize) {
        copy(&Transfer::linear(Host(to), Device(from), bytes))
    }
    3020 fn [cuMemcpyDtoD_v2 cuMemcpyDtoD_v2_ptds](to: u64, from: u64, bytes: usize) {
        copy(&Transfer::linear(Device(to), Device(from), bytes))
    }
    4000 fn [cuMemcpy cuMemcpy_ptds](to: u64, from: u64, bytes: usize) {
        copy(&Transfer::linear(Unified(to), Unified(from), bytes))
    }
    3020 fn [cuMemcpyHtoDAsync_v2 cuMemcpyHtoDAsync_v2_ptsz](to: u64, from: u64, bytes: usize, stream: u64) {
        copy_async(Transfer::linear(Device(to), Host(from), bytes), stream)
    }
    3020 fn [cuMemcpyDtoHAsync_v2 cuMemcpyDtoHAsync_v2_ptsz](to: u64, from: u64, bytes: usize, stream: u64) {
        copy_async(Transfer::linear(Host(to), Device(from), bytes), stream)
    }
    3020 fn [cuMemcpyDtoDAsync_v2 cuMemcpyDtoDAsync_v2_ptsz](to: u64, from: u64, bytes: usize, stream: u64) {
        copy_async(Transfer::linear(Device(to), Device(from), bytes), stream)
    }
    4000 fn [cuMemcpyAsync cuMemcpyAsync_ptsz](to: u64, from: u64, bytes: usize, stream: u64) {
        copy_async(Transfer::linear(Unified(to), Unified(from), bytes), stream)
    }
    4000 fn [cuMemcpyPeer cuMemcpyPeer_ptds](
        to: u64, to_context: u64, from: u64, from_context: u64, bytes: usize
    ) {
        copy(&peer(to, to_context, from, from_context, bytes)?)
    }
    4000 fn [cuMemcpyPeerAsync cuMemcpyPeerAsync_ptsz](
        to: u64, to_context: u64, from: u64, from_context: u64, bytes: usize, stream: u64
    ) {
        copy_async(peer(to, to_context, from, from_context, bytes)?, stream)
    }
    3020 fn [cuMemcpy2D_v2 cuMemcpy2D_v2_ptds](params: In<Copy2D>) {
        driver()?;
        copy(&rectangle(params)?)
    }
    3020 fn [cuMemcpy2DUnaligned_v2 cuMemcpy2DUnaligned_v2_ptds](params: In<Copy2D>) {
        driver()?;
        copy(&rectangle(params)?)
    }
    3020 fn [cuMemcpy2DAsync_v2 cuMemcpy2DAsync_v2_ptsz](params: In<Copy2D>, stream: u64) {
        driver()?;
        copy_async(rectangle(params)?, stream)
    }
    3020 fn [cuMemsetD8_v2 cuMemsetD8_v2_ptds](address: u64, value: u8, count: usize) {
        fill(linear(address, value.into(), 1, count))
    }
    3020 fn [cuMemsetD16_v2 cuMemsetD16_v2_ptds](address: u64, value: u16, count: usize) {
        fill(linear(address, value.into(), 2, count))
    }
    3020 fn [cuMemsetD32_v2 cuMemsetD32_v2_ptds](address: u64, value: u32, count: usize) {
        fill(linear(address, value, 4, count))
    }
    3020 fn [cuMemsetD8Async cuMemsetD8Async_ptsz](address: u64, value: u8, count: usize, stream: u64) {
        fill_async(linear(address, value.into(), 1, count), stream)
    }
    3020 fn [cuMemsetD16Async cuMemsetD16Async_ptsz](address: u64, value: u16, count: usize, stream: u64) {
        fill_async(linear(address, value.into(), 2, count), stream)
    }
    3020 fn [cuMemsetD32Async cuMemsetD32Async_ptsz](address: u64, value: u32, count: usize, stream: u64) {
        fill_async(linear(address, value, 4, count), stream)
    }
    3020 fn [cuMemsetD2D8_v2 cuMemsetD2D8_v2_ptds](
        address: u64, pitch: usize, value: u8, width: usize, height: usize
    ) {
        fill(rows(address, pitch, value.into(), 1, width, height))
    }
    3020 fn [cuMemsetD2D16_v2 cuMemsetD2D16_v2_ptds](
        address: u64, pitch: usize, value: u16, width: usize, height: usize
    ) {
        fill(rows(address, pitch, value.into(), 2, width, height))
    }
    3020 fn [cuMemsetD2D32_v2 cuMemsetD2D32_v2_ptds](
        address: u64, pitch: usize, value: u32, width: usize, height: usize
    ) {
        fill(rows(address, pitch, value, 4, width, height))
    }
    3020 fn [cuMemsetD2D8Async cuMemsetD2D8Async_ptsz](
        address: u64, pitch: usize, value: u8, width: usize, height: usize, stream: u64
    ) {
        fill_async(rows(address, pitch, value.into(), 1, width, height), stream)
    }
    3020 fn [cuMemsetD2D16Async cuMemsetD2D16Async_ptsz](
        address: u64, pitch: usize, value: u16, width: usize, height: usize, stream: u64
    ) {
        fill_async(rows(address, pitch, value.into(), 2, width, height), stream)
    }
    3020 fn [cuMemsetD2D32Async cuMemsetD2D32Async_ptsz](
        address: u64, pitch: usize, value: u32, width: usize, height: usize, stream: u64
    ) {
        fill_async(rows(address, pitch, value, 4, width, height), stream)
    }
}
