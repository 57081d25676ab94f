"""Which frames a job means, and every prompt that does not fit its source."""

import zipfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masklet.errors import UserError
from masklet.job import make_job
from masklet.media import Source
from masklet.plan import Plan, plan_job

WIDTH, HEIGHT, FRAMES = 64, 48, 10


def source(frames: int = FRAMES) -> Source:
    return Source(
        path=Path("clip.mp4"),
        sha256="0" * 64,
        width=WIDTH,
        height=HEIGHT,
        time_base=Fraction(1, 10),
        pts=tuple(range(frames)),
        frame_rate=Fraction(10),
    )


def click(frame_index: int, object_id: int | str = 1, x: float = 5, y: float = 6) -> dict[str, Any]:
    return {
        "frame_index": frame_index,
        "object_id": object_id,
        "points": [[x, y]],
        "labels": [1],
    }


def box(frame_index: int, object_id: int | str = 1, *edges: float) -> dict[str, Any]:
    return {"frame_index": frame_index, "object_id": object_id, "box": edges or (1, 2, 30, 40)}


def plan(*prompts: dict[str, Any], frames: int = FRAMES, **fields: Any) -> Plan:
    job = make_job({"file": "clip.mp4", "prompts": list(prompts), **fields})
    return plan_job(job, source(frames))


def refusal(*prompts: dict[str, Any], **fields: Any) -> str:
    with pytest.raises(UserError) as raised:
        plan(*prompts, **fields)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def mask_zip(path: Path, *names: str, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            mask = np.zeros(shape, bool)
            mask[number + 1 :, 3:] = True
            with archive.open(name, "w") as file:
                np.save(file, mask)
    return path


# The timeline


@pytest.mark.parametrize(
    ("fields", "prompted", "timeline"),
    [
        ({}, 0, range(10)),
        ({"start_frame": -1, "end_frame": -1}, 0, range(10)),
        ({"start_frame": 0, "end_frame": 0}, 0, [0]),
        ({"start_frame": 9}, 9, [9]),
        ({"start_frame": 3, "end_frame": 5}, 3, [3, 4, 5]),
        ({"frame_interval": 3}, 0, [0, 3, 6, 9]),
        ({"frame_interval": 3, "end_frame": 8}, 0, [0, 3, 6]),
        ({"frame_interval": 4, "start_frame": 1}, 1, [1, 5, 9]),
        ({"frame_interval": 4, "start_frame": 1}, 3, [1, 3, 5, 9]),
        ({"frame_interval": 100}, 7, [0, 7]),
    ],
)
def test_both_ends_belong_to_the_range_and_prompted_frames_to_the_timeline(
    fields: dict[str, int], prompted: int, timeline: Sequence[int]
) -> None:
    assert plan(click(prompted), **fields).timeline == tuple(timeline)


def test_direction_says_where_tracking_starts_and_which_frames_get_masks() -> None:
    prompts = [click(6, "late"), click(2, "early")]
    forward = plan(*prompts)
    assert forward.start == 2
    assert forward.frame_indices == tuple(range(2, 10))
    backward = plan(*prompts, direction="backward")
    assert backward.start == 6
    assert backward.frame_indices == tuple(range(7))
    both = plan(*prompts, direction="both")
    assert both.start == 2
    assert both.frame_indices == tuple(range(10))


def test_start_counts_in_the_timeline_not_in_the_source() -> None:
    made = plan(click(7), start_frame=1, frame_interval=4)
    assert made.timeline == (1, 5, 7, 9)
    assert (made.start, made.position[7]) == (2, 2)
    assert made.frame_indices == (7, 9)


@settings(deadline=None)
@given(st.data())
def test_every_timeline_holds_the_grid_and_the_prompts_and_nothing_else(
    data: st.DataObject,
) -> None:
    frames = data.draw(st.integers(1, 40))
    start = data.draw(st.integers(-1, frames - 1))
    first = max(start, 0)
    end = data.draw(st.one_of(st.just(-1), st.integers(first, frames - 1)))
    last = frames - 1 if end == -1 else end
    interval = data.draw(st.integers(1, 50))
    prompted = data.draw(st.sets(st.integers(first, last), min_size=1, max_size=4))
    direction = data.draw(st.sampled_from(["forward", "backward", "both"]))
    made = plan(
        *(click(index, f"o{index}") for index in prompted),
        frames=frames,
        start_frame=start,
        end_frame=end,
        frame_interval=interval,
        direction=direction,
    )
    grid = {index for index in range(first, last + 1) if (index - first) % interval == 0}
    assert made.timeline == tuple(sorted(grid | prompted))
    after = {index for index in made.timeline if index >= min(prompted)}
    before = {index for index in made.timeline if index <= max(prompted)}
    expected = {"forward": after, "backward": before, "both": set(made.timeline)}[direction]
    assert made.frame_indices == tuple(sorted(expected))
    assert prompted <= set(made.frame_indices)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"start_frame": 10}, "start_frame is 10, but clip.mp4 has the frames 0 to 9"),
        ({"end_frame": 10}, "end_frame is 10, but clip.mp4 has the frames 0 to 9"),
        ({"start_frame": 5, "end_frame": 4}, "start_frame 5 is after end_frame 4"),
        ({"multimask_output": True}, "multimask_output is for images, and clip.mp4 is a video"),
    ],
)
def test_a_range_that_is_none(fields: dict[str, Any], words: str) -> None:
    assert words in refusal(click(5), **fields)


