"""Functions compiled by torch for a few shapes, and for no others."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from masklet.errors import UserError
from masklet.out_of_memory import is_out_of_memory

_MOST_SHAPES = 64


class Compiled:
    """A function of tensors that runs compiled where the shapes are those it was warmed up with.

    All others, such as those of a memory that is not full yet, run as they are: nothing is compiled
    while a video runs.
    """

    def __init__(self, function: Callable[..., Any], backend: str | Callable[..., Any]) -> None:
        def run(*tensors: Tensor) -> Any:
            return function(*tensors)

        # torch keeps what it has compiled by code, and gives up after some shapes of the same code
        run.__code__ = run.__code__.replace()
        self._plain = function
        self._compiled = torch.compile(run, backend=backend, dynamic=False, fullgraph=True)
        self._known: set[tuple[torch.Size, ...]] = set()

    def warm_up(self, *tensors: Tensor) -> None:
        """Compile for the shapes of these tensors, unless that was done before.

        Raises UserError if it cannot be done on this machine, and RuntimeError if the tensors do
        not fit into its memory.
        """
        if _shapes(tensors) in self._known:
            return
        try:
            with torch._dynamo.config.patch(recompile_limit=_MOST_SHAPES):
                self._compiled(*tensors)
        except Exception as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            # whatever the backend lacks: a compiler, a header, a driver
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the model cannot be compiled on this machine ({reason}); leave out --compile"
            ) from error
        self._known.add(_shapes(tensors))

    def __call__(self, *tensors: Tensor) -> Any:
        run = self._compiled if _shapes(tensors) in self._known else self._plain
        return run(*tensors)


def _shapes(tensors: tuple[Tensor, ...]) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape for tensor in tensors)
