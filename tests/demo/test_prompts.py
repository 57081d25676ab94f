import numpy as np
import pytest

from demo.prompts import box, clicks, mask_prompts, prompts
from demo.scene import BALL, BLIMP, KITE, OBJECT_IDS, PUMPKIN, label


@pytest.fixture(scope="module")
def labels(frames):
    return [frame.labels for frame in frames]


def test_every_object_is_prompted_and_every_kind_of_prompt_is_there(labels):
    given, masks = prompts(labels), mask_prompts(labels)
    prompted = {prompt["object_id"] for prompt in given} | {key[1] for key in masks}
    assert prompted == set(OBJECT_IDS)
    assert any("box" in prompt and "points" not in prompt for prompt in given)
    assert any("box" in prompt and "points" in prompt for prompt in given)
    assert any(0 in prompt.get("labels", []) for prompt in given)
    assert list(masks) == [(0, KITE)]


def test_clicks_are_on_their_object_or_off_it_as_labelled(labels):
    for prompt in prompts(labels):
        mask = labels[prompt["frame_index"]] == label(prompt["object_id"])
        for (x, y), positive in zip(
            prompt.get("points", []), prompt.get("labels", []), strict=True
        ):
            assert mask[y, x] == bool(positive)
            # Not at the edge: the pixels around it are on the same side.
            assert np.all(mask[y - 1 : y + 2, x - 1 : x + 2] == bool(positive))


def test_the_negative_click_is_on_the_neighbour(labels):
    first = next(prompt for prompt in prompts(labels) if prompt["object_id"] == BALL)
    x, y = first["points"][first["labels"].index(0)]
    assert labels[0][y, x] == label(PUMPKIN)


def test_boxes_are_tight(labels):
    for prompt in prompts(labels):
        if "box" in prompt:
            mask = labels[prompt["frame_index"]] == label(prompt["object_id"])
            x_min, y_min, x_max, y_max = prompt["box"]
            inside = mask[y_min : y_max + 1, x_min : x_max + 1]
            assert inside.sum() == mask.sum()
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()


def test_the_blimp_is_prompted_after_it_entered_and_the_ball_again_after_its_return(labels):
    frames = {
        object_id: [p["frame_index"] for p in prompts(labels) if p["object_id"] == object_id]
        for object_id in (BALL, BLIMP)
    }
    absent = [i for i, frame in enumerate(labels) if not np.any(frame == label(BALL))]
    assert frames[BALL][0] == 0
    assert frames[BALL][1] > absent[-1]
    assert np.any(labels[frames[BLIMP][0]] == label(BLIMP))
    assert not np.any(labels[0] == label(BLIMP))


def test_a_box_holds_both_of_its_edges():
    mask = np.zeros((9, 9), bool)
    mask[2:5, 3:8] = True
    assert box(mask) == [3, 2, 7, 4]


def test_the_first_click_is_the_deepest_pixel_and_others_are_far_from_it():
    mask = np.zeros((30, 60), bool)
    mask[5:16, 10:50] = True
    (x, y), (other, _) = clicks(mask, 2)
    assert y == 10
    assert mask[y, x]
    assert abs(other - x) > 15


def test_a_mask_that_touches_the_edge_of_the_frame_is_clicked_away_from_it():
    mask = np.zeros((20, 20), bool)
    mask[:, 10:] = True
    assert clicks(mask, 1)[0][0] in (14, 15)
