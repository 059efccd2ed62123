//! Products with a weight, its bias and its adapter.

use super::*;
use crate::arena::Slice;
use crate::dtype::Element;
use crate::ops::linear::{Adapted, Narrow, Rotation, SwigluBuffers};
use crate::ops::product::Mask;

/// An adapter whose shapes were checked, with empty tensors to lend where there is none.
struct Adapter {
    left: Tensor,
    right: Tensor,
    mask: Option<Mask>,
}

impl Adapter {
    /// Of the tensors as they were lent.
    fn narrow<'a, E: Element>(&self, left: Slice<'a>, right: Slice<'a>) -> Option<Narrow<'a, E>> {
        let (rank, mask) = (self.left.cols, self.mask);
        (!self.left.is_empty()).then(|| Narrow { left: left.get(), right: right.get(), rank, mask })
    }
}

impl Cpu {
    /// The bias of a projection, widened; its shape checked.
    fn bias(&self, op: &'static str, of: Projection) -> Result<Option<Vec<f32>>> {
        let Some(bias) = of.bias else { return Ok(None) };
        bias.expect(op, "bias", [1, of.w.rows])?;
        Ok(Some(with_element!(bias.dtype, E => convert::widen(self.memory.get::<E>(bias)).to_vec())))
    }

    /// The adapter of a product with `x`, `[T, out]` of which is its left side; `right`: the shape of the other for a rank.
    fn adapter(
        &self,
        op: &'static str,
        of: Option<LowRank>,
        x: Tensor,
        right: impl Fn(usize) -> [usize; 2],
    ) -> Result<Adapter> {
        let Some(of) = of else {
            return Ok(Adapter { left: x.head(0), right: x.head(0), mask: None });
        };
        let (left, rank) = (self.active(of.left), of.left.cols);
        left.expect(op, "adapter's left side", [x.rows, rank.max(1)])?;
        of.right.expect(op, "adapter's right side", right(rank))?;
        expect_dtype(op, left, x.dtype)?;
        expect_dtype(op, of.right, x.dtype)?;
        let mask = of.dropout.map(|dropout| Mask { dropout, key: self.params.noise_key });
        Ok(Adapter { left, right: of.right, mask })
    }

    /// The adapter of a forward product with `x`.
    fn forward_adapter(&self, op: &'static str, of: Projection, x: Tensor) -> Result<Adapter> {
        if let Some(dropout) = of.adapter.and_then(|adapter| adapter.dropout) {
            let rule = "a mask of the adapter's sums in an input gradient only";
            return Err(Error::Unsupported { op, dim: "dropout", got: format!("{dropout:?}"), rule });
        }
        self.adapter(op, of.adapter, x, |rank| [of.w.rows, rank])
    }

    /// `y = adapter + x·wᵀ + bias`, rounded once.
    pub(super) fn affine(&mut self, op: &'static str, x: Tensor, of: Projection, y: Tensor) -> Result<()> {
        let (bias, w, x, y) = (self.bias(op, of)?, of.w, self.active(x), self.active(y));
        x.expect(op, "x", [y.rows, w.cols])?;
        y.expect(op, "y", [x.rows, w.rows])?;
        expect_dtype(op, y, x.dtype)?;
        let (level, adapter) = (self.level, self.forward_adapter(op, of, x)?);
        let ([input, weight, left, right], [output]) =
            self.memory.lend([x, w, adapter.left, adapter.right], [y]);
        with_element!(x.dtype, E => {
            let w = Adapted { w: Weight::of(weight), adapter: adapter.narrow::<E>(left, right) };
            linear::forward(level, input.get::<E>(), w, bias.as_deref(), output.get(), of.w.cols);
        });
        Ok(())
    }

    /// `y = residual + adapter + x·wᵀ + bias`.
    pub(super) fn residual(&mut self, x: Tensor, of: Projection, residual: Tensor, y: Tensor) -> Result<()> {
        let op = "linear_residual";
        let (bias, w) = (self.bias(op, of)?, of.w);
        let [x, residual, y] = [x, residual, y].map(|t| self.active(t));
        x.expect(op, "x", [y.rows, w.cols])?;
        residual.expect(op, "residual", [x.rows, w.rows])?;
        y.expect(op, "y", [x.rows, w.rows])?;
        let (level, adapter) = (self.level, self.forward_adapter(op, of, x)?);
        let ([input, weight, left, right, residual], [output]) =
            self.memory.lend([x, w, adapter.left, adapter.right, residual], [y]);
        with_element!(x.dtype, E => {
            let w = Adapted { w: Weight::of(weight), adapter: adapter.narrow::<E>(left, right) };
            let (x, bias) = (input.get::<E>(), bias.as_deref());
            linear::forward_residual(level, x, w, bias, residual.get(), output.get(), of.w.cols);
        });
        Ok(())
    }

