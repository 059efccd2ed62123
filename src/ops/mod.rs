//! The operations of the training step: one file per operation, with its CPU code and its CUDA launch.
//!
//! Slices hold exactly the rows in use; shapes are checked by the backends.

pub mod math;

pub mod convert;

pub mod awake;

pub mod rows;

pub mod noise;

pub mod places;

pub mod tile;

pub mod product;

pub mod embedding;

pub mod rmsnorm;

pub mod bias;

pub mod linear;

pub mod linear_launch;

pub mod rope;

pub mod attention;

pub mod attention_launch;

pub mod swiglu;

pub mod cross_entropy;

pub mod cross_entropy_launch;

pub mod grad_norm;

pub mod loss_scale;

pub mod codebook;

pub mod adamw;

pub mod adamw_8bit;

pub mod adamw_launch;
