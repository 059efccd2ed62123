//! Times of launches on the device's own clock.

use crate::cuda::{Cuda, cuda};
use crate::error::Result;
use cudarc::driver::CudaSlice;
use cudarc::driver::sys::CUevent_flags;
use serde::Serialize;

/// Launches before the first one that is timed.
pub(super) const WARM_UP: usize = 2;

/// Of one operation's launches, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Times {
    /// Half of the launches took no longer.
    pub median_us: f64,
    /// The fastest launch.
    pub min_us: f64,
    /// How many there were.
    pub repeats: usize,
}

impl Times {
    pub(super) fn new(mut us: Vec<f64>) -> Self {
        us.sort_by(f64::total_cmp);
        let n = us.len();
        Self { median_us: f64::midpoint(us[(n - 1) / 2], us[n / 2]), min_us: us[0], repeats: n }
    }
}

/// Device events, and a buffer larger than L2.
pub(super) struct Timer {
    flush: CudaSlice<u8>,
}

impl Timer {
    pub(super) fn new(device: &Cuda, flush_bytes: usize) -> Result<Self> {
        let flush = device.stream.alloc_zeros(flush_bytes).map_err(cuda("allocate memory to flush L2"))?;
        Ok(Self { flush })
    }

    /// Times `launch`. Before every launch a buffer larger than L2 is written, which evicts what the launch before left
    /// there, and keeps the device busy until the launch is submitted.
    pub(super) fn time(
        &mut self,
        device: &Cuda,
        repeats: usize,
        launch: &mut dyn FnMut(&Cuda) -> Result<()>,
    ) -> Result<Times> {
        const OP: &str = "time a kernel";
        let stream = &device.stream;
        let now = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(cuda(OP));
        for _ in 0..WARM_UP {
            launch(device)?;
        }
        let mut events = Vec::with_capacity(repeats);
        for _ in 0..repeats {
            stream.memset_zeros(&mut self.flush).map_err(cuda(OP))?;
            let start = now()?;
            launch(device)?;
            events.push((start, now()?));
        }
        let us =
            events.iter().map(|(start, end)| Ok(1e3 * f64::from(start.elapsed_ms(end).map_err(cuda(OP))?)));
        us.collect::<Result<_>>().map(Times::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_minimum() {
        assert_eq!(Times::new(vec![3.0, 1.0, 9.0]), Times { median_us: 3.0, min_us: 1.0, repeats: 3 });
        assert_eq!(Times::new(vec![4.0, 1.0, 9.0, 2.0]), Times { median_us: 3.0, min_us: 1.0, repeats: 4 });
        assert_eq!(Times::new(vec![5.0]), Times { median_us: 5.0, min_us: 5.0, repeats: 1 });
    }
}
