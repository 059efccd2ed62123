//! Everything a training run depends on: defaults, then a TOML recipe, then `--set key=value`, then flags.

mod choice;
mod compat;
mod keys;
mod lora;
mod record;
mod schedule;

use std::path::PathBuf;

use serde::Serialize;
use toml::Value;

pub use choice::{
    Compat, Device, EmbeddingState, Finding, LossOn, OptimizerKind, Precision, Recompute, Scheduler,
};
pub use keys::KEYS;

use crate::config::LoraTarget;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// The recipes in the binary, by name.
const EMBEDDED: [(&str, &str); 2] = [
    (DEFAULT_RECIPE, include_str!("../recipes/smollm2-360m-deepthink.toml")),
    ("quickstart", include_str!("../recipes/quickstart.toml")),
];

/// The recipe of a run that names neither a recipe nor a model.
const DEFAULT_RECIPE: &str = "smollm2-360m-deepthink";

/// A resolved training run; every value has passed its check. [`Serialize`] gives the object in `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// A Hugging Face folder, a `.gguf` file or a hub id. No default.
    pub model: String,
    /// A `.jsonl`, `.json`, `.csv` or `.parquet` file, or `builtin:reasoning`. No default.
    pub data: String,
    /// Held-out rows in a file of their own; then `eval_share` is not used.
    pub eval_data: Option<String>,
    /// Folder the run writes; made from the date, model and data where absent.
    pub out: Option<PathBuf>,
    /// Optimizer steps; wins over `epochs`, unless `epochs` was set by a later layer.
    pub steps: Option<usize>,
    /// Passes over the rows, > 0 [default: 1].
    pub epochs: f64,
    /// Rows of a micro-batch; packed rows where `packing` [default: 2].
    pub batch_size: usize,
    /// Micro-batches of an optimizer step [default: 4].
    pub grad_accum: usize,
    /// Tokens kept of a row, from its start; capacity of a packed row [default: 512].
    pub max_length: usize,
    /// Peak learning rate [default: 2e-4].
    pub lr: f64,
    /// Steps from 0 to the peak; below 1 a share of all steps [default: 5].
    pub warmup: f64,
    /// What follows the warm-up [default: linear].
    pub scheduler: Scheduler,
    /// Which update [default: adamw_8bit].
    pub optimizer: OptimizerKind,
    /// Decay of the first and second moment, each in [0, 1) [default: 0.9, 0.999].
    pub betas: [f64; 2],
    /// Added to the root of the second moment, > 0 [default: 1e-8].
    pub eps: f64,
    /// Share of a weight, times the learning rate, taken off per step; norms are spared [default: 0.01].
    pub weight_decay: f64,
    /// Largest global L2 norm of a step's gradient; 0 leaves it alone [default: 1].
    pub clip: f64,
    /// Which tokens are learnt [default: completion].
    pub loss_on: LossOn,
    /// Fill rows to `max_length` with whole examples [default: false].
    pub packing: bool,
    /// A new order every epoch [default: true].
    pub shuffle: bool,
    /// Seed of the order and of the held-out share [default: 3407].
    pub seed: u64,
    /// Share of the rows held out, in [0, 0.5] [default: 0.05].
    pub eval_share: f64,
    /// Steps between evaluations; 0 evaluates only before the first and after the last step [default: 50].
    pub eval_every: usize,
    /// Steps between samples of the model's text; 0 takes none [default: 50].
    pub sample_every: usize,
    /// What the model is asked for a sample [default: Explain AGI in simple terms?].
    pub sample_prompt: String,
    /// Steps between checkpoints; 0 writes none [default: 50].
    pub save_every: usize,
    /// Checkpoints kept, the latest ones, besides the one with the lowest held-out loss; ≥ 1 [default: 2].
    pub keep_checkpoints: usize,
    /// Findings about the data that do not stop the run [default: none].
    pub allow: Vec<Finding>,
    /// The trainer whose quirks are reproduced [default: off].
    pub compat: Compat,
    /// Type of weights and activations in the step [default: auto].
    pub precision: Precision,
    /// What computes [default: auto].
    pub device: Device,
    /// A GPU by name that a plan is made for; with `--dry-run` only.
    pub device_name: Option<String>,
    /// CPU threads; all cores where absent.
    pub threads: Option<usize>,
    /// Type of the saved weights [default: fp32].
    #[serde(serialize_with = "choice::serialize_dtype")]
    pub save_dtype: DType,
    /// Field of a row that holds the prompt, where it has none of the usual names.
    pub prompt_field: Option<String>,
    /// Field of a row that holds the response, where it has none of the usual names.
    pub response_field: Option<String>,
    /// System turn put before every conversation that has none.
    pub system: Option<String>,
    /// Optimizer state of the embedding under `adamw_8bit` [default: fp32].
    pub embedding_state: EmbeddingState,
    /// Activations that are computed again in the backward pass to save memory; the results are the same bits
    /// [default: norm_swiglu].
    pub recompute: Recompute,
    /// On a GPU, record the step once and replay it; without, a profiler sees each operation's range around its kernels
    /// [default: true].
    pub cuda_graph: bool,
    /// Rank of the adapters that are trained in place of the weights; 0 trains the weights [default: 0].
    pub lora_rank: usize,
    /// What the adapters' part is multiplied by, times the rank (with `lora_rslora` its root) [default: the rank].
    pub lora_alpha: Option<f64>,
    /// Share of an adapter's input that is dropped in training, in [0, 1) [default: 0].
    pub lora_dropout: f64,
    /// Divide `lora_alpha` by the root of the rank [default: false].
    pub lora_rslora: bool,
    /// Projections with an adapter [default: all seven].
    pub lora_targets: Vec<LoraTarget>,
    /// Size of NEFTune's noise on the embeddings in training; 0 adds none [default: 0].
    pub neftune_alpha: f64,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            model: String::new(),
            data: String::new(),
            eval_data: None,
            out: None,
            steps: None,
            epochs: 1.0,
            batch_size: 2,
            grad_accum: 4,
            max_length: 512,
            lr: 2e-4,
            warmup: 5.0,
            scheduler: Scheduler::Linear,
            optimizer: OptimizerKind::AdamW8bit,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.01,
            clip: 1.0,
            loss_on: LossOn::Completion,
            packing: false,
            shuffle: true,
            seed: 3407,
            eval_share: 0.05,
            eval_every: 50,
            sample_every: 50,
            sample_prompt: "Explain AGI in simple terms?".to_owned(),
            save_every: 50,
            keep_checkpoints: 2,
            allow: Vec::new(),
            compat: Compat::Off,
            precision: Precision::Auto,
            device: Device::Auto,
            device_name: None,
            threads: None,
            save_dtype: DType::F32,
            prompt_field: None,
            response_field: None,
            system: None,
            embedding_state: EmbeddingState::Fp32,
            recompute: Recompute::NormSwiglu,
            cuda_graph: true,
            lora_rank: 0,
            lora_alpha: None,
            lora_dropout: 0.0,
            lora_rslora: false,
            lora_targets: LoraTarget::ALL.to_vec(),
            neftune_alpha: 0.0,
        }
    }
}

