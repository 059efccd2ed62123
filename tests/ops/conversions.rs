//! The rounding that every store goes through, over all values of the narrow types.

use half::{bf16, f16};
use smolten::dtype::Element;

/// What lies between two neighbours goes to the nearer one, and their middle to the even one; both signs.
fn check<E: Element>(from_bits: fn(u16) -> E, largest: u16) {
    for bits in 0..largest {
        let (a, b) = (from_bits(bits).to_f32(), from_bits(bits + 1).to_f32());
        let middle = a / 2.0 + b / 2.0;
        let even = if bits % 2 == 0 { a } else { b };
        assert_eq!(E::from_f32(middle).to_f32(), even);
        assert_eq!(E::from_f32(-middle).to_f32(), -even);
        assert_eq!(E::from_f32(middle.next_down()).to_f32(), a);
        assert_eq!(E::from_f32(middle.next_up()).to_f32(), b);
    }
    assert!(E::from_f32(f32::MAX).to_f32().is_infinite() && E::from_f32(f32::NAN).to_f32().is_nan());
}

#[test]
fn stores_round_to_nearest_even() {
    check(bf16::from_bits, 0x7f7f);
    check(f16::from_bits, 0x7bff);
}
