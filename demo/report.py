"""What a run of the demo gave: its files, and how near its masks are to the truth."""

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from masklet.errors import UserError
from masklet.job import ObjectId


@dataclass(frozen=True)
class IoUSummary:
    """How well the masks of one object meet the truth.

    `mean_iou` is the mean, over the `present` frames on which the object is seen, of intersection
    over union, 0..1. `empty_when_absent` is the share of the `absent` frames whose mask is empty,
    0..1, or None where it is always seen.
    """

    mean_iou: float
    present: int
    empty_when_absent: float | None
    absent: int


def mean_iou(masks_zip: Path, truth: Path) -> dict[ObjectId, IoUSummary]:
    """Compare a run's `masks.zip` with the `truth.zip` of `demo.render`.

    Of the masks, `{frame_index}_{object_id}.png`, only those that the truth expects are read.
    Raises UserError if one is missing or has another size than the truth.
    """
    with zipfile.ZipFile(masks_zip) as masks, zipfile.ZipFile(truth) as labels:
        object_ids: list[ObjectId] = json.loads(labels.read("objects.json"))
        frames = sum(name.endswith(".png") for name in labels.namelist())
        ious: dict[ObjectId, list[float | None]] = {object_id: [] for object_id in object_ids}
        empty = dict.fromkeys(object_ids, 0)
        for frame_index in range(frames):
            seen = _read(labels, f"{frame_index}.png")
            for value, object_id in enumerate(object_ids, start=1):
                mask = _read(masks, f"{frame_index}_{object_id}.png", seen.shape) > 127
                iou = _iou(mask, seen == value)
                ious[object_id].append(iou)
                empty[object_id] += iou is None and not mask.any()
    return {object_id: _summary(ious[object_id], empty[object_id]) for object_id in object_ids}


def report(
    outputs: Mapping[str, Any], clip: Path, look_first: Path, console: Console | None = None
) -> None:
    """Print a run's outputs, and per object how it was prompted and how well it was tracked.

    Args:
        outputs: names to paths, and `summary`, as in the run's outputs.json; of the summary,
            `frames`, `width`, `height`, `price` and, if the model ran, `frames_per_second`.
        clip: the folder that `demo.render` wrote.
        look_first: the file that shows best whether the run went well.
    """
    console = console or Console()
    summary = outputs["summary"]
    paths = {name: Path(path) for name, path in outputs.items() if name != "summary"}
    console.print(_files_table(paths, summary["frames"]))
    console.print(_objects_table(mean_iou(paths["masks"], clip / "truth.zip"), _prompted(clip)))
    speed = summary.get("frames_per_second")
    console.print(
        f"{summary['frames']} frames of {summary['width']}x{summary['height']}, "
        + (f"{speed:.1f} frames per second, " if speed else "")
        + f"price ${summary['price']:.4f}"
    )
    console.print(f"look first at {_shown(look_first)}", style="bold", soft_wrap=True)


def _files_table(paths: Mapping[str, Path], frames: int) -> Table:
    table = Table("output", "path", box=None)
    table.add_column("size", justify="right")
    table.add_column("holds")
    for name, path in paths.items():
        table.add_row(name, _shown(path), _size(path), _contents(path, frames))
    return table


def _objects_table(scores: Mapping[ObjectId, IoUSummary], prompted: Mapping[str, str]) -> Table:
    table = Table("object", "prompted by", box=None)
    for heading in ("mean IoU", "frames seen", "empty when unseen"):
        table.add_column(heading, justify="right")
    for object_id, score in scores.items():
        empty = "" if score.empty_when_absent is None else f"{score.empty_when_absent:.0%}"
        table.add_row(
            str(object_id),
            prompted.get(str(object_id), ""),
            f"{score.mean_iou:.3f}",
            str(score.present),
            empty and f"{empty} of {score.absent}",
        )
    return table


def _prompted(clip: Path) -> dict[str, str]:
    """For each object id, as text, its prompts in words: "3 clicks on frame 0, …"."""
    words: dict[str, list[str]] = {}
    for prompt in json.loads((clip / "prompts.json").read_text(encoding="utf-8")):
        clicks = len(prompt.get("points", ()))
        kinds = ["box"] * ("box" in prompt)
        kinds += [f"{clicks} click{'s' * (clicks > 1)}"] * (clicks > 0)
        place = f"{' and '.join(kinds)} on frame {prompt['frame_index']}"
        words.setdefault(str(prompt["object_id"]), []).append(place)
    with zipfile.ZipFile(clip / "mask_prompts.zip") as masks:
        for name in masks.namelist():
            frame_index, object_id = Path(name).stem.split("_", 1)
            words.setdefault(object_id, []).append(f"mask on frame {frame_index}")
    return {object_id: ", ".join(places) for object_id, places in words.items()}


def _shown(path: Path) -> str:
    return os.path.relpath(path)


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = float(sum(file.stat().st_size for file in files))
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _contents(path: Path, frames: int) -> str:
    """What one output holds, by its kind: pictures, boxes, frames or files."""
    if path.is_dir():
        return _count(sum(file.is_file() for file in path.rglob("*")), "file")
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return _count(len(archive.namelist()), "picture")
    if path.suffix == ".mp4":
        return _count(frames, "frame")
    if path.suffix == ".json":
        document = json.loads(path.read_text(encoding="utf-8"))
        lists = [value for value in document.values() if isinstance(value, list)]
        return f"{sum(map(len, lists))} boxes" if lists else ""
    return _count(1, "picture") if path.suffix == ".png" else ""


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _read(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...] | None = None
) -> NDArray[np.uint8]:
    """A single channel picture of a zip, (H, W) uint8; its size is checked before its pixels."""
    try:
        data = archive.open(name)
    except KeyError:
        raise UserError(f"{archive.filename}: has no {name}") from None
    with data, Image.open(data) as picture:
        if shape is not None and picture.size[::-1] != shape:
            width, height = picture.size
            raise UserError(
                f"{archive.filename}: {name} is {width}x{height}, not {shape[1]}x{shape[0]}"
            )
        return np.asarray(picture.convert("L"))


def _iou(mask: NDArray[np.bool_], seen: NDArray[np.bool_]) -> float | None:
    """Intersection over union, or None where the object is not seen."""
    if not seen.any():
        return None
    return float(np.count_nonzero(mask & seen) / np.count_nonzero(mask | seen))


def _summary(ious: Sequence[float | None], empty: int) -> IoUSummary:
    present = [iou for iou in ious if iou is not None]
    absent = len(ious) - len(present)
    return IoUSummary(
        mean_iou=float(np.mean(present)) if present else 0.0,
        present=len(present),
        empty_when_absent=empty / absent if absent else None,
        absent=absent,
    )
