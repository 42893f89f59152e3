"""Matrix products in float64 with weights in their own dtype, of which a few columns at a time are widened.

Used by `kernels` only. The weights of a large linear layer are most of a model; as float64 they would be held twice
more.
"""

import numpy as np

from .protos import Values, widened

_COLUMNS = 2**20  # numbers of a matrix that are widened at a time: 8 MB


def product(a: Values, b: Values) -> Values:
    """Return `a @ b`, in float64 where one of them is.

    Args:
        a: (..., M, K), numbers.
        b: (..., K, N), of the same dtype, or one of both of float64.
    """
    if a.dtype == b.dtype:
        return np.asarray(np.matmul(a, b))
    if a.dtype == np.float64 and b.ndim == 2 and a.ndim > 1:
        return _with_wide_columns(a, b)
    if b.dtype == np.float64 and a.ndim == b.ndim == 2:
        return _with_wide_columns(b.T, a.T).T
    return np.asarray(np.matmul(widened(a), widened(b)))


def _with_wide_columns(a: Values, b: Values) -> Values:
    result, step = np.empty((*a.shape[:-1], b.shape[1])), max(_COLUMNS // max(b.shape[0], 1), 1)
    for at in range(0, b.shape[1], step):
        np.matmul(a, widened(b[:, at : at + step]), out=result[..., at : at + step])
    return result
