//! Linear layers, what is fused with them, and adapters.

use super::{Batch, Buffers, HEADS, HIDDEN, Launches, RANK, RUNG, SPLITS, WIDTH};
use crate::stated::Dims;
use smolten::arena::Tensor;
use smolten::backend::{Dropout, LowRank, Places, Projection};
use smolten::cuda::{Cuda, Tile};
use smolten::ops::linear_launch::{self as linear, Rotation, Rows};
use smolten::ops::{noise, places};

/// Of an adapter or none, dropping some of a gradient or nothing.
fn projection(b: &Buffers, w: Tensor, rank: usize, is_gradient: bool) -> Projection {
    let right = if is_gradient { b.right.head(w.cols).reshape(RANK, w.cols) } else { b.right.head(w.rows) };
    let adapter = LowRank { left: b.left, right, dropout: is_gradient.then(|| Dropout::new(0.5, 1)) };
    Projection { w, bias: None, adapter: (rank > 0).then_some(adapter) }
}

/// Linear layers and what is fused with them: those that come in one tile, then the others in each.
pub fn products(launches: &mut Launches, batch: &Batch, b: &Buffers) {
    let ([x, _], t, width) = (b.narrow, b.wide[0].rows, HEADS.qkv_width());
    let dims = |i, o| [("A", 2), ("T", t), ("I", i), ("O", o)];
    launches.cut(Tile::LARGEST, 1);
    launches.add(&[("linear", &dims(WIDTH, width))], |cuda| linear::linear(cuda, RUNG, x, b.w_qkv, b.qkv[0]));
    for rank in [0, RANK] {
        let dims = [&dims(WIDTH, 2 * HIDDEN)[..], &[("K", rank)]].concat();
        let w = projection(b, b.w_gate_up, rank, false);
        launches.add(&[("linear_swiglu", &dims)], |cuda| {
            linear::linear_swiglu(cuda, RUNG, x, w, b.gate_up[0], b.act[0])
        });
    }
    for tile in Tile::ALL {
        launches.cut(tile, 1);
        let Tile { rows, columns } = tile;
        let suffix = if tile == Tile::LARGEST { String::new() } else { format!("_{rows}x{columns}") };
        [0, RANK].into_iter().for_each(|rank| products_in_all_tiles(launches, batch, b, &suffix, rank));
        weight_gradients(launches, b, tile, &suffix);
    }
    launches.cut(Tile::LARGEST, 1);
}

fn products_in_all_tiles(launches: &mut Launches, batch: &Batch, b: &Buffers, suffix: &str, rank: usize) {
    let ([x, y], [wide, _], t, width) = (b.narrow, b.wide, b.wide[0].rows, HEADS.qkv_width());
    let dims = |i, o| [("A", 2), ("T", t), ("I", i), ("O", o), ("K", rank)];
    let name = |product: &str| format!("linear_{product}{suffix}");
    let turned = ("R", (HEADS.heads + HEADS.kv_heads) * HEADS.head_dim);
    let rotation = Rotation { heads: HEADS, positions: batch.positions, cos: b.rope[0], sin: b.rope[1] };
    let rope = [&dims(WIDTH, width)[..], &[turned]].concat();
    let [forward, gradient] = [false, true].map(|is_gradient| move |w| projection(b, w, rank, is_gradient));
    launches.add(&[(&name("rope"), &rope)], |cuda| {
        linear::linear_rope(cuda, RUNG, rotation, x, forward(b.w_qkv), b.qkv[0])
    });
    launches.add(&[(&name("residual"), &dims(HIDDEN, WIDTH))], |cuda| {
        linear::linear_residual(cuda, RUNG, b.act[0], forward(b.w_down), wide, wide)
    });
    launches.add(&[(&name("input_gradient"), &dims(WIDTH, 2 * HIDDEN))], |cuda| {
        linear::input_gradient(cuda, RUNG, Rows::Tokens, b.gate_up[0], gradient(b.w_gate_up), x)
    });
    let [before, after] = b.gate_up;
    launches.add(&[(&name("swiglu_backward"), &dims(HIDDEN, WIDTH))], |cuda| {
        linear::swiglu_backward(cuda, RUNG, y, gradient(b.w_down), before, Some(b.act[0]), after)
    });
}

/// What adapters need besides products, and noise.
pub fn adapters(launches: &mut Launches, batch: &Batch, b: &Buffers) {
    let ([x, y], [wide, _], t) = (b.narrow, b.wide, b.wide[0].rows);
    let dims: &Dims = &[("A", 2), ("T", t), ("N", WIDTH), ("C", WIDTH)];
    launches.add(&[("dropout", dims)], |cuda| noise::launch_dropout(cuda, RUNG, x, Dropout::new(0.5, 1), y));
    launches.add(&[("embedding_noise", dims)], |cuda| {
        noise::launch_embedding(cuda, RUNG, batch.cu_seqlens, 5.0, wide)
    });
    let narrow = b.gradient.head(1).reshape(WIDTH / 16, 16);
    let dims: &Dims = &[("A", 2), ("O", narrow.rows), ("r", narrow.cols)];
    let at = |wide: Tensor| Places { narrow, wide: wide.head(narrow.rows), column: 8, factor: 2.0 };
    launches.add(&[("spread", dims)], |cuda| places::launch_spread(cuda, at(b.right)));
    launches.add(&[("gather", dims)], |cuda| places::launch_gather(cuda, at(wide)));
}

/// Whole, and in parts.
fn weight_gradients(launches: &mut Launches, b: &Buffers, tile: Tile, suffix: &str) {
    let ([x, _], t, width) = (b.narrow, b.wide[0].rows, HEADS.qkv_width());
    let (name, adds) = (format!("linear_weight_gradient{suffix}"), launches.adds);
    let dims = |adds, parts| [("A", 2), ("T", t), ("I", WIDTH), ("O", width), ("G", adds), ("S", parts)];
    let steps = t.div_ceil(32);
    let parts = steps.div_ceil(steps.div_ceil(SPLITS));
    let run =
        |cuda: &Cuda| linear::weight_gradient(cuda, RUNG, Rows::Tokens, b.qkv[0], x, b.gradient.head(width));
    launches.add(&[(&name, &dims(adds, 1))], run);
    launches.cut(tile, u32::try_from(SPLITS).unwrap());
    launches.add(&[(&name, &dims(0, parts)), ("linear_weight_gradient_finish", &dims(adds, parts))], run);
}
