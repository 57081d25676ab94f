import numpy as np
import pytest

from masklet.contact_sheet import MAX_WIDTH, contact_sheet, moments


def pictures(count: int, height: int, width: int):
    return [
        (index * 10, index / 3, np.full((height, width, 3), 200, np.uint8))
        for index in range(count)
    ]


@pytest.mark.parametrize(
    ("count", "height", "width"),
    [(8, 480, 854), (6, 2160, 3840), (7, 1920, 1080), (1, 480, 854), (2, 240, 320), (3, 2, 2)],
)
def test_the_sheet_is_no_wider_than_promised(count, height, width):
    sheet = contact_sheet(pictures(count, height, width))
    assert sheet.mode == "RGB"
    assert sheet.width <= MAX_WIDTH


def test_pictures_are_in_rows_in_order_with_captions_below():
    shown = [(index, 0.0, np.full((100, 200, 3), 40 * (index + 1), np.uint8)) for index in range(5)]
    sheet = np.asarray(contact_sheet(shown, columns=3)).astype(int)
    grey = sheet[np.all(np.ptp(sheet, axis=2, keepdims=True) == 0, axis=2)]
    for index in range(5):
        assert np.count_nonzero(grey[:, 0] == 40 * (index + 1)) >= 100 * 200
        row, column = divmod(index, 3)
        place = (12 + row * 142 + 50, 12 + column * 212 + 100)
        assert tuple(sheet[place]) == (40 * (index + 1),) * 3
        caption = sheet[12 + row * 142 + 100 : 12 + row * 142 + 130, 12 + column * 212 :][:, :200]
        assert caption.max() > 200


def test_no_pictures_are_an_error():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_moments_are_evenly_spread_from_first_to_last():
    chosen = moments(range(180), 8)
    assert chosen[0] == 0
    assert chosen[-1] == 179
    assert len(chosen) == 8
    assert max(np.diff(chosen)) - min(np.diff(chosen)) <= 1


def test_prompted_frames_are_among_the_moments():
    chosen = moments(range(180), 8, must=[0, 117, 138, 500])
    assert {0, 117, 138, 179} <= set(chosen)
    assert 500 not in chosen
    assert len(chosen) == 8
    assert chosen == sorted(chosen)


def test_too_many_prompted_frames_are_thinned_out():
    chosen = moments(range(100), 6, must=range(10, 60))
    assert len(chosen) == 6
    assert (chosen[0], chosen[-1]) == (0, 99)
    assert {10, 59} <= set(chosen)


def test_few_frames_are_all_shown():
    assert moments([9, 3, 3, 5], 8) == [3, 5, 9]
    assert moments([], 8) == []
    assert moments([4, 8], 1) == [4]
