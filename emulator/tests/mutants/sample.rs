//! A kernel with its launches, its input, and what it must compute.

use super::near::Near;
use cuda_emulator::fault::Fault;
use cuda_emulator::machine::{LaunchConfig, launch_within};
use cuda_emulator::memory::Memory;
use cuda_emulator::program::{Kernel, Module};
use cuda_emulator::settings::{Checks, Order, Settings};
use std::sync::Arc;

/// Orders a mutant is executed under until a check finds it.
pub const ORDERS: [Order; 5] = [Order::Early, Order::Late, Order::Seed(1), Order::Seed(2), Order::Seed(3)];

/// All but the counters, which find nothing.
const CHECKS: Checks = Checks { counters: false, ..Checks::ALL };

/// Of the warps of a block: no sample's block executes a tenth of it.
const MOST_INSTRUCTIONS: u64 = 1 << 20;

/// A kernel, or several that work on each other's results.
pub struct Sample {
    /// In the tables.
    pub name: &'static str,
    /// Path in the repository.
    pub file: &'static str,
    /// For compute_75 or 80.
    pub target: u32,
    /// Bytes of a stage of a ring in shared memory.
    pub stage: Option<u32>,
    /// Inputs of several sizes, so that bounds are reached everywhere.
    pub cases: Vec<Case>,
    /// How many of them, from the first on, have all that orders can change.
    pub ordered: usize,
    /// How source lines call instantiations of a template that differ in a number only, and the one that is mutated.
    pub kept: Option<[&'static str; 2]>,
}

/// An input, and the output for it.
pub struct Case {
    /// Device memory.
    pub buffers: Vec<Buffer>,
    /// In order.
    pub launches: Vec<Launched>,
}

/// An allocation.
#[derive(Default)]
pub struct Buffer {
    /// Written before the launches; else it counts as unwritten.
    pub contents: Option<Vec<u8>>,
    /// Where in it the address of another buffer goes.
    pub pointers: Vec<(usize, usize)>,
    /// What plain CPU code computes; none for what is not a result.
    pub expected: Option<Vec<u8>>,
    /// The same where it need not be exact.
    pub near: Option<Near>,
    /// Size if neither is there.
    pub bytes: usize,
}

/// An argument of a kernel.
#[derive(Clone)]
pub enum Argument {
    /// The address of a buffer.
    Buffer(usize),
    /// A number.
    U32(u32),
    /// A number.
    U64(u64),
    /// A number.
    F32(f32),
}

/// A launch.
pub struct Launched {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// In order.
    pub arguments: Vec<Argument>,
}

impl Buffer {
    /// Input.
    pub fn input(contents: Vec<u8>) -> Self {
        Self { contents: Some(contents), ..Self::default() }
    }

    /// Output that nothing has been written to.
    pub fn output(expected: Vec<u8>) -> Self {
        Self { expected: Some(expected), ..Self::default() }
    }

    /// The same, of numbers.
    pub fn output_near(near: Near) -> Self {
        Self { near: Some(near), ..Self::default() }
    }

    fn size(&self) -> usize {
        let near = self.near.as_ref().map(Near::size);
        self.contents.as_ref().or(self.expected.as_ref()).map(Vec::len).or(near).unwrap_or(self.bytes)
    }

    fn holds(&self, bytes: &[u8]) -> bool {
        self.expected.as_ref().is_none_or(|expected| bytes == *expected)
            && self.near.as_ref().is_none_or(|near| near.holds(bytes))
    }
}

impl Sample {
    /// A kernel with its cases, of which orders change the first.
    pub fn new(name: &'static str, file: &'static str, target: u32, cases: Vec<Case>) -> Self {
        Self { name, file, target, stage: None, cases, ordered: 1, kept: None }
    }

    /// Names of the kernels that are launched.
    pub fn kernels(&self) -> Vec<&'static str> {
        self.cases[0].launches.iter().map(|launched| launched.kernel).collect()
    }

    /// Whether the kernels are what the engine runs.
    pub fn is_production(&self) -> bool {
        self.file.starts_with("kernels/") && !self.kernels().iter().any(|name| name.contains("naive"))
    }

