"""Masks of an image, by the network for video used as upstream's SAM2ImagePredictor uses it.

All prompts are decoded at once, without memory. Unlike on a video's frame the mask stays although
the model may think that no object is there, and several masks with predicted scores can be had.
"""

import shutil
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from masklet.job import ObjectId
from masklet.media import read_frames
from masklet.network import Network
from masklet.out_of_memory import memory_needed
from masklet.plan import Clicks, FramePrompts, Plan
from masklet.preprocess import preprocess_image
from masklet.store import MaskletRow, MaskletWriter, object_folder
from masklet.tracking import publish

_TOP_LEFT, _BOTTOM_RIGHT = 2, 3
# A mask prompt as logits, as for video: almost 0 and 1 as probabilities.
_MASK_SCALE, _MASK_BIAS = 20.0, -10.0


@dataclass(frozen=True)
class ImageMask:
    """One mask of an image.

    logits: (image_size / 4, image_size / 4) float32, > 0 on the mask.
    score: the IoU with the true mask that the model predicts, about 0 to 1.
    """

    logits: NDArray[np.float32]
    score: float


@memory_needed("on the image")
@torch.inference_mode()
def segment_image(
    network: Network, image: NDArray[np.uint8], said: FramePrompts, count: int
) -> list[ImageMask]:
    """Masks of an RGB image (H, W, 3), the best first by their scores.

    Args:
        said: a mask, points and a box, or some of them.
        count: 1 for the single mask, or 3 for the masks that the model holds possible.
    """
    model = network.model
    [features] = network.encode(preprocess_image(image, model.image_size)[None])
    points = _as_points(said.clicks, image.shape[:2], model.image_size, model.device)
    hint = None if said.mask is None else _as_logits(said.mask, model.image_size).to(model.device)
    sparse, dense = model.sam_prompt_encoder(points=points, boxes=None, masks=hint)
    logits, scores, _, _ = model.sam_mask_decoder(
        image_embeddings=features.maps[-1] + model.no_mem_embed[0, 0][:, None, None],
        image_pe=network.dense_position,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=count > 1,
        repeat_image=False,
        high_res_features=features.fine(1),
    )
    best_first = scores[0].argsort(descending=True, stable=True).tolist()
    return [
        ImageMask(logits[0, at].float().cpu().numpy(), float(scores[0, at])) for at in best_first
    ]


def write_image_masklets(
    plan: Plan, wanted: Container[ObjectId], network: Network, scratch: Path, masklets: Path
) -> None:
    """Write those of the plan's objects that are wanted as masklets of one row.

    Its `object_score` is the predicted score of the mask.
    """
    said = plan.objects[0].prompts[0]
    for _, image in read_frames(plan.source, [0]):
        found = segment_image(network, image, said, len(plan.objects))
        for one, mask in zip(plan.object_ids, found, strict=True):
            if one in wanted:
                grown = object_folder(scratch, one)
                shutil.rmtree(grown, ignore_errors=True)
                writer = MaskletWriter(grown, one)
                writer.add(MaskletRow(0, mask.score, mask.logits))
                writer.flush()
                publish(grown, object_folder(masklets, one))


def _as_points(
    clicks: tuple[Clicks, ...], size: tuple[int, ...], image_size: int, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Points (1, n, 2) in model pixels and labels (1, n) int32, the box's corners first."""
    if not clicks:
        return None
    [said] = clicks
    points, labels = torch.from_numpy(said.points), torch.from_numpy(said.labels)
    if said.box is not None:
        points = torch.cat([torch.from_numpy(said.box).reshape(2, 2), points])
        labels = torch.cat([torch.tensor([_TOP_LEFT, _BOTTOM_RIGHT], dtype=torch.int32), labels])
    height, width = size
    points = points / torch.tensor([width, height]) * image_size
    return points[None].to(device), labels[None].to(device)


def _as_logits(mask: NDArray[np.bool_], image_size: int) -> Tensor:
    """A mask (H, W) as the low-resolution logits (1, 1, image_size / 4, image_size / 4)."""
    pixels = _shrink(torch.from_numpy(mask)[None, None].float(), image_size) >= 0.5
    return _shrink(pixels.float() * _MASK_SCALE + _MASK_BIAS, image_size // 4)


def _shrink(pixels: Tensor, side: int) -> Tensor:
    return F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=True)
