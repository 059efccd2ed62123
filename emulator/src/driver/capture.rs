//! Capture of streams into graphs: which streams are captured, what depends on what, what is refused
//! meanwhile.

use super::context::Context;
use super::errors::{Error, Result};
use super::event::{self, Event};
use super::graph::{Graph, Op};
use super::registry::{Registry, lock};
use super::stream::Stream;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

/// `CUstreamCaptureMode`: whose calls that might wait for the device are refused during a capture.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Those of all threads.
    Global,
    /// Those of the capturing thread.
    ThreadLocal,
    /// Nobody's.
    Relaxed,
}

thread_local! {
    /// How far the thread heeds captures (`cuThreadExchangeStreamCaptureMode`).
    static THREAD_MODE: Cell<Mode> = const { Cell::new(Mode::Global) };
}

/// Where the next operation of a stream goes: after these nodes of a capture's graph.
#[derive(Clone)]
pub(super) struct Tail {
    capture: u64,
    nodes: Vec<usize>,
}

struct Capture {
    mode: Mode,
    /// Stream it began on, and the thread.
    origin: u64,
    thread: ThreadId,
    context: u64,
    graph: Arc<Graph>,
    /// Something illegal was tried: all that remains is to end it.
    invalid: bool,
}

/// Streams that take part, by their ids.
struct Member {
    tail: Tail,
    is_blocking: bool,
}

#[derive(Default)]
struct State {
    next: u64,
    captures: HashMap<u64, Capture>,
    members: HashMap<u64, Member>,
}

/// All captures under way. One lock for all: a capture spans streams, events and threads.
#[derive(Default)]
pub(super) struct Captures {
    /// Members of the state, to pass by without its lock.
    members: AtomicUsize,
    state: Mutex<State>,
}

/// What is told about a capturing stream.
pub(super) struct Status {
    pub(super) id: u64,
    pub(super) is_valid: bool,
    pub(super) graph: Arc<Graph>,
    /// What the next operation will depend on.
    pub(super) nodes: Vec<usize>,
}

impl Mode {
    pub(super) fn new(number: u32) -> Result<Self> {
        match number {
            0 => Ok(Self::Global),
            1 => Ok(Self::ThreadLocal),
            2 => Ok(Self::Relaxed),
            _ => Err(Error::INVALID_VALUE),
        }
    }

    /// Sets the calling thread's and gives the one before.
    pub(super) fn exchange(self) -> u32 {
        match THREAD_MODE.replace(self) {
            Self::Global => 0,
            Self::ThreadLocal => 1,
            Self::Relaxed => 2,
        }
    }
}

impl State {
    /// The capture a stream takes part in, if it is one that still can be added to.
    fn valid(&mut self, stream: u64) -> Result<Option<(&mut Capture, &mut Member)>> {
        let Some(member) = self.members.get_mut(&stream) else { return Ok(None) };
        match self.captures.get_mut(&member.tail.capture) {
            Some(capture) if !capture.invalid => Ok(Some((capture, member))),
            _ => Err(Error::STREAM_CAPTURE_INVALIDATED),
        }
    }

    /// Marks all captures that `which` picks as failed; whether there were any.
    fn invalidate(&mut self, which: impl Fn(u64, &Capture) -> bool) -> bool {
        let mut found = false;
        for (&id, capture) in &mut self.captures {
            if which(id, capture) {
                capture.invalid = true;
                found = true;
            }
        }
        found
    }

    /// Forgets captures that can no longer be ended.
    fn drop_captures(&mut self, graphs: &Registry<Graph>, which: impl Fn(&Capture) -> bool) {
        for (_, capture) in self.captures.extract_if(|_, capture| which(capture)) {
            let _ = graphs.remove(capture.graph.handle);
        }
        self.members.retain(|_, member| self.captures.contains_key(&member.tail.capture));
    }

    /// Ids of captures with a stream that is ordered with the legacy default stream.
    fn blocking_captures(&self) -> HashSet<u64> {
        self.members.values().filter(|member| member.is_blocking).map(|member| member.tail.capture).collect()
    }
}

impl Captures {
    /// Nothing is captured: the common case.
    fn is_idle(&self) -> bool {
        self.members.load(Ordering::Acquire) == 0
    }

