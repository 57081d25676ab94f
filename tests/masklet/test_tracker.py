"""The tracker against upstream's `SAM2VideoPredictor`, and what it keeps between frames."""

from collections.abc import Mapping
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base
from sam2.utils.misc import load_video_frames

from masklet.media import Source, probe, read_frames, write_video
from masklet.models import find_model
from masklet.network import Network
from masklet.plan import Clicks, Direction, FramePrompts, ObjectPlan, Plan
from masklet.propagate import segment_frames
from masklet.store import upsample
from masklet.tracker import MemoryBank, Sweep, condition, preprocess, track
from tests.conftest import FRAMES, HEIGHT, WIDTH, disc, picture
from tests.masklet.oracle import Logits, Prompts, make_oracle, oracle_logits

PROMPTED_TOLERANCE, TRACKED_TOLERANCE = 1e-3, 1e-2


@pytest.fixture(scope="module")
def oracle(nano: SAM2Base) -> Any:
    return make_oracle(find_model("nano"), nano)


@pytest.fixture(scope="module")
def source(clip: Path) -> Source:
    return probe(clip)


def click(*points: tuple[float, float, int], box: tuple[float, ...] | None = None) -> Clicks:
    """Clicks given as (x, y, label)."""
    return Clicks(
        np.array([point[:2] for point in points], np.float32).reshape(-1, 2),
        np.array([point[2] for point in points], np.int32),
        None if box is None else np.array(box, np.float32),
    )


def said(*clicks: Clicks, mask: np.ndarray[Any, Any] | None = None) -> FramePrompts:
    return FramePrompts(mask, clicks)


def plan_of(
    source: Source,
    prompts: Prompts,
    direction: Direction = "forward",
    timeline: tuple[int, ...] = tuple(range(FRAMES)),
) -> Plan:
    objects = tuple(ObjectPlan(object_id, by) for object_id, by in prompts.items())
    return Plan(source, timeline, objects, direction)


def our_logits(plan: Plan, model: SAM2Base) -> Logits:
    found: Logits = {}
    for frame_index, predictions, _ in segment_frames(plan, plan.object_ids, Network.of(model)):
        for object_id, prediction in predictions.items():
            key = plan.position[frame_index], object_id
            assert key not in found, "an object was predicted twice on a frame"
            found[key] = prediction.logits
    return found


def assert_same(ours: Logits, theirs: Logits, prompted: set[tuple[int, Any]]) -> None:
    assert set(ours) == set(theirs)
    for key, logits in theirs.items():
        tolerance = PROMPTED_TOLERANCE if key in prompted else TRACKED_TOLERANCE
        assert (ours[key] - logits).abs().max() <= tolerance, key
    agree = at_source_size(ours, theirs) == at_source_size(theirs, theirs)
    assert agree.float().mean() >= 0.9999


def at_source_size(logits: Logits, order: Logits) -> torch.Tensor:
    """Masks (n, 96, 160), upsampled as the exports do it."""
    full = [upsample(logits[key].numpy(), HEIGHT, WIDTH) > 0 for key in order]
    return torch.from_numpy(np.stack(full))


def compare(plan: Plan, model: SAM2Base, oracle: Any) -> Logits:
    """Assert that both trackers give the same logits; returns ours."""
    images = torch.stack(
        [
            preprocess(frame, model.image_size)
            for _, frame in read_frames(plan.source, plan.timeline)
        ]
    )
    prompts = {
        one.object_id: {plan.position[at]: prompts for at, prompts in one.prompts.items()}
        for one in plan.objects
    }
    theirs = oracle_logits(oracle, images, (HEIGHT, WIDTH), prompts, plan.direction)
    ours = our_logits(plan, model)
    prompted = {(at, object_id) for object_id, by in prompts.items() for at in by}
    assert_same(ours, theirs, prompted)
    return ours


EVERY_KIND: Prompts = {
    1: {0: said(click((40, 45, 1)))},
    "negative": {0: said(click((40, 45, 1), (100, 20, 0), (30, 40, 1)))},
    "box": {0: said(click(box=(18, 23, 62, 67)))},
    "box and clicks": {0: said(click((40, 45, 1), (20, 25, 0), box=(18, 23, 62, 67)))},
    "mask": {0: said(mask=disc(0))},
    "empty mask": {0: said(mask=np.zeros((HEIGHT, WIDTH), bool))},
    "refined": {0: said(click((40, 45, 1)), click((50, 50, 1), (80, 80, 0)))},
    "refined mask": {0: said(click((40, 45, 1)), mask=disc(0))},
    "twice": {0: said(click((40, 45, 1))), 9: said(click((67, 45, 1)))},
    "late": {7: said(click((61, 45, 1)))},
    "late mask": {12: said(mask=disc(12))},
}


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_every_kind_of_prompt_gives_the_oracles_logits(
    direction: Direction, source: Source, nano: SAM2Base, oracle: Any
) -> None:
    ours = compare(plan_of(source, EVERY_KIND, direction), nano, oracle)
    assert any((logits > 0).any() for logits in ours.values()), "nothing was segmented at all"
    if direction != "backward":
        assert len(ours) == FRAMES * len(EVERY_KIND)


@pytest.mark.parametrize("start", [0, 5])
def test_both_directions_from_late_objects(
    start: int, source: Source, nano: SAM2Base, oracle: Any
) -> None:
    prompts: Prompts = {
        "first": {start: said(click((40 + 3 * start, 45, 1)))},
        "late": {10: said(click((70, 45, 1)))},
    }
    compare(plan_of(source, prompts, "both"), nano, oracle)


