//! What a run asks for, by environment variables.

use std::path::PathBuf;

/// Settings of the emulated device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `EMULATOR_COMPUTE_CAPABILITY`: 75, 80 (default) or 89.
    pub capability: u32,
    /// `EMULATOR_CHECKS`.
    pub checks: Checks,
    /// `EMULATOR_ORDER`.
    pub order: Order,
    /// `EMULATOR_THREADS`: worker threads over the blocks of a launch; default, those of the machine.
    pub threads: usize,
    /// `EMULATOR_REPORT`: where the JSON report goes when the program ends.
    pub report: Option<PathBuf>,
}

/// What is checked. Bounds of memory, divergence, barriers and deadlock always are: without them nothing could
/// go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// `alignment`: addresses that are multiples of the access's size.
    pub alignment: bool,
    /// `initialised`: reads of bytes that nothing wrote, in global and shared memory.
    pub initialised: bool,
    /// `races`: conflicting accesses to shared memory without a barrier between, copies in flight included.
    pub races: bool,
    /// `counters`: sectors, wavefronts, divergence; without, the report counts instructions only.
    pub counters: bool,
}

impl Checks {
    /// `all`, the default.
    pub const ALL: Self = Self { alignment: true, initialised: true, races: true, counters: true };
    /// `none`.
    pub const NONE: Self = Self { alignment: false, initialised: false, races: false, counters: false };
}

/// Order in which what may happen in any order does happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Warps in turn; copies complete when issued.
    Early,
    /// Warps in turn from the last; copies complete when waited for.
    Late,
    /// By a generator with this seed.
    Seed(u64),
}

/// A variable that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}={value}: allowed is {allowed}")]
pub struct SettingsError {
    /// Name of the variable.
    pub variable: &'static str,
    /// What it is set to.
    pub value: String,
    /// What it may be set to.
    pub allowed: &'static str,
}

impl Settings {
    /// Reads the environment; what is not set gets its default.
    ///
    /// # Errors
    /// [`SettingsError`] for the first variable that is set to something else than allowed.
    pub fn from_env() -> Result<Self, SettingsError> {
        Self::from_variables(|name| Some(std::env::var_os(name)?.to_string_lossy().into_owned()))
    }

    /// Reads variables from elsewhere than the environment.
    ///
    /// # Errors
    /// As [`Settings::from_env`].
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let read = |variable, allowed| Variable { variable, allowed, value: get(variable) };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            capability: read("EMULATOR_COMPUTE_CAPABILITY", "7.5, 8.0 or 8.9").parse(80, capability)?,
            checks: read(
                "EMULATOR_CHECKS",
                "all, none, or some of alignment, initialised, races, counters with commas between",
            )
            .parse(Checks::ALL, Checks::parse)?,
            order: read("EMULATOR_ORDER", "early, late or a seed, a whole number")
                .parse(Order::Early, order)?,
            threads: read("EMULATOR_THREADS", "a number from 1 to 1024").parse(threads, threads_of)?,
            report: read("EMULATOR_REPORT", "the path of a file to write")
                .parse(None, |path| (!path.is_empty()).then(|| Some(path.into())))?,
        })
    }
}

/// A variable, perhaps set.
struct Variable {
    variable: &'static str,
    allowed: &'static str,
    value: Option<String>,
}

impl Variable {
    fn parse<T>(self, default: T, parse: impl Fn(&str) -> Option<T>) -> Result<T, SettingsError> {
        let Self { variable, allowed, value } = self;
        let Some(value) = value else { return Ok(default) };
        parse(&value).ok_or(SettingsError { variable, value, allowed })
    }
}

fn capability(text: &str) -> Option<u32> {
    match text {
        "7.5" => Some(75),
        "8.0" => Some(80),
        "8.9" => Some(89),
        _ => None,
    }
}

fn order(text: &str) -> Option<Order> {
    match text {
        "early" => Some(Order::Early),
        "late" => Some(Order::Late),
        seed => seed.parse().ok().map(Order::Seed),
    }
}

fn threads_of(text: &str) -> Option<usize> {
    text.parse().ok().filter(|threads| (1..=1024).contains(threads))
}

impl Checks {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "all" => return Some(Self::ALL),
            "none" => return Some(Self::NONE),
            _ => {}
        }
        let mut checks = Self::NONE;
        for name in text.split(',') {
            let check = match name.trim() {
                "alignment" => &mut checks.alignment,
                "initialised" => &mut checks.initialised,
                "races" => &mut checks.races,
                "counters" => &mut checks.counters,
                _ => return None,
            };
            *check = true;
        }
        Some(checks)
    }
}
