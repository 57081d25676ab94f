"""Upstream's tracker, as the benchmarks run it: the same frames and prompts from memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from hydra.utils import instantiate
from sam2.modeling.sam2_base import SAM2Base

from masklet.media import read_frames
from masklet.models import ModelSpec, load_model, locate_checkpoint, model_config
from masklet.plan import Plan
from masklet.preprocess import preprocess
from tests.masklet.oracle import make_oracle

OPTIMIZED = "sam2.sam2_video_predictor.SAM2VideoPredictorVOS"


def any_weights(spec: ModelSpec, device: str) -> SAM2Base:
    """The model, with seeded weights if its own are not on this machine: speed is the same."""
    if locate_checkpoint(spec) is not None:
        return load_model(spec, device=device)
    torch.manual_seed(0)
    model = instantiate(model_config(spec)).to(device)
    return model.eval().requires_grad_(False)


def make_predictor(spec: ModelSpec, model: SAM2Base, *, compiled: bool = False) -> Any:
    """`SAM2VideoPredictor` with the model's weights; compiled, as `vos_optimized` has it."""
    if not compiled:
        return make_oracle(spec, model).to(model.device)
    config = model_config(spec)
    config.update(_target_=OPTIMIZED, fill_hole_area=0)
    predictor = instantiate(config, _recursive_=True, compile_image_encoder=True).eval()
    predictor.load_state_dict(model.state_dict(), strict=True)
    return predictor.to(model.device)


def track(predictor: Any, plan: Plan, after_frame: Callable[[], None] = lambda: None) -> None:
    """From the file to masks (objects, height, width) of every frame, on the CPU."""
    size = predictor.image_size
    frames = [preprocess(frame, size) for _, frame in read_frames(plan.source, plan.timeline)]
    shape = plan.source.height, plan.source.width
    images = torch.stack(frames).to(predictor.device)
    del frames
    with (
        torch.inference_mode(),
        torch.autocast("cuda", torch.bfloat16, enabled=predictor.device.type == "cuda"),
        patch("sam2.sam2_video_predictor.load_video_frames", lambda **_: (images, *shape)),
    ):
        state = predictor.init_state("unused")
        for one in plan.objects:
            for at, prompts in one.prompts.items():
                for clicks in prompts.clicks:
                    predictor.add_new_points_or_box(
                        state, at, one.object_id, points=clicks.points, labels=clicks.labels
                    )
        for _, _, logits in predictor.propagate_in_video(state):
            (logits > 0).cpu()
            after_frame()
