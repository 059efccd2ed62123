//! The seam between the model and the hardware: one method per fused operation of the training step.
//!
//! Buffers are handles into one arena planned beforehand ([`crate::arena`]). Activations are planned for the
//! largest micro-batch; how many tokens the present one has, and every scalar that changes from step to step, is in
//! [`StepParams`], a small struct in device memory. So an operation's arguments are the same at every step, and a
//! device may record the step once and replay it. Nothing comes back to the host but [`StepOutput`], once per step.
//!
//! A backend may fuse an operation into one kernel or not; the model cannot tell. Dimension letters: T tokens,
//! C hidden_size, H heads, K kv heads, D head_dim, F intermediate_size, V vocab_size.
//! The residual stream is fp32 in every precision, as under PyTorch's autocast; "A" below is the activation type.

mod cpu;
mod cuda;
mod target;

pub use crate::ops::adamw::{Moments, Trainable, UpdateRule};
pub use crate::ops::attention::CachedSequence;
pub use crate::ops::attention_launch::AttentionBackward;
pub use crate::ops::cross_entropy::{HeadGradients, LinearCrossEntropy};
pub use crate::ops::linear::{LowRank, Projection};
pub use crate::ops::loss_scale::LossScale;
pub use crate::ops::noise::Dropout;
pub use crate::ops::places::Places;
pub use crate::ops::rmsnorm::RmsNormBackward;
pub use cpu::Cpu;
pub use cuda::CudaEngine;
pub use target::{Target, describe, multiplies_q8_0, open, plan_workspace, precision};

use crate::arena::Tensor;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::adamw::AdamWScalars;
use crate::ops::attention::Heads;

/// What the host changes from step to step. Mirrored by `struct StepParams` in `kernels/common.cuh`, which goes on with
/// what the device keeps itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct StepParams {
    /// Tokens of this micro-batch (T).
    pub tokens: u32,
    /// Sequences of this micro-batch; `cu_seqlens` has one more entry.
    pub sequences: u32,
    /// Positions in the loss: entries of `loss_rows` in use.
    pub supervised: u32,
    /// Distinct token ids: entries of `id_starts` in use, less one.
    pub distinct_ids: u32,
    /// 0 for the first micro-batch of a window, whose weight gradients overwrite; 1 after it, where they add.
    pub accumulate: u32,
    /// One over the supervised tokens of the whole accumulation window.
    pub inverse_denominator: f32,
    /// Gradients are scaled so that their global L2 norm is at most this.
    pub max_grad_norm: f32,
    /// Learning rate, bias corrections and decay of this optimizer step.
    pub adamw: AdamWScalars,
    /// What random numbers of this micro-batch follow from: see [`crate::ops::noise`].
    pub noise_key: [u32; 2],
}

/// What a finished step reports.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// Sum of the token losses over the window, in nats.
    pub loss_sum: f64,
    /// Sum over the same tokens of the entropy of what was predicted, in nats.
    pub entropy_sum: f64,
    /// Supervised tokens whose target had the largest logit.
    pub correct: u64,
    /// Global L2 norm of the gradient before clipping, loss scale taken out.
    pub grad_norm: f64,
    /// The norm was not finite, so neither weights nor optimizer state changed.
    pub skipped: bool,
    /// For the next step.
    pub loss_scale: LossScale,
}

/// Where a micro-batch lies on the device; capacities are those of the plan.
#[derive(Clone, Copy, Debug)]
pub struct BatchBuffers {
    /// Token ids, u32 `[1, T]`.
    pub ids: Tensor,
    /// Position of each token within its sequence, u32 `[1, T]`.
    pub positions: Tensor,
    /// Bounds of the sequences, u32 `[1, sequences + 1]`.
    pub cu_seqlens: Tensor,
    /// Next token or [`crate::batch::NO_TARGET`], u32 `[1, T]`.
    pub targets: Tensor,
    /// Positions that have a target, ascending, u32 `[1, T]`.
    pub loss_rows: Tensor,
    /// Positions sorted by token id, equal ids in ascending position, u32 `[1, T]`.
    pub by_id: Tensor,
    /// Where each distinct id begins in `by_id`, and the end, u32 `[1, T + 1]`.
    pub id_starts: Tensor,
}