/// What flags of their own said; `None` where the flag was not given.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "each is the recipe key of its name")]
pub struct RecipeOverrides {
    pub model: Option<String>,
    pub data: Option<String>,
    pub eval_data: Option<String>,
    pub out: Option<String>,
    pub steps: Option<u64>,
    pub epochs: Option<f64>,
    pub batch_size: Option<u64>,
    pub grad_accum: Option<u64>,
    pub max_length: Option<u64>,
    pub lr: Option<f64>,
    pub warmup: Option<f64>,
    pub optimizer: Option<String>,
    pub loss_on: Option<String>,
    pub packing: Option<bool>,
    pub shuffle: Option<bool>,
    pub seed: Option<u64>,
    pub save_every: Option<u64>,
    pub device: Option<String>,
    pub precision: Option<String>,
    pub threads: Option<u64>,
}

impl RecipeOverrides {
    /// The flags that were given, in the order of the fields.
    fn layer(&self) -> Vec<keys::Entry> {
        let text = |v: &Option<String>| v.clone().map(Value::String);
        // Past i64 there is no TOML integer; as text it is refused with the number in the message.
        let count = |v: Option<u64>| {
            v.map(|n| i64::try_from(n).map_or_else(|_| Value::String(n.to_string()), Value::Integer))
        };
        let all = [
            ("model", text(&self.model)),
            ("data", text(&self.data)),
            ("eval_data", text(&self.eval_data)),
            ("out", text(&self.out)),
            ("steps", count(self.steps)),
            ("epochs", self.epochs.map(Value::Float)),
            ("batch_size", count(self.batch_size)),
            ("grad_accum", count(self.grad_accum)),
            ("max_length", count(self.max_length)),
            ("lr", self.lr.map(Value::Float)),
            ("warmup", self.warmup.map(Value::Float)),
            ("optimizer", text(&self.optimizer)),
            ("loss_on", text(&self.loss_on)),
            ("packing", self.packing.map(Value::Boolean)),
            ("shuffle", self.shuffle.map(Value::Boolean)),
            ("seed", count(self.seed)),
            ("save_every", count(self.save_every)),
            ("device", text(&self.device)),
            ("precision", text(&self.precision)),
            ("threads", count(self.threads)),
        ];
        let given = all.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let entry = |(key, value): (&str, Value)| keys::Entry {
            asked: format!("--{}", key.replace('_', "-")),
            key: key.to_owned(),
            value,
        };
        given.map(entry).collect()
    }
}

/// The keys that every command has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineChoice {
    /// What computes.
    pub device: Device,
    /// Type of weights and activations.
    pub precision: Precision,
    /// CPU threads; all cores where absent.
    pub threads: Option<usize>,
}

