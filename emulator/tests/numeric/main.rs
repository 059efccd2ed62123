//! Arithmetic against exact arithmetic and tables typed from the ISA's text.

#![allow(clippy::cast_possible_truncation, reason = "the oracles work on bits")]
#![allow(clippy::needless_range_loop, reason = "a loop over lanes indexes several rows at once")]
#![allow(clippy::type_complexity, reason = "tables of ranges")]

mod approximate;
mod compare;
mod convert;
mod double;
mod half;
mod integer;
mod mma;
mod mma_bytes;
mod oracle;
mod single;
