"""Our masks are upstream's: the tracker beside `SAM2VideoPredictor`, prompt by prompt.

Every test gives both the same frames, weights and prompts, and asks for the same logits and masks
in float32 (`comparison.compare`). Where upstream has a quirk, the test's name or docstring says
whether it is kept. What is long, and what is drawn at random, is compared at nano's own size of
picture; the rest at a smaller one.

The property holds for any prompts; `--hypothesis-profile thorough` tries many more of them.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base

from masklet import attention
from masklet.job import SegmentJob
from masklet.media import Source, probe, write_video
from masklet.models import find_model
from masklet.plan import Direction, FramePrompts, Plan, plan_job
from tests.conftest import HEIGHT, WIDTH, disc, picture
from tests.masklet.comparison import (
    TRACKED_TOLERANCE,
    click,
    compare,
    our_logits,
    plan_of,
    said,
    seeded_oracle,
    their_logits,
)
from tests.masklet.oracle import Logits, Prompts, build_oracle, make_oracle

DIRECTIONS: tuple[Direction, ...] = ("forward", "backward", "both")
EMPTY = np.zeros((HEIGHT, WIDTH), bool)
# where the disc is on the first frame, and five more places on it and beside it
DISC_BOX = (18, 23, 62, 67)
POINTS = [(40, 45, 1), (50, 50, 1), (100, 20, 0), (30, 40, 1), (130, 80, 0)]


@pytest.fixture(scope="module")
def oracle(nano: SAM2Base) -> Any:
    return make_oracle(find_model("nano"), nano)


@pytest.fixture(scope="module")
def small(nano: SAM2Base) -> Any:
    """Upstream's predictor with nano's weights on smaller pictures, to be fast.

    No weight has a shape that depends on their size. It is a `SAM2Base`, for our tracker too.
    """
    predictor = build_oracle(find_model("nano"), image_size=192)
    predictor.load_state_dict(nano.state_dict(), strict=True)
    return predictor


@pytest.fixture(scope="module")
def source(clip: Path) -> Source:
    return probe(clip)


def on_disc(frame_index: int) -> FramePrompts:
    return said(click((40 + 3 * frame_index, 45, 1)))


# ---------------------------------------------------------------------------------------------
# Kinds of prompts


def test_points_of_every_number(source: Source, nano: SAM2Base, oracle: Any) -> None:
    """One point lets three masks compete, more do not; no point at all comes with a box only."""
    prompts: Prompts = {
        **{f"{n} points": {0: said(click(*POINTS[:n]))} for n in range(1, 6)},
        **{f"box, {n} points": {0: said(click(*POINTS[:n], box=DISC_BOX))} for n in range(6)},
    }
    ours = compare(plan_of(source, prompts, timeline=range(3)), nano, oracle)
    assert all((ours[2, one] > 0).any() for one in prompts)


def test_negative_points_alone(source: Source, small: Any) -> None:
    places = [(100, 20, 0), (40, 45, 0), (130, 80, 0), (5, 90, 0), (80, 50, 0)]
    prompts = {n: {0: said(click(*places[:n]))} for n in range(1, 6)}
    compare(plan_of(source, prompts, timeline=range(3)), small, small)


def test_points_and_boxes_at_the_edges(source: Source, small: Any) -> None:
    right, bottom = WIDTH - 1, HEIGHT - 1
    prompts: Prompts = {
        "corners": {0: said(click((0, 0, 1), (right, bottom, 1), (right, 0, 0)))},
        "fractions": {0: said(click((39.25, 45.75, 1)))},
        "whole frame": {0: said(click(box=(0, 0, WIDTH, HEIGHT)))},
        "one pixel": {0: said(click(box=(40, 45, 41, 46)))},
    }
    compare(plan_of(source, prompts, timeline=range(3)), small, small)


def test_refining_on_one_frame(source: Source, small: Any) -> None:
    """All points so far and the previous logits go in; a mask is then only its logits.

    Upstream forgets a mask prompt as soon as there are clicks beside it, but hands its answer on as
    logits to refine: kept.
    """
    first, second, third = click(POINTS[0]), click(POINTS[2]), click(*POINTS[3:])
    prompts: Prompts = {
        "twice": {0: said(first, second)},
        "three times": {0: said(first, second, third)},
        "box": {0: said(click(box=DISC_BOX), second, third)},
        "box and point": {0: said(click(POINTS[0], box=DISC_BOX), third)},
        "mask": {0: said(first, second, mask=disc(0))},
        "mask, then box": {0: said(click(box=DISC_BOX), third, mask=disc(0))},
        "empty mask": {0: said(first, mask=EMPTY)},
        "far from it": {0: said(first, click((130, 80, 1)))},
    }
    compare(plan_of(source, prompts, timeline=range(3)), small, small)


def test_masks(source: Source, small: Any) -> None:
    dots = np.zeros((HEIGHT, WIDTH), bool)
    dots[::16, ::16] = True  # gone once they are shrunk: then the object is absent
    prompts: Prompts = {
        "disc": {0: said(mask=disc(0))},
        "everything": {0: said(mask=~EMPTY)},
        "ground": {0: said(mask=~disc(0))},
        "dots": {0: said(mask=dots)},
        "noise": {0: said(mask=np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.5)},
    }
    compare(plan_of(source, prompts, timeline=range(3)), small, small)


@pytest.mark.parametrize(
    ("across", "down"), [(1, 1), (1.25, 0.7)], ids=["the model's own size", "wider and lower"]
)
def test_clips_of_other_sizes(across: float, down: float, small: Any, tmp_path: Path) -> None:
    """A mask of the model's own size is taken as it is, any other is shrunk or stretched."""
    size = 2 * round(small.image_size * across / 2), 2 * round(small.image_size * down / 2)

    def frames() -> Iterator[NDArray[np.uint8]]:
        yield from (np.asarray(Image.fromarray(picture(at)).resize(size)) for at in range(4))

    write_video(tmp_path / "a.mp4", frames(), width=size[0], height=size[1], frame_rate=Fraction(9))
    mask = np.array(Image.fromarray(disc(0)).resize(size), bool)
    x, y = 40 / WIDTH * size[0], 45 / HEIGHT * size[1]
    prompts: Prompts = {"mask": {0: said(mask=mask)}, "point": {0: said(click((x, y, 1)))}}
    compare(plan_of(probe(tmp_path / "a.mp4"), prompts), small, small)


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_an_object_that_never_appears(direction: Direction, source: Source, small: Any) -> None:
    prompts: Prompts = {"disc": {2: on_disc(2)}, "nothing": {2: said(mask=EMPTY)}}
    ours = compare(plan_of(source, prompts, direction, range(8)), small, small)
    nothing = [logits for (_, one), logits in ours.items() if one == "nothing"]
    assert len(nothing) == (6 if direction == "forward" else 8)
    assert all((logits <= 0).all() for logits in nothing)
    assert all((logits > 0).any() for (_, one), logits in ours.items() if one == "disc")


