"""Render the demo clip with its truth and its job: `python -m demo.render DIR`.

DIR/clip.mp4           854x480, 30 fps, 6 s
DIR/truth.zip          {frame_index}.png, 8-bit: 0 is background, n the n-th object id
                       of the zip's objects.json; visible pixels only, so every pixel has one
DIR/prompts.json       clicks and boxes
DIR/mask_prompts.zip   {frame_index}_{object_id}.png, 8-bit, 0 or 255
DIR/job.yaml           what `masklet segment` needs; its paths are relative to DIR
DIR/render_version     written last: the render is complete, and of this version
"""

import argparse
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from demo.prompts import mask_prompts, prompts
from demo.scene import FRAMES, FRAMES_PER_SECOND, HEIGHT, OBJECT_IDS, WIDTH, render
from masklet.media.encode import write_video

RENDER_VERSION = 1
"""Raised by hand when the pictures, the truth or the job change."""

JOB = {
    "file": "clip.mp4",
    "model_type": "nano",
    "prompts": "prompts.json",
    "mask_prompts": "mask_prompts.zip",
    "direction": "forward",
    "debug_masks": True,
    "pixel_confidences": True,
    "bbox_tracking": True,
}

_VERSION_FILE = "render_version"


def is_rendered(folder: Path) -> bool:
    """Whether `folder` holds a complete render of this version."""
    version = folder / _VERSION_FILE
    return version.is_file() and version.read_text().strip() == str(RENDER_VERSION)


def render_to(folder: Path, width: int = WIDTH, height: int = HEIGHT, frames: int = FRAMES) -> None:
    """Write the clip, its truth and its job into `folder`, over what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _VERSION_FILE).unlink(missing_ok=True)
    labels: list[NDArray[np.uint8]] = []

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for frame in render(width, height, frames):
            labels.append(frame.labels)
            yield frame.picture

    write_video(
        folder / "clip.mp4",
        pictures(),
        width=width,
        height=height,
        frame_rate=Fraction(FRAMES_PER_SECOND),
    )
    _write_truth(folder / "truth.zip", labels)
    lines = ",\n  ".join(json.dumps(prompt) for prompt in prompts(labels))
    (folder / "prompts.json").write_text(f"[\n  {lines}\n]\n", encoding="utf-8")
    masks = {
        f"{frame_index}_{object_id}.png": _png(Image.fromarray(mask.astype(np.uint8) * 255))
        for (frame_index, object_id), mask in mask_prompts(labels).items()
    }
    _write_zip(folder / "mask_prompts.zip", masks)
    (folder / "job.yaml").write_text(yaml.safe_dump(JOB, sort_keys=False), encoding="utf-8")
    (folder / _VERSION_FILE).write_text(f"{RENDER_VERSION}\n", encoding="utf-8")


def _write_truth(path: Path, labels: Sequence[NDArray[np.uint8]]) -> None:
    members = {"objects.json": json.dumps(OBJECT_IDS).encode()}
    for frame_index, frame in enumerate(labels):
        members[f"{frame_index}.png"] = _png(Image.fromarray(frame))
    _write_zip(path, members)


def _png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def _write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            # ZipInfo's date is fixed: the same render is the same file.
            archive.writestr(zipfile.ZipInfo(name), data)


def main() -> None:
    parser = argparse.ArgumentParser(description="Render the demo clip with its truth and its job.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    render_to(parser.parse_args().folder)


if __name__ == "__main__":
    main()
