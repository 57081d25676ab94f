"""Errors of a machine that has too little memory, told from the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch

from masklet.errors import UserError


@contextmanager
def memory_needed(where: str) -> Iterator[None]:
    """Raise UserError if there is too little memory for the block."""
    try:
        yield
    except RuntimeError as error:
        raise_for_memory(error, where)


def raise_for_memory(error: RuntimeError, where: str) -> NoReturn:
    """Raise UserError for a lack of memory that nothing can be done about, else the error again."""
    if not is_out_of_memory(error):
        raise error
    raise UserError(f"out of memory {where}; free some memory, or use a smaller model") from error


def is_out_of_memory(error: RuntimeError) -> bool:
    # only the allocator of CUDA raises a class of its own: not a CPU's, nor CUDA's libraries
    said = str(error)
    words = ("DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in said for word in words)
