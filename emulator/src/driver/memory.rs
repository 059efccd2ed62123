//! Allocations: what each address was allocated as, and by which context.

use super::abi::Out;
use super::context::Context;
use super::errors::{Error, Result};
use super::exports;
use super::graph::{GraphMemory, Op};
use super::registry::lock;
use super::state::{Driver, driver};
use crate::memory::MemoryError;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// What memory was asked for as.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Device,
    /// From the pool with this handle.
    Pool(u64),
    /// Pinned memory of the host, with the flags asked for.
    Host(u32),
    Managed,
    /// Of a captured graph.
    Graph,
}

/// An allocation.
#[derive(Clone, Copy)]
pub(super) struct Record {
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) kind: Kind,
    pub(super) context: u64,
    /// Differs for every allocation there ever was.
    pub(super) id: u64,
}

/// All of them, by address.
#[derive(Default)]
pub(super) struct Allocations {
    records: BTreeMap<u64, Record>,
    /// Memory of the caller registered as pinned: start to bytes.
    registered: BTreeMap<u64, u64>,
}

impl Allocations {
    /// The allocation an address lies in.
    pub(super) fn find(&self, address: u64) -> Option<Record> {
        let (_, record) = self.records.range(..=address).next_back()?;
        (address - record.start < record.bytes).then_some(*record)
    }

    /// The registered memory a host address lies in.
    fn find_registered(&self, address: u64) -> Option<u64> {
        let (&start, &bytes) = self.registered.range(..=address).next_back()?;
        (address - start < bytes).then_some(start)
    }
}

impl Driver {
    /// Allocates; nothing is refused but 0 bytes and what there is no room for.
    pub(super) fn allocate(&self, context: &Context, bytes: usize, kind: Kind) -> Result<u64> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let bytes = bytes as u64;
        if bytes == 0 {
            return Err(Error::INVALID_VALUE);
        }
        let start = match kind {
            Kind::Device | Kind::Pool(_) | Kind::Graph => self.memory.alloc(bytes),
            Kind::Host(_) | Kind::Managed => self.memory.alloc_host(bytes),
        };
        let start = start.map_err(|error| match error {
            MemoryError::OutOfMemory { .. } => Error::OUT_OF_MEMORY,
            _ => Error::INVALID_VALUE,
        })?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        lock(&self.allocations).records.insert(start, Record { start, bytes, kind, context: context.id, id });
        Ok(start)
    }

    /// Frees the allocation at `start` if `which` accepts it.
    pub(super) fn free(&self, start: u64, which: impl Fn(Kind) -> bool) -> Result<Record> {
        let mut allocations = lock(&self.allocations);
        let record = *allocations.records.get(&start).ok_or(Error::INVALID_VALUE)?;
        if !which(record.kind) {
            return Err(Error::INVALID_VALUE);
        }
        // A graph's memory stays at its address as long as the graph: its next launch uses it again.
        if record.kind != Kind::Graph {
            allocations.records.remove(&start);
            drop(allocations);
            self.memory.free(start).map_err(|_| Error::INVALID_VALUE)?;
            self.left_pool(&record);
        }
        Ok(record)
    }

    /// Frees the memory of a graph.
    pub(super) fn release(&self, start: u64) {
        lock(&self.allocations).records.remove(&start);
        let _ = self.memory.free(start);
    }

    /// Frees what a context allocated; graphs free theirs.
    pub(super) fn free_all_of(&self, context: u64) {
        let of_context = |record: &Record| record.context == context && record.kind != Kind::Graph;
        let records: Vec<Record> = {
            let mut allocations = lock(&self.allocations);
            allocations
                .records
                .extract_if(.., |_, record| of_context(record))
                .map(|(_, record)| record)
                .collect()
        };
        for record in records {
            let _ = self.memory.free(record.start);
            self.left_pool(&record);
        }
    }

    pub(super) fn is_managed(&self, address: u64) -> bool {
        lock(&self.allocations).find(address).is_some_and(|record| record.kind == Kind::Managed)
    }
}

