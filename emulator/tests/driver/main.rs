//! The driver's C interface: handles, errors, streams, capture, graphs, memory, modules, launches.
//!
//! The oracle is the driver API's reference: what it says of a call is written down here.

mod api;
mod contexts;
mod memory;
