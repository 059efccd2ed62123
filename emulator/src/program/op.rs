//! Decoded instructions: what the machine executes.

use super::lanes::LaneOp;
use crate::numeric::mma::Mma;

/// File a register lives in, and whether an instruction reads or writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No register.
    None,
    /// 32 lanes of 32 bits; also 8- and 16-bit values, zero-extended.
    Use32,
    /// 32 lanes of 64 bits.
    Use64,
    /// One bit per lane.
    UsePred,
    /// Written.
    Def32,
    /// Written.
    Def64,
    /// Written.
    DefPred,
}

/// Index of a row in its file; after the registers come rows of constants.
pub type Reg = u16;

/// No register, no guard.
pub const NONE: Reg = Reg::MAX;

/// A decoded instruction.
#[derive(Clone, Debug)]
pub struct Instr {
    /// What to do.
    pub op: Op,
    /// Destination first, then sources.
    pub r: [Reg; 4],
    /// Files of `r`.
    pub kinds: [Kind; 4],
    /// Predicate register of `@%p`, or [`NONE`].
    pub guard: Reg,
    /// `@!%p`.
    pub negated: bool,
    /// Number of registers in the pool.
    pub wide_len: u8,
    /// Where they start: vectors, matrix fragments.
    pub wide: u32,
}

/// What an instruction does. Registers are in [`Instr::r`]: `d` is `r[0]`, `a`, `b`, `c` follow.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Nothing (fences, prefetches, hints).
    Nop,
    /// Jump.
    Bra(u32),
    /// Jump to one of the targets in the kernel's tables: index in `a`.
    BrxIdx {
        /// First entry.
        first: u32,
        /// Number of entries.
        count: u32,
    },
    /// `exit`, or `ret` of an entry.
    Exit,
    /// `trap`, `brkpt`.
    Trap,
    /// `__assertfail`: parameters at these local addresses.
    AssertFail {
        /// Of message, file, line, function.
        params: [u32; 4],
    },
    /// `vprintf`: local addresses of the format's and the arguments' addresses, and of the result.
    Printf {
        /// Format, arguments, result.
        params: [u32; 3],
    },
    /// 32-bit, one source.
    Unary32(Unary32),
    /// 32-bit, two sources.
    Binary32(Binary32),
    /// 32-bit, three sources.
    Ternary32(Ternary32),
    /// 64-bit destination.
    Alu64(Alu64),
    /// Comparison into a predicate.
    Setp32(Test, Compare32),
    /// The same for 64-bit sources.
    Setp64(Test, Compare64),
    /// `d = c ? a : b`, the predicate in `c`; negated.
    Select32(bool),
    /// The same.
    Select64(bool),
    /// Predicate logic: `d = (a ^ na) op (b ^ nb)`.
    Pred {
        /// And, or, xor.
        op: Logic,
        /// Complement of a, of b.
        negate: [bool; 2],
    },
    /// Predicate constant.
    PredConst(bool),
    /// Any other lane-wise instruction.
    Lanes(LaneOp),
    /// `mov {a, b}, c`: parts of so many bits of `a` to the registers of the pool.
    Split {
        /// 16 or 32.
        part_bits: u8,
    },
    /// `mov c, {a, b, c, d}`: four 16-bit registers of the pool to a 64-bit one.
    Join16,
    /// `bfi`: a into b at the position `c`, of the length in the pool.
    Bfi {
        /// 64 bits.
        wide: bool,
    },
    /// With the carry: `d = a op b (op c) + carry`; the carry in and out are predicates in the pool.
    Carry(CarryOp, bool),
    /// `setp` with a combining predicate, two destinations, rare types: `d | wide[0] = test(a, b) op c`.
    SetpLanes {
        /// Bits 0 and 1 of the result.
        function: LaneOp,
        /// How `c` is combined, and whether it is complemented first.
        combine: Option<(Logic, bool)>,
        /// The second predicate is the upper half's result, not the complement.
        packed: bool,
    },
    /// `%clock`, `%clock64`, `%globaltimer`: grows with every instruction of the block.
    Clock,
    /// Load: destinations in the pool, address in `a`.
    Load(Access),
    /// Store: sources in the pool, address in `a`.
    Store(Access),
    /// Atomic: `d` (or none) = old, address in `a`, operands in `b`, `c`.
    Atomic {
        /// Where.
        access: Access,
        /// New value of (old, b, c).
        function: LaneOp,
        /// Result does not depend on the order: integer operations.
        exact: bool,
    },
    /// `isspacep`.
    IsSpace(Space),
    /// `cp.async`: destination address in `a` (offset `to`), source in `b`, bytes read in `c` (or none).
    CopyAsync {
        /// Offset of the destination.
        to: i32,
        /// Offset of the source.
        from: i32,
        /// 4, 8 or 16.
        bytes: u8,
        /// The source is in the generic or the global space.
        source: Space,
    },
    /// `cp.async.commit_group`.
    CopyCommit,
    /// `cp.async.wait_group n`.
    CopyWait(u32),
    /// `cp.async.wait_all`.
    CopyWaitAll,
    /// `ldmatrix`: destinations in the pool, address in `a`.
    LoadMatrix {
        /// `.trans`.
        transposed: bool,
        /// Offset of the address.
        offset: i32,
    },
    /// `stmatrix`: sources in the pool, address in `a`.
    StoreMatrix {
        /// `.trans`.
        transposed: bool,
        /// Offset of the address.
        offset: i32,
    },
    /// `mma.sync`: pool holds d, a, b, c.
    Mma(Mma),
    /// `shfl.sync`: d (and predicate in pool), a, lane b, clamp c; member mask in pool.
    Shuffle(ShuffleMode),
    /// `vote.sync`: source predicate in `a`, member mask in `b`.
    Vote(VoteMode, bool),
    /// `match.any.sync`/`match.all.sync`: value in `a`, member mask in `b`; predicate in pool for all.
    Match {
        /// `.all`.
        all: bool,
        /// 64-bit values.
        wide: bool,
    },
    /// `redux.sync`: value in `a`, member mask in `b`.
    Redux(LaneOp),
    /// `activemask`.
    ActiveMask,
    /// `bar.warp.sync`: mask in `a`.
    WarpSync,
    /// `bar`/`barrier`: number in `a`, threads in `b` (or none).
    Barrier(BarrierMode),
}

