//! Where a step's time goes: a backend that times each operation of another, for devices that return when it is done.

use crate::arena::Tensor;
use crate::backend::{
    AttentionBackward, Backend, BatchBuffers, CachedSequence, Dropout, KvCache, LinearCrossEntropy,
    LossScale, Part, Places, Projection, RmsNormBackward, RopeTable, StepOutput, StepParams, SwigluBackward,
    Trainable, UpdateRule,
};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::attention::Heads;
use crate::ops::awake::awake;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time and number of calls, by operation.
pub type Shares = BTreeMap<&'static str, (Duration, usize)>;

/// The backend and what its operations took so far.
pub struct Timed<B> {
    /// Where the operations go.
    pub inner: B,
    /// What they took.
    pub shares: Shares,
}

impl<B: Backend> Timed<B> {
    /// Nothing was timed yet.
    pub fn new(inner: B) -> Self {
        Self { inner, shares: Shares::new() }
    }

    fn time<R>(&mut self, name: &'static str, operation: impl FnOnce(&mut B) -> R) -> R {
        let start = Instant::now();
        let result = operation(&mut self.inner);
        let share = self.shares.entry(name).or_default();
        *share = (share.0 + start.elapsed(), share.1 + 1);
        result
    }
}

/// Methods that pass their arguments on.
macro_rules! timed {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&mut self, $($argument: $type),*) -> $result {
            self.time(stringify!($name), |inner| inner.$name($($argument),*))
        })*
    };
}

impl<B: Backend> Backend for Timed<B> {
    fn activation_dtype(&self) -> DType {
        self.inner.activation_dtype()
    }
    fn record_nothing(&mut self) {
        self.inner.record_nothing();
    }
    fn device_memory_bytes(&self) -> Option<u64> {
        self.inner.device_memory_bytes()
    }
    fn run(&mut self, _: Part, operations: &mut dyn FnMut(&mut dyn Backend) -> Result<()>) -> Result<()> {
        awake(|| operations(self))
    }
    timed! {
        upload(to: Tensor, bytes: &[u8]) -> Result<()>;
        download(from: Tensor, bytes: &mut [u8]) -> Result<()>;
        set_params(params: &StepParams) -> Result<()>;
        set_loss_scale(scale: LossScale) -> Result<()>;
        take_output() -> Result<StepOutput>;
        zero(t: Tensor) -> Result<()>;
        embedding_forward(batch: &BatchBuffers, w: Tensor, x: Tensor) -> Result<()>;
        embedding_noise(batch: &BatchBuffers, alpha: f32, x: Tensor) -> Result<()>;
        embedding_backward(batch: &BatchBuffers, dx: Tensor, dw: Tensor, tied: bool) -> Result<()>;
        rmsnorm_forward(x: Tensor, w: Tensor, eps: f32, y: Tensor, rstd: Tensor) -> Result<()>;
        rmsnorm_backward(args: RmsNormBackward) -> Result<()>;
        linear(x: Tensor, w: Tensor, y: Tensor) -> Result<()>;
        linear_residual(x: Tensor, w: Projection, residual: Tensor, y: Tensor) -> Result<()>;
        linear_input_gradient(dy: Tensor, w: Projection, dx: Tensor) -> Result<()>;
        linear_weight_gradient(dy: Tensor, x: Tensor, dw: Tensor) -> Result<()>;
        bias_gradient(dy: Tensor, db: Tensor, partials: Tensor) -> Result<()>;
        linear_rope(
            batch: &BatchBuffers, heads: Heads, rope: RopeTable, x: Tensor, w: Projection, qkv: Tensor
        ) -> Result<()>;
        attention_forward(batch: &BatchBuffers, heads: Heads, qkv: Tensor, out: Tensor, lse: Tensor) -> Result<()>;
        attention_backward(
            batch: &BatchBuffers, heads: Heads, rope: RopeTable, args: AttentionBackward
        ) -> Result<()>;
        attention_cached(
            heads: Heads, sequences: &[CachedSequence], qkv: Tensor, cache: KvCache, out: Tensor
        ) -> Result<()>;
        linear_swiglu(x: Tensor, w: Projection, gate_up: Tensor, act: Tensor) -> Result<()>;
        linear_swiglu_backward(args: SwigluBackward) -> Result<()>;
        linear_cross_entropy(batch: &BatchBuffers, args: LinearCrossEntropy) -> Result<()>;
        logits(x: Tensor, w: Tensor, logits: Tensor) -> Result<()>;
        dropout(x: Tensor, dropout: Dropout, y: Tensor) -> Result<()>;
        spread(places: Places) -> Result<()>;
        gather(places: Places) -> Result<()>;
        gradient_norm(grads: Tensor) -> Result<()>;
        adamw(rule: UpdateRule, weights: &[Trainable]) -> Result<()>;
    }
}
