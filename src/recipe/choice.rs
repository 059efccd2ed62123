//! Keys whose value is one of a few words.

use serde::{Serialize, Serializer};

use crate::config::LoraTarget;
use crate::dtype::DType;

/// A closed set of words, each standing for a value.
pub(super) trait Choice: Copy + 'static {
    /// Word and value, in the order an error lists them.
    const ALL: &'static [(&'static str, Self)];
}

macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant,)+ }

        impl Choice for $name {
            const ALL: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),+];
        }
    )+};
}

impl Choice for LoraTarget {
    const ALL: &'static [(&'static str, Self)] = &[
        ("q_proj", Self::Q),
        ("k_proj", Self::K),
        ("v_proj", Self::V),
        ("o_proj", Self::O),
        ("gate_proj", Self::Gate),
        ("up_proj", Self::Up),
        ("down_proj", Self::Down),
    ];
}

choices! {
    /// Shape of the learning rate after the warm-up.
    Scheduler {
        /// To 0 in a straight line.
        Linear = "linear",
        /// To 0 along half a cosine.
        Cosine = "cosine",
        /// Stays at the peak.
        Constant = "constant",
    }
    /// Which update the weights get.
    OptimizerKind {
        /// AdamW in torch's order, fp32 state.
        AdamW = "adamw",
        /// AdamW with blockwise 8-bit state.
        AdamW8bit = "adamw_8bit",
    }
    /// Which tokens of a row are in the loss.
    LossOn {
        /// The response; of a conversation its last assistant turn.
        Completion = "completion",
        /// Every token.
        All = "all",
        /// Every assistant turn of a conversation.
        Assistant = "assistant",
    }
    /// Type of weights and activations in the step.
    Precision {
        /// The fastest the device does well.
        Auto = "auto",
        /// IEEE single.
        Fp32 = "fp32",
        /// bfloat16.
        Bf16 = "bf16",
        /// IEEE half, with loss scaling.
        Fp16 = "fp16",
    }
    /// Which activations the backward pass computes again instead of reading them.
    Recompute {
        /// Outputs of the norms and of SwiGLU: cheap to compute, a third of what would be kept.
        NormSwiglu = "norm_swiglu",
        /// None.
        None = "none",
    }
    /// Optimizer state of the embedding under `adamw_8bit`.
    EmbeddingState {
        /// As transformers since 4.57.
        Fp32 = "fp32",
        /// As every other matrix.
        EightBit = "8bit",
    }
    /// Another trainer whose quirks a run reproduces.
    Compat {
        /// None: this trainer's own rules.
        Off = "off",
        /// TRL 0.17 on transformers 4.51 with bitsandbytes 0.45.
        Trl017 = "trl-0.17",
    }
    /// A finding about the data that stops a run, unless the recipe key `allow` names it.
    Finding {
        /// No row has the end of a turn among its supervised tokens: the model would not learn to stop.
        NoTurnEnd = "no_turn_end",
        /// More than half of the rows lost the end of their last turn to the cut.
        LostTurnEnds = "lost_turn_ends",
        /// More than half of the rows have nothing to learn within `max_length`.
        DroppedRows = "dropped_rows",
        /// More than half of the rows are copies of an earlier row.
        Duplicates = "duplicates",
        /// More than half of the rows have a prompt that is tokenised differently before its response.
        BoundaryMismatches = "boundary_mismatches",
        /// Of more than half of the conversations, the tokens do not decode to the text that the template wrote.
        TemplateRoundTrip = "template_round_trip",
    }
}

impl Choice for DType {
    const ALL: &'static [(&'static str, Self)] =
        &[("fp32", Self::F32), ("bf16", Self::BF16), ("fp16", Self::F16)];
}

/// A floating-point [`DType`] by its word in a recipe.
pub(super) fn serialize_dtype<S: Serializer>(dtype: &DType, serializer: S) -> Result<S::Ok, S::Error> {
    let word = DType::ALL.iter().find(|(_, d)| d == dtype).expect("only a DType of the list is ever set").0;
    serializer.serialize_str(word)
}

/// What computes the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The first CUDA device where there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this ordinal.
    Cuda(usize),
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = ();

    /// `auto`, `cpu`, `cuda` (the first) or `cuda:N`.
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let ordinal = text.strip_prefix("cuda:").ok_or(())?;
                ordinal.parse::<u16>().map(|n| Self::Cuda(n.into())).map_err(|_| ())
            }
        }
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
