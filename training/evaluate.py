"""``python -m training.evaluate``: measure a weights file with the upstream `SAM2VideoPredictor`.

On held-out clips of the procedural world (pictures and seeds that training never sees), from one
click, a box and a mask on the first frame; and, given a folder in DAVIS' layout, from the first
frame's mask on each of its sequences.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sam2.sam2_video_predictor import SAM2VideoPredictor

from masklet.ground_truth import find_videos
from masklet.media import read_frames
from masklet.metrics import region_similarity
from training import prompts
from training.assets import Bank, load_bank
from training.export import load_weights
from training.model import build
from training.world import render

SEED = 7_000_000
OVERRIDES: dict[str, Any] = {
    "_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor",
    "fill_hole_area": 0,
    "binarize_mask_from_pts_for_mem_enc": True,
    "sam_mask_decoder_extra_args.dynamic_multimask_via_stability": True,
    "sam_mask_decoder_extra_args.dynamic_multimask_stability_delta": 0.05,
    "sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh": 0.98,
}

Mask = NDArray[np.bool_]


@dataclass
class Score:
    """IoU on the prompted frame and on the frames after it, where the object is visible.

    absent: for every frame without the object, whether nothing was drawn.
    """

    prompted: list[float] = field(default_factory=list)
    tracked: list[float] = field(default_factory=list)
    absent: list[float] = field(default_factory=list)

    def add(self, index: int, guess: Mask, truth: Mask) -> None:
        """Take in one frame of one object."""
        if not truth.any():
            self.absent.append(float(not guess.any()))
        else:
            value = region_similarity(guess, truth)
            (self.prompted if index == 0 else self.tracked).append(value)

    def summary(self) -> dict[str, float]:
        """Means and counts."""
        out = {}
        for name in ("prompted", "tracked", "absent"):
            values = getattr(self, name)
            out[name] = round(float(np.mean(values)), 4) if values else float("nan")
            out[f"{name}_count"] = len(values)
        return out


def predictor(config: Path, weights: Path) -> SAM2VideoPredictor:
    """The upstream predictor with the settings that upstream's own builder adds."""
    model = build(config, **OVERRIDES)
    assert isinstance(model, SAM2VideoPredictor)
    load_weights(model, weights)
    return model


def prompt(model: SAM2VideoPredictor, state: Any, kind: str, identity: int, mask: Mask) -> None:
    """Prompt one object on frame 0: its innermost pixel, its exact box, or its mask."""
    if kind == "mask":
        model.add_new_mask(state, 0, identity, mask)
    elif kind == "box":
        model.add_new_points_or_box(state, 0, identity, box=np.array(prompts.box(mask)).ravel())
    else:
        model.add_new_points_or_box(
            state, 0, identity, points=np.array([prompts.innermost(mask)]), labels=np.array([1])
        )


@torch.inference_mode()
def track(
    model: SAM2VideoPredictor, folder: Path, kind: str, masks: list[Mask]
) -> Iterator[tuple[int, list[Mask]]]:
    """Follow the objects of `masks` through the JPEG files of a folder; yields frame by frame."""
    state = model.init_state(str(folder))
    for identity, mask in enumerate(masks):
        prompt(model, state, kind, identity, mask)
    for index, _, logits in model.propagate_in_video(state):
        yield index, list((logits[:, 0] > 0).numpy())


def held_out_clip(
    bank: Bank, number: int, frames: int, size: int
) -> tuple[NDArray[np.uint8], list[Any]]:
    """Frames (T, size, size, 3) and at most three objects' masks (T, size, size)."""
    rng = np.random.default_rng([SEED, number])
    clip = render(rng, bank, size, frames)
    area = np.bincount(clip.labels[0].ravel(), minlength=2) / clip.labels[0].size
    objects = [k for k in range(1, len(area)) if area[k] >= 0.01]
    return clip.frames, [clip.labels == k for k in rng.permutation(objects)[:3]]


