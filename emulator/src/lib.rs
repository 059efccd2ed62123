//! A CUDA driver in Rust that executes PTX on the CPU: programs load it in place of NVIDIA's libcuda.
//!
//! In the order of the flow: what a run asks for ([`settings`]), how a kernel fails ([`fault`]), text to syntax
//! tree ([`ptx`]), arithmetic of single values and of matrix tiles ([`numeric`]), the device's memory
//! ([`memory`]), what is watched in it ([`shadow`], [`traffic`]), syntax tree to decoded program ([`program`]), its
//! execution ([`machine`]), the report ([`report`]), and the driver's C interface over all of it ([`driver`]).

pub mod driver;
pub mod fault;
pub mod machine;
pub mod memory;
pub mod numeric;
pub mod program;
pub mod ptx;
pub mod report;
pub mod settings;
pub mod shadow;
pub mod traffic;
