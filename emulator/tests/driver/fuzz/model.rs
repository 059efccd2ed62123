//! What the fuzzer knows: the objects it made, which of them are alive, and what each call was given.

use super::calls::CALLS;
use crate::api::*;
use std::collections::BTreeMap;
use std::ffi::c_void;

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
struct Object {
    handle: u64,
    /// What it goes with: a context or a module; 0 for none.
    owner: u64,
    is_alive: bool,
}

/// An allocation.
#[derive(Clone, Copy)]
struct Allocation {
    bytes: u64,
    owner: u64,
}

/// Most objects of a kind that are kept in mind; each time one more is made, the oldest is forgotten.
const MOST: usize = 24;
/// Bytes of the host's buffer.
pub const HOST: usize = 4096;

pub struct Fuzz {
    random: u64,
    /// Whether no other thread makes calls, so that the model holds.
    alone: bool,
    objects: BTreeMap<Kind, Vec<Object>>,
    /// Live ones, by address; of the stale ones some addresses.
    allocations: BTreeMap<u64, Allocation>,
    stale: Vec<u64>,
    /// Memory of graphs lives as long as they: the model does not follow it.
    of_graphs: Vec<u64>,
    /// Handles and ranges of memory the call at hand was given.
    used: Vec<(Kind, u64)>,
    ranges: Vec<(u64, u64)>,
    host: Box<[u8; HOST]>,
    /// Where results go that nobody reads.
    scratch: Box<[u64; 16]>,
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

    /// Sebastiano Vigna's splitmix64.
    pub fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }

    /// A small number, or a nasty one.
    pub fn small(&mut self, end: u32) -> u32 {
        if self.one_in(12) {
            self.pick(&[u32::MAX, 1 << 31, 65536])
        } else {
            self.pick(&[0, 1, 2, 3, 4, 5, 8]) % end
        }
    }

    pub fn size(&mut self) -> usize {
        let any = usize::try_from(self.next()).unwrap();
        let sizes =
            [0, 1, 2, 4, 16, 64, 64, 256, 4096, 4097, 1 << 16, 1 << 40, usize::MAX, usize::MAX / 4 + 2, any];
        self.pick(&sizes)
    }

    /// Where a result goes, or null.
    pub fn out<T>(&mut self, value: &mut T) -> *mut T {
        if self.one_in(20) { std::ptr::null_mut() } else { value }
    }

    /// Room for a result nobody reads, or null. `T` has 8 bytes at most.
    pub fn discard<T>(&mut self) -> *mut T {
        assert!(size_of::<T>() <= 8);
        let at = usize::try_from(self.below(16)).unwrap();
        if self.one_in(20) { std::ptr::null_mut() } else { (&raw mut self.scratch[at]).cast() }
    }

    /// The host's buffer and how many bytes of it, or null.
    pub fn host(&mut self) -> (*mut c_void, usize) {
        let bytes = self.size().min(HOST);
        let pointer: *mut c_void = self.host.as_mut_ptr().cast();
        (if self.one_in(20) { std::ptr::null_mut() } else { pointer }, bytes)
    }

    /// A handle for an argument that wants one of a kind.
    pub fn handle(&mut self, kind: Kind) -> u64 {
        let handle = match self.below(20) {
            0 => self.pick(&[0, 1, 2, 3, u64::MAX]),
            1 => self.next(),
            2 => {
                let other = self.pick(&KINDS);
                self.one_of(other)
            }
            _ => self.one_of(kind),
        };
        self.used.push((kind, handle));
        handle
    }

    fn one_of(&mut self, kind: Kind) -> u64 {
        let count = self.objects.get(&kind).map_or(0, Vec::len);
        if count == 0 {
            return self.below(3);
        }
        // Often one that lives in the current context: it has a chance.
        if self.one_in(2) {
            let current = self.current();
            let mut owners = vec![current];
            let modules = self.objects.get(&Kind::Module).into_iter().flatten();
            owners.extend(modules.filter(|module| module.owner == current).map(|module| module.handle));
            let here = |object: &&Object| {
                object.is_alive && (owners.contains(&object.owner) || owners.contains(&object.handle))
            };
            if let Some(object) = self.objects[&kind].iter().rev().find(here) {
                return object.handle;
            }
        }
        let index = usize::try_from(self.below(count as u64)).unwrap();
        self.objects[&kind][index].handle
    }

    /// A device address, with `bytes` bytes from there on to be accessed.
    pub fn device(&mut self, bytes: usize) -> u64 {
        let address = match self.below(16) {
            0 => self.pick(&[0, 1, u64::MAX, 0x1000_0000_0000, 0x29ff_ffff_ffff]),
            1 => 0x1000_0000_0000 + self.below(1 << 44),
            2 if !self.stale.is_empty() => {
                let stale = self.stale.clone();
                self.pick(&stale)
            }
            3 if !self.of_graphs.is_empty() => {
                let of_graphs = self.of_graphs.clone();
                self.pick(&of_graphs)
            }
            _ => {
                let starts: Vec<u64> = self.allocations.keys().copied().collect();
                let offset = self.pick(&[0, 0, 0, 0, 4, 1, 64, 4096]);
                if starts.is_empty() { 0 } else { self.pick(&starts) + offset }
            }
        };
        self.ranges.push((address, bytes as u64));
        address
    }

    /// As [`Fuzz::device`], and never an address the host might have.
    pub fn device_only(&mut self, bytes: usize) -> u64 {
        let address = self.device(bytes);
        if (0x1000_0000_0000..0x2a00_0000_0000).contains(&address) {
            return address;
        }
        self.ranges.clear();
        0
    }

    /// Start of a live allocation.
    pub fn any_allocation(&mut self) -> u64 {
        let starts: Vec<u64> = self.allocations.keys().copied().collect();
        if starts.is_empty() { 0 } else { self.pick(&starts) }
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

    /// Destroys all there is. What other threads capture may keep memory from being freed; alone, all of it is.
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

    /// Makes one call and checks what came of it.
    pub fn call(&mut self) {
        self.used.clear();
        self.ranges.clear();
        // Changes of the context are rarer: what was made in one is of no use in another.
        let any = self.pick(CALLS);
        let (name, call) = if CALLS[..4].iter().any(|call| call.0 == any.0) { self.pick(CALLS) } else { any };
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
