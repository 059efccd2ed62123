//! Adapters of low rank beside the frozen projections (LoRA, Hu et al. 2021, arXiv:2106.09685).
//!
//! Projections that are computed as one have one adapter, too: their A's lie one below the other, A `[R, in]`, with R the sum
//! of the ranks, rounded up to what kernels move at a time; what is beyond the ranks stays zero. Their B's stand as blocks
//! on a diagonal, A `[out, R]`, already multiplied by the scale. So `h = x·Aᵀ` is one product, `h·Bᵀ` is summed into the
//! main one, and all gradients are plain products of the same shapes. What is trained are the matrices by themselves,
//! as PEFT stores them: the blocks of B are written from them after each update, and gradients read back before it
//! ([`Model::adapter_places`]).
//!
//! Dropout is of a projection's input, in the same places for all that are computed as one.

use super::{Fused, Model, Weight};
use crate::arena::{Category, Plan, Tensor};
use crate::backend::{Backend, Dropout, LowRank, Places, Projection};
use crate::config::{AdapterParameters, LoraConfig, LoraTarget, ModelConfig, Parameter, round_f32};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::noise;

/// Ranks are rounded up to a multiple of this: 16 bytes of bf16.
const CHUNK: usize = 8;

/// Projections that are computed as one, in the order in which a layer has them.
const GROUPS: [&[LoraTarget]; 4] = [
    &[LoraTarget::Q, LoraTarget::K, LoraTarget::V],
    &[LoraTarget::O],
    &[LoraTarget::Gate, LoraTarget::Up],
    &[LoraTarget::Down],
];

/// Adapters of one layer, as [`GROUPS`] has them.
pub(super) type OfLayer = [Option<Adapter>; GROUPS.len()];

/// The adapter of projections that are computed as one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Adapter {
    /// A `[R, in]`.
    a: Tensor,
    /// Its gradient, f32 `[R, in]`.
    da: Tensor,
    /// A `[out, R]`.
    b: Tensor,
    /// Its gradient over a window, f32 `[out, R]`.
    db: Tensor,
    /// `x·Aᵀ`, A `[T, R]`, kept for the backward pass.
    h: Tensor,
    dropout: Option<Dropout>,
}

/// Buffers that all adapters use in turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct AdapterScratch {
    /// Gradient of h, A `[T, widest R]`.
    dh: Tensor,
    /// The input with dropout, A `[T, widest in]`.
    dropped: Option<Tensor>,
}

/// All adapters of a model, as planned.
#[derive(Clone, Debug)]
pub(super) struct Adapters {
    pub layers: Vec<OfLayer>,
    pub weights: Vec<Weight>,
    pub scratch: AdapterScratch,
    /// Each B among the others of its projection, and its gradient.
    pub places: Vec<[Places; 2]>,
}

/// Projections of one layer that are computed as one.
struct Group {
    layer: usize,
    index: usize,
    members: Vec<AdapterParameters>,
    outputs: usize,
    inputs: usize,
    rank: usize,
}

impl Group {
    fn all(config: &ModelConfig, lora: &LoraConfig) -> Vec<Self> {
        let parameters = config.adapters(lora);
        let of = |layer: usize, index: usize| {
            let targets = GROUPS[index];
            let members = parameters.iter().filter(|p| p.layer == layer && targets.contains(&p.target));
            let members: Vec<_> = members.cloned().collect();
            let outputs = targets.iter().map(|&t| config.projection_shape(t)[0]).sum();
            let inputs = config.projection_shape(targets[0])[1];
            let rank = (members.len() * lora.rank).next_multiple_of(CHUNK);
            (!members.is_empty()).then_some(Self { layer, index, members, outputs, inputs, rank })
        };
        (0..config.num_hidden_layers)
            .flat_map(|layer| (0..GROUPS.len()).map(move |index| (layer, index)))
            .filter_map(|(layer, index)| of(layer, index))
            .collect()
    }

