//! The one device, and what it says of itself.

use super::abi::{In, Out, Text};
use super::context::check_device;
use super::errors::{Error, Result};
use super::exports;
use super::state::{TOTAL_MEMORY, driver, initialise};
use std::ffi::c_char;

/// CUDA 13.0.
const VERSION: i32 = 13000;
const BUS_ID: &str = "0000:00:00.0";

/// Most bytes of shared memory of a block that did not ask for more.
pub(super) const SHARED_PER_BLOCK: u32 = 48 << 10;
/// Threads of a block, and how many of them in each direction; blocks of a grid likewise.
pub(super) const MAX_THREADS: u32 = 1024;
pub(super) const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
pub(super) const MAX_GRID: [u32; 3] = [0x7fff_ffff, 65535, 65535];
/// Processors: few, so that programs which size grids by them make small ones.
pub(super) const PROCESSORS: u32 = 4;
const REGISTERS: u32 = 65536;

/// What differs between compute capabilities (CUDA programming guide, technical specifications).
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) threads_per_processor: u32,
    pub(super) blocks_per_processor: u32,
    pub(super) shared_per_processor: u32,
    /// With opt-in.
    pub(super) shared_per_block: u32,
    /// Taken from every block's share.
    pub(super) reserved_per_block: u32,
}

impl Limits {
    pub(super) fn new(capability: u32) -> Self {
        let (threads, blocks, shared_kib, reserved_kib) = match capability {
            75 => (1024, 16, 64, 0),
            89 => (1536, 24, 100, 1),
            _ => (2048, 32, 164, 1),
        };
        Self {
            threads_per_processor: threads,
            blocks_per_processor: blocks,
            shared_per_processor: shared_kib << 10,
            shared_per_block: (shared_kib - reserved_kib) << 10,
            reserved_per_block: reserved_kib << 10,
        }
    }
}

/// `CU_DEVICE_ATTRIBUTE_*`: what the emulator has, and beside it what a card would say. Features that are absent
/// are 0.
fn attribute(attribute: u32, capability: u32) -> Result<u32> {
    const END: u32 = 148;
    let limits = Limits::new(capability);
    Ok(match attribute {
        1 => MAX_THREADS,
        2..=4 => MAX_BLOCK[attribute as usize - 2],
        5..=7 => MAX_GRID[attribute as usize - 5],
        8 => SHARED_PER_BLOCK,
        // Overlapping copies, mapped host memory, concurrent kernels, unified addresses, priorities, caching in L1,
        // managed memory, preemption, registered host memory, pools.
        15 | 19 | 31 | 41 | 78..=80 | 83 | 90 | 99 | 115 => 1,
        16 => PROCESSORS,
        39 => limits.threads_per_processor,
        75 => capability / 10,
        76 => capability % 10,
        81 => limits.shared_per_processor,
        97 => limits.shared_per_block,
        106 => limits.blocks_per_processor,
        111 => limits.reserved_per_block,
        0 | END.. => return Err(Error::INVALID_VALUE),
        other => PLAUSIBLE.iter().find(|row| row.0 == other).map_or(0, |row| row.1),
    })
}

/// Attributes of which nothing here depends.
const PLAUSIBLE: [(u32, u32); 14] = [
    (9, 65536),                    // bytes of constant memory
    (10, 32),                      // threads of a warp
    (11, i32::MAX.unsigned_abs()), // pitch
    (12, REGISTERS),               // of a block
    (13, 1_000_000),               // clock, kHz
    (14, 512),                     // alignment of textures
    (30, 512),                     // alignment of surfaces
    (36, 1_000_000),               // memory clock, kHz
    (37, 256),                     // memory bus, bits
    (38, 4 << 20),                 // bytes of L2
    (40, 2),                       // copy engines
    (51, 32),                      // alignment of pitches
    (82, REGISTERS),               // of a processor
    (126, 1),                      // domains of memory synchronisation
];

/// Recognisable, and another for each capability.
fn uuid(capability: u32) -> [u8; 16] {
    let mut uuid = *b"cuda-emulator-00";
    uuid[14] += u8::try_from(capability / 10 % 10).unwrap_or(0);
    uuid[15] += u8::try_from(capability % 10).unwrap_or(0);
    uuid
}

