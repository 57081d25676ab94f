"""SAM 2 unrolled over a clip, differentiable, exactly as `SAM2VideoPredictor` runs it.

The network stays in evaluation mode: it has no dropout, and evaluation mode is what selects the
memory bank of inference. What is done here by hand is the mask decoder's call, because training
needs all four masks and not only the chosen one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from torch import Tensor

LONG_VIDEO = 1000
PLACE_GAIN = 3.0


@dataclass(frozen=True)
class Answer:
    """The decoder's answer for B objects.

    logits (B, 4, h, w), ious (B, 4), tokens (B, 4, C), presence (B, 1) logits.
    """

    logits: Tensor
    ious: Tensor
    tokens: Tensor
    presence: Tensor


@dataclass(frozen=True)
class Features:
    """What the image encoder says about B pictures: maps (HW, B, C) of three levels, fine first."""

    maps: list[Tensor]
    positions: list[Tensor]
    sizes: list[tuple[int, int]]

    def take(self, index: Tensor) -> Features:
        """The features of the pictures `index` (B,)."""
        return Features(
            [m[:, index] for m in self.maps], [p[:, index] for p in self.positions], self.sizes
        )

    def planes(self) -> list[Tensor]:
        """The maps as (B, C, H, W)."""
        return [
            m.permute(1, 2, 0).reshape(m.shape[1], m.shape[2], *size)
            for m, size in zip(self.maps, self.sizes, strict=True)
        ]


def build(config: Path, size: int | None = None, **overrides: Any) -> SAM2Base:
    """The network of a config file, untrained, for square pictures of `size` pixels."""
    node = OmegaConf.load(config).model
    if size is not None:
        node.image_size = size
    for key, value in overrides.items():
        OmegaConf.update(node, key, value, force_add=True)
    model = instantiate(node)
    assert isinstance(model, SAM2Base)
    return model.eval()


@torch.no_grad()
def initialise(model: SAM2Base) -> None:
    """Start with flat masks and with attention that looks at its own place.

    Large random masks take long to unlearn. And with unrelated query and key projections it takes
    a thousand steps until a click has anything to do with the pixels under it. Where both sides
    carry the same position encoding, equal projections make attention a kernel that peaks at equal
    positions; with rotary encoding equal constant biases do the same.
    """
    decoder = model.sam_mask_decoder
    for mlp in decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight *= 0.1
        mlp.layers[-1].bias *= 0.1
    across = [decoder.transformer.final_attn_token_to_image]
    for block in decoder.transformer.layers:
        across += [block.cross_attn_token_to_image, block.cross_attn_image_to_token]
    for attention in across:
        attention.q_proj.weight *= PLACE_GAIN
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.k_proj.bias.copy_(attention.q_proj.bias)
    for layer in model.memory_attention.layers:
        layer.cross_attn_image.q_proj.bias.fill_(1.0)
        layer.cross_attn_image.k_proj.bias.fill_(1.0)


def encode(model: SAM2Base, pictures: Tensor) -> Features:
    """float32 (B, 3, S, S) -> features."""
    _, maps, positions, sizes = model._prepare_backbone_features(model.forward_image(pictures))
    return Features(maps, positions, sizes)


def decode(
    model: SAM2Base,
    features: Tensor,
    fine: list[Tensor],
    points: tuple[Tensor, Tensor] | None,
    mask: Tensor | None = None,
) -> Answer:
    """Prompt encoder and mask decoder.

    features (B, C, h, w) with memory, fine: its two finer levels, points: (B, P, 2) and (B, P),
    mask (B, 1, 4 h, 4 w) logits.
    """
    if points is None:
        batch = len(features)
        points = (
            features.new_zeros(batch, 1, 2),
            -torch.ones(batch, 1, dtype=torch.int32, device=features.device),
        )
    sparse, dense = model.sam_prompt_encoder(points=points, boxes=None, masks=mask)
    parts = model.sam_mask_decoder.predict_masks(
        image_embeddings=features,
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=fine,
    )
    return Answer(*(part.float() for part in parts))


def choose(model: SAM2Base, answer: Answer, multimask: bool) -> tuple[Tensor, Tensor]:
    """The mask the tracker takes, logits (B, 1, h, w), and its object pointer (B, C)."""
    batch = torch.arange(len(answer.ious), device=answer.ious.device)
    best = 1 + answer.ious[:, 1:].argmax(1) if multimask else torch.zeros_like(batch)
    here = answer.presence > 0
    mask = torch.where(here[:, None, None], answer.logits[batch, best][:, None], NO_OBJ_SCORE)
    pointer = model.obj_ptr_proj(answer.tokens[batch, best])
    return mask, torch.where(here, pointer, model.no_obj_ptr)


def remember(
    model: SAM2Base,
    features: Features,
    mask: Tensor,
    pointer: Tensor,
    presence: Tensor,
    from_points: bool,
) -> dict[str, Any]:
    """One frame's entry in the memory bank; mask: logits (B, 1, h, w) or (B, 1, S, S)."""
    size = model.image_size
    full = F.interpolate(mask, size=(size, size), mode="bilinear", align_corners=False)
    memory, position = model._encode_new_memory(
        current_vision_feats=features.maps,
        feat_sizes=features.sizes,
        pred_masks_high_res=full,
        object_score_logits=presence,
        is_mask_from_pts=from_points,
    )
    return {"maskmem_features": memory, "maskmem_pos_enc": position, "obj_ptr": pointer}


def prompted(
    model: SAM2Base, features: Features, points: tuple[Tensor, Tensor], mask: Tensor | None = None
) -> Answer:
    """The answer on a frame with prompts: no memory, only the embedding that says so."""
    *fine, coarse = features.planes()
    return decode(model, coarse + model.no_mem_embed[0, 0][:, None, None], fine, points, mask)


def from_mask(model: SAM2Base, features: Features, mask: Tensor) -> dict[str, Any]:
    """The memory of a frame whose mask is given; mask: (B, 1, S, S) in {0, 1}."""
    *fine, coarse = features.planes()
    _, _, _, low, high, pointer, presence = model._use_mask_as_output(coarse, fine, mask)
    del low
    return remember(model, features, high, pointer, presence, from_points=False)


def tracked(model: SAM2Base, features: Features, index: int, bank: dict[str, Any]) -> Answer:
    """The answer on frame `index`, from what the memory bank knows."""
    *fine, _ = features.planes()
    fused = model._prepare_memory_conditioned_features(
        frame_idx=index,
        is_init_cond_frame=False,
        current_vision_feats=features.maps[-1:],
        current_vision_pos_embeds=features.positions[-1:],
        feat_sizes=features.sizes[-1:],
        output_dict=bank,
        num_frames=LONG_VIDEO,
    )
    return decode(model, fused, fine, None)
