//! Rotation and SwiGLU fused into the products of linear layers, on whole numbers: the products are exact, so the bounds
//! count what comes after them.

use super::linear::{unsplit, versions};
use super::{bits, common, open, params, read, set_params, widen, write};
use half::{bf16, f16};
use smolten::arena::{Category, Plan, Tensor};
use smolten::cuda::{Cuda, Rung};
use smolten::dtype::{DType, Element};
use smolten::error::Error;
use smolten::ops::attention::Heads;
use smolten::ops::linear::{Operand, Projection};
use smolten::ops::linear_launch::{self, Rotation};
use smolten::ops::tile::Level;
use smolten::ops::{linear, rope, swiglu};

/// Rows planned and in use, inputs, F or rows of W beyond it.
const SHAPES: [[usize; 4]; 5] =
    [[1, 1, 8, 8], [5, 3, 64, 24], [131, 130, 72, 136], [129, 128, 40, 64], [3, 0, 16, 16]];

/// Roundings of f32 between the exact sums and the store, on both sides: exp (a few units in the last place), a sum, a
/// division, up to five products.
const FEW: f32 = 2.0 * 12.0 * common::U_F32;

fn whole<E: Element>(n: usize, seed: u64, most: f32) -> Vec<E> {
    let value = |x: f32| E::from_f32((x * (most + 0.5)).trunc());
    common::uniform(n, seed).into_iter().map(value).collect()
}

/// Uploads `values` in front of rows of NaN.
fn write_rows<E: Element>(cuda: &mut Cuda, t: Tensor, values: &[E]) {
    let mut all = vec![E::from_f32(f32::NAN); t.len()];
    all[..values.len()].copy_from_slice(values);
    write(cuda, t, &all);
}

/// The rows in use; checks that the others are as they were.
fn read_rows<E: Element>(cuda: &Cuda, t: Tensor, rows: usize) -> Vec<f32> {
    let all = widen(&read::<E>(cuda, t));
    assert!(all[rows * t.cols..].iter().all(|x| x.is_nan()), "a row that is not in use was written");
    all[..rows * t.cols].to_vec()
}

fn tokens(cuda: &mut Cuda, t: usize) {
    set_params(cuda, &params(u32::try_from(t).unwrap(), bytemuck::Zeroable::zeroed()));
}

/// Elementwise `|got - want| <= rtol*|want| + atol[i]`.
fn close(name: &str, got: &[f32], want: &[f32], rtol: f32, atol: impl Fn(usize) -> f32) {
    assert_eq!(got.len(), want.len(), "{name}: length");
    for i in 0..want.len() {
        let (got, want) = (got[i], want[i]);
        assert!(common::close(got, want, rtol, atol(i)), "{name} [{i}]: got {got}, want {want}");
    }
}

