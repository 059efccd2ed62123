//! The kernels: what build.rs made of `kernels/*.cu`, and the functions found in it.

use super::{Device, Tile, cuda, refusal};
use crate::dtype::DType;
use crate::error::{Error, Result};
use cudarc::driver::{CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What build.rs made of one kernel file for one PTX target.
struct Image {
    file: &'static str,
    /// Target (80 for compute_80) and text.
    ptx: (u32, &'static str),
    /// Architecture (86 for sm_86) and machine code, made from that text.
    cubins: &'static [(u32, &'static [u8])],
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// A step of a kernel's ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// The first, plain version: oracle of the tests, baseline of the benches.
    Naive,
    /// The fast one.
    Production,
}

/// Both versions of one kernel.
pub struct Ladder {
    naive: CudaFunction,
    /// `None` where the type has no tensor cores: f32, and bf16 on Turing.
    production: Option<CudaFunction>,
}

impl Ladder {
    /// The function of one rung.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the type of activations has no such kernel.
    pub fn rung(&self, op: &'static str, rung: Rung) -> Result<&CudaFunction> {
        match rung {
            Rung::Naive => Ok(&self.naive),
            Rung::Production => self.production.as_ref().ok_or_else(|| no_tensor_cores(op)),
        }
    }
}

fn no_tensor_cores(op: &'static str) -> Error {
    let rule = "f16, or bf16 from compute capability 8.0";
    Error::Unsupported { op, dim: "type", got: "one without tensor cores".into(), rule }
}

/// The versions of one product of `kernels/gemm.cu`.
pub struct Product {
    naive: CudaFunction,
    /// The production rung: `{name}_{type}` for the largest tile, `{name}_{rows}x{columns}_{type}` for others. None where
    /// the type has no tensor cores: f32, and bf16 on Turing.
    tiles: Vec<(Tile, CudaFunction)>,
}

impl Product {
    /// The naive function.
    pub fn naive(&self) -> &CudaFunction {
        &self.naive
    }

    /// Tiles that there are kernels for.
    pub fn tiles(&self) -> impl Iterator<Item = Tile> {
        self.tiles.iter().map(|(tile, _)| *tile)
    }

    /// The production rung's function for a tile.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is none, or none at all for the type of activations.
    pub fn tile(&self, op: &'static str, tile: Tile) -> Result<&CudaFunction> {
        if self.tiles.is_empty() {
            return Err(no_tensor_cores(op));
        }
        let found = self.tiles.iter().find(|(of, _)| *of == tile).map(|(_, function)| function);
        found.ok_or_else(|| {
            let got = format!("{}x{}", tile.rows, tile.columns);
            Error::Unsupported { op, dim: "tile", got, rule: "one that this product has a kernel for" }
        })
    }
}

/// All kernels, resolved at start-up: a missing one fails here, not in step 3 of a run.
pub struct Kernels {
    /// `kernels/rows.cu`.
    pub rows_zero: Ladder,
    /// `kernels/rows.cu`.
    pub rows_gather: Ladder,
    /// `kernels/rows.cu`.
    pub rows_scatter: Ladder,
    /// `kernels/embedding.cu`, for the activation type.
    pub embedding_forward: Ladder,
    /// `kernels/embedding.cu`.
    pub embedding_clear: Ladder,
    /// `kernels/embedding.cu`.
    pub embedding_backward: Ladder,
    /// `kernels/rmsnorm.cu`, for the activation type.
    pub rmsnorm_forward: Ladder,
    /// `kernels/rmsnorm.cu`, for the activation type.
    pub rmsnorm_backward: Ladder,
    /// `kernels/rmsnorm.cu`.
    pub rmsnorm_backward_finish: Ladder,
    /// `kernels/bias.cu`, for the activation type.
    pub bias_gradient: Ladder,
    /// `kernels/cross_entropy.cu`, for the activation type.
    pub cross_entropy: Ladder,
    /// `kernels/cross_entropy.cu`.
    pub cross_entropy_finish: CudaFunction,
    /// `kernels/gemm.cu`, for the activation type, as are all to `linear_weight_gradient`.
    pub linear: Product,
    /// With an f32 result.
    pub linear_wide: Product,
    /// With the residual.
    pub linear_residual: Product,
    /// With the rotation of q and k.
    pub linear_rope: Product,
    /// With SwiGLU.
    pub linear_swiglu: Product,
    /// Of the input.
    pub linear_input_gradient: Product,
    /// Of the input, and through SwiGLU.
    pub linear_swiglu_backward: Product,
    /// Of the weight.
    pub linear_weight_gradient: Product,
    /// From partial sums.
    pub linear_weight_gradient_finish: CudaFunction,
    /// `kernels/attention.cu`, for the activation type, as are all to `attention_backward_keys`.
    pub attention_forward: Ladder,
    /// New keys and values to the cache.
    pub attention_append: Ladder,
    /// Over the cache.
    pub attention_cached: Ladder,
    /// `kernels/attention_backward.cu`: of the queries.
    pub attention_backward_query: Ladder,
    /// Of keys and values.
    pub attention_backward_keys: Ladder,
    /// `kernels/adapter.cu`, for the activation type.
    pub dropout: Ladder,
    /// `kernels/adapter.cu`.
    pub embedding_noise: Ladder,
    /// `kernels/adapter.cu`, for the activation type.
    pub spread: CudaFunction,
    /// `kernels/adapter.cu`.
    pub gather: CudaFunction,
    /// `kernels/grad_norm.cu`.
    pub grad_norm_partials: Ladder,
    /// `kernels/grad_norm.cu`.
    pub grad_norm_finish: CudaFunction,
    /// `kernels/adamw.cu`, torch's rule.
    pub adamw: Ladder,
    /// `kernels/adamw.cu`, the blockwise rule.
    pub adamw_8bit: Ladder,
}

