"""bfloat16 where this CPU is quicker in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def mixed() -> Iterator[None]:
    """Matrix products in bfloat16 if the CPU has instructions for them; else nothing changes."""
    if not torch.cpu._is_avx512_bf16_supported():
        yield
        return
    with torch.autocast("cpu", torch.bfloat16), FloatKernels():
        yield
