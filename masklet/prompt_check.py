"""Prompts drawn on their frames without a model: are they where they are meant to be?"""

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from PIL import Image

from masklet.atomic import replacing
from masklet.errors import UserError
from masklet.media import read_frames
from masklet.overlay import colours_of, overlay
from masklet.plan import Plan
from masklet.prompt_marks import draw_prompts, prompts_on


def draw_on_frames(plan: Plan, folder: Path) -> list[Path]:
    """Write `{frame_index}.png` for each prompted frame, RGB at source size; returns the paths.

    Points, boxes and ids are drawn as in a preview, and mask prompts as masks. Raises UserError
    before it writes if a picture would take the place of the source, or of one of its images.
    """
    _keep_source(plan.source.path, [folder / f"{index}.png" for index in plan.prompted])
    colours = colours_of(plan.object_ids)
    paths = []
    with closing(read_frames(plan.source, plan.prompted)) as frames:
        for frame_index, frame in frames:
            said = prompts_on(plan.objects, frame_index)
            masks = {one: on.mask for one, on in said.items() if on.mask is not None}
            named = [one for one, mask in masks.items() if mask.any()]
            drawn = draw_prompts(overlay(frame, masks, colours), said, colours, named)
            folder.mkdir(parents=True, exist_ok=True)
            paths.append(folder / f"{frame_index}.png")
            with replacing(paths[-1]) as temporary:
                Image.fromarray(drawn).save(temporary, "PNG")
    return paths


def _keep_source(source: Path, pictures: Sequence[Path]) -> None:
    kept = os.path.realpath(source)
    for picture in pictures:
        if kept in (os.path.realpath(picture), os.path.realpath(picture.parent)):
            raise UserError(f"{picture}: is in the place of the source; use another --out")
