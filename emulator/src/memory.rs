//! The device's global memory: allocations, bounds, which bytes were written.
//!
//! Addresses are the emulator's own, the same in every run: allocations start on multiples of 512 and lie apart, so
//! that an index past the end of one hits nothing; freed addresses are not soon reused. They are no host addresses:
//! a host that follows one crashes, as it would with a card. Only memory that host and device share keeps its host
//! address.

mod allocation;

use allocation::index;

pub use allocation::Allocation;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The addresses of device memory. Linux places nothing of a process here or below 0x1000_0000_0000 (programs at
/// 4 MB or above 0x5500_0000_0000, mappings above 0x2aaa_0000_0000), while the top of the 47 bits is where mappings,
/// host allocations among them, usually are. So windows of generic addresses belong below this range.
pub const DEVICE_ADDRESSES: Range<u64> = 0x1000_0000_0000..0x2a00_0000_0000;

/// Alignment of addresses.
const ALIGN: u64 = 512;
/// Bytes at least between two allocations.
const GAP: u64 = 4096;

/// Where a request cannot be met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum MemoryError {
    #[error("out of memory: {asked} bytes asked for, {free} free")]
    OutOfMemory { asked: u64, free: u64 },
    #[error("{address:#x} is not the start of an allocation")]
    NotAllocated { address: u64 },
    #[error("{bytes} bytes at {address:#x} are outside every allocation{near}")]
    Outside { address: u64, bytes: u64, near: String },
}

/// By address.
type Table = Vec<Arc<Allocation>>;

/// The device's memory. Shared by all threads of the host program.
pub struct Memory {
    total: u64,
    state: Mutex<State>,
}

struct State {
    /// Views share it; it is copied when it changes while one lives.
    table: Arc<Table>,
    free: u64,
    /// Where the next allocation goes if there is room.
    next: u64,
}

/// What one launch sees of the memory: no lock is taken per access, and nothing is unmapped while it lives.
#[derive(Clone)]
pub struct View {
    table: Arc<Table>,
}

impl Memory {
    /// A device with `bytes` of memory. Nothing is committed before it is touched.
    pub fn new(bytes: u64) -> Self {
        let state = State { table: Arc::default(), free: bytes, next: DEVICE_ADDRESSES.start };
        Self { total: bytes, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes free, and in all.
    pub fn free_and_total(&self) -> (u64, u64) {
        (self.lock().free, self.total)
    }

    /// Allocates; the contents count as unwritten and are zero, since other patterns would commit all pages. 0 bytes
    /// are refused by the caller.
    ///
    /// # Errors
    /// [`MemoryError::OutOfMemory`].
    pub fn alloc(&self, bytes: u64) -> Result<u64, MemoryError> {
        let mut state = self.lock();
        let free = state.free;
        let refused = MemoryError::OutOfMemory { asked: bytes, free };
        if bytes > free {
            return Err(refused);
        }
        let placed = state.place(bytes).zip(usize::try_from(bytes).ok());
        let Some((start, size)) = placed else { return Err(refused) };
        let Ok(allocation) = Allocation::device(start, size) else { return Err(refused) };
        state.insert(allocation);
        state.free -= bytes;
        state.next = (start + bytes + GAP).next_multiple_of(ALIGN);
        Ok(start)
    }

    /// Allocates memory the host reaches at the same address (pinned, managed); counts as written, zeroed. It takes
    /// nothing from the device's.
    ///
    /// # Errors
    /// [`MemoryError::OutOfMemory`].
    pub fn alloc_host(&self, bytes: u64) -> Result<u64, MemoryError> {
        let mut state = self.lock();
        let refused = MemoryError::OutOfMemory { asked: bytes, free: state.free };
        let Ok(size) = usize::try_from(bytes) else { return Err(refused) };
        let Ok(allocation) = Allocation::host(size) else { return Err(refused) };
        let start = allocation.start();
        state.insert(allocation);
        Ok(start)
    }

    /// Frees. Launches under way keep what they see until they end.
    ///
    /// # Errors
    /// [`MemoryError::NotAllocated`].
    pub fn free(&self, address: u64) -> Result<(), MemoryError> {
        let mut state = self.lock();
        let Ok(index) = state.table.binary_search_by_key(&address, |a| a.start()) else {
            return Err(MemoryError::NotAllocated { address });
        };
        let allocation = Arc::make_mut(&mut state.table).remove(index);
        if !allocation.is_host() {
            state.free += allocation.bytes() as u64;
        }
        Ok(())
    }

    /// Start and size of the allocation an address lies in.
    pub fn find(&self, address: u64) -> Option<(u64, u64)> {
        let (allocation, _) = self.locate(address, 1).ok()?;
        Some((allocation.start(), allocation.bytes() as u64))
    }

    fn locate(&self, address: u64, bytes: u64) -> Result<(Arc<Allocation>, usize), MemoryError> {
        let View { table } = self.snapshot();
        match search(&table, address, bytes) {
            Some((index, offset)) => Ok((table[index].clone(), offset)),
            None if table.is_empty() => Err(MemoryError::Outside { address, bytes, near: String::new() }),
            None => {
                let near = format!(": {}", nearest(&table, address, bytes));
                Err(MemoryError::Outside { address, bytes, near })
            }
        }
    }

    /// Copies in; marks as written.
    ///
    /// # Errors
    /// [`MemoryError::Outside`].
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        if !bytes.is_empty() {
            let (allocation, offset) = self.locate(address, bytes.len() as u64)?;
            allocation.write(offset, bytes);
        }
        Ok(())
    }

    /// Copies out; unwritten bytes come as they are.
    ///
    /// # Errors
    /// [`MemoryError::Outside`].
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        if !bytes.is_empty() {
            let (allocation, offset) = self.locate(address, bytes.len() as u64)?;
            allocation.read(offset, bytes);
        }
        Ok(())
    }

