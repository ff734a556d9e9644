"""Other libraries' least squares: functions `(matrix, rhs) -> x` of NumPy arrays."""

from __future__ import annotations

import math

import equinox as eqx
import lineax as lx
import numpy as np
from jaxtyping import Float

# Documented defaults, the tolerance set by the dial:
# https://docs.kidger.site/lineax/api/solvers/
lsmr = lx.LSMR(rtol=1e-6, atol=0.0, max_steps=2000)
normal_cg = lx.Normal(lx.CG(rtol=1e-6, atol=0.0, max_steps=2000))
normal_cholesky = lx.Normal(lx.Cholesky())
qr = lx.QR()
svd = lx.SVD()


class NumpyLstsq(eqx.Module):
    """`numpy.linalg.lstsq`: LAPACK's gelsd, by a singular value decomposition."""

    def __call__(
        self, matrix: Float[np.ndarray, "n d"], rhs: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, " d"]:
        return np.linalg.lstsq(matrix, rhs, rcond=None)[0]


class ClarksonWoodruff(eqx.Module):
    """`scipy.linalg.clarkson_woodruff_transform`, a CountSketch, and `lstsq` of the result."""

    oversampling: float = eqx.field(default=8.0, static=True)
    seed: int = 0

    def __call__(
        self, matrix: Float[np.ndarray, "n d"], rhs: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, " d"]:
        from scipy.linalg import clarkson_woodruff_transform

        rows = math.ceil(self.oversampling * matrix.shape[1])
        both = np.column_stack([matrix, rhs])
        small = clarkson_woodruff_transform(both, rows, rng=np.random.default_rng(self.seed))
        return np.linalg.lstsq(small[:, :-1], small[:, -1], rcond=None)[0]


numpy_lstsq = NumpyLstsq()
clarkson_woodruff = ClarksonWoodruff()
