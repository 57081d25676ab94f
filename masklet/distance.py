"""Exact Euclidean distances between pixels, whose centres are one apart."""

from math import isqrt

import numpy as np
from numpy.typing import NDArray


def within(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Pixels whose distance from a set pixel is at most `radius`: dilation by a disc.

    mask: (H, W) bool; returns (H, W) bool.
    """
    height, _ = mask.shape
    gaps = _row_gaps(mask)
    near = np.zeros_like(mask)
    for down in range(-min(radius, height - 1), min(radius, height - 1) + 1):
        reached = gaps <= isqrt(radius**2 - down**2)
        if down >= 0:
            near[down:] |= reached[: height - down]
        else:
            near[:down] |= reached[-down:]
    return near


def squared_depth(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Squared distance of every set pixel from the nearest pixel outside, and 0 elsewhere.

    What lies beyond the picture is outside. mask: (H, W) bool; returns (H, W) int64.
    """
    outside = np.pad(~mask, 1, constant_values=True)
    columns = _row_gaps(outside.T).T ** 2
    nearest = columns.copy()
    along = 1
    # A pixel of a column this far away is no nearer than the column itself.
    while along**2 < nearest.max():
        np.minimum(nearest[:, along:], columns[:, :-along] + along**2, out=nearest[:, along:])
        np.minimum(nearest[:, :-along], columns[:, along:] + along**2, out=nearest[:, :-along])
        along += 1
    return nearest[1:-1, 1:-1]


def _row_gaps(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Distance of every pixel from the nearest set one in its row; more than W + H without any."""
    far = 2 * sum(mask.shape)
    x = np.arange(mask.shape[1])
    left = np.maximum.accumulate(np.where(mask, x, -far), axis=1)
    right = np.minimum.accumulate(np.where(mask, x, far + len(x))[:, ::-1], axis=1)[:, ::-1]
    return np.minimum(x - left, right - x)
