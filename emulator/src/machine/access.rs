//! Loads and stores.

use super::block::Core;
use super::elements::{gather, spread};
use super::warp::{FULL, Warp};
use super::watch::distinct;
use super::{Stop, window};
use crate::fault::FaultKind;
use crate::program::op::{Access, Instr, Reg, Space};
use crate::traffic::active as lanes;

type Result<T> = std::result::Result<T, Box<Stop>>;

/// A method for lanes of 1 to 32 bytes, compiled for each size.
macro_rules! by_size {
    ($bytes:expr, $core:ident.$method:ident::<$checked:ident>($($argument:expr),*)) => {
        match $bytes {
            1 => $core.$method::<$checked, 1>($($argument),*)?,
            2 => $core.$method::<$checked, 2>($($argument),*)?,
            4 => $core.$method::<$checked, 4>($($argument),*)?,
            8 => $core.$method::<$checked, 8>($($argument),*)?,
            16 => $core.$method::<$checked, 16>($($argument),*)?,
            _ => $core.$method::<$checked, 32>($($argument),*)?,
        }
    };
}

/// Addresses of the lanes, in one space.
pub struct Place {
    /// Not [`Space::Generic`].
    pub space: Space,
    /// Lanes.
    pub mask: u32,
    /// Device addresses in global memory, offsets in the other spaces.
    pub at: [u64; 32],
}

