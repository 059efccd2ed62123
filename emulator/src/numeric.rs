//! Arithmetic of single values and of matrix tiles, on bits.