fn swiglu_matches<E: Operand>(unit: f32) {
    let narrow = if E::DTYPE == DType::F32 { 0.0 } else { 2.0 * unit };
    for [rows, t, inputs, f] in SHAPES {
        let mut plan = Plan::default();
        let mut of = |rows, cols| plan.tensor(Category::Activations, rows, cols, E::DTYPE);
        let (x, w, gate_up, act) = (of(rows, inputs), of(2 * f, inputs), of(rows, 2 * f), of(rows, f));
        let (dy, down, dgate_up) = (of(rows, inputs), of(inputs, f), of(rows, 2 * f));
        let bias = of(1, 2 * f);
        let mut cuda = open(&plan, E::DTYPE);
        let (x_host, w_host) = (whole::<E>(t * inputs, 1, 1.0), whole::<E>(2 * f * inputs, 2, 1.0));
        let (dy_host, down_host) = (whole::<E>(t * inputs, 3, 2.0), whole::<E>(inputs * f, 4, 2.0));
        let zeros = |n| vec![E::from_f32(0.0); n];
        let (mut gate_up_want, mut act_want) = (zeros(2 * t * f), zeros(t * f));
        let bias_host = whole::<E>(2 * f, 5, 2.0);
        let (bias_wide, level) = (widen(&bias_host), Level::best());
        linear::forward(
            level,
            &x_host,
            linear::Weight::Plain(&w_host),
            Some(&bias_wide),
            &mut gate_up_want,
            inputs,
        );
        swiglu::forward(&gate_up_want, &mut act_want, f);
        let (mut dact, mut again, mut dgate_up_want) = (zeros(t * f), zeros(t * f), zeros(2 * t * f));
        linear::input_gradient(level, &dy_host, &down_host, None, &mut dact, f);
        swiglu::backward(&gate_up_want, &dact, &mut again, &mut dgate_up_want, f);
        let mut of_tiles = Vec::new();
        for (rung, tile) in versions(E::DTYPE) {
            let name =
                |what| format!("{what} of {rows} {t} {inputs} {f}, {:?}, {rung:?}, {tile:?}", E::DTYPE);
            tokens(&mut cuda, t);
            write_rows(&mut cuda, x, &x_host);
            write_rows(&mut cuda, dy, &dy_host);
            write(&mut cuda, w, &w_host);
            write(&mut cuda, down, &down_host);
            write(&mut cuda, bias, &bias_host);
            [gate_up, act, dgate_up].into_iter().for_each(|t| write_rows::<E>(&mut cuda, t, &[]));
            cuda.cut = None; // the forward product has only the largest
            let projection = Projection { w, bias: Some(bias), adapter: None };
            linear_launch::linear_swiglu(&cuda, rung, x, projection, gate_up, act).unwrap();
            assert!(read_rows::<E>(&cuda, gate_up, t) == widen(&gate_up_want), "{}", name("gate_up"));
            close(&name("act"), &read_rows::<E>(&cuda, act, t), &widen(&act_want), FEW + narrow, |_| 0.0);
            write_rows::<E>(&mut cuda, act, &[]);
            cuda.cut = tile.map(unsplit);
            linear_launch::swiglu_backward(&cuda, rung, dy, down, gate_up, Some(act), dgate_up).unwrap();
            close(&name("act again"), &read_rows::<E>(&cuda, act, t), &widen(&again), FEW + narrow, |_| 0.0);
            // s + silu(1 - s) cancels near its root: its error is relative to the larger of its terms, at most 1.3.
            let size = |i: usize| {
                let (row, column) = (i / (2 * f), i % f);
                let up = gate_up_want[row * 2 * f + f + column].to_f32();
                1.3 * FEW * (dact[row * f + column].to_f32() * up).abs()
            };
            let got = read_rows::<E>(&cuda, dgate_up, t);
            close(&name("dgate_up"), &got, &widen(&dgate_up_want), FEW + narrow, size);
            if tile.is_some() {
                of_tiles.push([bits(&got), bits(&read_rows::<E>(&cuda, act, t))]);
            }
            let all = |cuda: &Cuda, t| bits(&widen(&read::<E>(cuda, t)));
            let (with, before) = (all(&cuda, dgate_up), all(&cuda, act));
            write_rows::<E>(&mut cuda, dgate_up, &[]);
            linear_launch::swiglu_backward(&cuda, rung, dy, down, gate_up, None, dgate_up).unwrap();
            assert!(all(&cuda, act) == before, "{}", name("act that was kept"));
            assert!(all(&cuda, dgate_up) == with, "{}", name("dgate_up without act"));
        }
        assert!(of_tiles.windows(2).all(|w| w[0] == w[1]), "{rows} {t} {inputs} {f}: tiles differ");
    }
}

