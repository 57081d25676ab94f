"""Files that are there whole or not at all."""

import os
import shutil
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
        raise _refusal(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_temporary_files(*folders: Path) -> None:
    """Remove what killed processes were about to write in these folders, not below them."""
    for folder in folders:
        for path in folder.glob(TEMPORARY_FILES):
            if not path.is_dir():
                path.unlink(missing_ok=True)


def put_folder(grown: Path, place: Path) -> None:
    """Put a folder, whose files are on disk, in its place, and flush that; one there gives way.

    Raises UserError where that cannot be done.
    """
    try:
        place.parent.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        grown.replace(place)
        _sync_folder(place.parent)
    except OSError as error:
        raise _refusal(place, error) from error


def _refusal(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror or error}); check the folder")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
