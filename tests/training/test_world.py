"""The procedural world: seeded, with exact masks."""

import numpy as np
import pytest

pytest.importorskip("cv2")

from training.assets import CUTOUT_SIZE, Bank
from training.world import Body, Motion, draw, render


@pytest.fixture(scope="module")
def bank() -> Bank:
    rng = np.random.default_rng(0)
    cutouts = rng.integers(0, 256, (3, CUTOUT_SIZE, CUTOUT_SIZE, 4), dtype=np.uint8)
    return Bank(rng.integers(0, 256, (2, 384, 512, 3), dtype=np.uint8), cutouts)


def still(x: float, y: float, diameter: float) -> Motion:
    base = np.array([x, y, 0, np.log(diameter)], np.float32)
    zero = np.zeros(4, np.float32)
    return Motion(base, zero, zero, zero, zero)


def square(colour: tuple[int, int, int], x: float, y: float, diameter: float) -> Body:
    sprite = np.full((32, 32, 4), (*colour, 255), np.uint8)
    return Body(sprite, still(x, y, diameter), np.ones(2, np.float32))


def test_same_seed_same_clip(bank: Bank) -> None:
    one, two = (render(np.random.default_rng(5), bank, 64, 3) for _ in range(2))
    other = render(np.random.default_rng(6), bank, 64, 3)
    assert np.array_equal(one.frames, two.frames)
    assert np.array_equal(one.labels, two.labels)
    assert not np.array_equal(one.frames, other.frames)


def test_shapes_and_range(bank: Bank) -> None:
    clip = render(np.random.default_rng(1), bank, 48, 4)
    assert clip.frames.shape == (4, 48, 48, 3)
    assert clip.labels.shape == (4, 48, 48)
    assert clip.frames.dtype == clip.labels.dtype == np.uint8
    assert clip.labels.max() <= 6


def test_a_bank_without_cutouts_is_enough(bank: Bank) -> None:
    bare = Bank(bank.photos, bank.cutouts[:0])
    assert render(np.random.default_rng(2), bare, 48, 1).frames.shape == (1, 48, 48, 3)


def test_masks_are_what_was_drawn() -> None:
    """A square of half the frame's side, then a smaller one in front of its corner."""
    frame = np.zeros((64, 64, 3), np.uint8)
    labels = np.zeros((64, 64), np.uint8)
    to_pixels = np.diag([64.0, 64.0, 1.0])
    draw(frame, labels, 1, square((200, 0, 0), 0.5, 0.5, 0.5), 0.0, to_pixels)
    assert abs(int((labels == 1).sum()) - 32 * 32) <= 64
    draw(frame, labels, 2, square((0, 200, 0), 0.25, 0.25, 0.25), 0.0, to_pixels)
    assert np.all(frame[labels == 2][:, 1] >= 100)
    assert np.all(frame[labels == 1][:, 0] >= 100)
    assert np.all(frame[(labels == 0)].max(1) <= 100)


def test_an_object_outside_leaves_no_trace() -> None:
    frame = np.full((32, 32, 3), 7, np.uint8)
    labels = np.zeros((32, 32), np.uint8)
    draw(frame, labels, 1, square((200, 0, 0), 3.0, 0.5, 0.2), 0.0, np.diag([32.0, 32.0, 1.0]))
    assert not labels.any()
    assert np.all(frame == 7)
