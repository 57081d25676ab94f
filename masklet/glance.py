"""A run at a glance: when each object is seen and how surely, and a few moments as one picture."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklet.contact_sheet import captioned, contact_sheet, moments
from masklet.job import ObjectId
from masklet.media import read_frames
from masklet.overlay import colours_of, overlay
from masklet.plan import Plan
from masklet.store import MaskletRow, read_together, upsample

MAX_PICTURES = 8


@dataclass
class Seen:
    """One object through a run.

    frames: on how many frames its mask is not empty; first_frame, last_frame: the first and last of
    them, None without any.
    """

    object_id: ObjectId
    frames: int = 0
    first_frame: int | None = None
    last_frame: int | None = None
    _sum: float = 0.0

    @property
    def confidence(self) -> float | None:
        """Mean probability, 0.5..1, of the pixels inside the masks, each frame counting alike."""
        return self._sum / self.frames if self.frames else None

    def add(self, row: MaskletRow, height: int, width: int) -> None:
        """Count a frame of a source of this size; frames come in ascending order."""
        if not is_seen(row.logits, height, width):
            return
        self.frames += 1
        self.first_frame = row.frame_index if self.first_frame is None else self.first_frame
        self.last_frame = row.frame_index
        inside = row.logits[row.logits > 0].astype(np.float64)
        self._sum += float(np.mean(1 / (1 + np.exp(-inside))))


def is_seen(logits: NDArray[np.float32], height: int, width: int) -> bool:
    """Whether the mask at source size has a pixel, found mostly without making that mask."""
    set_low = logits > 0
    if not set_low.any():
        return False  # upsampling only mixes values
    rows, columns = set_low.shape
    squares = set_low[:-1, :-1] & set_low[1:, :-1] & set_low[:-1, 1:] & set_low[1:, 1:]
    if height >= rows and width >= columns and squares.any():
        return True  # between four neighbours that are set there is a pixel of the source
    return bool((upsample(logits, height, width) > 0).any())


def glance(plan: Plan, masklets: Path) -> tuple[list[Seen], Image.Image]:
    """Read the masklets once: the objects in the order of the job, and a contact sheet.

    The sheet shows the first and the last frame, prompted ones, and an even spread between.
    """
    height, width = plan.source.height, plan.source.width
    seen = {one: Seen(one) for one in plan.object_ids}
    chosen = set(moments(plan.frame_indices, MAX_PICTURES, must=plan.prompted))
    shown: dict[int, Mapping[ObjectId, MaskletRow]] = {}
    for frame_index, rows in read_together(masklets, plan.object_ids):
        for one, row in rows.items():
            seen[one].add(row, height, width)
        if frame_index in chosen:
            shown[frame_index] = rows
    colours, pictures = colours_of(plan.object_ids), []
    with closing(read_frames(plan.source, sorted(shown))) as frames:
        for frame_index, frame in frames:
            stored = shown[frame_index].items()
            masks = {one: upsample(row.logits, height, width) > 0 for one, row in stored}
            drawn = overlay(frame, masks, colours)
            pictures.append((frame_index, plan.source.timestep(frame_index), drawn))
    return list(seen.values()), contact_sheet(pictures)


def preview_sheet(folder: Path) -> Image.Image:
    """The pictures of a preview, `{frame_index}.png`, or an even choice of them, as one."""
    indices = moments([int(path.stem) for path in folder.glob("*.png")], MAX_PICTURES)
    pictures = []
    for frame_index in indices:
        with Image.open(folder / f"{frame_index}.png") as picture:
            pictures.append((f"frame {frame_index}", np.asarray(picture.convert("RGB"))))
    return captioned(pictures, columns=min(len(pictures), 2))
