"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from masklet.errors import UserError

TEMPORARY_FILES = ".*.tmp"
"""Matches the names of temporary files, which a killed process leaves behind."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving, flush it to disk and put it in its place.

    If the block raises, the temporary file is removed and `path` is as it was. An OSError, such as
    of a full disk, becomes a UserError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.filename not in (None, str(path), str(temporary)):
            raise  # of a file that was read in the block
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason}); check the folder") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
