"""Numbers that carry a bound on the error of their computation in f32, in any order of summation.

Constants are PTX's: round to nearest errs by at most U, `ex2.approx`, `div.full` and `sqrt.approx` by at most 4 U.
"""

import numpy as np

U = 2.0**-24
APPROXIMATE = 4 * U
# Results below it are flushed to zero, or are subnormal.
SMALLEST = 2.0**-126


class Real:
    """Exact values, and how far the computed ones may be from them."""

    __array_priority__ = 1

    def __init__(self, value, bound=0.0):
        self.value = np.asarray(value, np.float64)
        self.bound = np.broadcast_to(np.asarray(bound, np.float64), self.value.shape)

    def rounded(self, relative=U, smallest=SMALLEST):
        return Real(self.value, self.bound + relative * (abs(self.value) + self.bound) + smallest)

    def __getitem__(self, at):
        return Real(self.value[at], self.bound[at])

    def __add__(self, other):
        other = real(other)
        return Real(self.value + other.value, self.bound + other.bound).rounded()

    def __sub__(self, other):
        other = real(other)
        return Real(self.value - other.value, self.bound + other.bound).rounded()

    def __mul__(self, other):
        other = real(other)
        bound = abs(self.value) * other.bound + abs(other.value) * self.bound + self.bound * other.bound
        return Real(self.value * other.value, bound).rounded()

    def __truediv__(self, other):
        other = real(other)
        smallest = abs(other.value) - other.bound
        assert np.all(smallest > 0)
        value = self.value / other.value
        return Real(value, (self.bound + abs(value) * other.bound) / smallest).rounded(APPROXIMATE)

    def sum(self, axis):
        """Of n terms in any order: n - 1 roundings of partial sums, none larger than the sum of magnitudes."""
        error = (self.value.shape[axis] - 1) * U
        bound = self.bound.sum(axis, keepdims=True)
        magnitude = abs(self.value).sum(axis, keepdims=True) + bound
        return Real(self.value.sum(axis, keepdims=True), bound + error / (1 - error) * magnitude + SMALLEST)

    def sqrt(self):
        value = np.sqrt(self.value)
        return Real(value, value - np.sqrt(self.value - self.bound)).rounded(APPROXIMATE)

    def exp2(self):
        value = np.exp2(self.value)
        return Real(value, value * np.expm1(np.log(2) * self.bound)).rounded(APPROXIMATE)

    def exp(self):
        """As a power of 2: log2(e) is rounded, too."""
        return (self * Real(np.log2(np.e)).rounded()).exp2()

    def dot(self, other, step, more=0):
        """A matrix product of tensor cores, that sum `step` products and the accumulator at once: each of these terms
        is cut at 2^-24 of the largest, the sum at 2^-23. `more` are roundings of the accumulator besides."""
        other = real(other)
        a, b = abs(self.value), abs(other.value)
        steps = -(-self.value.shape[-1] // step)
        error = (steps * (step + 1 + 2) + more) * U
        bound = a @ other.bound + self.bound @ (b + other.bound)
        return Real(self.value @ other.value, bound + error / (1 - error) * (a @ b + bound) + SMALLEST)

    def check(self, got, name):
        """Every number within its bound, and the bounds worth something."""
        assert got.shape == self.value.shape, name
        difference = abs(got.astype(np.float64) - self.value)
        outside = ~(np.isfinite(difference) & (difference <= self.bound))
        if outside.any():
            at = np.unravel_index(np.argmax(outside), outside.shape)
            raise AssertionError(f"{name}: {np.count_nonzero(outside)} of {outside.size} are outside of their bounds; "
                                 f"{at}: {got[at]}, not {self.value[at]} ± {self.bound[at]:.3g}")
        assert self.bound.mean() < 0.1 * abs(self.value).mean(), f"{name}: bounds that say nothing"


def real(value):
    return value if isinstance(value, Real) else Real(value)
