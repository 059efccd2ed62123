//! One line of PTX as nvcc writes it, taken apart and put together.

/// An instruction.
#[derive(Clone)]
pub struct Statement<'a> {
    /// `@%p1` or `@!%p1`, or nothing.
    pub guard: &'a str,
    /// With its modifiers, e.g. `ld.shared.v4.f32`.
    pub opcode: &'a str,
    /// In order; vectors and addresses with their brackets.
    pub operands: Vec<&'a str>,
}

impl<'a> Statement<'a> {
    /// Of a line, unless it is something else than one instruction.
    pub fn of(line: &'a str) -> Option<Self> {
        let text = line.trim().strip_suffix(';')?;
        let (guard, text) = match text.strip_prefix('@') {
            Some(rest) => text.split_at(rest.find(' ')? + 1),
            None => ("", text),
        };
        let text = text.trim_start();
        if !text.starts_with(|c: char| c.is_ascii_lowercase()) || text.contains(';') {
            return None;
        }
        let (opcode, operands) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        Some(Self { guard, opcode, operands: split(operands) })
    }

    /// Whether the opcode is, or begins with, one of these.
    pub fn is(&self, prefixes: &[&str]) -> bool {
        prefixes.iter().any(|prefix| self.opcode.starts_with(prefix))
    }

    /// A barrier of the block, or an arrival at one.
    pub fn is_barrier(&self) -> bool {
        self.is(&["bar.sync", "bar.arrive", "bar.red", "barrier."])
    }

    /// What orders accesses to shared memory.
    pub fn is_sync(&self) -> bool {
        self.is_barrier() || self.is(&["bar.warp.sync", "cp.async.wait"])
    }

    /// One waits for copies, the other for threads.
    pub fn is_sync_unlike(&self, other: &Self) -> bool {
        self.is_sync() && other.is_sync() && self.is(&["cp.async"]) != other.is(&["cp.async"])
    }

    /// An access to shared memory.
    pub fn is_shared(&self) -> bool {
        self.is(&["ldmatrix", "stmatrix", "cp.async.c"])
            || (self.is(&["ld.", "st.", "atom.", "red."]) && self.opcode.contains(".shared"))
    }

    /// A load or store, not of a parameter.
    pub fn is_access(&self) -> bool {
        self.is(&["ld.", "st."]) && !self.opcode.contains(".param")
    }

    /// The text again.
    pub fn text(&self) -> String {
        let Self { guard, opcode, operands } = self;
        format!("{guard} {opcode} {};", operands.join(", "))
    }

    /// With another opcode.
    pub fn with_opcode(&self, opcode: &str) -> String {
        let Self { guard, operands, .. } = self;
        format!("{guard} {opcode} {};", operands.join(", "))
    }

    /// With another operand.
    pub fn with_operand(&self, index: usize, operand: &str) -> String {
        let mut operands = self.operands.clone();
        operands[index] = operand;
        Statement { operands, ..self.clone() }.text()
    }

    /// With the address that is this operand moved.
    pub fn moved(&self, index: usize, by: u32) -> String {
        let address = self.operands[index].trim_matches(['[', ']']);
        let (base, offset) = address.split_once('+').unwrap_or((address, "0"));
        let offset: i64 = offset.parse().expect("an offset is a number");
        self.with_operand(index, &format!("[{base}+{}]", offset + i64::from(by)))
    }

    /// Index of the first operand that is an address.
    pub fn address(&self) -> Option<usize> {
        self.operands.iter().position(|operand| operand.starts_with('['))
    }

    /// Of a load or store: elements and bits of one.
    pub fn shape(&self) -> Option<(u32, u32)> {
        let (rest, kind) = self.opcode.rsplit_once('.')?;
        let bits = kind.trim_start_matches(|c: char| c.is_ascii_lowercase()).parse().ok()?;
        let elements = rest.rsplit('.').next()?.strip_prefix('v').and_then(|n| n.parse().ok());
        Some((elements.unwrap_or(1), bits))
    }
}

/// At the commas outside of brackets.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = text.split(|c| {
        depth += i32::from(matches!(c, '{' | '[')) - i32::from(matches!(c, '}' | ']'));
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}
