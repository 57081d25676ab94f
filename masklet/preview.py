"""Pictures of the prompted frames, with what the prompts give there: seconds instead of minutes."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklet import tracker
from masklet.atomic import put_folder, replacing
from masklet.image import segment_image
from masklet.job import ObjectId
from masklet.media import read_frames
from masklet.network import Network
from masklet.out_of_memory import memory_needed
from masklet.overlay import colours_of, overlay
from masklet.plan import Plan
from masklet.preprocess import preprocess
from masklet.prompt_marks import draw_prompts, prompts_on
from masklet.store import upsample

Masks = dict[ObjectId, NDArray[np.bool_]]


def write_preview(
    plan: Plan, network: Network, scratch: Path, folder: Path, advance: Callable[[int], None]
) -> int:
    """Make a folder of `{frame_index}.png`, one for each prompted frame, RGB at source size.

    Masks, points, boxes and ids of the objects that are prompted on a frame are drawn on it.

    Args:
        scratch: folder where the pictures grow, until they take the place of `folder`.
        advance: called with 1 after every picture.

    Returns the number of pictures.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    colours = colours_of(plan.object_ids)
    # the masks of an image have their prompts in common
    marked = plan.objects[:1] if plan.is_image else plan.objects
    for frame_index, frame, masks in segment_prompted(plan, network):
        masked = overlay(frame, masks, colours)
        named = [one for one, mask in masks.items() if mask.any()]
        drawn = draw_prompts(masked, prompts_on(marked, frame_index), colours, named)
        with replacing(scratch / f"{frame_index}.png") as temporary:
            Image.fromarray(drawn).save(temporary, "PNG")
        advance(1)
    put_folder(scratch, folder)
    return len(plan.prompted)


def segment_prompted(
    plan: Plan, network: Network
) -> Iterator[tuple[int, NDArray[np.uint8], Masks]]:
    """Yield each prompted frame with the masks, (H, W) bool, of the objects prompted on it.

    They are those of a full run, in which a prompted frame is segmented without memory too.
    """
    size = plan.source.height, plan.source.width
    with closing(read_frames(plan.source, plan.prompted)) as frames:
        for frame_index, frame in frames:
            if plan.is_image:
                said = plan.objects[0].prompts[frame_index]
                found = segment_image(network, frame, said, len(plan.objects))
                logits = zip(plan.object_ids, (mask.logits for mask in found), strict=True)
                yield frame_index, frame, {one: upsample(low, *size) > 0 for one, low in logits}
                continue
            image = preprocess(frame, network.model.image_size)
            masks = {}
            with memory_needed("on a prompted frame"):
                [features] = network.encode(image[None])
                for one, said in prompts_on(plan.objects, frame_index).items():
                    prediction, _ = tracker.condition(network, features, said, size)
                    masks[one] = upsample(prediction.logits.float().cpu().numpy(), *size) > 0
            yield frame_index, frame, masks
