//! Every form of every opcode that the decoder accepts, from text to results in memory, against scalar code written
//! from the ISA's text.
//!
//! The forms are the expansions of lines of grammar ([`grammar`]) that cover what the ISA allows. Each either runs
//! against its oracle or must be refused; so no form that decodes goes untested, and none that is tested fails to
//! decode. Lane-wise forms are in [`lanewise`]; the others have a module each, with their own lines.

#![allow(clippy::cast_possible_truncation, reason = "the oracles work on bits")]

mod approximate;
mod atomic;
mod barrier;
mod collective;
mod compare;
mod control;
mod convert;
mod copy;
mod coverage;
mod float;
mod grammar;
mod harness;
mod integer;
mod lanewise;
mod matrix;
mod memory;
mod moves;
mod registers;
mod soft;
mod table;
mod values;
