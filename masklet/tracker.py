"""The SAM 2 video tracker, on streams of frames and with a state of constant size.

One object's state is a `MemoryBank`: what its prompted frames and its last few tracked frames left
behind. A frame is handled in two steps that share its features:

    condition(model, features, prompts)  -> a prediction from prompts alone, and its memory
    track(model, features, banks, …)     -> predictions from memory, one an object, and new banks

Frames are counted in positions of the list of processed frames, as `SAM2VideoPredictor` counts
them. Logits are those of that predictor (sam2/sam2_video_predictor.py, with fill_hole_area = 0):
objects are independent there, so here they go through the network as one batch wherever their
banks hold the same number of tokens.

The paper: Ravi et al., SAM 2: Segment Anything in Images and Videos, arXiv:2408.00714.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor

from masklet.plan import Clicks, FramePrompts

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

# SAM2VideoPredictor clamps the logits it feeds back with a refining click to this range.
_PREVIOUS_LOGITS_RANGE = 32.0
_TOP_LEFT, _BOTTOM_RIGHT = 2, 3


@dataclass(frozen=True)
class FrameFeatures:
    """What the image encoder makes of one frame; shared by all objects.

    levels: feature maps (h*w, 1, channels), from stride 4 to stride 16.
    position: position embedding of the last level, (h*w, 1, channels).
    sizes: (h, w) of every level.
    """

    levels: list[Tensor]
    position: Tensor
    sizes: list[tuple[int, int]]


@dataclass(frozen=True)
class Memory:
    """What one frame leaves behind for one object.

    spatial: (mem_dim, h, w) bfloat16, from the memory encoder; None once no frame can attend to it.
    pointer: object pointer, (d_model,) float32.
    """

    spatial: Tensor | None
    pointer: Tensor


@dataclass(frozen=True)
class MemoryBank:
    """All that the tracker keeps of one object, by position.

    conditioning: memories of the prompted frames, kept for good.
    tracked: memories of the frames tracked last, pruned by `track`.
    """

    conditioning: Mapping[int, Memory]
    tracked: Mapping[int, Memory] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """One object on one frame.

    logits: (image_size / 4, image_size / 4) float32, > 0 on the object; all -1024 without one.
    object_score: logit of the object being there, a scalar float32 tensor.
    """

    logits: Tensor
    object_score: Tensor


@dataclass(frozen=True)
class Sweep:
    """One sweep over the frames.

    num_frames: length of the list of processed frames; caps the number of object pointers.
    reverse: from later to earlier positions.
    retain: positions kept for a later sweep in the other direction.
    """

    num_frames: int
    reverse: bool = False
    retain: range = range(0)


def preprocess(frame: NDArray[np.uint8], image_size: int) -> Tensor:
    """Stretch an RGB frame (H, W, 3) to (3, image_size, image_size) float32, normalized.

    The same pixels as `sam2.utils.misc.load_video_frames` makes of a folder of pictures.
    """
    resized = Image.fromarray(frame).resize((image_size, image_size), Image.Resampling.BICUBIC)
    # in numpy: torch would start a team of threads of its own in the thread that reads ahead,
    # which fights with the model's for the cores
    pixels = np.asarray(resized, np.float32) / np.float32(255)
    normalized = (pixels - np.array(PIXEL_MEAN, np.float32)) / np.array(PIXEL_STD, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalized.transpose(2, 0, 1)))


@torch.inference_mode()
def encode(model: SAM2Base, image: Tensor) -> FrameFeatures:
    """Run the image encoder on one preprocessed frame (3, image_size, image_size)."""
    backbone = model.forward_image(image[None].to(model.device))
    _, levels, positions, sizes = model._prepare_backbone_features(backbone)
    return FrameFeatures(levels, positions[-1], sizes)


@torch.inference_mode()
def condition(
    model: SAM2Base, features: FrameFeatures, prompts: FramePrompts, frame_size: tuple[int, int]
) -> tuple[Prediction, Memory]:
    """Segment one object on a prompted frame, without any memory, and make the frame's memory.

    Args:
        frame_size: (height, width) of the frame that the prompts are given in.
    """
    prediction: Prediction | None = None
    pointer = torch.empty(0)
    if prompts.mask is not None:
        prediction, pointer = _from_mask(model, features, prompts.mask)
    points: Tensor | None = None
    labels: Tensor | None = None
    for clicks in prompts.clicks:
        coordinates, kinds = _as_points(model, clicks, frame_size)
        points = coordinates if points is None else torch.cat([points, coordinates], dim=1)
        labels = kinds if labels is None else torch.cat([labels, kinds], dim=1)
        prediction, pointer = _from_points(model, features, points, labels, prediction)
    if prediction is None:
        raise ValueError("a prompted frame has a mask or clicks")
    spatial = _encode_memory(model, features, [prediction], from_prompts=True)
    return prediction, Memory(spatial[0], pointer)


@torch.inference_mode()
def track(
    model: SAM2Base,
    features: FrameFeatures,
    position: int,
    banks: Sequence[MemoryBank],
    sweep: Sweep,
) -> list[tuple[Prediction, MemoryBank]]:
    """Segment objects on one frame from their memory alone.

    Returns a prediction and the next memory bank for every bank, in the order of `banks`.
    """
    layouts = [_recall(model, bank, position, sweep) for bank in banks]

    def layout(index: int) -> tuple[int, int]:
        return len(layouts[index].spatial), len(layouts[index].pointers)

    tracked: dict[int, tuple[Prediction, MemoryBank]] = {}
    for _, group in groupby(sorted(range(len(banks)), key=layout), key=layout):
        indices = list(group)
        recalls = [layouts[index] for index in indices]
        conditioned = _attend(model, features, recalls, _pointer_cap(model, sweep))
        predictions, pointers = _decode(model, features, conditioned, None, None, None)
        spatial = _encode_memory(model, features, predictions, from_prompts=False)
        for row, index in enumerate(indices):
            memory = Memory(spatial[row], pointers[row])
            bank = _remember(model, banks[index], position, memory, sweep)
            tracked[index] = predictions[row], bank
    return [tracked[index] for index in range(len(banks))]


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
    model: SAM2Base,
    features: FrameFeatures,
    points: Tensor,
    labels: Tensor,
    previous: Prediction | None,
) -> tuple[Prediction, Tensor]:
    """Decode with clicks; a previous prediction on the frame is refined."""
    previous_logits = None
    if previous is not None:
        limit = _PREVIOUS_LOGITS_RANGE
        previous_logits = previous.logits[None, None].clamp(-limit, limit)
    without_memory = _as_map(features.levels[-1] + model.no_mem_embed, features.sizes[-1])
    predictions, pointers = _decode(
        model, features, without_memory, points, labels, previous_logits
    )
    return predictions[0], pointers[0]


def _from_mask(
    model: SAM2Base, features: FrameFeatures, mask: NDArray[np.bool_]
) -> tuple[Prediction, Tensor]:
    """Take a mask (H, W) as the prediction; only its object pointer comes from the decoder."""
    pixels = torch.from_numpy(mask)[None, None].float().to(model.device)
    size = (model.image_size, model.image_size)
    if mask.shape != size:
        pixels = F.interpolate(
            pixels, size=size, mode="bilinear", align_corners=False, antialias=True
        )
        pixels = (pixels >= 0.5).float()
    _, _, _, logits, _, pointer, score = model._use_mask_as_output(
        _as_map(features.levels[-1], features.sizes[-1]), _high_resolution(features, 1), pixels
    )
    return Prediction(logits[0, 0], score[0, 0]), pointer[0]


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

    Spatial memories: every conditioning frame, future ones too, and the num_maskmem - 1 nearest
    frames already passed. Object pointers: conditioning frames already passed, and the nearest
    frames already passed, up to the cap.
    """
    step = 1 if sweep.reverse else -1
    near = [
        (bank.tracked.get(position + step * distance), distance)
        for distance in range(model.num_maskmem - 1, 0, -1)
    ]
    spatial = [(memory, 0) for memory in bank.conditioning.values()]
    spatial += [(memory, distance) for memory, distance in near if memory is not None]

    pointers = [
        (memory.pointer, abs(position - at))
        for at, memory in bank.conditioning.items()
        if (at >= position if sweep.reverse else at <= position)
    ]
    for distance in range(1, _pointer_cap(model, sweep)):
        if (memory := bank.tracked.get(position + step * distance)) is not None:
            pointers.append((memory.pointer, distance))
    return _Recall([(_kept(memory), distance) for memory, distance in spatial], pointers)