# ---------------------------------------------------------------------------------------------
# Several frames, several objects


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_prompts_on_several_frames(direction: Direction, source: Source, small: Any) -> None:
    """Frames after a prompt, before one, and between two attend to all prompted frames."""
    prompts: Prompts = {
        "close": {at: on_disc(at) for at in (2, 3, 5)},
        "far": {1: on_disc(1), 18: said(mask=disc(18))},
        "one says no": {4: on_disc(4), 9: said(mask=EMPTY)},
    }
    compare(plan_of(source, prompts, direction), small, small)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_prompts_given_out_of_order(
    direction: Direction, clip: Path, source: Source, small: Any
) -> None:
    """Upstream takes the prompts as they come; a plan has them by frame. The masks are the same.

    Only the order of prompts on the same frame matters, and it is kept.
    """
    told = [
        (9, "a", {"points": [[67, 45]], "labels": [1]}),
        (4, "b", {"box": [30, 23, 74, 67]}),
        (2, "a", {"points": [[46, 45]], "labels": [1]}),
        (9, "a", {"points": [[120, 20]], "labels": [0]}),
        (0, "b", {"points": [[40, 45]], "labels": [1]}),
    ]
    listed = [{"frame_index": at, "object_id": one, **rest} for at, one, rest in told]
    job = SegmentJob(file=str(clip), prompts=listed, direction=direction, end_frame=11)
    in_order: Prompts = {
        "a": {9: said(click((67, 45, 1)), click((120, 20, 0))), 2: said(click((46, 45, 1)))},
        "b": {4: said(click(box=(30, 23, 74, 67))), 0: said(click((40, 45, 1)))},
    }
    plan = plan_job(job, source)
    assert [list(one.prompts) for one in plan.objects] == [[2, 9], [0, 4]]
    compare(plan, small, small, in_order)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_objects_prompted_late_are_tracked_from_the_earliest_prompt_of_all(
    direction: Direction, source: Source, small: Any
) -> None:
    """Before its prompt an object is found through memory of the future, as upstream does it."""
    prompts: Prompts = {
        "early": {1: on_disc(1)},
        "late": {12: on_disc(12)},
        "last": {19: said(mask=disc(19))},
    }
    ours = compare(plan_of(source, prompts, direction), small, small)
    first = {"forward": 1, "backward": 0, "both": 0}[direction]
    assert {key for key in ours if key[1] == "late"} == {(at, "late") for at in range(first, 20)}