/// Checks what all allocations have to, allocates and answers.
fn allocate(out: Out<u64>, bytes: usize, kind: Kind) -> Result<()> {
    let driver = driver()?;
    let context = driver.working()?;
    let out = out.required()?;
    driver.captures.refuse_unsafe()?;
    out.set(driver.allocate(&context, bytes, kind)?)
}

fn free(start: u64, which: impl Fn(Kind) -> bool) -> Result<()> {
    let driver = driver()?;
    driver.working()?;
    driver.captures.refuse_unsafe()?;
    driver.free(start, which).map(|_| ())
}

/// Allocates in the order of a stream; a captured stream's graph allocates.
pub(super) fn allocate_async(out: Out<u64>, bytes: usize, pool: u64, stream: u64) -> Result<()> {
    let driver = driver()?;
    let out = out.required()?;
    let stream = driver.stream(stream)?;
    stream.context.check()?;
    if driver.captures.is_capturing(&stream) {
        let address = driver.allocate(&stream.context, bytes, Kind::Graph)?;
        let left = driver.captures.record(&stream, Op::Alloc { _memory: GraphMemory { address } })?;
        return if left.is_none() { out.set(address) } else { Err(Error::STREAM_CAPTURE_INVALIDATED) };
    }
    let object = driver.pools.find(pool).ok_or(Error::INVALID_VALUE)?;
    let address = driver.allocate(&stream.context, bytes, Kind::Pool(pool))?;
    object.took(bytes as u64);
    out.set(address)
}

fn free_async(start: u64, stream: u64) -> Result<()> {
    let driver = driver()?;
    let stream = driver.stream(stream)?;
    stream.context.check()?;
    if driver.captures.is_capturing(&stream) {
        let kind = lock(&driver.allocations).records.get(&start).map(|record| record.kind);
        return match kind {
            Some(Kind::Graph) => driver.captures.record(&stream, Op::Free).map(|_| ()),
            _ => Err(Error::INVALID_VALUE),
        };
    }
    driver.free(start, |kind| !matches!(kind, Kind::Host(_) | Kind::Managed)).map(|_| ())
}

fn register(start: u64, bytes: usize, flags: u32) -> Result<()> {
    let driver = driver()?;
    driver.working()?;
    let end = start.checked_add(bytes as u64).ok_or(Error::INVALID_VALUE)?;
    if start == 0 || bytes == 0 || flags & !0xf != 0 {
        return Err(Error::INVALID_VALUE);
    }
    let mut allocations = lock(&driver.allocations);
    if allocations.find(start).is_some() {
        return Err(Error::HOST_MEMORY_ALREADY_REGISTERED);
    }
    let before_end = allocations.registered.range(..end).next_back();
    if before_end.is_some_and(|(&other, &bytes)| other + bytes > start) {
        return Err(Error::HOST_MEMORY_ALREADY_REGISTERED);
    }
    allocations.registered.insert(start, bytes as u64);
    Ok(())
}

