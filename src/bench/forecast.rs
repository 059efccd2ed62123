//! How long a training step would take on a card that is not here: a model made of published figures, no measurement.

use super::operation::{Operation, Product};
use super::published::{Figure, figures, nearest};
use super::suite::{Case, Size, cases};
use crate::config::ModelConfig;
use crate::cuda::CardSpec;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::attention::Heads;

/// The card that the figures are of, in the table of cards and by its driver's name.
const MEASURED: (&str, &str) = ("H100 SXM", "NVIDIA H100 80GB HBM3");

/// What a step does.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Tokens computed together.
    pub tokens: usize,
    /// Times that is done.
    pub passes: usize,
    /// Tokens of a row.
    pub length: usize,
    /// AdamW with moments in 8 bits.
    pub blockwise: bool,
    /// The weights stay as they are, and adapters, which are not counted, are trained.
    pub frozen: bool,
    /// Type of weights and activations.
    pub dtype: DType,
}

/// Seconds of the step if each operation reached the share of this card's peaks that the kernel published for the nearest
/// shape reaches of an H100's; waits between operations are not in it. None in fp32, for which there are no figures.
///
/// # Errors
/// None, as long as the table has the card that the figures are of.
pub fn step_seconds(card: &CardSpec, config: &ModelConfig, step: Step) -> Result<Option<f64>> {
    if step.dtype == DType::F32 {
        return Ok(None);
    }
    let measured = CardSpec::find(MEASURED.0)?;
    let figures: Vec<Figure> =
        figures().into_iter().filter(|f| f.driver_names.iter().any(|name| name == MEASURED.1)).collect();
    let heads = Heads {
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
    };
    let size = Size {
        name: "",
        layers: config.num_hidden_layers,
        c: config.hidden_size,
        f: config.intermediate_size,
        heads,
        vocab: config.vocab_size,
    };
    let mut seconds = 0.0;
    for (case, times) in counted(&size, step) {
        let work = case.operation.work(step.dtype);
        let share = nearest(&figures, &case, MEASURED.1).map_or(1.0, |figure| {
            let peak = if figure.unit == "GB/s" { measured.gb_per_s } else { measured.tflops };
            figure.value / peak
        });
        let of_memory = work.bytes() / (1e9 * card.gb_per_s * memory_share(&figures, measured));
        // A figure in GB/s says nothing of operations, of which such a case has none.
        let of_products = if work.flops > 0.0 { work.flops / (1e12 * card.tflops * share) } else { 0.0 };
        seconds += times as f64 * f64::max(of_memory, of_products);
    }
    Ok(Some(seconds))
}

/// Share of the bandwidth that kernels limited by it reach: the lowest that is published.
fn memory_share(figures: &[Figure], measured: &CardSpec) -> f64 {
    let rates = figures.iter().filter(|f| f.unit == "GB/s").map(|f| f.value / measured.gb_per_s);
    rates.fold(1.0, f64::min)
}

/// The operations of a step, and how often each is done.
fn counted(size: &Size, step: Step) -> Vec<(Case, usize)> {
    let (layers, passes) = (size.layers, step.passes);
    let mut all: Vec<(Case, usize)> = Vec::new();
    for case in cases(size, step.tokens) {
        let times = match &case.operation {
            // What `Head` consists of, and the lengths that are benched.
            Operation::Gather { .. } | Operation::Scatter { .. } | Operation::CrossEntropy { .. } => 0,
            Operation::Linear { .. } if case.place.as_deref() == Some("head") => 0,
            Operation::AttentionForward { .. } | Operation::AttentionBackward { .. } => 0,
            Operation::AdamW { .. } | Operation::AdamW8bit { .. } | Operation::GradNorm { .. }
                if step.frozen =>
            {
                0
            }
            Operation::Linear { product: Product::WeightGradient, .. } if step.frozen => 0,
            Operation::AdamW { .. } => usize::from(!step.blockwise),
            Operation::AdamW8bit { .. } => usize::from(step.blockwise),
            Operation::GradNorm { .. } => 1,
            Operation::Head { t, .. } => passes * step.tokens.div_ceil(*t),
            // Two in a layer and the last, and those in layers again on the way back.
            Operation::NormForward { .. } => passes * (4 * layers + 1),
            Operation::NormBackward { .. } => passes * (2 * layers + 1),
            Operation::Linear { product: Product::Wide, .. } => passes,
            Operation::Linear { .. } => passes * layers,
            _ => passes,
        };
        all.push((case, times));
    }
    let (heads, t, length) = (size.heads, step.tokens, step.length.min(step.tokens));
    for operation in
        [Operation::AttentionForward { heads, t, length }, Operation::AttentionBackward { heads, t, length }]
    {
        all.push((Case { model: size.name, operation, place: None, tokens: t }, passes * layers));
    }
    all.retain(|(_, times)| *times > 0);
    all
}

