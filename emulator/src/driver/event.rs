//! Events.

use super::abi::Out;
use super::capture::Tail;
use super::context::Context;
use super::errors::{Error, Result};
use super::exports;
use super::graph::Op;
use super::registry::lock;
use super::state::driver;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// `CU_EVENT_DISABLE_TIMING` and `CU_EVENT_INTERPROCESS`.
const DISABLE_TIMING: u32 = 2;
const INTERPROCESS: u32 = 4;
/// `CU_EVENT_RECORD_EXTERNAL` and `CU_EVENT_WAIT_EXTERNAL`: a node of its own in a captured graph.
const EXTERNAL: u32 = 1;

/// An event.
pub(super) struct Event {
    pub(super) context: Arc<Context>,
    flags: u32,
    pub(super) state: Mutex<State>,
}

/// What the event was last recorded at.
#[derive(Clone)]
pub(super) enum State {
    /// Nothing yet: counts as complete.
    Never,
    /// Work that is done.
    At(Instant),
    /// A place in a graph being captured.
    Captured(Tail),
}

impl Event {
    /// Records it now.
    pub(super) fn complete(&self) {
        *lock(&self.state) = State::At(Instant::now());
    }

    fn settle(&self) -> Result<()> {
        if let State::Captured(_) = *lock(&self.state) {
            return Err(Error::CAPTURED_EVENT);
        }
        self.context.check()
    }

    /// When it was recorded.
    fn time(&self) -> Result<Instant> {
        match *lock(&self.state) {
            _ if self.flags & DISABLE_TIMING != 0 => Err(Error::INVALID_HANDLE),
            State::Never => Err(Error::INVALID_HANDLE),
            State::At(time) => Ok(time),
            State::Captured(_) => Err(Error::CAPTURED_EVENT),
        }
    }
}

fn record(event: u64, stream: u64, flags: u32) -> Result<()> {
    let driver = driver()?;
    if flags & !EXTERNAL != 0 {
        return Err(Error::INVALID_VALUE);
    }
    let stream = driver.stream(stream)?;
    let event = driver.events.get(event)?;
    if event.context.id != stream.context.id {
        return Err(Error::INVALID_HANDLE);
    }
    stream.context.check()?;
    if flags & EXTERNAL != 0 && driver.captures.is_capturing(&stream) {
        return driver.captures.record(&stream, Op::Record(event)).map(|_| ());
    }
    if !driver.captures.record_event(&stream, &event)? {
        event.complete();
    }
    Ok(())
}

fn wait(stream: u64, event: u64, flags: u32) -> Result<()> {
    let driver = driver()?;
    if flags & !EXTERNAL != 0 {
        return Err(Error::INVALID_VALUE);
    }
    let stream = driver.stream(stream)?;
    let event = driver.events.get(event)?;
    stream.context.check()?;
    if flags & EXTERNAL != 0 && driver.captures.is_capturing(&stream) {
        return driver.captures.record(&stream, Op::Wait).map(|_| ());
    }
    driver.captures.wait_event(&stream, &event)
}

fn elapsed(out: Out<f32>, from: u64, to: u64) -> Result<()> {
    let driver = driver()?;
    let out = out.required()?;
    let (from, to) = (driver.events.get(from)?, driver.events.get(to)?);
    to.context.check()?;
    let (from, to) = (from.time()?, to.time()?);
    let milliseconds = 1e3 * to.saturating_duration_since(from).as_secs_f32();
    let back = 1e3 * from.saturating_duration_since(to).as_secs_f32();
    out.set(milliseconds - back)
}

/// Both forms of waiting.
fn settle(event: u64) -> Result<()> {
    let driver = driver()?;
    driver.current()?;
    driver.events.get(event)?.settle()
}

exports! {
    2000 fn cuEventCreate(out: Out<u64>, flags: u32) {
        let driver = driver()?;
        let context = driver.current()?;
        let out = out.required()?;
        if flags & !7 != 0 || flags & INTERPROCESS != 0 && flags & DISABLE_TIMING == 0 {
            return Err(Error::INVALID_VALUE);
        }
        if flags & INTERPROCESS != 0 {
            driver.note("events between processes are not supported");
            return Err(Error::NOT_SUPPORTED);
        }
        context.check()?;
        out.set(driver.events.add(|_| Event { context, flags, state: Mutex::new(State::Never) }))
    }
    4000 fn cuEventDestroy_v2(event: u64) { driver()?.events.remove(event).map(|_| ()) }
    2000 fn [cuEventRecord cuEventRecord_ptsz](event: u64, stream: u64) { record(event, stream, 0) }
    11010 fn [cuEventRecordWithFlags cuEventRecordWithFlags_ptsz](event: u64, stream: u64, flags: u32) {
        record(event, stream, flags)
    }
    2000 fn cuEventQuery(event: u64) { settle(event) }
    2000 fn cuEventSynchronize(event: u64) { settle(event) }
    2000 fn cuEventElapsedTime(out: Out<f32>, from: u64, to: u64) { elapsed(out, from, to) }
    12080 fn cuEventElapsedTime_v2(out: Out<f32>, from: u64, to: u64) { elapsed(out, from, to) }
    3020 fn [cuStreamWaitEvent cuStreamWaitEvent_ptsz](stream: u64, event: u64, flags: u32) {
        wait(stream, event, flags)
    }
}
