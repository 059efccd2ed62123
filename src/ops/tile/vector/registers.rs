//! Products whose sums stay in named registers over all steps: of plain loops over as many sums the compiler makes scalars
//! or scattered stores. One text for three levels, since what is generic over the register was seen not to inline.
//!
//! Few rows by many columns, so that sums need few loads each: a core's loads are what it shares with the other thread
//! that may run on it. Alone as fast, six rows by two registers of columns were 3 to 5 % behind three by four in AVX2, and
//! eleven by two 15 % behind six by four in AVX-512, where another machine had that thread.

macro_rules! kernel {
    (
        $features:literal, $register:ident of $lanes:literal,
        $(fn $name:ident of $panels:literal, rows: $($first:literal + $rows:literal),*;)*
        at a time: $($k:literal)*;
        $splat:ident $load:ident $store:ident $multiply_add:ident
        $bits:ident $load_bits:ident $splat_bits:ident $shift:ident $and:ident $as_floats:ident
    ) => {
        use crate::ops::tile::vector::values;
        use crate::ops::tile::{Block, HALF, Line, Packed, Rows, SIDE};
        use std::arch::x86_64::*;

        /// Registers of a panel's columns.
        const PER_PANEL: usize = SIDE / $lanes;

        $(
            /// `c += a·b`, a product and its sum fused, for panels of the same whole steps.
            #[target_feature(enable = $features)]
            pub fn $name<T: Packed>(a: Rows<'_>, b: [&[Line]; $panels], c: &mut [Block; $panels]) {
                // Compiled apart: of packed rows every address but the first is a constant further on.
                if a.are_packed() {
                    $(rows::<T, true, $panels, $first, $rows>(a, b, c);)*
                } else {
                    $(rows::<T, false, $panels, $first, $rows>(a, b, c);)*
                }
            }
        )*

        /// `ROWS` rows from `FIRST` on.
        #[inline]
        #[target_feature(enable = $features)]
        #[allow(clippy::needless_range_loop, reason = "adapters of iterators were seen not to inline here")]
        fn rows<T: Packed, const PACKED: bool, const PANELS: usize, const FIRST: usize, const ROWS: usize>(
            a: Rows<'_>,
            b: [&[Line]; PANELS],
            c: &mut [Block; PANELS],
        ) {
            let mut sums = [[[$splat(0.0); PER_PANEL]; PANELS]; ROWS];
            for r in 0..ROWS {
                for p in 0..PANELS {
                    for i in 0..PER_PANEL {
                        let floats = &c[p].0[FIRST + r][i * $lanes..][..$lanes];
                        // SAFETY: as many floats.
                        sums[r][p][i] = unsafe { $load(floats.as_ptr()) };
                    }
                }
            }
            let mut wide = [[[0.0; HALF]; ROWS]; 2];
            let mut steps = a.steps();
            for p in 0..PANELS {
                steps = steps.min(b[p].len() / SIDE);
            }
            let mut step = 0;
            while step < steps {
                let rows = a.some::<PACKED, FIRST, ROWS>(step);
                let mut columns = [&[Line::ZERO; SIDE]; PANELS];
                for p in 0..PANELS {
                    columns[p] = &b[p].as_chunks().0[step];
                }
                let mut firsts = [&[0.0; HALF]; ROWS];
                let mut seconds = firsts;
                if values::<T>() == 2 {
                    for r in 0..ROWS {
                        for i in (0..HALF).step_by($lanes) {
                            let pairs = lanes(rows[r], i);
                            store(value::<1>(pairs), &mut wide[0][r][i..]);
                            store(value::<2>(pairs), &mut wide[1][r][i..]);
                        }
                    }
                    // Else the compiler keeps them in registers, and takes each out with a shuffle.
                    let wide = std::hint::black_box(&wide);
                    for r in 0..ROWS {
                        (firsts[r], seconds[r]) = (&wide[0][r], &wide[1][r]);
                    }
                } else {
                    for r in 0..ROWS {
                        firsts[r] = bytemuck::cast_ref(rows[r]);
                    }
                }
                // Four at a time: all 16 are more code than a core keeps decoded, and a loop of 16 ends in a branch that is
                // guessed wrong too often.
                let mut first = 0;
                while first < HALF {
                    $(
                        if values::<T>() == 2 {
                            add::<1, PANELS, ROWS>(firsts, first + $k, columns, &mut sums);
                            add::<2, PANELS, ROWS>(seconds, first + $k, columns, &mut sums);
                        } else {
                            add::<0, PANELS, ROWS>(firsts, first + $k, columns, &mut sums);
                        }
                    )*
                    first += 4;
                }
                step += 1;
            }
            for r in 0..ROWS {
                for p in 0..PANELS {
                    for i in 0..PER_PANEL {
                        store(sums[r][p][i], &mut c[p].0[FIRST + r][i * $lanes..]);
                    }
                }
            }
        }

        /// Adds the products of each row's value `k` and line `k` of the columns.
        #[inline]
        #[target_feature(enable = $features)]
        #[allow(clippy::needless_range_loop, reason = "adapters of iterators were seen not to inline here")]
        fn add<const WHICH: usize, const PANELS: usize, const ROWS: usize>(
            rows: [&[f32; HALF]; ROWS],
            k: usize,
            columns: [&[Line; SIDE]; PANELS],
            sums: &mut [[[$register; PER_PANEL]; PANELS]; ROWS],
        ) {
            // Whichever are fewer are in registers, and the others come one by one.
            if ROWS < PANELS * PER_PANEL {
                for p in 0..PANELS {
                    for i in 0..PER_PANEL {
                        let column = values_of::<WHICH>(columns[p], i, k);
                        for r in 0..ROWS {
                            sums[r][p][i] = $multiply_add($splat(rows[r][k]), column, sums[r][p][i]);
                        }
                    }
                }
                return;
            }
            let mut held = [[$splat(0.0); PER_PANEL]; PANELS];
            for p in 0..PANELS {
                for i in 0..PER_PANEL {
                    held[p][i] = values_of::<WHICH>(columns[p], i, k);
                }
            }
            for r in 0..ROWS {
                let row = $splat(rows[r][k]);
                for p in 0..PANELS {
                    for i in 0..PER_PANEL {
                        sums[r][p][i] = $multiply_add(row, held[p][i], sums[r][p][i]);
                    }
                }
            }
        }

        /// Value `k` of a panel's columns in register `i`.
        #[inline]
        #[target_feature(enable = $features)]
        fn values_of<const WHICH: usize>(columns: &[Line; SIDE], i: usize, k: usize) -> $register {
            let column = i * $lanes;
            let line = &columns[column / HALF * HALF + k];
            value::<WHICH>(lanes(line, column % HALF))
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn lanes(line: &Line, lane: usize) -> $bits {
            let lanes = &line.lanes()[lane..][..$lanes];
            // SAFETY: as many lanes.
            unsafe { $load_bits(lanes.as_ptr().cast()) }
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn store(floats: $register, to: &mut [f32]) {
            let to = &mut to[..$lanes];
            // SAFETY: as many floats.
            unsafe { $store(to.as_mut_ptr(), floats) };
        }

        /// Lanes as they are, or the first or second bf16 of each.
        #[inline]
        #[target_feature(enable = $features)]
        fn value<const WHICH: usize>(lanes: $bits) -> $register {
            $as_floats(match WHICH {
                0 => lanes,
                1 => $shift::<16>(lanes),
                _ => $and(lanes, $splat_bits(-0x1_0000)),
            })
        }
    };
}

/// In 16 registers: twelve hold sums.
#[rustfmt::skip]
pub mod avx2 {
    kernel!("avx2,fma", __m256 of 8,
        fn multiply of 1, rows: 0 + 3, 3 + 3, 6 + 3, 9 + 3, 12 + 3, 15 + 3, 18 + 3, 21 + 3, 24 + 3, 27 + 3, 30 + 2;
        at a time: 0 1 2 3;
        _mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps _mm256_fmadd_ps
        __m256i _mm256_loadu_si256 _mm256_set1_epi32 _mm256_slli_epi32 _mm256_and_si256 _mm256_castsi256_ps);
}

/// In 32 registers: up to 24 hold sums.
#[rustfmt::skip]
pub mod avx512 {
    kernel!("avx512f", __m512 of 16,
        fn multiply of 1, rows: 0 + 11, 11 + 11, 22 + 10;
        fn multiply_two of 2, rows: 0 + 6, 6 + 6, 12 + 5, 17 + 5, 22 + 5, 27 + 5;
        at a time: 0 1 2 3;
        _mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps _mm512_fmadd_ps
        __m512i _mm512_loadu_si512 _mm512_set1_epi32 _mm512_slli_epi32 _mm512_and_si512 _mm512_castsi512_ps);
}

/// Its functions of f32 are of bf16: each lane goes into the instruction (VDPBF16PS) as it is, a pair.
#[rustfmt::skip]
pub mod avx512_bf16 {
    kernel!("avx512f,avx512bf16", __m512 of 16,
        fn multiply of 1, rows: 0 + 11, 11 + 11, 22 + 10;
        fn multiply_two of 2, rows: 0 + 6, 6 + 6, 12 + 5, 17 + 5, 22 + 5, 27 + 5;
        at a time: 0 1 2 3;
        _mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps add_pairs
        __m512i _mm512_loadu_si512 _mm512_set1_epi32 _mm512_slli_epi32 _mm512_and_si512 _mm512_castsi512_ps);

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn add_pairs(a: __m512, b: __m512, sums: __m512) -> __m512 {
        _mm512_dpbf16_ps(sums, pairs(a), pairs(b))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn pairs(lanes: __m512) -> __m512bh {
        // SAFETY: both are 64 bytes, of which every pattern is valid.
        unsafe { std::mem::transmute(lanes) }
    }
}
