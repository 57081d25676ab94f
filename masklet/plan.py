"""What a job means for one source: which frames, which objects, which prompts, all checked."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from masklet.errors import UserError
from masklet.job import MAX_FRAME_INDEX, ObjectId, Prompt, SegmentJob
from masklet.mask_prompts import MaskPrompts
from masklet.media import ImageSource, Source

Direction: TypeAlias = Literal["forward", "backward", "both"]

IMAGE_MASKS = 3
"""How many masks the model holds possible for the prompts of an image."""


@dataclass(frozen=True)
class Clicks:
    """One prompt of points and/or a box, in pixels of the displayed frame.

    points: (n, 2) float32; labels: (n,) int32, 1 or 0; box: (4,) float32 or None.
    """

    points: NDArray[np.float32]
    labels: NDArray[np.int32]
    box: NDArray[np.float32] | None


@dataclass(frozen=True)
class FramePrompts:
    """Everything said about one object on one frame: a mask first, then clicks that refine it.

    mask: (height, width) bool or None.
    """

    mask: NDArray[np.bool_] | None
    clicks: tuple[Clicks, ...]


@dataclass(frozen=True)
class ObjectPlan:
    """One object and its prompts by frame_index."""

    object_id: ObjectId
    prompts: Mapping[int, FramePrompts]


@dataclass(frozen=True)
class Plan:
    """A checked job over a known source.

    timeline: the frame_index of every frame the tracker may see, ascending. The tracker counts in
    positions of this list, as SAM 2 counts frames. For a preview, the prompted frames alone.
    """

    source: Source
    timeline: tuple[int, ...]
    objects: tuple[ObjectPlan, ...]
    direction: Direction

    @cached_property
    def start(self) -> int:
        """Position where tracking starts: the earliest prompt, or the latest going backward."""
        prompted = [index for plan in self.objects for index in plan.prompts]
        first = max(prompted) if self.direction == "backward" else min(prompted)
        return self.position[first]

    @cached_property
    def position(self) -> Mapping[int, int]:
        """Where each frame_index stands in the timeline."""
        return {frame_index: position for position, frame_index in enumerate(self.timeline)}

    @property
    def frame_indices(self) -> tuple[int, ...]:
        """The frames that get masks, ascending."""
        if self.direction == "forward":
            return self.timeline[self.start :]
        if self.direction == "backward":
            return self.timeline[: self.start + 1]
        return self.timeline

    @property
    def object_ids(self) -> tuple[ObjectId, ...]:
        return tuple(plan.object_id for plan in self.objects)

    @property
    def is_image(self) -> bool:
        return isinstance(self.source, ImageSource)

    def only(self, object_id: ObjectId) -> "Plan":
        """The plan for one of its objects."""
        one = [plan for plan in self.objects if plan.object_id == object_id]
        return replace(self, objects=tuple(one))

    @property
    def prompted(self) -> tuple[int, ...]:
        """The frame_index of every prompted frame, ascending."""
        return tuple(sorted({index for plan in self.objects for index in plan.prompts}))


def check_without_source(job: SegmentJob) -> None:
    """Check what can be told of a job's frames before its source is opened.

    Raises UserError for a range that holds no frame, for prompts outside of it, and for mask
    prompts that cannot be listed.
    """
    first = max(job.start_frame, 0)
    last = MAX_FRAME_INDEX if job.end_frame == -1 else job.end_frame
    _check_range(first, last)
    for number, prompt in enumerate(job.prompts):
        _check_in_range(prompt.frame_index, first, last, _name_prompt(number, prompt))
    if job.mask_prompts is not None:
        with MaskPrompts(job.mask_prompts, 0, 0) as masks:
            for key in masks.keys:
                _check_in_range(key[0], first, last, masks.name(*key))


def plan_job(job: SegmentJob, source: Source) -> Plan:
    """Check the job against its source, before any model time is spent.

    Raises UserError naming the prompt that is wrong: a frame outside the source or the range, a
    point or box outside the frame, a mask of another size, ids that collide.
    """
    _check_kind(job, source)
    first, last = _frame_range(job, source)
    if not job.prompts and job.mask_prompts is None:
        raise UserError("the job has no prompts; give prompts, mask_prompts or both")
    for number, prompt in enumerate(job.prompts):
        name = _name_prompt(number, prompt)
        _check_frame(prompt.frame_index, first, last, source, name)
        _check_inside(prompt, source, name)
    path, size = job.mask_prompts, (source.width, source.height)
    with MaskPrompts(path, *size) if path is not None else nullcontext() as masks:
        for key in masks.keys if masks else ():
            _check_frame(key[0], first, last, source, masks.name(*key) if masks else "")
        if isinstance(source, ImageSource):
            objects = _of_image(job, masks)
        else:
            objects = _collect(job.prompts, masks)
    timeline = set() if job.preview else set(range(first, last + 1, job.frame_interval))
    timeline.update(index for plan in objects for index in plan.prompts)
    return Plan(source, tuple(sorted(timeline)), objects, job.direction)


def _check_kind(job: SegmentJob, source: Source) -> None:
    is_image, name = isinstance(source, ImageSource), source.path.name
    if job.multimask_output and not is_image:
        raise UserError(f"multimask_output is for images, and {name} is a video; leave it out")
    if job.debug_masks and is_image and not job.preview:
        raise UserError(f"debug_masks is a video, and {name} is an image; preview draws its mask")


def _frame_range(job: SegmentJob, source: Source) -> tuple[int, int]:
    first = max(job.start_frame, 0)
    last = source.num_frames - 1 if job.end_frame == -1 else job.end_frame
    for field, index in (("start_frame", first), ("end_frame", last)):
        if index >= source.num_frames:
            raise UserError(
                f"{field} is {index}, but {source.path.name} has the frames 0 to "
                f"{source.num_frames - 1}"
            )
    _check_range(first, last)
    return first, last


def _check_range(first: int, last: int) -> None:
    if first > last:
        raise UserError(f"start_frame {first} is after end_frame {last}")


def _check_frame(frame_index: int, first: int, last: int, source: Source, name: str) -> None:
    if frame_index >= source.num_frames:
        raise UserError(
            f"{name}: there is no frame {frame_index}; {source.path.name} has the frames 0 to "
            f"{source.num_frames - 1}"
        )
    _check_in_range(frame_index, first, last, name)


def _check_in_range(frame_index: int, first: int, last: int, name: str) -> None:
    if not first <= frame_index <= last:
        end = "the end" if last == MAX_FRAME_INDEX else last
        raise UserError(
            f"{name}: the frame is outside the processed range {first} to {end}; prompt a frame in "
            "it, or change start_frame or end_frame"
        )


def _name_prompt(number: int, prompt: Prompt) -> str:
    return f"prompts[{number}] (frame {prompt.frame_index}, object {prompt.object_id!r})"


def _check_inside(prompt: Prompt, source: Source, name: str) -> None:
    frame = f"the frame of {source.width}x{source.height} pixels"
    for x, y in prompt.points or ():
        if not (0 <= x < source.width and 0 <= y < source.height):
            raise UserError(
                f"{name}: the point ({x:g}, {y:g}) is outside {frame}; a point is [x, y], with x "
                f"from 0 to below {source.width} and y from 0 to below {source.height}"
            )
    if prompt.box is not None:
        x_min, y_min, x_max, y_max = prompt.box
        if x_min < 0 or y_min < 0 or x_max > source.width or y_max > source.height:
            raise UserError(
                f"{name}: the box {list(prompt.box)} is not inside {frame}; "
                "a box is [x_min, y_min, x_max, y_max], not [x, y, width, height], with x from 0 "
                f"to {source.width} and y from 0 to {source.height}"
            )


def _collect(prompts: Sequence[Prompt], masks: MaskPrompts | None) -> tuple[ObjectPlan, ...]:
    """Group prompts by object, objects in the order in which they are first named."""
    mask_keys = dict.fromkeys(masks.keys if masks else ())
    named = [(prompt.object_id, _name_prompt(n, prompt)) for n, prompt in enumerate(prompts)]
    named += [(key[1], masks.name(*key)) for key in mask_keys if masks]
    _check_distinct(named)
    clicks: dict[ObjectId, dict[int, list[Clicks]]] = {object_id: {} for object_id, _ in named}
    for number, prompt in enumerate(prompts):
        on_frame = clicks[prompt.object_id].setdefault(prompt.frame_index, [])
        if prompt.box is not None and on_frame:
            raise UserError(
                f"{_name_prompt(number, prompt)}: a box must come before the other prompts of "
                "its object on its frame, and there is one at most"
            )
        on_frame.append(_clicks(prompt))
    for frame_index, object_id in mask_keys:
        clicks[object_id].setdefault(frame_index, [])
    return tuple(
        ObjectPlan(
            object_id,
            {
                frame_index: FramePrompts(
                    masks.read(frame_index, object_id)
                    if masks and (frame_index, object_id) in mask_keys
                    else None,
                    tuple(on_frame),
                )
                for frame_index, on_frame in sorted(by_frame.items())
            },
        )
        for object_id, by_frame in clicks.items()
    )


def _of_image(job: SegmentJob, masks: MaskPrompts | None) -> tuple[ObjectPlan, ...]:
    """All prompts as one, whatever their object ids; several masks are one, of all their pixels.

    The objects of the plan are the masks that are wanted of the image, numbered from 0.
    """
    mask = np.logical_or.reduce([masks.read(*key) for key in masks.keys]) if masks else None
    if job.prompts:
        clicks = _merged(job.prompts)
    elif mask is not None and mask.any():
        # with a mask alone the model finds next to nothing: it is not trained for that
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        none = np.empty((0, 2), np.float32), np.empty(0, np.int32)
        clicks = Clicks(*none, np.asarray(around, np.float32))
    else:
        raise UserError(f"{job.mask_prompts}: no pixel is set; mark the object, or give points")
    said = FramePrompts(mask, (clicks,))
    count = IMAGE_MASKS if job.multimask_output else 1
    return tuple(ObjectPlan(number, {0: said}) for number in range(count))


def _merged(prompts: Sequence[Prompt]) -> Clicks:
    """The points of all prompts, and the box of one of them."""
    boxes = [number for number, prompt in enumerate(prompts) if prompt.box is not None]
    if len(boxes) > 1:
        raise UserError(
            f"{_name_prompt(boxes[1], prompts[boxes[1]])}: an image takes one box, as it gets one "
            "mask; give one job a box"
        )
    clicks = [_clicks(prompt) for prompt in prompts]
    return Clicks(
        np.concatenate([one.points for one in clicks]),
        np.concatenate([one.labels for one in clicks]),
        clicks[boxes[0]].box if boxes else None,
    )


def _check_distinct(named: Iterable[tuple[ObjectId, str]]) -> None:
    """named: each object id, and what an error calls the prompt that it is of."""
    seen: dict[str, ObjectId] = {}
    for object_id, name in named:
        first = seen.setdefault(str(object_id), object_id)
        if first != object_id:
            raise UserError(
                f"{name}: the object ids {first!r} and {object_id!r} differ only in type; use one "
                "of them (digits alone in the names of mask prompts are an int)"
            )


def _clicks(prompt: Prompt) -> Clicks:
    return Clicks(
        np.asarray(prompt.points or [], np.float32).reshape(-1, 2),
        np.asarray(prompt.labels or [], np.int32),
        None if prompt.box is None else np.asarray(prompt.box, np.float32),
    )