/// No second device to share memory with.
fn no_peer() -> Result<()> {
    driver()?;
    Err(Error::INVALID_DEVICE)
}

exports! {
    2000 fn cuInit(flags: u32) {
        if flags == 0 { initialise() } else { Err(Error::INVALID_VALUE) }
    }
    2020 fn cuDriverGetVersion(out: Out<i32>) { out.set(VERSION) }
    2000 fn cuDeviceGetCount(out: Out<i32>) {
        driver()?;
        out.set(1)
    }
    2000 fn cuDeviceGet(out: Out<i32>, ordinal: i32) {
        check_device(ordinal)?;
        out.set(0)
    }
    2000 fn cuDeviceGetName(out: Out<c_char>, room: i32, device: i32) {
        let capability = check_device(device)?.settings.capability;
        let room = usize::try_from(room).map_err(|_| Error::INVALID_VALUE)?;
        out.set_text(&format!("CUDA emulator (sm_{capability})"), room)
    }
    9020 fn cuDeviceGetUuid(out: Out<[u8; 16]>, device: i32) {
        out.set(uuid(check_device(device)?.settings.capability))
    }
    11040 fn cuDeviceGetUuid_v2(out: Out<[u8; 16]>, device: i32) {
        out.set(uuid(check_device(device)?.settings.capability))
    }
    3020 fn cuDeviceTotalMem_v2(out: Out<u64>, device: i32) {
        check_device(device)?;
        out.set(TOTAL_MEMORY)
    }
    2000 fn cuDeviceGetAttribute(out: Out<u32>, which: u32, device: i32) {
        let driver = check_device(device)?;
        let out = out.required()?;
        out.set(attribute(which, driver.settings.capability)?)
    }
    2000 fn cuDeviceComputeCapability(major: Out<u32>, minor: Out<u32>, device: i32) {
        let capability = check_device(device)?.settings.capability;
        major.set(capability / 10)?;
        minor.set(capability % 10)
    }
    4010 fn cuDeviceGetPCIBusId(out: Out<c_char>, room: i32, device: i32) {
        check_device(device)?;
        let room = usize::try_from(room).map_err(|_| Error::INVALID_VALUE)?;
        out.set_text(BUS_ID, room)
    }
    4010 fn cuDeviceGetByPCIBusId(out: Out<i32>, id: Text) {
        driver()?;
        let out = out.required()?;
        if id.get()? == BUS_ID { out.set(0) } else { Err(Error::INVALID_DEVICE) }
    }
    11040 fn cuDeviceGetExecAffinitySupport(out: Out<i32>, _kind: u32, device: i32) {
        check_device(device)?;
        out.set(0)
    }
    11030 fn cuFlushGPUDirectRDMAWrites(_target: u32, _scope: u32) {
        driver()?;
        Err(Error::NOT_SUPPORTED)
    }
    4000 fn cuDeviceCanAccessPeer(out: Out<i32>, device: i32, peer: i32) {
        check_device(device)?;
        check_device(peer)?;
        out.set(0)
    }
    8000 fn cuDeviceGetP2PAttribute(_out: Out<i32>, _which: u32, _from: i32, _to: i32) { no_peer() }
    4000 fn cuCtxEnablePeerAccess(context: u64, _flags: u32) {
        driver()?.contexts.find(context).ok_or(Error::INVALID_CONTEXT)?;
        Err(Error::PEER_ACCESS_UNSUPPORTED)
    }
    4000 fn cuCtxDisablePeerAccess(context: u64) {
        driver()?.contexts.find(context).ok_or(Error::INVALID_CONTEXT)?;
        Err(Error::PEER_ACCESS_NOT_ENABLED)
    }
    4000 fn cuProfilerStart() { driver()?.current().map(|_| ()) }
    4000 fn cuProfilerStop() { driver()?.current().map(|_| ()) }
    4000 fn cuProfilerInitialize(_config: In<c_char>, _output: In<c_char>, _mode: u32) {
        driver()?;
        Err(Error::PROFILER_DISABLED)
    }
}
