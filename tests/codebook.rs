//! The code books against their formula, and the quantiser against an exhaustive search.
#![expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the point")]

use smolten::ops::codebook::{Codebook, SIGNED, SIGNED_SHIFT, UNSIGNED, UNSIGNED_SHIFT};

/// Checksums of the published patterns, little-endian.
const SIGNED_SUM: u64 = 0xd677_f22a_9666_5bc4;
const UNSIGNED_SUM: u64 = 0x4381_1b16_730a_873e;

/// Nearest of all 256 values by distance in f64, a tie to the even code; negative `x` among negative values only.
fn nearest(book: &Codebook, x: f32) -> u8 {
    let signed = book.values[0] < 0.0;
    let mut best = None;
    for (code, &value) in (0u8..=255).zip(&book.values) {
        if signed && x < 0.0 && value >= 0.0 {
            continue;
        }
        let distance = (f64::from(x) - f64::from(value)).abs();
        let better = match best {
            None => true,
            Some((_, d)) => distance < d || (distance == d && code.is_multiple_of(2)),
        };
        if better {
            best = Some((code, distance));
        }
    }
    best.expect("a book is not empty").0
}

fn quantise(book: &Codebook, x: f32) -> u8 {
    if book.values[0] < 0.0 { book.quantise::<SIGNED_SHIFT>(x) } else { book.quantise::<UNSIGNED_SHIFT>(x) }
}

/// Compares at `x` and at its two neighbours, as far as the book's range goes.
fn check(book: &Codebook, x: f32) {
    let low = if book.values[0] < 0.0 { -1.0 } else { 0.0 };
    for x in [x.next_down(), x, x.next_up()] {
        if (low..=1.0).contains(&x) {
            assert_eq!(quantise(book, x), nearest(book, x), "x = {x:e} = {:#010x}", x.to_bits());
        }
    }
}

/// In f64: for each decade the midpoints of `linspace(0.1, 1, k)`, then 0 and 1.
fn formula(signed: bool) -> Vec<f64> {
    let mut values = vec![0.0, 1.0];
    for i in 0..=6 {
        let k = if signed { 1 << i } else { 2 << i };
        for j in 0..k {
            let middle = (0.1 + 0.9 * (f64::from(j) + 0.5) / f64::from(k)) * 10f64.powi(i - 6);
            values.extend(if signed { vec![middle, -middle] } else { vec![middle] });
        }
    }
    values.sort_by(f64::total_cmp);
    values
}

/// 64-bit FNV-1a over the little-endian patterns.
fn checksum(book: &Codebook) -> u64 {
    let bytes = book.values.iter().flat_map(|v| v.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn books_are_those_of_bitsandbytes() {
    for (book, signed, sum) in [(&*SIGNED, true, SIGNED_SUM), (&*UNSIGNED, false, UNSIGNED_SUM)] {
        assert_eq!(checksum(book), sum, "signed: {signed}");
        for (got, want) in book.values.iter().zip(formula(signed)) {
            // Their generator rounds in f32 what the formula keeps in f64: two units in the last place at most.
            assert!(
                (f64::from(*got) - want).abs() <= 2.0 * want.abs() * f64::from(f32::EPSILON),
                "{got} {want}"
            );
        }
        assert!(book.values.is_sorted());
        assert_eq!(book.values[255], 1.0);
    }
    assert_eq!((SIGNED.values[127], UNSIGNED.values[0]), (0.0, 0.0));
    assert!(SIGNED.values[0] > -1.0, "the signed book has no -1.0");
}

#[test]
fn quantiser_finds_the_nearest_value_everywhere() {
    for book in [&*SIGNED, &*UNSIGNED] {
        for (i, &value) in book.values.iter().enumerate() {
            assert_eq!(usize::from(quantise(book, value)), i, "a value is its own code");
            check(book, value);
        }
        for pair in book.values.windows(2) {
            check(book, f64::midpoint(f64::from(pair[0]), f64::from(pair[1])) as f32);
        }
        // Both signs of: zero, denormals, powers of two, and a sweep of bit patterns up to 1.0.
        let sweep = (0..=0x3f80_0000).step_by(4_001);
        for bits in sweep.chain(0..64).chain((0..=127).map(|e| e << 23)).chain([0x007f_ffff]) {
            check(book, f32::from_bits(bits));
            check(book, -f32::from_bits(bits));
        }
    }
}

#[test]
fn ties_go_to_the_even_code() {
    let mut ties = 0;
    for (book, first) in [(&*SIGNED, 127), (&*UNSIGNED, 0)] {
        for i in first..255 {
            let middle = f64::midpoint(f64::from(book.values[i]), f64::from(book.values[i + 1]));
            if f64::from(middle as f32) == middle {
                ties += 1;
                assert_eq!(quantise(book, middle as f32) % 2, 0, "between {i} and {}", i + 1);
            }
        }
    }
    assert!(ties > 100, "the books have exact midpoints: {ties}");
}

#[test]
fn sign_is_kept_down_to_the_smallest_denormal() {
    let tiny = f32::from_bits(1);
    assert_eq!((quantise(&SIGNED, -tiny), quantise(&SIGNED, tiny)), (126, 127));
    assert_eq!((quantise(&SIGNED, -0.0), quantise(&SIGNED, 0.0)), (127, 127));
    assert_eq!(quantise(&SIGNED, -1.0), 0);
    assert_eq!((quantise(&SIGNED, 1.0), quantise(&UNSIGNED, 1.0)), (255, 255));
    assert_eq!((quantise(&UNSIGNED, 0.0), quantise(&UNSIGNED, tiny)), (0, 0));
}

/// A step with such values is skipped before it gets here; the look-up must stay in bounds all the same.
#[test]
fn anything_else_returns() {
    for x in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1.5, -1.5] {
        let _ = (quantise(&SIGNED, x), quantise(&UNSIGNED, x));
    }
    let (x, mut codes) = ([f32::NAN; 3], [0; 3]);
    SIGNED.quantise_block::<SIGNED_SHIFT>(&x, f32::INFINITY, &mut codes);
    UNSIGNED.quantise_block::<UNSIGNED_SHIFT>(&x, f32::NAN, &mut codes);
}

#[test]
fn a_block_is_quantised_element_by_element() {
    for n in [1, 7, 255, 256] {
        for scale in [1.0, 3.7e-5, 1e-40, 0.0] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin().powi(5) * scale).collect();
            let absmax = x.iter().fold(0f32, |a, x| a.max(x.abs()));
            let mut codes = vec![99; n];
            SIGNED.quantise_block::<SIGNED_SHIFT>(&x, absmax, &mut codes);
            for (x, code) in x.iter().zip(codes) {
                let want = if absmax == 0.0 { 127 } else { nearest(&SIGNED, x / absmax) };
                assert_eq!(code, want, "{x} of {absmax}");
            }
        }
    }
    let mut codes = [99; 5];
    UNSIGNED.quantise_block::<UNSIGNED_SHIFT>(&[0.0; 5], 0.0, &mut codes);
    assert_eq!(codes, [0; 5]);
}
