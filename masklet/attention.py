"""Memory attention: how a frame's features are fused with an object's memory.

The layers and weights are those of `sam2.modeling.memory_attention.MemoryAttention`; the arithmetic
is arranged for speed.

- Rotary position embedding turns pairs of channels by an angle. Queries and keys are turned alike
  and only their products count, so the rows of their projections are reordered once, all first
  channels of the pairs before all second ones, and real numbers do what upstream does with complex.
- A key is a projection of memory plus embedding. The embedding's part depends on place and age
  alone, so it is projected and turned beforehand.
- Attention weights add up to 1, so the bias of the values moves into the output projection. On a
  CPU so do the values' weights: what is mixed is memory itself, which has fewer channels.

Activations between the matrix products are float32, whatever the precision of the weights.
"""

from copy import deepcopy
from dataclasses import dataclass
from math import isqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.sam.transformer import RoPEAttention
from torch import Tensor, nn

# attention weights at once, 32 MiB in float32; where one object has more, it is cut into blocks
_MOST_WEIGHTS = 2**23
_BLOCK_QUERIES, _BLOCK_KEYS = 1024, 2048
_HAS_TILES = torch.cpu._is_amx_tile_supported()


class MemoryTokens(NamedTuple):
    """What B objects attend to, as many tokens for each.

    tokens: (B, maps * h * w + pointers, mem_dim), first the memory maps, then object pointers.
    ages: temporal position of each map, (B, maps) int64, an index of `Fusion.places`.
    pointer_position: embeddings of the pointers, (B, pointers, mem_dim).
    """

    tokens: Tensor
    ages: Tensor
    pointer_position: Tensor


