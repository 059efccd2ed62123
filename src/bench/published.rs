//! Figures that others published, from `benches/reference/*.toml`.

use super::suite::Case;
use crate::dtype::DType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const FILES: [(&str, &str); 3] = [
    ("products.toml", include_str!("../../benches/reference/products.toml")),
    ("attention.toml", include_str!("../../benches/reference/attention.toml")),
    ("rows.toml", include_str!("../../benches/reference/rows.toml")),
];

/// Of processors.
const CPU: (&str, &str) = ("cpu.toml", include_str!("../../benches/reference/cpu.toml"));

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// Operations it may stand beside.
    pub operations: Vec<String>,
    /// Whose kernel.
    pub of: String,
    /// The card, as its source calls it.
    pub card: String,
    /// Names that the driver gives to this card.
    #[serde(default)]
    pub driver_names: Vec<String>,
    /// E.g. `bf16`.
    pub precision: String,
    /// Dimensions, named as those of the operation.
    pub shape: BTreeMap<String, u64>,
    /// The figure.
    pub value: f64,
    /// `TFLOP/s` or `GB/s`; of a processor also `GFLOP/s` and `tokens/s`.
    pub unit: String,
    /// What the card's maker gives as its peak, in the same unit, where the source names it.
    pub peak: Option<f64>,
    /// Address or paper, with revision.
    pub source: String,
    /// How it was measured, as far as the source says.
    pub measured: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    figure: Vec<Figure>,
}

/// All figures of GPUs.
pub fn figures() -> Vec<Figure> {
    FILES.into_iter().flat_map(parse).collect()
}

/// Figures of operations on a processor, in this precision.
pub fn cpu_figures(precision: DType) -> Vec<Figure> {
    let name = if precision == DType::BF16 { "bf16" } else { "fp32" };
    parse(CPU).into_iter().filter(|figure| figure.precision == name).collect()
}

/// Figures of whole training steps on a processor, of a model with so many parameters.
pub fn step_figures(parameters: usize) -> Vec<Figure> {
    let of_this = |figure: &Figure| figure.shape.get("parameters") == Some(&(parameters as u64));
    parse(CPU).into_iter().filter(of_this).collect()
}

/// The files are part of the program, and a test reads them.
fn parse((name, text): (&str, &str)) -> Vec<Figure> {
    toml::from_str::<File>(text).unwrap_or_else(|e| panic!("benches/reference/{name}: {e}")).figure
}

/// The figure for this operation whose shape is nearest, of this card if there is one, else of another.
pub fn nearest<'a>(figures: &'a [Figure], case: &Case, card: &str) -> Option<&'a Figure> {
    let shape = case.operation.shape();
    let distance = |figure: &Figure| -> f64 {
        let ratio = |(name, theirs): (&String, &u64)| {
            let ours = shape.iter().find(|(ours, _)| ours == name)?.1;
            Some((ours as f64 / *theirs as f64).ln().abs())
        };
        figure.shape.iter().filter_map(ratio).sum()
    };
    let is_other = |figure: &Figure| !figure.driver_names.iter().any(|name| name == card);
    let fitting = figures.iter().filter(|f| f.operations.iter().any(|o| o == case.operation.name()));
    // Of equally near ones the highest.
    fitting.min_by(|a, b| {
        let key = |f| (is_other(f), distance(f));
        key(a).partial_cmp(&key(b)).expect("finite").then(b.value.total_cmp(&a.value))
    })
}

#[cfg(test)]
mod tests {
    use super::super::suite::{SIZES, cases};
    use super::*;

    #[test]
    fn every_figure_has_a_source_and_a_card_and_an_operation_that_exists() {
        let known: Vec<_> = SIZES.iter().flat_map(|size| cases(size, 8192)).collect();
        let all = figures();
        assert!(all.len() >= 30, "{}", all.len());
        for figure in &all {
            let said = [&figure.of, &figure.card, &figure.precision, &figure.measured];
            assert!(said.iter().all(|text| !text.is_empty()), "{figure:?}");
            assert!(
                figure.source.starts_with("https://") || figure.source.starts_with("arXiv:"),
                "{figure:?}"
            );
            assert!(matches!(figure.unit.as_str(), "TFLOP/s" | "GB/s"), "{figure:?}");
            // Within what any card of today computes or moves.
            assert!(figure.value > 50.0 && figure.value < 5000.0, "{figure:?}");
            assert!(!figure.operations.is_empty() && !figure.shape.is_empty(), "{figure:?}");
            for operation in &figure.operations {
                let case = known.iter().find(|case| case.operation.name() == operation);
                let case = case.unwrap_or_else(|| panic!("no operation {operation}: {figure:?}"));
                let shape = case.operation.shape();
                let known = |name: &String| shape.iter().any(|(ours, _)| ours == name);
                assert!(figure.shape.keys().all(known), "{figure:?} for {shape:?}");
            }
        }
    }

    #[test]
    fn figures_of_processors_are_of_operations_and_steps() {
        let all = parse(CPU);
        let products = [DType::F32, DType::BF16].map(cpu_figures).concat();
        assert_eq!(all.len(), products.len());
        let case = |name: &str| cases(&SIZES[0], 1024).into_iter().find(|c| c.name() == name).unwrap();
        let head = nearest(&products, &case("linear_wide/head"), "").unwrap();
        assert_eq!((head.shape["n"], head.unit.as_str()), (49_152, "GFLOP/s"));
        let of_step = |precision: &str| {
            let figure = step_figures(134_515_008).into_iter().find(|f| f.precision == precision).unwrap();
            assert_eq!(figure.unit, "tokens/s");
            figure.value
        };
        assert!(of_step("bf16") > of_step("fp32"));
        assert!(step_figures(1).is_empty());
    }

    #[test]
    fn every_file_of_the_folder_is_read() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/reference");
        let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut found: Vec<String> = names.filter(|name| name.ends_with(".toml")).collect();
        let mut read = FILES
            .iter()
            .chain([&CPU, &("cards.toml", "read in `src/cuda/card.rs`")])
            .map(|(name, _)| (*name).to_owned())
            .collect::<Vec<_>>();
        found.sort();
        read.sort();
        assert_eq!(found, read);
    }

    #[test]
    fn the_nearest_shape_on_the_same_card_is_chosen() {
        let all = figures();
        let case = |name: &str| cases(&SIZES[0], 8192).into_iter().find(|c| c.name() == name).unwrap();
        let h100 = "NVIDIA H100 80GB HBM3";
        let attention = nearest(&all, &case("attention_forward/2048"), h100).unwrap();
        assert_eq!((attention.shape["sequence"], attention.value), (2048, 371.0));
        let attention = nearest(&all, &case("attention_forward/512"), h100).unwrap();
        assert_eq!((attention.shape["sequence"], attention.value), (512, 225.0));
        assert_eq!(
            nearest(&all, &case("linear_rope/qkv"), "NVIDIA A100-SXM4-80GB").unwrap().card,
            "A100 SXM"
        );
        assert_eq!(nearest(&all, &case("rows_zero"), h100), None);
    }
}
