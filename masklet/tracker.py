"""The SAM 2 video tracker, on streams of frames and with a state of constant size.

One object's state is a `MemoryBank`: what its prompted frames and its last few tracked frames left
behind. All objects share the features of a frame, and on it each of them is either prompted or
tracked:

    condition(network, features, prompts, …)  -> a prediction from prompts alone, and its memory
    track(network, features, position, banks, …)  -> predictions from memory, and the next banks

Prompted frames come first, all of them, as a frame attends to those after it too. Then every other
frame is tracked, in the order of time or against it: memory attention mixes what the bank holds
into the features, the mask decoder finds the mask in them, and the memory encoder makes of mask and
features what the frames to come attend to.

Frames are counted in positions of the list of processed frames, as `SAM2VideoPredictor` counts
them. Logits are those of that predictor (sam2/sam2_video_predictor.py, with fill_hole_area = 0):
objects are independent there, so here they go through the network as one batch wherever their
banks hold the same number of tokens.

The paper: Ravi et al., SAM 2: Segment Anything in Images and Videos, arXiv:2408.00714.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor

from masklet.attention import MemoryTokens
from masklet.network import FrameFeatures, Network, Prediction
from masklet.plan import Clicks, FramePrompts
from masklet.transfer import send

# SAM2VideoPredictor clamps the logits it feeds back with a refining click to this range.
_PREVIOUS_LOGITS_RANGE = 32.0
_TOP_LEFT, _BOTTOM_RIGHT = 2, 3
# The logits of a mask prompt, almost 0 and 1 as probabilities.
_MASK_SCALE, _MASK_BIAS = 20.0, -10.0


@dataclass(frozen=True)
class Memory:
    """What one frame leaves behind for one object.

    spatial: (mem_dim, h, w) bfloat16, from the memory encoder; None once no frame can attend to it.
    pointer: object pointer, (d_model,) float32.
    """

    spatial: Tensor | None
    pointer: Tensor

    def to(self, device: torch.device) -> "Memory":
        spatial = None if self.spatial is None else self.spatial.to(device)
        return Memory(spatial, self.pointer.to(device))

    @property
    def nbytes(self) -> int:
        return self.pointer.nbytes + (0 if self.spatial is None else self.spatial.nbytes)


@dataclass(frozen=True)
class MemoryBank:
    """All that the tracker keeps of one object, by position.

    conditioning: memories of the prompted frames, kept for good.
    tracked: memories of the frames tracked last, pruned by `track`.
    """

    conditioning: Mapping[int, Memory]
    tracked: Mapping[int, Memory] = field(default_factory=dict)

    def to(self, device: torch.device) -> "MemoryBank":
        return MemoryBank(
            {at: memory.to(device) for at, memory in self.conditioning.items()},
            {at: memory.to(device) for at, memory in self.tracked.items()},
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all memories, which is what the tracker holds for the object."""
        memories = [*self.conditioning.values(), *self.tracked.values()]
        return sum(memory.nbytes for memory in memories)


@dataclass(frozen=True)
class Sweep:
    """One sweep over the frames.

    num_frames: length of the list of processed frames; where it is short it caps the number of
        object pointers, by which their distances are scaled.
    reverse: from later to earlier positions.
    retain: positions just after the start, kept for a later sweep from there in the other
        direction, which attends to them.
    """

    num_frames: int
    reverse: bool = False
    retain: range = range(0)


