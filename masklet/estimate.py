"""What a dataset will cost and take, told before it is run."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from masklet.dataset import Item, Problem, describe
from masklet.errors import UserError
from masklet.models import find_model
from masklet.pipeline import check_prompts, ingest, run_job
from masklet.plan import Plan
from masklet.price import price_of

_SAMPLE_FRAMES = 12


@dataclass(frozen=True)
class Estimate:
    """Totals over the items without problems.

    frames: to process; objects: of all items together. price: dollars.
    seconds: of tracking on this machine in one process, from a few frames of one item tracked for
    it; None if there is nothing to track.
    problems: lines on items that would fail.
    """

    items: int
    frames: int
    objects: int
    price: float
    seconds: float | None
    problems: list[str]


def estimate(items: Sequence[Item], advance: Callable[[], None] = lambda: None) -> Estimate:
    """Open every source, check the prompts against it, and add up; nothing is kept."""
    problems: list[Problem] = []
    frames = objects = work = most = 0
    price = 0.0
    longest: tuple[Item, Plan] | None = None
    for item in items:
        try:
            plan = check_prompts(item.job, ingest(item.job))
        except UserError as error:
            problems.append(Problem(item.item_id, item.job.file, str(error)))
        else:
            # of the plans, which hold the mask prompts, one is kept
            frames += len(plan.frame_indices)
            objects += len(plan.objects)
            price += price_of(item.job, plan, find_model(item.job.model_type)).total
            # one mask of one object on one frame is taken as the unit of work
            masks = len(plan.frame_indices) * len(plan.objects)
            work += masks
            if masks > most:
                most, longest = masks, (item, plan)
        advance()
    pace = _seconds_per_mask(*longest) if longest else None
    return Estimate(
        len(items) - len(problems),
        frames,
        objects,
        round(price, 6),
        None if pace is None else pace * work,
        describe(problems),
    )


def _seconds_per_mask(item: Item, plan: Plan) -> float | None:
    """Track the frames around the first prompt for real, into a directory that is thrown away."""
    if plan.is_image or item.job.preview:
        return None
    first = plan.frame_indices[0]
    last = plan.frame_indices[min(len(plan.frame_indices), _SAMPLE_FRAMES) - 1]
    job = item.job.model_copy(
        update={
            "prompts": [one for one in item.job.prompts if first <= one.frame_index <= last],
            "start_frame": first,
            "end_frame": last,
            "mask_prompts": None,  # they may be of frames that are left out
        }
    )
    if not job.prompts:
        return None
    with tempfile.TemporaryDirectory(prefix="masklet-") as folder:
        begun = time.perf_counter()
        outputs = run_job(job, Path(folder, "run"))
        seconds = outputs.seconds.get("propagate") or time.perf_counter() - begun
    masks: int = outputs.summary["frames"] * len(outputs.summary["objects"])
    return seconds / masks
