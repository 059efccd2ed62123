//! Adapters of low rank beside frozen projections: which, how large, and what they are called.

use super::{ModelConfig, Parameter, ParameterKind};

/// A projection that may have an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub enum LoraTarget {
    /// Queries.
    #[serde(rename = "q_proj")]
    Q,
    /// Keys.
    #[serde(rename = "k_proj")]
    K,
    /// Values.
    #[serde(rename = "v_proj")]
    V,
    /// Attention's output.
    #[serde(rename = "o_proj")]
    O,
    /// The MLP's gate.
    #[serde(rename = "gate_proj")]
    Gate,
    /// What the gate multiplies.
    #[serde(rename = "up_proj")]
    Up,
    /// The MLP's output.
    #[serde(rename = "down_proj")]
    Down,
}

impl LoraTarget {
    /// All of them, in the order in which a layer has them.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Its name in `target_modules`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// Its path within a layer: `self_attn.q_proj`.
    pub fn path(self) -> String {
        let part = if matches!(self, Self::Gate | Self::Up | Self::Down) { "mlp" } else { "self_attn" };
        format!("{part}.{}", self.name())
    }
}

/// LoRA (Hu et al. 2021, arXiv:2106.09685) as PEFT's `LoraConfig` has it: beside `W·x` stands `scale·B·A·x`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rows of A and columns of B (`r`).
    pub rank: usize,
    /// `lora_alpha`.
    pub alpha: f64,
    /// Share of A's input that is dropped in training, from 0 up to, not including, 1.
    pub dropout: f64,
    /// The scale is `alpha/√r` (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732), not `alpha/r`.
    pub rslora: bool,
    /// Projections with an adapter, in the order of [`LoraTarget::ALL`], each once.
    pub targets: Vec<LoraTarget>,
}

impl LoraConfig {
    /// What B·A is multiplied by.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

/// The two matrices of one adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterParameters {
    /// Layer.
    pub layer: usize,
    /// Projection.
    pub target: LoraTarget,
    /// `[r, in_features]`.
    pub a: Parameter,
    /// `[out_features, r]`.
    pub b: Parameter,
}

impl ModelConfig {
    /// `[out_features, in_features]` of a projection.
    pub fn projection_shape(&self, target: LoraTarget) -> [usize; 2] {
        let (c, f) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.attention_width(), self.num_key_value_heads * self.head_dim);
        match target {
            LoraTarget::Q => [q, c],
            LoraTarget::K | LoraTarget::V => [kv, c],
            LoraTarget::O => [c, q],
            LoraTarget::Gate | LoraTarget::Up => [f, c],
            LoraTarget::Down => [c, f],
        }
    }

    /// The matrices of all adapters, layer by layer, under the names by which PEFT stores them.
    pub fn adapters(&self, lora: &LoraConfig) -> Vec<AdapterParameters> {
        let of = |layer: usize, target: LoraTarget| {
            let [outputs, inputs] = self.projection_shape(target);
            let parameter = |matrix: char, shape| Parameter {
                name: format!("base_model.model.model.layers.{layer}.{}.lora_{matrix}.weight", target.path()),
                shape,
                kind: ParameterKind::Matrix,
            };
            AdapterParameters {
                layer,
                target,
                a: parameter('A', [lora.rank, inputs]),
                b: parameter('B', [outputs, lora.rank]),
            }
        };
        (0..self.num_hidden_layers)
            .flat_map(|layer| lora.targets.iter().map(move |&target| of(layer, target)))
            .collect()
    }
}