def test_a_job_without_prompts() -> None:
    assert "no prompts" in refusal()


# Prompts that do not fit


def test_a_frame_that_there_is_not() -> None:
    message = refusal(click(0), click(10, "dog"))
    assert message.startswith("prompts[1] (frame 10, object 'dog'): there is no frame 10")
    assert "0 to 9" in message


@pytest.mark.parametrize("frame_index", [2, 7])
def test_a_frame_outside_the_range(frame_index: int) -> None:
    message = refusal(click(4), click(frame_index), start_frame=3, end_frame=6)
    assert message.startswith(f"prompts[1] (frame {frame_index}, object 1)")
    assert "3 to 6; prompt a frame in it, or change start_frame or end_frame" in message


@pytest.mark.parametrize(("x", "y"), [(0, 0), (63.99, 47.99), (0.5, 47)])
def test_a_point_on_the_border_is_inside(x: float, y: float) -> None:
    assert plan(click(0, x=x, y=y)).objects[0].prompts[0].clicks[0].points.shape == (1, 2)


@pytest.mark.parametrize(("x", "y"), [(64, 0), (0, 48), (-0.001, 0), (0, -1), (1e308, 0)])
def test_a_point_outside_the_frame(x: float, y: float) -> None:
    message = refusal(click(0), click(3, "cat", x, y))
    assert message.startswith("prompts[1] (frame 3, object 'cat'): the point (")
    assert "64x48" in message
    assert "x from 0 to below 64 and y from 0 to below 48" in message


@pytest.mark.parametrize("edges", [(0, 0, 64, 48), (63, 47, 64, 48), (0.5, 0.5, 1, 1)])
def test_a_box_may_end_on_the_border(edges: tuple[float, ...]) -> None:
    clicks = plan(box(0, 1, *edges)).objects[0].prompts[0].clicks[0]
    assert clicks.box is not None
    assert clicks.box.tolist() == list(edges)


@pytest.mark.parametrize(
    "edges", [(0, 0, 64.5, 48), (0, 0, 64, 48.1), (-1, 0, 5, 5), (0, -0.1, 5, 5), (70, 0, 80, 9)]
)
def test_a_box_outside_the_frame(edges: tuple[float, ...]) -> None:
    message = refusal(box(2, 7, *edges))
    assert message.startswith("prompts[0] (frame 2, object 7): the box [")
    assert "64x48" in message
    assert "[x_min, y_min, x_max, y_max], not [x, y, width, height]" in message
    assert "x from 0 to 64 and y from 0 to 48" in message