@pytest.mark.parametrize("objects", [1, 2, 5, 17])
def test_numbers_of_objects(objects: int, source: Source, small: Any) -> None:
    """Objects do not know of each other, however many go through the network at once."""
    kinds = [on_disc(0), said(mask=disc(0)), said(click(box=DISC_BOX)), said(click((120, 20, 1)))]
    prompts = {
        number: {number % 3: kinds[number % 4]} if number else {0: kinds[0]}
        for number in range(objects)
    }
    ours = compare(plan_of(source, prompts, "both", range(5)), small, small)
    assert {one for _, one in ours} == set(range(objects))


# ---------------------------------------------------------------------------------------------
# Lists of frames


@pytest.mark.parametrize(
    ("frames", "direction"),
    # test_backward_from_the_first_frame_gives_that_frame has the one that is left out
    [(n, way) for n in (1, 2, 7) for way in DIRECTIONS if (n, way) != (1, "backward")],
)
def test_clips_shorter_than_the_memory(
    frames: int, direction: Direction, source: Source, small: Any
) -> None:
    """The number of frames bounds the object pointers, and scales their embedding."""
    at = frames - 1 if direction == "backward" else frames // 2
    prompts: Prompts = {"click": {at: on_disc(at)}, "mask": {frames - 1: said(mask=disc(at))}}
    compare(plan_of(source, prompts, direction, range(frames)), small, small)


def test_backward_from_the_first_frame_gives_that_frame(source: Source, small: Any) -> None:
    """Upstream gives nothing at all then: not kept."""
    plan = plan_of(source, {1: {0: on_disc(0)}}, "backward", range(3))
    forward = plan_of(source, {1: {0: on_disc(0)}}, "forward", range(3))
    assert their_logits(plan, small, {1: {0: on_disc(0)}}) == {}
    ours = our_logits(plan, small)
    assert set(ours) == {(0, 1)}
    assert torch.equal(ours[0, 1], our_logits(forward, small)[0, 1])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_interval_with_prompts_off_the_grid(
    direction: Direction, clip: Path, source: Source, small: Any
) -> None:
    """Both count in positions of the list of processed frames, not in frames of the source."""
    listed = [
        {"frame_index": 6, "object_id": 1, "points": [[58, 45]], "labels": [1]},
        {"frame_index": 13, "object_id": 2, "points": [[79, 45]], "labels": [1]},
        {"frame_index": 14, "object_id": 2, "points": [[82, 45]], "labels": [1]},
    ]
    job = SegmentJob(
        file=str(clip), prompts=listed, direction=direction, frame_interval=4, start_frame=1
    )
    plan = plan_job(job, source)
    assert plan.timeline == (1, 5, 6, 9, 13, 14, 17)
    compare(plan, small, small)


