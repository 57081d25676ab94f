"""Losses against values worked out by hand."""

import math

import pytest
import torch

from training.losses import dice, focal, iou, losses


def test_focal_of_an_even_guess() -> None:
    """p = 1/2, t = 1: 0.25 * (1/2)^2 * ln 2; t = 0: 0.75 of the same."""
    zero = torch.zeros(1, 2, 2)
    assert focal(zero, torch.ones(1, 2, 2)).item() == pytest.approx(0.0625 * math.log(2))
    assert focal(zero, torch.zeros(1, 2, 2)).item() == pytest.approx(0.1875 * math.log(2))


def test_dice_of_an_even_guess() -> None:
    """p.t = 1, |p| = 2, |t| = 2: 1 - 3 / 5."""
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert dice(torch.zeros(1, 2, 2), target).item() == pytest.approx(0.4)


def test_iou_counts_pixels() -> None:
    logits = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]])
    target = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    assert iou(logits, target).item() == pytest.approx(1 / 3)
    assert iou(-torch.ones(1, 2, 2), torch.zeros(1, 2, 2)).item() == 1.0


def test_a_perfect_answer_costs_nothing() -> None:
    target = torch.zeros(1, 16, 16)
    target[:, 4:12, 4:12] = 1
    logits = (target[:, None, ::4, ::4] * 60 - 30).expand(-1, 4, -1, -1)
    result = losses(logits, torch.ones(1, 4), torch.full((1, 1), 30.0), target)
    assert result.presence.item() == pytest.approx(0, abs=1e-6)
    assert result.objects.item() == 1
    assert result.mask.item() < 4


def test_absent_objects_teach_presence_alone() -> None:
    logits = torch.randn(2, 4, 4, 4, requires_grad=True)
    presence = torch.zeros(2, 1, requires_grad=True)
    result = losses(logits, torch.full((2, 4), 0.5), presence, torch.zeros(2, 16, 16))
    result.total().backward()
    assert result.total().item() == pytest.approx(math.log(2))
    assert logits.grad is not None
    assert not logits.grad.any()
    assert presence.grad is not None
    assert presence.grad.all()
