//! A LoRA adapter as PEFT stores it, merged into the weights of its base while they are read.

mod settings;

pub use settings::AdapterSettings;

use super::safetensors::{INDEX, SINGLE, Shards};
use crate::config::{LoraConfig, LoraTarget, ModelConfig, Parameter};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// Says what the adapter is.
const CONFIG: &str = "adapter_config.json";
/// Its matrices.
const MATRICES: &str = "adapter_model.safetensors";

/// Rows of a weight that one task merges at least.
const ROWS: usize = 8;

/// Whether a folder holds an adapter and no model.
pub fn is_adapter(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    has(CONFIG) && !has(SINGLE) && !has(INDEX)
}

/// An open adapter that fits its base.
pub struct Adapter {
    /// Rank, alpha, and the projections that have an adapter in any layer. The dropout, which merging does without, is 0.
    pub lora: LoraConfig,
    /// How many matrices of the base it changes.
    pub matrices: usize,
    stored: Shards,
    /// Names of A and B in the file, by the name of the weight that they change.
    pairs: BTreeMap<String, [String; 2]>,
}

/// Where a stored tensor belongs.
struct Place {
    /// E.g. `model.layers.0.self_attn.q_proj`.
    module: String,
    /// 0 for A, 1 for B.
    which: usize,
    /// The adapter's name, which some versions of PEFT left in those of its tensors: `lora_A.default.weight`.
    adapter: String,
}

impl Place {
    fn parse(name: &str) -> Option<Self> {
        let (module, rest) = name.strip_prefix("base_model.model.")?.split_once(".lora_")?;
        let (matrix, rest) = rest.split_once('.')?;
        let which = ["A", "B"].iter().position(|&m| m == matrix)?;
        let adapter = match rest {
            "weight" => "",
            _ => rest.strip_suffix(".weight").filter(|a| !a.is_empty() && !a.contains('.'))?,
        };
        Some(Self { module: module.to_owned(), which, adapter: adapter.to_owned() })
    }
}

impl Adapter {
    /// Opens the matrices of an adapter for a model of this configuration, and checks every one.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Input`] when the file is missing or damaged, or holds anything but pairs of A and B of
    /// this model's projections, of the rank that the settings say.
    pub fn open(folder: &Path, settings: &AdapterSettings, config: &ModelConfig) -> Result<Self> {
        let path = folder.join(MATRICES);
        if !path.is_file() {
            let found = if folder.join("adapter_model.bin").is_file() {
                "only adapter_model.bin is there, which is not read"
            } else {
                "there is adapter_config.json, but no adapter_model.safetensors"
            };
            let remedy = "give a folder that PEFT's save_pretrained wrote, with safetensors";
            return Err(Error::input(folder.display(), found, remedy));
        }
        let stored = Shards::open_file(&path)?;
        let mut lora = LoraConfig {
            rank: settings.rank,
            alpha: settings.alpha,
            dropout: 0.0,
            rslora: settings.rslora,
            targets: LoraTarget::ALL.to_vec(),
        };
        let (pairs, targets) = pairs(&path, &stored, &lora, config)?;
        lora.targets = targets;
        Ok(Self { lora, matrices: pairs.len(), stored, pairs })
    }

    /// That of a checkpoint of this program.
    ///
    /// # Errors
    /// As [`Adapter::open`]; [`Error::Input`] when there is no adapter.
    pub fn of_checkpoint(folder: &Path, config: &ModelConfig) -> Result<Self> {
        let Some(settings) = AdapterSettings::of_folder(folder)? else {
            let remedy = "remove this checkpoint's folder: the one before it is taken then";
            return Err(Error::input(folder.display(), "there is no adapter_config.json", remedy));
        };
        Self::open(folder, &settings, config)
    }

    /// Adds `scale·B·A` to the values of a weight, `[out, in]` row-major; nothing where it has no adapter.
    ///
    /// The product is summed in f32 by rising rank, then scaled and added. Each row is one thread's, so the result
    /// does not depend on how many there are.
    ///
    /// # Panics
    /// If the weight has another shape than its adapter.
    pub fn merge(&self, parameter: &Parameter, w: &mut [f32]) {
        let Some([a, b]) = self.pairs.get(&parameter.name) else { return };
        let ([rows, columns], rank, scale) = (parameter.shape, self.lora.rank, self.scale());
        let read = |name: &str, elements: usize| {
            let mut values = vec![0.0; elements];
            self.stored.read(name, &mut values);
            values
        };
        let (a, b) = (read(a, rank * columns), read(b, rows * rank));
        w.par_chunks_exact_mut(columns).zip(b.par_chunks_exact(rank)).with_min_len(ROWS).for_each_init(
            || vec![0.0; columns],
            |product: &mut Vec<f32>, (w, b)| {
                product.fill(0.0);
                for (a, b) in a.chunks_exact(columns).zip(b) {
                    product.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
                }
                w.iter_mut().zip(&*product).for_each(|(w, x)| *w += scale * x);
            },
        );
    }

