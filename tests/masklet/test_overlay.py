import numpy as np
import pytest

from masklet.overlay import COLOURS, colour, colours_of, overlay


def disc(height: int, width: int) -> np.ndarray:
    y, x = np.ogrid[:height, :width]
    return np.hypot(y - height * 0.6, x - width / 2) < height / 4


def test_colours_are_distinct_and_the_same_on_every_call():
    many = [colour(position) for position in range(40)]
    assert many[: len(COLOURS)] == list(COLOURS)
    assert len(set(many)) == 40
    assert many == [colour(position) for position in range(40)]


def test_a_colour_belongs_to_the_place_in_the_list_and_not_to_what_is_visible():
    colours = colours_of([7, "kite", 3])
    assert list(colours.items()) == [(7, COLOURS[0]), ("kite", COLOURS[1]), (3, COLOURS[2])]
    frame, mask = np.full((120, 160, 3), 90, np.uint8), disc(120, 160)
    alone = overlay(frame, {"kite": mask}, colours)
    beside_an_absent_one = overlay(frame, {7: np.zeros_like(mask), "kite": mask}, colours)
    np.testing.assert_array_equal(alone, beside_an_absent_one)


@pytest.mark.parametrize("brightness", [0, 128, 255])
def test_fill_lets_the_frame_through_and_the_contour_does_not(brightness):
    frame, mask = np.full((240, 320, 3), brightness, np.uint8), disc(240, 320)
    drawn = overlay(frame, {1: mask}, {1: (0, 158, 255)})
    centre = drawn[144, 160]
    assert np.all(np.abs(centre.astype(int) - (brightness * 0.58 + np.array((0, 66, 107)))) <= 1)
    row = np.flatnonzero(mask[144])
    assert tuple(drawn[144, row[0]]) == tuple(drawn[144, row[-1]]) == (0, 158, 255)


def test_only_the_object_its_edge_and_its_label_are_touched_and_the_input_is_not():
    frame = np.random.default_rng(1).integers(0, 256, (240, 320, 3)).astype(np.uint8)
    before, mask = frame.copy(), disc(240, 320)
    drawn = overlay(frame, {1: mask}, {1: COLOURS[0]})
    np.testing.assert_array_equal(frame, before)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    changed = np.any(drawn != frame, axis=2)
    changed[rows[0] - 30 : rows[-1] + 2, columns[0] - 1 : columns[-1] + 2] = False
    assert not changed.any()


def test_an_empty_mask_draws_nothing():
    frame = np.full((60, 80, 3), 77, np.uint8)
    drawn = overlay(frame, {1: np.zeros((60, 80), bool)}, {1: COLOURS[0]})
    np.testing.assert_array_equal(drawn, frame)


def test_contours_of_neighbours_are_both_whole():
    frame = np.full((100, 100, 3), 128, np.uint8)
    left, right = np.zeros((2, 100, 100), bool)
    left[40:90, 10:50] = True
    right[40:90, 50:90] = True
    drawn = overlay(frame, {1: left, 2: right}, {1: COLOURS[0], 2: COLOURS[1]})
    assert tuple(drawn[70, 49]) == COLOURS[0]
    assert tuple(drawn[70, 50]) == COLOURS[1]


def test_the_label_is_above_the_object_in_its_colour():
    frame = np.zeros((240, 320, 3), np.uint8)
    mask = np.zeros((240, 320), bool)
    mask[100:180, 140:180] = True
    drawn = overlay(frame, {"kite": mask}, {"kite": COLOURS[1]})
    above = np.all(drawn[:99] == COLOURS[1], axis=2)
    assert above.sum() > 100
    assert np.flatnonzero(above.any(axis=1))[0] > 60


@pytest.mark.parametrize("shape", [(240, 320), (2160, 3840), (5, 7), (1, 1)])
def test_a_mask_over_the_whole_frame_keeps_its_label_inside(shape):
    frame = np.full((*shape, 3), 128, np.uint8)
    name = "a-very-long-name-of-an-object-that-does-not-fit-into-a-small-frame"[:64]
    drawn = overlay(frame, {name: np.ones(shape, bool)}, {name: COLOURS[2]})
    assert drawn.shape == frame.shape
    assert drawn.dtype == np.uint8


def test_a_mask_of_another_size_is_an_error_that_names_the_object():
    with pytest.raises(ValueError, match="object kite is"):
        overlay(np.zeros((4, 4, 3), np.uint8), {"kite": np.ones((4, 5), bool)}, {"kite": (1, 2, 3)})