impl EngineChoice {
    /// From flags alone.
    ///
    /// # Errors
    /// [`Error::Input`] that names the flag and what is allowed.
    pub fn resolve(flags: &RecipeOverrides) -> Result<Self> {
        let mut recipe = Recipe::default();
        keys::apply(&mut recipe, &flags.layer())?;
        Ok(Self { device: recipe.device, precision: recipe.precision, threads: recipe.threads })
    }
}

impl Recipe {
    /// Resolves defaults ← `recipe` (a file, or the name of an embedded recipe) ← `sets` (each `key=value`) ←
    /// `flags`. With neither a recipe nor a model it starts from the default recipe. Paths are kept as written.
    ///
    /// # Errors
    /// [`Error::Input`] that names the file and line, the `--set` or the flag, the key, and what is allowed;
    /// [`Error::Io`] if the file cannot be read.
    pub fn resolve(recipe: Option<&str>, sets: &[String], flags: &RecipeOverrides) -> Result<Self> {
        let mut layers = Vec::new();
        let set_layer = sets.iter().map(|s| keys::parse_set(s)).collect::<Result<Vec<_>>>()?;
        let names_model = flags.model.is_some() || set_layer.iter().any(|e| e.key == "model");
        match recipe {
            Some(name) => layers.push(file_layer(name)?),
            None if !names_model => layers.push(file_layer(DEFAULT_RECIPE)?),
            None => {}
        }
        layers.push(set_layer);
        layers.push(flags.layer());

        let mut resolved = Self::default();
        for layer in &layers {
            keys::apply(&mut resolved, layer)?;
        }
        compat::apply(&mut resolved, &layers)?;
        resolved.check()?;
        Ok(resolved)
    }

    /// What no single key shows.
    fn check(&self) -> Result<()> {
        for (key, value, example) in [
            ("model", &self.model, "a Hugging Face folder, a .gguf file, or a hub id: org/name"),
            ("data", &self.data, "a .jsonl, .json, .csv or .parquet file, a hub id, or builtin:reasoning"),
        ] {
            if value.is_empty() {
                let remedy = format!("give --{key} or the recipe key `{key}`: {example}");
                return Err(Error::input(format!("key `{key}`"), "it is not set", remedy));
            }
        }
        if self.optimizer == OptimizerKind::AdamW && self.embedding_state == EmbeddingState::EightBit {
            return Err(Error::input(
                "key `embedding_state`",
                "8bit, but the optimizer is adamw, which keeps all its state in fp32",
                "drop embedding_state, or set optimizer to adamw_8bit",
            ));
        }
        self.check_lora()
    }

    /// Optimizer steps of the whole run: `steps`, or `epochs` in steps of an epoch, rounded up; at least 1.
    #[allow(clippy::cast_possible_truncation, reason = "saturates; a run of 2^53 steps never ends anyway")]
    #[allow(clippy::cast_sign_loss, reason = "epochs is positive")]
    pub fn total_steps(&self, steps_per_epoch: usize) -> usize {
        self.steps.unwrap_or_else(|| (self.epochs * steps_per_epoch as f64).ceil() as usize).max(1)
    }

    /// Steps of the warm-up in a run of `total` steps; a share is rounded up, as transformers does.
    #[allow(clippy::cast_possible_truncation, reason = "whole numbers up to 2^32, checked by the key")]
    #[allow(clippy::cast_sign_loss, reason = "warmup is not negative")]
    pub fn warmup_steps(&self, total: usize) -> usize {
        let steps = if self.warmup < 1.0 { (self.warmup * total as f64).ceil() } else { self.warmup };
        steps as usize
    }

    /// Learning rate of step index `step` (from 0) in a run of `total` steps.
    pub fn learning_rate(&self, step: usize, total: usize) -> f64 {
        self.lr * schedule::factor(self.scheduler, step, self.warmup_steps(total), total)
    }
}

/// The entries of a recipe file, or of an embedded recipe where there is no such file.
fn file_layer(name: &str) -> Result<Vec<keys::Entry>> {
    // Only a .toml file is one: in a checkout, `quickstart` is also the name of a script.
    if name.ends_with(".toml") && std::path::Path::new(name).is_file() {
        let text = std::fs::read(name).map_err(Error::io("read", name))?;
        let text = String::from_utf8(text).map_err(|e| {
            let found = format!("byte {} is not UTF-8", e.utf8_error().valid_up_to());
            Error::input(format!("recipe {name}"), found, "save the file as UTF-8 text")
        })?;
        return keys::parse_file(name, &text);
    }
    let file = name.rsplit('/').next().unwrap_or(name);
    let stem = file.strip_suffix(".toml").unwrap_or(file);
    match EMBEDDED.iter().find(|(embedded, _)| *embedded == stem) {
        Some((embedded, text)) => keys::parse_file(&format!("built-in {embedded}.toml"), text),
        None => Err(Error::input(
            format!("recipe {name}"),
            "there is no such file, and no built-in recipe of that name",
            format!("give the path of a .toml file, or one of {}", EMBEDDED.map(|(n, _)| n).join(", ")),
        )),
    }
}
