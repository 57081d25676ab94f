"""Track objects through a source: frames in, rows of the masklet store out, nothing held."""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from masklet import tracker
from masklet.checkpoint import Standing
from masklet.job import ObjectId
from masklet.lanes import Lanes, Tracked, encode
from masklet.media import read_frames
from masklet.network import Network, Prediction
from masklet.out_of_memory import memory_needed
from masklet.plan import ObjectPlan, Plan
from masklet.preprocess import stretch
from masklet.store import MaskletRow, MaskletWriter, object_folder
from masklet.tracker import MemoryBank, Sweep
from masklet.transfer import bring

_FRAMES_AHEAD = 8
# a share of the time; on a slow disk it is kept less often
_MOST_FOR_KEEPING = 0.025


class Step(NamedTuple):
    """One frame in the order of tracking.

    predictions: of the objects that this step decides on this frame, on the processor.
    banks: every object's state after the frame; tracking can go on from it.
    """

    frame_index: int
    predictions: Mapping[ObjectId, Prediction]
    banks: Mapping[ObjectId, MemoryBank]


def propagate(
    plan: Plan,
    object_ids: Sequence[ObjectId],
    network: Network,
    masklets: Path,
    advance: Callable[[int], None],
    *,
    begun: Mapping[ObjectId, Standing] | None = None,
    keep: Callable[[Mapping[ObjectId, Standing]], None] | None = None,
    seconds_between: float = 30.0,
) -> None:
    """Segment `object_ids`, some or all of the plan's objects, and write their masklets.

    Args:
        masklets: folder that gets one folder of parts an object.
        advance: called with 1 after every step of `segment_frames`.
        begun: where an earlier run left the objects, all after the same number of steps; its parts
            are in `masklets`.
        keep: called with where the objects stand, every `seconds_between` and at the end.
    """
    begun = begun or {}
    first = min((standing.steps for standing in begun.values()), default=0)
    writers = {one: _writer(masklets, one, begun.get(one)) for one in object_ids}
    ends = _ends(plan, network.model)
    device = network.model.device
    banks = {one: standing.bank.to(device) for one, standing in begun.items()}
    due = time.monotonic() + seconds_between
    advance(first)
    steps = segment_frames(plan, object_ids, network, first, banks)
    with closing(steps):
        for done, step in enumerate(steps, first + 1):
            for one, prediction in step.predictions.items():
                writers[one].add(_row(step.frame_index, prediction))
            if done in ends:
                for writer in writers.values():
                    writer.flush()
            advance(1)
            is_last = done == ends[-1]
            if keep and (is_last or time.monotonic() >= due):
                now = time.monotonic()
                keep(
                    {
                        one: Standing(done, step.banks[one], writer.pending, writer.parts)
                        for one, writer in writers.items()
                    }
                )
                due = now + max(seconds_between, (time.monotonic() - now) / _MOST_FOR_KEEPING)


def _writer(masklets: Path, object_id: ObjectId, begun: Standing | None) -> MaskletWriter:
    folder = object_folder(masklets, object_id)
    if begun is None:
        return MaskletWriter(folder, object_id)
    return MaskletWriter(folder, object_id, begun.pending, begun.parts)


def segment_frames(
    plan: Plan,
    object_ids: Sequence[ObjectId],
    network: Network,
    first: int = 0,
    banks: Mapping[ObjectId, MemoryBank] | None = None,
) -> Generator[Step, None, None]:
    """Yield the steps of tracking.

    Every object is predicted once on each of the plan's frames. The frame where the direction
    turns comes in two steps, with other objects.

    Args:
        first: number of steps that were taken before, with `banks` after them.
    """
    objects = [one for one in plan.objects if one.object_id in object_ids]
    prompted, fresh = _condition(plan, objects, network)
    states = dict(banks or fresh)
    skipped = 0
    with Lanes(network, len(objects)) as lanes:
        for sweep, positions in sweeps(plan, network.model):
            if network.compiled:
                lanes.warm_up(list(states.values()), sweep)
            skip = min(max(0, first - skipped), len(positions))
            skipped += len(positions)
            for position, found in _sweep(plan, lanes, sweep, positions, skip, prompted, states):
                final = {
                    one: prediction
                    for one, prediction in found.predictions.items()
                    if _is_final(plan, sweep, position, (position, one) in prompted)
                }
                yield Step(found.frame_index, final, found.banks)


def count_steps(plan: Plan, model: SAM2Base) -> int:
    """How many steps `segment_frames` takes."""
    return sum(len(positions) for _, positions in sweeps(plan, model))


def sweeps(plan: Plan, model: SAM2Base) -> list[tuple[Sweep, range]]:
    """The passes over the timeline that the plan's direction asks for, with their positions."""
    frames, start = len(plan.timeline), plan.start
    onward, back = range(start, frames), range(start, -1, -1)
    if plan.direction == "forward":
        return [(Sweep(frames), onward)]
    if plan.direction == "backward":
        return [(Sweep(frames, reverse=True), back)]
    if start == 0:
        return [(Sweep(frames), onward)]
    retain = range(start + 1, start + int(model.max_obj_ptrs_in_encoder))
    return [(Sweep(frames, retain=retain), onward), (Sweep(frames, reverse=True), back)]