    /// First of its rows among the outputs.
    fn first_row(&self, config: &ModelConfig, member: &AdapterParameters) -> usize {
        let before = GROUPS[self.index].iter().take_while(|&&t| t != member.target);
        before.map(|&t| config.projection_shape(t)[0]).sum()
    }
}

impl Adapters {
    pub fn plan(
        plan: &mut Plan,
        config: &ModelConfig,
        dtype: DType,
        tokens: usize,
        lora: &LoraConfig,
    ) -> Self {
        let groups = Group::all(config, lora);
        let mut stacks = |category, dtype| -> Vec<Tensor> {
            groups.iter().map(|g| plan.tensor(category, g.rank, g.inputs, dtype)).collect()
        };
        let a = stacks(Category::Weights, dtype);
        let a_master = if dtype == DType::F32 { a.clone() } else { stacks(Category::Weights, DType::F32) };
        // All gradients follow one another, so that their norm is that of one buffer.
        let da = stacks(Category::Gradients, DType::F32);
        let mut each_b = |category, dtype| -> Vec<Vec<Tensor>> {
            let of = |b: &Parameter, plan: &mut Plan| plan.tensor(category, b.shape[0], b.shape[1], dtype);
            groups.iter().map(|g| g.members.iter().map(|m| of(&m.b, plan)).collect()).collect()
        };
        let db_narrow = each_b(Category::Gradients, DType::F32);
        let b_narrow = each_b(Category::Weights, dtype);
        let b_master =
            if dtype == DType::F32 { b_narrow.clone() } else { each_b(Category::Weights, DType::F32) };

        let mut all = Self {
            layers: vec![OfLayer::default(); config.num_hidden_layers],
            weights: Vec::new(),
            scratch: AdapterScratch::plan(plan, &groups, dtype, tokens, lora),
            places: Vec::new(),
        };
        for (i, group) in groups.iter().enumerate() {
            let b = plan.tensor(Category::Weights, group.outputs, group.rank, dtype);
            let db = plan.tensor(Category::Gradients, group.outputs, group.rank, DType::F32);
            let h = plan.tensor(Category::Activations, tokens, group.rank, dtype);
            let site = noise::index(group.layer * GROUPS.len() + group.index);
            let dropout = (lora.dropout > 0.0).then(|| Dropout::new(lora.dropout, site));
            all.layers[group.layer][group.index] = Some(Adapter { a: a[i], da: da[i], b, db, h, dropout });
            for (k, member) in group.members.iter().enumerate() {
                let rows = |t: Tensor| t.rows(k * lora.rank, lora.rank);
                all.weights.push(Weight {
                    parameter: member.a.clone(),
                    master: rows(a_master[i]),
                    working: rows(a[i]),
                    grad: Some(rows(da[i])),
                });
                let (master, grad) = (b_master[i][k], db_narrow[i][k]);
                all.weights.push(Weight {
                    parameter: member.b.clone(),
                    master,
                    working: b_narrow[i][k],
                    grad: Some(grad),
                });
                let first = group.first_row(config, member);
                let at = |narrow: Tensor, wide: Tensor| Places {
                    narrow,
                    wide: wide.rows(first, narrow.rows),
                    column: k * lora.rank,
                    factor: round_f32(lora.scale()),
                };
                all.places.push([at(master, b), at(grad, db)]);
            }
        }
        all
    }
}

impl AdapterScratch {
    fn plan(plan: &mut Plan, groups: &[Group], dtype: DType, tokens: usize, lora: &LoraConfig) -> Self {
        let widest = |of: fn(&Group) -> usize| groups.iter().map(of).max().unwrap_or(0);
        let mut of = |cols| plan.tensor(Category::Scratch, tokens, cols, dtype);
        Self { dh: of(widest(|g| g.rank)), dropped: (lora.dropout > 0.0).then(|| of(widest(|g| g.inputs))) }
    }
}

