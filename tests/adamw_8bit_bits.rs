//! Five steps of blockwise 8-bit AdamW against an independent implementation in NumPy, in every bit.
//!
//! tests/fixtures/make_adamw_8bit.py wrote the fixture and checked each step against the formulas in float64.

mod common;

use common::engine::Fixture;
use smolten::ops::adamw::{AdamWConfig, AdamWScalars, Weight};
use smolten::ops::adamw_8bit::{self, BLOCK, State, ZERO_CODE_M};
use smolten::ops::codebook::{SIGNED, UNSIGNED};

fn fixture() -> Fixture {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/adamw_8bit.safetensors");
    Fixture::open(path.as_ref())
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn the_code_books() {
    let fixture = fixture();
    assert_eq!(bits(&SIGNED.values), bits(&fixture.f32("book.signed")));
    assert_eq!(bits(&UNSIGNED.values), bits(&fixture.f32("book.unsigned")));
}

#[test]
fn weights_codes_and_magnitudes() {
    let f = fixture();
    let (mut p, g, lr, clip) = (f.f32("p0"), f.f32("g"), f.f64("lr"), f.f32("clip"));
    let (n, mut plain) = (p.len(), p.clone());
    let blocks = n.div_ceil(BLOCK);
    let (mut m_codes, mut v_codes) = (vec![ZERO_CODE_M; n], vec![0; n]);
    let (mut m_absmax, mut v_absmax) = (vec![0.0; blocks], vec![0.0; blocks]);
    let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
    for step in 0..lr.len() {
        let config = AdamWConfig { lr: lr[step], beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let scalars = AdamWScalars::adamw_8bit(&config, step as u64 + 1);
        let g = &g[step * n..][..n];
        let state = State {
            m_codes: &mut m_codes,
            m_absmax: &mut m_absmax,
            v_codes: &mut v_codes,
            v_absmax: &mut v_absmax,
        };
        adamw_8bit::update(&scalars, clip[step], true, Weight::only(&mut p), g, state).unwrap();
        adamw_8bit::update_fp32_state(
            &scalars,
            clip[step],
            true,
            Weight::only(&mut plain),
            g,
            &mut m,
            &mut v,
        )
        .unwrap();
        let floats = |name: &str, len: usize| bits(&f.f32(name)[step * len..][..len]);
        assert_eq!(bits(&p), floats("p", n), "weights, step {step}");
        assert_eq!(bits(&plain), floats("plain.p", n), "weights with fp32 state, step {step}");
        assert_eq!(bits(&m_absmax), floats("m_absmax", blocks), "first moment, step {step}");
        assert_eq!(bits(&v_absmax), floats("v_absmax", blocks), "second moment, step {step}");
        assert_eq!(m_codes, f.u8("m_codes")[step * n..][..n], "codes of the first moment, step {step}");
        assert_eq!(v_codes, f.u8("v_codes")[step * n..][..n], "codes of the second moment, step {step}");
    }
}
