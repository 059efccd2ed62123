//! Modules loaded and kernels launched.

use cuda_emulator::fault::{Fault, FaultKind};
use cuda_emulator::machine::{LaunchConfig, launch};
use cuda_emulator::memory::Memory;
use cuda_emulator::program::Module;
use cuda_emulator::report::Counters;
use cuda_emulator::settings::{Checks, Order, Settings};
use std::sync::Arc;

/// A device of a compute capability.
pub struct Device {
    memory: Arc<Memory>,
    pub capability: u32,
}

/// What a kernel works on: its threads, input and the size of its output.
pub struct Job<'a> {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub input: &'a [u8],
    pub output_bytes: usize,
}

impl<'a> Job<'a> {
    /// So many blocks of so many threads, in a line.
    pub fn line(blocks: usize, threads: usize, input: &'a [u8], output_bytes: usize) -> Self {
        Self { grid: [blocks as u32, 1, 1], block: [threads as u32, 1, 1], input, output_bytes }
    }
}

/// A kernel with the parameters `in` and `out`, with them in `%in` and `%out` and the thread's number in `%thread`.
pub fn kernel(capability: u32, declarations: &str, body: &str) -> String {
    format!(
        ".version 8.3\n.target sm_{capability}\n.address_size 64\n{declarations}\n\
         .visible .entry k(.param .u64 in, .param .u64 out, .param .align 16 .b8 block[64])\n{{\n\
         .reg .b64 %in, %out;\n.reg .b32 %thread, %b0, %b1;\n\
         ld.param.u64 %in, [in];\nld.param.u64 %out, [out];\n\
         mov.u32 %thread, %tid.x;\nmov.u32 %b0, %ctaid.x;\nmov.u32 %b1, %ntid.x;\n\
         mad.lo.u32 %thread, %b0, %b1, %thread;\n{body}\nret;\n}}\n"
    )
}

/// What `block`, the third parameter, holds.
pub fn block_parameter() -> Vec<u8> {
    (0..64u8).map(|k| k.wrapping_mul(37) ^ 0x93).collect()
}

/// Orders, checks and threads in turn.
fn settings(capability: u32, turn: u64) -> Settings {
    let order = [Order::Early, Order::Late, Order::Seed(turn)][usize::try_from(turn % 3).expect("below 3")];
    let checks = if turn.is_multiple_of(2) { Checks::ALL } else { Checks::NONE };
    Settings { capability, checks, order, threads: 1, report: None }
}

impl Device {
    pub fn new(capability: u32) -> Self {
        Self { memory: Arc::new(Memory::new(1 << 28)), capability }
    }

    /// Runs the kernel of a module, on output that is all zeros before; `turn` varies what must not matter.
    pub fn run(&self, text: &str, job: &Job, turn: u64) -> Result<(Vec<u8>, Counters), Box<Fault>> {
        let module =
            Module::load(text, self.capability, &self.memory).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let [input, output] =
            [job.input.len(), job.output_bytes].map(|n| self.memory.alloc(n.max(1) as u64).expect("memory"));
        self.memory.write(input, job.input).expect("allocated");
        self.memory.fill(output, &[0], job.output_bytes as u64).expect("allocated");
        let config = LaunchConfig { grid: job.grid, block: job.block, dynamic_shared: 0 };
        let mut params: Vec<u8> = [input, output].into_iter().flat_map(u64::to_le_bytes).collect();
        params.extend(block_parameter());
        let ran =
            launch(&self.memory, &module.kernels[0], &config, &params, &settings(self.capability, turn));
        let mut bytes = vec![0; job.output_bytes];
        self.memory.read(output, &mut bytes).expect("allocated");
        [input, output].into_iter().for_each(|address| self.memory.free(address).expect("allocated"));
        module.unload(&self.memory);
        ran.map(|counters| (bytes, counters))
    }

    /// Whether all instructions decode: launched, the kernel exits before it comes to them.
    pub fn decodes(&self, registers: &str, body: &str) -> bool {
        let text = kernel(self.capability, "", &format!("{registers}exit;\n{body}"));
        let Ok(module) = Module::load(&text, self.capability, &self.memory) else { return false };
        let config = LaunchConfig { grid: [1; 3], block: [1; 3], dynamic_shared: 0 };
        let ran = launch(&self.memory, &module.kernels[0], &config, &[0; 80], &settings(self.capability, 1));
        module.unload(&self.memory);
        match ran {
            Ok(_) => true,
            Err(fault) if fault.kind == FaultKind::Unsupported => false,
            Err(fault) => panic!("{fault}\n{text}"),
        }
    }
}

impl Device {
    /// [`Device::decodes`] for many instructions, each in a kernel of its own.
    pub fn decode(&self, registers: &str, instructions: &[String]) -> Vec<bool> {
        let entry = |(k, text): (usize, &String)| {
            format!(".visible .entry k{k}()\n{{\n{registers}exit;\n{text}\n}}\n")
        };
        let kernels: String = instructions.iter().enumerate().map(entry).collect();
        let text = format!(".version 8.3\n.target sm_{}\n.address_size 64\n{kernels}", self.capability);
        let Ok(module) = Module::load(&text, self.capability, &self.memory) else {
            // The parser stops at one of them.
            let (first, rest) = instructions.split_at(instructions.len() / 2);
            return match instructions {
                [_] => vec![false],
                _ => [self.decode(registers, first), self.decode(registers, rest)].concat(),
            };
        };
        let config = LaunchConfig { grid: [1; 3], block: [1; 3], dynamic_shared: 0 };
        let runs = |kernel| launch(&self.memory, kernel, &config, &[], &settings(self.capability, 1)).is_ok();
        module.kernels.iter().map(|kernel| runs(kernel)).collect()
    }
}

/// Bytes as words of 64 bits.
pub fn words64(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes"))).collect()
}

/// Bytes as words of 32 bits.
pub fn words32(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("4 bytes"))).collect()
}