def _remember(
    model: SAM2Base, bank: MemoryBank, position: int, memory: Memory, sweep: Sweep
) -> MemoryBank:
    """Add a tracked frame and forget what no later frame can attend to."""
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


def _attend(
    model: SAM2Base, features: FrameFeatures, recalls: Sequence[_Recall], pointer_cap: int
) -> Tensor:
    """Fuse the frame's features with each object's memory: (objects, d_model, h, w).

    All recalls have the same number of spatial memories and of pointers.
    """
    tokens, positions = _spatial_tokens(model, recalls)
    num_pointer_tokens = 0
    if recalls[0].pointers:
        pointer_tokens, pointer_positions = _pointer_tokens(model, recalls, pointer_cap)
        num_pointer_tokens = len(pointer_tokens)
        tokens = torch.cat([tokens, pointer_tokens])
        positions = torch.cat([positions, pointer_positions])
    fused = model.memory_attention(
        curr=features.levels[-1].expand(-1, len(recalls), -1),
        curr_pos=features.position.expand(-1, len(recalls), -1),
        memory=tokens,
        memory_pos=positions,
        num_obj_ptr_tokens=num_pointer_tokens,
    )
    return _as_map(fused, features.sizes[-1])


def _spatial_tokens(model: SAM2Base, recalls: Sequence[_Recall]) -> tuple[Tensor, Tensor]:
    """Memory maps as tokens and their position embeddings, both (memories*h*w, objects, mem_dim).

    The temporal embeddings count frames from the nearest one; prompted frames have the last, which
    index -1 picks for distance 0.
    """
    maps = torch.stack([torch.stack([m for m, _ in recall.spatial]) for recall in recalls]).float()
    ages = torch.tensor([[distance for _, distance in recall.spatial] for recall in recalls])
    tokens = maps.flatten(3).permute(1, 3, 0, 2)
    where = model.memory_encoder.position_encoding(maps[:1, 0]).flatten(2).permute(2, 0, 1)
    when = model.maskmem_tpos_enc[ages.T - 1, 0, 0]
    return tokens.flatten(0, 1), (where[None] + when[:, None]).flatten(0, 1)


