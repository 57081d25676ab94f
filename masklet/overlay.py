"""Masks drawn over a frame: translucent fill, crisp contour, and the object's id on a label."""

import colorsys
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from masklet.job import ObjectId

Colour = tuple[int, int, int]
"""Red, green and blue, each 0..255."""

COLOURS: tuple[Colour, ...] = (
    (0, 158, 255),
    (255, 150, 0),
    (0, 200, 140),
    (235, 80, 190),
    (250, 230, 50),
    (225, 65, 45),
    (130, 105, 255),
    (120, 225, 250),
)
"""Okabe and Ito's colours made brighter for video; neighbours differ for colour-blind eyes too."""

FILL = 0.42
"""Opacity of the fill."""

OUTER_EDGE = 0.35
"""Brightness that is left just outside of the contour, so that it shows on its own colour too."""

_GOLDEN_RATIO = 0.618033988749895


def colour(position: int) -> Colour:
    """The colour of the object at a position, from 0, of the job's list of objects."""
    if position < len(COLOURS):
        return COLOURS[position]
    # Steps of the golden ratio keep new hues apart from all earlier ones, however many follow.
    beyond = position - len(COLOURS)
    hue = (0.28 + beyond * _GOLDEN_RATIO) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, (0.42, 0.75, 0.58)[beyond % 3], 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def colours_of(object_ids: Sequence[ObjectId]) -> dict[ObjectId, Colour]:
    """A colour for each object of a job, by its place in the list and not by what is visible."""
    return {object_id: colour(position) for position, object_id in enumerate(object_ids)}


def overlay(
    frame: NDArray[np.uint8],
    masks: Mapping[ObjectId, NDArray[np.bool_]],
    colours: Mapping[ObjectId, Colour],
    *,
    filled: bool = True,
    labelled: bool = True,
) -> NDArray[np.uint8]:
    """Draw masks over a copy of a frame, in the order of `masks`.

    Args:
        frame: (H, W, 3) uint8, RGB.
        masks: for each object, (H, W) bool; an empty one draws nothing.
        colours: for each object its colour, from `colours_of`.
        filled: fill masks, or leave it at their contours.
        labelled: put each object's id on it.

    Returns (H, W, 3) uint8. Line widths and labels grow with the frame.
    """
    height, width = frame.shape[:2]
    drawn = frame.copy()
    line = max(1, round(min(height, width) / 400))
    boxes = {}
    for object_id, mask in masks.items():
        if mask.shape != (height, width):
            raise ValueError(
                f"mask of object {object_id} is {mask.shape}, the frame {(height, width)}"
            )
        box = _box(mask)
        if box is not None:
            boxes[object_id] = box
    # One kind of mark after the other: no fill covers a contour, no contour covers a label.
    edges = {}
    for object_id, box in boxes.items():
        window = _around(box, line, height, width)
        edges[object_id] = (
            window,
            _fill(
                drawn[window],
                masks[object_id][window],
                colours[object_id],
                line,
                FILL if filled else 0.0,
            ),
        )
    for object_id, (window, edge) in edges.items():
        drawn[window][edge] = colours[object_id]
    for object_id, (top, _, left, right) in boxes.items() if labelled else ():
        put_label(drawn, str(object_id), colours[object_id], top, (left + right) // 2)
    return drawn


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right) of the set pixels, bottom and right exclusive."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    return top, bottom, int(columns[0]), int(columns[-1]) + 1


def _around(
    box: tuple[int, int, int, int], line: int, height: int, width: int
) -> tuple[slice, slice]:
    """The rows and columns of a box and of the lines around it."""
    top, bottom, left, right = box
    return (
        slice(max(top - line, 0), min(bottom + line, height)),
        slice(max(left - line, 0), min(right + line, width)),
    )


def _fill(
    crop: NDArray[np.uint8], inside: NDArray[np.bool_], paint: Colour, line: int, opacity: float
) -> NDArray[np.bool_]:
    """Fill a mask and darken the line outside of it; returns where its contour goes."""
    values = np.arange(256)
    dark = (values * OUTER_EDGE).astype(np.uint8)
    halo = _grown(inside, line) & ~inside
    for channel in range(3):
        filled = (values * (1 - opacity) + paint[channel] * opacity + 0.5).astype(np.uint8)
        plane = np.ascontiguousarray(crop[..., channel])
        plane[inside] = filled[plane[inside]]
        plane[halo] = dark[plane[halo]]
        crop[..., channel] = plane
    return inside & _grown(~inside, line)


def _grown(mask: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    """A mask with `steps` pixels more on all sides."""
    for _ in range(steps):
        tall = mask.copy()
        tall[1:] |= mask[:-1]
        tall[:-1] |= mask[1:]
        mask = tall.copy()
        mask[:, 1:] |= tall[:, :-1]
        mask[:, :-1] |= tall[:, 1:]
    return mask


def put_label(
    drawn: NDArray[np.uint8], text: str, background: Colour, top: int, centre: int
) -> None:
    """Put a label over the top of a box, or inside of it where there is no room above."""
    height, width = drawn.shape[:2]
    label = _label(text, max(11, round(min(height, width) / 28)), background)
    label = label[:height, :width]
    rows, columns = label.shape[:2]
    y = min(max(top - rows, 0), height - rows)
    x = min(max(centre - columns // 2, 0), width - columns)
    drawn[y : y + rows, x : x + columns] = label


@lru_cache(maxsize=1024)
def _label(text: str, size: int, background: Colour) -> NDArray[np.uint8]:
    """The picture of a label, (rows, columns, 3) uint8, `size` the height of its font in pixels."""
    font = ImageFont.load_default(size)
    left, _, right, _ = font.getbbox(text)
    margin = max(2, size // 4)
    # All labels of one size are equally high, whatever their letters.
    rows = round(size * 1.25) + margin // 2
    picture = Image.new("RGB", (round(right - left) + 2 * margin, rows), background)
    red, green, blue = background
    is_bright = 0.299 * red + 0.587 * green + 0.114 * blue > 110
    ImageDraw.Draw(picture).text(
        (margin - left, rows / 2),
        text,
        font=font,
        fill=(0, 0, 0) if is_bright else (255, 255, 255),
        anchor="lm",
    )
    return np.asarray(picture)