    /// Reads one of the adapter's own matrices, under the name by which this program stores it.
    ///
    /// # Errors
    /// [`Error::Input`] when it is not there.
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn read(&self, parameter: &Parameter, out: &mut [f32]) -> Result<()> {
        if !self.pairs.values().flatten().any(|name| *name == parameter.name) {
            let remedy = "if it is a checkpoint's, remove its folder: the one before it is taken then";
            return Err(Error::input(format!("tensor \"{}\"", parameter.name), "it is missing", remedy));
        }
        self.stored.read(&parameter.name, out);
        Ok(())
    }

    /// What B·A is multiplied by.
    fn scale(&self) -> f32 {
        crate::config::round_f32(self.lora.scale())
    }

    /// What it is, for the screen: `LoRA of rank 8, scale 2 (alpha 16 / 8), on 60 matrices (q_proj, v_proj)`.
    pub fn description(&self) -> String {
        let LoraConfig { rank, alpha, rslora, targets, .. } = &self.lora;
        let root = if *rslora { "√" } else { "" };
        let scale = (self.lora.scale() * 1e4).round() / 1e4;
        let targets: Vec<_> = targets.iter().map(|t| t.name()).collect();
        format!(
            "LoRA of rank {rank}, scale {scale} (alpha {alpha} / {root}{rank}), on {} matrices ({})",
            self.matrices,
            targets.join(", ")
        )
    }
}

/// Names of A and B by the weight they change, and the targets that occur.
type Pairs = (BTreeMap<String, [String; 2]>, Vec<LoraTarget>);

/// Every stored tensor put where it belongs.
fn pairs(path: &Path, stored: &Shards, lora: &LoraConfig, config: &ModelConfig) -> Result<Pairs> {
    let wrong = |name: &str, found: String, remedy: &str| {
        Error::input(format!("{}, tensor \"{name}\"", path.display()), found, remedy)
    };
    let expected: BTreeMap<_, _> = config
        .adapters(lora)
        .into_iter()
        .map(|p| (format!("model.layers.{}.{}", p.layer, p.target.path()), p))
        .collect();
    let mut found: BTreeMap<&str, [Option<&str>; 2]> = BTreeMap::new();
    let mut adapter = None;
    let one_of_both =
        "save the adapter again with PEFT: a file holds one adapter, A and B of each projection";
    for name in stored.names() {
        let place = Place::parse(name);
        let known = place.as_ref().and_then(|p| Some((p, expected.get_key_value(&p.module)?)));
        let Some((place, (module, parameters))) = known else {
            let found = "it is no adapter of a projection of this model".to_owned();
            return Err(wrong(
                name,
                found,
                "give the base it was trained on; embedding and head can have none here",
            ));
        };
        let parameter = [&parameters.a, &parameters.b][place.which];
        check(stored, name, parameter, lora.rank).map_err(|(found, remedy)| wrong(name, found, remedy))?;
        let first = adapter.get_or_insert_with(|| place.adapter.clone());
        let slot = &mut found.entry(module).or_default()[place.which];
        if *first != place.adapter || slot.replace(name).is_some() {
            return Err(wrong(name, "it is of a second adapter".to_owned(), one_of_both));
        }
    }
    let mut pairs = BTreeMap::new();
    for (module, pair) in found {
        match pair {
            [Some(a), Some(b)] => pairs.insert(format!("{module}.weight"), [a.to_owned(), b.to_owned()]),
            [Some(one), _] | [_, Some(one)] => {
                return Err(wrong(one, "the other one of A and B is missing".to_owned(), one_of_both));
            }
            [None, None] => unreachable!("one was put there"),
        };
    }
    if pairs.is_empty() {
        return Err(Error::input(path.display(), "it holds no tensors", "save the adapter again with PEFT"));
    }
    let occurs = |t: &LoraTarget| pairs.keys().any(|name| name.ends_with(&format!(".{}.weight", t.name())));
    let targets = LoraTarget::ALL.into_iter().filter(occurs).collect();
    Ok((pairs, targets))
}

/// Type and shape of a stored A or B; what is wrong, and what to do.
fn check(
    stored: &Shards,
    name: &str,
    parameter: &Parameter,
    rank: usize,
) -> std::result::Result<(), (String, &'static str)> {
    let (_, tensor) = stored.get(name).expect("its name was listed");
    if let Err(kind) = &tensor.kind {
        return Err((format!("element type {kind}"), "F32, F16 and BF16 are read: save it in one of them"));
    }
    if tensor.shape != parameter.shape {
        let found =
            format!("shape {:?} where r = {rank} and the base mean {:?}", tensor.shape, parameter.shape);
        return Err((found, "adapter_config.json, its tensors and the base must be of one training"));
    }
    Ok(())
}
