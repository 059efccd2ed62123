//! One file per operation: checks, the CPU code, the CUDA launch.

pub mod adamw;
pub mod adamw_8bit;
pub mod codebook;
pub mod grad_norm;
