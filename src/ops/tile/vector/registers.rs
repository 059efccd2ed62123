//! Products whose sums stay in named registers over all steps: of plain loops over as many sums the compiler makes scalars
//! or scattered stores. One text for three levels, since what is generic over the register was seen not to inline.

macro_rules! kernel {
    (
        $features:literal, $register:ident of $lanes:literal,
        rows: $($first:literal + $rows:literal),*; in a line: $($p:literal)*;
        $splat:ident $load:ident $store:ident $multiply_add:ident
        $bits:ident $load_bits:ident $splat_bits:ident $shift:ident $and:ident $as_floats:ident
    ) => {
        use crate::ops::tile::vector::values;
        use crate::ops::tile::{Block, HALF, Line, Packed, SIDE};
        use std::arch::x86_64::*;

        /// `c += a·b`, a product and its sum fused, for panels of the same whole steps.
        #[target_feature(enable = $features)]
        pub fn multiply<T: Packed>(a: &[Line], b: &[Line], c: &mut Block) {
            for column in (0..SIDE).step_by(2 * $lanes) {
                $(rows::<T, $first, $rows>(a, b, c, column);)*
            }
        }

        /// `ROWS` rows from `FIRST` on, and two registers of columns from `column` on.
        #[inline]
        #[target_feature(enable = $features)]
        #[allow(clippy::needless_range_loop, reason = "adapters of iterators were seen not to inline here")]
        fn rows<T: Packed, const FIRST: usize, const ROWS: usize>(
            a: &[Line],
            b: &[Line],
            c: &mut Block,
            column: usize,
        ) {
            let mut sums = [[$splat(0.0); 2]; ROWS];
            for r in 0..ROWS {
                for i in 0..2 {
                    let floats = &c.0[FIRST + r][column + i * $lanes..][..$lanes];
                    // SAFETY: as many floats.
                    sums[r][i] = unsafe { $load(floats.as_ptr()) };
                }
            }
            let mut wide = [[[0.0; HALF]; ROWS]; 2];
            let (a, b) = (a.as_chunks::<SIDE>().0, b.as_chunks::<SIDE>().0);
            let mut step = 0;
            while step < a.len().min(b.len()) {
                let rows: &[Line; ROWS] = a[step][FIRST..].first_chunk().expect("rows of a block");
                let columns = [lines(&b[step], column), lines(&b[step], column + $lanes)];
                let singles = bytemuck::cast_slice(rows).first_chunk().expect("as many rows");
                let [firsts, seconds] = if values::<T>() == 2 {
                    for r in 0..ROWS {
                        for i in (0..HALF).step_by($lanes) {
                            let pairs = lanes(&rows[r], i);
                            store(first(pairs), &mut wide[0][r][i..]);
                            store(second(pairs), &mut wide[1][r][i..]);
                        }
                    }
                    // Else the compiler keeps them in registers, and takes each out with a shuffle.
                    std::hint::black_box(&wide).each_ref()
                } else {
                    [singles, singles]
                };
                // One by one: a loop of 16 ends in a branch that is guessed wrong too often.
                $(
                    let both = [lanes(&columns[0][$p], column % HALF), lanes(&columns[1][$p], (column + $lanes) % HALF)];
                    if values::<T>() == 2 {
                        add(firsts, $p, [first(both[0]), first(both[1])], &mut sums);
                        add(seconds, $p, [second(both[0]), second(both[1])], &mut sums);
                    } else {
                        add(firsts, $p, [$as_floats(both[0]), $as_floats(both[1])], &mut sums);
                    }
                )*
                step += 1;
            }
            for r in 0..ROWS {
                for i in 0..2 {
                    store(sums[r][i], &mut c.0[FIRST + r][column + i * $lanes..]);
                }
            }
        }

        /// Adds the products of each row's value `p` and two registers of columns.
        #[inline]
        #[target_feature(enable = $features)]
        #[allow(clippy::needless_range_loop, reason = "adapters of iterators were seen not to inline here")]
        fn add<const ROWS: usize>(
            rows: &[[f32; HALF]; ROWS],
            p: usize,
            columns: [$register; 2],
            sums: &mut [[$register; 2]; ROWS],
        ) {
            for r in 0..ROWS {
                let x = $splat(rows[r][p]);
                sums[r][0] = $multiply_add(x, columns[0], sums[r][0]);
                sums[r][1] = $multiply_add(x, columns[1], sums[r][1]);
            }
        }

        /// The 16 lines of one step that have a column.
        #[inline]
        #[target_feature(enable = $features)]
        fn lines(step: &[Line; SIDE], column: usize) -> &[Line; HALF] {
            step[column / HALF * HALF..].first_chunk().expect("half a step")
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

        /// The first bf16 of each pair.
        #[inline]
        #[target_feature(enable = $features)]
        fn first(pairs: $bits) -> $register {
            $as_floats($shift::<16>(pairs))
        }

        /// The second bf16 of each pair.
        #[inline]
        #[target_feature(enable = $features)]
        fn second(pairs: $bits) -> $register {
            $as_floats($and(pairs, $splat_bits(-0x1_0000)))
        }
    };
}

/// In 16 registers: twelve hold sums.
#[rustfmt::skip]
pub mod avx2 {
    kernel!("avx2,fma", __m256 of 8, rows: 0 + 6, 6 + 6, 12 + 5, 17 + 5, 22 + 5, 27 + 5;
        in a line: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15;
        _mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps _mm256_fmadd_ps
        __m256i _mm256_loadu_si256 _mm256_set1_epi32 _mm256_slli_epi32 _mm256_and_si256 _mm256_castsi256_ps);
}

/// In 32 registers: 22 hold sums.
#[rustfmt::skip]
pub mod avx512 {
    kernel!("avx512f", __m512 of 16, rows: 0 + 11, 11 + 11, 22 + 10;
        in a line: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15;
        _mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps _mm512_fmadd_ps
        __m512i _mm512_loadu_si512 _mm512_set1_epi32 _mm512_slli_epi32 _mm512_and_si512 _mm512_castsi512_ps);
}

/// `multiply::<f32>` is of bf16: each lane goes into the instruction (VDPBF16PS) as it is, a pair.
#[rustfmt::skip]
pub mod avx512_bf16 {
    kernel!("avx512f,avx512bf16", __m512 of 16, rows: 0 + 11, 11 + 11, 22 + 10;
        in a line: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15;
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
