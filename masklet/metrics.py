"""How good a mask is: the measures of DAVIS.

The paper: Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object
Segmentation, CVPR 2016, section 4.
"""

from dataclasses import dataclass
from math import ceil, hypot

import numpy as np
from numpy.typing import NDArray

from masklet.distance import within

Mask = NDArray[np.bool_]

TOLERANCE = 0.008
"""How far apart two boundaries may be and still match, as a share of the picture's diagonal."""

RECALL_ABOVE = 0.5
"""A frame counts as found above this score."""


@dataclass(frozen=True)
class Statistics:
    """One measure over the frames of an object, or the mean of such statistics over objects.

    mean: 0..1. recall: share of the frames above RECALL_ABOVE. decay: mean of the first quarter of
    the frames less that of the last quarter, -1..1.
    """

    mean: float
    recall: float
    decay: float


def region_similarity(guess: Mask, truth: Mask) -> float:
    """J: the area that two masks share over the area that either covers, 0..1.

    guess, truth: (H, W) bool. Two empty masks agree: 1.
    """
    union = np.count_nonzero(guess | truth)
    return np.count_nonzero(guess & truth) / union if union else 1.0


def boundary_accuracy(guess: Mask, truth: Mask) -> float:
    """F: harmonic mean of the precision and the recall of the boundary pixels of `guess`, 0..1.

    guess, truth: (H, W) bool. A boundary pixel matches where the other boundary passes within
    ceil(TOLERANCE * diagonal) pixels: the dilation by a disc that takes the place of the paper's
    bipartite matching, there and in every evaluator since. Two masks without a boundary agree: 1.
    """
    if guess.shape != truth.shape:
        raise ValueError(f"the masks are {guess.shape} and {truth.shape}")
    radius = ceil(TOLERANCE * hypot(*guess.shape))
    window = _window(guess | truth)
    guessed, true = boundary(guess[window]), boundary(truth[window])
    guessed_length, true_length = np.count_nonzero(guessed), np.count_nonzero(true)
    if not guessed_length or not true_length:
        return float(guessed_length == true_length)
    precision = np.count_nonzero(guessed & within(true, radius)) / guessed_length
    recall = np.count_nonzero(true & within(guessed, radius)) / true_length
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def boundary(mask: Mask) -> Mask:
    """Pixels that differ from the one to the right, the one below, or the one below to the right.

    mask: (H, W) bool; returns (H, W) bool. The picture's own edge is no boundary.
    """
    edges = np.zeros_like(mask)
    edges[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edges[:-1] |= mask[:-1] ^ mask[1:]
    edges[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edges


def statistics(values: NDArray[np.float64]) -> Statistics:
    """Mean, recall and decay of one object's scores in the order of frames, (n,), n at least 1.

    Neighbouring quarters share the frame where they meet.
    """
    if not len(values):
        raise ValueError("no frame was scored")
    # half goes up, as elsewhere: round() would take the even neighbour
    ends = np.floor(np.linspace(0, len(values) - 1, 5) + 0.5).astype(int)
    first, last = values[: ends[1] + 1], values[ends[3] :]
    return Statistics(
        float(values.mean()),
        float((values > RECALL_ABOVE).mean()),
        float(first.mean() - last.mean()),
    )


def _window(mask: Mask) -> tuple[slice, slice]:
    """The rows and columns of the set pixels and one more on every side."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return slice(0), slice(0)
    return (
        slice(max(rows[0] - 1, 0), rows[-1] + 2),
        slice(max(columns[0] - 1, 0), columns[-1] + 2),
    )