    /// See [`Backend::linear_input_gradient`].
    pub(super) fn input_gradient(&mut self, dy: Tensor, of: Projection, dx: Tensor) -> Result<()> {
        let (op, w) = ("linear_input_gradient", of.w);
        let (dy, dx) = (self.active(dy), self.active(dx));
        dy.expect(op, "dy", [dx.rows, w.rows])?;
        dx.expect(op, "dx", [dy.rows, w.cols])?;
        let (level, adapter) = (self.level, self.adapter(op, of.adapter, dy, |rank| [rank, w.cols])?);
        let ([grad, weight, left, right], [out]) =
            self.memory.lend([dy, w, adapter.left, adapter.right], [dx]);
        with_element!(w.dtype, E => {
            let adapter = adapter.narrow::<E>(left, right);
            linear::input_gradient(level, grad.get(), weight.get(), adapter, out.get(), w.cols);
        });
        Ok(())
    }

    /// See [`Backend::linear_rope`].
    pub(super) fn rotated(
        &mut self,
        batch: &BatchBuffers,
        heads: Heads,
        rope: RopeTable,
        x: Tensor,
        of: Projection,
        qkv: Tensor,
    ) -> Result<()> {
        let op = "linear_rope";
        let (bias, w, x, qkv) = (self.bias(op, of)?, of.w, self.active(x), self.active(qkv));
        x.expect(op, "x", [qkv.rows, w.cols])?;
        qkv.expect(op, "qkv", [x.rows, heads.qkv_width()])?;
        w.expect(op, "w", [heads.qkv_width(), x.cols])?;
        let (level, adapter) = (self.level, self.forward_adapter(op, of, x)?);
        let positions = Self::list(batch.positions, self.params.tokens);
        let reads = [x, w, adapter.left, adapter.right, positions, rope.cos, rope.sin];
        let ([input, weight, left, right, positions, cos, sin], [out]) = self.memory.lend(reads, [qkv]);
        let table = rope::Table { cos: cos.get(), sin: sin.get() };
        let rotation = Rotation { heads, positions: positions.get(), table };
        with_element!(x.dtype, E => {
            let w = Adapted { w: Weight::of(weight), adapter: adapter.narrow::<E>(left, right) };
            let (x, bias) = (input.get::<E>(), bias.as_deref());
            linear::forward_rope(level, x, w, bias, rotation, out.get(), of.w.cols);
        });
        Ok(())
    }

    /// See [`Backend::linear_swiglu`].
    pub(super) fn gated(&mut self, x: Tensor, of: Projection, gate_up: Tensor, act: Tensor) -> Result<()> {
        let op = "linear_swiglu";
        let (bias, w) = (self.bias(op, of)?, of.w);
        let [x, gate_up, act] = [x, gate_up, act].map(|t| self.active(t));
        w.expect(op, "w", [gate_up.cols, x.cols])?;
        x.expect(op, "x", [act.rows, w.cols])?;
        gate_up.expect(op, "gate_up", [act.rows, 2 * act.cols])?;
        let (level, adapter) = (self.level, self.forward_adapter(op, of, x)?);
        let ([input, weight, left, right], [gate_up, output]) =
            self.memory.lend([x, w, adapter.left, adapter.right], [gate_up, act]);
        with_element!(act.dtype, E => {
            let w = Adapted { w: Weight::of(weight), adapter: adapter.narrow::<E>(left, right) };
            let (x, bias) = (input.get::<E>(), bias.as_deref());
            linear::forward_swiglu(level, x, w, bias, gate_up.get(), output.get(), of.w.cols);
        });
        Ok(())
    }

    /// See [`SwigluBackward`].
    pub(super) fn gated_backward(&mut self, args: &SwigluBackward) -> Result<()> {
        let (op, w, level) = ("linear_swiglu_backward", args.w, self.level);
        let [dy, gate_up] = [args.dy, args.gate_up].map(|t| self.active(t));
        let [act, dgate_up] = [args.act, args.dgate_up].map(|t| self.active(t));
        dy.expect(op, "dy", [act.rows, w.rows])?;
        w.expect(op, "w", [dy.cols, act.cols])?;
        gate_up.expect(op, "gate_up", [act.rows, 2 * act.cols])?;
        dgate_up.expect(op, "dgate_up", [act.rows, 2 * act.cols])?;
        let adapter = self.adapter(op, args.adapter, dy, |rank| [rank, w.cols])?;
        let ([grad, weight, left, right, gate_up], [act_out, dgate_up]) =
            self.memory.lend([dy, w, adapter.left, adapter.right, gate_up], [act, dgate_up]);
        with_element!(act.dtype, E => {
            let (gate_up, act_out, dgate_up) = (gate_up.get(), act_out.get(), dgate_up.get());
            let buffers = SwigluBuffers::<E> { gate_up, act: act_out, dgate_up };
            let adapter = adapter.narrow(left, right);
            linear::swiglu_backward(level, grad.get(), weight.get(), adapter, buffers, w.cols);
        });
        Ok(())
    }
}
