//! The weights of a model on disk: a Hugging Face folder of safetensors, or a GGUF file.
//!
//! Files are mapped, not read: a tensor's pages enter memory while it is read and leave it afterwards.

mod adapter;
mod safetensors;

pub use adapter::{Adapter, AdapterSettings, is_adapter};

use crate::config::{ModelConfig, Parameter};
use crate::dtype::Q8_0;
use crate::error::{Error, Result};
use crate::gguf::{GgmlType, Gguf, hf_name, is_rotary};
use safetensors::Shards;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// The open weights of one model.
pub struct Weights {
    path: PathBuf,
    source: Source,
    adapter: Option<Adapter>,
}

enum Source {
    Folder(Shards),
    Gguf {
        file: Gguf,
        /// File names by Hugging Face name.
        names: BTreeMap<String, String>,
        /// Width of a head, by which the rows of q and k were reordered.
        head_dim: usize,
    },
}

impl Weights {
    /// Opens a folder with `model.safetensors` or `model.safetensors.index.json` and its shards, or a `.gguf` file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Input`] when there are no such weights or the files are damaged.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Ok(Self {
                path: path.to_owned(),
                source: Source::Folder(Shards::open(path)?),
                adapter: None,
            });
        }
        Self::from_gguf(Gguf::open(path)?)
    }

    /// The weights of an open GGUF file.
    ///
    /// # Errors
    /// [`Error::Input`] when its metadata are not those of a Llama.
    pub fn from_gguf(file: Gguf) -> Result<Self> {
        let head_dim = ModelConfig::from_gguf(&file)?.head_dim;
        let names = file.tensors().filter_map(|(name, _)| Some((hf_name(name)?, name.to_owned()))).collect();
        Ok(Self {
            path: file.path().to_owned(),
            source: Source::Gguf { file, names, head_dim },
            adapter: None,
        })
    }

    /// The same weights with an adapter merged in, by [`Weights::read`].
    pub fn with_adapter(self, adapter: Adapter) -> Self {
        Self { adapter: Some(adapter), ..self }
    }

    /// What is merged into the stored values.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// The GGUF file behind the weights, for its tokenizer and template.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.source {
            Source::Folder(_) => None,
            Source::Gguf { file, .. } => Some(file),
        }
    }

    /// Whether a tensor of this Hugging Face name is stored.
    pub fn contains(&self, name: &str) -> bool {
        match &self.source {
            Source::Folder(shards) => shards.get(name).is_some(),
            Source::Gguf { names, .. } => names.contains_key(name),
        }
    }

    /// Whether the output head is the embedding, as transformers 5 decides it: what the configuration says, unless
    /// it says tied while both tensors are stored and differ.
    pub fn head_is_tied(&self, config: &ModelConfig) -> bool {
        config.tie_word_embeddings
            && match &self.source {
                Source::Folder(shards) => shards.same_or_absent(EMBEDDING, HEAD),
                Source::Gguf { .. } => true,
            }
    }

    /// Looks for every parameter of the configuration (with `tie_word_embeddings` as [`Weights::head_is_tied`]
    /// says), and gives the names of stored tensors that are none; rotary tables are not counted among them.
    ///
    /// # Errors
    /// [`Error::Input`] for a missing tensor, one of another shape or of a type that is not read; for a GGUF file
    /// also when it holds a tensor that is not used: llama.cpp would use it.
    pub fn check(&self, config: &ModelConfig) -> Result<Vec<String>> {
        let mut expected = std::collections::BTreeSet::from([EMBEDDING.to_owned(), HEAD.to_owned()]);
        for parameter in config.parameters() {
            self.find(&parameter)?;
            expected.insert(parameter.name);
        }
        match &self.source {
            Source::Folder(shards) => {
                let unknown = shards.names().filter(|&name| !expected.contains(name) && !is_rotary(name));
                Ok(unknown.map(str::to_owned).collect())
            }
            Source::Gguf { file, .. } => {
                let known =
                    |name: &str| hf_name(name).is_some_and(|n| expected.contains(&n)) || is_rotary(name);
                match file.tensors().find(|(name, _)| !known(name)) {
                    None => Ok(Vec::new()),
                    Some((name, _)) => Err(Error::input(
                        format!("{}, tensor \"{name}\"", self.path.display()),
                        "the forward pass has no place for it",
                        "use another model: any LlamaForCausalLM",
                    )),
                }
            }
        }
    }

    /// Reads one parameter into `out` as `f32`, row-major, `shape[0] × shape[1]` elements; in parallel.
    ///
    /// The rows of q and k of a GGUF file are put back into the order of Hugging Face; an adapter is merged in.
    ///
    /// # Errors
    /// [`Error::Input`] when it is missing, has another shape, or is of a type that is not read.
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn read(&self, parameter: &Parameter, out: &mut [f32]) -> Result<()> {
        assert_eq!(out.len(), parameter.shape[0] * parameter.shape[1], "elements of {}", parameter.name);
        match (&self.source, self.find(parameter)?) {
            (Source::Folder(shards), Found::Safetensors(name)) => shards.read(name, out),
            (Source::Gguf { file, head_dim, .. }, Found::Gguf(name)) => {
                let info = file.tensor(name).expect("find saw it");
                if !is_interleaved(parameter) {
                    file.read(info, |row| row, out);
                } else if parameter.is_vector() {
                    let mut stored = vec![0.0; out.len()];
                    file.read(info, |row| row, &mut stored);
                    (0..).zip(out.iter_mut()).for_each(|(i, x)| *x = stored[interleaved_row(i, *head_dim)]);
                } else {
                    file.read(info, |row| interleaved_row(row, *head_dim), out);
                }
            }
            _ => unreachable!("find looks into the same source"),
        }
        if let Some(adapter) = &self.adapter {
            adapter.merge(parameter, out);
        }
        Ok(())
    }

    /// Whether every matrix of the configuration is stored as Q8_0 and is as it is stored, so that
    /// [`Weights::read_q8_0`] gives it.
    pub fn are_q8_0(&self, config: &ModelConfig) -> bool {
        if self.adapter.is_some() {
            return false;
        }
        let Source::Gguf { file, .. } = &self.source else { return false };
        let is_q8_0 = |parameter: &Parameter| match self.find(parameter) {
            Ok(Found::Gguf(name)) => file.tensor(name).is_some_and(|info| info.kind == GgmlType::Q8_0),
            _ => false,
        };
        config.parameters().iter().filter(|parameter| !parameter.is_vector()).all(is_q8_0)
    }

    /// Reads a matrix of Q8_0 as it is stored, its rows in the order of [`Weights::read`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// If it is not one, an adapter is to be merged in, or `out` has another length.
    pub fn read_q8_0(&self, parameter: &Parameter, out: &mut [Q8_0]) -> Result<()> {
        assert!(self.adapter.is_none(), "an adapter is merged in f32");
        let (Source::Gguf { file, head_dim, .. }, Found::Gguf(name)) = (&self.source, self.find(parameter)?)
        else {
            panic!("{} is not of Q8_0", parameter.name)
        };
        let info = file.tensor(name).expect("find saw it");
        let interleaved = is_interleaved(parameter);
        let source = |row| if interleaved { interleaved_row(row, *head_dim) } else { row };
        file.read_q8_0(info, source, out);
        Ok(())
    }

    /// What the weights are, for the screen: `GGUF, 4-bit (Q4_1), dequantised: 210 tensors Q4_1, …`.
    pub fn description(&self) -> String {
        let mut counts: BTreeMap<GgmlType, (usize, usize)> = BTreeMap::new();
        let mut count = |kind, elements| {
            let entry = counts.entry(kind).or_default();
            *entry = (entry.0 + 1, entry.1 + elements);
        };
        match &self.source {
            Source::Folder(shards) => shards.kinds().for_each(|(kind, elements)| count(kind, elements)),
            Source::Gguf { file, .. } => {
                file.tensors().for_each(|(_, t)| count(t.kind, t.shape[0] * t.shape[1]));
            }
        }
        let main = counts.iter().max_by_key(|(_, (_, elements))| *elements).map(|(kind, _)| *kind);
        let list: Vec<_> = counts.iter().map(|(kind, (n, _))| format!("{n} × {}", kind.name())).collect();
        let form = if self.gguf().is_some() { "GGUF" } else { "safetensors" };
        let precision = match main {
            None => "empty".to_owned(),
            Some(kind @ (GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)) => kind.name().to_lowercase(),
            Some(kind) => format!("{}-bit ({}), dequantised", kind.bits(), kind.name()),
        };
        format!("{form}, {precision}: {} tensors", list.join(", "))
    }

    /// The stored tensor of a parameter, its shape and type checked.
    fn find(&self, parameter: &Parameter) -> Result<Found<'_>> {
        // transformers ties in both directions: a tied model may have stored the head only.
        let swapped = parameter.name == EMBEDDING && !self.contains(EMBEDDING);
        let name = if swapped { HEAD } else { parameter.name.as_str() };
        let (found, shape, wanted) = match &self.source {
            Source::Folder(shards) => {
                let Some((name, stored)) = shards.get(name) else { return Err(self.missing(parameter)) };
                if let Err(dtype) = &stored.kind {
                    let remedy = "F32, F16 and BF16 are read: convert the folder to one of them";
                    return Err(self.tensor_error(parameter, format!("element type {dtype}"), remedy));
                }
                (Found::Safetensors(name), stored.shape.clone(), parameter.stored_shape())
            }
            Source::Gguf { file, names, .. } => {
                let Some(name) = names.get(name) else { return Err(self.missing(parameter)) };
                let info = file.tensor(name).expect("names lists tensors of the file");
                (Found::Gguf(name), info.shape.to_vec(), parameter.shape.to_vec())
            }
        };
        if shape != wanted {
            let found = format!("shape {shape:?} where the configuration means {wanted:?}");
            return Err(self.tensor_error(
                parameter,
                found,
                "configuration and weights must be of one model",
            ));
        }
        Ok(found)
    }

    fn missing(&self, parameter: &Parameter) -> Error {
        let remedy = if parameter.name == HEAD {
            "the configuration says tie_word_embeddings = false; set it to true if the head is the embedding"
        } else {
            "fetch all files of the model again, or use another model (any LlamaForCausalLM)"
        };
        self.tensor_error(parameter, "it is missing".to_owned(), remedy)
    }

    fn tensor_error(&self, parameter: &Parameter, found: String, remedy: &str) -> Error {
        Error::input(format!("{}, tensor \"{}\"", self.path.display(), parameter.name), found, remedy)
    }
}

/// The name of a stored tensor in its file.
enum Found<'a> {
    Safetensors(&'a str),
    Gguf(&'a str),
}

/// Whether the rows of a parameter, of a bias its elements, stand in another order in a GGUF file: see [`interleaved_row`].
pub fn is_interleaved(parameter: &Parameter) -> bool {
    [".q_proj.", ".k_proj."].iter().any(|part| parameter.name.contains(part))
}

/// The row of a GGUF file that holds row `row` of q or k.
///
/// llama.cpp rotates neighbouring coordinates (2i, 2i + 1) where Hugging Face rotates (i, i + D/2); its converter
/// interleaves the two halves of each head accordingly.
pub fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (within % half) + within / half
}

#[cfg(test)]
mod tests {
    use super::interleaved_row;

    #[test]
    fn both_halves_of_a_head_are_interleaved() {
        // Head 1 of width 6: Hugging Face rows 6..12 stand at these rows of the file.
        let rows: Vec<_> = (6..12).map(|row| interleaved_row(row, 6)).collect();
        assert_eq!(rows, [6, 8, 10, 7, 9, 11]);
    }
}
