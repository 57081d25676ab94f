"""Clips and prompts that the benchmarks share."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

import numpy as np

from demo.render import is_rendered, render_to
from masklet.media import Source, probe, read_frames, write_video
from masklet.plan import Clicks, FramePrompts, ObjectPlan, Plan

COLUMNS = 8


def demo_clip() -> Path:
    """The demo's clip, 854x480, 180 frames; rendered if it is not there."""
    folder = Path("out/demo-clip")
    if not is_rendered(folder):
        render_to(folder)
    return next(folder.glob("*.mp4"))


def long_clip(frames: int) -> Path:
    """The demo's clip forwards and backwards until it has so many frames."""
    path = Path(f"out/demo-clip-{frames}.mp4")
    if not path.exists():
        source = probe(str(demo_clip()))
        pictures = [picture for _, picture in read_frames(source, range(source.num_frames))]
        there_and_back = cycle([*pictures, *pictures[-2:0:-1]])
        write_video(
            path,
            islice(there_and_back, frames),
            width=source.width,
            height=source.height,
            frame_rate=source.frame_rate,
        )
    return path


def grid_plan(source: Source, frames: int, objects: int) -> Plan:
    """Click on `objects` places of the first frame and follow them through `frames` frames.

    What lies there does not matter: SAM 2 does the same work for every object.
    """
    return Plan(
        source,
        tuple(range(min(frames, source.num_frames))),
        tuple(ObjectPlan(number, {0: _click(source, number)}) for number in range(objects)),
        "forward",
    )


def open_clip(path: Path | None) -> Source:
    """A clip given by the user, or the demo's."""
    return probe(str(path or demo_clip()))


def _click(source: Source, number: int) -> FramePrompts:
    x = (number % COLUMNS + 0.5) / COLUMNS * source.width
    y = (number // COLUMNS % 4 + 0.5) / 4 * source.height
    points = np.array([[x, y]], np.float32)
    return FramePrompts(None, (Clicks(points, np.ones(1, np.int32), None),))