/// Operations of the extended-precision forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum CarryOp {
    Add,
    Sub,
    MadLo,
    MadHi { signed: bool },
}

/// `bar` forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierMode {
    /// All lanes of a warp must meet it together.
    pub aligned: bool,
    /// What happens.
    pub action: BarrierAction,
}

/// What a barrier does besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarrierAction {
    /// `.sync`: arrive and wait.
    Sync,
    /// `.arrive`: do not wait.
    Arrive,
    /// `.red.popc`, `.red.and`, `.red.or` of the predicate in `c`; negated.
    Reduce(Reduction, bool),
}

/// Of predicates over the threads at a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum Reduction {
    Popc,
    And,
    Or,
}

/// State space of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Also `.const`: variables of both lie in global memory.
    Global,
    /// Offsets in the block's shared memory.
    Shared,
    /// Offsets in the thread's local memory.
    Local,
    /// Offsets in the kernel's parameters.
    Param,
    /// Any of them, by address.
    Generic,
}

/// A load, store or atomic.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// State space.
    pub space: Space,
    /// Bytes of one element: 1, 2, 4 or 8.
    pub bytes: u8,
    /// Elements: 1, 2, 4 or 8.
    pub count: u8,
    /// Sign-extends elements below the destination's width to so many bits (16, 32, 64); 0 for zero-extension.
    pub sign_to: u8,
    /// The address register has 64 bits.
    pub wide_address: bool,
    /// The value registers have 64 bits.
    pub wide_value: bool,
    /// Volatile, relaxed, acquire, release: takes no part in data races with its like.
    pub strong: bool,
    /// Added to the address.
    pub offset: i64,
}

impl Access {
    /// One element at an address without offset.
    pub fn new(space: Space, bytes: u8) -> Self {
        Self {
            space,
            bytes,
            count: 1,
            sign_to: 0,
            wide_address: false,
            wide_value: false,
            strong: false,
            offset: 0,
        }
    }
}

/// Modes of `shfl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum ShuffleMode {
    Up,
    Down,
    Bfly,
    Idx,
}

/// Modes of `vote`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

/// Of predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum Logic {
    And,
    Or,
    Xor,
}

/// Comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum Test {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// Types with a vectorised comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum Compare32 {
    S32,
    U32,
    F32,
}

/// Types with a vectorised comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum Compare64 {
    S64,
    U64,
    F64,
}

/// Vectorised 32-bit operations of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Unary32 {
    Mov,
    Not,
    Neg,
    NegF32,
    AbsF32,
    SqrtF32,
    RcpF32,
    Ex2Approx,
    Ex2ApproxFtz,
    F32FromS32,
    F32FromU32,
    S32FromF32Rz,
    U32FromF32Rz,
    F32FromBf16,
    Bf16FromF32,
    F32FromF16,
    F16FromF32,
    /// Keep the low 16 bits.
    Low16,
    /// Keep the low 8 bits.
    Low8,
    /// Low half of a 64-bit source.
    Low32Of64,
    /// Rounded to nearest.
    F32FromF64,
}

/// Vectorised 32-bit operations of two sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Binary32 {
    Add,
    Sub,
    MulLo,
    MulHiU,
    MulHiS,
    And,
    Or,
    Xor,
    Shl,
    ShrU,
    ShrS,
    MinS,
    MaxS,
    MinU,
    MaxU,
    Add16,
    MulLo16,
    AddF32,
    SubF32,
    MulF32,
    DivF32,
    MinF32,
    MaxF32,
    /// `a` to the high half.
    Bf16x2FromF32,
    F16x2FromF32,
    /// Low half `a`, high half `b`.
    Pack16,
}

/// Vectorised 32-bit operations of three sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Ternary32 {
    MadLo,
    FmaF32,
    Prmt,
}

/// Vectorised operations with a 64-bit destination; sources as PTX has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Alu64 {
    Mov,
    Add,
    Sub,
    MulLo,
    And,
    Or,
    Xor,
    Not,
    Shl,
    ShrU,
    ShrS,
    MulWideU32,
    MulWideS32,
    MadWideU32,
    MadWideS32,
    FromU32,
    FromS32,
    /// Low half `a`, high half `b`.
    Pack32,
    AddF64,
    SubF64,
    MulF64,
    DivF64,
    FmaF64,
    SqrtF64,
    F64FromF32,
}