@torch.inference_mode()
def condition(
    network: Network, features: FrameFeatures, prompts: FramePrompts, frame_size: tuple[int, int]
) -> tuple[Prediction, Memory]:
    """Segment one object on a prompted frame, without any memory, and make the frame's memory.

    A mask is taken as it is. Each round of clicks then refines the answer before it, and sees the
    clicks of earlier rounds again. Only the last answer is remembered.

    Args:
        frame_size: (height, width) of the frame that the prompts are given in.

    Raises ValueError if nothing is said about the object.
    """
    prediction: Prediction | None = None
    pointer = torch.empty(0)
    if prompts.mask is not None:
        prediction, pointer = _from_mask(network, features, prompts.mask)
    points: Tensor | None = None
    labels: Tensor | None = None
    for clicks in prompts.clicks:
        coordinates, kinds = _as_points(network.model, clicks, frame_size)
        points = coordinates if points is None else torch.cat([points, coordinates], dim=1)
        labels = kinds if labels is None else torch.cat([labels, kinds], dim=1)
        prediction, pointer = _from_points(network, features, points, labels, prediction)
    if prediction is None:
        raise ValueError("a prompted frame has a mask or clicks")
    spatial = network.encode_memory(
        features, prediction.logits[None], prediction.object_score[None], from_prompts=True
    )
    return prediction, Memory(spatial[0], pointer)


@torch.inference_mode()
def track(
    network: Network,
    features: FrameFeatures,
    position: int,
    banks: Sequence[MemoryBank],
    sweep: Sweep,
) -> list[tuple[Prediction, MemoryBank]]:
    """Segment objects on one frame from their memory alone.

    Objects that attend to as many maps and as many pointers go through the network as one batch.

    Returns a prediction and the next memory bank for every bank, in the order of `banks`.
    """
    recalls = [_recall(network.model, bank, position, sweep) for bank in banks]

    def layout(index: int) -> tuple[int, int]:
        return len(recalls[index].spatial), len(recalls[index].pointers)

    tracked: dict[int, tuple[Prediction, MemoryBank]] = {}
    for _, group in groupby(sorted(range(len(banks)), key=layout), key=layout):
        indices = list(group)
        memory = _memory_tokens(network.model, [recalls[index] for index in indices], sweep)
        for index, prediction, made in zip(
            indices, *_track_batch(network, features, memory), strict=True
        ):
            bank = _remember(network.model, banks[index], position, made, sweep)
            tracked[index] = prediction, bank
    return [tracked[index] for index in range(len(banks))]


def _track_batch(
    network: Network, features: FrameFeatures, memory: MemoryTokens
) -> tuple[list[Prediction], list[Memory]]:
    logits, scores, spatial, pointers = network.step(features, memory)
    predictions = [Prediction(*row) for row in zip(logits, scores, strict=True)]
    # cloned: a view would keep the memory of the whole batch as long as one object needs its own
    memories = [
        Memory(*(part.clone() for part in row)) for row in zip(spatial, pointers, strict=True)
    ]
    return predictions, memories


@torch.inference_mode()
def full_memory(network: Network, banks: Sequence[MemoryBank], sweep: Sweep) -> list[MemoryTokens]:
    """Empty tokens, as many as a batch of objects attends to once their memory is full.

    One for each group of objects that attend to as many conditioning frames; all of these frames
    count as passed.
    """
    model, device = network.model, network.model.device
    splits = network.model.hidden_dim // model.mem_dim
    memories = []
    limit = model.max_cond_frames_in_attn
    chosen = [len(_nearest(bank.conditioning, sweep.num_frames, limit)) for bank in banks]
    for conditioning, objects in Counter(chosen).items():
        maps = conditioning + model.num_maskmem - 1
        pointers = (conditioning + _pointer_cap(model, sweep) - 1) * splits
        tokens = maps * model.sam_image_embedding_size**2 + pointers
        memories.append(
            MemoryTokens(
                torch.zeros(objects, tokens, model.mem_dim, device=device),
                torch.zeros(objects, maps, dtype=torch.int64, device=device),
                torch.zeros(objects, pointers, model.mem_dim, device=device),
            )
        )
    return memories


# ---------------------------------------------------------------------------------------------
# Prompts


