//! Streams. What is put on one runs at once, unless the stream is being captured.

use super::abi::{HostFunction, Out, StreamCallback, UserData};
use super::context::Context;
use super::errors::{Error, Result};
use super::graph::Op;
use super::state::{Driver, driver};
use super::{Call, exports};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Priorities go from 0 down to this.
pub(super) const GREATEST_PRIORITY: i32 = -5;

/// `CU_STREAM_NON_BLOCKING`: not ordered with the legacy default stream.
const NON_BLOCKING: u32 = 1;

/// Handles of the default streams.
const LEGACY: u64 = 1;
const PER_THREAD: u64 = 2;

/// A stream.
pub(super) struct Stream {
    /// What the client names it by.
    pub(super) handle: u64,
    /// Differs for every stream, default ones included.
    pub(super) id: u64,
    pub(super) context: Arc<Context>,
    flags: u32,
    priority: i32,
}

impl Stream {
    pub(super) fn is_legacy(&self) -> bool {
        self.handle == LEGACY
    }

    /// Whether it is ordered with the legacy default stream.
    pub(super) fn is_blocking(&self) -> bool {
        self.flags & NON_BLOCKING == 0
    }
}

impl Driver {
    /// The stream a handle names; 0 to 2 are default streams of the current context.
    pub(super) fn stream(&self, handle: u64) -> Result<Arc<Stream>> {
        static NEXT: AtomicU64 = AtomicU64::new(1 << 62);
        let context = self.current()?;
        let handle = match (handle, Call::current()) {
            (0, Call::Legacy) => LEGACY,
            (0, Call::PerThread) => PER_THREAD,
            (handle, _) => handle,
        };
        let id = match handle {
            LEGACY => (1 << 61) + context.id,
            PER_THREAD => context.thread_stream(|| NEXT.fetch_add(1, Ordering::Relaxed)),
            handle => return self.streams.get(handle),
        };
        Ok(Arc::new(Stream { handle, id, context, flags: 0, priority: 0 }))
    }

    /// Puts an operation on a stream: into the graph if it is captured, else it runs now.
    pub(super) fn submit(&self, stream: u64, op: Op) -> Result<()> {
        let stream = self.stream(stream)?;
        stream.context.check()?;
        op.check(self)?;
        match self.captures.record(&stream, op)? {
            None => Ok(()),
            Some(op) => op.run(self, &stream.context),
        }
    }

    /// What calls that wait for the device have to check: that none must wait for a capture, and no fault.
    pub(super) fn blocking_call(&self) -> Result<Arc<Context>> {
        let context = self.working()?;
        self.captures.refuse_unsafe()?;
        self.captures.refuse_legacy(&context)?;
        Ok(context)
    }
}

fn create(out: Out<u64>, flags: u32, priority: i32) -> Result<()> {
    let driver = driver()?;
    let context = driver.current()?;
    let out = out.required()?;
    if flags & !NON_BLOCKING != 0 {
        return Err(Error::INVALID_VALUE);
    }
    context.check()?;
    let priority = priority.clamp(GREATEST_PRIORITY, 0);
    out.set(driver.streams.add(|handle| Stream { handle, id: handle, context, flags, priority }))
}

/// Both forms of waiting: there is nothing to wait for, but errors are told.
fn settle(stream: u64) -> Result<()> {
    let driver = driver()?;
    let stream = driver.stream(stream)?;
    driver.captures.refuse_wait(&stream)?;
    stream.context.check()
}

fn launch_host_function(stream: u64, function: HostFunction, data: UserData) -> Result<()> {
    let driver = driver()?;
    driver.submit(stream, Op::Host { function: function.required()?, data })
}

exports! {
    2000 fn cuStreamCreate(out: Out<u64>, flags: u32) { create(out, flags, 0) }
    5050 fn cuStreamCreateWithPriority(out: Out<u64>, flags: u32, priority: i32) {
        create(out, flags, priority)
    }
    4000 fn cuStreamDestroy_v2(stream: u64) {
        let driver = driver()?;
        let stream = driver.streams.remove(stream)?;
        driver.captures.stream_destroyed(&driver.graphs, stream.id);
        Ok(())
    }
    2000 fn [cuStreamSynchronize cuStreamSynchronize_ptsz](stream: u64) { settle(stream) }
    2000 fn [cuStreamQuery cuStreamQuery_ptsz](stream: u64) { settle(stream) }
    5050 fn [cuStreamGetPriority cuStreamGetPriority_ptsz](stream: u64, out: Out<i32>) {
        out.set(driver()?.stream(stream)?.priority)
    }
    5050 fn [cuStreamGetFlags cuStreamGetFlags_ptsz](stream: u64, out: Out<u32>) {
        out.set(driver()?.stream(stream)?.flags)
    }
    12000 fn [cuStreamGetId cuStreamGetId_ptsz](stream: u64, out: Out<u64>) {
        out.set(driver()?.stream(stream)?.id)
    }
    12080 fn [cuStreamGetDevice cuStreamGetDevice_ptsz](stream: u64, out: Out<i32>) {
        driver()?.stream(stream)?;
        out.set(0)
    }
    9020 fn [cuStreamGetCtx cuStreamGetCtx_ptsz](stream: u64, out: Out<u64>) {
        out.set(driver()?.stream(stream)?.context.handle)
    }
    12050 fn [cuStreamGetCtx_v2 cuStreamGetCtx_v2_ptsz](stream: u64, out: Out<u64>, green: Out<u64>) {
        let stream = driver()?.stream(stream)?;
        green.set_if_wanted(0);
        out.set(stream.context.handle)
    }
    6000 fn [cuStreamAttachMemAsync cuStreamAttachMemAsync_ptsz](
        stream: u64, address: u64, _bytes: usize, flags: u32
    ) {
        let driver = driver()?;
        driver.stream(stream)?.context.check()?;
        if !matches!(flags, 1 | 2 | 4) || !driver.is_managed(address) {
            return Err(Error::INVALID_VALUE);
        }
        Ok(()) // device and host take turns anyway
    }
    5000 fn [cuStreamAddCallback cuStreamAddCallback_ptsz](
        stream: u64, callback: StreamCallback, data: UserData, flags: u32
    ) {
        let driver = driver()?;
        let callback = callback.required()?;
        let name = stream;
        let stream = driver.stream(name)?;
        if flags != 0 {
            return Err(Error::INVALID_VALUE);
        }
        driver.captures.refuse_wait(&stream)?;
        let status = stream.context.check().map_or_else(Error::code, |()| 0);
        callback.run(name, status, data);
        Ok(())
    }
    10000 fn [cuLaunchHostFunc cuLaunchHostFunc_ptsz](stream: u64, function: HostFunction, data: UserData) {
        launch_host_function(stream, function, data)
    }
    13020 fn [cuLaunchHostFunc_v2 cuLaunchHostFunc_v2_ptsz](
        stream: u64, function: HostFunction, data: UserData, _sync_mode: u32
    ) {
        launch_host_function(stream, function, data)
    }
}
