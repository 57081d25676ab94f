"""The demo clip as pictures with exact truth: who is where when, and who covers whom."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from demo import toys
from demo.landscape import DESIGN_HEIGHT, PAN, Array, landscape
from demo.toys import Pose, Toy
from masklet.job import ObjectId

BALLOON, BALL, PUMPKIN, KITE, BLIMP = 1, 2, 3, "kite", "blimp"
OBJECT_IDS: tuple[ObjectId, ...] = (BALLOON, BALL, PUMPKIN, KITE, BLIMP)

WIDTH, HEIGHT, FRAMES, FRAMES_PER_SECOND = 854, DESIGN_HEIGHT, 180, 30


@dataclass(frozen=True)
class Frame:
    """A rendered frame and its truth.

    `picture` is (H, W, 3) uint8. `labels` is (H, W) uint8: 0 where the background is seen,
    otherwise 1 + the position in OBJECT_IDS of the nearest object that covers half of the pixel
    or more. Shadows belong to the background.
    """

    frame_index: int
    picture: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def render(width: int = WIDTH, height: int = HEIGHT, frames: int = FRAMES) -> Iterator[Frame]:
    """Draw the clip; the same story in every size and number of frames, the same on every run."""
    layers = landscape(width, height)
    scale = height / DESIGN_HEIGHT
    lens = _vignette(width, height)
    for frame_index in range(frames):
        time = frame_index / (frames - 1)
        canvas = np.zeros((height, width, 3), np.float32)
        for layer in layers:
            layer.draw(canvas, scale * _pan(time))
        labels = np.zeros((height, width), np.uint8)
        for object_id, toy, pose, on_ground in _cast(time):
            pose = _scaled(pose, scale)
            if on_ground:
                _shadow(canvas, pose)
            labels[toys.draw(toy, pose, canvas)] = label(object_id)
        canvas *= lens
        yield Frame(frame_index, (canvas * 255 + 0.5).astype(np.uint8), labels)


def label(object_id: ObjectId) -> int:
    """The value of an object's pixels in a frame's labels."""
    return 1 + OBJECT_IDS.index(object_id)


def _cast(time: float) -> list[tuple[ObjectId, Toy, Pose, bool]]:
    """All objects at a time in 0..1, the farthest first, and which ones stand on the ground."""
    pan = _pan(time)
    ball_x = _keys(time, (0, 425), (0.6, 950), (1, 650))
    return [
        (
            BALLOON,
            toys.balloon(),
            Pose(
                _keys(time, (0, 215), (1, 285)),
                _keys(time, (0, 142), (0.5, 122), (1, 138)),
                half_axis=110,
                angle=0.06 * np.sin(7 * time),
                spin=0.9 * time,
            ),
            False,
        ),
        (
            BLIMP,
            toys.blimp(),
            Pose(
                _keys(time, (0.3, 975), (1, 655)),
                92 + 10 * np.sin(6 * time),
                half_axis=105,
                angle=-np.pi / 2 + 0.07 * np.sin(5 * time),
                spin=0.3 * np.sin(4 * time),
            ),
            False,
        ),
        (
            KITE,
            toys.kite(),
            Pose(
                _keys(time, (0, 540), (0.45, 300), (1, 470)),
                _keys(time, (0, 120), (0.3, 165), (0.6, 110), (1, 150)),
                half_axis=76,
                angle=0.25 + 0.65 * np.sin(2 * np.pi * 1.3 * time),
                stretch=0.85 + 0.2 * np.cos(2 * np.pi * 1.7 * time),
            ),
            False,
        ),
        (
            PUMPKIN,
            toys.pumpkin(),
            Pose(640 - pan, 352, half_axis=66, angle=-0.08, spin=0.3 + 0.5 * time),
            True,
        ),
        (BALL, toys.ball(), Pose(ball_x, 388, half_axis=62, angle=(ball_x + pan) / 62), True),
    ]


def _pan(time: float) -> float:
    """How far the camera has moved, in design pixels."""
    return PAN * (0.85 * time + 0.15 * time * time)


def _keys(time: float, *keys: tuple[float, float]) -> float:
    """A value that rests at each (time, value) and moves smoothly between them."""
    for (t0, v0), (t1, v1) in pairwise(keys):
        if time < t1:
            part = min(max((time - t0) / (t1 - t0), 0.0), 1.0)
            return v0 + (v1 - v0) * (1 - float(np.cos(np.pi * part))) / 2
    return keys[-1][1]


def _scaled(pose: Pose, scale: float) -> Pose:
    return Pose(
        pose.x * scale, pose.y * scale, pose.half_axis * scale, pose.angle, pose.spin, pose.stretch
    )


def _shadow(canvas: Array, pose: Pose) -> None:
    """Darken the ground under a toy, away from the sun, softly."""
    height, width = canvas.shape[:2]
    reach = pose.half_axis
    top = max(int(pose.y), 0)
    y, x = np.ogrid[top:height, 0:width]
    across = (x - pose.x - 0.45 * reach) / (1.15 * reach)
    along = (y - pose.y - 0.90 * reach) / (0.24 * reach)
    dark = 0.62 * np.exp(-(across**2) - along**2)
    canvas[top:] *= (1 - dark).astype(np.float32)[..., None]


def _vignette(width: int, height: int) -> Array:
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    lens: Array = (1 - 0.13 * (x**2 + y**2) ** 1.2 / 2).astype(np.float32)[..., None]
    return lens
