//! smolten: fine-tune small language models, with kernels written from scratch.
//!
//! Modules in flow order; each may use only those above it (`tests/layering.rs`).

pub mod error;

pub mod dtype;

pub mod config;

pub mod recipe;

pub mod hub;

pub mod gguf;

pub mod weights;

pub mod tokenizer;

pub mod template;

pub mod pretrained;

pub mod batch;

pub mod dataset;

pub mod arena;

pub mod cuda;

pub mod ops;

pub mod backend;

pub mod model;

pub mod optimizer;

pub mod checkpoint;

pub mod export;

pub mod metrics;

pub mod report;

pub mod generate;

pub mod eval;

pub mod trainer;

pub mod bench;
