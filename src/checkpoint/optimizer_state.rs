//! `optimizer.safetensors`: the moments of every weight, in the bits they have in memory.

use super::safetensors::{Entry, write};
use super::write_beside;
use crate::arena::Tensor;
use crate::backend::Backend;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gguf::Mapped;
use crate::optimizer::Optimizer;
use safetensors::tensor::{Dtype, SafeTensors};
use std::path::Path;

/// Writes the state of `optimizer`; codes are U8, magnitudes and full moments F32.
///
/// # Errors
/// [`Error::Io`]; those of the backend.
pub fn save_optimizer(path: &Path, optimizer: &Optimizer, backend: &mut dyn Backend) -> Result<()> {
    let state: Vec<(String, Tensor)> = optimizer.state().collect();
    let entry = |(name, t): &(String, Tensor)| Entry {
        name: name.clone(),
        dtype: t.dtype,
        shape: vec![t.rows, t.cols],
    };
    let entries: Vec<Entry> = state.iter().map(entry).collect();
    let mut failed = None;
    let written = write_beside(path, |file| {
        write(file, &entries, |i, file| {
            let mut bytes = vec![0; state[i].1.bytes()];
            if let Err(e) = backend.download(state[i].1, &mut bytes) {
                failed = Some(e);
                return Err(std::io::Error::other("the optimizer's state cannot be read"));
            }
            file.write_all(&bytes)
        })
    });
    failed.map_or(written, Err)
}

/// Reads what [`save_optimizer`] wrote for an optimizer of the same plan.
///
/// # Errors
/// [`Error::Io`]; [`Error::Input`] when the file is damaged or of another model or optimizer; those of the backend.
pub fn load_optimizer(path: &Path, optimizer: &Optimizer, backend: &mut dyn Backend) -> Result<()> {
    let damaged = |found: String| {
        let remedy = "remove this checkpoint's folder: the one before it is taken then";
        Error::input(path.display(), found, remedy)
    };
    let file = Mapped::open(path)?;
    let tensors = SafeTensors::deserialize(file.bytes())
        .map_err(|e| damaged(format!("not a whole safetensors file: {e}")))?;
    let state: Vec<(String, Tensor)> = optimizer.state().collect();
    if tensors.len() != state.len() {
        let found = format!("{} tensors, where this model and optimizer have {}", tensors.len(), state.len());
        return Err(damaged(found));
    }
    for (name, t) in state {
        let stored = tensors.tensor(&name).map_err(|e| damaged(format!("tensor \"{name}\": {e}")))?;
        let dtype = if t.dtype == DType::U8 { Dtype::U8 } else { Dtype::F32 };
        if stored.dtype() != dtype || stored.shape() != [t.rows, t.cols] {
            let found = format!(
                "tensor \"{name}\" is {:?} {:?}, expected {dtype:?} [{}, {}]",
                stored.dtype(),
                stored.shape(),
                t.rows,
                t.cols
            );
            return Err(damaged(found));
        }
        backend.upload(t, stored.data())?;
    }
    Ok(())
}
