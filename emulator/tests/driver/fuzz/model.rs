//! What the fuzzer knows: the objects it made, which of them are alive, and what each call was given.

use super::calls::{CALLS, Call};
use crate::api::*;
use std::collections::BTreeMap;

/// Kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Context,
    Stream,
    Event,
    Module,
    Library,
    Function,
    Graph,
    Exec,
    Pool,
}

pub const KINDS: [Kind; 9] = [
    Kind::Context,
    Kind::Stream,
    Kind::Event,
    Kind::Module,
    Kind::Library,
    Kind::Function,
    Kind::Graph,
    Kind::Exec,
    Kind::Pool,
];

/// An object, alive or not.
pub struct Object {
    pub handle: u64,
    /// What it goes with: a context or a module; 0 for none.
    pub owner: u64,
    pub is_alive: bool,
}

/// An allocation.
#[derive(Clone, Copy)]
pub struct Allocation {
    bytes: u64,
    owner: u64,
}

/// Most objects of a kind that are kept in mind; each time one more is made, the oldest is forgotten.
const MOST: usize = 24;
/// Bytes of the host's buffer.
pub const HOST: usize = 4096;

pub struct Fuzz {
    pub random: u64,
    /// Whether no other thread makes calls, so that the model holds.
    pub alone: bool,
    pub objects: BTreeMap<Kind, Vec<Object>>,
    /// Live ones, by address; of the stale ones some addresses.
    pub allocations: BTreeMap<u64, Allocation>,
    pub stale: Vec<u64>,
    /// Memory of graphs lives as long as they: the model does not follow it.
    pub of_graphs: Vec<u64>,
    /// Handles and ranges of memory the call at hand was given.
    pub used: Vec<(Kind, u64)>,
    pub ranges: Vec<(u64, u64)>,
    pub host: Box<[u8; HOST]>,
    /// Where results go that nobody reads.
    pub scratch: Box<[u64; 16]>,
    /// Handle of the primary context, once known.
    primary: u64,
    /// Calls of each function that succeeded and that were refused.
    outcomes: BTreeMap<&'static str, (u64, u64)>,
    pub image: std::ffi::CString,
}

impl Fuzz {
    pub fn new(seed: u64, alone: bool) -> Self {
        Self {
            random: seed,
            alone,
            objects: BTreeMap::new(),
            allocations: BTreeMap::new(),
            stale: Vec::new(),
            of_graphs: Vec::new(),
            used: Vec::new(),
            ranges: Vec::new(),
            host: Box::new([0; HOST]),
            scratch: Box::new([0; 16]),
            primary: 0,
            outcomes: BTreeMap::new(),
            image: c(PTX),
        }
    }

    /// Enters an object that a call gave.
    pub fn made(&mut self, kind: Kind, handle: u64, owner: u64) {
        let objects = self.objects.entry(kind).or_default();
        objects.retain(|object| object.handle != handle);
        objects.push(Object { handle, owner, is_alive: true });
        if objects.len() > MOST {
            let oldest = objects.remove(0);
            if oldest.is_alive {
                self.destroy(kind, oldest.handle);
            }
        }
    }

    pub fn allocated(&mut self, start: u64, bytes: usize, owner: u64) {
        self.allocations.insert(start, Allocation { bytes: bytes as u64, owner });
    }

    pub fn allocated_by_graph(&mut self, start: u64) {
        self.of_graphs.push(start);
    }

    pub fn freed(&mut self, start: u64) {
        self.ranges.clear();
        if self.of_graphs.contains(&start) {
            return;
        }
        let was_live = self.allocations.remove(&start).is_some();
        assert!(was_live || !self.alone, "{start:#x} was freed and is not allocated");
        self.stale.push(start);
        if self.stale.len() > MOST {
            self.stale.remove(0);
        }
    }

    /// An object is gone, and with it all it owns.
    pub fn gone(&mut self, handle: u64) {
        let mut owned = Vec::new();
        for object in self.objects.values_mut().flatten() {
            if object.handle == handle {
                object.is_alive = false;
            } else if object.owner == handle && object.is_alive {
                owned.push(object.handle);
            }
        }
        for owned in owned {
            self.gone(owned);
        }
        let starts = self.allocations.iter().filter(|(_, allocation)| allocation.owner == handle);
        let starts: Vec<u64> = starts.map(|(&start, _)| start).collect();
        for start in starts {
            self.freed(start);
        }
    }

    /// The context that a new object goes with.
    pub fn current(&self) -> u64 {
        let mut context = 0;
        let _ = cuCtxGetCurrent(&raw mut context);
        context
    }

    /// The primary context was retained; what was made in it before lives on.
    pub fn retained(&mut self, handle: u64) {
        self.primary = handle;
        self.made(Kind::Context, handle, 0);
    }

    /// All in the primary context is gone.
    pub fn primary_gone(&mut self, is_active: bool) {
        if self.primary == 0 {
            return; // a reset before anyone retained it
        }
        self.gone(self.primary);
        if is_active {
            self.made(Kind::Context, self.primary, 0);
        }
    }

