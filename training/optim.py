"""Muon for the hidden matrices, AdamW for everything else.

Muon (Jordan et al. 2024) replaces a matrix' momentum by the nearest semi-orthogonal matrix, found
by five Newton-Schulz iterations; the update is scaled to AdamW's usual size (Liu et al. 2025,
"Muon is scalable for LLM training"), so that both share one learning rate. torch.optim.Muon is not
used because it iterates in bfloat16, which CPUs without AMX emulate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
RMS = 0.2
ADAM_SHARE = 0.5


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """float32 (N, m, n), m <= n -> the same shape, singular values near 1."""
    a, b, c = COEFFICIENTS
    x: Tensor = stack / (stack.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for weights that flatten to matrices.

    With torch.distributed initialised, each rank orthogonalises its share and all exchange them.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "share": 1.0})

    def _directions(self, group: dict[str, Any]) -> list[Tensor]:
        """Nesterov momentum of every weight as a wide matrix (m, n).

        Zero where a step did not touch the weight: an update has full size however small the
        momentum, so a stale one would carry the weight away.
        """
        out = []
        for p in group["params"]:
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            touched = bool(p.grad.any())
            if touched:
                buffer.lerp_(p.grad, 1 - MOMENTUM)
            flat = (p.grad.lerp(buffer, MOMENTUM) if touched else p.grad).flatten(1)
            out.append(flat if flat.shape[0] <= flat.shape[1] else flat.mT)
        return out

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # takes no closure
        """One update of every weight."""
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if dist.is_initialized() else 0
        for group in self.param_groups:
            wide = self._directions(group)
            order = sorted(range(len(wide)), key=lambda i: tuple(wide[i].shape))
            updates = [torch.zeros_like(w, memory_format=torch.contiguous_format) for w in wide]
            mine: dict[tuple[int, ...], list[int]] = {}
            for place, i in enumerate(order):
                if place % ranks == rank:
                    mine.setdefault(tuple(wide[i].shape), []).append(i)
            for indices in mine.values():
                for i, u in zip(
                    indices, orthogonalise(torch.stack([wide[i] for i in indices])), strict=True
                ):
                    updates[i].copy_(u)
            if ranks > 1:
                exchange(updates)
            for p, u in zip(group["params"], updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                tall = p.shape[0] > p[0].numel()
                scale = RMS * max(u.shape) ** 0.5
                p.add_((u.mT if tall else u).reshape(p.shape), alpha=-group["lr"] * scale)


def exchange(tensors: list[Tensor], divide: int = 1) -> None:
    """Replace each tensor by its sum over ranks divided by `divide`, in one message."""
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    flat /= divide
    pieces = torch.split(flat, [t.numel() for t in tensors])
    torch._foreach_copy_(tensors, [p.view_as(t) for p, t in zip(pieces, tensors, strict=True)])


def is_hidden_matrix(name: str, p: Tensor) -> bool:
    """Whether a weight maps one hidden space to another, which is what Muon is for."""
    if p.ndim < 2 or p[0].numel() != p.flatten(1).shape[1] or p.shape[0] < 16:
        return False
    if p.ndim == 4 and (p.shape[2:] != (1, 1) or p.shape[1] < 16):
        return False
    outputs = ("hypernetworks_mlps", "iou_prediction_head.layers.2", "pred_obj_score_head")
    return p.ndim in (2, 4) and not any(o in name for o in outputs) and "embed" not in name


def optimizers(
    model: nn.Module, lr: float, weight_decay: float, muon: bool = True
) -> list[torch.optim.Optimizer]:
    """The optimisers of a network; vectors and embeddings do not decay."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    hidden = [p for n, p in named if muon and is_hidden_matrix(n, p)]
    taken = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in taken]
    share = ADAM_SHARE if hidden else 1.0
    groups = [
        {
            "params": [p for p in rest if p.ndim >= 2 and p.numel() > 512],
            "weight_decay": weight_decay,
            "share": share,
        },
        {
            "params": [p for p in rest if p.ndim < 2 or p.numel() <= 512],
            "weight_decay": 0.0,
            "share": share,
        },
    ]
    adam = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    return [adam, Muon(hidden, lr, weight_decay)] if hidden else [adam]
