"""Where a model fails, as one picture: the worst frame of each video, beside the truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklet.atomic import replacing
from masklet.contact_sheet import captioned
from masklet.ground_truth import TrueVideo
from masklet.job import ObjectId
from masklet.media import read_frames
from masklet.overlay import colours_of, overlay

MAX_PICTURES = 40
"""Of more videos, the worst are shown."""

_WIDTH, _HEIGHT, _GAP = 436, 246, 4  # of one half; two pairs fill a contact sheet's width
_PAPER = (24, 25, 28)
_QUALITY = 90

Masks: TypeAlias = Mapping[ObjectId, NDArray[np.bool_]]


@dataclass(frozen=True)
class Failure:
    """The frame with the lowest J, the mean over the objects that count there.

    j, f: means over these objects, 0..1. truth, guess: (height, width) bool by object.
    """

    frame_index: int
    j: float
    f: float
    truth: Masks
    guess: Masks


def picture_failure(video: TrueVideo, failure: Failure) -> NDArray[np.uint8]:
    """The frame twice, (246, 876, 3) uint8: with the true outlines, and with the masks found."""
    [(_, frame)] = read_frames(video.source, [failure.frame_index])
    colours = colours_of(list(failure.guess))
    labelled = len(colours) > 1
    scale = min(_WIDTH / frame.shape[1], _HEIGHT / frame.shape[0], 1.0)
    size = max(round(frame.shape[1] * scale), 1), max(round(frame.shape[0] * scale), 1)
    small = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
    # drawn after scaling, so that lines stay crisp
    truth, guess = _scaled(failure.truth, size), _scaled(failure.guess, size)
    pair = Image.new("RGB", (2 * _WIDTH + _GAP, _HEIGHT), _PAPER)
    for left, drawn in (
        (0, overlay(small, truth, colours, filled=False, labelled=labelled)),
        (_WIDTH + _GAP, overlay(small, guess, colours, labelled=labelled)),
    ):
        place = left + (_WIDTH - size[0]) // 2, (_HEIGHT - size[1]) // 2
        pair.paste(Image.fromarray(drawn), place)
    return np.asarray(pair)


def write_failures(failures: Sequence[tuple[str, Failure, NDArray[np.uint8]]], path: Path) -> None:
    """A JPEG file of pictures from `picture_failure`, with their videos' names; the worst first."""
    worst = sorted(failures, key=lambda one: one[1].j)[:MAX_PICTURES]
    pictures = [(_caption(name, failure), picture) for name, failure, picture in worst]
    sheet = captioned(pictures, min(len(pictures), 2))
    with replacing(path) as temporary:
        # not subsampled: thin lines keep their colour
        sheet.save(temporary, "JPEG", quality=_QUALITY, subsampling=0)


def _caption(name: str, failure: Failure) -> str:
    scores = f"J {100 * failure.j:.1f}, F {100 * failure.f:.1f}"
    return f"{name} · frame {failure.frame_index} · {scores} · truth left, result right"


def _scaled(masks: Masks, size: tuple[int, int]) -> Masks:
    return {
        one: np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        for one, mask in masks.items()
    }
