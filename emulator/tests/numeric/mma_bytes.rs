//! mma.sync of bytes against plain integer products.

use crate::oracle::Random;
use cuda_emulator::numeric::mma::{Mma, Row};
use cuda_emulator::numeric::simd::Simd;

/// The ISA's place of byte i of lane's fragments of A and B.
fn byte_places(lane: usize, i: usize) -> ((usize, usize), (usize, usize)) {
    let (group, thread) = (lane >> 2, lane % 4);
    let row = if i < 4 || (8..12).contains(&i) { group } else { group + 8 };
    let column = thread * 4 + (i & 3) + if i < 8 { 0 } else { 16 };
    ((row, column), (thread * 4 + (i & 3) + if i < 4 { 0 } else { 16 }, group))
}

#[test]
fn bytes_multiply_exactly() {
    let value = |bits: u8, signed: bool| if signed { i64::from(bits.cast_signed()) } else { i64::from(bits) };
    for (k, types, saturate) in (0..16).map(|i| ([16, 32][i & 1], i >> 1 & 3, i >> 3 == 1)) {
        let (a_signed, b_signed) = (types & 1 == 0, types & 2 == 0);
        let [a_type, b_type] = [a_signed, b_signed].map(|signed| if signed { "s8" } else { "u8" });
        let satfinite = if saturate { ".satfinite" } else { "" };
        let words = format!("sync.aligned.m16n8k{k}.row.col{satfinite}.s32.{a_type}.{b_type}.s32");
        let mma = Mma::parse(&words.split('.').collect::<Vec<_>>()).expect("a form");
        assert_eq!(mma.minimum_capability(), 80);
        let mut random = Random::new(11);
        for round in 0..20 {
            let mut draw = |rows: usize| -> Vec<Row> {
                (0..rows).map(|_| std::array::from_fn(|_| random.next() as u32)).collect()
            };
            let (a, b, mut c) = (draw(k / 8), draw(k / 16), draw(4));
            if round % 2 == 0 {
                // Near the ends of the range, where sums leave it.
                c.iter_mut().flatten().for_each(|c| *c = 0x7fff_ffff_u32.wrapping_add(*c & 1));
            }
            let (mut of_a, mut of_b) = ([[0; 32]; 16], [[0; 8]; 32]);
            for lane in 0..32 {
                for i in 0..k / 2 {
                    let (row, column) = byte_places(lane, i).0;
                    of_a[row][column] = value(a[i / 4][lane].to_le_bytes()[i % 4], a_signed);
                }
                for i in 0..k / 4 {
                    let (row, column) = byte_places(lane, i).1;
                    of_b[row][column] = value(b[i / 4][lane].to_le_bytes()[i % 4], b_signed);
                }
            }
            let mut d = [[0xdead_beef; 32]; 4];
            let [a_rows, b_rows, c_rows] = [&a, &b, &c].map(|rows| rows.iter().collect::<Vec<&Row>>());
            mma.run(Simd::detect(), &mut d, &a_rows, &b_rows, &c_rows);
            for (lane, i) in (0..32).flat_map(|lane| (0..4).map(move |i| (lane, i))) {
                let (row, column) = (if i < 2 { lane >> 2 } else { (lane >> 2) + 8 }, lane % 4 * 2 + (i & 1));
                let dot: i64 = (0..k).map(|k| of_a[row][k] * of_b[k][column]).sum();
                let sum = dot + i64::from(c[i][lane].cast_signed());
                let want = if saturate { sum.clamp(i32::MIN.into(), i32::MAX.into()) } else { sum };
                assert_eq!(d[i][lane], want as u32, "{words} {row} {column}");
            }
        }
    }
}

#[test]
fn other_forms_of_bytes_are_refused() {
    for words in [
        "sync.aligned.m16n8k64.row.col.s32.s8.s8.s32",
        "sync.aligned.m16n8k32.row.col.s32.s4.s8.s32",
        "sync.aligned.m16n8k32.row.col.s32.s8.s8.f32",
    ] {
        assert_eq!(Mma::parse(&words.split('.').collect::<Vec<_>>()), None, "{words}");
    }
}