/// Kernel files in this binary; none if it was built without nvcc.
pub(super) fn images() -> usize {
    IMAGES.len()
}

/// What GPUs this binary has kernels for.
#[derive(Debug)]
pub struct Images {
    /// Compute capabilities with machine code, 86 for 8.6.
    pub code: Vec<u32>,
    /// The ones from which on others compile its PTX.
    pub ptx: Vec<u32>,
    /// Version of the CUDA that made them.
    pub cuda: (u32, u32),
}

impl Images {
    /// None if this binary was built without nvcc.
    pub fn of_this_binary() -> Option<Self> {
        let sorted =
            |list: &mut dyn Iterator<Item = u32>| list.collect::<BTreeSet<u32>>().into_iter().collect();
        let code = sorted(&mut IMAGES.iter().flat_map(|image| image.cubins).map(|(arch, _)| *arch));
        let ptx = sorted(&mut IMAGES.iter().map(|image| image.ptx.0));
        (images() > 0).then_some(Self { code, ptx, cuda: CUDA_VERSION })
    }
}

impl Kernels {
    pub(super) fn load(device: &Device, dtype: DType) -> Result<Self> {
        let a = match dtype {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            other => panic!("{other:?} is no type of activations"),
        };
        let (rmsnorm, grad_norm) = (module(device, "rmsnorm")?, module(device, "grad_norm")?);
        let (adamw, gemm) = (module(device, "adamw")?, module(device, "gemm")?);
        let (rows, embedding) = (module(device, "rows")?, module(device, "embedding")?);
        let (cross_entropy, adapter) = (module(device, "cross_entropy")?, module(device, "adapter")?);
        let typed = format!("_{a}");
        let tensor_cores = dtype == DType::F16 || (dtype == DType::BF16 && device.capability >= 80);
        let on_tensor_cores = |module, name| {
            let naive = function(module, &format!("{name}_naive{typed}"))?;
            let production =
                if tensor_cores { Some(function(module, &format!("{name}{typed}"))?) } else { None };
            Ok(Ladder { naive, production })
        };
        let product = |name, tiles: &[Tile]| {
            let tiles = if tensor_cores { tiles } else { &[] };
            let tiles = tiles.iter().map(|&tile| Ok((tile, function(&gemm, &tiled(name, tile, &typed))?)));
            let naive = function(&gemm, &format!("{name}_naive{typed}"))?;
            Ok(Product { naive, tiles: tiles.collect::<Result<_>>()? })
        };
        let (attention, backward) = (module(device, "attention")?, module(device, "attention_backward")?);
        Ok(Self {
            rows_zero: ladder(&rows, "rows_zero", "")?,
            rows_gather: ladder(&rows, "rows_gather", "")?,
            rows_scatter: ladder(&rows, "rows_scatter", "")?,
            embedding_forward: ladder(&embedding, "embedding_forward", &typed)?,
            embedding_clear: ladder(&embedding, "embedding_clear", "")?,
            embedding_backward: ladder(&embedding, "embedding_backward", "")?,
            rmsnorm_forward: ladder(&rmsnorm, "rmsnorm_forward", &typed)?,
            rmsnorm_backward: ladder(&rmsnorm, "rmsnorm_backward", &typed)?,
            rmsnorm_backward_finish: ladder(&rmsnorm, "rmsnorm_backward_finish", "")?,
            bias_gradient: ladder(&module(device, "bias")?, "bias_gradient", &typed)?,
            cross_entropy: ladder(&cross_entropy, "cross_entropy", &typed)?,
            cross_entropy_finish: function(&cross_entropy, "cross_entropy_finish")?,
            linear: product("linear", &Tile::ALL[..1])?,
            linear_wide: product("linear_wide", &Tile::ALL[..1])?,
            linear_residual: product("linear_residual", &Tile::ALL)?,
            linear_rope: product("linear_rope", &Tile::ALL)?,
            linear_swiglu: product("linear_swiglu", &Tile::ALL[..1])?,
            linear_input_gradient: product("linear_input_gradient", &Tile::ALL)?,
            linear_swiglu_backward: product("linear_swiglu_backward", &Tile::ALL)?,
            linear_weight_gradient: product("linear_weight_gradient", &Tile::ALL)?,
            linear_weight_gradient_finish: function(&gemm, "linear_weight_gradient_finish")?,
            attention_forward: on_tensor_cores(&attention, "attention_forward")?,
            attention_append: ladder(&attention, "attention_append", &typed)?,
            attention_cached: ladder(&attention, "attention_cached", &typed)?,
            attention_backward_query: on_tensor_cores(&backward, "attention_backward_query")?,
            attention_backward_keys: on_tensor_cores(&backward, "attention_backward_keys")?,
            dropout: ladder(&adapter, "dropout", &typed)?,
            embedding_noise: ladder(&adapter, "embedding_noise", "")?,
            spread: function(&adapter, &format!("spread{typed}"))?,
            gather: function(&adapter, "gather")?,
            grad_norm_partials: ladder(&grad_norm, "grad_norm_partials", "")?,
            grad_norm_finish: function(&grad_norm, "grad_norm_finish")?,
            adamw: ladder(&adamw, "adamw", "")?,
            adamw_8bit: ladder(&adamw, "adamw_8bit", "")?,
        })
    }
}

