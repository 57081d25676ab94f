"""One step's data: clips, the objects to follow in them, and which prompts they get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training import prompts
from training.assets import Bank
from training.replay import Seed
from training.world import Clip, render

Rng = np.random.Generator
MIN_AREA = 0.003
IMAGE_STRIDE = 12.0
IMAGE_PROMPTS = {"click": 0.6, "clicks": 0.2, "box": 0.2}
CLIP_PROMPTS = {"click": 0.45, "clicks": 0.1, "box": 0.15, "mask": 0.3}


@dataclass(frozen=True)
class Batch:
    """What a step sees.

    frames: uint8 (V, T, S, S, 3). masks: float32 (V N, T, S, S) in {0, 1}, video by video.
    seeds: what draws the new clips again, which are the last videos; single pictures have none.
    """

    frames: Tensor
    masks: Tensor
    seeds: Sequence[Seed] = ()

    def rows(self) -> Tensor:
        """Which video each object belongs to, int64 (V N,)."""
        videos = len(self.frames)
        order = torch.arange(videos, device=self.frames.device)
        return order.repeat_interleave(len(self.masks) // videos)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(self.frames.to(device), self.masks.to(device), self.seeds)


@dataclass(frozen=True)
class Plan:
    """What is asked of a batch.

    kind: 'click', 'clicks', 'box' or 'mask' on frame 0. count: how many clicks for 'clicks'.
    correction: whether a second round adds a click where the first was wrong. second: another
    prompted frame, or 0 for none. gap: how far after frame 0 the following frames pretend to be.
    """

    kind: str
    count: int
    correction: bool
    second: int
    gap: int


def plan(rng: Rng, frames: int, shares: Mapping[str, float] | None = None) -> Plan:
    """A random plan for clips of `frames` frames; a single one is never prompted by a mask.

    shares: how often each kind of prompt is given in relation to the others.
    """
    images = frames == 1
    given = dict(shares or (IMAGE_PROMPTS if images else CLIP_PROMPTS))
    if images:
        given.pop("mask", None)
    weights = np.array(list(given.values()))
    kind = str(rng.choice(list(given), p=weights / weights.sum()))
    return Plan(
        kind,
        int(rng.integers(2, 6)),
        kind != "mask" and rng.random() < (0.35 if images else 0.15),
        int(rng.integers(1, frames)) if frames > 2 and rng.random() < 0.2 else 0,
        int(rng.integers(2, 40)) if frames > 2 and rng.random() < 0.25 else 1,
    )


def followed(rng: Rng, clip: Clip, count: int) -> NDArray[np.float32] | None:
    """Masks of `count` objects that are visible in the first frame, float32 (count, T, S, S)."""
    area = np.bincount(clip.labels[0].ravel(), minlength=2)[1:] / clip.labels[0].size
    visible = np.flatnonzero(area >= MIN_AREA) + 1
    if len(visible) == 0:
        return None
    rng.shuffle(visible)
    chosen = np.resize(visible, count)
    return np.asarray(clip.labels[None] == chosen[:, None, None, None], np.float32)


def draw(
    rng: Rng,
    bank: Bank,
    size: int,
    videos: int,
    frames: int,
    objects: int,
    stride: float = 1.0,
    again: Sequence[Seed] = (),
) -> Batch:
    """`videos` clips with `objects` followed objects each, frames `stride` units of time apart.

    Single images are taken two from a clip, far apart, which halves the cost of making them.
    again: seeds of clips that come first, as they were; the others are new.
    """
    pictures: list[NDArray[np.uint8]] = []
    masks: list[NDArray[np.float32]] = []
    seeds: list[Seed] = []
    sources = chain(map(seeded, again), repeat(rng))
    while len(pictures) < videos:
        source = next(sources)
        seed = source.bit_generator.state
        clip = (
            render(source, bank, size, 2, IMAGE_STRIDE)
            if frames == 1
            else render(source, bank, size, frames, stride)
        )
        pieces = (
            [Clip(clip.frames[i : i + 1], clip.labels[i : i + 1]) for i in range(2)]
            if frames == 1
            else [clip]
        )
        for piece in pieces:
            found = followed(source, piece, objects)
            if found is not None and len(pictures) < videos:
                pictures.append(piece.frames)
                masks.append(found)
                if source is rng and frames > 1:
                    seeds.append(seed)
    stacked = torch.from_numpy(np.stack(pictures))
    return Batch(stacked, torch.from_numpy(np.concatenate(masks)), seeds)


def seeded(seed: Seed) -> Rng:
    """A generator in this state."""
    rng = np.random.default_rng()
    rng.bit_generator.state = seed
    return rng


def boolean(masks: Tensor) -> list[NDArray[np.bool_]]:
    """(B, S, S) tensor -> B boolean arrays."""
    return list((masks > 0).cpu().numpy())


def tensors(points: prompts.Points, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts as the prompt encoder wants them."""
    return torch.from_numpy(points[0]).to(device), torch.from_numpy(points[1]).to(device)