impl Model {
    /// The input of an adapter: with dropout in training.
    fn adapter_input(
        &self,
        b: &mut dyn Backend,
        adapter: &Adapter,
        x: Tensor,
        training: bool,
    ) -> Result<Tensor> {
        let dropped = self.adapters.as_ref().and_then(|all| all.scratch.dropped);
        let (Some(dropout), Some(dropped), true) = (adapter.dropout, dropped, training) else { return Ok(x) };
        let dropped = Tensor { cols: x.cols, ..dropped };
        b.dropout(x, dropout, dropped)?;
        Ok(dropped)
    }

    /// A projection of `x` with its adapter's part, of which the narrow product is computed here.
    pub(super) fn projection(
        &self,
        b: &mut dyn Backend,
        of: &Fused,
        x: Tensor,
        training: bool,
    ) -> Result<Projection> {
        let Some(adapter) = of.adapter else { return Ok(of.alone()) };
        let x = self.adapter_input(b, &adapter, x, training)?;
        b.linear(x, adapter.a, adapter.h)?;
        let part = LowRank { left: adapter.h, right: adapter.b, dropout: None };
        Ok(Projection { adapter: Some(part), ..of.alone() })
    }

    /// Gradient of the narrow product, and with it the adapter's part of the input's gradient.
    pub(super) fn adapter_gradient(
        &self,
        b: &mut dyn Backend,
        dy: Tensor,
        of: &Fused,
    ) -> Result<Option<LowRank>> {
        let (Some(adapter), Some(all)) = (of.adapter, &self.adapters) else { return Ok(None) };
        let dh = Tensor { cols: adapter.a.rows, ..all.scratch.dh };
        b.linear_input_gradient(dy, adapter.b.into(), dh)?;
        Ok(Some(LowRank { left: dh, right: adapter.a, dropout: adapter.dropout }))
    }

    /// Gradients of A and of the blocks of B, after [`Model::adapter_gradient`]; `x` as it was in the forward pass.
    pub(super) fn adapter_weight_gradients(
        &self,
        b: &mut dyn Backend,
        dy: Tensor,
        x: Tensor,
        of: &Fused,
        part: Option<LowRank>,
    ) -> Result<()> {
        let (Some(adapter), Some(part)) = (of.adapter, part) else { return Ok(()) };
        let x = self.adapter_input(b, &adapter, x, true)?;
        b.linear_weight_gradient(part.left, x, adapter.da)?;
        b.linear_weight_gradient(dy, adapter.h, adapter.db)
    }

    /// Where the B's of adapters stand among those of their projections, and where their gradients do: they are written
    /// there once they have changed, and read from there before they are used.
    pub fn adapter_places(&self) -> &[[Places; 2]] {
        self.adapters.as_ref().map_or(&[], |all| &all.places)
    }
}

/// Values before the first step, as PEFT has them by default: A uniform from −1/√in up to 1/√in (He et al. 2015 with
/// a = √5), B zero. The numbers follow from the seed and the parameter's name alone.
pub fn initial(parameter: &Parameter, seed: u64, out: &mut [f32]) {
    if !is_adapter(parameter) || parameter.name.ends_with(".lora_B.weight") {
        return out.fill(0.0);
    }
    let hash = parameter.name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3) // FNV-1a
    });
    let (key, columns) = (noise::key(seed, hash, 0), parameter.shape[1]);
    let bound = 1.0 / (columns as f64).sqrt();
    for (row, values) in out.chunks_exact_mut(columns).enumerate() {
        let row = noise::row_key(key, 0, noise::index(row));
        for (column, value) in values.iter_mut().enumerate() {
            let u = f64::from(noise::number(row, noise::index(column))) / 4_294_967_296.0;
            *value = round_f32((2.0 * u - 1.0) * bound);
        }
    }
}

/// Whether a parameter is one of an adapter.
pub fn is_adapter(parameter: &Parameter) -> bool {
    parameter.name.contains(".lora_")
}