def _ends(plan: Plan, model: SAM2Base) -> list[int]:
    """The numbers of steps after which a sweep is at its end."""
    ends: list[int] = []
    for _, positions in sweeps(plan, model):
        ends.append(len(positions) + (ends[-1] if ends else 0))
    return ends


def _condition(
    plan: Plan, objects: Sequence[ObjectPlan], network: Network
) -> tuple[dict[tuple[int, ObjectId], Prediction], dict[ObjectId, MemoryBank]]:
    """Segment every prompted frame; gives predictions by (position, object) and the banks.

    This comes before any tracking, because a frame attends to later prompts too.
    """
    predictions: dict[tuple[int, ObjectId], Prediction] = {}
    memories: dict[ObjectId, dict[int, tracker.Memory]] = {o.object_id: {} for o in objects}
    frame_size = (plan.source.height, plan.source.width)
    positions = sorted({plan.position[at] for o in objects for at in o.prompts})
    with closing(_images(plan, positions, network.model.image_size)) as images:
        for position, image in images:
            said = {
                one.object_id: one.prompts[plan.timeline[position]]
                for one in objects
                if plan.timeline[position] in one.prompts
            }
            with memory_needed("on a prompted frame"):
                [features] = encode(network, [image])
                for one, prompts in said.items():
                    prediction, memory = tracker.condition(network, features, prompts, frame_size)
                    predictions[position, one] = bring(prediction)()
                    memories[one][position] = memory
    return predictions, {object_id: MemoryBank(by) for object_id, by in memories.items()}


def _sweep(
    plan: Plan,
    lanes: Lanes,
    sweep: Sweep,
    positions: range,
    skip: int,
    prompted: Mapping[tuple[int, ObjectId], Prediction],
    banks: dict[ObjectId, MemoryBank],
) -> Iterator[tuple[int, Step]]:
    """The steps of a sweep but for the first `skip`; `banks` move along.

    A frame is handed on only when work on the next one has begun, so that neither waits.
    """
    encoded = [at for at in positions if any((at, one) not in prompted for one in banks)]
    before = bisect_left([abs(at - positions[0]) for at in encoded], skip)
    # in the batches of an uninterrupted run: a product's rounding depends on the size of its batch
    before -= before % lanes.frames_per_batch
    ready: Callable[[], tuple[int, Step]] | None = None
    with closing(_images(plan, encoded[before:], lanes.network.model.image_size)) as images:
        wanted = {at for at in encoded if at in positions[skip:]}
        features = (found for position, found in lanes.encode(images) if position in wanted)
        seen = next(features, None)
        for at in positions[skip:]:
            tracked_ids = [one for one in banks if (at, one) not in prompted]
            pieces: list[Future[Tracked]] = []
            if tracked_ids and seen:
                pieces = lanes.track(seen, at, [banks[one] for one in tracked_ids], sweep)
                # asked for now, encoding stands behind the objects and fills the gaps they leave
                seen = next(features, None)
            if ready:
                yield ready()
            results = [result for piece in pieces for result in piece.result()]
            arriving = {}
            for one, (arrives, bank) in zip(tracked_ids, results, strict=True):
                arriving[one], banks[one] = arrives, bank
            ready = partial(_step, plan, at, prompted, arriving, dict(banks))
        if ready:
            yield ready()


def _step(
    plan: Plan,
    at: int,
    prompted: Mapping[tuple[int, ObjectId], Prediction],
    arriving: Mapping[ObjectId, Callable[[], Prediction]],
    banks: Mapping[ObjectId, MemoryBank],
) -> tuple[int, Step]:
    """A position and its step, once the predictions of the tracked objects have arrived."""
    predictions = {one: prompted[at, one] for one in banks if (at, one) in prompted}
    predictions |= {one: arrives() for one, arrives in arriving.items()}
    return at, Step(plan.timeline[at], predictions, banks)


def _is_final(plan: Plan, sweep: Sweep, position: int, is_prompted: bool) -> bool:
    """Whether this pass decides the frame: the frame where the direction turns is seen twice.

    There SAM 2 tracks again what was not prompted on it, now with memory of the frames after it.
    """
    turns = plan.direction == "both" and plan.start > 0 and position == plan.start
    return not turns or is_prompted != sweep.reverse


def _row(frame_index: int, prediction: Prediction) -> MaskletRow:
    return MaskletRow(
        frame_index, float(prediction.object_score), prediction.logits.float().numpy()
    )


def _images(
    plan: Plan, positions: Sequence[int], image_size: int
) -> Generator[tuple[int, Tensor], None, None]:
    """Stretched frames, (3, image_size, image_size) uint8, ahead of the one that is asked for.

    One thread reads, several stretch: a GPU would have to wait for one.
    """
    frames = read_frames(plan.source, [plan.timeline[position] for position in positions])
    with (
        closing(frames),
        ThreadPoolExecutor(_FRAMES_AHEAD) as stretchers,
        ThreadPoolExecutor(1) as reader,
    ):

        def read() -> Future[Tensor] | None:
            found = next(frames, None)
            return None if found is None else stretchers.submit(stretch, found[1], image_size)

        ahead = deque(reader.submit(read) for _ in range(_FRAMES_AHEAD))
        for position in positions:
            image = ahead.popleft().result()
            if image is None:
                return
            ahead.append(reader.submit(read))
            yield position, image.result()
