//! What an access costs a memory system: sectors of global memory, wavefronts of shared memory.

/// Sectors of 32 bytes that the lanes of `lanes` touch with `bytes` bytes each: one request of a warp.
#[inline]
pub fn sectors(_lanes: u32, _addresses: &[u64; 32], _bytes: u32) -> u32 {
    todo!()
}

/// Wavefronts of a shared-memory request: lanes in groups (32 lanes for up to 4 bytes, 16 for 8, 8 for 16), each
/// group as many wavefronts as the bank (4 bytes wide, 32 of them) with the most distinct words needs.
#[inline]
pub fn wavefronts(_lanes: u32, _addresses: &[u32; 32], _bytes: u32) -> u32 {
    todo!()
}
