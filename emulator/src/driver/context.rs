//! Contexts: which is current on a thread, and the errors kept in them.

use super::abi::{In, Out};
use super::errors::{Error, Result};
use super::exports;
use super::registry::lock;
use super::state::{Driver, driver};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

/// A context. The primary one's handle is the same each time it is activated, the object is not.
pub(super) struct Context {
    pub(super) handle: u64,
    /// Differs for every context there ever was.
    pub(super) id: u64,
    pub(super) flags: AtomicU32,
    /// Code of the first fault of a kernel; 0 if none. Nothing clears it.
    fault: AtomicU32,
    destroyed: AtomicBool,
    limits: Mutex<[usize; LIMITS.len()]>,
    cache: AtomicU32,
    bank_size: AtomicU32,
    /// Numbers of the default streams of threads.
    thread_streams: Mutex<HashMap<ThreadId, u64>>,
}

/// The device's primary context.
#[derive(Default)]
pub(super) struct Primary {
    pub(super) handle: Option<u64>,
    pub(super) retained: u32,
    pub(super) flags: u32,
}

/// Stack, printf buffer, heap, synchronisation depth, pending launches, L2 granularity, persisting L2: a
/// card's defaults. The emulator keeps them, and takes what it needs.
const LIMITS: [usize; 7] = [1024, 1 << 20, 8 << 20, 2, 2048, 128, 0];

/// Flags of `cuCtxCreate` that exist: scheduling (no two of them), mapped host memory, local memory kept,
/// core dumps and synchronous copies.
fn check_flags(flags: u32) -> Result<()> {
    let schedule = flags & 7;
    if flags & !0xff != 0 || !matches!(schedule, 0 | 1 | 2 | 4) { Err(Error::INVALID_VALUE) } else { Ok(()) }
}

thread_local! {
    /// Handles of the contexts pushed on this thread; 0 stands for none set.
    static CURRENT: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// The thread's stack of contexts. None while the thread is being taken down.
fn with_stack<T>(f: impl FnOnce(&mut Vec<u64>) -> T) -> Result<T> {
    CURRENT.try_with(|stack| f(&mut stack.borrow_mut())).map_err(|_| Error::DEINITIALIZED)
}

/// Makes a context current in place of the top one.
fn set_current(handle: u64) -> Result<()> {
    with_stack(|stack| {
        stack.pop();
        if handle != 0 {
            stack.push(handle);
        }
    })
}

impl Driver {
    /// The thread's current context.
    pub(super) fn current(&self) -> Result<Arc<Context>> {
        let top = with_stack(|stack| stack.last().copied())?.ok_or(Error::INVALID_CONTEXT)?;
        self.contexts.find(top).ok_or(Error::CONTEXT_IS_DESTROYED)
    }

    /// The thread's current context, in which no kernel has failed: what all work needs.
    pub(super) fn working(&self) -> Result<Arc<Context>> {
        let context = self.current()?;
        context.check()?;
        Ok(context)
    }

    pub(super) fn create_context(&self, handle: u64, flags: u32) -> Arc<Context> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let context = Context {
            handle,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            flags: AtomicU32::new(flags),
            fault: AtomicU32::new(0),
            destroyed: AtomicBool::new(false),
            limits: Mutex::new(LIMITS),
            cache: AtomicU32::new(0),
            bank_size: AtomicU32::new(1),
            thread_streams: Mutex::default(),
        };
        self.contexts.insert(handle, context)
    }

    /// Destroys a context with all that was made in it.
    pub(super) fn destroy_context(&self, handle: u64) -> Result<()> {
        let context = self.contexts.remove(handle).map_err(|_| Error::INVALID_CONTEXT)?;
        context.destroyed.store(true, Ordering::Relaxed);
        for stream in self.streams.retain(|stream| stream.context.id != context.id) {
            self.captures.stream_destroyed(&self.graphs, stream.id);
        }
        self.captures.context_destroyed(&self.graphs, context.id);
        self.events.retain(|event| event.context.id != context.id);
        for module in self.modules.retain(|module| module.context != Some(context.id)) {
            module.unload(self);
        }
        self.free_all_of(context.id);
        Ok(())
    }
}

impl Context {
    /// The code of the first fault, as an error.
    pub(super) fn check(&self) -> Result<()> {
        if self.destroyed.load(Ordering::Relaxed) {
            return Err(Error::CONTEXT_IS_DESTROYED);
        }
        Error::check(self.fault.load(Ordering::Relaxed))
    }

