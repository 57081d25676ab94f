"""The image encoder and the memory encoder, on SAM 2's modules and weights.

The layers are those of `sam2.modeling.backbones` and `sam2.modeling.memory_encoder`. Around them:

- Position embeddings depend on the size of the picture alone, and are made once.
- Channels come last in memory, where 1x1 convolutions are plain matrix products.
- The maps of higher resolution go nowhere but into the mask decoder's projections, so those are
  multiplied into the neck's.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sam2.modeling.backbones.hieradet import Hiera, MultiScaleAttention, MultiScaleBlock, do_pool
from sam2.modeling.backbones.image_encoder import FpnNeck
from sam2.modeling.memory_encoder import CXBlock
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import LayerNorm2d
from torch import Tensor, nn

from masklet.attention import mix

_FEW_CHANNELS = 8
_STRIP_BYTES = 2**24


@dataclass(frozen=True)
class _Pointwise:
    """A 1x1 convolution on maps with the channels last: weight (out, in), bias (out,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    @staticmethod
    def of(layer: nn.Conv2d, dtype: torch.dtype) -> "_Pointwise":
        assert layer.bias is not None
        return _Pointwise(layer.weight[:, :, 0, 0].to(dtype), layer.bias.to(dtype))

    def then(self, layer: nn.Conv2d, dtype: torch.dtype) -> "_Pointwise":
        """This one followed by another, as one."""
        after = _Pointwise.of(layer, torch.float32)
        weight = after.weight @ self.weight.float()
        bias = after.weight @ self.bias.float() + after.bias
        return _Pointwise(weight.to(dtype), bias.to(dtype))


@dataclass(frozen=True)
class ImageEncoder:
    """Pictures to feature maps.

    place: the trunk's position embedding, (1, h, w, channels).
    laterals: the neck, from stride 4 to stride 32.
    """

    trunk: Hiera
    place: Tensor
    laterals: Sequence[_Pointwise]

    @staticmethod
    def of(model: SAM2Base, dtype: torch.dtype) -> "ImageEncoder":
        """Prepare a model's; with another precision than its own the trunk is a copy."""
        neck, decoder = model.image_encoder.neck, model.sam_mask_decoder
        _check_neck(neck, model.image_encoder.scalp)
        side = model.image_size // 4
        trunk = model.image_encoder.trunk
        place = trunk._get_pos_embed((side, side)).contiguous().to(dtype)
        fine, middle, coarse, lowest = (
            _Pointwise.of(conv.conv, torch.float32 if at < 2 else dtype)
            for at, conv in enumerate(reversed(neck.convs))
        )
        laterals = [fine.then(decoder.conv_s0, dtype), middle.then(decoder.conv_s1, dtype)]
        if dtype != torch.float32:
            trunk = deepcopy(trunk).to(dtype)
            if model.device.type == "cpu":
                for block in trunk.blocks:
                    block.attn = _AttentionOnCpu(block.attn)
        return ImageEncoder(trunk, place, [*laterals, coarse, lowest])

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode preprocessed pictures (B, 3, image_size, image_size).

        Returns:
            Maps (B, channels, h, w) float32 of strides 4, 8 and 16; the first two as the mask
            decoder takes them.
        """
        # the embedding gives channels first
        x = self.trunk.patch_embed(images.to(self.place)).contiguous() + self.place
        stages = []
        for index, block in enumerate(self.trunk.blocks):
            x = _by_strips(block, x)
            if index in self.trunk.stage_ends:
                stages.append(x)
        fine, middle, coarse, lowest = (
            lateral(stage).float().permute(0, 3, 1, 2)
            for lateral, stage in zip(self.laterals, stages, strict=True)
        )
        coarse = coarse + F.interpolate(lowest, scale_factor=2.0, mode="nearest")
        return fine.contiguous(), middle.contiguous(), coarse


def _by_strips(block: MultiScaleBlock, x: Tensor) -> Tensor:
    """A block, on a CPU some rows of windows at a time, so that no tensor is very large.

    Its hidden layer is the largest. A window knows nothing of the others.
    """
    if x.device.type != "cpu" or not block.window_size:
        return torch.as_tensor(block(x))
    row = block.window_size * x.shape[2] * block.mlp.layers[0].out_features * x.element_size()
    rows = block.window_size * max(1, _STRIP_BYTES // row)
    if rows >= x.shape[1]:
        return torch.as_tensor(block(x))
    return torch.cat([block(strip) for strip in torch.split(x, rows, dim=1)], dim=1)


class _AttentionOnCpu(nn.Module):
    """A block's attention, by `masklet.attention.mix`."""

    def __init__(self, attention: MultiScaleAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """Windows (B, h, w, channels) to the same, or to half of h and w where queries are pooled.

        Follows `sam2.modeling.backbones.hieradet.MultiScaleAttention`.
        """
        heads, windows = self.attention.num_heads, len(x)
        queries, keys, values = self.attention.qkv(x).chunk(3, dim=-1)
        queries = do_pool(queries, self.attention.q_pool)
        by_head = (
            part.reshape(windows, -1, heads, part.shape[-1] // heads).transpose(1, 2).flatten(0, 1)
            for part in (queries, keys, values)
        )
        mixed = torch.unflatten(mix(*by_head), 0, (windows, heads)).transpose(1, 2)
        projected: Tensor = self.attention.proj(mixed.reshape(queries.shape))
        return projected


@dataclass(frozen=True)
class MemoryEncoder:
    """A mask and the frame's features to one memory map.

    shrink: pairs of strided convolution and the norm after it, and at last a 1x1 convolution.
    image: projection of the frame's features. blocks: the fuser. out: to mem_dim channels.
    """

    shrink: Sequence[tuple[nn.Conv2d, LayerNorm2d]]
    mask: _Pointwise
    image: _Pointwise
    blocks: Sequence[CXBlock]
    out: _Pointwise

    @staticmethod
    def of(model: SAM2Base, dtype: torch.dtype) -> "MemoryEncoder":
        """Prepare a model's, on a copy of its layers."""
        encoder = deepcopy(model.memory_encoder).to(dtype, memory_format=torch.channels_last)
        layers = list(encoder.mask_downsampler.encoder)
        known = isinstance(encoder.out_proj, nn.Conv2d)
        known = known and isinstance(encoder.fuser.proj, nn.Identity)
        if not known or any(block.gamma is None for block in encoder.fuser.layers):
            raise ValueError("a memory encoder with other options than SAM 2's published models")
        return MemoryEncoder(
            list(zip(layers[:-1:3], layers[1:-1:3], strict=True)),
            _Pointwise.of(layers[-1], dtype),
            _Pointwise.of(encoder.pix_feat_proj, dtype),
            list(encoder.fuser.layers),
            _Pointwise.of(encoder.out_proj, dtype),
        )

    def __call__(self, features: Tensor, mask: Tensor) -> Tensor:
        """Encode memories.

        Args:
            features: the frame's map of stride 16, (1, d_model, h, w).
            mask: (B, 1, image_size, image_size), scaled to what the memory encoder expects.

        Returns:
            (B, mem_dim, h, w) float32.
        """
        dtype = self.mask.weight.dtype
        x = mask.to(dtype).permute(0, 2, 3, 1)
        for convolution, norm in self.shrink:
            x = F.gelu(_norm(norm, _convolve(convolution, x)))
        x = self.mask(x) + self.image(features.to(dtype).permute(0, 2, 3, 1))
        for block in self.blocks:
            y = block.pwconv1(_norm(block.norm, _convolve(block.dwconv, x)))
            x = torch.addcmul(x, block.pwconv2(F.gelu(y)), block.gamma)
        return self.out(x).float().permute(0, 3, 1, 2)


def _convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution on maps with the channels last."""
    convolved: Tensor = layer(x.permute(0, 3, 1, 2))
    return convolved.permute(0, 2, 3, 1)


def _norm(norm: LayerNorm2d, x: Tensor) -> Tensor:
    """The norm on maps with the channels last."""
    if x.shape[-1] <= _FEW_CHANNELS:
        # torch's goes pixel by pixel, upstream's goes channel by channel
        first: Tensor = norm(x.permute(0, 3, 1, 2).contiguous())
        return first.permute(0, 2, 3, 1).contiguous()
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def _check_neck(neck: FpnNeck, scalp: int) -> None:
    """All published models share these options; others would need other arithmetic."""
    known = neck.fpn_interp_model == "nearest" and neck.fuse_type == "sum"
    if not known or sorted(neck.fpn_top_down_levels) != [2, 3] or scalp != 1:
        raise ValueError("an image encoder with other options than SAM 2's published models")
