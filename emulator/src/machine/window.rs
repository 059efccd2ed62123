//! Windows of the generic address space. Global memory lies outside of all of them: device memory above them, and no
//! process has memory there (see [`crate::memory::DEVICE_ADDRESSES`]).

/// Start of shared memory.
pub const SHARED: u64 = 0x0e00_0000_0000;
/// Start of the thread's local memory.
pub const LOCAL: u64 = 0x0d00_0000_0000;
/// Start of the kernel's parameters.
pub const PARAM: u64 = 0x0c00_0000_0000;
const _: () = assert!(SHARED + BYTES <= DEVICE_ADDRESSES.start);
/// Bytes of a window.
const BYTES: u64 = 1 << 32;

use crate::memory::DEVICE_ADDRESSES;
use crate::program::op::Space;

/// Space of a generic address.
pub(super) fn space(address: u64) -> Space {
    match address {
        a if a.wrapping_sub(SHARED) < BYTES => Space::Shared,
        a if a.wrapping_sub(LOCAL) < BYTES => Space::Local,
        a if a.wrapping_sub(PARAM) < BYTES => Space::Param,
        _ => Space::Global,
    }
}

/// Generic address of the start of a space.
pub(super) fn start(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED,
        Space::Local => LOCAL,
        Space::Param => PARAM,
        Space::Global | Space::Generic => 0,
    }
}
