//! Products with a bias.

use super::*;

impl Cpu {
    /// The bias of a projection, widened; its shape checked.
    pub(super) fn bias(&self, op: &'static str, of: Projection) -> Result<Option<Vec<f32>>> {
        let Some(bias) = of.bias else { return Ok(None) };
        bias.expect(op, "bias", [1, of.w.rows])?;
        Ok(Some(with_element!(bias.dtype, E => convert::widen(self.memory.get::<E>(bias)).to_vec())))
    }

    /// `y = x·wᵀ + bias`, rounded once.
    pub(super) fn affine(&mut self, op: &'static str, x: Tensor, w: Projection, y: Tensor) -> Result<()> {
        let bias = self.bias(op, w)?;
        let (w, x, y) = (w.w, self.active(x), self.active(y));
        x.expect(op, "x", [y.rows, w.cols])?;
        y.expect(op, "y", [x.rows, w.rows])?;
        expect_dtype(op, y, x.dtype)?;
        let level = self.level;
        let ([input, weight], [output]) = self.memory.lend([x, w], [y]);
        with_element!(x.dtype, E => {
            let (x, bias) = (input.get::<E>(), bias.as_deref());
            linear::forward(level, x, Weight::of(weight), bias, output.get(), w.cols);
        });
        Ok(())
    }

    /// `y = residual + x·wᵀ + bias`.
    pub(super) fn residual(&mut self, x: Tensor, w: Projection, residual: Tensor, y: Tensor) -> Result<()> {
        let bias = self.bias("linear_residual", w)?;
        let (w, x, residual, y) = (w.w, self.active(x), self.active(residual), self.active(y));
        x.expect("linear_residual", "x", [y.rows, w.cols])?;
        residual.expect("linear_residual", "residual", [x.rows, w.rows])?;
        y.expect("linear_residual", "y", [x.rows, w.rows])?;
        let level = self.level;
        let ([input, weight, residual], [output]) = self.memory.lend([x, w, residual], [y]);
        with_element!(x.dtype, E => {
            let (x, bias) = (input.get::<E>(), bias.as_deref());
            linear::forward_residual(level, x, Weight::of(weight), bias, residual.get(), output.get(), w.cols);
        });
        Ok(())
    }
}
