"""Prompts drawn over a frame: clicks, boxes, and the id of each object beside them."""

from collections.abc import Container, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from masklet.job import ObjectId
from masklet.overlay import Colour, put_label
from masklet.plan import Clicks, FramePrompts, ObjectPlan

_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def prompts_on(objects: tuple[ObjectPlan, ...], frame_index: int) -> dict[ObjectId, FramePrompts]:
    """What is said on a frame, by object in the order of the job."""
    return {
        one.object_id: one.prompts[frame_index] for one in objects if frame_index in one.prompts
    }


def draw_prompts(
    picture: NDArray[np.uint8],
    prompts: Mapping[ObjectId, FramePrompts],
    colours: Mapping[ObjectId, Colour],
    named: Container[ObjectId] = (),
) -> NDArray[np.uint8]:
    """Draw points, boxes and ids over a copy of a picture.

    A positive point is a disc of the object's colour with a plus in it, a negative one a black disc
    with a ring of that colour and a minus. Mask prompts are for `overlay` to draw.

    Args:
        picture: (H, W, 3) uint8, RGB.
        prompts: of each object on this frame.
        colours: for each object its colour, from `overlay.colours_of`.
        named: objects whose ids stand on the picture already.

    Returns (H, W, 3) uint8. Marks grow with the frame.
    """
    image = Image.fromarray(picture)
    canvas = ImageDraw.Draw(image)
    radius = max(4, round(min(picture.shape[:2]) / 90))
    for object_id, said in prompts.items():
        for clicks in said.clicks:
            _draw_box(canvas, clicks, colours[object_id], radius)
    for object_id, said in prompts.items():
        for clicks in said.clicks:
            _draw_points(canvas, clicks, colours[object_id], radius)
    drawn = np.array(image)
    for object_id, said in prompts.items():
        place = None if object_id in named else _place_of_label(said, radius)
        if place is not None:
            put_label(drawn, str(object_id), colours[object_id], *place)
    return drawn


def _draw_box(canvas: ImageDraw.ImageDraw, clicks: Clicks, colour: Colour, radius: int) -> None:
    if clicks.box is None:
        return
    line = max(1, radius // 3)
    corners = [round(float(edge)) for edge in clicks.box]
    # a dark line around the coloured one, so that it shows on its own colour too
    canvas.rectangle(corners, outline=_BLACK, width=line + 2)
    x_min, y_min, x_max, y_max = corners
    if x_max - x_min > 2 and y_max - y_min > 2:
        canvas.rectangle([x_min + 1, y_min + 1, x_max - 1, y_max - 1], outline=colour, width=line)


def _draw_points(canvas: ImageDraw.ImageDraw, clicks: Clicks, colour: Colour, radius: int) -> None:
    line, arm = max(1, radius // 4), radius // 2
    for (x, y), label in zip(clicks.points.tolist(), clicks.labels.tolist(), strict=True):
        disc = [x - radius, y - radius, x + radius, y + radius]
        fill, ring = (colour, _WHITE) if label else (_BLACK, colour)
        canvas.ellipse(disc, fill=fill, outline=ring, width=line)
        sign = _BLACK if label else _WHITE
        canvas.line([x - arm, y, x + arm, y], fill=sign, width=line)
        if label:
            canvas.line([x, y - arm, x, y + arm], fill=sign, width=line)


def _place_of_label(said: FramePrompts, radius: int) -> tuple[int, int] | None:
    """(top, centre) over the first box or click; None where a mask alone is given."""
    for clicks in said.clicks:
        if clicks.box is not None:
            x_min, y_min, x_max, _ = (round(float(edge)) for edge in clicks.box)
            return y_min, (x_min + x_max) // 2
        x, y = (round(float(value)) for value in clicks.points[0])
        return y - radius - 1, x
    return None
