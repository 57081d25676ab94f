"""What a person would click, read off the truth, so that a change of the scene keeps it right."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo.scene import BALL, BALLOON, BLIMP, KITE, PUMPKIN, label
from masklet.job import ObjectId

Mask = NDArray[np.bool_]

MOSTLY_SEEN = 0.7
"""Share of its largest visible area from which on a person would click an object that enters."""

PARTLY_SEEN = 0.3
"""Where the blimp is clicked once more: from one frame alone nano loses it on its way in."""


def prompts(labels: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """The clicks and boxes of the demo job, one of each kind, for the labels of all frames.

    The kite has none: it is given as a mask, see `mask_prompts`.
    """
    returns = first_seen_again(labels, BALL, MOSTLY_SEEN)
    entered = first_seen_again(labels, BLIMP, MOSTLY_SEEN)
    enters = first_seen_again(labels, BLIMP, PARTLY_SEEN)

    def prompt(frame_index: int, object_id: ObjectId, **fields: Any) -> dict[str, Any]:
        return {"frame_index": frame_index, "object_id": object_id, **fields}

    def clicked(frame_index: int, object_id: ObjectId, count: int) -> list[list[int]]:
        return clicks(labels[frame_index] == label(object_id), count)

    ball_and_neighbour = clicked(0, BALL, 2) + clicked(0, PUMPKIN, 1)
    return [
        prompt(0, BALLOON, box=box(labels[0] == label(BALLOON))),
        prompt(0, BALL, points=ball_and_neighbour, labels=[1, 1, 0]),
        prompt(
            0,
            PUMPKIN,
            points=clicked(0, PUMPKIN, 1),
            labels=[1],
            box=box(labels[0] == label(PUMPKIN)),
        ),
        prompt(returns, BALL, points=clicked(returns, BALL, 2), labels=[1, 1]),
        prompt(entered, BLIMP, points=clicked(entered, BLIMP, 3), labels=[1, 1, 1]),
        prompt(enters, BLIMP, points=clicked(enters, BLIMP, 2), labels=[1, 1]),
    ]


def mask_prompts(labels: Sequence[NDArray[np.uint8]]) -> dict[tuple[int, ObjectId], Mask]:
    """The masks of the demo job by frame and object, each (H, W) bool."""
    return {(0, KITE): labels[0] == label(KITE)}


def first_seen_again(labels: Sequence[NDArray[np.uint8]], object_id: ObjectId, share: float) -> int:
    """The first frame, after the last one without the object, on which enough of it is seen.

    share: of its largest visible area.
    """
    areas = np.array([np.count_nonzero(frame == label(object_id)) for frame in labels])
    absent = np.flatnonzero(areas == 0)
    enough = np.flatnonzero(areas >= share * areas.max())
    return int(enough[enough > absent.max(initial=-1)][0])


def box(mask: Mask) -> list[int]:
    """[x_min, y_min, x_max, y_max] of the set pixels of (H, W) bool, both edges inclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])]


def clicks(mask: Mask, count: int) -> list[list[int]]:
    """`count` points [x, y] well inside of a mask: its deepest pixel, then far from each other."""
    depth = _depth(mask)
    rows, columns = np.nonzero(depth >= depth.max() / 2)
    chosen = [int(np.argmax(depth[rows, columns]))]
    while len(chosen) < count:
        down, across = rows[:, None] - rows[chosen], columns[:, None] - columns[chosen]
        chosen.append(int(np.argmax(np.hypot(down, across).min(axis=1))))
    return [[int(columns[i]), int(rows[i])] for i in chosen]


def _depth(mask: Mask) -> NDArray[np.intp]:
    """Steps to the outside of each set pixel, sideways or up and down; the frame's edge is out."""
    depth = np.zeros(mask.shape, np.intp)
    inner = np.pad(mask, 1)
    while inner.any():
        depth += inner[1:-1, 1:-1]
        core = inner[1:-1, 1:-1] & inner[:-2, 1:-1] & inner[2:, 1:-1]
        inner[1:-1, 1:-1] = core & inner[1:-1, :-2] & inner[1:-1, 2:]
    return depth
