"""Sampling of prompts from ground-truth masks: clicks, boxes and corrections.

Points are in pixels of the square picture, as the predictor hands them to the prompt encoder;
labels are SAM's: 1 foreground, 0 background, 2 and 3 the two corners of a box.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Point = tuple[float, float]
Points = tuple[NDArray[np.float32], NDArray[np.int32]]
Rng = np.random.Generator


def innermost(mask: Mask) -> Point:
    """(x, y) of the pixel of `mask` that is farthest from its edge and from the frame's."""
    padded = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)
    row, col = np.unravel_index(int(np.argmax(distance)), distance.shape)
    return float(col - 1), float(row - 1)


def anywhere(rng: Rng, mask: Mask) -> Point:
    """(x, y) of a uniformly drawn pixel of `mask`; of any pixel if it is empty."""
    where = np.flatnonzero(mask)
    index = int(where[rng.integers(len(where))]) if len(where) else int(rng.integers(mask.size))
    return float(index % mask.shape[1]), float(index // mask.shape[1])


def click(rng: Rng, mask: Mask) -> Point:
    """What a person clicks: half the time about the middle, half the time anywhere inside."""
    return innermost(mask) if rng.random() < 0.5 else anywhere(rng, mask)


def box(mask: Mask, rng: Rng | None = None) -> tuple[Point, Point]:
    """The two corners of the box of `mask`; with `rng` each side is off by some 5 % of the box."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    sides = np.array([cols[0], rows[0], cols[-1], rows[-1]], np.float64)
    if rng is not None:
        extent = np.tile(sides[2:] - sides[:2] + 1, 2)
        sides += np.clip(rng.normal(0, 0.05, 4), -0.1, 0.1) * extent
    x0, y0, x1, y1 = np.clip(sides, 0, mask.shape[0] - 1)
    return (float(x0), float(y0)), (float(x1), float(y1))


def near(mask: Mask) -> Mask:
    """The background around `mask`, where people put negative clicks."""
    reach = max(3, int(0.3 * np.sqrt(mask.sum()))) | 1
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0
    return grown & ~mask


def sample(rng: Rng, masks: list[Mask], kind: str, count: int = 1) -> Points:
    """Prompts of one kind for B objects: coordinates float32 (B, P, 2), labels int32 (B, P).

    kind 'click' is one click, 'clicks' is `count` clicks of which the later ones may be negative,
    'box' is a box.
    """
    coords, labels = [], []
    for mask in masks:
        if kind == "box":
            coords.append(list(box(mask, rng)))
            labels.append([2, 3])
            continue
        signs = [1] + [int(rng.random() < 0.6) for _ in range(count - 1 if kind == "clicks" else 0)]
        around = near(mask) if 0 in signs else mask
        coords.append([click(rng, mask) if sign else anywhere(rng, around) for sign in signs])
        labels.append(signs)
    return np.array(coords, np.float32), np.array(labels, np.int32)


def correct(rng: Rng, predicted: list[Mask], masks: list[Mask], so_far: Points) -> Points:
    """`so_far` and one more click per object, inside the region where prediction and truth differ.

    As in SAM: positive on what was missed, negative on what was taken too much.
    """
    coords, labels = [], []
    for guess, mask in zip(predicted, masks, strict=True):
        wrong = guess != mask
        point = anywhere(rng, wrong) if wrong.any() else anywhere(rng, mask)
        coords.append(point)
        labels.append(int(mask[int(point[1]), int(point[0])]))
    more = np.array(coords, np.float32)[:, None], np.array(labels, np.int32)[:, None]
    return np.concatenate([so_far[0], more[0]], 1), np.concatenate([so_far[1], more[1]], 1)