def _pointer_tokens(
    model: SAM2Base, recalls: Sequence[_Recall], pointer_cap: int
) -> tuple[Tensor, Tensor]:
    """Object pointers as tokens and their embeddings, both (pointers*splits, objects, mem_dim).

    A pointer is wider than a memory token, so it is cut into d_model / mem_dim of them.
    """
    pointers = torch.stack([torch.stack([p for p, _ in recall.pointers]) for recall in recalls])
    splits = pointers.shape[-1] // model.mem_dim
    objects, count, _ = pointers.shape
    tokens = pointers.reshape(objects, count * splits, model.mem_dim).transpose(0, 1)
    # what upstream calls t_diff_max, the farthest a pointer can be
    distances = torch.tensor([[d for _, d in recall.pointers] for recall in recalls]).T
    if model.add_tpos_enc_to_obj_ptrs:
        width = model.hidden_dim if model.proj_tpos_enc_in_obj_ptrs else model.mem_dim
        when = get_1d_sine_pe(distances.to(tokens.device) / (pointer_cap - 1), dim=width)
        positions = model.obj_ptr_tpos_proj(when)
    else:
        positions = tokens.new_zeros(*distances.shape, model.mem_dim)
    return tokens, positions.repeat_interleave(splits, dim=0)


# ---------------------------------------------------------------------------------------------
# The parts of the network


def _decode(
    model: SAM2Base,
    features: FrameFeatures,
    conditioned: Tensor,
    points: Tensor | None,
    labels: Tensor | None,
    previous_logits: Tensor | None,
) -> tuple[list[Prediction], Tensor]:
    """Run prompt encoder and mask decoder on a batch of objects.

    Returns a prediction an object, and their pointers (objects, d_model).
    """
    prompted = points is not None
    inputs = {"point_coords": points, "point_labels": labels} if prompted else None
    _, _, _, logits, _, pointers, scores = model._forward_sam_heads(
        backbone_features=conditioned,
        point_inputs=inputs,
        mask_inputs=previous_logits,
        high_res_features=_high_resolution(features, len(conditioned)),
        multimask_output=model._use_multimask(prompted, inputs),
    )
    return [Prediction(*row) for row in zip(logits[:, 0], scores[:, 0], strict=True)], pointers


def _encode_memory(
    model: SAM2Base,
    features: FrameFeatures,
    predictions: Sequence[Prediction],
    *,
    from_prompts: bool,
) -> Tensor:
    """Run the memory encoder on a batch of predictions: (objects, mem_dim, h, w) bfloat16.

    Stored in bfloat16 as upstream does, which halves the state.
    """
    logits = torch.stack([prediction.logits for prediction in predictions])[:, None]
    size = (model.image_size, model.image_size)
    memory, _ = model._encode_new_memory(
        current_vision_feats=[features.levels[-1].expand(-1, len(predictions), -1)],
        feat_sizes=features.sizes[-1:],
        pred_masks_high_res=F.interpolate(logits, size=size, mode="bilinear", align_corners=False),
        object_score_logits=torch.stack([p.object_score for p in predictions])[:, None],
        is_mask_from_pts=from_prompts,
    )
    return torch.as_tensor(memory).to(torch.bfloat16)


def _high_resolution(features: FrameFeatures, batch: int) -> list[Tensor]:
    return [
        _as_map(level, size).expand(batch, -1, -1, -1)
        for level, size in zip(features.levels[:-1], features.sizes[:-1], strict=True)
    ]


def _as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(h*w, batch, channels) -> (batch, channels, h, w)."""
    return tokens.permute(1, 2, 0).reshape(tokens.shape[1], tokens.shape[2], *size)
