//! The engine hands everything on that an adapter is made of: what it computes has the bits of the launches.

use super::super::{engine, open, params};
use super::{KEY, dropout};
use half::f16;
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::{
    Backend, BatchBuffers, CudaEngine, LowRank, Places, Projection, RopeTable, StepParams, SwigluBackward,
};
use smolten::cuda::{Cuda, Rung};
use smolten::dtype::DType;
use smolten::ops::attention::Heads;
use smolten::ops::linear_launch::{self, Rotation, Rows};
use smolten::ops::{noise, places};

const T: usize = 5;
const HEADS: Heads = Heads { heads: 2, kv_heads: 1, head_dim: 16 };
const RUNG: Rung = Rung::Production;

/// Everything is of T rows or a weight `[64, 64]`; what is narrower takes a part of it.
struct Buffers {
    x: Tensor,
    w: Tensor,
    left: Tensor,
    right: Tensor,
    gate_up: Tensor,
    wide: Tensor,
    list: Tensor,
    y: [Tensor; 2],
}

impl Buffers {
    fn new(plan: &mut Plan) -> Self {
        let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
        Self {
            x: of(T, 64, DType::F16),
            w: of(64, 64, DType::F16),
            left: of(T, 8, DType::F16),
            right: of(64, 8, DType::F16),
            gate_up: of(T, 128, DType::F16),
            wide: of(T, 64, DType::F32),
            list: of(1, T + 1, DType::U32),
            y: [of(T, 128, DType::F16), of(T, 64, DType::F32)],
        }
    }

    fn narrow(&self, cols: usize) -> Tensor {
        Tensor { cols, ..self.y[0] }
    }

    fn forward(&self) -> Projection {
        let adapter = LowRank { left: self.left, right: self.right, dropout: None };
        Projection { w: self.w, bias: None, adapter: Some(adapter) }
    }

    fn gradient(&self) -> Projection {
        let right = self.right.reshape(8, 64);
        let adapter = LowRank { left: self.left, right, dropout: Some(dropout()) };
        Projection { adapter: Some(adapter), ..self.forward() }
    }

    fn qkv(&self) -> Projection {
        let part = |t: Tensor| t.head(HEADS.qkv_width());
        let adapter = LowRank { left: self.left, right: part(self.right), dropout: None };
        Projection { w: part(self.w), bias: None, adapter: Some(adapter) }
    }

    fn gate_and_up(&self) -> [Tensor; 2] {
        [self.narrow(64), Tensor { cols: 32, offset: self.gate_up.offset, ..self.y[0] }]
    }

    fn batch(&self) -> BatchBuffers {
        let list = self.list;
        let (positions, cu_seqlens) = (list, list);
        BatchBuffers {
            ids: list,
            positions,
            cu_seqlens,
            targets: list,
            loss_rows: list,
            by_id: list,
            id_starts: list,
        }
    }

    fn places(&self) -> Places {
        let narrow = Tensor { cols: 8, ..self.y[1] };
        Places { narrow, wide: self.gate_up, column: 16, factor: 0.5 }
    }

    fn gathered(&self) -> Places {
        Places { wide: self.wide, ..self.places() }
    }

    /// What is read and, cleared, what is written.
    fn contents(&self) -> Vec<(Tensor, Vec<u8>)> {
        let inputs = [self.x, self.w, self.left, self.right, self.gate_up];
        let narrow = (1..).zip(inputs).map(|(seed, t)| {
            let values = super::values::<f16>(t.len(), 1.0, seed);
            (t, bytemuck::cast_slice(&values).to_vec())
        });
        let wide = super::values::<f32>(self.wide.len(), 1.0, 9);
        let list: Vec<u32> = (0..=T).map(|i| u32::try_from(i).unwrap()).collect();
        let rest = [(self.wide, bytemuck::cast_slice(&wide).to_vec())];
        let list = [(self.list, bytemuck::cast_slice(&list).to_vec())];
        let cleared = self.y.map(|t| (t, vec![0; t.bytes()]));
        narrow.chain(rest).chain(list).chain(cleared).collect()
    }
}

type OfEngine = fn(&mut CudaEngine, &Buffers);
type Launch = fn(&Cuda, &Buffers);

