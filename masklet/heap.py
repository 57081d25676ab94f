"""The heap of the C library, where torch's tensors lie on a CPU.

glibc gives larger blocks back to the system as soon as they are freed. Every frame of a video needs
blocks of the same sizes again, and the system hands them out page by page, each filled with zeros:
some 5 % of the time of a small model.
"""

import ctypes
from contextlib import suppress

# of malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_OF_THE_HEAP = 2**25
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """From now on this process keeps what it frees, for what it needs next; no more than its peak.

    Other C libraries than glibc stay as they are.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST_OF_THE_HEAP)
        mallopt(_TRIM_THRESHOLD, _NEVER)


def give_back_freed_memory() -> None:
    """Give the system what is free now."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
