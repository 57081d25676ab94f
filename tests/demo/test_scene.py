import numpy as np
import pytest

from demo.scene import BALL, BALLOON, BLIMP, KITE, OBJECT_IDS, PUMPKIN, Frame, label, render


def areas(frames: list[Frame], object_id: int | str) -> list[int]:
    return [int(np.count_nonzero(frame.labels == label(object_id))) for frame in frames]


def test_the_same_clip_is_drawn_on_every_run(frames):
    again = list(render(width=214, height=120, frames=24))
    for one, other in zip(frames, again, strict=True):
        np.testing.assert_array_equal(one.picture, other.picture)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_frames_have_the_size_and_types_promised(frames):
    assert [frame.frame_index for frame in frames] == list(range(24))
    for frame in frames:
        assert frame.picture.shape == (120, 214, 3)
        assert frame.labels.shape == (120, 214)
        assert frame.picture.dtype == frame.labels.dtype == np.uint8
        assert frame.labels.max() <= len(OBJECT_IDS)


def test_the_picture_changes_where_the_truth_says_that_an_object_is(frames):
    first, late = frames[0], frames[-1]
    blimp = late.labels == label(BLIMP)
    difference = np.abs(first.picture.astype(int) - late.picture)[blimp].mean()
    assert difference > 40


def test_the_ball_leaves_the_frame_for_a_while_and_comes_back(frames):
    seen = np.array(areas(frames, BALL)) > 0
    changes = np.flatnonzero(np.diff(seen.astype(int)))
    assert seen[0]
    assert seen[-1]
    assert len(changes) == 2
    assert changes[1] - changes[0] >= 3


def test_the_blimp_enters_late_and_stays(frames):
    area = areas(frames, BLIMP)
    first = next(index for index, pixels in enumerate(area) if pixels)
    assert len(frames) // 4 < first < len(frames) // 2
    assert all(area[first:])


@pytest.mark.parametrize(("behind", "before"), [(PUMPKIN, BALL), (BALLOON, KITE)])
def test_a_nearer_object_removes_pixels_of_a_farther_one(frames, behind, before):
    area = areas(frames, behind)
    covered = int(np.argmin(area))
    assert area[covered] < 0.8 * max(area)
    touching = frames[covered].labels
    beside = touching[:, 1:] == label(before)
    assert np.any((touching[:, :-1] == label(behind)) & beside)


def test_the_kite_turns_and_changes_its_width(frames):
    area = areas(frames, KITE)
    assert min(area) < 0.75 * max(area)
    assert min(area) > 0
