"""In bfloat16, by whichever kernels a processor takes, layers say what they say in float32."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.precision import products

LAYERS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "attention": (F.scaled_dot_product_attention, [(2, 3, 7, 8), (2, 3, 5, 8), (2, 3, 5, 4)]),
    "convolution": (F.conv2d, [(2, 4, 9, 9), (6, 4, 3, 3), (6,)]),
    "convolution of single channels": (
        lambda x, weight: F.conv2d(x, weight, padding=1, groups=4),
        [(2, 4, 9, 9), (4, 1, 3, 3)],
    ),
    "transposed convolution": (
        lambda x, weight: F.conv_transpose2d(x, weight, stride=2),
        [(2, 4, 5, 5), (4, 6, 2, 2)],
    ),
    "linear": (F.linear, [(3, 8), (5, 8)]),
}


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients(monkeypatch: pytest.MonkeyPatch, name: str, tiles: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    layer, shapes = LAYERS[name]
    draw = torch.Generator().manual_seed(1)
    inputs = [torch.randn(shape, generator=draw) for shape in shapes]

    def run(precision: str) -> list[Tensor]:
        leaves = [one.clone().requires_grad_() for one in inputs]
        with products(precision, "cpu"):
            made = layer(*leaves).float()
        (made * made).sum().backward()
        return [made.detach(), *(one.grad for one in leaves if one.grad is not None)]

    exact, quick = run("float32"), run("bfloat16")
    assert len(exact) == len(quick) == 1 + len(shapes)
    for one, other in zip(exact, quick, strict=True):
        assert float((one - other).norm() / one.norm()) < 0.02
