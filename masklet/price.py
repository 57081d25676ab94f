"""What a run costs, as a hosted service would bill it."""

from dataclasses import dataclass

from masklet.job import SegmentJob
from masklet.models import ModelSpec
from masklet.plan import Plan

FRAMES_PER_MINUTE = 30 * 60
MINIMUM = 0.01


@dataclass(frozen=True)
class Price:
    """A price in dollars and how it came about; `minutes` counts processed frames at 30 fps."""

    total: float
    model: str
    frames: int
    objects: int
    minutes: float
    price_per_minute: float
    price_per_object_minute: float


def price_of(job: SegmentJob, plan: Plan, spec: ModelSpec) -> Price:
    """Price of a job: of its frames and objects, or flat for a preview and for an image."""
    how = flat_price if job.preview or plan.is_image else price
    return how(spec, len(plan.frame_indices), len(plan.objects))


def flat_price(spec: ModelSpec, frames: int, objects: int) -> Price:
    """The least price, whatever the number of frames and objects."""
    return Price(
        MINIMUM, spec.name, frames, objects, round(frames / FRAMES_PER_MINUTE, 6), 0.0, 0.0
    )


def price(spec: ModelSpec, frames: int, objects: int) -> Price:
    """Price of tracking `objects` through `frames` processed frames, at least 0.01."""
    minutes = frames / FRAMES_PER_MINUTE
    total = spec.price_per_minute * minutes + spec.price_per_object_minute * objects * minutes
    return Price(
        total=round(max(total, MINIMUM), 6),
        model=spec.name,
        frames=frames,
        objects=objects,
        minutes=round(minutes, 6),
        price_per_minute=spec.price_per_minute,
        price_per_object_minute=spec.price_per_object_minute,
    )
