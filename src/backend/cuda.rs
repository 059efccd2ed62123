//! The CUDA engine, as far as it goes: the operations that have kernels, behind the same list as the CPU's.
//!
//! RMSNorm forward, gradient norm and AdamW run on the device; every other operation says that it has no kernel.
//! [`super::open`] therefore refuses to train on it; tests and benches drive it operation by operation.

use super::*;
use crate::cuda::{Cuda, Device as Gpu, PARAMS_BYTES, Rung};
use crate::ops::adamw_launch::DeviceWeights;
use crate::ops::grad_norm::DeviceNorm;
use crate::ops::rmsnorm;

const _: () = assert!(size_of::<StepParams>() == PARAMS_BYTES, "as in kernels/common.cuh");

/// One GPU with its arena.
pub struct CudaEngine {
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
        Ok(Self { device, rung, norm: None, weights: None })
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
    fn gradient_norm(&mut self, grads: Tensor) -> Result<()> {
        let norm = match self.norm.take() {
            Some(norm) => norm,
            None => DeviceNorm::new(&self.device, grads.len())?,
        };
        self.norm.insert(norm).launch(&self.device, self.rung, grads)
    }
    fn adamw(&mut self, rule: UpdateRule, weights: &[Trainable]) -> Result<()> {
        let weights = match self.weights.take() {
            Some(table) => table,
            None => DeviceWeights::new(&self.device, rule, weights)?,
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
    fn linear(&mut self, _: Tensor, _: Tensor, _: Tensor) -> Result<()> {
        missing("linear")
    }
    fn linear_residual(&mut self, _: Tensor, _: Tensor, _: Tensor, _: Tensor) -> Result<()> {
        missing("linear_residual")
    }
    fn linear_input_gradient(&mut self, _: Tensor, _: Tensor, _: Tensor) -> Result<()> {
        missing("linear_input_gradient")
    }
    fn linear_weight_gradient(&mut self, _: Tensor, _: Tensor, _: Tensor) -> Result<()> {
        missing("linear_weight_gradient")
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
