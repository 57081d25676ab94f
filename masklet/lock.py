"""A run directory is worked on by one process at a time, and anyone can see which."""

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from masklet.errors import UserError

FILE_NAME = ".lock"
_LOGGER = logging.getLogger(__name__)


@contextmanager
def held(root: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the directory, which is made if it is not there.

    The kernel lets go of it when this process ends, however it ends.

    Raises UserError if another process holds it, unless told to `wait` for that one.
    """
    lock = _acquire(root, wait)
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
        yield
    finally:
        # after an error too: this process may live on
        os.ftruncate(lock, 0)
        os.close(lock)


def holder(root: Path) -> str | None:
    """Who holds a run directory right now, such as `process 7 on host`; None if nobody does.

    Only looks: whoever wants the directory in this moment is not disturbed. That a process of
    another machine has ended cannot be seen from here.
    """
    try:
        said = (root / FILE_NAME).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    found = re.fullmatch(r"process ([1-9]\d{0,9}) on (.+)", said)
    if found is None:
        return None
    is_here = found[2] == os.uname().nodename
    return None if is_here and not _is_alive(int(found[1])) else said


def _acquire(root: Path, wait: bool) -> int:
    while True:
        lock = _open(root)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            who = os.pread(lock, 200, 0).decode(errors="replace").strip() or "about to begin"
            if not wait:
                os.close(lock)
                raise UserError(
                    f"{root}: another run is at work there ({who}); wait for it"
                ) from None
            _LOGGER.warning("%s: waiting for the run that is at work there (%s)", root, who)
            _wait_for(lock)
        with suppress(FileNotFoundError):
            # a run that made the directory and left nothing in it removes it with the lock
            if os.fstat(lock).st_ino == (root / FILE_NAME).stat().st_ino:
                return lock
        os.close(lock)


def _open(root: Path) -> int:
    try:
        root.mkdir(parents=True, exist_ok=True)
        return os.open(root / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise UserError(f"{root}: cannot be a run directory: {error.strerror}") from None


def _wait_for(lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except BaseException:  # Ctrl-C
        os.close(lock)
        raise


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # of another user
    except (ProcessLookupError, OverflowError):
        return False
    return True