#[cfg(test)]
mod tests {
    use super::super::suite::SIZES;
    use super::*;

    const STEP: Step =
        Step { tokens: 8192, passes: 1, length: 512, blockwise: true, frozen: false, dtype: DType::BF16 };

    /// Six operations per weight and token, and what attention adds.
    #[test]
    fn a_step_s_operations_are_all_counted_once() {
        let size = &SIZES[1];
        let flops: f64 = counted(size, STEP)
            .iter()
            .map(|(case, times)| *times as f64 * case.operation.work(DType::BF16).flops)
            .sum();
        let weights = 361_821_120.0 - 65.0 * 960.0; // norms multiply nothing
        let attention = 32.0 * 7.0 * 8192.0 * 512.0 * 960.0;
        assert_eq!(flops, 6.0 * weights * 8192.0 + attention);
    }

    #[test]
    fn the_optimizer_is_the_one_asked_for() {
        for (blockwise, name) in [(true, "adamw_8bit"), (false, "adamw")] {
            let counted = counted(&SIZES[1], Step { blockwise, passes: 3, ..STEP });
            let named = counted.iter().filter(|(case, _)| case.operation.name().starts_with("adamw"));
            let named: Vec<_> = named.map(|(case, times)| (case.operation.name(), *times)).collect();
            assert_eq!(named, [(name, 1)]);
        }
    }

    /// Four of the six, but for the head, whose gradients are counted as one operation.
    #[test]
    fn frozen_weights_have_no_gradients() {
        let flops = |frozen| {
            let counted = counted(&SIZES[1], Step { frozen, ..STEP });
            let is_layer = |case: &Case| !matches!(case.operation, Operation::Head { .. });
            let all = counted.iter().filter(|(case, _)| is_layer(case));
            all.map(|(case, times)| *times as f64 * case.operation.work(DType::BF16).flops).sum::<f64>()
        };
        let layers = 361_821_120.0 - 65.0 * 960.0 - 49_152.0 * 960.0;
        assert_eq!(flops(false) - flops(true), 2.0 * layers * 8192.0);
    }

    #[test]
    fn a_step_takes_longer_than_the_peaks_allow_and_less_than_a_tenth_of_them() {
        for (name, dtype) in [("H100 SXM", DType::BF16), ("RTX 4090", DType::BF16), ("T4", DType::F16)] {
            let card = CardSpec::find(name).unwrap();
            for size in &SIZES[..3] {
                let config = size.config();
                let seconds = step_seconds(card, &config, Step { dtype, ..STEP }).unwrap().unwrap();
                let least = 6.0 * 8192.0 * config.num_parameters() as f64 / (1e12 * card.tflops);
                assert!(
                    seconds > least && seconds < 10.0 * least,
                    "{name}, {}: {seconds} of {least}",
                    size.name
                );
                let twice = step_seconds(card, &config, Step { passes: 2, dtype, ..STEP }).unwrap().unwrap();
                assert!(twice > 1.5 * seconds && twice < 2.0 * seconds);
            }
        }
        let fp32 = Step { dtype: DType::F32, ..STEP };
        assert_eq!(step_seconds(CardSpec::find("T4").unwrap(), &SIZES[0].config(), fp32).unwrap(), None);
    }
}