fn rope_matches<E: Element>(unit: f32) {
    let narrow = if E::DTYPE == DType::F32 { 0.0 } else { 2.0 * unit };
    for (heads, kv_heads, head_dim) in [(9, 3, 64), (2, 1, 32), (3, 1, 16)] {
        let heads = Heads { heads, kv_heads, head_dim };
        let (rows, t, inputs, width, half) = (131, 130, 72, heads.qkv_width(), head_dim / 2);
        let mut plan = Plan::default();
        let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
        let (x, w, qkv) =
            (of(rows, inputs, E::DTYPE), of(width, inputs, E::DTYPE), of(rows, width, E::DTYPE));
        let (bias, positions) = (of(1, width, E::DTYPE), of(1, rows, DType::U32));
        let (cos, sin) = (of(50, half, DType::F32), of(50, half, DType::F32));
        let mut cuda = open(&plan, E::DTYPE);
        let (x_host, w_host) = (whole::<E>(t * inputs, 1, 4.0), whole::<E>(width * inputs, 2, 4.0));
        let at: Vec<u32> = (0..).map(|i| i * 7 % 50).take(rows).collect();
        let frequencies: Vec<f64> = (0..half).map(|i| 1.0 / (1 + i) as f64).collect();
        let (cos_host, sin_host) = rope::table(&frequencies, 50);
        let mut product = vec![0.0f32; t * width];
        let bias_host = whole::<E>(width, 3, 4.0);
        let (x_wide, w_wide, bias_wide) = (widen(&x_host), widen(&w_host), widen(&bias_host));
        linear::forward::<f32>(
            Level::best(),
            &x_wide,
            linear::Weight::Plain(&w_wide),
            Some(&bias_wide),
            &mut product,
            inputs,
        );
        let mut want = product.clone();
        let table = rope::Table { cos: &cos_host, sin: &sin_host };
        rope::rotate(&mut want, heads, &at[..t], table, rope::Turn::Forward);
        let want: Vec<f32> = want.into_iter().map(|x| E::from_f32(x).to_f32()).collect();
        let mut of_tiles = Vec::new();
        for (rung, tile) in versions(E::DTYPE) {
            cuda.cut = tile.map(unsplit);
            tokens(&mut cuda, t);
            write_rows(&mut cuda, x, &x_host);
            write(&mut cuda, w, &w_host);
            write(&mut cuda, bias, &bias_host);
            write(&mut cuda, positions, &at);
            write(&mut cuda, cos, &cos_host);
            write(&mut cuda, sin, &sin_host);
            write_rows::<E>(&mut cuda, qkv, &[]);
            let rotation = Rotation { heads, positions, cos, sin };
            let projection = Projection { w, bias: Some(bias), adapter: None };
            linear_launch::linear_rope(&cuda, rung, rotation, x, projection, qkv).unwrap();
            // Two products and a sum, fused or not; a column and its partner differ by half a head.
            let size = |i: usize| {
                let partner = if i % head_dim < half { i + half } else { i - half };
                4.0 * common::U_F32 * (product[i].abs() + product[partner].abs()) * (1.0 + unit)
            };
            let got = read_rows::<E>(&cuda, qkv, t);
            close(&format!("{heads:?}, {:?}, {rung:?}, {tile:?}", E::DTYPE), &got, &want, narrow, size);
            let turned = (heads.heads + kv_heads) * head_dim;
            let values = (0..t * width).filter(|i| i % width >= turned);
            assert!(values.into_iter().all(|i| got[i] == want[i]), "values are not rotated");
            if tile.is_some() {
                of_tiles.push(bits(&got));
            }
        }
        assert!(of_tiles.windows(2).all(|w| w[0] == w[1]), "{heads:?}, {:?}: tiles differ", E::DTYPE);
    }
}

#[test]
fn swiglu_and_its_gradient() {
    swiglu_matches::<f32>(common::U_F32);
    swiglu_matches::<bf16>(common::U_BF16);
    swiglu_matches::<f16>(common::U_F16);
}

#[test]
fn rotated_queries_and_keys() {
    rope_matches::<f32>(common::U_F32);
    rope_matches::<bf16>(common::U_BF16);
    rope_matches::<f16>(common::U_F16);
}

#[test]
fn other_widths_of_heads_are_refused() {
    let heads = Heads { heads: 1, kv_heads: 1, head_dim: 128 };
    let mut plan = Plan::default();
    let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
    let (x, w, qkv) = (of(4, 8, DType::F16), of(384, 8, DType::F16), of(4, 384, DType::F16));
    let (positions, cos, sin) = (of(1, 4, DType::U32), of(4, 64, DType::F32), of(4, 64, DType::F32));
    let cuda = open(&plan, DType::F16);
    let rotation = Rotation { heads, positions, cos, sin };
    let refused = linear_launch::linear_rope(&cuda, Rung::Production, rotation, x, w, qkv);
    assert!(matches!(refused, Err(Error::Unsupported { dim: "head_dim", .. })), "{refused:?}");
}