    /// Keeps a kernel's fault: the first stays.
    pub(super) fn fail(&self, error: Error) {
        let _ = self.fault.compare_exchange(0, error.code(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The number of the calling thread's default stream.
    pub(super) fn thread_stream(&self, next: impl FnOnce() -> u64) -> u64 {
        *lock(&self.thread_streams).entry(thread::current().id()).or_insert_with(next)
    }

    fn limit(limit: u32) -> Result<usize> {
        let index = usize::try_from(limit).map_err(|_| Error::INVALID_VALUE)?;
        if index < LIMITS.len() { Ok(index) } else { Err(Error::UNSUPPORTED_LIMIT) }
    }
}

/// Only device 0 exists.
pub(super) fn check_device(device: i32) -> Result<&'static Driver> {
    let driver = driver()?;
    if device == 0 { Ok(driver) } else { Err(Error::INVALID_DEVICE) }
}

/// `CUctxCreateParams`.
#[derive(Clone, Copy)]
#[repr(C)]
struct CreateParams {
    _affinity: u64,
    affinity_count: i32,
    graphics: u64,
}

impl CreateParams {
    fn asks_for_more(&self) -> bool {
        self.affinity_count != 0 || self.graphics != 0
    }
}

fn create(out: Out<u64>, flags: u32, device: i32) -> Result<()> {
    let driver = check_device(device)?;
    check_flags(flags)?;
    let out = out.required()?;
    let context = driver.create_context(driver.contexts.reserve(), flags);
    with_stack(|stack| stack.push(context.handle))?;
    out.set(context.handle)
}

/// The current context of the thread, or the one named.
fn context_or_current(driver: &Driver, handle: u64) -> Result<Arc<Context>> {
    if handle == 0 { driver.current() } else { driver.contexts.find(handle).ok_or(Error::INVALID_CONTEXT) }
}

fn synchronize(handle: u64) -> Result<()> {
    let driver = driver()?;
    let context = context_or_current(driver, handle)?;
    driver.captures.refuse_context_wait(&context)?;
    context.check()
}

exports! {
    3020 fn cuCtxCreate_v2(out: Out<u64>, flags: u32, device: i32) { create(out, flags, device) }
    11040 fn cuCtxCreate_v3(out: Out<u64>, _affinity: In<c_void>, count: i32, flags: u32, device: i32) {
        if count != 0 {
            driver()?;
            return Err(Error::UNSUPPORTED_EXEC_AFFINITY);
        }
        create(out, flags, device)
    }
    12050 fn cuCtxCreate_v4(out: Out<u64>, params: In<CreateParams>, flags: u32, device: i32) {
        let driver = driver()?;
        if !params.is_null() && params.get()?.asks_for_more() {
            driver.note("cuCtxCreate: execution affinity and contexts for graphics are not supported");
            return Err(Error::NOT_SUPPORTED);
        }
        create(out, flags, device)
    }
    4000 fn cuCtxDestroy_v2(handle: u64) {
        let driver = driver()?;
        if lock(&driver.primary).handle == Some(handle) {
            return Err(Error::INVALID_CONTEXT);
        }
        driver.destroy_context(handle)?;
        with_stack(|stack| stack.pop_if(|top| *top == handle))?;
        Ok(())
    }
    4000 fn cuCtxPushCurrent_v2(handle: u64) {
        let context = driver()?.contexts.find(handle).ok_or(Error::INVALID_CONTEXT)?;
        with_stack(|stack| stack.push(context.handle))
    }
    4000 fn cuCtxPopCurrent_v2(out: Out<u64>) {
        driver()?;
        let top = with_stack(Vec::pop)?.ok_or(Error::INVALID_CONTEXT)?;
        out.set_if_wanted(top);
        Ok(())
    }
    4000 fn cuCtxSetCurrent(handle: u64) {
        let driver = driver()?;
        if handle != 0 && driver.contexts.find(handle).is_none() {
            return Err(Error::INVALID_CONTEXT);
        }
        set_current(handle)
    }
    4000 fn cuCtxGetCurrent(out: Out<u64>) {
        driver()?;
        out.set(with_stack(|stack| stack.last().copied())?.unwrap_or(0))
    }
    2000 fn cuCtxGetDevice(out: Out<i32>) {
        driver()?.current()?;
        out.set(0)
    }
    13000 fn cuCtxGetDevice_v2(out: Out<i32>, handle: u64) {
        context_or_current(driver()?, handle)?;
        out.set(0)
    }
    2000 fn cuCtxSynchronize() { synchronize(0) }
    13000 fn cuCtxSynchronize_v2(handle: u64) { synchronize(handle) }
    7000 fn cuCtxGetFlags(out: Out<u32>) { out.set(driver()?.current()?.flags.load(Ordering::Relaxed)) }
    12010 fn cuCtxSetFlags(flags: u32) {
        let context = driver()?.current()?;
        check_flags(flags)?;
        context.flags.store(flags, Ordering::Relaxed);
        Ok(())
    }
    12000 fn cuCtxGetId(handle: u64, out: Out<u64>) { out.set(context_or_current(driver()?, handle)?.id) }
    3020 fn cuCtxGetApiVersion(handle: u64, out: Out<u32>) {
        context_or_current(driver()?, handle)?;
        out.set(3020)
    }
    3010 fn cuCtxGetLimit(out: Out<usize>, limit: u32) {
        let context = driver()?.current()?;
        let index = Context::limit(limit)?;
        let value = lock(&context.limits)[index];
        out.set(value)
    }
    3010 fn cuCtxSetLimit(limit: u32, value: usize) {
        let context = driver()?.current()?;
        let index = Context::limit(limit)?;
        lock(&context.limits)[index] = value;
        Ok(())
    }
    3020 fn cuCtxGetCacheConfig(out: Out<u32>) { out.set(driver()?.current()?.cache.load(Ordering::Relaxed)) }
    3020 fn cuCtxSetCacheConfig(config: u32) {
        let context = driver()?.current()?;
        if config > 3 {
            return Err(Error::INVALID_VALUE);
        }
        context.cache.store(config, Ordering::Relaxed);
        Ok(())
    }
    4020 fn cuCtxGetSharedMemConfig(out: Out<u32>) {
        out.set(driver()?.current()?.bank_size.load(Ordering::Relaxed))
    }
    4020 fn cuCtxSetSharedMemConfig(config: u32) {
        let context = driver()?.current()?;
        if config > 2 {
            return Err(Error::INVALID_VALUE);
        }
        context.bank_size.store(1, Ordering::Relaxed); // banks of 4 bytes are all there are
        Ok(())
    }
    5050 fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        driver()?.current()?;
        least.set_if_wanted(0);
        greatest.set_if_wanted(super::stream::GREATEST_PRIORITY);
        Ok(())
    }
    11000 fn cuCtxResetPersistingL2Cache() { driver()?.current().map(|_| ()) }
}