@dataclass(frozen=True)
class _Projection:
    """A linear layer: weight (out, in) in the precision of products, bias (out,) float32."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x.to(self.weight.dtype) @ self.weight.T).float() + self.bias


@dataclass(frozen=True)
class _Attention:
    """One attention block; queries and keys come with their channel pairs reordered.

    value: weights of the values; out: the projection of mixed values. out_of_memory: the same of
    mixed memory.
    places: the turned keys of embeddings alone, (ages, h * w, channels) float32; empty in
    self-attention.
    """

    query: _Projection
    key: _Projection
    value: Tensor
    out: _Projection
    out_of_memory: _Projection
    places: Tensor


@dataclass(frozen=True)
class Fusion:
    """The memory attention of a model for feature maps of one size, ready to run.

    cos, sin: the angles of every place, (h * w, d_model / 2).
    """

    attention: MemoryAttention
    blocks: list[tuple[_Attention, _Attention]]
    cos: Tensor
    sin: Tensor

    @staticmethod
    @torch.inference_mode()
    def of(attention: MemoryAttention, embeddings: Tensor, dtype: torch.dtype) -> "Fusion":
        """Prepare the weights.

        Args:
            embeddings: position embeddings of memory maps, by age, (ages, h * w, mem_dim).
            dtype: precision of the matrix products.
        """
        side = isqrt(embeddings.shape[1])
        turns = attention.layers[0].self_attn.compute_cis(end_x=side, end_y=side)
        turns = turns.to(embeddings.device)
        cos, sin = turns.real.contiguous(), turns.imag.contiguous()
        blocks = []
        for layer in attention.layers:
            _check(layer)
            across = layer.cross_attn_image
            places = _turn(_reordered(across.k_proj, torch.float32)(embeddings), cos, sin)
            blocks.append(
                (
                    _prepare(layer.self_attn, embeddings.new_empty(0), dtype),
                    _prepare(across, places, dtype),
                )
            )
        if dtype != torch.float32:
            attention = deepcopy(attention)
            for layer in attention.layers:
                layer.linear1.to(dtype)
                layer.linear2.to(dtype)
        return Fusion(attention, blocks, cos, sin)

    def __call__(self, image: Tensor, position: Tensor, memory: MemoryTokens) -> Tensor:
        """Fuse a frame's features with the memory of B objects.

        Args:
            image: the frame's coarsest features, (1, h * w, d_model); position: their embedding.

        Returns:
            (B, h * w, d_model) float32.
        """
        fused = image + 0.1 * position if self.attention.pos_enc_at_input else image
        for layer, (within, across) in zip(self.attention.layers, self.blocks, strict=True):
            fused = fused + self._self_attention(within, layer.norm1(fused))
            fused = fused + self._cross_attention(across, layer.norm2(fused), memory)
            hidden = layer.activation(_linear(layer.linear1, layer.norm3(fused)))
            fused = fused + _linear(layer.linear2, hidden).float()
        return torch.as_tensor(self.attention.norm(fused))

    def _self_attention(self, block: _Attention, x: Tensor) -> Tensor:
        queries = _turn(block.query(x), self.cos, self.sin)
        keys = _turn(block.key(x), self.cos, self.sin)
        return _attend(block, queries, keys, x)

    def _cross_attention(self, block: _Attention, x: Tensor, memory: MemoryTokens) -> Tensor:
        queries = _turn(block.query(x), self.cos, self.sin).expand(len(memory.tokens), -1, -1)
        objects, maps = memory.ages.shape
        by_map = objects, maps, len(self.cos), -1
        spatial = maps * len(self.cos)
        projected = (memory.tokens.to(block.key.weight.dtype) @ block.key.weight.T).float()
        keys = torch.empty_like(projected)
        keys_by_map = keys[:, :spatial].view(by_map)
        for index in range(objects):
            keys_by_map[index] = block.places.index_select(0, memory.ages[index])
        _add_turned(keys_by_map, projected[:, :spatial].view(by_map), self.cos, self.sin)
        keys[:, spatial:] = projected[:, spatial:] + block.key(memory.pointer_position)
        return _attend(block, queries, keys, memory.tokens)


def _attend(block: _Attention, queries: Tensor, keys: Tensor, memory: Tensor) -> Tensor:
    """Queries (B, n, c) and keys (B, m, c) float32, memory (B, m, mem_dim) -> (B, n, d_model)."""
    dtype = block.value.dtype
    queries, keys, memory = queries.to(dtype), keys.to(dtype), memory.to(dtype)
    if keys.device.type == "cpu":
        return block.out_of_memory(mix(queries, keys, memory))
    return block.out(_fused(queries, keys, memory @ block.value.T))


def _fused(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None])[:, 0]


def mix(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention on a CPU: queries (B, n, c), keys (B, m, c), values (B, m, d) -> (B, n, d).

    By two products, as torch's own attention wants values as wide as keys, and is slower in
    bfloat16 on processors that have no tiles for it (AMX).
    """
    if _HAS_TILES and values.dtype == torch.bfloat16 and values.shape[-1] == keys.shape[-1]:
        return _fused(queries, keys, values)
    queries = queries * queries.shape[-1] ** -0.5
    size = max(1, _MOST_WEIGHTS // (queries.shape[1] * keys.shape[1]))
    batches = zip(*(torch.split(one, size) for one in (queries, keys, values)), strict=True)
    parts = [_mix_batch(*batch) for batch in batches]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _mix_batch(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    if len(queries) > 1:
        return _mix(queries, keys, values)
    # of a batch, even of one, torch copies keys that are transposed
    is_large = queries.shape[1] * keys.shape[1] > _MOST_WEIGHTS
    one = _mix_by_blocks if is_large else _mix
    return one(queries[0], keys[0], values[0])[None]


def _mix(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return (queries @ keys.transpose(-1, -2)).softmax(-1) @ values


def _mix_by_blocks(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The same, (n, c), (m, c), (m, d) -> (n, d), with weights that stay in the cache.

    Weights are relative to the largest score so far, as in FlashAttention (arXiv:2205.14135).
    """
    parts = []
    for some in torch.split(queries, _BLOCK_QUERIES):
        largest = some.new_full((len(some), 1), -torch.inf, dtype=torch.float32)
        total = torch.zeros_like(largest)
        mixed = total.new_zeros(len(some), values.shape[1])
        blocks = (torch.split(one, _BLOCK_KEYS) for one in (keys, values))
        for these, their in zip(*blocks, strict=True):
            scores = (some @ these.T).float()
            before, largest = largest, torch.maximum(largest, scores.amax(1, keepdim=True))
            weights = scores.sub_(largest).exp_()
            kept = (before - largest).exp_()
            total.mul_(kept).add_(weights.sum(1, keepdim=True))
            mixed.mul_(kept).add_(weights.to(their.dtype) @ their)
        parts.append(mixed / total)
    return torch.cat(parts).to(values.dtype)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn reordered channels (..., n, c) by the angles (n, c / 2) of their places."""
    turned = torch.zeros_like(x)
    _add_turned(turned, x, cos, sin)
    return turned


def _add_turned(into: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    first, second = x.chunk(2, dim=-1)
    to_first, to_second = into.chunk(2, dim=-1)
    to_first.addcmul_(first, cos).addcmul_(second, sin, value=-1)
    to_second.addcmul_(first, sin).addcmul_(second, cos)


def _prepare(attention: RoPEAttention, places: Tensor, dtype: torch.dtype) -> _Attention:
    value, out = attention.v_proj, attention.out_proj
    bias = out.bias.float() + out.weight.float() @ value.bias.float()
    return _Attention(
        query=_reordered(attention.q_proj, dtype),
        key=_reordered(attention.k_proj, dtype),
        value=value.weight.to(dtype),
        out=_Projection(out.weight.to(dtype), bias),
        out_of_memory=_Projection((out.weight.float() @ value.weight.float()).to(dtype), bias),
        places=places,
    )


def _reordered(layer: nn.Linear, dtype: torch.dtype) -> _Projection:
    """The projection with its output's pairs of channels taken apart."""
    weight, bias = layer.weight, layer.bias
    return _Projection(
        torch.cat([weight[0::2], weight[1::2]]).to(dtype),
        torch.cat([bias[0::2], bias[1::2]]).float(),
    )


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer in the precision of its weights."""
    return F.linear(x.to(layer.weight.dtype), layer.weight, layer.bias)


def _check(layer: MemoryAttentionLayer) -> None:
    """All published models share these options; others would need other arithmetic."""
    rotary = isinstance(layer.self_attn, RoPEAttention)
    rotary = rotary and isinstance(layer.cross_attn_image, RoPEAttention)
    one_head = rotary and layer.self_attn.num_heads == layer.cross_attn_image.num_heads == 1
    positions = layer.pos_enc_at_attn, layer.pos_enc_at_cross_attn_queries
    if not one_head or any(positions) or not layer.pos_enc_at_cross_attn_keys:
        raise ValueError("memory attention with other options than SAM 2's published models")