    /// Runs `f` on the state and counts the members anew.
    fn update<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let result = f(&mut state);
        self.members.store(state.members.len(), Ordering::Release);
        result
    }

    pub(super) fn is_capturing(&self, stream: &Stream) -> bool {
        !self.is_idle() && lock(&self.state).members.contains_key(&stream.id)
    }

    pub(super) fn begin(&self, graphs: &Registry<Graph>, stream: &Stream, mode: Mode) -> Result<()> {
        if stream.is_legacy() {
            return Err(Error::STREAM_CAPTURE_UNSUPPORTED);
        }
        self.update(|state| {
            if state.members.contains_key(&stream.id) {
                return Err(Error::ILLEGAL_STATE);
            }
            state.next += 1;
            let id = state.next;
            let handle = graphs.reserve();
            let graph = graphs.insert(handle, Graph::new(handle));
            let (context, thread) = (stream.context.id, thread::current().id());
            state
                .captures
                .insert(id, Capture { mode, origin: stream.id, thread, context, graph, invalid: false });
            let tail = Tail { capture: id, nodes: Vec::new() };
            state.members.insert(stream.id, Member { tail, is_blocking: stream.is_blocking() });
            Ok(())
        })
    }

    /// Ends the capture a stream began. A failed one leaves no graph.
    pub(super) fn end(&self, graphs: &Registry<Graph>, stream: &Stream) -> Result<Arc<Graph>> {
        self.update(|state| {
            let id = state.members.get(&stream.id).ok_or(Error::ILLEGAL_STATE)?.tail.capture;
            let capture = state.captures.get_mut(&id).ok_or(Error::ILLEGAL_STATE)?;
            if capture.mode != Mode::Relaxed && capture.thread != thread::current().id() {
                return Err(Error::STREAM_CAPTURE_WRONG_THREAD);
            }
            if capture.origin != stream.id {
                capture.invalid = true;
                return Err(Error::STREAM_CAPTURE_UNMATCHED);
            }
            let Some(capture) = state.captures.remove(&id) else { return Err(Error::ILLEGAL_STATE) };
            let joined = capture.graph.with_ancestors(&state.members[&stream.id].tail.nodes);
            let of_capture = state.members.extract_if(|_, member| member.tail.capture == id);
            let is_joined = of_capture
                .fold(true, |all, (_, member)| all & member.tail.nodes.iter().all(|n| joined.contains(n)));
            if capture.invalid || !is_joined {
                let _ = graphs.remove(capture.graph.handle);
                let invalid = capture.invalid;
                let error =
                    if invalid { Error::STREAM_CAPTURE_INVALIDATED } else { Error::STREAM_CAPTURE_UNJOINED };
                return Err(error);
            }
            Ok(capture.graph)
        })
    }

    pub(super) fn status(&self, stream: &Stream) -> Option<Status> {
        let state = lock(&self.state);
        let member = state.members.get(&stream.id)?;
        let id = member.tail.capture;
        let capture = state.captures.get(&id)?;
        let (graph, nodes) = (capture.graph.clone(), member.tail.nodes.clone());
        Some(Status { id, is_valid: !capture.invalid, graph, nodes })
    }

    /// Adds the operation to the graph if the stream is captured, else gives it back.
    pub(super) fn record(&self, stream: &Stream, op: Op) -> Result<Option<Op>> {
        if self.is_idle() {
            return Ok(Some(op));
        }
        self.refuse_implicit(stream)?;
        let mut state = lock(&self.state);
        let Some((capture, member)) = state.valid(stream.id)? else { return Ok(Some(op)) };
        let node = capture.graph.push(op, member.tail.nodes.clone());
        member.tail.nodes = vec![node];
        Ok(None)
    }

    /// Makes the event stand for the stream's place in a graph; false if the stream is not captured.
    pub(super) fn record_event(&self, stream: &Stream, event: &Event) -> Result<bool> {
        if self.is_idle() {
            return Ok(false);
        }
        self.refuse_implicit(stream)?;
        let mut state = lock(&self.state);
        let Some((_, member)) = state.valid(stream.id)? else { return Ok(false) };
        *lock(&event.state) = event::State::Captured(member.tail.clone());
        Ok(true)
    }

    /// Makes the stream wait: a captured event takes it into the event's capture.
    pub(super) fn wait_event(&self, stream: &Stream, event: &Event) -> Result<()> {
        let event = lock(&event.state).clone();
        if self.is_idle() {
            let is_captured = matches!(event, event::State::Captured(_));
            return if is_captured { Err(Error::CAPTURED_EVENT) } else { Ok(()) };
        }
        self.refuse_implicit(stream)?;
        self.update(|state| {
            let member = state.valid(stream.id)?;
            match (member, event) {
                (None, event::State::Captured(tail)) => {
                    let Some(capture) = state.captures.get_mut(&tail.capture) else {
                        return Err(Error::CAPTURED_EVENT);
                    };
                    if stream.is_legacy() || capture.invalid {
                        capture.invalid = true;
                        return Err(Error::STREAM_CAPTURE_INVALIDATED);
                    }
                    state.members.insert(stream.id, Member { tail, is_blocking: stream.is_blocking() });
                    Ok(())
                }
                (None, _) => Ok(()),
                (Some((_, member)), event::State::Captured(tail)) if tail.capture == member.tail.capture => {
                    let new = tail.nodes.into_iter().filter(|node| !member.tail.nodes.contains(node));
                    let new: Vec<_> = new.collect();
                    member.tail.nodes.extend(new);
                    Ok(())
                }
                (Some((capture, _)), event::State::Captured(_)) => {
                    capture.invalid = true;
                    Err(Error::STREAM_CAPTURE_MERGE)
                }
                (Some((capture, _)), _) => {
                    capture.invalid = true;
                    Err(Error::STREAM_CAPTURE_ISOLATION)
                }
            }
        })
    }

    /// Refuses to wait for a stream that is captured: nothing of it runs.
    pub(super) fn refuse_wait(&self, stream: &Stream) -> Result<()> {
        if self.is_idle() {
            return Ok(());
        }
        self.refuse_implicit(stream)?;
        let mut state = lock(&self.state);
        let Some(id) = state.members.get(&stream.id).map(|member| member.tail.capture) else { return Ok(()) };
        state.invalidate(|other, _| other == id);
        Err(Error::STREAM_CAPTURE_UNSUPPORTED)
    }

    /// Refuses to wait for a context with a captured stream.
    pub(super) fn refuse_context_wait(&self, context: &Context) -> Result<()> {
        if self.is_idle() {
            return Ok(());
        }
        let refused = lock(&self.state).invalidate(|_, capture| capture.context == context.id);
        if refused { Err(Error::STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// Refuses calls that might wait for the device, as the modes of capture and thread have it.
    pub(super) fn refuse_unsafe(&self) -> Result<()> {
        let mode = THREAD_MODE.get();
        if self.is_idle() || mode == Mode::Relaxed {
            return Ok(());
        }
        let thread = thread::current().id();
        let refused = lock(&self.state).invalidate(|_, capture| {
            let is_own = capture.thread == thread;
            is_own && capture.mode != Mode::Relaxed
                || !is_own && mode == Mode::Global && capture.mode == Mode::Global
        });
        if refused { Err(Error::STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// Refuses work on the legacy default stream that would have to wait for a captured stream.
    fn refuse_implicit(&self, stream: &Stream) -> Result<()> {
        if stream.is_legacy() { self.refuse_legacy(&stream.context) } else { Ok(()) }
    }

    /// As [`Captures::refuse_implicit`], for calls without a stream.
    pub(super) fn refuse_legacy(&self, context: &Context) -> Result<()> {
        if self.is_idle() {
            return Ok(());
        }
        let mut state = lock(&self.state);
        let blocking = state.blocking_captures();
        let refused = state.invalidate(|id, capture| capture.context == context.id && blocking.contains(&id));
        if refused { Err(Error::STREAM_CAPTURE_IMPLICIT) } else { Ok(()) }
    }

    /// A capture fails with a stream of it; without the stream it began on, it is over.
    pub(super) fn stream_destroyed(&self, graphs: &Registry<Graph>, stream: u64) {
        if self.is_idle() {
            return;
        }
        self.update(|state| {
            let Some(Member { tail, .. }) = state.members.remove(&stream) else { return };
            state.invalidate(|id, _| id == tail.capture);
            state.drop_captures(graphs, |capture| capture.origin == stream);
        });
    }

    /// Captures in the context are over.
    pub(super) fn context_destroyed(&self, graphs: &Registry<Graph>, context: u64) {
        if !self.is_idle() {
            self.update(|state| state.drop_captures(graphs, |capture| capture.context == context));
        }
    }
}
