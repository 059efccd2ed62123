//! Occupancy: how many blocks a processor holds at once.
//!
//! blocks = min(blocks of a processor, threads of a processor / threads of the block in whole warps, shared
//! memory of a processor / (static + dynamic + reserved)). Registers are left out: PTX does not say how many
//! a card's compiler would use.

use super::abi::{In, Out, SharedOfBlock};
use super::device::{Limits, PROCESSORS};
use super::errors::{Error, Result};
use super::exports;
use super::function::Function;
use super::launch::Config;
use super::state::{Driver, driver};
use std::sync::Arc;

const WARP: u32 = 32;

/// Blocks of `threads` threads and `dynamic` bytes that a processor holds; 0 if such a block cannot be
/// launched.
fn active_blocks(limits: Limits, function: &Function, threads: u32, dynamic: usize) -> u32 {
    let Ok(dynamic) = u32::try_from(dynamic) else { return 0 };
    if threads > function.kernel.max_threads {
        return 0;
    }
    let by_threads = limits.threads_per_processor / threads.next_multiple_of(WARP);
    let shared = u64::from(function.kernel.static_shared) + u64::from(dynamic);
    if shared > limits.shared_per_block.into() {
        return 0;
    }
    let share = shared + u64::from(limits.reserved_per_block);
    let by_shared = u64::from(limits.shared_per_processor).checked_div(share).unwrap_or(u64::MAX);
    let by_shared = u32::try_from(by_shared).unwrap_or(u32::MAX);
    limits.blocks_per_processor.min(by_threads).min(by_shared)
}

/// The function, and the number of threads if there can be such a block.
fn function(driver: &Driver, handle: u64, threads: i32) -> Result<(Arc<Function>, u32)> {
    driver.current()?;
    let threads = u32::try_from(threads).ok().filter(|&threads| threads > 0).ok_or(Error::INVALID_VALUE)?;
    Ok((driver.functions.get(handle)?, threads))
}

fn blocks(out: Out<i32>, handle: u64, threads: i32, dynamic: usize, flags: u32) -> Result<()> {
    let driver = driver()?;
    let out = out.required()?;
    if flags > 1 {
        return Err(Error::INVALID_VALUE);
    }
    let (function, threads) = function(driver, handle, threads)?;
    let blocks = active_blocks(Limits::new(driver.settings.capability), &function, threads, dynamic);
    out.set(blocks.cast_signed())
}

/// What `cuOccupancyMaxPotentialBlockSize` goes by.
struct Search {
    shared_of: SharedOfBlock,
    dynamic: usize,
    /// 0: none.
    most_threads: i32,
}

/// The block with the most threads on a processor; of equals the largest. The grid fills the device with it.
fn best_block(grid: Out<i32>, block: Out<i32>, handle: u64, search: &Search, flags: u32) -> Result<()> {
    let driver = driver()?;
    let (grid, block) = (grid.required()?, block.required()?);
    if flags > 1 {
        return Err(Error::INVALID_VALUE);
    }
    let (function, _) = function(driver, handle, 1)?;
    let limits = Limits::new(driver.settings.capability);
    let most = match u32::try_from(search.most_threads) {
        Ok(0) | Err(_) => function.kernel.max_threads,
        Ok(most) => most.min(function.kernel.max_threads),
    };
    let mut best = (0, 0, 0); // threads on the processor, threads of the block, blocks
    for warps in (1..=most.div_ceil(WARP)).rev() {
        let threads = (warps * WARP).min(most);
        let dynamic = search.shared_of.bytes(threads.cast_signed()).unwrap_or(search.dynamic);
        let blocks = active_blocks(limits, &function, threads, dynamic);
        if blocks * threads > best.0 {
            best = (blocks * threads, threads, blocks);
        }
    }
    grid.set((best.2 * PROCESSORS).cast_signed())?;
    block.set(best.1.cast_signed())
}

fn no_clusters(out: Out<i32>, handle: u64, config: In<Config>) -> Result<()> {
    let driver = driver()?;
    driver.current()?;
    driver.functions.get(handle)?;
    config.get()?;
    out.required()?;
    Err(Error::NOT_SUPPORTED)
}

exports! {
    6050 fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        out: Out<i32>, function: u64, threads: i32, dynamic: usize
    ) {
        blocks(out, function, threads, dynamic, 0)
    }
    7000 fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        out: Out<i32>, function: u64, threads: i32, dynamic: usize, flags: u32
    ) {
        blocks(out, function, threads, dynamic, flags)
    }
    6050 fn cuOccupancyMaxPotentialBlockSize(
        grid: Out<i32>, block: Out<i32>, function: u64, shared_of: SharedOfBlock, dynamic: usize,
        most_threads: i32
    ) {
        best_block(grid, block, function, &Search { shared_of, dynamic, most_threads }, 0)
    }
    7000 fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: Out<i32>, block: Out<i32>, function: u64, shared_of: SharedOfBlock, dynamic: usize,
        most_threads: i32, flags: u32
    ) {
        best_block(grid, block, function, &Search { shared_of, dynamic, most_threads }, flags)
    }
    10020 fn cuOccupancyAvailableDynamicSMemPerBlock(
        out: Out<usize>, handle: u64, blocks: i32, threads: i32
    ) {
        let driver = driver()?;
        let out = out.required()?;
        let (function, threads) = function(driver, handle, threads)?;
        let limits = Limits::new(driver.settings.capability);
        let blocks = u32::try_from(blocks).ok().filter(|&blocks| blocks > 0).ok_or(Error::INVALID_VALUE)?;
        if active_blocks(limits, &function, threads, 0) < blocks {
            return Err(Error::INVALID_VALUE);
        }
        let share = (limits.shared_per_processor / blocks).saturating_sub(limits.reserved_per_block);
        let left = share.min(limits.shared_per_block).saturating_sub(function.kernel.static_shared);
        out.set(left as usize)
    }
    11070 fn cuOccupancyMaxPotentialClusterSize(out: Out<i32>, function: u64, config: In<Config>) {
        no_clusters(out, function, config)
    }
    11070 fn cuOccupancyMaxActiveClusters(out: Out<i32>, function: u64, config: In<Config>) {
        no_clusters(out, function, config)
    }
}
