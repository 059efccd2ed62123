//! The CUDA engine: every operation by the kernels of `kernels/`, on one stream. What needs no allocation after its
//! first run is recorded at its second, as a graph, and replayed from then on.

use super::*;
use crate::arena::Plan;
use crate::config::ModelConfig;
use crate::cuda::{
    Cuda, Device as Gpu, LOSS_SCALE_AT, NORM_AT, PARAMS_BYTES, Rung, STEP_BYTES, SUMS_AT, cuda, range,
};
use crate::ops::adamw_launch::DeviceWeights;
use crate::ops::attention_launch;
use crate::ops::cross_entropy_launch::{self, HeadRungs, LossSums};
use crate::ops::grad_norm::{DeviceNorm, GradNorm};
use crate::ops::linear_launch::{self, Rotation, Rows};
use crate::ops::{bias, embedding, noise, places, rmsnorm, rows};
use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

/// What a step keeps on the device: `struct StepParams` of `kernels/common.cuh`, then where the head adds up and where
/// the norm goes.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DeviceStep {
    params: StepParams,
    loss_scale: LossScale,
    sums: LossSums,
    norm: GradNorm,
}

const _: () = {
    assert!(size_of::<StepParams>() == PARAMS_BYTES && size_of::<DeviceStep>() == STEP_BYTES);
    assert!(std::mem::offset_of!(DeviceStep, loss_scale) == LOSS_SCALE_AT);
    assert!(std::mem::offset_of!(DeviceStep, sums) == SUMS_AT);
    assert!(std::mem::offset_of!(DeviceStep, norm) == NORM_AT);
};

/// What the kernels ask of a model's dimensions, said before anything is planned.
///
/// # Errors
/// [`Error::Input`] naming the first that does not fit.
pub(super) fn check_model(model: &ModelConfig, dtype: DType) -> Result<()> {
    let chunks = |n: usize| n.is_multiple_of(8);
    let (heads, f32) = (model.head_dim, dtype == DType::F32);
    let head_dim = if f32 { heads.is_multiple_of(2) && heads <= 128 } else { matches!(heads, 16 | 32 | 64) };
    let (hidden, most) = (model.hidden_size, rmsnorm::MOST_COLUMNS);
    let rules = [
        ("hidden_size", hidden, chunks(hidden) && hidden <= most, "a multiple of 8, at most 4096"),
        ("intermediate_size", model.intermediate_size, chunks(model.intermediate_size), "a multiple of 8"),
        ("vocab_size", model.vocab_size, chunks(model.vocab_size), "a multiple of 8"),
        ("head_dim", heads, !model.attention_bias || chunks(heads), "a multiple of 8 with attention_bias"),
        ("head_dim", heads, head_dim, if f32 { "even, at most 128" } else { "16, 32 or 64" }),
    ];
    let Some((name, found, _, rule)) = rules.into_iter().find(|(_, _, fits, _)| !fits) else { return Ok(()) };
    let found = format!("the model's {name} is {found}; the GPU kernels take {rule}");
    Err(Error::input("the model on a GPU", found, "use --device cpu, or another model"))
}

/// How far a part of the step is.
enum Recorded {
    /// It is always called directly.
    Never,
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
    /// Of the present parameters, for [`Backend::logits`]; everything else reads them on the device.
    tokens: usize,
    /// Bytes taken from the GPU: nothing is, once every part was recorded.
    memory: u64,
    norm: Option<DeviceNorm>,
    weights: Option<DeviceWeights>,
}