/// By name, the engine's operation and the launch.
fn operations() -> [(&'static str, OfEngine, Launch); 9] {
    [
        (
            "residual",
            |e, b| e.linear_residual(b.x, b.forward(), b.wide, b.y[1]).unwrap(),
            |c, b| linear_launch::linear_residual(c, RUNG, b.x, b.forward(), b.wide, b.y[1]).unwrap(),
        ),
        (
            "rope",
            |e, b| {
                let table = Tensor { cols: 8, ..b.wide };
                let (rope, out) = (RopeTable { cos: table, sin: table }, b.narrow(HEADS.qkv_width()));
                e.linear_rope(&b.batch(), HEADS, rope, b.x, b.qkv(), out).unwrap();
            },
            |c, b| {
                let (table, out) = (Tensor { cols: 8, ..b.wide }, b.narrow(HEADS.qkv_width()));
                let rotation = Rotation { heads: HEADS, positions: b.list, cos: table, sin: table };
                linear_launch::linear_rope(c, RUNG, rotation, b.x, b.qkv(), out).unwrap();
            },
        ),
        (
            "swiglu",
            |e, b| {
                let [both, act] = b.gate_and_up();
                e.linear_swiglu(b.x, b.forward(), both, act).unwrap();
            },
            |c, b| {
                let [both, act] = b.gate_and_up();
                linear_launch::linear_swiglu(c, RUNG, b.x, b.forward(), both, act).unwrap();
            },
        ),
        (
            "input_gradient",
            |e, b| e.linear_input_gradient(b.x, b.gradient(), b.narrow(64)).unwrap(),
            |c, b| {
                let (rows, dx) = (Rows::Tokens, b.narrow(64));
                linear_launch::input_gradient(c, RUNG, rows, b.x, b.gradient(), dx).unwrap();
            },
        ),
        (
            "swiglu_backward",
            |e, b| {
                let Projection { w, adapter, .. } = b.gradient();
                let (gate_up, dgate_up, act) = (b.gate_up, b.y[0], b.x);
                let args = SwigluBackward { dy: b.x, w, adapter, gate_up, act, act_is_kept: true, dgate_up };
                e.linear_swiglu_backward(args).unwrap();
            },
            |c, b| {
                linear_launch::swiglu_backward(c, RUNG, b.x, b.gradient(), b.gate_up, None, b.y[0]).unwrap();
            },
        ),
        (
            "dropout",
            |e, b| e.dropout(b.x, dropout(), b.narrow(64)).unwrap(),
            |c, b| noise::launch_dropout(c, RUNG, b.x, dropout(), b.narrow(64)).unwrap(),
        ),
        (
            "embedding_noise",
            |e, b| e.embedding_noise(&b.batch(), 5.0, b.y[1]).unwrap(),
            |c, b| noise::launch_embedding(c, RUNG, b.list, 5.0, b.y[1]).unwrap(),
        ),
        (
            "gather",
            |e, b| e.gather(b.gathered()).unwrap(),
            |c, b| places::launch_gather(c, b.gathered()).unwrap(),
        ),
        (
            "spread",
            |e, b| {
                let at = Places { narrow: Tensor { cols: 8, ..b.wide }, wide: b.y[0], ..b.places() };
                e.spread(at).unwrap();
            },
            |c, b| {
                let at = Places { narrow: Tensor { cols: 8, ..b.wide }, wide: b.y[0], ..b.places() };
                places::launch_spread(c, at).unwrap();
            },
        ),
    ]
}

#[test]
fn the_engine_hands_adapters_on() {
    let mut plan = Plan::default();
    let buffers = Buffers::new(&mut plan);
    let mut of_engine = engine(&plan, DType::F16, RUNG);
    let mut cuda = open(&plan, DType::F16);
    let step = StepParams { sequences: 5, noise_key: KEY, ..params(5, bytemuck::Zeroable::zeroed()) };
    of_engine.set_params(&step).unwrap();
    super::set_params(&mut cuda, &step);
    for (name, by_engine, launch) in operations() {
        for (t, bytes) in buffers.contents() {
            of_engine.upload(t, &bytes).unwrap();
            cuda.upload(t, &bytes).unwrap();
        }
        by_engine(&mut of_engine, &buffers);
        launch(&cuda, &buffers);
        let mut written = 0;
        for t in buffers.y {
            let [mut got, mut want] = [(); 2].map(|()| vec![0; t.bytes()]);
            of_engine.download(t, &mut got).unwrap();
            cuda.download(t, &mut want).unwrap();
            assert!(got == want, "{name}");
            written += got.iter().filter(|&&byte| byte != 0).count();
        }
        assert!(written > 0, "{name} wrote nothing");
    }
}