def synthetic(
    model: SAM2VideoPredictor,
    bank: Bank,
    clips: int,
    frames: int,
    kinds: list[str],
    pictures: Path | None,
) -> dict[str, dict[str, float]]:
    """Scores per kind of prompt on held-out clips; pictures: where to put overlays, if anywhere."""
    scores = {kind: Score() for kind in kinds}
    for number in range(clips):
        images, truths = held_out_clip(bank, number, frames, model.image_size)
        if not truths:
            continue
        with tempfile.TemporaryDirectory() as folder:
            for i, image in enumerate(images):
                Image.fromarray(image).save(Path(folder) / f"{i:05d}.jpg", quality=98)
            for kind in kinds:
                strip = []
                for i, guesses in track(model, Path(folder), kind, [t[0] for t in truths]):
                    for guess, truth in zip(guesses, truths, strict=True):
                        scores[kind].add(i, guess, truth[i])
                    if i % 5 == 0:
                        strip.append(overlay(images[i], guesses))
                if pictures is not None and number < 12:
                    save(np.concatenate(strip, 1), pictures / f"clip_{number:02d}_{kind}.png")
    return {kind: score.summary() for kind, score in scores.items()}


def davis(model: SAM2VideoPredictor, root: Path, pictures: Path | None) -> dict[str, float]:
    """J (mean IoU, without the first and the last frame, in per cent) of each sequence.

    Of the objects on the first frame. `masklet eval` measures more, with masklet's own tracker,
    which gives the same masks: this is the check of that.
    """
    out = {}
    for video in find_videos(root):
        first, every = video.truth(0), max(1, video.source.num_frames // 4)
        counted = video.annotated(next(iter(first)))[1:-1]
        values, strip = [], []
        for i, guesses in track(model, video.source.path, "mask", list(first.values())):
            if i in counted:
                truth = video.truth(i)
                values += [
                    region_similarity(guess, truth.get(one, np.zeros_like(guess)))
                    for one, guess in zip(first, guesses, strict=True)
                ]
            if i % every == 0:
                strip.append(overlay(next(read_frames(video.source, [i]))[1], guesses))
        out[video.name] = round(100 * float(np.mean(values)), 1)
        if pictures is not None:
            save(
                np.concatenate([cv2.resize(s, (427, 240)) for s in strip], 1),
                pictures / f"davis_{video.name}.png",
            )
    out["mean"] = round(float(np.mean(list(out.values()))), 1)
    return out


def overlay(image: NDArray[np.uint8], masks: list[Mask]) -> NDArray[np.uint8]:
    """The picture (H, W, 3) with masks painted half over it and outlined."""
    out = image.copy()
    colours = np.array([[255, 40, 40], [40, 120, 255], [60, 220, 60]])
    for mask, colour in zip(masks, colours, strict=False):
        out[mask] = (0.5 * out[mask] + 0.5 * colour).astype(np.uint8)
        edge = mask ^ (cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
        out[edge] = colour
    return out


def save(image: NDArray[np.uint8], path: Path) -> None:
    """Write a PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def main() -> None:
    """Command line: print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    here = Path(__file__).parent
    nano = here.parent / "masklet/weights/nano/nano.safetensors"
    parser.add_argument("--config", type=Path, default=here.parent / "configs/models/nano.yaml")
    parser.add_argument("--weights", type=Path, default=nano)
    parser.add_argument("--bank", type=Path, default=here / "runs/bank")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clips", type=int, default=40, help="0 leaves the synthetic part out")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--kinds", nargs="+", default=["click", "box", "mask"])
    parser.add_argument("--davis", type=Path, help="a folder in DAVIS' layout")
    parser.add_argument("--pictures", type=Path, help="where to put overlays")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = predictor(args.config, args.weights)
    result: dict[str, Any] = {}
    if args.clips:
        result["synthetic"] = synthetic(
            model,
            load_bank(args.bank, "held_out"),
            args.clips,
            args.frames,
            args.kinds,
            args.pictures,
        )
    if args.davis:
        result["davis_j"] = davis(model, args.davis, args.pictures)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
