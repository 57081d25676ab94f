"""The scores of an evaluation: of objects, of videos, of the dataset; as tables and files."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masklet.atomic import replacing
from masklet.job import ObjectId
from masklet.metrics import Statistics, statistics

COLUMNS = (
    "sequence",
    "objects",
    "frames",
    "J&F",
    "J",
    "J recall",
    "J decay",
    "F",
    "F recall",
    "F decay",
)


@dataclass(frozen=True)
class ObjectScore:
    """One object of one video.

    prompted: the frame_index of its prompt; frames: those that count.
    j, f: scores of these frames, (frames,) float64, 0..1.
    """

    object_id: ObjectId
    prompted: int
    frames: tuple[int, ...]
    j: NDArray[np.float64]
    f: NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Objects taken together, all with the same weight, as in DAVIS 2017.

    frames: how many frames count, the objects of a video together.
    """

    objects: int
    frames: int
    j: Statistics
    f: Statistics

    @property
    def j_and_f(self) -> float:
        """Mean of the means of J and of F, 0..1."""
        return (self.j.mean + self.f.mean) / 2


@dataclass(frozen=True)
class VideoScore:
    """One video; an object without a frame that counts is not among its objects."""

    name: str
    objects: tuple[ObjectScore, ...]

    @cached_property
    def summary(self) -> Summary | None:
        """None where no frame counts."""
        return _summary([self])


@dataclass(frozen=True)
class Scores:
    """What was evaluated and how well it went.

    about: the model, its checkpoint, the prompt.
    """

    about: dict[str, str]
    videos: tuple[VideoScore, ...]

    @cached_property
    def summary(self) -> Summary | None:
        """Of all objects of the dataset; None where no frame counts."""
        return _summary(self.videos)

    def rows(self) -> list[tuple[str, ...]]:
        """A row of `COLUMNS` for each video, and one of the means: per cent, one decimal."""
        named = [(video.name, video.summary) for video in self.videos]
        return [_row(name, summary) for name, summary in [*named, ("mean", self.summary)]]


def _summary(videos: Sequence[VideoScore]) -> Summary | None:
    objects = [one for video in videos for one in video.objects]
    if not objects:
        return None
    return Summary(
        len(objects),
        sum(len({at for one in video.objects for at in one.frames}) for video in videos),
        _mean([statistics(one.j) for one in objects]),
        _mean([statistics(one.f) for one in objects]),
    )


def _mean(several: Sequence[Statistics]) -> Statistics:
    means = np.mean([(one.mean, one.recall, one.decay) for one in several], axis=0)
    return Statistics(*map(float, means))


def _row(name: str, summary: Summary | None) -> tuple[str, ...]:
    if summary is None:
        return (name, "0", "0", *[""] * (len(COLUMNS) - 3))
    j, f = summary.j, summary.f
    figures = (summary.j_and_f, j.mean, j.recall, j.decay, f.mean, f.recall, f.decay)
    return (
        name,
        str(summary.objects),
        str(summary.frames),
        *(f"{100 * figure:.1f}" for figure in figures),
    )


def write_csv(scores: Scores, path: Path) -> None:
    """The printed table: a line a video and one of the means."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *scores.rows()])


def write_json(scores: Scores, path: Path) -> None:
    """Everything: the scores of each object on each frame, 0..1 in full precision."""
    videos = {
        video.name: {
            **_as_json(video.summary),
            "by_object": {
                str(one.object_id): {
                    "prompted": one.prompted,
                    "frames": one.frames,
                    "j": one.j.tolist(),
                    "f": one.f.tolist(),
                }
                for one in video.objects
            },
        }
        for video in scores.videos
    }
    content = {**scores.about, "mean": _as_json(scores.summary), "videos": videos}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _as_json(summary: Summary | None) -> dict[str, Any]:
    return {} if summary is None else {"j_and_f": summary.j_and_f, **asdict(summary)}