def test_64_frames_tracked(nano: SAM2Base, oracle: Any, tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    frames = (picture(frame_index, speed=1.5) for frame_index in range(65))
    write_video(path, frames, width=WIDTH, height=HEIGHT, frame_rate=Fraction(10))
    prompts: Prompts = {1: {0: said(click(POINTS[0]))}, 2: {0: said(mask=disc(0))}}
    compare(plan_of(probe(path), prompts), nano, oracle)


# ---------------------------------------------------------------------------------------------
# Other models


@pytest.mark.parametrize(
    ("name", "image_size", "frames"),
    [("tiny", 256, 5), ("large", 128, 3), ("sam2_hiera_small", 256, 4)],
)
def test_published_configs(name: str, image_size: int, frames: int, source: Source) -> None:
    """Seeded weights; SAM 2.0 has no embedding of absence and of the age of pointers."""
    oracle = seeded_oracle(name, image_size)
    prompts: Prompts = {
        "point": {1: on_disc(1)},
        "points": {1: said(click(*POINTS[:3]), click(POINTS[3]))},
        "box, late": {2: said(click(box=DISC_BOX))},
        "mask": {1: said(mask=disc(1))},
        "empty mask": {1: said(mask=EMPTY)},
    }
    ours = compare(plan_of(source, prompts, "both", range(frames)), oracle, oracle)
    assert_useful(ours, [(0, one) for one in prompts])
    assert_useful(ours, [(2, one) for one in prompts if one != "box, late"])


def test_attention_by_blocks(source: Source, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in models with large pictures."""
    monkeypatch.setattr(attention, "_MOST_WEIGHTS", 2**14)
    monkeypatch.setattr(attention, "_BLOCK_QUERIES", 50)
    monkeypatch.setattr(attention, "_BLOCK_KEYS", 300)
    prompts: Prompts = {"point": {0: on_disc(0)}, "mask": {2: said(mask=disc(2))}}
    compare(plan_of(source, prompts, "both"), small, small)


def assert_useful(logits: Logits, tracked: list[tuple[int, Any]]) -> None:
    """Masks that show mistakes: neither empty nor full, not faint, and different by object."""
    for key in tracked:
        assert 0.05 < (logits[key] > 0).float().mean() < 0.95, key
        assert 1 < logits[key].std() < 20, key
        others = [other for other in tracked if other[0] == key[0] and other != key]
        for other in others:
            assert (logits[key] - logits[other]).abs().max() > 10 * TRACKED_TOLERANCE, (key, other)


# ---------------------------------------------------------------------------------------------
# max_cond_frames


@pytest.mark.parametrize(("limit", "direction"), [(2, "forward"), (2, "backward"), (3, "both")])
def test_max_cond_frames(
    limit: int,
    direction: Direction,
    source: Source,
    small: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SAM 2's own option: attend to the nearest prompted frames only, default all.

    A prompted frame that is not among them counts as a tracked one. Of two that are equally far
    upstream takes the one that was given first; we take the earlier frame. Here that is the same.
    """
    prompts: Prompts = {
        "many": {at: on_disc(at) for at in (3, 4, 6, 9, 12, 13)},
        "two": {5: on_disc(5), 11: said(mask=disc(11))},
    }
    plan = plan_of(source, prompts, direction, range(16))
    unlimited = our_logits(plan, small)
    monkeypatch.setattr(small, "max_cond_frames_in_attn", limit)
    ours = compare(plan, small, small)
    assert max((ours[key] - unlimited[key]).abs().max() for key in ours) > TRACKED_TOLERANCE


# ---------------------------------------------------------------------------------------------
# Any prompts


@st.composite
def frame_prompts(draw: st.DrawFn) -> FramePrompts:
    """Anything that may be said about an object on a frame: a mask, a box, rounds of points."""
    x, y = st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1)
    points = st.lists(st.tuples(x, y, st.sampled_from([0, 1])), min_size=1, max_size=5)
    kind = draw(st.sampled_from(["points", "box", "box and points", "mask", "refined mask"]))
    mask = draw(st.sampled_from([EMPTY, disc(0), disc(5), ~disc(3)])) if "mask" in kind else None
    rounds = []
    if "box" in kind:
        left, top = draw(st.integers(0, 80)), draw(st.integers(0, 40))
        box = (left, top, left + draw(st.integers(2, 70)), top + draw(st.integers(2, 50)))
        rounds.append(click(*(draw(points) if kind == "box and points" else ()), box=box))
    if kind != "mask":
        least = 1 if kind in ("points", "refined mask") else 0
        rounds += [click(*some) for some in draw(st.lists(points, min_size=least, max_size=2))]
    return said(*rounds, mask=mask)


@st.composite
def plans(draw: st.DrawFn, source: Source) -> Plan:
    interval, last = draw(st.integers(1, 3)), draw(st.integers(0, 9))
    prompted = st.sets(st.integers(0, last), min_size=1, max_size=3)
    prompts = {
        number: {at: draw(frame_prompts()) for at in sorted(draw(prompted))}
        for number in range(draw(st.integers(1, 3)))
    }
    timeline = sorted(set(range(0, last + 1, interval)).union(*prompts.values()))
    return plan_of(source, prompts, draw(st.sampled_from(DIRECTIONS)), timeline)


# an example runs two trackers, so one in twenty of what the profile asks for
@settings(
    max_examples=max(1, settings.default.max_examples // 20),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_any_prompts(data: st.DataObject, source: Source, nano: SAM2Base, oracle: Any) -> None:
    plan = data.draw(plans(source))
    # test_backward_from_the_first_frame_gives_that_frame has what is left out
    assume(plan.direction != "backward" or plan.start > 0)
    compare(plan, nano, oracle)


def test_a_pixel_that_rounding_decides(source: Source, nano: SAM2Base, oracle: Any) -> None:
    """With these clicks a pixel of what is remembered lies within 1e-6 of zero, on some machines
    on one side of it in our tracker and on the other in upstream's (see `compare`)."""
    refined = click((34, 38, 0), (51, 91, 1), (44, 94, 0), (11, 64, 1), (1, 28, 0))
    prompts: Prompts = {1: {3: said(click((140, 84, 1)), refined)}}
    compare(
        plan_of(source, {0: {0: said(mask=disc(0))}, **prompts}, timeline=range(6)), nano, oracle
    )


# ---------------------------------------------------------------------------------------------
# bfloat16


def test_bfloat16_moves_only_the_edges(source: Source, nano: SAM2Base) -> None:
    """Not the same masks, but for pixels at their edges, on prompted and on tracked frames."""
    prompts: Prompts = {1: {0: said(click(POINTS[0]))}, 2: {0: said(mask=disc(0))}}
    plan = plan_of(source, prompts)
    wide, narrow = our_logits(plan, nano), our_logits(plan, nano, torch.bfloat16)
    assert any(not torch.equal(wide[key], narrow[key]) for key in wide)
    for key, logits in wide.items():
        first, second = logits > 0, narrow[key] > 0
        assert (first & second).sum() >= 0.95 * (first | second).sum(), key
