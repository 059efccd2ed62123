//! The CUDA engine, as far as it goes: the operations that have kernels, behind the same list as the CPU's.
//!
//! RMSNorm forward, the products of linear layers, gradient norm and AdamW run on the device; every other operation
//! says that it has no kernel.
//! [`super::open`] therefore refuses to train on it; tests and benches drive it operation by operation.

use super::*;
use crate::cuda::{Cuda, Device as Gpu, PARAMS_BYTES, Rung, cuda};
use crate::ops::adamw_launch::DeviceWeights;
use crate::ops::grad_norm::DeviceNorm;
use crate::ops::{linear_launch, rmsnorm};
use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode, CUstreamCaptureStatus};

const _: () = assert!(size_of::<StepParams>() == PARAMS_BYTES, "as in kernels/common.cuh");

/// One GPU with its arena.
pub struct CudaEngine {
    /// Recorded work. It refers to the buffers below, hence goes before them.
    graph: Option<CudaGraph>,
    device: Cuda,
    rung: Rung,
    norm: Option<DeviceNorm>,
    weights: Option<DeviceWeights>,
}

impl CudaEngine {
    /// Opens the GPU, loads the kernels of one rung for activations of type `dtype`, allocates the plan's memory.
    ///
    /// # Errors
    /// [`Error::Input`] without a driver, GPU or kernels; [`Error::Run`] without enough memory; [`Error::Cuda`].
    pub fn new(ordinal: usize, plan: &Plan, dtype: DType, rung: Rung) -> Result<Self> {
        let device = Cuda::new(&Gpu::open(ordinal)?, plan.bytes(), dtype)?;
        Ok(Self { graph: None, device, rung, norm: None, weights: None })
    }

    /// Captures the operations of `step` as one graph instead of executing them; [`CudaEngine::replay`] executes them
    /// as often as wanted, each time with the parameters and the contents of the buffers at the time. Uploads and
    /// downloads cannot be part of it, and [`Backend::gradient_norm`] and [`Backend::adamw`] must have run before.
    ///
    /// # Errors
    /// Those of `step`; [`Error::Cuda`] if the driver refuses to capture.
    pub fn record(&mut self, step: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        const OP: &str = "record the step";
        let stream = self.device.stream.clone();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).map_err(cuda(OP))?;
        let recorded = step(self);
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)); // also after an error: the stream must go on
        recorded?;
        self.graph = graph.map_err(cuda(OP))?;
        Ok(())
    }

    /// Starts the recorded operations, and returns at once.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    ///
    /// # Panics
    /// If nothing was recorded.
    pub fn replay(&mut self) -> Result<()> {
        let graph = self.graph.as_ref().expect("record comes before replay");
        graph.launch().map_err(cuda("replay the step"))
    }

    /// Refuses what would allocate memory that belongs to the graph.
    fn expect_not_recording(&self, op: &'static str) -> Result<()> {
        let status = self.device.stream.capture_status().map_err(cuda(op))?;
        if status == CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
            return Ok(());
        }
        let (dim, got) = ("first call", "one that is recorded".into());
        Err(Error::Unsupported { op, dim, got, rule: "one call before the step is recorded" })
    }
}

/// The operation has no kernel yet.
fn missing(op: &'static str) -> Result<()> {
    let rule = "an operation with a CUDA kernel; use --device cpu";
    Err(Error::Unsupported { op, dim: "engine", got: "cuda".into(), rule })
}

