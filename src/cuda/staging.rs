//! Small copies to the GPU that do not wait for it.

use super::cuda;
use crate::error::Result;
use cudarc::driver::sys::{CU_MEMHOSTALLOC_WRITECOMBINED, CUdeviceptr};
use cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice, result};
use std::sync::Arc;

/// Bytes of each half.
const HALF: usize = 1 << 20;

/// Copies start on a multiple of this, as the lists of a micro-batch would anyway.
const ALIGNMENT: usize = 256;

/// Page-locked memory from which the driver copies by itself while the host goes on, in two halves: one is filled while
/// the copies out of the other are under way.
pub(super) struct Staging {
    stream: Arc<CudaStream>,
    memory: PinnedHostSlice<u8>,
    half: usize,
    used: usize,
    /// When the copies out of each half are done.
    done: [Option<CudaEvent>; 2],
}

impl Staging {
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        // SAFETY: the memory's bytes are written before they are read: a copy reads what `upload` has just put there.
        let memory =
            unsafe { stream.context().alloc_pinned_with_flags(2 * HALF, CU_MEMHOSTALLOC_WRITECOMBINED) };
        let memory = memory.map_err(cuda("allocate page-locked memory"))?;
        Ok(Self { stream: stream.clone(), memory, half: 0, used: 0, done: [None, None] })
    }

    /// Whether so many bytes have room.
    pub fn takes(bytes: usize) -> bool {
        bytes <= HALF
    }

    /// Starts a copy on the stream. Waits only where the half that is begun anew is still being copied from: for work
    /// of the stream that lies at least a half's worth of copies back.
    ///
    /// # Panics
    /// If there is no room for so many bytes.
    pub fn upload(&mut self, to: CUdeviceptr, bytes: &[u8]) -> Result<()> {
        const OP: &str = "copy to the GPU";
        assert!(Self::takes(bytes.len()));
        if self.used + bytes.len() > HALF {
            self.done[self.half] = Some(self.stream.record_event(None).map_err(cuda(OP))?);
            (self.half, self.used) = (1 - self.half, 0);
            if let Some(done) = self.done[self.half].take() {
                done.synchronize().map_err(cuda(OP))?;
            }
        }
        let memory = self.memory.as_mut_slice().map_err(cuda(OP))?;
        let from = &mut memory[self.half * HALF + self.used..][..bytes.len()];
        from.copy_from_slice(bytes);
        self.used = (self.used + bytes.len()).next_multiple_of(ALIGNMENT).min(HALF);
        // SAFETY: the caller's `to` is the address of at least `bytes.len()` bytes of device memory used on this stream
        // only. `from` is not written again before the event behind this copy, and the memory outlives the copy: `drop`
        // waits for the stream.
        unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) }.map_err(cuda(OP))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // An error here is one of an earlier launch, and was or will be told by the call that looks at results.
        let _ = self.stream.synchronize();
    }
}
