//! Arithmetic against exact arithmetic and tables typed from the ISA's text.

mod approximate;
mod compare;
mod convert;
mod double;
mod half;
mod integer;
mod mma;
mod oracle;
mod single;
