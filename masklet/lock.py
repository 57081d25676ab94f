"""A run directory is worked on by one process at a time, and anyone can see which."""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from masklet.errors import UserError

FILE_NAME = ".lock"
_TRIES, _PAUSE = 250, 0.02
_LOGGER = logging.getLogger(__name__)


class Lost(UserError):
    """The directory is not the one that was taken: it was removed, and perhaps made again."""


@dataclass(frozen=True)
class Hold:
    """A directory that this process holds. lock: the open file in it."""

    root: Path
    lock: int

    @property
    def stands(self) -> bool:
        """Whether the directory still is the one that was taken."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(self.lock), (self.root / FILE_NAME).stat())
        return False

    def check(self) -> None:
        """Raise Lost if it is not: another run may be at work there by now."""
        if not self.stands:
            raise Lost(
                f"{self.root}: the directory, or its {FILE_NAME}, was removed while a run was at "
                "work there; run it again"
            )


@contextmanager
def held(root: Path, *, wait: bool = False) -> Iterator[Hold]:
    """Hold the directory, which is made if it is not there.

    The kernel lets go of it when this process ends, however it ends.

    Raises UserError if another process holds it, unless told to `wait` for that one.
    """
    lock = _acquire(root, wait)
    try:
        with suppress(OSError):  # on a full disk there may yet be nothing to write
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
        yield Hold(root, lock)
    finally:
        # after an error too: this process may live on
        with suppress(OSError):
            os.ftruncate(lock, 0)
        os.close(lock)


def holder(root: Path) -> str | None:
    """Who holds a run directory right now, such as `process 7 on host`; None if nobody does.

    The kernel is asked, and not the file: a process that was killed has left its name there, which
    may be the name of another one by now. Whoever wants the directory in this moment is not
    disturbed.
    """
    try:
        lock = os.open(root / FILE_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _named_in(lock)
    else:
        return None
    finally:
        os.close(lock)


def _acquire(root: Path, wait: bool) -> int:
    while True:
        lock = _open(root)
        if not _take(lock):
            who = _named_in(lock)
            if not wait:
                os.close(lock)
                raise UserError(
                    f"{root}: another run is at work there ({who}); wait for it"
                ) from None
            _LOGGER.warning("%s: waiting for the run that is at work there (%s)", root, who)
            _wait_for(lock)
        # a run that made the directory and left nothing in it removes it with the lock
        if Hold(root, lock).stands:
            return lock
        os.close(lock)


def _open(root: Path) -> int:
    try:
        root.mkdir(parents=True, exist_ok=True)
        return os.open(root / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise UserError(f"{root}: cannot be a run directory: {error.strerror}") from None


def _take(lock: int) -> bool:
    """Take it if no run has it.

    Who only looks (`holder`) shares it for a moment, and is waited for: a run does not share it.
    """
    for _ in range(_TRIES):
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        fcntl.flock(lock, fcntl.LOCK_UN)
        time.sleep(_PAUSE)
    return False


def _named_in(lock: int) -> str:
    return os.pread(lock, 200, 0).decode(errors="replace").strip() or "about to begin"


def _wait_for(lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except BaseException:  # Ctrl-C
        os.close(lock)
        raise