    /// Copies within; what is unwritten stays so. Ranges may overlap (memmove).
    ///
    /// # Errors
    /// [`MemoryError::Outside`].
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), MemoryError> {
        if bytes != 0 {
            let (source, source_offset) = self.locate(from, bytes)?;
            let (target, target_offset) = self.locate(to, bytes)?;
            target.copy_from(target_offset, &source, source_offset, index(bytes));
        }
        Ok(())
    }

    /// Repeats a pattern of 1, 2 or 4 bytes over `bytes` bytes.
    ///
    /// # Errors
    /// [`MemoryError::Outside`].
    pub fn fill(&self, address: u64, pattern: &[u8], bytes: u64) -> Result<(), MemoryError> {
        if bytes == 0 {
            return Ok(());
        }
        let (allocation, offset) = self.locate(address, bytes)?;
        let mut tile = pattern.repeat(4096);
        tile.truncate(tile.len().min(index(bytes)));
        let end = offset + index(bytes);
        for at in (offset..end).step_by(tile.len().max(1)) {
            allocation.write(at, &tile[..tile.len().min(end - at)]);
        }
        Ok(())
    }

    fn snapshot(&self) -> View {
        View { table: self.lock().table.clone() }
    }

    /// For a launch.
    pub fn view(self: &Arc<Self>) -> View {
        self.snapshot()
    }
}

impl State {
    /// An address with room for `bytes`: behind the last allocation, or once the addresses are used up, in the first
    /// gap that is wide enough.
    fn place(&self, bytes: u64) -> Option<u64> {
        let fits = |start: u64, end: u64| start.checked_add(bytes)?.checked_add(GAP).filter(|&b| b <= end);
        if fits(self.next, DEVICE_ADDRESSES.end).is_some() {
            return Some(self.next);
        }
        let mut start = DEVICE_ADDRESSES.start;
        for allocation in self.table.iter().filter(|a| !a.is_host()) {
            if fits(start, allocation.start()).is_some() {
                return Some(start);
            }
            start = (allocation.start() + allocation.bytes() as u64 + GAP).next_multiple_of(ALIGN);
        }
        fits(start, DEVICE_ADDRESSES.end).map(|_| start)
    }

    fn insert(&mut self, allocation: Allocation) {
        let table = Arc::make_mut(&mut self.table);
        let index = table.partition_point(|a| a.start() < allocation.start());
        table.insert(index, Arc::new(allocation));
    }
}

/// Index of the allocation that holds all of the bytes, and the offset in it.
fn search(table: &Table, address: u64, bytes: u64) -> Option<(usize, usize)> {
    let index = table.partition_point(|a| a.start() <= address).checked_sub(1)?;
    Some((index, table[index].offset_of(address, bytes)?))
}

/// Where an access that is nowhere within lies: relative to the allocation it is nearest to.
fn nearest(table: &Table, address: u64, bytes: u64) -> String {
    let behind = table.partition_point(|a| a.start() <= address);
    let previous = behind.checked_sub(1).map(|index| &table[index]);
    let next = table.get(behind);
    let from_end = previous.map(|a| address - a.start()).zip(previous);
    if let Some((offset, a)) = from_end {
        let (size, start) = (a.bytes() as u64, a.start());
        if offset < size {
            let over = bytes.saturating_sub(size - offset);
            return format!("the last {over} are past the end of the {size} bytes at {start:#x}");
        }
        if next.is_none_or(|next| offset - size <= next.start() - address) {
            return match offset - size {
                0 => format!("right at the end of the {size} bytes at {start:#x}"),
                past => format!("{past} bytes past the end of the {size} bytes at {start:#x}"),
            };
        }
    }
    next.map_or_else(
        || "nothing is allocated".to_owned(),
        |a| format!("{} bytes before the {} bytes at {:#x}", a.start() - address, a.bytes(), a.start()),
    )
}

impl View {
    /// The allocation that holds all of `bytes` bytes at `address`, and the offset in it. `hint` is the caller's:
    /// index of the allocation found last, tried first.
    #[inline]
    pub fn locate(&self, hint: &mut usize, address: u64, bytes: u64) -> Option<(&Allocation, usize)> {
        if let Some(allocation) = self.table.get(*hint)
            && let Some(offset) = allocation.offset_of(address, bytes)
        {
            return Some((allocation, offset));
        }
        self.locate_anew(hint, address, bytes)
    }

    #[cold]
    fn locate_anew(&self, hint: &mut usize, address: u64, bytes: u64) -> Option<(&Allocation, usize)> {
        let (index, offset) = search(&self.table, address, bytes)?;
        *hint = index;
        Some((&self.table[index], offset))
    }

    /// For the message of an access that [`View::locate`] refused: the nearest allocation and how far off, e.g.
    /// `4 bytes past the end of the 4096 bytes at 0x100000000000`.
    pub fn nearest(&self, address: u64, bytes: u64) -> String {
        nearest(&self.table, address, bytes)
    }
}
