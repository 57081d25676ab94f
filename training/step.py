"""The loss of one batch under one plan: prompts, then tracking through the clip."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from masklet.preprocess import normalize
from training import prompts
from training.batch import Batch, Plan, boolean, tensors
from training.losses import Losses, add, iou, losses
from training.model import (
    Answer,
    Features,
    choose,
    encode,
    from_mask,
    prompted,
    remember,
    tracked,
)
from training.prompts import Rng


def ask(
    model: SAM2Base,
    rng: Rng,
    features: Features,
    target: Tensor,
    plan: Plan,
    kind: str,
    keep: bool = True,
) -> tuple[list[Losses], dict[str, Any], Tensor]:
    """Prompt one frame. target: (B, S, S). Returns losses, the memory and logits (B, 1, h, w).

    Without `keep` the memory is empty.
    """
    if kind == "mask":
        memory = from_mask(model, features, target[:, None])
        return [], memory, (target * 20 - 10)[:, None, ::4, ::4]
    masks = boolean(target)
    points = prompts.sample(rng, masks, kind, plan.count)
    answer = prompted(model, features, tensors(points, target.device))
    parts = [losses(answer.logits, answer.ious, answer.presence, target)]
    low, pointer = choose(model, answer, points[1].shape[1] <= 1)
    if plan.correction:
        answer, points = corrected(model, rng, features, target, low, points)
        parts.append(losses(answer.logits, answer.ious, answer.presence, target))
        low, pointer = choose(model, answer, False)
    memory = remember(model, features, low, pointer, answer.presence, True) if keep else {}
    return parts, memory, low.detach()


def corrected(
    model: SAM2Base,
    rng: Rng,
    features: Features,
    target: Tensor,
    low: Tensor,
    points: prompts.Points,
) -> tuple[Answer, prompts.Points]:
    """A second round with one more click and the first round's mask (B, 1, h, w) as a hint."""
    hint = low.detach().clamp(-32, 32)
    full = F.interpolate(hint, size=target.shape[-2:], mode="bilinear", align_corners=False)
    points = prompts.correct(rng, boolean(full[:, 0]), boolean(target), points)
    use_hint = hint if rng.random() < 0.5 else None
    return prompted(model, features, tensors(points, target.device), use_hint), points


def follow(
    model: SAM2Base, features: list[Features], target: Tensor, plan: Plan, bank: dict[str, Any]
) -> tuple[list[Losses], list[Tensor]]:
    """Track through the frames that are not prompted; fills the bank. target: (B, T, S, S)."""
    parts, seen = [], []
    for t in range(1, len(features)):
        if t == plan.second:
            continue
        index = t + plan.gap - 1
        answer = tracked(model, features[t], index, bank)
        parts.append(losses(answer.logits, answer.ious, answer.presence, target[:, t]))
        low, pointer = choose(model, answer, True)
        seen.append(low.detach())
        if t + 1 < len(features):
            bank["non_cond_frame_outputs"][index] = remember(
                model, features[t], low, pointer, answer.presence, False
            )
    return parts, seen


def loss(
    model: SAM2Base, rng: Rng, batch: Batch, plan: Plan
) -> tuple[Tensor, dict[str, float], Tensor]:
    """The loss of a batch (a scalar), what to write in the log, and each video's quality.

    Quality is the mean IoU in the last tracked frame, float32 (V,), nan where none is to be seen.
    """
    frames = batch.frames.shape[1]
    every = encode(model, normalize(batch.frames.flatten(0, 1).permute(0, 3, 1, 2)))
    features = [every.take(batch.rows() * frames + t) for t in range(frames)]
    parts, memory, low = ask(
        model, rng, features[0], batch.masks[:, 0], plan, plan.kind, frames > 1
    )
    bank = {"cond_frame_outputs": {0: memory}, "non_cond_frame_outputs": {}}
    visible_again = batch.masks[:, plan.second].flatten(1).any(1).all()
    if plan.second and visible_again:
        more, memory, _ = ask(
            model,
            rng,
            features[plan.second],
            batch.masks[:, plan.second],
            plan,
            "mask" if plan.kind == "mask" else "box",
        )
        bank["cond_frame_outputs"][plan.second + plan.gap - 1] = memory
        parts += more
    elif plan.second:
        plan = Plan(plan.kind, plan.count, plan.correction, 0, plan.gap)
    more, seen = follow(model, features, batch.masks, plan, bank)
    last = measured(low, batch.masks[:, 0])
    log = {f"iou_{plan.kind}": float(last.nanmean())}
    if seen:
        last = measured(seen[-1], batch.masks[:, frames - 1 - (plan.second == frames - 1)])
        log["iou_last"] = float(last.nanmean())
    return add(parts + more).total(), log, last.view(len(batch.frames), -1).nanmean(1)


@torch.no_grad()
def measured(low: Tensor, target: Tensor) -> Tensor:
    """IoU of logits (B, 1, h, w) with target (B, S, S), at S; float32 (B,), nan without object."""
    full = F.interpolate(low, size=target.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    here = target.flatten(1).any(1)
    return iou(full, target).where(here, torch.nan)
