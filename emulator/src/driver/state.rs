//! All there is: one device, its memory, the objects made on it. Made by the first `cuInit`.

use super::abi;
use super::capture::Captures;
use super::context::{Context, Primary};
use super::errors::{Error, Result};
use super::event::Event;
use super::function::Function;
use super::graph::{Exec, Graph, NodeName};
use super::library::Library;
use super::memory::Allocations;
use super::module::Module;
use super::pool::Pool;
use super::print;
use super::registry::{Registry, lock};
use super::stream::Stream;
use crate::memory::Memory;
use crate::report::Report;
use crate::settings::Settings;
use std::io::Write;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Bytes of device memory. Nothing is committed before it is touched.
pub(super) const TOTAL_MEMORY: u64 = 16 << 30;

/// The driver of this process.
pub(super) struct Driver {
    pub(super) settings: Settings,
    pub(super) memory: Arc<Memory>,
    pub(super) contexts: Registry<Context>,
    pub(super) primary: Mutex<Primary>,
    pub(super) streams: Registry<Stream>,
    pub(super) events: Registry<Event>,
    pub(super) modules: Registry<Module>,
    pub(super) libraries: Registry<Library>,
    pub(super) functions: Registry<Function>,
    pub(super) pools: Registry<Pool>,
    pub(super) graphs: Registry<Graph>,
    pub(super) nodes: Registry<NodeName>,
    pub(super) execs: Registry<Exec>,
    pub(super) captures: Captures,
    pub(super) allocations: Mutex<Allocations>,
    /// Handle of the pool that the device had at first, and of the one `cuMemAllocAsync` takes from.
    pub(super) default_pool: u64,
    pub(super) current_pool: Mutex<u64>,
    /// Held while a kernel runs: the device has one set of processors.
    pub(super) device: Mutex<()>,
    pub(super) report: Mutex<Report>,
    process: u32,
    notes: AtomicU32,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

/// The driver, once `cuInit` was called.
pub(super) fn driver() -> Result<&'static Driver> {
    DRIVER.get().ok_or(Error::NOT_INITIALIZED)
}

/// Reads the settings and makes the driver, unless that was done before.
pub(super) fn initialise() -> Result<()> {
    if DRIVER.get().is_some() {
        return Ok(());
    }
    let settings = Settings::from_env().map_err(|error| {
        print(&error.to_string());
        Error::INVALID_VALUE
    })?;
    let mut first = false;
    let driver = DRIVER.get_or_init(|| {
        first = true;
        Driver::new(settings)
    });
    if first && driver.settings.report.is_some() {
        abi::at_exit(write_report);
    }
    Ok(())
}

impl Driver {
    fn new(settings: Settings) -> Self {
        let pools = Registry::new(10);
        let default_pool = pools.add(Pool::new);
        Self {
            settings,
            memory: Arc::new(Memory::new(TOTAL_MEMORY)),
            contexts: Registry::new(1),
            primary: Mutex::default(),
            streams: Registry::new(2),
            events: Registry::new(3),
            modules: Registry::new(4),
            libraries: Registry::new(5),
            functions: Registry::new(6),
            graphs: Registry::new(7),
            nodes: Registry::new(8),
            execs: Registry::new(9),
            pools,
            captures: Captures::default(),
            allocations: Mutex::default(),
            default_pool,
            current_pool: Mutex::new(default_pool),
            device: Mutex::default(),
            report: Mutex::default(),
            process: process::id(),
            notes: AtomicU32::new(0),
        }
    }

    /// Says on standard error why a call was refused: codes alone say little. The first few times; a program
    /// that probes for what works would flood it.
    pub(super) fn note(&self, message: &str) {
        const MOST: u32 = 20;
        match self.notes.fetch_add(1, Ordering::Relaxed) {
            0..MOST => print(message),
            MOST => print("more refused calls follow; no more of them are shown"),
            _ => {}
        }
    }
}

/// Writes the report. Not in processes forked from the one that initialised the driver.
extern "C" fn write_report() {
    let Some(driver) = DRIVER.get() else { return };
    let Some(path) = &driver.settings.report else { return };
    if driver.process != process::id() {
        return;
    }
    let written = std::panic::catch_unwind(|| {
        let report = lock(&driver.report);
        report.write(path).map(|()| report.table())
    });
    match written {
        Ok(Ok(table)) => {
            let _ = std::io::stderr().write_all(table.as_bytes()); // a closed one is no reason to fail
        }
        Ok(Err(error)) => print(&format!("EMULATOR_REPORT={}: {error}", path.display())),
        Err(_) => print("the report could not be written; this is a bug of the emulator"),
    }
}
