//! AdamW on a GPU: all weights in one launch, from a table of them in device memory.

use super::adamw::{Moments, Trainable, UpdateRule};
use super::adamw_8bit::BLOCK;
use super::codebook::{SIGNED, UNSIGNED};
use crate::arena::Tensor;
use crate::cuda::{Cuda, NORM_AT, Rung, cuda, dim_u32, expect_aligned, expect_dtype};
use crate::dtype::DType;
use crate::error::{Error, Result};
use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, DevicePtr, LaunchConfig, PushKernelArg};

const OP: &str = "adamw";

/// Threads of a block of `kernels/adamw.cu`.
const THREADS: u32 = 256;

/// Blocks per multiprocessor of the production kernel: as many as its registers and shared memory admit.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 3;

/// One weight. Mirrored by `struct Weight` in `kernels/adamw.cu`; addresses are the device's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
struct DeviceWeight {
    p: u64,
    /// 0 where the model computes with the master weight itself.
    w: u64,
    g: u64,
    m: u64,
    v: u64,
    /// 0 for fp32 moments.
    m_absmax: u64,
    v_absmax: u64,
    n: u64,
    /// Blocks of all weights before this one.
    first_block: u32,
    decays: u32,
}

const _: () = assert!(size_of::<DeviceWeight>() == 72, "as in kernels/adamw.cu");

/// The weights of a model and the quantiser's tables, on the GPU.
pub struct DeviceWeights {
    rule: UpdateRule,
    entries: CudaSlice<u8>,
    books: CudaSlice<u32>,
    count: u32,
    blocks: u32,
    w_is_f16: u32,
}

impl DeviceWeights {
    /// Checks every weight and uploads the table.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Unsupported`] naming the buffer that does not fit; [`Error::Cuda`].
    pub fn new(device: &Cuda, rule: UpdateRule, weights: &[Trainable]) -> Result<Self> {
        let mut entries = Vec::with_capacity(weights.len());
        let mut blocks = 0;
        for weight in weights.iter().filter(|weight| !weight.master.is_empty()) {
            check(rule, weight, device.dtype)?;
            entries.push(entry(device, weight, blocks));
            blocks = dim_u32(OP, "blocks", blocks as usize + weight.master.len().div_ceil(BLOCK))?;
        }
        let count = dim_u32(OP, "weights", entries.len())?;
        let bits = |book: &super::codebook::Codebook| {
            [&book.values.map(f32::to_bits)[..], &book.buckets[..]].concat()
        };
        let books = [bits(&SIGNED), bits(&UNSIGNED)].concat();
        let upload = cuda("copy the table of weights");
        let entries = device.stream.clone_htod(bytemuck::cast_slice::<_, u8>(&entries)).map_err(upload)?;
        let books = device.stream.clone_htod(&books).map_err(cuda("copy the code books"))?;
        let w_is_f16 = u32::from(device.dtype == DType::F16);
        Ok(Self { rule, entries, books, count, blocks, w_is_f16 })
    }

    /// Launches one step over all weights, with the scalars of the step's parameters, and returns at once. Where the norm
    /// behind those says so the step is skipped.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the driver refuses the launch.
    pub fn launch(&mut self, device: &Cuda, rung: Rung) -> Result<()> {
        if self.blocks == 0 {
            return Ok(()); // an empty grid is a launch error
        }
        let ladder = match self.rule {
            UpdateRule::Torch => &device.kernels.adamw,
            UpdateRule::Blockwise => &device.kernels.adamw_8bit,
        };
        let grid = match rung {
            Rung::Naive => self.blocks.div_ceil(THREADS),
            Rung::Production => {
                let enough = self.blocks.div_ceil(THREADS / 32);
                enough.min(device.multiprocessors * BLOCKS_PER_MULTIPROCESSOR)
            }
        };
        let config = LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        let (params, norm) = (device.step_address(), device.step_address() + NORM_AT as u64);
        let (entries, books) =
            (self.entries.device_ptr(&device.stream).0, self.books.device_ptr(&device.stream).0);
        let mut launch = device.stream.launch_builder(ladder.rung(OP, rung)?);
        launch
            .arg(&params)
            .arg(&norm)
            .arg(&entries)
            .arg(&self.count)
            .arg(&self.blocks)
            .arg(&self.w_is_f16)
            .arg(&books);
        // SAFETY: the seven arguments match the kernels' parameters in order and type. Every entry was checked in
        // `check` (lengths, types, alignment) and its buffers lie inside the arena (`address` asserts it); entries
        // ascend in first_block without gaps (`new` counts them), so every block finds its weight. One stream, so
        // nothing else touches the buffers at the time.
        unsafe { launch.launch(config) }.map_err(cuda(OP))?;
        Ok(())
    }
}

/// Lengths, types and alignment of one weight's buffers.
fn check(rule: UpdateRule, weight: &Trainable, dtype: DType) -> Result<()> {
    let n = weight.master.len();
    let expect = |arg: &'static str, t: Tensor, len: usize, want: DType| {
        if t.len() != len {
            return Err(Error::Shape { op: OP, arg, got: [t.rows, t.cols], want: [1, len] });
        }
        expect_dtype(OP, arg, t, want)?;
        expect_aligned(OP, arg, t)
    };
    if !n.is_multiple_of(8) {
        return Err(Error::Unsupported {
            op: OP,
            dim: "n",
            got: n.to_string(),
            rule: "a multiple of 8 elements",
        });
    }
    expect("master", weight.master, n, DType::F32)?;
    expect("working", weight.working, n, dtype)?;
    expect("grad", weight.grad, n, DType::F32)?;
    match (weight.moments, rule) {
        (Moments::Full { m, v }, _) => {
            expect("m", m, n, DType::F32)?;
            expect("v", v, n, DType::F32)
        }
        (Moments::Blockwise { m, m_absmax, v, v_absmax }, UpdateRule::Blockwise) => {
            expect("m", m, n, DType::U8)?;
            expect("v", v, n, DType::U8)?;
            expect("m_absmax", m_absmax, n.div_ceil(BLOCK), DType::F32)?;
            expect("v_absmax", v_absmax, n.div_ceil(BLOCK), DType::F32)
        }
        (Moments::Blockwise { .. }, UpdateRule::Torch) => {
            let (dim, got) = ("moments", "8-bit".into());
            Err(Error::Unsupported { op: OP, dim, got, rule: "fp32 moments under torch's rule" })
        }
    }
}

fn entry(device: &Cuda, weight: &Trainable, first_block: u32) -> DeviceWeight {
    let at = |t: Tensor| device.address(t);
    let [m, v, m_absmax, v_absmax] = match weight.moments {
        Moments::Full { m, v } => [at(m), at(v), 0, 0],
        Moments::Blockwise { m, m_absmax, v, v_absmax } => [at(m), at(v), at(m_absmax), at(v_absmax)],
    };
    DeviceWeight {
        p: at(weight.master),
        w: if weight.working == weight.master { 0 } else { at(weight.working) },
        g: at(weight.grad),
        m,
        v,
        m_absmax,
        v_absmax,
        n: weight.master.len() as u64,
        first_block,
        decays: u32::from(weight.decays),
    }
}