    fn destroy(&mut self, kind: Kind, handle: u64) {
        let code = match kind {
            Kind::Context => cuCtxDestroy_v2(handle),
            Kind::Stream => cuStreamDestroy_v2(handle),
            Kind::Event => cuEventDestroy_v2(handle),
            Kind::Module => cuModuleUnload(handle),
            Kind::Library => cuLibraryUnload(handle),
            Kind::Function => return,
            Kind::Graph => cuGraphDestroy(handle),
            Kind::Exec => cuGraphExecDestroy(handle),
            Kind::Pool => cuMemPoolDestroy(handle),
        };
        // A module of another context stays.
        if code == 0 {
            self.gone(handle);
        }
    }

    /// Starts with a context, and a kernel to launch.
    pub fn begin(&mut self) {
        let context = get(|out| cuCtxCreate_v2(out, 0, 0));
        self.made(Kind::Context, context, 0);
        let (mut module, mut function) = (0, 0);
        // Refused when another thread captures.
        if cuModuleLoadData(&raw mut module, self.image.as_ptr().cast()) == 0 {
            self.made(Kind::Module, module, context);
            ok(cuModuleGetFunction(&raw mut function, module, c"store".as_ptr()));
            self.made(Kind::Function, function, module);
        }
    }

    /// Destroys all there is. What other threads capture may keep memory from being freed; alone, all of it
    /// is.
    pub fn end(&mut self) {
        while cuCtxPopCurrent_v2(&mut 0) == 0 {}
        while cuDevicePrimaryCtxRelease_v2(0) == 0 {}
        for kind in KINDS {
            for object in self.objects.remove(&kind).unwrap_or_default() {
                self.destroy(kind, object.handle);
            }
        }
        for (start, _) in std::mem::take(&mut self.allocations) {
            let _ = cuMemFree_v2(start);
        }
        self.of_graphs.clear();
        self.stale.clear();
        let _ = cuThreadExchangeStreamCaptureMode(&mut 0);
        if self.alone {
            let context = get(|out| cuCtxCreate_v2(out, 0, 0));
            let (mut free, mut total) = (0, 0);
            ok(cuMemGetInfo_v2(&raw mut free, &raw mut total));
            assert_eq!(free, total, "memory is left taken");
            ok(cuCtxDestroy_v2(context));
        }
    }

    /// Any, but seldom one that changes the context or destroys something: others need what was made.
    fn next_call(&mut self) -> Call {
        loop {
            let call = self.pick(CALLS);
            let is_rare = ["context", "primary", "push", "SetCurrent", "Destroy", "Unload", "MemFree"];
            if self.one_in(6) || !is_rare.iter().any(|part| call.0.contains(part)) {
                return call;
            }
        }
    }

    /// Makes one call and checks what came of it.
    pub fn call(&mut self) {
        self.used.clear();
        self.ranges.clear();
        let (name, call) = self.next_call();
        let code = call(self);
        assert!(code != UNKNOWN && text(code, cuGetErrorName).is_some(), "{name} gave {code}");
        let outcome = self.outcomes.entry(name).or_default();
        if code == 0 {
            outcome.0 += 1;
            self.check(name);
        } else {
            outcome.1 += 1;
        }
        // A context in which a kernel has failed refuses all work: most times go on with another.
        if (700..800).contains(&code) && !self.one_in(3) {
            let context = get(|out| cuCtxCreate_v2(out, 0, 0));
            self.made(Kind::Context, context, 0);
        }
    }

    /// The call succeeded, so all it was given must have been good.
    fn check(&self, name: &str) {
        if !self.alone {
            return;
        }
        for &(kind, handle) in &self.used {
            let is_default = kind == Kind::Stream && handle <= 2 || kind == Kind::Context && handle == 0;
            let objects = self.objects.get(&kind);
            // Calls that destroy have marked it as gone already, and say so by taking it off the list.
            let is_alive = objects.is_some_and(|all| all.iter().any(|o| o.handle == handle && o.is_alive));
            assert!(is_alive || is_default, "{name} took {kind:?} {handle:#x}, which is not alive");
        }
        for &(address, bytes) in self.ranges.iter().filter(|range| range.1 > 0) {
            let below = self.allocations.range(..=address).next_back();
            let fits = below.is_some_and(|(start, of)| {
                address - start < of.bytes && bytes <= of.bytes - (address - start)
            });
            let of_graph = self.of_graphs.iter().any(|&start| address >= start && address - start < 1 << 16);
            assert!(fits || of_graph, "{name} took {bytes} bytes at {address:#x}");
        }
    }

    /// For calls that destroy what they are given: it was checked to be alive, and is gone now.
    pub fn destroyed(&mut self, name: &'static str, handle: u64) {
        self.check(name);
        self.used.clear();
        self.gone(handle);
    }

    /// Prints how many calls there were; every function must have succeeded and have been refused.
    pub fn report(&self, cases: u64) {
        let (good, bad) = self.outcomes.values().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
        println!("calls {cases}: {good} succeeded, {bad} were refused");
        for (name, &(good, bad)) in &self.outcomes {
            println!("{name}: {good} {bad}");
        }
        assert!(cases < 20_000 || self.outcomes.len() == CALLS.len());
        for (name, &(good, bad)) in &self.outcomes {
            assert!(cases < 20_000 || good > 0, "{name} never succeeded");
            assert!(cases < 20_000 || bad > 0 || name.starts_with("cuThread"), "{name} was never refused");
        }
    }
}
