//! What the fuzzer gives to calls.

use super::model::{Fuzz, HOST, KINDS, Kind, Object};
use std::ffi::c_void;

impl Fuzz {
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
        // Mostly one that can be used here: alive, and of the current context, a module of it or of none.
        if !self.one_in(6) {
            let current = self.current();
            let mut owners = vec![current, 0];
            let modules = self.objects.get(&Kind::Module).into_iter().flatten();
            owners.extend(modules.filter(|module| module.owner == current).map(|module| module.handle));
            let here = |object: &&Object| object.is_alive && owners.contains(&object.owner);
            let usable: Vec<u64> =
                self.objects[&kind].iter().filter(here).map(|object| object.handle).collect();
            if !usable.is_empty() {
                return self.pick(&usable);
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
}