impl CudaEngine {
    /// Loads the kernels of one rung for activations of type `dtype` and allocates the plan's memory.
    ///
    /// # Errors
    /// [`Error::Input`] without kernels for this GPU; [`Error::Run`] without enough memory; [`Error::Cuda`].
    pub fn new(gpu: &Gpu, plan: &Plan, dtype: DType, rung: Rung) -> Result<Self> {
        let mut device = Cuda::new(gpu, plan.bytes(), dtype)?;
        device.workspace = plan.workspace();
        let recorded = [Recorded::New, Recorded::New, Recorded::New];
        let memory = device.memory_taken()?;
        let mut engine = Self { recorded, device, rung, tokens: 0, memory, norm: None, weights: None };
        engine.set_loss_scale(LossScale::default())?;
        Ok(engine)
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
    fn record_nothing(&mut self) {
        self.recorded = [Recorded::Never, Recorded::Never, Recorded::Never];
    }
    fn device_memory_bytes(&self) -> Option<u64> {
        Some(self.memory)
    }
    fn set_params(&mut self, params: &StepParams) -> Result<()> {
        self.tokens = params.tokens as usize;
        self.device.write_step(0, bytemuck::bytes_of(params))
    }
    fn set_loss_scale(&mut self, scale: LossScale) -> Result<()> {
        self.device.write_step(LOSS_SCALE_AT, bytemuck::bytes_of(&scale))
    }
    fn take_output(&mut self) -> Result<StepOutput> {
        let step: DeviceStep = bytemuck::pod_read_unaligned(self.device.read_step()?);
        // The next window starts at nothing, also one without an update.
        self.device.write_step(SUMS_AT, &[0; STEP_BYTES - SUMS_AT])?;
        Ok(StepOutput {
            loss_sum: step.sums.loss_sum,
            entropy_sum: step.sums.entropy_sum,
            correct: step.sums.correct,
            grad_norm: step.norm.norm,
            skipped: step.norm.skip != 0,
            loss_scale: step.loss_scale,
        })
    }
    fn zero(&mut self, t: Tensor) -> Result<()> {
        let _range = range(format_args!("zero"));
        rows::zero(&self.device, self.rung, t)
    }
    fn embedding_forward(&mut self, batch: &BatchBuffers, w: Tensor, x: Tensor) -> Result<()> {
        let _range = range(format_args!("embedding_forward"));
        embedding::launch_forward(&self.device, self.rung, batch.ids, w, x)
    }
    fn embedding_noise(&mut self, batch: &BatchBuffers, alpha: f32, x: Tensor) -> Result<()> {
        let _range = range(format_args!("embedding_noise"));
        noise::launch_embedding(&self.device, self.rung, batch.cu_seqlens, alpha, x)
    }
    fn embedding_backward(&mut self, batch: &BatchBuffers, dx: Tensor, dw: Tensor, tied: bool) -> Result<()> {
        let _range = range(format_args!("embedding_backward"));
        let lists = [batch.ids, batch.by_id, batch.id_starts];
        embedding::launch_backward(&self.device, self.rung, lists, dx, dw, tied)
    }
    fn run(&mut self, part: Part, operations: &mut dyn FnMut(&mut dyn Backend) -> Result<()>) -> Result<()> {
        let slot = part as usize;
        match &self.recorded[slot] {
            Recorded::New => {
                operations(self)?;
                self.recorded[slot] = Recorded::Ready;
                self.memory = self.device.memory_taken()?;
                return Ok(());
            }
            Recorded::Ready => {
                let Some(graph) = self.record(operations)? else { return Ok(()) }; // nothing to do at all
                self.recorded[slot] = Recorded::As(graph);
                self.memory = self.device.memory_taken()?;
            }
            Recorded::As(_) => {}
            Recorded::Never => return operations(self),
        }
        let Recorded::As(graph) = &self.recorded[slot] else { return Ok(()) };
        graph.launch().map_err(cuda("replay a part of the step"))
    }
    fn rmsnorm_forward(&mut self, x: Tensor, w: Tensor, eps: f32, y: Tensor, rstd: Tensor) -> Result<()> {
        let _range = range(format_args!("rmsnorm_forward"));
        rmsnorm::launch_forward(&self.device, self.rung, x, w, eps, y, rstd)
    }
    fn rmsnorm_backward(&mut self, args: RmsNormBackward) -> Result<()> {
        let _range = range(format_args!("rmsnorm_backward"));
        rmsnorm::launch_backward(&self.device, self.rung, &args)
    }
    fn linear(&mut self, x: Tensor, w: Tensor, y: Tensor) -> Result<()> {
        let _range = range(format_args!("linear"));
        linear_launch::linear(&self.device, self.products(), x, w, y)
    }
    fn linear_residual(&mut self, x: Tensor, w: Projection, residual: Tensor, y: Tensor) -> Result<()> {
        let _range = range(format_args!("linear_residual"));
        linear_launch::linear_residual(&self.device, self.products(), x, w, residual, y)
    }
    fn linear_input_gradient(&mut self, dy: Tensor, w: Projection, dx: Tensor) -> Result<()> {
        let _range = range(format_args!("linear_input_gradient"));
        linear_launch::input_gradient(&self.device, self.products(), Rows::Tokens, dy, w, dx)
    }
    fn linear_weight_gradient(&mut self, dy: Tensor, x: Tensor, dw: Tensor) -> Result<()> {
        let _range = range(format_args!("linear_weight_gradient"));
        linear_launch::weight_gradient(&self.device, self.products(), Rows::Tokens, dy, x, dw)
    }
    fn bias_gradient(&mut self, dy: Tensor, db: Tensor, partials: Tensor) -> Result<()> {
        let _range = range(format_args!("bias_gradient"));
        bias::launch(&self.device, self.rung, dy, db, partials)
    }
    fn linear_rope(
        &mut self,
        batch: &BatchBuffers,
        heads: Heads,
        rope: RopeTable,
        x: Tensor,
        w: Projection,
        qkv: Tensor,
    ) -> Result<()> {
        let _range = range(format_args!("linear_rope"));
        let rotation = Rotation { heads, positions: batch.positions, cos: rope.cos, sin: rope.sin };
        linear_launch::linear_rope(&self.device, self.products(), rotation, x, w, qkv)
    }
    fn attention_forward(
        &mut self,
        batch: &BatchBuffers,
        heads: Heads,
        qkv: Tensor,
        out: Tensor,
        lse: Tensor,
    ) -> Result<()> {
        let _range = range(format_args!("attention_forward"));
        attention_launch::forward(&self.device, self.products(), heads, batch.cu_seqlens, qkv, out, lse)
    }
    fn attention_backward(
        &mut self,
        batch: &BatchBuffers,
        heads: Heads,
        rope: RopeTable,
        args: AttentionBackward,
    ) -> Result<()> {
        let _range = range(format_args!("attention_backward"));
        let (rung, rope) = (self.products(), [rope.cos, rope.sin]);
        attention_launch::backward(&self.device, rung, heads, batch.cu_seqlens, batch.positions, rope, args)
    }
    fn attention_cached(
        &mut self,
        heads: Heads,
        sequences: &[CachedSequence],
        qkv: Tensor,
        cache: KvCache,
        out: Tensor,
    ) -> Result<()> {
        let _range = range(format_args!("attention_cached"));
        cache.expect(self.tokens, sequences)?;
        let (each, positions) = (self.tokens / sequences.len(), cache.positions());
        for (i, &CachedSequence { slot, past }) in sequences.iter().enumerate() {
            let [qkv, out] = [qkv, out].map(|t| t.rows(i * each, each));
            let cache = [cache.keys, cache.values].map(|t| t.rows(slot * positions, positions));
            attention_launch::cached(&self.device, self.rung, heads, past, qkv, cache, out)?;
        }
        Ok(())
    }
    fn linear_swiglu(&mut self, x: Tensor, w: Projection, gate_up: Tensor, act: Tensor) -> Result<()> {
        let _range = range(format_args!("linear_swiglu"));
        linear_launch::linear_swiglu(&self.device, self.products(), x, w, gate_up, act)
    }
    fn linear_swiglu_backward(&mut self, args: SwigluBackward) -> Result<()> {
        let _range = range(format_args!("linear_swiglu_backward"));
        let SwigluBackward { dy, w, adapter, gate_up, dgate_up, .. } = args;
        let w = Projection { w, bias: None, adapter };
        let act = (!args.act_is_kept).then_some(args.act);
        linear_launch::swiglu_backward(&self.device, self.products(), dy, w, gate_up, act, dgate_up)
    }
    fn linear_cross_entropy(&mut self, batch: &BatchBuffers, args: LinearCrossEntropy) -> Result<()> {
        let _range = range(format_args!("linear_cross_entropy"));
        let rungs = HeadRungs { rows: self.rung, products: self.products() };
        cross_entropy_launch::launch(&self.device, rungs, [batch.targets, batch.loss_rows], &args)
    }
    fn logits(&mut self, x: Tensor, w: Tensor, logits: Tensor) -> Result<()> {
        let _range = range(format_args!("logits"));
        let n = logits.rows.min(self.tokens);
        let last = Tensor { offset: x.offset + (self.tokens - n) * x.cols * x.dtype.size(), rows: n, ..x };
        linear_launch::linear_wide(&self.device, self.products(), Rows::Planned, last, w, logits.head(n))
    }
    fn dropout(&mut self, x: Tensor, dropout: Dropout, y: Tensor) -> Result<()> {
        let _range = range(format_args!("dropout"));
        noise::launch_dropout(&self.device, self.rung, x, dropout, y)
    }
    fn spread(&mut self, at: Places) -> Result<()> {
        let _range = range(format_args!("spread"));
        places::launch_spread(&self.device, at)
    }
    fn gather(&mut self, at: Places) -> Result<()> {
        let _range = range(format_args!("gather"));
        places::launch_gather(&self.device, at)
    }
    fn gradient_norm(&mut self, grads: Tensor) -> Result<()> {
        let _range = range(format_args!("gradient_norm"));
        let norm = match self.norm.take() {
            Some(norm) => norm,
            None => DeviceNorm::new(&self.device, grads.len())?,
        };
        self.norm.insert(norm).launch(&self.device, self.rung, grads)
    }
    fn adamw(&mut self, rule: UpdateRule, weights: &[Trainable]) -> Result<()> {
        let _range = range(format_args!("adamw"));
        let weights = match self.weights.take() {
            Some(table) => table,
            None => DeviceWeights::new(&self.device, rule, weights)?,
        };
        if self.norm.is_none() {
            let rule = "gradient_norm before it";
            return Err(Error::Unsupported { op: "adamw", dim: "order", got: "no norm".into(), rule });
        }
        self.weights.insert(weights).launch(&self.device, self.rung)
    }
}
