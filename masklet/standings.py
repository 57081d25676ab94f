"""How far the tracking of each object had come, told from a checkpoint without loading torch."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, deserialize, safe_open

from masklet.job import ObjectId

CHECKPOINT = "checkpoint.safetensors"
"""The file's name; `masklet.checkpoint` says what is in it."""

VERSION = "1"


class Stood(NamedTuple):
    """Where one object stood: the key of its work, steps taken, and its parts' hashes by name."""

    key: str
    steps: int
    parts: Mapping[str, str]


def standings(path: Path) -> dict[ObjectId, Stood]:
    """Where each object of a checkpoint stood; empty if there is none, or none that is whole."""
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata()
        about = metadata["objects"]
        whole = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]  # of Rust
        tensors = {name: one["data"] for name, one in whole}
        if metadata["version"] != VERSION or metadata["sha256"] != digest(about, tensors):
            return {}
        return {one: Stood(key, steps, parts) for one, key, steps, parts in json.loads(about)}
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return {}


def digest(about: str, tensors: Mapping[str, Any]) -> str:
    """The hash of all that a checkpoint holds; the tensors are given by name, as their bytes."""
    hashed = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        hashed.update(name.encode())
        hashed.update(tensors[name])
    return hashed.hexdigest()