@pytest.mark.parametrize(
    "timeline",
    [(3,), (3, 4), tuple(range(0, 20, 3)), (0, 2, 4, 5, 6, 8), tuple(range(3, 18))],
    ids=["one frame", "two frames", "interval", "off the grid", "shorter than 16"],
)
def test_lists_of_frames(
    timeline: tuple[int, ...], source: Source, nano: SAM2Base, oracle: Any
) -> None:
    at = timeline[len(timeline) // 2]
    prompts: Prompts = {1: {at: said(click((40 + 3 * at, 45, 1)))}, 2: {at: said(mask=disc(at))}}
    compare(plan_of(source, prompts, "both", timeline), nano, oracle)


def test_64_frames_tracked(nano: SAM2Base, oracle: Any, tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    frames = (picture(frame_index, speed=1.5) for frame_index in range(65))
    write_video(path, frames, width=WIDTH, height=HEIGHT, frame_rate=Fraction(10))
    prompts: Prompts = {1: {0: said(click((40, 45, 1)))}, 2: {0: said(mask=disc(0))}}
    compare(plan_of(probe(path), prompts, timeline=tuple(range(65))), nano, oracle)


def test_frames_are_prepared_as_upstream_prepares_them(tmp_path: Path) -> None:
    Image.fromarray(picture(3)).save(tmp_path / "0.jpg", quality=95)
    theirs, height, width = load_video_frames(str(tmp_path), 256, offload_video_to_cpu=True)
    ours = preprocess(np.asarray(Image.open(tmp_path / "0.jpg")), 256)
    assert (height, width) == (HEIGHT, WIDTH)
    assert (ours - theirs[0]).abs().max() < 1e-6


def test_masks_are_upsampled_as_upstream_does_it(oracle: Any) -> None:
    logits = torch.randn(1, 1, 64, 64)
    state = {"device": "cpu", "video_height": HEIGHT, "video_width": WIDTH}
    _, theirs = oracle._get_orig_video_res_output(state, logits)
    assert np.array_equal(upsample(logits[0, 0].numpy(), HEIGHT, WIDTH), theirs[0, 0].numpy())


@st.composite
def prompt_sets(draw: st.DrawFn) -> tuple[Prompts, Direction]:
    def frame_prompts() -> FramePrompts:
        x, y = st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1)
        points = draw(st.lists(st.tuples(x, y, st.sampled_from([0, 1])), max_size=3))
        left, top = draw(st.integers(0, 80)), draw(st.integers(0, 40))
        box = (left, top, left + draw(st.integers(2, 70)), top + draw(st.integers(2, 50)))
        kind = draw(st.sampled_from(["points", "box", "mask"]))
        if kind == "mask":
            return said(mask=disc(draw(st.integers(0, FRAMES))))
        if kind == "points" and points:
            return said(click(*points))
        return said(click(*points, box=box))

    prompts = {
        object_id: {
            at: frame_prompts() for at in draw(st.sets(st.integers(0, 7), min_size=1, max_size=3))
        }
        for object_id in range(draw(st.integers(1, 4)))
    }
    return prompts, draw(st.sampled_from(["forward", "backward", "both"]))


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=prompt_sets())
def test_any_prompts_give_the_oracles_logits(
    case: tuple[Prompts, Direction], source: Source, nano: SAM2Base, oracle: Any
) -> None:
    prompts, direction = case
    compare(plan_of(source, prompts, direction, tuple(range(8))), nano, oracle)


def test_objects_alone_are_as_in_a_batch(source: Source, nano: SAM2Base) -> None:
    together = our_logits(plan_of(source, EVERY_KIND), nano)
    plan = plan_of(source, EVERY_KIND)
    for frame_index, predictions, _ in segment_frames(plan, ["late"], Network.of(nano)):
        assert list(predictions) == ["late"]
        difference = predictions["late"].logits - together[frame_index, "late"]
        assert difference.abs().max() <= TRACKED_TOLERANCE


def tensors(bank: MemoryBank) -> int:
    """How many numbers a bank holds."""
    memories = [*bank.conditioning.values(), *bank.tracked.values()]
    parts = [getattr(memory, part.name) for memory in memories for part in fields(memory)]
    return sum(part.numel() for part in parts if part is not None)


def test_memory_does_not_grow_with_the_video(nano: SAM2Base) -> None:
    network = Network.of(nano)
    [features] = network.encode(torch.zeros(1, 3, nano.image_size, nano.image_size))
    _, memory = condition(network, features, said(click((40, 45, 1))), (HEIGHT, WIDTH))
    bank, sizes = MemoryBank({0: memory}), []
    for position in range(1, 60):
        [(_, bank)] = track(network, features, position, [bank], Sweep(60))
        sizes.append(tensors(bank))
    assert len(bank.tracked) == 15
    assert sum(memory.spatial is not None for memory in bank.tracked.values()) == 6
    assert len(set(sizes[20:])) == 1


def test_the_way_back_finds_the_frames_after_the_start(nano: SAM2Base) -> None:
    network = Network.of(nano)
    [features] = network.encode(torch.zeros(1, 3, nano.image_size, nano.image_size))
    _, memory = condition(network, features, said(click((40, 45, 1))), (HEIGHT, WIDTH))
    bank = MemoryBank({10: memory})
    for position in range(11, 60):
        sweep = Sweep(60, retain=range(11, 26))
        [(_, bank)] = track(network, features, position, [bank], sweep)
    kept: Mapping[int, Any] = bank.tracked
    assert set(range(11, 26)) <= set(kept)
    assert all(kept[position].spatial is not None for position in range(11, 17))
