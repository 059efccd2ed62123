//! Where variables and parameters lie.

use super::Param;
use super::lower::{Place, qualified};
use crate::memory::{Memory, MemoryError};
use crate::ptx::ast::{Function, Initializer, Module, Operand, Space, Variable};
use std::collections::{HashMap, HashSet};

/// Most static shared memory of a kernel; more can only be asked for at the launch.
const MOST_SHARED: u64 = 48 << 10;
/// Most constants of a module.
pub(super) const MOST_CONST: u32 = 64 << 10;

/// A module's variables in device memory.
pub struct Variables {
    /// Place of each.
    pub places: HashMap<String, Place>,
    /// Name, address, bytes.
    pub globals: Vec<(String, u64, u64)>,
    /// Bytes of `.const` variables.
    pub const_bytes: u32,
}

/// Allocates and fills the variables of `.global` and `.const`.
///
/// # Errors
/// [`MemoryError`]; then nothing stays allocated.
pub fn variables(module: &Module, memory: &Memory) -> Result<Variables, MemoryError> {
    let mut all = Variables { places: HashMap::new(), globals: Vec::new(), const_bytes: 0 };
    let in_memory = |v: &&Variable| matches!(v.space, Space::Global | Space::Const);
    let wanted: Vec<&Variable> = module.variables.iter().filter(in_memory).collect();
    let filled = allocate(&wanted, memory, &mut all).and_then(|()| fill(&wanted, memory, &all));
    if let Err(error) = filled {
        free(&all.globals, memory);
        return Err(error);
    }
    Ok(all)
}

/// Frees variables again.
pub(super) fn free(globals: &[(String, u64, u64)], memory: &Memory) {
    for (_, address, _) in globals.iter().filter(|(_, _, bytes)| *bytes > 0) {
        let _ = memory.free(*address); // nobody else frees it
    }
}

fn allocate(wanted: &[&Variable], memory: &Memory, all: &mut Variables) -> Result<(), MemoryError> {
    for variable in wanted {
        let name = &variable.name;
        let bytes = variable.count.unwrap_or(0).saturating_mul(variable.element.bytes());
        let address = if bytes == 0 { 0 } else { memory.alloc(bytes)? };
        all.places.insert(name.clone(), Place::Global(address));
        all.globals.push((name.clone(), address, bytes));
        if variable.space == Space::Const {
            all.const_bytes = all.const_bytes.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        }
    }
    Ok(())
}

/// Writes the initial contents: zeros where nothing is said.
fn fill(wanted: &[&Variable], memory: &Memory, all: &Variables) -> Result<(), MemoryError> {
    for (variable, &(_, address, bytes)) in wanted.iter().zip(&all.globals) {
        if bytes == 0 {
            continue;
        }
        memory.fill(address, &[0], bytes)?;
        let width = usize::try_from(variable.element.bytes()).expect("at most 16").min(8);
        let mut contents = Vec::with_capacity(variable.init.len() * width);
        for init in &variable.init {
            let bits = match init {
                Initializer::Bits(bits) => *bits,
                Initializer::Address(name, offset) => match all.places.get(name) {
                    Some(Place::Global(base)) => base.wrapping_add_signed(*offset),
                    _ => 0,
                },
            };
            contents.extend_from_slice(&bits.to_le_bytes()[..width]);
        }
        contents.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
        memory.write(address, &contents)?;
    }
    Ok(())
}

/// Parameters, bytes of all, place of each.
type Params = (Vec<Param>, usize, HashMap<String, Place>);

/// Parameters of a kernel: each at its alignment, in order.
pub(super) fn params(function: &Function) -> Params {
    let (mut params, mut places, mut end) = (Vec::new(), HashMap::new(), 0usize);
    for variable in &function.params {
        let bytes = variable.count.unwrap_or(0).saturating_mul(variable.element.bytes());
        let align = usize::try_from(variable.align.clamp(1, 256)).expect("at most 256");
        let offset = end.next_multiple_of(align);
        let bytes = usize::try_from(bytes).expect("the parser limits parameters");
        end = offset + bytes;
        params.push(Param { offset, bytes });
        let [offset, bytes] =
            [offset, bytes].map(|n| u32::try_from(n).expect("the parser limits parameters"));
        places.insert(variable.name.clone(), Place::Param(offset, bytes));
    }
    (params, end, places)
}

/// Shared variables that a kernel and what it calls refer to: static ones in the order of their first use, then all
/// `.extern` ones at one place after them, where dynamic shared memory starts.
pub(super) fn shared(module: &Module, kernel: usize) -> Result<(HashMap<String, Place>, u32), String> {
    let by_name: HashMap<&str, usize> =
        module.functions.iter().enumerate().map(|(i, f)| (f.name.as_str(), i)).collect();
    let (mut seen, mut queue, mut used) = (HashSet::from([kernel]), vec![kernel], Vec::new());
    let mut named = HashSet::new();
    while let Some(function) = queue.pop() {
        let function = &module.functions[function];
        for instruction in &function.instructions {
            let mut names = Vec::new();
            instruction.operands.iter().for_each(|operand| symbols(operand, &mut names));
            for name in names {
                if let Some(&callee) = by_name.get(name)
                    && seen.insert(callee)
                {
                    queue.push(callee);
                }
                let own = function.variables.iter().find(|v| v.name == name);
                let key = own.map_or(name.to_owned(), |v| qualified(&function.name, &v.name));
                let variable = own.or_else(|| module.variables.iter().find(|v| v.name == name));
                if let Some(variable) = variable.filter(|v| v.space == Space::Shared)
                    && named.insert(key.clone())
                {
                    used.push((key, variable));
                }
            }
        }
    }
    place(&used)
}

fn place(used: &[(String, &Variable)]) -> Result<(HashMap<String, Place>, u32), String> {
    let (mut places, mut end) = (HashMap::new(), 0u64);
    for (name, variable) in used.iter().filter(|(_, v)| v.count.is_some()) {
        let bytes = variable.count.unwrap_or(0).saturating_mul(variable.element.bytes());
        let offset = end.next_multiple_of(variable.align.clamp(1, 1 << 16));
        end = offset.saturating_add(bytes);
        if end > MOST_SHARED {
            return Err(format!("more than {MOST_SHARED} bytes of static shared memory"));
        }
        places.insert(name.clone(), Place::Shared(u32::try_from(offset).expect("small")));
    }
    let align = used.iter().filter(|(_, v)| v.count.is_none()).map(|(_, v)| v.align.clamp(1, 1 << 16)).max();
    let dynamic = u32::try_from(end.next_multiple_of(align.unwrap_or(1))).expect("small");
    for (name, _) in used.iter().filter(|(_, v)| v.count.is_none()) {
        places.insert(name.clone(), Place::Shared(dynamic));
    }
    Ok((places, dynamic))
}

fn symbols<'a>(operand: &'a Operand, names: &mut Vec<&'a str>) {
    match operand {
        Operand::Symbol(name, _) => names.push(name),
        Operand::Address(base, _) | Operand::Not(base) => symbols(base, names),
        Operand::Vector(all) | Operand::List(all) => all.iter().for_each(|one| symbols(one, names)),
        _ => {}
    }
}