exports! {
    3020 fn cuMemAlloc_v2(out: Out<u64>, bytes: usize) { allocate(out, bytes, Kind::Device) }
    3020 fn cuMemAllocPitch_v2(out: Out<u64>, pitch: Out<usize>, width: usize, height: usize, element: u32) {
        driver()?;
        let pitch = pitch.required()?;
        let padded = width.checked_next_multiple_of(512).ok_or(Error::INVALID_VALUE)?;
        if !matches!(element, 4 | 8 | 16) {
            return Err(Error::INVALID_VALUE);
        }
        allocate(out, padded.checked_mul(height).ok_or(Error::INVALID_VALUE)?, Kind::Device)?;
        pitch.set(padded)
    }
    3020 fn cuMemFree_v2(start: u64) { free(start, |kind| !matches!(kind, Kind::Host(_))) }
    3020 fn cuMemAllocHost_v2(out: Out<u64>, bytes: usize) { allocate(out, bytes, Kind::Host(0)) }
    2020 fn cuMemHostAlloc(out: Out<u64>, bytes: usize, flags: u32) {
        driver()?;
        if flags & !7 != 0 {
            return Err(Error::INVALID_VALUE);
        }
        allocate(out, bytes, Kind::Host(flags))
    }
    2000 fn cuMemFreeHost(start: u64) { free(start, |kind| matches!(kind, Kind::Host(_))) }
    6000 fn cuMemAllocManaged(out: Out<u64>, bytes: usize, flags: u32) {
        driver()?;
        if !matches!(flags, 1 | 2) {
            return Err(Error::INVALID_VALUE);
        }
        allocate(out, bytes, Kind::Managed)
    }
    11020 fn [cuMemAllocAsync cuMemAllocAsync_ptsz](out: Out<u64>, bytes: usize, stream: u64) {
        let pool = *lock(&driver()?.current_pool);
        allocate_async(out, bytes, pool, stream)
    }
    11020 fn [cuMemAllocFromPoolAsync cuMemAllocFromPoolAsync_ptsz](
        out: Out<u64>, bytes: usize, pool: u64, stream: u64
    ) {
        driver()?.pools.find(pool).ok_or(Error::INVALID_VALUE)?;
        allocate_async(out, bytes, pool, stream)
    }
    11020 fn [cuMemFreeAsync cuMemFreeAsync_ptsz](start: u64, stream: u64) { free_async(start, stream) }
    3020 fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let driver = driver()?;
        driver.working()?;
        let (free_bytes, total_bytes) = driver.memory.free_and_total();
        free.set(usize::try_from(free_bytes).map_err(|_| Error::INVALID_VALUE)?)?;
        total.set(usize::try_from(total_bytes).map_err(|_| Error::INVALID_VALUE)?)
    }
    3020 fn cuMemGetAddressRange_v2(start: Out<u64>, bytes: Out<usize>, address: u64) {
        let driver = driver()?;
        driver.working()?;
        let record = lock(&driver.allocations).find(address).ok_or(Error::NOT_FOUND)?;
        start.set_if_wanted(record.start);
        bytes.set_if_wanted(usize::try_from(record.bytes).map_err(|_| Error::INVALID_VALUE)?);
        Ok(())
    }
    6050 fn cuMemHostRegister_v2(start: u64, bytes: usize, flags: u32) { register(start, bytes, flags) }
    4000 fn cuMemHostUnregister(start: u64) {
        let driver = driver()?;
        driver.working()?;
        if start == 0 {
            return Err(Error::INVALID_VALUE);
        }
        let removed = lock(&driver.allocations).registered.remove(&start);
        removed.map(|_| ()).ok_or(Error::HOST_MEMORY_NOT_REGISTERED)
    }
    3020 fn cuMemHostGetDevicePointer_v2(out: Out<u64>, address: u64, flags: u32) {
        let driver = driver()?;
        driver.working()?;
        let allocations = lock(&driver.allocations);
        let found = allocations.find(address).map(|record| record.kind);
        match found {
            Some(Kind::Host(_) | Kind::Managed) if flags == 0 => out.set(address),
            _ if allocations.find_registered(address).is_some() => {
                driver.note("kernels cannot reach registered host memory; allocate it with cuMemHostAlloc");
                Err(Error::NOT_SUPPORTED)
            }
            _ => Err(Error::INVALID_VALUE),
        }
    }
    2030 fn cuMemHostGetFlags(out: Out<u32>, address: u64) {
        let driver = driver()?;
        driver.working()?;
        match lock(&driver.allocations).find(address).map(|record| record.kind) {
            Some(Kind::Host(flags)) => out.set(flags | 2), // all of it is mapped for the device
            _ => Err(Error::INVALID_VALUE),
        }
    }
}
