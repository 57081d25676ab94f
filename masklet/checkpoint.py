"""Where each object's tracking stands, as one file: a killed run goes on from it.

    checkpoint.safetensors
        {n}/conditioning/{position}/spatial, …/pointer    memories of the n-th object's bank
        {n}/tracked/{position}/spatial, …/pointer
        {n}/pending/frame_index, …/object_score, …/logits  rows that are in no part yet

The file's metadata holds the ids of the objects and, of each, the key of its work, the number of
steps taken and the hashes of its parts; and a hash of all that.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from masklet.atomic import replacing
from masklet.job import ObjectId
from masklet.standings import VERSION, digest, standings
from masklet.store import MaskletRow
from masklet.tracker import Memory, MemoryBank


@dataclass(frozen=True)
class Standing:
    """Where the tracking of one object stands.

    steps: how many steps of `segment_frames` were taken.
    bank: the tracker's state after the last of them.
    pending: rows that are in no part of the store yet.
    parts: sha256 of each part that was written, by file name.
    """

    steps: int
    bank: MemoryBank
    pending: Sequence[MaskletRow] = ()
    parts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """A standing, and the key of the work that it belongs to."""

    key: str
    standing: Standing


def save_checkpoint(path: Path, objects: Mapping[ObjectId, Kept]) -> None:
    """Write a checkpoint atomically. Raises UserError where it cannot be written."""
    tensors: dict[str, Tensor] = {}
    for number, kept in enumerate(objects.values()):
        tensors |= _bank_tensors(f"{number}/", kept.standing.bank)
        tensors |= _pending_tensors(f"{number}/pending/", kept.standing.pending)
    tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
    about = json.dumps(
        [
            [one, kept.key, kept.standing.steps, dict(kept.standing.parts)]
            for one, kept in objects.items()
        ]
    )
    metadata = {"version": VERSION, "objects": about, "sha256": _digest(about, tensors)}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # a full disk, too
            raise OSError(str(error)) from error


def load_checkpoint(path: Path) -> dict[ObjectId, Kept]:
    """Read a checkpoint, onto the CPU; empty if there is none, or none that is whole."""
    try:
        found = standings(path)
        tensors = load_file(path) if found else {}
        return {
            one: Kept(
                key,
                Standing(
                    steps,
                    _bank(f"{number}/", tensors),
                    _pending(f"{number}/pending/", tensors),
                    parts,
                ),
            )
            for number, (one, (key, steps, parts)) in enumerate(found.items())
        }
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return {}  # of no use; everything can be tracked again


def _digest(about: str, tensors: Mapping[str, Tensor]) -> str:
    return digest(
        about,
        {
            name: tensor.contiguous().view(-1).view(torch.uint8).numpy().data
            for name, tensor in tensors.items()
        },
    )


def _bank_tensors(prefix: str, bank: MemoryBank) -> dict[str, Tensor]:
    tensors = {}
    for kind, memories in (("conditioning", bank.conditioning), ("tracked", bank.tracked)):
        for position, memory in memories.items():
            place = f"{prefix}{kind}/{position}/"
            tensors[f"{place}pointer"] = memory.pointer.contiguous()
            if memory.spatial is not None:
                tensors[f"{place}spatial"] = memory.spatial.contiguous()
    return tensors


def _bank(prefix: str, tensors: Mapping[str, Tensor]) -> MemoryBank:
    memories: dict[str, dict[int, Memory]] = {"conditioning": {}, "tracked": {}}
    for name in tensors:
        if name.startswith(prefix) and name.endswith("/pointer"):
            kind, position, _ = name.removeprefix(prefix).split("/")
            spatial = tensors.get(f"{prefix}{kind}/{position}/spatial")
            memories[kind][int(position)] = Memory(spatial, tensors[name])
    # in the order of time, in which the tracker filled it: sums depend on the order of tokens
    return MemoryBank(*(dict(sorted(memories[kind].items())) for kind in memories))


def _pending_tensors(prefix: str, rows: Sequence[MaskletRow]) -> dict[str, Tensor]:
    if not rows:
        return {}
    return {
        f"{prefix}frame_index": torch.tensor([row.frame_index for row in rows]),
        f"{prefix}object_score": torch.tensor(
            [row.object_score for row in rows], dtype=torch.float64
        ),
        f"{prefix}logits": torch.from_numpy(np.stack([row.logits for row in rows])),
    }


def _pending(prefix: str, tensors: Mapping[str, Tensor]) -> list[MaskletRow]:
    if f"{prefix}logits" not in tensors:
        return []
    indices, scores, logits = (
        tensors[prefix + name] for name in ("frame_index", "object_score", "logits")
    )
    return [
        MaskletRow(*row)
        for row in zip(indices.tolist(), scores.tolist(), logits.numpy(), strict=True)
    ]