impl Core<'_> {
    /// Addresses of an access, space by space.
    #[inline(always)]
    pub fn places(&self, warp: &Warp, register: Reg, access: &Access, m: u32) -> (Place, u32) {
        let mut at = [0u64; 32];
        let offset = access.offset as u64;
        if access.wide_address {
            let base = &warp.q[usize::from(register)].0;
            for lane in 0..32 {
                at[lane] = base[lane].wrapping_add(offset);
            }
        } else {
            let base = &warp.r[usize::from(register)].0;
            for lane in 0..32 {
                at[lane] = u64::from(base[lane]).wrapping_add(offset);
            }
        }
        if access.space != Space::Generic || m == 0 {
            return (Place { space: access.space, mask: m, at }, 0);
        }
        let space = window::space(at[m.trailing_zeros() as usize]);
        let same = lanes(m).filter(|&lane| window::space(at[lane]) == space);
        let mask = same.fold(0u32, |mask, lane| mask | 1 << lane);
        let start = window::start(space);
        at.iter_mut().for_each(|a| *a = a.wrapping_sub(start));
        (Place { space, mask, at }, m & !mask)
    }

    #[inline(always)]
    pub fn load<const CHECKED: bool>(
        &mut self,
        warp: &mut Warp,
        instr: &Instr,
        access: Access,
        m: u32,
    ) -> Result<()> {
        let mut left = m;
        while left != 0 {
            let (place, rest) = self.places(warp, instr.r[1], &access, left);
            left = rest;
            let bytes = usize::from(access.bytes) * usize::from(access.count);
            if CHECKED {
                self.check_alignment(warp.id, &place, bytes)?;
            }
            by_size!(bytes, self.load_bytes::<CHECKED>(warp, instr, &access, &place));
        }
        Ok(())
    }

    #[inline(always)]
    fn load_bytes<const CHECKED: bool, const N: usize>(
        &mut self,
        warp: &mut Warp,
        instr: &Instr,
        access: &Access,
        place: &Place,
    ) -> Result<()> {
        let mut data = [[0u8; N]; 32];
        match place.space {
            Space::Global | Space::Generic => self.load_global::<CHECKED, N>(warp, place, &mut data)?,
            Space::Shared => {
                let at = self.shared_addresses(warp.id, place, N)?;
                if CHECKED {
                    self.watch_shared(warp.id, access, place.mask, &at, N)?;
                }
                for lane in lanes(place.mask) {
                    let from = at[lane] as usize;
                    data[lane].copy_from_slice(&self.shared[from..from + N]);
                }
            }
            Space::Local => {
                for lane in lanes(place.mask) {
                    let from = self.local_offset(warp, place, lane, N)?;
                    data[lane].copy_from_slice(&warp.local[from..from + N]);
                }
            }
            Space::Param => {
                for lane in lanes(place.mask) {
                    let from = usize::try_from(place.at[lane]).unwrap_or(usize::MAX);
                    let source = self.launch.params.get(from..from.saturating_add(N));
                    let Some(source) = source else {
                        let message = format!("read of {N} bytes at parameter offset {from}");
                        return Err(self.stop(FaultKind::OutOfBounds, warp.id, Some(lane), message));
                    };
                    data[lane].copy_from_slice(source);
                }
            }
        }
        spread(warp, instr, access, place.mask, &data);
        Ok(())
    }

    #[inline(always)]
    fn load_global<const CHECKED: bool, const N: usize>(
        &mut self,
        warp: &mut Warp,
        place: &Place,
        data: &mut [[u8; N]; 32],
    ) -> Result<()> {
        let checks = self.launch.settings.checks;
        let narrow = u32::try_from(N).expect("at most 32");
        if CHECKED && checks.counters {
            self.traffic.global_loads.count(place.mask, &place.at, narrow);
        }
        if contiguous(place, N)
            && let Some((allocation, offset)) =
                self.launch.view.locate(&mut warp.hint, place.at[0], 32 * N as u64)
            && (!CHECKED || !checks.initialised || allocation.is_written(offset, 32 * N))
        {
            for (lane, data) in data.iter_mut().enumerate() {
                *data = allocation.load::<N>(offset + lane * N);
            }
            return Ok(());
        }
        for lane in lanes(place.mask) {
            let found = self.launch.view.locate(&mut warp.hint, place.at[lane], N as u64);
            let Some((allocation, offset)) = found else {
                return Err(self.outside(warp.id, lane, "read", place.at[lane], N));
            };
            if CHECKED && checks.initialised && !allocation.is_written(offset, N) {
                let message = format!("read of {N} bytes at {:#x} that nothing wrote", place.at[lane]);
                return Err(self.stop(FaultKind::Uninitialised, warp.id, Some(lane), message));
            }
            data[lane] = allocation.load::<N>(offset);
        }
        Ok(())
    }

    #[inline(always)]
    pub fn store<const CHECKED: bool>(
        &mut self,
        warp: &mut Warp,
        instr: &Instr,
        access: Access,
        m: u32,
    ) -> Result<()> {
        let mut left = m;
        while left != 0 {
            let (place, rest) = self.places(warp, instr.r[1], &access, left);
            left = rest;
            let bytes = usize::from(access.bytes) * usize::from(access.count);
            if CHECKED {
                self.check_alignment(warp.id, &place, bytes)?;
            }
            by_size!(bytes, self.store_bytes::<CHECKED>(warp, instr, &access, &place));
        }
        Ok(())
    }

    #[inline(always)]
    fn store_bytes<const CHECKED: bool, const N: usize>(
        &mut self,
        warp: &mut Warp,
        instr: &Instr,
        access: &Access,
        place: &Place,
    ) -> Result<()> {
        let mut data = [[0u8; N]; 32];
        gather(warp, instr, access, &mut data);
        match place.space {
            Space::Global | Space::Generic => self.store_global::<CHECKED, N>(warp, place, &data),
            Space::Shared => {
                let at = self.shared_addresses(warp.id, place, N)?;
                if CHECKED {
                    let mask = distinct(place.mask, &at, &data);
                    self.watch_store(warp.id, access, mask, &at, &data)?;
                }
                for lane in lanes(place.mask) {
                    let to = at[lane] as usize;
                    self.shared[to..to + N].copy_from_slice(&data[lane]);
                }
                Ok(())
            }
            Space::Local => {
                for lane in lanes(place.mask) {
                    let to = self.local_offset(warp, place, lane, N)?;
                    warp.local[to..to + N].copy_from_slice(&data[lane]);
                }
                Ok(())
            }
            Space::Param => {
                let lane = place.mask.trailing_zeros() as usize;
                let message = "a kernel's parameters cannot be written".to_owned();
                Err(self.stop(FaultKind::OutOfBounds, warp.id, Some(lane), message))
            }
        }
    }

    #[inline(always)]
    fn store_global<const CHECKED: bool, const N: usize>(
        &mut self,
        warp: &mut Warp,
        place: &Place,
        data: &[[u8; N]; 32],
    ) -> Result<()> {
        let narrow = u32::try_from(N).expect("at most 32");
        if CHECKED && self.launch.settings.checks.counters {
            self.traffic.global_stores.count(place.mask, &place.at, narrow);
        }
        if contiguous(place, N)
            && let Some((allocation, offset)) =
                self.launch.view.locate(&mut warp.hint, place.at[0], 32 * N as u64)
        {
            for (lane, data) in data.iter().enumerate() {
                allocation.store::<N>(offset + lane * N, *data);
            }
            allocation.mark_written(offset, 32 * N);
            return Ok(());
        }
        for lane in lanes(place.mask) {
            let found = self.launch.view.locate(&mut warp.hint, place.at[lane], N as u64);
            let Some((allocation, offset)) = found else {
                return Err(self.outside(warp.id, lane, "write", place.at[lane], N));
            };
            allocation.store::<N>(offset, data[lane]);
            allocation.mark_written(offset, N);
        }
        Ok(())
    }

    /// A fault for a global address outside of all allocations.
    #[cold]
    pub fn outside(&self, warp: u32, lane: usize, what: &str, address: u64, bytes: usize) -> Box<Stop> {
        let near = self.launch.view.nearest(address, bytes as u64);
        let message = format!("{what} of {bytes} bytes at {address:#x}, outside every allocation: {near}");
        self.stop(FaultKind::OutOfBounds, warp, Some(lane), message)
    }

    /// Every address is a multiple of the access's size.
    #[inline(always)]
    pub fn check_alignment(&self, warp: u32, place: &Place, bytes: usize) -> Result<()> {
        if !self.launch.settings.checks.alignment {
            return Ok(());
        }
        let odd = bytes as u64 - 1;
        let mut any = 0;
        for lane in 0..32 {
            any |= u32::from(place.at[lane] & odd != 0) << lane;
        }
        if any & place.mask == 0 {
            return Ok(());
        }
        let lane = (any & place.mask).trailing_zeros() as usize;
        let message = format!("access of {bytes} bytes at {:#x}", place.at[lane]);
        Err(self.stop(FaultKind::Misaligned, warp, Some(lane), message))
    }

    /// Offsets in shared memory, within its bounds.
    #[inline(always)]
    pub fn shared_addresses(&self, warp: u32, place: &Place, bytes: usize) -> Result<[u32; 32]> {
        let size = self.shared.len() as u64;
        let mut at = [0u32; 32];
        let mut out = 0;
        for lane in 0..32 {
            at[lane] = place.at[lane] as u32;
            let end = place.at[lane].wrapping_add(bytes as u64);
            out |= u32::from(end > size || end < place.at[lane]) << lane;
        }
        if out & place.mask == 0 {
            return Ok(at);
        }
        let lane = (out & place.mask).trailing_zeros() as usize;
        let message = format!("access of {bytes} bytes at shared[{}] of {size}", place.at[lane]);
        Err(self.stop(FaultKind::OutOfBounds, warp, Some(lane), message))
    }

    /// Offset in the warp's local memory.
    pub fn local_offset(&self, warp: &Warp, place: &Place, lane: usize, bytes: usize) -> Result<usize> {
        let size = self.launch.kernel.local_bytes as usize;
        let at = usize::try_from(place.at[lane]).unwrap_or(usize::MAX);
        if at.saturating_add(bytes) > size {
            let message = format!("access of {bytes} bytes at local[{at}] of {size}");
            return Err(self.stop(FaultKind::OutOfBounds, warp.id, Some(lane), message));
        }
        Ok(lane * size + at)
    }
}

/// All lanes, one after the other in memory.
#[inline(always)]
fn contiguous(place: &Place, bytes: usize) -> bool {
    let mut same = place.mask == FULL;
    for lane in 0..32 {
        same &= place.at[lane] == place.at[0].wrapping_add((lane * bytes) as u64);
    }
    same
}
