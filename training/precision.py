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

SLOWER_IN_BFLOAT16 = (
    F.scaled_dot_product_attention,
    F.conv2d,
    F.conv_transpose2d,
)


class FloatKernels(TorchFunctionMode):
    """Runs in float32 what autocast would run in bfloat16, where its CPU kernels are slower.

    Measured on nano's training step: bfloat16 attention takes twice the time of float32 backwards.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func not in SLOWER_IN_BFLOAT16:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(
                *(a.float() if isinstance(a, Tensor) else a for a in args), **(kwargs or {})
            )


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
    kernels = FloatKernels() if device == "cpu" else nullcontext()
    with torch.autocast(device, torch.bfloat16), kernels:
        yield
