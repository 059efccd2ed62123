//! smolten: fine-tune small language models, with kernels written from scratch.
//!
//! Modules in flow order; each may use only those above it (`tests/layering.rs`).

pub mod error;

pub mod dtype;

pub mod config;

pub mod batch;

pub mod arena;

pub mod cuda;

pub mod ops;

pub mod backend;

pub mod model;

pub mod optimizer;