fn tiled(name: &str, tile: Tile, typed: &str) -> String {
    match tile {
        Tile::LARGEST => format!("{name}{typed}"),
        Tile { rows, columns } => format!("{name}_{rows}x{columns}{typed}"),
    }
}

fn function(module: &Arc<CudaModule>, name: &str) -> Result<CudaFunction> {
    module.load_function(name).map_err(cuda("find a kernel"))
}

/// `{name}_naive{suffix}` and `{name}{suffix}`.
fn ladder(module: &Arc<CudaModule>, name: &str, suffix: &str) -> Result<Ladder> {
    let naive = function(module, &format!("{name}_naive{suffix}"))?;
    Ok(Ladder { naive, production: Some(function(module, &format!("{name}{suffix}"))?) })
}

/// Loads one kernel file: the cubin for this GPU if there is one and the driver takes it, else the PTX.
fn module(device: &Device, file: &'static str) -> Result<Arc<CudaModule>> {
    let images = IMAGES.iter().filter(|image| image.file == file);
    let images: Vec<&Image> = images.filter(|image| image.ptx.0 <= device.capability).collect();
    let (major, minor) = device.compute_capability();
    let refused = |why: &str| {
        let found =
            format!("{file}.cu does not run on compute capability {major}.{minor} with this driver: {why}");
        refusal::too_old(device.ordinal, found)
    };
    if let Some(cubin) = best_cubin(&images, device.capability)
        && let Ok(module) = device.context.load_module(Ptx::from_binary(cubin.to_vec()))
    {
        return Ok(module);
    }
    let newest =
        images.iter().max_by_key(|image| image.ptx.0).ok_or_else(|| refused("no image is old enough"))?;
    device.context.load_module(Ptx::from_src(newest.ptx.1)).map_err(|e| refused(&e.to_string()))
}

/// The newest cubin that runs on this GPU: of the same major version, not of a later minor one.
fn best_cubin(images: &[&Image], capability: u32) -> Option<&'static [u8]> {
    let cubins = images.iter().flat_map(|image| image.cubins);
    let fitting = cubins.filter(|(arch, _)| *arch <= capability && arch / 10 == capability / 10);
    fitting.max_by_key(|(arch, _)| *arch).map(|(_, code)| *code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_fitting_cubin_is_chosen() {
        let turing = Image { file: "x", ptx: (75, ""), cubins: &[(75, b"75")] };
        let ampere = Image {
            file: "x",
            ptx: (80, ""),
            cubins: &[(80, b"80"), (86, b"86"), (89, b"89"), (90, b"90"), (120, b"120")],
        };
        let images = [&turing, &ampere];
        for (capability, want) in [
            (75, Some("75")),
            (80, Some("80")),
            (86, Some("86")),
            (87, Some("86")),
            (89, Some("89")),
            (90, Some("90")),
            (100, None),
            (120, Some("120")),
            (121, Some("120")),
        ] {
            let got = best_cubin(&images, capability).map(|code| std::str::from_utf8(code).unwrap());
            assert_eq!(got, want, "compute capability {capability}");
        }
    }
}
