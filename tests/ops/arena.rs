//! A CPU engine with a handful of buffers, for the operations that only a backend offers.

use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::{Backend, BatchBuffers, Cpu, StepParams};
use smolten::dtype::{DType, Element};

/// Capacity of the lists of a micro-batch.
const LIST: usize = 700;

/// Buffers are planned first, then filled.
pub struct Arena<E: Element> {
    pub cpu: Cpu,
    pub params: StepParams,
    _of: std::marker::PhantomData<E>,
}

/// The tensors that `lay_out` plans, and the arena that holds them, every float NaN.
pub fn arena<E: Element, T>(lay_out: impl FnOnce(&mut Layout) -> T) -> (Arena<E>, T) {
    let mut layout = Layout { plan: Plan::default(), floats: Vec::new(), of: E::DTYPE };
    let tensors = lay_out(&mut layout);
    let mut cpu = Cpu::new(&layout.plan, E::DTYPE).unwrap();
    for t in layout.floats {
        // All bits set is a NaN in each of the three types.
        cpu.upload(t, &vec![0xff; t.bytes()]).unwrap();
    }
    let params = StepParams { max_grad_norm: 1.0, ..bytemuck::Zeroable::zeroed() };
    (Arena { cpu, params, _of: std::marker::PhantomData }, tensors)
}

pub struct Layout {
    plan: Plan,
    floats: Vec<Tensor>,
    of: DType,
}

impl Layout {
    /// f32 `[rows, cols]`.
    pub fn wide(&mut self, rows: usize, cols: usize) -> Tensor {
        let t = self.plan.tensor(Category::Scratch, rows, cols, DType::F32);
        self.floats.push(t);
        t
    }
    /// E `[rows, cols]`.
    pub fn narrow(&mut self, rows: usize, cols: usize) -> Tensor {
        let t = self.plan.tensor(Category::Scratch, rows, cols, self.of);
        self.floats.push(t);
        t
    }
    /// The lists of a micro-batch.
    pub fn batch(&mut self) -> BatchBuffers {
        let mut list = || self.plan.tensor(Category::Batch, 1, LIST, DType::U32);
        BatchBuffers {
            ids: list(),
            positions: list(),
            cu_seqlens: list(),
            targets: list(),
            loss_rows: list(),
            by_id: list(),
            id_starts: list(),
        }
    }
}

impl<E: Element> Arena<E> {
    pub fn put<T: bytemuck::Pod>(&mut self, to: Tensor, values: &[T]) {
        assert!(std::mem::size_of_val(values) <= to.bytes());
        self.cpu.upload(to, bytemuck::cast_slice(values)).unwrap();
    }
    pub fn get<T: Element>(&mut self, from: Tensor) -> Vec<T> {
        let mut values = vec![T::from_f32(0.0); from.len()];
        self.cpu.download(from, bytemuck::cast_slice_mut(&mut values)).unwrap();
        values
    }
    /// Sets how many tokens are in use.
    pub fn tokens(&mut self, n: usize) {
        self.params.tokens = u32::try_from(n).unwrap();
        self.cpu.set_params(&self.params).unwrap();
    }
    /// Whether the rows behind the first `n` are still as they were planned.
    pub fn untouched_behind(&mut self, t: Tensor, n: usize) -> bool {
        let mut bytes = vec![0u8; t.bytes()];
        self.cpu.download(t, &mut bytes).unwrap();
        bytes[t.head(n).bytes()..].iter().all(|&b| b == 0xff)
    }
}