/// Rotary tables: `cos` and `sin` of position × frequency, f32 `[positions, D/2]`.
#[derive(Clone, Copy, Debug)]
pub struct RopeTable {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

/// Arguments of [`Backend::linear_swiglu_backward`].
#[derive(Clone, Copy, Debug)]
pub struct SwigluBackward {
    /// Gradient of the MLP's output, A `[T, C]`.
    pub dy: Tensor,
    /// Down projection, A `[C, F]`.
    pub w: Tensor,
    /// That of its adapter, if it has one.
    pub adapter: Option<LowRank>,
    /// Gate and up projections side by side, A `[T, 2F]`.
    pub gate_up: Tensor,
    /// Out: `silu(gate)·up` again, A `[T, F]`, for the weight gradient.
    pub act: Tensor,
    /// `act` still holds it from the forward pass; a backend may leave it untouched.
    pub act_is_kept: bool,
    /// Out: gradient of `gate_up`, A `[T, 2F]`.
    pub dgate_up: Tensor,
}

/// Keys and values of one layer during generation, of one sequence or several.
#[derive(Clone, Copy, Debug)]
pub struct KvCache {
    /// A `[slots · positions, K·D]`, rotated.
    pub keys: Tensor,
    /// A `[slots · positions, K·D]`.
    pub values: Tensor,
    /// Sequences it has room for.
    pub slots: usize,
}

impl KvCache {
    /// Tokens it has room for of each sequence.
    pub fn positions(&self) -> usize {
        self.keys.rows / self.slots
    }

    /// Checks that `tokens` new tokens of these sequences, as many of each, have a place: for every backend.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming what does not fit.
    pub fn expect(&self, tokens: usize, sequences: &[CachedSequence]) -> Result<()> {
        let unsupported = |dim, got: usize, rule| {
            Err(Error::Unsupported { op: "attention_cached", dim, got: got.to_string(), rule })
        };
        if sequences.is_empty() || !tokens.is_multiple_of(sequences.len()) {
            return unsupported("sequences", sequences.len(), "as many tokens of each");
        }
        let each = tokens / sequences.len();
        for sequence in sequences {
            if sequence.slot >= self.slots {
                return unsupported("slot", sequence.slot, "a slot that the cache was planned with");
            }
            if sequence.past + each > self.positions() {
                let rule = "no more positions than the cache was planned for";
                return unsupported("positions", sequence.past + each, rule);
            }
        }
        Ok(())
    }
}

/// A part of the training step that is the same list of operations every time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Forward and backward pass of a micro-batch.
    Train,
    /// Norm, clipping and update.
    Update,
    /// Forward pass and loss of a micro-batch.
    Evaluate,
}

/// A device that can run the training step. See the module's text for what the letters mean.
///
/// # Errors
/// Every method returns [`Error::Shape`] or [`Error::Unsupported`] when buffers do not fit the operation, and
/// [`Error::Cuda`] when the driver refuses a call.
#[allow(missing_docs, reason = "one paragraph for all errors, above")]
pub trait Backend {
    /// Type of weights and activations (A).
    fn activation_dtype(&self) -> DType;

    /// Copies host bytes into a buffer; `bytes` may be shorter than the buffer.
    fn upload(&mut self, to: Tensor, bytes: &[u8]) -> Result<()>;
    /// Copies a buffer to the host, waiting for all work before it.
    fn download(&mut self, from: Tensor, bytes: &mut [u8]) -> Result<()>;
    /// Makes [`Backend::run`] call its operations every time, for profilers; the results are the same.
    fn record_nothing(&mut self) {}
    /// Bytes taken of a device that has memory of its own.
    fn device_memory_bytes(&self) -> Option<u64> {
        None
    }
    /// Sets what the operations after this read.
    fn set_params(&mut self, params: &StepParams) -> Result<()>;
    /// Sets the factor on the loss gradient, which every later step changes as it ends; 1 and fixed before.
    fn set_loss_scale(&mut self, scale: LossScale) -> Result<()>;
    /// Waits for the step's work and takes its report; the sums start again at zero.
    fn take_output(&mut self) -> Result<StepOutput>;
    /// Runs `operations`, which must be the same at every call with this `part`: a device may record them and replay the
    /// record from then on.
    fn run(&mut self, part: Part, operations: &mut dyn FnMut(&mut dyn Backend) -> Result<()>) -> Result<()>;

    /// Sets the rows in use of an activation to zero.
    fn zero(&mut self, t: Tensor) -> Result<()>;
    /// `x[t] = w[ids[t]]`, widened to f32.
    fn embedding_forward(&mut self, batch: &BatchBuffers, w: Tensor, x: Tensor) -> Result<()>;
    /// Adds noise to the embedding, `x[t, c] += u·alpha/√(L·C)` with u from −1 up to 1 and L the tokens of t's sequence
    /// (NEFTune, Jain et al. 2023, arXiv:2310.05914). x f32 `[T, C]`.
    fn embedding_noise(&mut self, batch: &BatchBuffers, alpha: f32, x: Tensor) -> Result<()>;
    /// `dw[id] += Σ dx[t]` over the tokens with that id, in ascending t. `tied`: `dw` already holds the head's
    /// gradient of this micro-batch, so it is always added to.
    fn embedding_backward(&mut self, batch: &BatchBuffers, dx: Tensor, dw: Tensor, tied: bool) -> Result<()>;

