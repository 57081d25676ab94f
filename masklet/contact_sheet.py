"""A few moments of a video in a grid: the one picture that shows whether a run went well."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MAX_WIDTH = 1800
"""Width, in pixels, that no contact sheet exceeds."""

_GAP, _CAPTION, _FONT_SIZE = 12, 30, 20
_PAPER, _INK = (24, 25, 28), (232, 232, 228)


def contact_sheet(
    pictures: Sequence[tuple[int, float, NDArray[np.uint8]]], columns: int | None = None
) -> Image.Image:
    """Put pictures in a grid, each over its caption "frame 42 · 1.40 s".

    Args:
        pictures: (frame_index, timestep in seconds, (H, W, 3) uint8), all of one size.
        columns: pictures in a row; by default two rows of up to four.

    Returns an RGB picture of at most MAX_WIDTH pixels across; pictures are never enlarged.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    columns = columns or min(math.ceil(len(pictures) / 2), 4)
    return captioned(
        [(_caption(index, timestep), picture) for index, timestep, picture in pictures], columns
    )


def captioned(pictures: Sequence[tuple[str, NDArray[np.uint8]]], columns: int) -> Image.Image:
    """The same grid of pictures, at least one, over any captions."""
    rows = math.ceil(len(pictures) / columns)
    source_height, source_width = pictures[0][1].shape[:2]
    width = min((MAX_WIDTH - _GAP) // columns - _GAP, source_width)
    height = max(round(source_height * width / source_width), 1)
    across, down = width + _GAP, height + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * across + _GAP, rows * down + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = _caption_font([caption for caption, _ in pictures], width)
    for place, (caption, picture) in enumerate(pictures):
        x, y = _GAP + place % columns * across, _GAP + place // columns * down
        small = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(small, (x, y))
        caption_place = (x + 2, y + height + _CAPTION // 2)
        draw.text(caption_place, caption, _INK, font, anchor="lm")
    return sheet


def moments(frame_indices: Sequence[int], count: int = 8, must: Sequence[int] = ()) -> list[int]:
    """Choose up to `count` frames to show, in order: the first, the last, and an even spread.

    Frames in `must` (the prompted ones, say) take the place of the nearest of the spread; if they
    are too many themselves, an even choice of them is shown between the first and the last.
    """
    frames = sorted(set(frame_indices))
    if len(frames) <= count:
        return frames
    ends = {frames[0], frames[-1]}
    asked = sorted(set(must) & set(frames) - ends)
    chosen = ends | set(_spread(asked, max(count - 2, 0)))
    even = _spread(frames, count)
    while len(chosen) < count:
        chosen.add(max(even, key=lambda frame: min(abs(frame - other) for other in chosen)))
    return sorted(chosen)[:count]


def _spread(frames: Sequence[int], count: int) -> list[int]:
    """`count` frames at even steps, the first and the last included where there are two or more."""
    if len(frames) <= count:
        return list(frames)
    return [frames[round(step)] for step in np.linspace(0, len(frames) - 1, count)]


def _caption(frame_index: int, timestep: float) -> str:
    return f"frame {frame_index} · {timestep:.2f} s"


def _caption_font(
    captions: Sequence[str], width: int
) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font in which the longest caption fits under a picture of `width` pixels."""
    font = ImageFont.load_default(_FONT_SIZE)
    longest = max(font.getlength(caption) for caption in captions)
    return ImageFont.load_default(max(_FONT_SIZE * min(1, (width - 4) / longest), 1))
