"""What prompts look like: where a mark is, and that no two kinds look alike."""

import numpy as np
import pytest
from numpy.typing import NDArray

from masklet.overlay import colours_of
from masklet.plan import Clicks, ObjectPlan
from masklet.prompt_marks import draw_prompts, prompts_on
from tests.masklet.comparison import click, said

COLOURS = colours_of([1, "two"])
GREY = np.full((240, 360, 3), 128, np.uint8)


def drawn(*clicks: Clicks) -> NDArray[np.uint8]:
    return draw_prompts(GREY, {1: said(*clicks)}, COLOURS)


def changed(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.asarray((picture != GREY).any(axis=2))


@pytest.mark.parametrize("label", [0, 1])
def test_a_point_is_marked_where_it_is(label: int) -> None:
    marked = changed(drawn(click((200, 150, label))))
    rows, columns = np.nonzero(marked[146:156])  # above are the label's
    assert (rows.mean(), columns.mean()) == pytest.approx((4, 200), abs=0.5)
    assert marked[150, 200]
    # the mark and the label above it, and nothing else
    assert not marked[162:].any()
    assert not marked[:, :150].any()
    assert not marked[:, 250:].any()


def test_positive_and_negative_look_different() -> None:
    positive, negative = drawn(click((200, 150, 1))), drawn(click((200, 150, 0)))
    # between the sign and the ring: the object's colour or black
    assert tuple(positive[148, 202]) == COLOURS[1]
    assert tuple(negative[148, 202]) == (0, 0, 0)


def test_a_box_is_an_outline_in_the_object_s_colour() -> None:
    picture = drawn(click(box=(40, 60, 300, 200)))
    for y, x in ((130, 41), (130, 299), (199, 170)):
        assert tuple(picture[y, x]) == COLOURS[1]
    assert not changed(picture)[80:190, 60:280].any()
    assert not changed(picture)[202:].any()


def test_marks_of_every_size_stay_in_the_frame() -> None:
    corners = click((0, 0, 1), (359.9, 239.9, 0), box=(0, 0, 360, 240))
    assert drawn(corners).shape == GREY.shape
    thin = drawn(click(box=(10, 10, 10.4, 10.4)), click((10, 10, 1)))
    assert changed(thin)[10, 10]
    tiny = draw_prompts(np.zeros((1, 1, 3), np.uint8), {1: said(click((0, 0, 1)))}, COLOURS)
    assert tiny.shape == (1, 1, 3)


def test_the_picture_given_stays_as_it_is() -> None:
    before = GREY.copy()
    drawn(click((5, 5, 1)))
    np.testing.assert_array_equal(before, GREY)


def test_prompts_of_one_frame_in_the_order_of_the_job() -> None:
    objects = (
        ObjectPlan("two", {4: said(click((1, 1, 1)))}),
        ObjectPlan(1, {0: said(click((2, 2, 1))), 4: said(click((3, 3, 1)))}),
    )
    assert list(prompts_on(objects, 4)) == ["two", 1]
    assert list(prompts_on(objects, 0)) == [1]
