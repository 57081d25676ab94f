"""`masklet` with an injury: python -m benchmarks.injured INJURY, and then what `masklet` gets.

Injuries: `none`; `fsync:N`, where the N-th flush to disk and all after it fail with EIO;
`filesize:N`, where no file may grow beyond N bytes. Checkpoints are written every half second, so
that a kill has something to leave behind.
"""

import errno
import os
import resource
import signal
import sys
from itertools import count

from masklet.cli import main


def injure(injury: str) -> None:
    kind, _, number = injury.partition(":")
    if kind == "fsync":
        _fail_to_sync(int(number))
    elif kind == "filesize":
        # without this, the kernel kills the process instead of failing its write
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), int(number)))


def _fail_to_sync(first: int) -> None:
    calls, sync = count(1), os.fsync

    def fsync(descriptor: int) -> None:
        if next(calls) >= first:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    os.fsync = fsync  # type: ignore[assignment]  # stands for one of C


if __name__ == "__main__":
    os.environ["MASKLET_CHECKPOINT_SECONDS"] = "0.5"
    injure(sys.argv.pop(1))
    main()
