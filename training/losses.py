"""SAM 2's losses: focal and Dice on masks, cross-entropy on predicted IoU and on presence.

Weights 20 : 1 : 1 : 1 as in the SAM 2 paper (Ravi et al. 2024, appendix D.2.1). Masks are
supervised only where the object is present, presence everywhere. The paper's L1 on the IoU is
replaced: from scratch every mask is bad at first, the IoU head's sigmoid saturates at zero, and
under L1 it never comes back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FOCAL_WEIGHT = 20.0
ALPHA, GAMMA = 0.25, 2.0
SPARE_MASK_WEIGHT = 0.05


@dataclass(frozen=True)
class Losses:
    """Sums over objects, float32 scalars; `objects` counts the present ones, `all` every one."""

    mask: Tensor
    iou: Tensor
    presence: Tensor
    objects: Tensor
    all: int

    def total(self) -> Tensor:
        """The loss per object."""
        found = (self.mask + self.iou) / self.objects.clamp(min=1)
        return found + self.presence / max(1, self.all)


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss (Lin et al. 2017), mean over pixels: (..., H, W) -> (...).

    target is coverage in [0, 1]; |p - t| generalises 1 - p_t to coverage (Li et al. 2020).
    """
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    miss = (logits.sigmoid() - target).abs()
    alpha = ALPHA * target + (1 - ALPHA) * (1 - target)
    return (alpha * miss**GAMMA * entropy).mean((-2, -1))


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - (2 p.t + 1) / (|p| + |t| + 1) (Milletari et al. 2016): (..., H, W) -> (...)."""
    p = logits.sigmoid()
    overlap = (p * target).sum((-2, -1))
    return 1 - (2 * overlap + 1) / (p.sum((-2, -1)) + target.sum((-2, -1)) + 1)


def iou(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of logits > 0 and target >= 1/2, float32: (..., H, W) -> (...); 1 if both are empty."""
    a, b = logits > 0, target >= 0.5
    both, either = (a & b).sum((-2, -1)), (a | b).sum((-2, -1))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def losses(logits: Tensor, ious: Tensor, presence: Tensor, target: Tensor) -> Losses:
    """Losses of one frame for B objects.

    logits (B, 4, h, w): the single mask and the three of the multimask output. ious (B, 4) in
    [0, 1]. presence (B, 1): logits. target (B, H, W) in {0, 1}, H = 4 h.

    The single mask is always supervised; of the three, the best one, and the other two by
    `SPARE_MASK_WEIGHT`, so that none of them dies.
    """
    fine = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
    cover = F.avg_pool2d(target[:, None], 2).expand(-1, 4, -1, -1)
    each = FOCAL_WEIGHT * focal(fine, cover) + dice(fine, cover)
    spare = SPARE_MASK_WEIGHT * each[:, 1:].mean(1)
    mask = each[:, 0] + each[:, 1:].min(1).values + spare
    truth = iou(fine.detach(), cover)
    here = (target.flatten(1).sum(1) > 0).float()
    score = F.binary_cross_entropy_with_logits(presence[:, 0], here, reduction="sum")
    quality = F.binary_cross_entropy(ious, truth, reduction="none").mean(1)
    return Losses((mask * here).sum(), (quality * here).sum(), score, here.sum(), len(here))


def add(parts: list[Losses]) -> Losses:
    """The sum over frames."""
    return Losses(
        torch.stack([p.mask for p in parts]).sum(),
        torch.stack([p.iou for p in parts]).sum(),
        torch.stack([p.presence for p in parts]).sum(),
        torch.stack([p.objects for p in parts]).sum(),
        sum(p.all for p in parts),
    )
