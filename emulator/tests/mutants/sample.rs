//! A kernel with its launches, its input, and what it must compute.

use cuda_emulator::fault::Fault;
use cuda_emulator::machine::{LaunchConfig, launch};
use cuda_emulator::memory::Memory;
use cuda_emulator::program::Module;
use cuda_emulator::settings::{Checks, Order, Settings};
use std::sync::Arc;

/// Orders a mutant is executed under until a check finds it.
pub const ORDERS: [Order; 5] = [Order::Early, Order::Late, Order::Seed(1), Order::Seed(2), Order::Seed(3)];

/// A kernel, or several that work on each other's results.
pub struct Sample {
    /// In the tables.
    pub name: &'static str,
    /// Path in the repository.
    pub file: &'static str,
    /// For compute_75 or 80.
    pub target: u32,
    /// Device memory.
    pub buffers: Vec<Buffer>,
    /// In order.
    pub launches: Vec<Launched>,
    /// Bytes of a stage of a ring in shared memory.
    pub stage: Option<u32>,
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
    /// Size if neither is there.
    pub bytes: usize,
}

/// An argument of a kernel.
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

    fn size(&self) -> usize {
        self.contents.as_ref().or(self.expected.as_ref()).map_or(self.bytes, Vec::len)
    }
}

impl Sample {
    /// Names of the kernels that are launched.
    pub fn kernels(&self) -> Vec<&'static str> {
        self.launches.iter().map(|launched| launched.kernel).collect()
    }

    /// Runs PTX in place of the sample's own, with `less` bytes of dynamic shared memory fewer: the contents of the
    /// buffers that hold results.
    pub fn run(&self, ptx: &str, less: u32, order: Order) -> Result<Vec<Vec<u8>>, Box<Fault>> {
        let memory = Arc::new(Memory::new(1 << 30));
        let module = Module::load(ptx, 80, &memory).unwrap_or_else(|e| panic!("{}: {e}\n{ptx}", self.name));
        let addresses = self.allocate(&memory);
        let settings = Settings { capability: 80, checks: Checks::ALL, order, threads: 1, report: None };
        for launched in &self.launches {
            let kernel = module.kernels.iter().find(|kernel| kernel.name == launched.kernel);
            let kernel = kernel.unwrap_or_else(|| panic!("{} has no {}", self.file, launched.kernel));
            let config = LaunchConfig {
                grid: launched.grid,
                block: [launched.threads, 1, 1],
                dynamic_shared: launched.shared.saturating_sub(less),
            };
            let mut params = vec![0; kernel.param_bytes];
            for (param, argument) in kernel.params.iter().zip(&launched.arguments) {
                let bytes = match *argument {
                    Argument::Buffer(index) => addresses[index].to_le_bytes().to_vec(),
                    Argument::U64(n) => n.to_le_bytes().to_vec(),
                    Argument::U32(n) => n.to_le_bytes().to_vec(),
                    Argument::F32(x) => x.to_le_bytes().to_vec(),
                };
                params[param.offset..param.offset + param.bytes].copy_from_slice(&bytes);
            }
            launch(&memory, kernel, &config, &params, &settings)?;
        }
        let results = self.buffers.iter().zip(&addresses).filter(|(buffer, _)| buffer.expected.is_some());
        let read = |(buffer, address): (&Buffer, &u64)| {
            let mut bytes = vec![0; buffer.size()];
            memory.read(*address, &mut bytes).expect("it was allocated");
            bytes
        };
        Ok(results.map(read).collect())
    }

    fn allocate(&self, memory: &Memory) -> Vec<u64> {
        let alloc = |buffer: &Buffer| memory.alloc(buffer.size() as u64).expect("there is room");
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

    /// The sample itself is right: every order gives the bits that plain CPU code computes.
    pub fn check(&self, ptx: &str) {
        for order in ORDERS {
            let results = self.run(ptx, 0, order).unwrap_or_else(|fault| panic!("{order:?}: {fault}"));
            let expected = self.buffers.iter().filter_map(|buffer| buffer.expected.as_ref());
            for (k, (found, expected)) in results.iter().zip(expected).enumerate() {
                let first = found.iter().zip(expected).position(|(a, b)| a != b);
                assert!(first.is_none(), "{} under {order:?}: result {k} differs at byte {first:?}", self.name);
            }
        }
    }
}
