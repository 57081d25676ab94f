"""Prompts lie where they should."""

import numpy as np
import pytest

pytest.importorskip("cv2")

from training import prompts


def mask() -> prompts.Mask:
    out = np.zeros((20, 30), bool)
    out[4:15, 6:17] = True
    return out


def test_innermost_is_the_middle_of_a_square() -> None:
    assert prompts.innermost(mask()) == (11.0, 9.0)


def test_innermost_keeps_away_from_the_frame() -> None:
    full = np.ones((21, 21), bool)
    assert prompts.innermost(full) == (10.0, 10.0)


def test_box_is_tight_and_inclusive() -> None:
    assert prompts.box(mask()) == ((6.0, 4.0), (16.0, 14.0))


@pytest.mark.parametrize("seed", range(5))
def test_clicks_have_the_label_of_what_they_hit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    coords, labels = prompts.sample(rng, [mask(), mask()], "clicks", 5)
    assert coords.shape == (2, 5, 2)
    assert labels[:, 0].tolist() == [1, 1]
    for (x, y), label in zip(coords.reshape(-1, 2), labels.ravel(), strict=True):
        assert mask()[int(y), int(x)] == bool(label)


def test_a_box_is_two_labelled_corners() -> None:
    coords, labels = prompts.sample(np.random.default_rng(0), [mask()], "box")
    assert coords.shape == (1, 2, 2)
    assert labels.tolist() == [[2, 3]]


def test_corrections_fall_into_the_error() -> None:
    guess = mask()
    guess[4:8] = False
    first = prompts.sample(np.random.default_rng(0), [mask()], "click")
    coords, labels = prompts.correct(np.random.default_rng(1), [guess], [mask()], first)
    x, y = coords[0, 1]
    assert 4 <= y < 8
    assert 6 <= x < 17
    assert labels.tolist() == [[1, 1]]
