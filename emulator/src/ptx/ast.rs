//! The syntax tree of a PTX module: names resolved, nothing decoded yet.

use std::sync::Arc;

/// `.b8`, `.u32`, `.f16x2`, ... of registers, variables and parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    BF16,
    BF16x2,
    F32,
    F64,
}

/// State space of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum Space {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// A PTX module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Module {
    /// `.version`, e.g. (9, 0).
    pub version: (u32, u32),
    /// `.target` without `sm_`, e.g. `80` or `90a`.
    pub target: String,
    /// `.file` index and name.
    pub files: Vec<(u32, String)>,
    /// Variables of module scope in all spaces; `.extern .shared` ones have no count.
    pub variables: Vec<Variable>,
    /// Entries and device functions with a body, in the order of the text. Declarations are left out.
    pub functions: Vec<Function>,
}

/// A variable. In functions, names are made unique by the parser where scopes repeat them.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    /// Unique name.
    pub name: String,
    /// State space.
    pub space: Space,
    /// Bytes; a power of two, at least the element's size.
    pub align: u64,
    /// Type of one element.
    pub element: Type,
    /// Number of elements (product of all dimensions, and of `.v2`/`.v4`); `None` for `name[]`.
    pub count: Option<u64>,
    /// Initial contents, from offset 0; what is missing is zero.
    pub init: Vec<Initializer>,
    /// Line of the declaration.
    pub line: u32,
}

/// One element of an initializer, `element.bytes()` wide.
#[derive(Clone, Debug, PartialEq)]
pub enum Initializer {
    /// Bits of a number, already in the element's type.
    Bits(u64),
    /// Address of another variable (`generic(name)` too) plus an offset.
    Address(String, i64),
}

/// An entry or a device function.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// Name.
    pub name: String,
    /// `.entry` rather than `.func`.
    pub is_entry: bool,
    /// Returned parameters of a device function. A register parameter counts as one too; it is also the
    /// register of the same name.
    pub returns: Vec<Variable>,
    /// Parameters. Those of an entry are laid out in order, each at its alignment.
    pub params: Vec<Variable>,
    /// `.maxntid` or `.reqntid` (then `exact`): threads per block.
    pub max_threads: Option<MaxThreads>,
    /// Type of every register that is used, in the order of first use; [`Operand::Register`] is an index into
    /// it. The register parameters of a device function come first.
    pub registers: Vec<Type>,
    /// Names of the registers, unique: the second `t` of a scope of its own is `t$1`.
    pub register_names: Vec<String>,
    /// `.shared`, `.local` and `.param` variables declared in the body, under unique names.
    pub variables: Vec<Variable>,
    /// Unique names of the labels, each with the index of the instruction after it; ascending.
    pub labels: Vec<(String, u32)>,
    /// Instructions; branch targets are indices into it (or its length).
    pub instructions: Vec<Instruction>,
    /// Line of the name.
    pub line: u32,
}

/// A bound on the threads of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxThreads {
    /// x, y, z.
    pub size: [u32; 3],
    /// `.reqntid`: exactly this many.
    pub exact: bool,
}

/// An instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// `@%p` or `@!%p`.
    pub guard: Option<Guard>,
    /// First word, e.g. `ld`.
    pub opcode: String,
    /// Words after it, e.g. `["global", "v4", "u32"]`; `shared::cta` stays one word.
    pub modifiers: Vec<String>,
    /// Operands in order.
    pub operands: Vec<Operand>,
    /// Line of the text, from 1.
    pub line: u32,
    /// From the last `.loc` before it.
    pub location: Option<Location>,
}

/// Predicate register that must be true (or false, if negated).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Index into [`Function::registers`].
    pub register: u32,
    /// `@!`.
    pub negated: bool,
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// Index into [`Function::registers`].
    Register(u32),
    /// A special register with its `%`, e.g. `%tid.x`.
    Special(String),
    /// Integer constant, in two's complement.
    Integer(u64),
    /// `0f3F800000`.
    F32(u32),
    /// `0d...`, or a decimal constant with a point.
    F64(u64),
    /// Variable, parameter or function, plus an offset.
    Symbol(String, i64),
    /// `[base + offset]`, base a register, a symbol or an absolute integer.
    Address(Box<Operand>, i64),
    /// `{a, b, ...}`.
    Vector(Vec<Operand>),
    /// `(a, b, ...)` of a call.
    List(Vec<Operand>),
    /// `d|p`.
    Pair(Box<Operand>, Box<Operand>),
    /// `!p`.
    Not(Box<Operand>),
    /// Target of a branch: an index into [`Function::instructions`].
    Target(u32),
    /// Targets of `brx.idx`.
    Targets(Vec<u32>),
    /// `_`.
    Sink,
}

/// A `.loc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Index as in [`Module::files`].
    pub file: u32,
    /// From 1.
    pub line: u32,
    /// Where the code was inlined: the place of the call, and of the calls around that.
    pub inlined_at: Option<Arc<Location>>,
}

const TYPES: [(&str, Type); 20] = [
    ("pred", Type::Pred),
    ("b8", Type::B8),
    ("b16", Type::B16),
    ("b32", Type::B32),
    ("b64", Type::B64),
    ("b128", Type::B128),
    ("u8", Type::U8),
    ("u16", Type::U16),
    ("u32", Type::U32),
    ("u64", Type::U64),
    ("s8", Type::S8),
    ("s16", Type::S16),
    ("s32", Type::S32),
    ("s64", Type::S64),
    ("f16", Type::F16),
    ("f16x2", Type::F16x2),
    ("bf16", Type::BF16),
    ("bf16x2", Type::BF16x2),
    ("f32", Type::F32),
    ("f64", Type::F64),
];

impl Type {
    /// Size; 0 for a predicate.
    pub fn bytes(self) -> u64 {
        match self {
            Type::Pred => 0,
            Type::B8 | Type::U8 | Type::S8 => 1,
            Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::BF16 => 2,
            Type::B32 | Type::U32 | Type::S32 | Type::F32 | Type::F16x2 | Type::BF16x2 => 4,
            Type::B64 | Type::U64 | Type::S64 | Type::F64 => 8,
            Type::B128 => 16,
        }
    }

    /// The type of a name without its point, e.g. `u32`.
    pub fn from_name(name: &str) -> Option<Self> {
        TYPES.iter().find(|(n, _)| *n == name).map(|&(_, t)| t)
    }
}
