"""The oracle: `SAM2VideoPredictor` on the same frames, weights and prompts as our tracker.

Two things of upstream are changed, and only here. It reads its frames from a folder of JPEGs, so
the loader is replaced by one that returns tensors. And in float32 it fails on a frame that attends
to memories but to no object pointer, as before the first prompt of a late object: the memories are
then still bfloat16. Upstream runs under autocast, where that does not happen; here the memories are
widened before the attention, as they are wherever there is a pointer, unless there is autocast.
"""

from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import torch
from hydra.utils import instantiate
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from masklet.job import ObjectId
from masklet.models import ModelSpec, model_config
from masklet.plan import Direction, FramePrompts

Prompts = Mapping[ObjectId, Mapping[int, FramePrompts]]
Logits = dict[tuple[int, ObjectId], Tensor]


def make_oracle(spec: ModelSpec, model: SAM2Base) -> Any:
    """Upstream's predictor with the config and the weights of `model`."""
    predictor = build_oracle(spec)
    predictor.load_state_dict(model.state_dict(), strict=True)
    return predictor


def build_oracle(spec: ModelSpec, **changes: Any) -> Any:
    """Upstream's predictor with the weights torch's generator gives it.

    It is a `SAM2Base`, so our tracker runs on it as well.

    Args:
        changes: options of `SAM2VideoPredictor` that are other than in the config.
    """
    config = model_config(spec)
    config["_target_"] = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    config["fill_hole_area"] = 0
    config.update(changes)
    predictor = instantiate(config, _recursive_=True).eval()

    def widen(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        memory: Tensor = kwargs["memory"]
        if torch.is_autocast_enabled(memory.device.type):
            return args, kwargs
        return args, {**kwargs, "memory": memory.float()}

    predictor.memory_attention.register_forward_pre_hook(widen, with_kwargs=True)
    return predictor


def oracle_logits(
    predictor: Any,
    images: Tensor,
    frame_size: tuple[int, int],
    prompts: Prompts,
    direction: Direction,
) -> Logits:
    """Low-resolution logits by (position, object) of everything upstream tracks.

    Args:
        images: preprocessed frames (frames, 3, image_size, image_size).
        frame_size: (height, width) of the frames that prompts are given in.
    """
    with patch("sam2.sam2_video_predictor.load_video_frames", lambda **_: (images, *frame_size)):
        state = predictor.init_state("unused")
    for object_id, by_frame in prompts.items():
        for position, said in by_frame.items():
            _add(predictor, state, position, object_id, said)
    logits: Logits = {}
    prompted = [position for by_frame in prompts.values() for position in by_frame]
    sweeps: dict[Direction, list[dict[str, Any]]] = {
        "forward": [{}],
        "backward": [{"reverse": True, "start_frame_idx": max(prompted)}],
        "both": [{}, {"reverse": True}],
    }
    for how in sweeps[direction]:
        for position, object_ids, _ in predictor.propagate_in_video(state, **how):
            for index, object_id in enumerate(object_ids):
                outputs = state["output_dict_per_obj"][index]
                output = outputs["cond_frame_outputs"].get(position)
                output = output or outputs["non_cond_frame_outputs"][position]
                logits[position, object_id] = output["pred_masks"][0, 0].clone()
    return logits


def _add(
    predictor: Any, state: Any, position: int, object_id: ObjectId, said: FramePrompts
) -> None:
    if said.mask is not None:
        predictor.add_new_mask(state, position, object_id, torch.from_numpy(said.mask))
    for number, clicks in enumerate(said.clicks):
        has_points = len(clicks.points) > 0
        predictor.add_new_points_or_box(
            state,
            position,
            object_id,
            points=clicks.points if has_points else None,
            labels=clicks.labels if has_points else None,
            box=clicks.box,
            clear_old_points=number == 0,
        )