    /// The sample itself is right, in every order.
    pub fn check(&self, ptx: &str) {
        let loaded = Loaded::new(ptx);
        for order in ORDERS {
            for (index, case) in self.cases.iter().enumerate() {
                let same = loaded.run_case(case, 0, order);
                let same = same.unwrap_or_else(|fault| panic!("{} under {order:?}: {fault}", self.name));
                assert!(same, "{}, case {index} under {order:?} differs from the CPU's result", self.name);
            }
        }
    }
}

/// PTX to be executed in place of a sample's own.
pub struct Loaded {
    memory: Arc<Memory>,
    module: Module,
}

impl Loaded {
    /// Reads and decodes it.
    pub fn new(ptx: &str) -> Self {
        let memory = Arc::new(Memory::new(1 << 30));
        let module = Module::load(ptx, 80, &memory).unwrap_or_else(|e| panic!("{e}\n{ptx}"));
        Self { memory, module }
    }

    /// Executes it, with `less` bytes of dynamic shared memory fewer: whether all results are those of the plain CPU
    /// code. Of the cases, orders other than the first see the first ones only. `hasty`: the first wrong result ends it.
    pub fn run(&self, sample: &Sample, less: u32, order: Order, hasty: bool) -> Result<bool, Box<Fault>> {
        let cases = if order == ORDERS[0] { &sample.cases[..] } else { &sample.cases[..sample.ordered] };
        let mut same = true;
        for case in cases {
            same &= self.run_case(case, less, order)?;
            if hasty && !same {
                break;
            }
        }
        Ok(same)
    }

    fn run_case(&self, case: &Case, less: u32, order: Order) -> Result<bool, Box<Fault>> {
        let Self { memory, module } = self;
        let addresses = case.allocate(memory);
        let settings = Settings { capability: 80, checks: CHECKS, order, threads: 1, report: None };
        for launched in &case.launches {
            let kernel = module.kernels.iter().find(|kernel| kernel.name == launched.kernel);
            let kernel = kernel.unwrap_or_else(|| panic!("no kernel {}", launched.kernel));
            let config = LaunchConfig {
                grid: launched.grid,
                block: [launched.threads, 1, 1],
                dynamic_shared: launched.shared.saturating_sub(less),
            };
            let params = launched.params(kernel, &addresses);
            launch_within(MOST_INSTRUCTIONS, memory, kernel, &config, &params, &settings)?;
        }
        Ok(case.buffers.iter().zip(&addresses).all(|(buffer, &address)| {
            let mut bytes = vec![0; buffer.size()];
            memory.read(address, &mut bytes).expect("it was allocated");
            // A byte that was never written may be right by chance.
            let view = memory.view();
            let found = view.locate(&mut 0, address, buffer.size() as u64);
            let written = found.is_some_and(|(all, offset)| all.is_written(offset, buffer.size()));
            (buffer.expected.is_none() && buffer.near.is_none()) || (written && buffer.holds(&bytes))
        }))
    }
}

impl Launched {
    /// The parameter buffer: every argument at the next multiple of its size, be it a parameter or a field of one.
    fn params(&self, kernel: &Kernel, addresses: &[u64]) -> Vec<u8> {
        let mut params = Vec::new();
        for argument in &self.arguments {
            let bytes = match *argument {
                Argument::Buffer(index) => addresses[index].to_le_bytes().to_vec(),
                Argument::U64(n) => n.to_le_bytes().to_vec(),
                Argument::U32(n) => n.to_le_bytes().to_vec(),
                Argument::F32(x) => x.to_le_bytes().to_vec(),
            };
            params.resize(params.len().next_multiple_of(bytes.len()), 0);
            params.extend(bytes);
        }
        assert_eq!(params.len(), kernel.param_bytes, "arguments of {}", self.kernel);
        params
    }
}

impl Case {
    fn allocate(&self, memory: &Memory) -> Vec<u64> {
        let alloc = |buffer: &Buffer| memory.alloc(buffer.size().max(1) as u64).expect("there is room");
        let addresses: Vec<u64> = self.buffers.iter().map(alloc).collect();
        for (buffer, &address) in self.buffers.iter().zip(&addresses) {
            let Some(contents) = &buffer.contents else { continue };
            let mut contents = contents.clone();
            for &(offset, to) in &buffer.pointers {
                contents[offset..offset + 8].copy_from_slice(&addresses[to].to_le_bytes());
            }
            memory.write(address, &contents).expect("it was allocated");
        }
        addresses
    }
}
