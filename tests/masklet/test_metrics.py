"""J and F against `vos-benchmark`, which nobody of masklet wrote, and distances against SciPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from vos_benchmark.evaluator import Evaluator

from masklet.distance import squared_depth, within
from masklet.metrics import (
    Statistics,
    boundary_accuracy,
    region_similarity,
    statistics,
)


def label_map(rng: np.random.Generator, height: int, width: int, objects: int) -> NDArray[np.uint8]:
    """Ellipses over each other, also over the edges of the picture; some objects may be hidden."""
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.uint8)
    for one in rng.permutation(objects) + 1:
        if rng.random() < 0.2:
            continue
        centre = rng.uniform(0, (height, width))
        radii = rng.uniform(0.5, (height / 2, width / 2))
        away = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2
        labels[away < 1] = one
    noise = rng.random(labels.shape) < 0.01 * rng.random()
    labels[noise] = rng.integers(0, objects + 1, noise.sum())
    return labels


def assert_same_as_vos_benchmark(guess: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
    judge = Evaluator()
    judge.feed_frame(guess, truth)
    for one, ([j], [f]) in {
        one: (judge.object_iou[one], judge.boundary_f[one]) for one in judge.object_iou
    }.items():
        assert region_similarity(guess == one, truth == one) == pytest.approx(j, abs=1e-9)
        assert boundary_accuracy(guess == one, truth == one) == pytest.approx(f, abs=1e-9)


# tolerances of 1, 2, 8 and 12 pixels; sides that differ, so that none stands for the other
@pytest.mark.parametrize("size", [(48, 64), (96, 160), (480, 854), (1080, 960), (1, 300), (200, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_scores_of_label_maps_are_those_of_vos_benchmark(size, seed):
    rng = np.random.default_rng([seed, *size])
    truth = label_map(rng, *size, objects=4)
    # a guess that is near in part, and one that is not
    assert_same_as_vos_benchmark(np.roll(truth, rng.integers(-9, 10, 2), axis=(0, 1)), truth)
    assert_same_as_vos_benchmark(label_map(rng, *size, objects=4), truth)


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, (2, 20, 24), elements=st.integers(0, 2)))
def test_scores_of_any_label_maps_are_those_of_vos_benchmark(maps):
    assert_same_as_vos_benchmark(maps[0], maps[1])


def test_empty_masks_agree_and_one_alone_is_wrong():
    nothing, something = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    something[10:20, 10:20] = True
    assert (region_similarity(nothing, nothing), boundary_accuracy(nothing, nothing)) == (1, 1)
    assert (region_similarity(something, nothing), boundary_accuracy(something, nothing)) == (0, 0)
    assert (region_similarity(nothing, something), boundary_accuracy(nothing, something)) == (0, 0)


def test_masks_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 5\)"):
        boundary_accuracy(np.zeros((4, 5), bool), np.zeros((5, 5), bool))


def test_a_boundary_matches_up_to_the_tolerance_and_no_farther():
    # the diagonal of 300x400 is 500, so the tolerance is 4 pixels
    truth = np.zeros((300, 400), bool)
    truth[:, 200:] = True
    shifted = {by: np.roll(truth, by, axis=1) for by in (4, 5)}
    for mask in shifted.values():
        mask[:, :200] = False
    assert boundary_accuracy(shifted[4], truth) == 1
    assert boundary_accuracy(shifted[5], truth) == 0


@pytest.mark.parametrize("radius", [0, 1, 5, 90])
def test_pixels_within_a_radius_are_those_of_the_exact_distance(radius):
    mask = np.random.default_rng(1).random((61, 83)) < 0.002
    assert mask.any()
    assert np.array_equal(within(mask, radius), distance_transform_edt(~mask) <= radius)


@pytest.mark.parametrize("share", [0.0, 0.9, 0.999, 1.0])
def test_depth_is_the_exact_distance_from_the_outside(share):
    mask = np.random.default_rng(2).random((61, 83)) < share
    exact = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    assert np.array_equal(squared_depth(mask), np.rint(exact**2))


def test_recall_counts_frames_above_a_half_and_decay_compares_the_quarters():
    values = np.array([0.9, 0.8, 0.7, 0.5, 0.5, 0.6, 0.2, 0.1, 0.0])
    # quarters 0-2 and 6-8 of 9 frames, with the frames where they meet
    assert statistics(values) == Statistics(
        pytest.approx(4.3 / 9), pytest.approx(4 / 9), pytest.approx(0.8 - 0.1)
    )
    assert statistics(np.array([0.4])) == Statistics(0.4, 0.0, 0.0)


def test_statistics_need_a_frame():
    with pytest.raises(ValueError, match="no frame"):
        statistics(np.array([]))
