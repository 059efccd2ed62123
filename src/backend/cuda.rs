//! The CUDA engine, as far as it goes: the operations that have kernels, behind the same list as the CPU's.
//!
//! RMSNorm forward, the products of linear layers, gradient norm and AdamW run on the device; every other operation
//! says that it has no kernel.
//! [`super::open`] therefore refuses to train on it; tests and benches drive it operation by operation.

use super::*;
use crate::cuda::{Cuda, Device as Gpu, PARAMS_BYTES, Rung, cuda};
use crate::ops::adamw_launch::DeviceWeights;
use crate::ops::grad_norm::DeviceNorm;
use crate::ops::linear_launch::{self, Rows};
use crate::ops::rmsnorm;
use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

const _: () = assert!(size_of::<StepParams>() == PARAMS_BYTES, "as in kernels/common.cuh");

/// How far a part of the step is.
enum Recorded {
    /// It has not run: what it needs besides the arena is not allocated yet.
    New,
    /// It ran once.
    Ready,
    /// It is replayed.
    As(CudaGraph),
}

/// One GPU with its arena.
pub struct CudaEngine {
    /// Recorded parts of the step, by [`Part`]. They refer to the buffers below, hence go before them.
    recorded: [Recorded; 3],
    device: Cuda,
    rung: Rung,
    norm: Option<DeviceNorm>,
    weights: Option<DeviceWeights>,
}

impl CudaEngine {
    /// Loads the kernels of one rung for activations of type `dtype` and allocates the plan's memory.
    ///
    /// # Errors
    /// [`Error::Input`] without kernels for this GPU; [`Error::Run`] without enough memory; [`Error::Cuda`].
    pub fn new(gpu: &Gpu, plan: &Plan, dtype: DType, rung: Rung) -> Result<Self> {
        let device = Cuda::new(gpu, plan.bytes(), dtype)?;
        let recorded = [Recorded::New, Recorded::New, Recorded::New];
        Ok(Self { recorded, device, rung, norm: None, weights: None })
    }

    /// Captures operations as a graph instead of executing them.
    fn record(
        &mut self,
        operations: &mut dyn FnMut(&mut dyn Backend) -> Result<()>,
    ) -> Result<Option<CudaGraph>> {
        const OP: &str = "record a part of the step";
        let stream = self.device.stream.clone();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).map_err(cuda(OP))?;
        let recorded = operations(self);
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)); // also after an error: the stream must go on
        recorded?;
        graph.map_err(cuda(OP))
    }

    /// Rung of the matrix products: f32 has only the naive one, as tensor cores do not take it.
    fn products(&self) -> Rung {
        if self.device.dtype == DType::F32 { Rung::Naive } else { self.rung }
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
    fn run(&mut self, part: Part, operations: &mut dyn FnMut(&mut dyn Backend) -> Result<()>) -> Result<()> {
        let slot = part as usize;
        match &self.recorded[slot] {
            Recorded::New => {
                operations(self)?;
                self.recorded[slot] = Recorded::Ready;
                return Ok(());
            }
            Recorded::Ready => {
                let Some(graph) = self.record(operations)? else { return Ok(()) }; // nothing to do at all
                self.recorded[slot] = Recorded::As(graph);
            }
            Recorded::As(_) => {}
        }
        let Recorded::As(graph) = &self.recorded[slot] else { return Ok(()) };
        graph.launch().map_err(cuda("replay a part of the step"))
    }
    fn rmsnorm_forward(&mut self, x: Tensor, w: Tensor, eps: f32, y: Tensor, rstd: Tensor) -> Result<()> {
        rmsnorm::launch_forward(&self.device, self.rung, x, w, eps, y, rstd)
    }
    fn linear(&mut self, x: Tensor, w: Tensor, y: Tensor) -> Result<()> {
        linear_launch::linear(&self.device, self.products(), x, w, y)
    }
    fn linear_residual(&mut self, x: Tensor, w: Tensor, residual: Tensor, y: Tensor) -> Result<()> {
        linear_launch::linear_residual(&self.device, self.products(), x, w, residual, y)
    }
    fn linear_input_gradient(&mut self, dy: Tensor, w: Tensor, dx: Tensor) -> Result<()> {
        linear_launch::input_gradient(&self.device, self.products(), Rows::Tokens, dy, w, dx)
    }
    fn linear_weight_gradient(&mut self, dy: Tensor, x: Tensor, dw: Tensor) -> Result<()> {
        linear_launch::weight_gradient(&self.device, self.products(), Rows::Tokens, dy, x, dw)
    }
    fn linear_rope(
        &mut self,
        batch: &BatchBuffers,
        heads: Heads,
        rope: RopeTable,
        x: Tensor,
        w: Tensor,
        qkv: Tensor,
    ) -> Result<()> {
        let (rung, rope) = (self.products(), [rope.cos, rope.sin]);
        linear_launch::linear_rope(&self.device, rung, heads, batch.positions, rope, x, w, qkv)
    }
    fn linear_swiglu(&mut self, x: Tensor, w: Tensor, gate_up: Tensor, act: Tensor) -> Result<()> {
        linear_launch::linear_swiglu(&self.device, self.products(), x, w, gate_up, act)
    }
    fn linear_swiglu_backward(&mut self, args: SwigluBackward) -> Result<()> {
        let SwigluBackward { dy, w, gate_up, act, dgate_up, .. } = args;
        linear_launch::swiglu_backward(&self.device, self.products(), dy, w, gate_up, act, dgate_up)
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
    fn linear_cross_entropy(&mut self, _: &BatchBuffers, _: LinearCrossEntropy) -> Result<()> {
        missing("linear_cross_entropy")
    }
    fn logits(&mut self, _: Tensor, _: Tensor, _: Tensor) -> Result<()> {
        missing("logits")
    }
}
