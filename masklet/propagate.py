"""Track objects through a source: frames in, rows of the masklet store out, nothing held."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from masklet import tracker
from masklet.job import ObjectId
from masklet.media import read_frames
from masklet.plan import ObjectPlan, Plan
from masklet.store import MAX_PART_BYTES, MaskletRow, MaskletWriter, object_folder
from masklet.tracker import MemoryBank, Prediction, Sweep

_FRAMES_AHEAD = 4
_PENDING_BYTES = 256 * 2**20  # of logits that wait for their part to fill up, all objects together


def propagate(
    plan: Plan,
    object_ids: Sequence[ObjectId],
    model: SAM2Base,
    masklets: Path,
    advance: Callable[[int], None],
) -> None:
    """Segment `object_ids`, some or all of the plan's objects, and write their masklets.

    Args:
        masklets: folder that gets one folder of parts an object.
        advance: called with 1 after every step of `segment_frames`.
    """
    part_bytes = min(MAX_PART_BYTES, _PENDING_BYTES // len(object_ids))
    writers = {
        object_id: MaskletWriter(
            object_folder(masklets, object_id), object_id, part_bytes=part_bytes
        )
        for object_id in object_ids
    }
    with closing(segment_frames(plan, object_ids, model)) as frames:
        for frame_index, predictions in frames:
            for object_id, prediction in predictions.items():
                writers[object_id].add(_row(frame_index, prediction))
            advance(1)
    for writer in writers.values():
        writer.flush()


def segment_frames(
    plan: Plan, object_ids: Sequence[ObjectId], model: SAM2Base
) -> Generator[tuple[int, dict[ObjectId, Prediction]], None, None]:
    """Yield (frame_index, predictions by object) in the order of tracking, frame after frame.

    Every object is predicted once on each of the plan's frames. The frame where the direction
    turns comes in two steps, with other objects.
    """
    objects = [one for one in plan.objects if one.object_id in object_ids]
    prompted, banks = _condition(plan, objects, model)
    for sweep, positions in sweeps(plan, model):
        for position, predictions in _sweep(plan, model, sweep, positions, prompted, banks):
            final = {
                object_id: prediction
                for object_id, prediction in predictions.items()
                if _is_final(plan, sweep, position, (position, object_id) in prompted)
            }
            yield plan.timeline[position], final


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


def _condition(
    plan: Plan, objects: Sequence[ObjectPlan], model: SAM2Base
) -> tuple[dict[tuple[int, ObjectId], Prediction], dict[ObjectId, MemoryBank]]:
    """Segment every prompted frame; gives predictions by (position, object) and the banks.

    This comes before any tracking, because a frame attends to later prompts too.
    """
    predictions: dict[tuple[int, ObjectId], Prediction] = {}
    memories: dict[ObjectId, dict[int, tracker.Memory]] = {o.object_id: {} for o in objects}
    frame_size = (plan.source.height, plan.source.width)
    positions = sorted({plan.position[at] for o in objects for at in o.prompts})
    with closing(_images(plan, positions, model.image_size)) as images:
        for position, image in images:
            features = tracker.encode(model, image)
            for one in objects:
                if (prompts := one.prompts.get(plan.timeline[position])) is not None:
                    prediction, memory = tracker.condition(model, features, prompts, frame_size)
                    predictions[position, one.object_id] = prediction
                    memories[one.object_id][position] = memory
    return predictions, {object_id: MemoryBank(by) for object_id, by in memories.items()}


def _sweep(
    plan: Plan,
    model: SAM2Base,
    sweep: Sweep,
    positions: range,
    prompted: dict[tuple[int, ObjectId], Prediction],
    banks: dict[ObjectId, MemoryBank],
) -> Iterator[tuple[int, dict[ObjectId, Prediction]]]:
    """Predictions of every object, position by position; `banks` move along."""
    needed = [
        position
        for position in positions
        if any((position, object_id) not in prompted for object_id in banks)
    ]
    with closing(_images(plan, needed, model.image_size)) as images:
        for position in positions:
            predictions = {
                object_id: prompted[position, object_id]
                for object_id in banks
                if (position, object_id) in prompted
            }
            if object_ids := [object_id for object_id in banks if object_id not in predictions]:
                _, image = next(images)
                features = tracker.encode(model, image)
                held = [banks[object_id] for object_id in object_ids]
                tracked = tracker.track(model, features, position, held, sweep)
                for object_id, (prediction, bank) in zip(object_ids, tracked, strict=True):
                    predictions[object_id], banks[object_id] = prediction, bank
            yield position, predictions


def _is_final(plan: Plan, sweep: Sweep, position: int, is_prompted: bool) -> bool:
    """Whether this pass decides the frame: the frame where the direction turns is seen twice.

    There SAM 2 tracks again what was not prompted on it, now with memory of the frames after it.
    """
    turns = plan.direction == "both" and plan.start > 0 and position == plan.start
    return not turns or is_prompted != sweep.reverse


def _row(frame_index: int, prediction: Prediction) -> MaskletRow:
    return MaskletRow(
        frame_index, float(prediction.object_score), prediction.logits.float().cpu().numpy()
    )


def _images(
    plan: Plan, positions: Sequence[int], image_size: int
) -> Generator[tuple[int, Tensor], None, None]:
    """Preprocessed frames (3, image_size, image_size), made ahead in a thread of their own."""
    frames = read_frames(plan.source, [plan.timeline[position] for position in positions])
    position = iter(positions)

    def make() -> tuple[int, Tensor] | None:
        found = next(frames, None)
        if found is None:
            return None
        return next(position), tracker.preprocess(found[1], image_size)

    with closing(frames), ThreadPoolExecutor(1) as worker:
        ahead: deque[Future[tuple[int, Tensor] | None]] = deque(
            worker.submit(make) for _ in range(_FRAMES_AHEAD)
        )
        while (image := ahead.popleft().result()) is not None:
            ahead.append(worker.submit(make))
            yield image
