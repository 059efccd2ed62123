//! Advanced Matrix Extensions: eight tiles of 16 rows of 64 bytes, in inline assembly.
//!
//! Four tiles hold the block, two the left and two the right operand of a step; each operand tile serves two products.

use super::{Block, Line, Rows};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles {
    use super::{Block, Line, Rows};
    use crate::ops::tile::{HALF, SIDE};
    use std::arch::asm;
    use std::arch::x86_64::__cpuid_count;
    use std::sync::OnceLock;

    /// Operand of LDTILECFG (Intel SDM, vol. 1, 18.2).
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    /// All eight tiles at their largest.
    static LARGEST: Configuration = Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };

    /// Whether the processor has AMX with bf16 and Linux lets this process use its tiles. It must be asked, since tiles
    /// enlarge what a signal saves (Documentation/arch/x86/xstate.rst).
    pub fn is_permitted() -> bool {
        static PERMITTED: OnceLock<bool> = OnceLock::new();
        *PERMITTED.get_or_init(|| {
            const AMX_BF16: u32 = 1 << 22;
            const AMX_TILE: u32 = 1 << 24;
            let features = __cpuid_count(7, 0).edx;
            features & AMX_BF16 != 0 && features & AMX_TILE != 0 && request()
        })
    }

    /// `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
    fn request() -> bool {
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
        const XTILEDATA: i64 = 18;
        let result: i64;
        // SAFETY: a system call that takes two numbers and touches no memory of ours; the kernel clobbers rcx and r11.
        unsafe {
            asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XTILEDATA,
                out("rcx") _, out("r11") _, options(nostack));
        }
        result == 0
    }

    /// Gives this thread eight tiles of 16 × 64 bytes.
    pub fn configure() {
        assert!(is_permitted(), "no AMX");
        // SAFETY: the processor has AMX and the kernel's permission (asserted); it reads the 64 bytes of LARGEST.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const LARGEST, options(readonly, nostack)) };
    }

    /// Gives the tiles back, so that a change of threads need not save them.
    pub fn release() {
        // SAFETY: only a thread that ran `configure` comes here; the instruction touches no memory.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }

    const BLOCK_ROW: usize = SIDE * 4;

    /// Fills the four tiles of sums, or sets them to zero. The thread has configured its tiles.
    #[inline(always)]
    pub fn begin(from: Option<&Block>) {
        if let Some(from) = from {
            let upper: *const [f32; SIDE] = from.0.as_ptr();
            // SAFETY: four tiles of 16 rows of 64 bytes, 128 bytes apart: together the 4096 bytes of a block.
            unsafe {
                asm!("tileloadd tmm0, [{upper} + {row}]", "tileloadd tmm1, [{upper} + {row} + 64]",
                    "tileloadd tmm2, [{lower} + {row}]", "tileloadd tmm3, [{lower} + {row} + 64]",
                    upper = in(reg) upper, lower = in(reg) upper.wrapping_add(SIDE / 2), row = in(reg) BLOCK_ROW,
                    options(readonly, nostack));
            }
        } else {
            // SAFETY: touches no memory.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nomem, nostack)
                );
            }
        }
    }

    /// Adds the products of step `i` of the rows to the tiles of sums. The right operand, of which each step reads another
    /// part, is loaded with the hint that it need not stay in L1 (TILELOADDT1), where it would take the left one's place.
    #[inline(always)]
    pub fn step(rows: Rows<'_>, i: usize, b: &[Line; SIDE]) {
        let (a, row) = rows.tile(i);
        // SAFETY: reads 32 lines of each operand: of the right one a whole step, of the left one those that `tile` found.
        unsafe {
            asm!(
                "tileloadd tmm4, [{a} + {row}]",
                "tileloaddt1 tmm6, [{b} + {line}]",
                "tileloadd tmm5, [{lower} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloaddt1 tmm7, [{b} + {line} + 1024]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                a = in(reg) a, lower = in(reg) a.wrapping_byte_add(HALF * row), row = in(reg) row, b = in(reg) b,
                line = in(reg) size_of::<Line>(), options(readonly, nostack)
            );
        }
    }

    /// Stores the tiles of sums.
    #[inline(always)]
    pub fn end(c: &mut Block) {
        let upper: *mut [f32; SIDE] = c.0.as_mut_ptr();
        // SAFETY: four tiles of 16 rows of 64 bytes, 128 bytes apart: together the 4096 bytes of c, borrowed exclusively.
        unsafe {
            asm!("tilestored [{upper} + {row}], tmm0", "tilestored [{upper} + {row} + 64], tmm1",
                "tilestored [{lower} + {row}], tmm2", "tilestored [{lower} + {row} + 64], tmm3",
                upper = in(reg) upper, lower = in(reg) upper.wrapping_add(SIDE / 2), row = in(reg) BLOCK_ROW,
                options(nostack));
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod tiles {
    use super::{Block, Line, Rows};
    use crate::ops::tile::SIDE;

    pub fn is_permitted() -> bool {
        false
    }

    pub fn configure() {
        unreachable!("a level that is not available");
    }

    pub fn release() {}

    pub fn begin(_: Option<&Block>) {
        unreachable!("a level that is not available");
    }

    pub fn step(_: Rows<'_>, _: usize, _: &[Line; SIDE]) {
        unreachable!("a level that is not available");
    }

    pub fn end(_: &mut Block) {
        unreachable!("a level that is not available");
    }
}

pub use tiles::{begin, configure, end, is_permitted, release, step};
