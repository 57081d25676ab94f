"""Our tracker beside the oracle: prompts said shortly, plans of them, and what "the same" means."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base

from masklet.media import Source, read_frames
from masklet.models import find_model
from masklet.network import FrameFeatures, Network
from masklet.plan import Clicks, Direction, FramePrompts, ObjectPlan, Plan
from masklet.preprocess import preprocess
from masklet.propagate import segment_frames
from masklet.store import upsample
from tests.masklet.oracle import Logits, Prompts, build_oracle, oracle_logits

PROMPTED_TOLERANCE, TRACKED_TOLERANCE = 1e-3, 1e-2
SAME_PIXELS = 0.9999


def click(*points: tuple[float, float, int], box: tuple[float, ...] | None = None) -> Clicks:
    """Clicks given as (x, y, label)."""
    return Clicks(
        np.array([point[:2] for point in points], np.float32).reshape(-1, 2),
        np.array([point[2] for point in points], np.int32),
        None if box is None else np.array(box, np.float32),
    )


def said(*clicks: Clicks, mask: NDArray[np.bool_] | None = None) -> FramePrompts:
    return FramePrompts(mask, clicks)


def plan_of(
    source: Source,
    prompts: Prompts,
    direction: Direction = "forward",
    timeline: Sequence[int] | None = None,
) -> Plan:
    """A plan over some frames of the source, all without a timeline."""
    objects = tuple(ObjectPlan(object_id, by) for object_id, by in prompts.items())
    frames = range(source.num_frames) if timeline is None else timeline
    return Plan(source, tuple(frames), objects, direction)


def our_logits(plan: Plan, model: SAM2Base, dtype: torch.dtype = torch.float32) -> Logits:
    """Low-resolution logits by (position, object) of everything our tracker tracks."""
    found: Logits = {}
    for step in segment_frames(plan, plan.object_ids, Network.of(model, dtype)):
        for object_id, prediction in step.predictions.items():
            key = plan.position[step.frame_index], object_id
            assert key not in found, "an object was predicted twice on a frame"
            found[key] = prediction.logits
    return found


def their_logits(plan: Plan, oracle: Any, prompts: Prompts) -> Logits:
    """The same of upstream's predictor, given the prompts by frame_index in this order."""
    size = plan.source.height, plan.source.width
    frames = read_frames(plan.source, plan.timeline)
    images = torch.stack([preprocess(frame, oracle.image_size) for _, frame in frames])
    by_position = {
        one: {plan.position[at]: said for at, said in by_frame.items()}
        for one, by_frame in prompts.items()
    }
    return oracle_logits(oracle, images, size, by_position, plan.direction)


def compare(plan: Plan, model: SAM2Base, oracle: Any, prompts: Prompts | None = None) -> Logits:
    """Assert that both trackers give the same logits and masks; returns ours.

    A prompted frame's mask is remembered as hard pixels, each on this or that side of zero. Where
    rounding alone decides on which, both trackers are right, and yet one pixel moves what follows
    by more than rounding does. Then ours is given upstream's pixels to remember.

    Args:
        prompts: those of the plan in the order in which the oracle gets them.
    """
    of_plan = {one.object_id: one.prompts for one in plan.objects}
    theirs = their_logits(plan, oracle, prompts or of_plan)
    ours = our_logits(plan, model)
    prompted = {(plan.position[at], one) for one, by in of_plan.items() for at in by}
    seen = prompted & theirs.keys()
    hard = [[hard_pixels(of[key], model.image_size) for key in seen] for of in (ours, theirs)]
    if not all(map(torch.equal, *hard)):
        with remembered_as([theirs[key] for key in seen]):
            ours = our_logits(plan, model)
    assert_same(ours, theirs, prompted, plan.source)
    return ours


def hard_pixels(logits: torch.Tensor, image_size: int) -> torch.Tensor:
    """What the memory encoder sees of a prompted frame's mask, (image_size, image_size)."""
    size = image_size, image_size
    return F.interpolate(logits[None, None], size, mode="bilinear", align_corners=False)[0, 0] > 0


@contextmanager
def remembered_as(answers: Sequence[torch.Tensor]) -> Iterator[None]:
    """Let our tracker remember a prompted frame by the one of these logits that is nearest."""
    encode_memory = Network.encode_memory

    def encode(
        network: Network,
        features: FrameFeatures,
        logits: torch.Tensor,
        scores: torch.Tensor,
        *,
        from_prompts: bool,
    ) -> torch.Tensor:
        if from_prompts:
            logits = min(answers, key=lambda one: float((one - logits[0]).abs().max()))[None]
        return encode_memory(network, features, logits, scores, from_prompts=from_prompts)

    with patch.object(Network, "encode_memory", encode):
        yield


def assert_same(
    ours: Logits, theirs: Logits, prompted: set[tuple[int, Any]], source: Source
) -> None:
    assert set(ours) == set(theirs)
    for key, logits in theirs.items():
        tolerance = PROMPTED_TOLERANCE if key in prompted else TRACKED_TOLERANCE
        assert (ours[key] - logits).abs().max() <= tolerance, key
    agree = [masks_at(source, ours[key]) == masks_at(source, theirs[key]) for key in theirs]
    assert np.mean(agree) >= SAME_PIXELS


def masks_at(source: Source, logits: torch.Tensor) -> NDArray[np.bool_]:
    """The mask at source size, (height, width), upsampled as the exports do it."""
    return upsample(logits.numpy(), source.height, source.width) > 0


@torch.no_grad()
def seeded_oracle(name: str, image_size: int) -> Any:
    """Upstream's predictor of a published config, with random weights that do give masks.

    As torch draws them, no object is ever there, logits are a tenth, and the layers that tell the
    age of a memory and the absence of an object are next to zero, so that mistakes with them would
    not show. Here products keep the scale of what goes in, and those layers count.

    Args:
        image_size: instead of the config's 1024, to be fast; no weight has a shape that depends on
            it, and upstream makes its rotary embedding anew for another size.
    """
    torch.manual_seed(0)
    oracle = build_oracle(find_model(name), image_size=image_size).requires_grad_(False)
    for part, weight in oracle.named_parameters():
        if part.startswith("image_encoder."):
            continue
        if part.endswith(".gamma"):
            weight.fill_(0.1)
        elif weight.dim() > 1:
            embedding = not part.endswith("weight")
            weight.mul_(0.5 / weight.std() if embedding else 3**0.5)
    for head in oracle.sam_mask_decoder.output_hypernetworks_mlps:
        head.layers[-1].weight.mul_(4)
    oracle.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(5)
    return oracle