impl Backend for CudaEngine {
    fn activation_dtype(&self) -> DType {
        self.device.dtype
    }
    fn upload(&mut self, to: Tensor, bytes: &[u8]) -> Result<()> {
        self.device.upload(to, bytes)
    }
    fn download(&mut self, from: Tensor, bytes: &mut [u8]) -> Result<()> {
        self.device.download(from, bytes)
    }
    fn set_params(&mut self, params: &StepParams) -> Result<()> {
        self.device.set_params(bytemuck::cast_ref(params))
    }
    fn take_output(&mut self) -> Result<StepOutput> {
        let Some(norm) = &self.norm else { return Ok(StepOutput::default()) };
        let norm = norm.download(&self.device)?;
        Ok(StepOutput { grad_norm: norm.norm, skipped: norm.skip != 0, ..StepOutput::default() })
    }
    fn rmsnorm_forward(&mut self, x: Tensor, w: Tensor, eps: f32, y: Tensor, rstd: Tensor) -> Result<()> {
        rmsnorm::launch_forward(&self.device, self.rung, x, w, eps, y, rstd)
    }
    fn linear(&mut self, x: Tensor, w: Tensor, y: Tensor) -> Result<()> {
        linear_launch::launch(&self.device, self.rung, x, w, y)
    }
    fn linear_residual(&mut self, x: Tensor, w: Tensor, residual: Tensor, y: Tensor) -> Result<()> {
        linear_launch::launch_residual(&self.device, self.rung, x, w, residual, y)
    }
    fn linear_input_gradient(&mut self, dy: Tensor, w: Tensor, dx: Tensor) -> Result<()> {
        linear_launch::launch_input_gradient(&self.device, self.rung, dy, w, dx)
    }
    fn linear_weight_gradient(&mut self, dy: Tensor, x: Tensor, dw: Tensor) -> Result<()> {
        linear_launch::launch_weight_gradient(&self.device, self.rung, dy, x, dw)
    }
    fn gradient_norm(&mut self, grads: Tensor) -> Result<()> {
        let norm = match self.norm.take() {
            Some(norm) => norm,
            None => {
                self.expect_not_recording("gradient_norm")?;
                DeviceNorm::new(&self.device, grads.len())?
            }
        };
        self.norm.insert(norm).launch(&self.device, self.rung, grads)
    }
    fn adamw(&mut self, rule: UpdateRule, weights: &[Trainable]) -> Result<()> {
        let weights = match self.weights.take() {
            Some(table) => table,
            None => {
                self.expect_not_recording("adamw")?;
                DeviceWeights::new(&self.device, rule, weights)?
            }
        };
        let Some(norm) = &self.norm else {
            let rule = "gradient_norm before it";
            return Err(Error::Unsupported { op: "adamw", dim: "order", got: "no norm".into(), rule });
        };
        self.weights.insert(weights).launch(&self.device, self.rung, norm)
    }

    fn zero(&mut self, _: Tensor) -> Result<()> {
        missing("zero")
    }
    fn embedding_forward(&mut self, _: &BatchBuffers, _: Tensor, _: Tensor) -> Result<()> {
        missing("embedding_forward")
    }
    fn embedding_backward(&mut self, _: &BatchBuffers, _: Tensor, _: Tensor, _: bool) -> Result<()> {
        missing("embedding_backward")
    }
    fn rmsnorm_backward(&mut self, _: RmsNormBackward) -> Result<()> {
        missing("rmsnorm_backward")
    }
    fn linear_rope(
        &mut self,
        _: &BatchBuffers,
        _: Heads,
        _: RopeTable,
        _: Tensor,
        _: Tensor,
        _: Tensor,
    ) -> Result<()> {
        missing("linear_rope")
    }
    fn attention_forward(
        &mut self,
        _: &BatchBuffers,
        _: Heads,
        _: Tensor,
        _: Tensor,
        _: Tensor,
    ) -> Result<()> {
        missing("attention_forward")
    }
    fn attention_backward(
        &mut self,
        _: &BatchBuffers,
        _: Heads,
        _: RopeTable,
        _: AttentionBackward,
    ) -> Result<()> {
        missing("attention_backward")
    }
    fn attention_cached(&mut self, _: Heads, _: usize, _: Tensor, _: KvCache, _: Tensor) -> Result<()> {
        missing("attention_cached")
    }
    fn linear_swiglu(&mut self, _: Tensor, _: Tensor, _: Tensor, _: Tensor) -> Result<()> {
        missing("linear_swiglu")
    }
    fn linear_swiglu_backward(&mut self, _: SwigluBackward) -> Result<()> {
        missing("linear_swiglu_backward")
    }
    fn linear_cross_entropy(&mut self, _: &BatchBuffers, _: LinearCrossEntropy) -> Result<()> {
        missing("linear_cross_entropy")
    }
    fn logits(&mut self, _: Tensor, _: Tensor, _: Tensor) -> Result<()> {
        missing("logits")
    }
}