    /// `rstd = 1/√(mean x² + eps)`, `y = w·x·rstd` (Zhang & Sennrich 2019); one rounding, at the store.
    fn rmsnorm_forward(&mut self, x: Tensor, w: Tensor, eps: f32, y: Tensor, rstd: Tensor) -> Result<()>;
    /// Norm and residual, backwards. See [`RmsNormBackward`].
    fn rmsnorm_backward(&mut self, args: RmsNormBackward) -> Result<()>;

    /// `y = x·wᵀ`, x A `[T, in]`, w A `[out, in]`, y A `[T, out]`.
    fn linear(&mut self, x: Tensor, w: Tensor, y: Tensor) -> Result<()>;
    /// `y = residual + x·wᵀ + bias`, residual and y f32 `[T, out]`. See [`Projection`], here and below.
    fn linear_residual(&mut self, x: Tensor, w: Projection, residual: Tensor, y: Tensor) -> Result<()>;
    /// `dx = dy·w`, dy A `[T, out]`, dx A `[T, in]`. A bias has no part in it.
    fn linear_input_gradient(&mut self, dy: Tensor, w: Projection, dx: Tensor) -> Result<()>;
    /// `dw = dyᵀ·x`, f32 `[out, in]`, overwritten or added to.
    fn linear_weight_gradient(&mut self, dy: Tensor, x: Tensor, dw: Tensor) -> Result<()>;
    /// `db = Σ_t dy[t]`, f32 `[1, out]`, overwritten or added to; `partials` as in [`RmsNormBackward`], `out` wide.
    fn bias_gradient(&mut self, dy: Tensor, db: Tensor, partials: Tensor) -> Result<()>;

    /// `qkv = x·wᵀ + bias`, then q and k rotated by their positions (halves convention of Hugging Face).
    fn linear_rope(
        &mut self,
        batch: &BatchBuffers,
        heads: Heads,
        rope: RopeTable,
        x: Tensor,
        w: Projection,
        qkv: Tensor,
    ) -> Result<()>;
    /// Causal attention within each sequence; `lse` is kept for the backward pass.
    fn attention_forward(
        &mut self,
        batch: &BatchBuffers,
        heads: Heads,
        qkv: Tensor,
        out: Tensor,
        lse: Tensor,
    ) -> Result<()>;
    /// Gradient of attention, and of the rotation before it. See [`AttentionBackward`].
    fn attention_backward(
        &mut self,
        batch: &BatchBuffers,
        heads: Heads,
        rope: RopeTable,
        args: AttentionBackward,
    ) -> Result<()>;
    /// Appends the tokens' keys and values, as many tokens of each sequence in turn, to what the cache holds of their
    /// sequence, and attends to all of that.
    fn attention_cached(
        &mut self,
        heads: Heads,
        sequences: &[CachedSequence],
        qkv: Tensor,
        cache: KvCache,
        out: Tensor,
    ) -> Result<()>;

    /// `gate_up = x·wᵀ + bias` (w: gate rows, then up rows), `act = silu(gate)·up`.
    fn linear_swiglu(&mut self, x: Tensor, w: Projection, gate_up: Tensor, act: Tensor) -> Result<()>;
    /// Down projection's input gradient and SwiGLU's, in one. See [`SwigluBackward`].
    fn linear_swiglu_backward(&mut self, args: SwigluBackward) -> Result<()>;

    /// Logits, loss, accuracy and all gradients of the head, chunk by chunk. See [`LinearCrossEntropy`].
    fn linear_cross_entropy(&mut self, batch: &BatchBuffers, args: LinearCrossEntropy) -> Result<()>;
    /// Logits of the last `logits.rows` tokens, f32, for generation and tests.
    fn logits(&mut self, x: Tensor, w: Tensor, logits: Tensor) -> Result<()>;

    /// `y = x/(1 − rate)` where the mask keeps it, else 0; A `[T, N]`. See [`Dropout`].
    fn dropout(&mut self, x: Tensor, dropout: Dropout, y: Tensor) -> Result<()>;
    /// `wide = A(factor·narrow)` in the columns of these places; the others stay. See [`Places`].
    fn spread(&mut self, places: Places) -> Result<()>;
    /// `narrow = factor·wide` of the columns of these places, f32.
    fn gather(&mut self, places: Places) -> Result<()>;

    /// Global norm of all gradients, the clip factor that follows from it, whether the step is skipped, and the next
    /// step's loss scale.
    /// `grads` is the one flat buffer f32 `[1, n]` they lie in.
    fn gradient_norm(&mut self, grads: Tensor) -> Result<()>;
    /// One AdamW step over all weights, unless the step is skipped.
    fn adamw(&mut self, rule: UpdateRule, weights: &[Trainable]) -> Result<()>;
}
