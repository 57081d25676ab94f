"""Measure a model on videos with true masks: semi-supervised video object segmentation.

Every object gets one prompt, made of its true mask on the first frame where it is seen, and is
tracked from there. This is the evaluation of SAM 2 (section 6 of arXiv:2408.00714, and its
`tools/vos_inference.py` with objects that appear later): objects know nothing of each other, and
where their masks overlap, a pixel goes to the object with the highest logit, unless the true masks
may overlap as well.

What counts, for each object: its annotated frames after the prompted one, but for the last
annotated one. For an object that is there from the beginning, these are DAVIS' rules: the first and
the last frame are left out.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from masklet.distance import squared_depth
from masklet.errors import UserError
from masklet.exports import bounding_box
from masklet.failures import Failure, Masks, picture_failure, write_failures
from masklet.ground_truth import TrueVideo, find_videos
from masklet.job import ObjectId
from masklet.metrics import boundary_accuracy, region_similarity
from masklet.models import checkpoint_sha256, find_model, load_model, require_checkpoint
from masklet.pipeline import choose_device
from masklet.plan import Clicks, FramePrompts, ObjectPlan, Plan
from masklet.run import Progress, silent
from masklet.scores import ObjectScore, Scores, VideoScore, write_csv, write_json
from masklet.store import upsample

if TYPE_CHECKING:
    from masklet.network import Network, Prediction

PromptKind: TypeAlias = Literal["mask", "box", "point"]

COUNTED = "annotated frames after an object's prompt, but for its last annotated frame"


def evaluate_dataset(
    dataset: Path,
    *,
    model: str = "large",
    prompt: str = "mask",
    checkpoint: Path | None = None,
    names: Sequence[str] | None = None,
    out: Path | None = None,
    progress: Progress = silent,
) -> Scores:
    """Measure a model on a dataset.

    Args:
        dataset: a folder in one of the layouts of `masklet.ground_truth`.
        model: name of the model; checkpoint: weights to use instead of its own.
        prompt: mask, box or point, as in `prompt_of`.
        names: the videos to take; by default those that the dataset lists.
        out: folder that gets scores.csv, scores.json and failures.jpg.
        progress: called with a stage, the frames done and all frames.

    Raises UserError for a dataset, a model or a prompt that cannot be used.
    """
    if prompt not in get_args(PromptKind):
        raise UserError(f"--prompt should be {', '.join(get_args(PromptKind))}, not {prompt!r}")
    kind = cast(PromptKind, prompt)
    spec = find_model(model)
    weights = require_checkpoint(spec, checkpoint)
    videos = find_videos(dataset, names)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    from masklet.network import Network  # torch, which takes seconds

    network = Network.of(load_model(spec, weights, choose_device("auto")))
    total, done = sum(video.source.num_frames for video in videos), 0

    def advance(frames: int) -> None:
        nonlocal done
        done += frames
        progress("evaluate", done, total)

    scores, failures = [], []
    for video in videos:
        score, failure = evaluate(video, network, kind, advance)
        scores.append(score)
        if failure is not None:
            failures.append((video.name, failure, picture_failure(video, failure)))
    about = {
        "dataset": str(dataset),
        "model": spec.name,
        "checkpoint_sha256": checkpoint_sha256(weights),
        "prompt": kind,
        "counted": COUNTED,
    }
    result = Scores(about, tuple(scores))
    if out is not None:
        write_csv(result, out / "scores.csv")
        write_json(result, out / "scores.json")
        if failures:
            write_failures(failures, out / "failures.jpg")
    return result


def evaluate(
    video: TrueVideo,
    network: "Network",
    kind: PromptKind,
    advance: Callable[[int], None] = lambda frames: None,
) -> tuple[VideoScore, Failure | None]:
    """Track the objects of a video and score them, frame by frame; no frame is held.

    advance: called with numbers of frames that are done, all of the video's together.

    Returns the scores, and the worst frame, None where no frame counts. Raises UserError for
    pictures that cannot be read.
    """
    first = video.first_seen()
    tallies = {one: _Tally(at, _counting(video, one, at)) for one, at in first.items()}
    count = {at for tally in tallies.values() for at in tally.frames}
    worst: Failure | None = None
    done = 0
    with closing(_predictions(video, network, kind, first, max(count, default=-1))) as tracked:
        for frame_index, predictions in tracked:
            if frame_index in count:
                guess, seen = _masks(video, predictions), video.truth(frame_index)
                truth = {one: seen.get(one, np.zeros_like(mask)) for one, mask in guess.items()}
                scored = [
                    tally.add(guess[one], truth[one])
                    for one, tally in tallies.items()
                    if frame_index in tally.frames
                ]
                j, f = map(float, np.mean(scored, axis=0))
                if worst is None or j < worst.j:
                    worst = Failure(frame_index, j, f, truth, guess)
            advance(frame_index + 1 - done)
            done = frame_index + 1
    advance(video.source.num_frames - done)
    objects = tuple(tally.score(one) for one, tally in tallies.items() if tally.frames)
    return VideoScore(video.name, objects), worst


def prompt_of(mask: NDArray[np.bool_], kind: PromptKind) -> FramePrompts:
    """What is said about an object whose true mask (height, width) bool is not empty.

    mask: the mask itself. box: around its pixels, the smallest and largest index that is set.
    point: one click on its innermost pixel.
    """
    if kind == "mask":
        return FramePrompts(mask, ())
    points = np.array([innermost(mask)] if kind == "point" else [], np.float32).reshape(-1, 2)
    box = np.array(bounding_box(mask), np.float32) if kind == "box" else None
    return FramePrompts(None, (Clicks(points, np.ones(len(points), np.int32), box),))


def innermost(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """(x, y) of the set pixel that is farthest from all others and from beyond the picture.

    Of several, the first in the order of rows. SAM 2 simulates its first click so
    (`sample_one_point_from_error_center`, after RITM, arXiv:2102.06583).
    """
    y, x = np.unravel_index(int(squared_depth(mask).argmax()), mask.shape)
    return int(x), int(y)


@dataclass(frozen=True)
class _Tally:
    """The scores of one object so far, one for each of its frames that has passed."""

    prompted: int
    frames: tuple[int, ...]
    j: list[float] = field(default_factory=list)
    f: list[float] = field(default_factory=list)

    def add(self, guess: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[float, float]:
        self.j.append(region_similarity(guess, truth))
        self.f.append(boundary_accuracy(guess, truth))
        return self.j[-1], self.f[-1]

    def score(self, object_id: ObjectId) -> ObjectScore:
        return ObjectScore(
            object_id, self.prompted, self.frames, np.array(self.j), np.array(self.f)
        )


def _counting(video: TrueVideo, object_id: ObjectId, prompted: int) -> tuple[int, ...]:
    return tuple(at for at in video.annotated(object_id)[:-1] if at > prompted)


def _predictions(
    video: TrueVideo,
    network: "Network",
    kind: PromptKind,
    first: Mapping[ObjectId, int],
    last: int,
) -> Generator[tuple[int, Mapping[ObjectId, "Prediction"]], None, None]:
    """Predictions of the objects that have been prompted, frame by frame up to `last`.

    Objects that are prompted on the same frame are tracked together, all others apart: a tracker
    would start them all with the earliest.
    """
    from masklet.propagate import segment_frames

    with ExitStack() as opened:
        streams = {}
        for start in sorted(set(first.values())):
            truth = video.truth(start)
            objects = {one: prompt_of(truth[one], kind) for one, at in first.items() if at == start}
            plan = Plan(
                video.source,
                tuple(range(video.source.num_frames)),
                tuple(ObjectPlan(one, {start: prompts}) for one, prompts in objects.items()),
                "forward",
            )
            steps = segment_frames(plan, list(objects), network)
            streams[start] = opened.enter_context(closing(steps))
        for frame_index in range(min(streams), last + 1):
            found: dict[ObjectId, Prediction] = {}
            for start, steps in streams.items():
                if start <= frame_index:
                    found |= next(steps).predictions
            yield frame_index, found


def _masks(video: TrueVideo, predictions: Mapping[ObjectId, "Prediction"]) -> Masks:
    """Masks at the size of the video, (height, width) bool by object."""
    height, width = video.source.height, video.source.width
    logits = {
        one: upsample(prediction.logits.float().cpu().numpy(), height, width)
        for one, prediction in predictions.items()
    }
    if video.may_overlap or len(logits) == 1:
        return {one: values > 0 for one, values in logits.items()}
    highest = np.argmax(list(logits.values()), axis=0)
    return {one: (values > 0) & (highest == at) for at, (one, values) in enumerate(logits.items())}
