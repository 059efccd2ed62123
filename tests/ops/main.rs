//! Every operation against its formula in f64, in every element type, over a grid of shapes.
//!
//! The references are written with `common::real::Real`, which counts roundings: every tolerance here is derived,
//! element by element, and what moves or selects is compared in bits.

#[path = "../common/mod.rs"]
mod common;

/// Runs a generic check in f32, bf16 and f16.
macro_rules! in_each_type {
    ($check:ident $(, $argument:expr)*) => {
        $check::<f32>($($argument),*);
        $check::<half::bf16>($($argument),*);
        $check::<half::f16>($($argument),*);
    };
}

mod adapter;
mod adapter_engine;
mod arena;
mod attention;
mod attention_tiled;
mod bias;
mod cached;
mod conversions;
mod cross_entropy;
mod embedding;
mod few;
mod few_q8_0;
mod fused;
mod head;
mod linear;
mod noise;
mod product;
mod rmsnorm;
mod rope;
mod swiglu;