def test_ids_that_differ_in_type_only(tmp_path: Path) -> None:
    message = refusal(click(0, 1), click(0, "cat"), click(3, "1"))
    assert message.startswith("prompts[2] (frame 3, object '1'): the object ids 1 and '1' differ")
    masks = mask_zip(tmp_path / "masks.zip", "0_1.npy")
    message = refusal(click(0, "1"), mask_prompts=masks)
    assert message.startswith(f"{masks}: '0_1.npy': the object ids '1' and 1 differ only in type")
    assert plan(click(0, 1), click(0, "01")).object_ids == (1, "01")


def test_a_box_after_clicks_of_the_same_object_and_frame() -> None:
    message = refusal(click(0), click(0, "other"), box(0))
    assert message.startswith("prompts[2] (frame 0, object 1): a box must come before")
    assert refusal(box(0), box(0)).startswith("prompts[1]")
    plan(box(0), click(0))
    plan(click(0), box(1), box(0, "other"))


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            click,
            st.integers(0, 12),
            st.sampled_from([1, "1", 2, "a"]),
            st.floats(-5, 70),
            st.floats(-5, 70),
        )
        | st.builds(box, st.integers(0, 12), st.sampled_from([1, "a"])),
        max_size=6,
    ),
    st.integers(-1, 12),
    st.integers(-1, 12),
)
def test_whatever_is_asked_ends_in_a_plan_or_one_line(
    prompts: list[dict[str, Any]], start: int, end: int
) -> None:
    try:
        made = plan(*prompts, start_frame=start, end_frame=end)
    except UserError as error:
        lines = str(error).splitlines()
    else:
        lines = ["planned"]
        assert {p["frame_index"] for p in prompts} <= set(made.frame_indices)
        assert {p["object_id"] for p in prompts} == set(made.object_ids)
    assert len(lines) == 1


# What an object is given


def test_prompts_are_grouped_by_object_and_frame_in_the_order_given() -> None:
    made = plan(box(4, "b"), click(4, "b", 1, 2), click(2, "b", 3, 4), click(4, "a", 5, 6))
    assert made.object_ids == ("b", "a")
    first = made.objects[0].prompts
    assert list(first) == [2, 4]
    assert [c.box is None for c in first[4].clicks] == [False, True]
    assert first[4].clicks[0].points.shape == (0, 2)
    assert first[4].clicks[1].points.tolist() == [[1, 2]]
    assert first[4].clicks[1].labels.tolist() == [1]
    assert first[4].mask is None
    assert (first[2].clicks[0].points.dtype, first[2].clicks[0].labels.dtype) == (
        np.float32,
        np.int32,
    )


def test_a_mask_and_clicks_on_the_same_frame_are_both_kept(tmp_path: Path) -> None:
    masks = mask_zip(tmp_path / "masks.zip", "3_1.npy", "5_dog.npy", "4_1.npy")
    made = plan(click(3, 1), mask_prompts=masks, direction="both")
    assert made.object_ids == (1, "dog")
    both = made.objects[0].prompts[3]
    assert both.mask is not None
    assert both.mask.sum() == 47 * 61
    assert len(both.clicks) == 1
    alone = made.objects[0].prompts[4]
    assert alone.mask is not None
    assert alone.mask.sum() == 45 * 61
    assert alone.clicks == ()
    assert list(made.objects[1].prompts) == [5]
    assert made.start == 3


def test_masks_alone_are_prompts_enough(tmp_path: Path) -> None:
    masks = mask_zip(tmp_path / "masks.zip", "3_1.npy")
    assert plan(mask_prompts=masks, frame_interval=5).timeline == (0, 3, 5)


@pytest.mark.parametrize(
    ("name", "words"), [("10_1.npy", "there is no frame 10"), ("1_1.npy", "range 2 to 9")]
)
def test_a_mask_on_a_frame_that_is_not_processed(tmp_path: Path, name: str, words: str) -> None:
    masks = mask_zip(tmp_path / "masks.zip", "3_1.npy", name)
    message = refusal(mask_prompts=masks, start_frame=2)
    assert message.startswith(f"{masks}: {name!r}")
    assert words in message


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    masks = mask_zip(tmp_path / "masks.zip", "3_1.npy", shape=(WIDTH, HEIGHT))
    message = refusal(mask_prompts=masks)
    assert message.startswith(f"{masks}: '3_1.npy' has the shape (64, 48)")
    assert "(48, 64)" in message
