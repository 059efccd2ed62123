//! One or several mapped safetensors files.

use crate::error::{Error, Result};
use crate::gguf::{GgmlType, Mapped, dequantise};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

pub const SINGLE: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";

/// Elements one task converts: 256 KiB of `f32`.
const TASK: usize = 1 << 16;

/// One stored tensor.
pub struct Stored {
    /// Element type, or the name of one that is not read.
    pub kind: std::result::Result<GgmlType, String>,
    /// Axes, slowest first.
    pub shape: Vec<usize>,
    shard: usize,
    range: Range<usize>,
}

/// The tensors of all files.
pub struct Shards {
    files: Vec<Mapped>,
    tensors: BTreeMap<String, Stored>,
}

impl Shards {
    /// Opens the files of a folder.
    pub fn open(folder: &Path) -> Result<Self> {
        if folder.join(SINGLE).is_file() {
            return Self::open_file(&folder.join(SINGLE));
        }
        let mut shards = Self { files: Vec::new(), tensors: BTreeMap::new() };
        let index = folder.join(INDEX);
        if !index.is_file() {
            let found = if folder.join("pytorch_model.bin").is_file() {
                "only pytorch_model.bin is there, which is not read"
            } else {
                "neither model.safetensors nor model.safetensors.index.json is there"
            };
            let remedy = "give a folder with safetensors (as transformers saves them) or a .gguf file";
            return Err(Error::input(folder.display(), found, remedy));
        }
        let wrong = |found: String| {
            Error::input(index.display(), found, "fetch the file again; it must list the file of each tensor")
        };
        let text = std::fs::read_to_string(&index).map_err(Error::io("read", &index))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| wrong(format!("not JSON: {e}")))?;
        let map =
            json["weight_map"].as_object().ok_or_else(|| wrong("no object \"weight_map\"".to_owned()))?;
        let mut by_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in map {
            // A plain file name: an index must not lead out of the folder.
            let name = file.as_str().filter(|f| Path::new(f).file_name() == Some(f.as_ref()));
            let name =
                name.ok_or_else(|| wrong(format!("\"{tensor}\" is said to be in {file}, no file name")))?;
            by_file.entry(name).or_default().push(tensor);
        }
        for (file, names) in by_file {
            let path = folder.join(file);
            if !path.is_file() {
                return Err(wrong(format!("{file} is listed but is not in the folder")));
            }
            let names: std::collections::HashSet<_> = names.into_iter().collect();
            shards.add(&path, |name| names.contains(name))?;
            if let Some(name) = names.iter().find(|&&name| !shards.tensors.contains_key(name)) {
                return Err(wrong(format!("\"{name}\" is not in {file}")));
            }
        }
        Ok(shards)
    }

    /// Opens one file, all of it.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut shards = Self { files: Vec::new(), tensors: BTreeMap::new() };
        shards.add(path, |_| true)?;
        Ok(shards)
    }

    /// Maps one file and takes in the tensors that belong to it.
    fn add(&mut self, path: &Path, belongs: impl Fn(&str) -> bool) -> Result<()> {
        let file = Mapped::open(path)?;
        let (header, metadata) = SafeTensors::read_metadata(file.bytes()).map_err(|e| {
            Error::input(
                path.display(),
                format!("not a whole safetensors file: {e}"),
                "fetch it again and compare its checksum with the published one",
            )
        })?;
        // The eight bytes before the header hold its length.
        let data = 8 + header;
        for (name, info) in metadata.tensors() {
            if !belongs(&name) {
                continue;
            }
            let kind = match info.dtype {
                Dtype::F32 => Ok(GgmlType::F32),
                Dtype::F16 => Ok(GgmlType::F16),
                Dtype::BF16 => Ok(GgmlType::BF16),
                other => Err(format!("{other:?}")),
            };
            let range = data + info.data_offsets.0..data + info.data_offsets.1;
            let stored = Stored { kind, shape: info.shape.clone(), shard: self.files.len(), range };
            self.tensors.insert(name, stored);
        }
        self.files.push(file);
        Ok(())
    }

    /// A tensor, under the name as stored here.
    pub fn get(&self, name: &str) -> Option<(&str, &Stored)> {
        self.tensors.get_key_value(name).map(|(name, stored)| (name.as_str(), stored))
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Type and number of elements of each tensor of a type that is read.
    pub fn kinds(&self) -> impl Iterator<Item = (GgmlType, usize)> {
        self.tensors.values().filter_map(|t| Some((t.kind.clone().ok()?, t.shape.iter().product())))
    }

    /// Whether two tensors hold the same bytes; also true when either is absent.
    pub fn same_or_absent(&self, a: &str, b: &str) -> bool {
        let (Some(a), Some(b)) = (self.tensors.get(a), self.tensors.get(b)) else { return true };
        let bytes = |t: &Stored| &self.files[t.shard].bytes()[t.range.clone()];
        let same = a.kind == b.kind && a.shape == b.shape && bytes(a) == bytes(b);
        for t in [a, b] {
            self.files[t.shard].release(t.range.clone());
        }
        same
    }

    /// Reads a tensor of a type that is read, and releases its pages.
    ///
    /// # Panics
    /// If there is no such tensor, or `out` has another number of elements.
    pub fn read(&self, name: &str, out: &mut [f32]) {
        let stored = &self.tensors[name];
        let kind = *stored.kind.as_ref().expect("the caller checked the type");
        let file = &self.files[stored.shard];
        let bytes = &file.bytes()[stored.range.clone()];
        let (_, size) = kind.block();
        assert_eq!(bytes.len(), out.len() * size, "bytes of {name}");
        out.par_chunks_mut(TASK)
            .zip(bytes.par_chunks(TASK * size))
            .for_each(|(out, bytes)| dequantise(kind, bytes, out));
        file.release(stored.range.clone());
    }
}