def _as_points(
    model: SAM2Base, clicks: Clicks, frame_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Clicks and box as points (1, n, 2) in model pixels and labels (1, n) int32.

    A box is two points with labels of their own, before the clicks.
    """
    points, labels = torch.from_numpy(clicks.points), torch.from_numpy(clicks.labels)
    if clicks.box is not None:
        points = torch.cat([torch.from_numpy(clicks.box).reshape(2, 2), points])
        labels = torch.cat([torch.tensor([_TOP_LEFT, _BOTTOM_RIGHT], dtype=torch.int32), labels])
    height, width = frame_size
    points = points / torch.tensor([width, height]) * model.image_size
    return points[None].to(model.device), labels[None].to(model.device)


def _from_points(
    network: Network,
    features: FrameFeatures,
    points: Tensor,
    labels: Tensor,
    previous: Prediction | None,
) -> tuple[Prediction, Tensor]:
    """Decode with clicks; a previous prediction on the frame is refined."""
    hint = None
    if previous is not None:
        limit = _PREVIOUS_LOGITS_RANGE
        hint = previous.logits[None, None].clamp(-limit, limit)
    without_memory = features.maps[-1] + network.model.no_mem_embed[0, 0][:, None, None]
    multimask = network.takes_best_of_three(points.shape[1])
    logits, scores, pointers = network.decode(
        features, without_memory, points, labels, hint, multimask
    )
    return Prediction(logits[0], scores[0]), pointers[0]


def _from_mask(
    network: Network, features: FrameFeatures, mask: NDArray[np.bool_]
) -> tuple[Prediction, Tensor]:
    """Take a mask (H, W) as the prediction; only its object pointer comes from the decoder.

    The decoder sees the frame without the embedding that says there is no memory.
    """
    model = network.model
    pixels = torch.from_numpy(mask)[None, None].float().to(model.device)
    size = (model.image_size, model.image_size)
    if mask.shape != size:
        pixels = _shrink(pixels, size)
        pixels = (pixels >= 0.5).float()
    low = (model.image_size // 4, model.image_size // 4)
    logits = _shrink(pixels * _MASK_SCALE + _MASK_BIAS, low)[0, 0]
    hint = model.mask_downsample(pixels)
    _, _, pointer = network.decode(features, features.maps[-1], mask=hint, multimask=False)
    present = pixels.flatten(1).any(1, keepdim=True)
    score = _MASK_SCALE * present.float() + _MASK_BIAS
    return Prediction(logits, score[0, 0]), network.pointer_or_none(pointer, present)[0]


def _shrink(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)


# ---------------------------------------------------------------------------------------------
# Memory


@dataclass(frozen=True)
class _Recall:
    """What one object attends to on one frame.

    spatial: (memory, temporal position), where 0 stands for prompted frames and n for n frames ago.
    pointers: (pointer, distance in frames).
    """

    spatial: list[tuple[Tensor, int]]
    pointers: list[tuple[Tensor, int]]


def _recall(model: SAM2Base, bank: MemoryBank, position: int, sweep: Sweep) -> _Recall:
    """Choose from the bank what the frame at `position` attends to (section 4 of the paper).

    Spatial memories: of conditioning frames, also of those that the sweep has not come to yet, and
    of the last num_maskmem - 1 frames. Object pointers: of conditioning frames that the sweep has
    passed, and of the last `_pointer_cap` - 1 frames. On the way back the last frames are at first
    those of the way out.
    """
    step = 1 if sweep.reverse else -1
    conditioning = _nearest(bank.conditioning, position, model.max_cond_frames_in_attn)
    # a conditioning frame that is not chosen counts as a tracked one
    passed = {at: m for at, m in bank.conditioning.items() if at not in conditioning}
    passed |= bank.tracked
    near = [
        (passed.get(position + step * distance), distance)
        for distance in range(model.num_maskmem - 1, 0, -1)
    ]
    spatial = [(memory, 0) for memory in conditioning.values()]
    spatial += [(memory, distance) for memory, distance in near if memory is not None]

    pointers = [
        (memory.pointer, abs(position - at))
        for at, memory in conditioning.items()
        if (at >= position if sweep.reverse else at <= position)
    ]
    for distance in range(1, _pointer_cap(model, sweep)):
        if (memory := passed.get(position + step * distance)) is not None:
            pointers.append((memory.pointer, distance))
    return _Recall([(_kept(memory), distance) for memory, distance in spatial], pointers)


def _nearest(conditioning: Mapping[int, Memory], position: int, limit: int) -> Mapping[int, Memory]:
    """The conditioning frames that may be attended to; all of them if `limit` is -1.

    Otherwise the nearest before and after the frame, and then the nearest ones of the rest.
    """
    if limit == -1 or len(conditioning) <= limit:
        return conditioning
    before = [max((at for at in conditioning if at < position), default=None)]
    after = [min((at for at in conditioning if at >= position), default=None)]
    chosen = [at for at in before + after if at is not None]
    rest = sorted(conditioning.keys() - set(chosen), key=lambda at: (abs(at - position), at))
    return {at: conditioning[at] for at in [*chosen, *rest[: limit - len(chosen)]]}


def _remember(
    model: SAM2Base, bank: MemoryBank, position: int, memory: Memory, sweep: Sweep
) -> MemoryBank:
    """Add a tracked frame and forget what no later frame can attend to.

    On the next frame a memory of age n is one of n + 1 frames ago. A frame to retain is as old as
    it will be when the way back begins, if that is less.
    """
    kept: dict[int, Memory] = {}
    for at, old in (dict(bank.tracked) | {position: memory}).items():
        age = at - position if sweep.reverse else position - at
        if at in sweep.retain:
            age = min(age, sweep.retain.index(at))
        if 0 <= age < _pointer_cap(model, sweep) - 1:
            kept[at] = old if age < model.num_maskmem - 1 else replace(old, spatial=None)
    return MemoryBank(bank.conditioning, kept)


def _pointer_cap(model: SAM2Base, sweep: Sweep) -> int:
    return int(min(sweep.num_frames, model.max_obj_ptrs_in_encoder))


def _kept(memory: Memory) -> Tensor:
    if memory.spatial is None:
        raise RuntimeError("a spatial memory was dropped while frames still attend to it")
    return memory.spatial


def _memory_tokens(model: SAM2Base, recalls: Sequence[_Recall], sweep: Sweep) -> MemoryTokens:
    """Memories as tokens; all recalls have the same number of maps and of pointers."""
    maps = torch.stack([torch.stack([m for m, _ in recall.spatial]) for recall in recalls])
    # of num_maskmem temporal embeddings the first is of one frame ago, the last of prompted frames
    ages = torch.tensor([[distance - 1 for _, distance in recall.spatial] for recall in recalls])
    tokens = maps.flatten(3).transpose(2, 3).flatten(1, 2).float()
    pointers, positions = _pointer_tokens(model, recalls, _pointer_cap(model, sweep))
    return MemoryTokens(
        torch.cat([tokens, pointers], dim=1),
        send(ages % model.num_maskmem, tokens.device),
        positions,
    )


def _pointer_tokens(
    model: SAM2Base, recalls: Sequence[_Recall], pointer_cap: int
) -> tuple[Tensor, Tensor]:
    """Object pointers as tokens and their embeddings, both (objects, pointers * splits, mem_dim).

    A pointer is wider than a memory token, so it is cut into d_model / mem_dim of them.
    """
    if not recalls[0].pointers:
        none = torch.zeros(len(recalls), 0, model.mem_dim, device=model.device)
        return none, none
    pointers = torch.stack([torch.stack([p for p, _ in recall.pointers]) for recall in recalls])
    splits = pointers.shape[-1] // model.mem_dim
    tokens = pointers.reshape(len(recalls), -1, model.mem_dim)
    # upstream divides by what it calls t_diff_max, the farthest a pointer can be
    distances = torch.tensor([[d for _, d in recall.pointers] for recall in recalls])
    if model.add_tpos_enc_to_obj_ptrs:
        width = model.hidden_dim if model.proj_tpos_enc_in_obj_ptrs else model.mem_dim
        when = get_1d_sine_pe(send(distances, tokens.device) / (pointer_cap - 1), dim=width)
        positions = model.obj_ptr_tpos_proj(when)
    else:
        positions = tokens.new_zeros(*distances.shape, model.mem_dim)
    return tokens, positions.repeat_interleave(splits, dim=1)
