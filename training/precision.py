"""bfloat16 where this device is quicker in it."""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

SLOWER_IN_BFLOAT16 = (F.scaled_dot_product_attention, F.conv2d, F.conv_transpose2d)


class ChosenKernels(TorchFunctionMode):
    """Runs what autocast would run in bfloat16 by the kernels that are quickest on this CPU.

    Measured on nano's training step. Vector instructions for bfloat16: attention and convolutions
    take twice the time of float32 backwards. Tiles (AMX): only convolutions of single channels do,
    and attention written as two products takes half the time of the fused kernel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tiles = torch.cpu._is_amx_tile_supported()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in SLOWER_IN_BFLOAT16:
            return func(*args, **kwargs)
        if self.tiles:
            if func is F.scaled_dot_product_attention:
                return attention(*args[:3])
            if args[1].shape[1] > 1:
                return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*(a.float() if isinstance(a, Tensor) else a for a in args), **kwargs)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention: (..., Q, C), (..., K, C), (..., K, D) -> (..., Q, D)."""
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
    return scores.softmax(-1).to(value.dtype) @ value


def quicker() -> str:
    """'bfloat16' or 'float32': in which this CPU multiplies matrices sooner, by trying it.

    Having instructions for bfloat16 does not say so: some processors do half as many at a time.
    """
    if not torch.cpu._is_avx512_bf16_supported():
        return "float32"
    times = {}
    for name in ("bfloat16", "float32"):
        matrix = torch.ones(1024, 1024, dtype=getattr(torch, name))
        times[name] = min(timeit.repeat(lambda m=matrix: m @ m, number=2, repeat=5))
    return min(times, key=times.__getitem__)


@contextmanager
def products(precision: str, device: str) -> Iterator[None]:
    """Matrix products in 'bfloat16' or 'float32' on 'cpu' or 'cuda'."""
    if precision == "float32":
        yield
        return
    kernels = ChosenKernels() if device == "cpu" else nullcontext()
    with torch.autocast(device, torch.bfloat16), kernels:
        yield
