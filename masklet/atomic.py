"""Files that are there whole or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from masklet.errors import UserError

TEMPORARY_FILES = ".*.[0-9]*.tmp"
"""Matches the names of temporary files, which a killed process leaves behind."""


@contextmanager
def replacing(path: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving, flush it to disk and put it in its place.

    Its place is in the folder that is there now: if that is removed meanwhile, another folder of
    its name gets nothing. `check` is called when this folder is open, and when it or a file in it
    cannot be; what it raises is raised.

    If the block raises, the temporary file is removed and `path` is as it was. An OSError, such as
    of a full disk, becomes a UserError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _folder_of(path, check) as folder:
        try:
            check()
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary.name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        except OSError as error:
            if error.filename not in (None, str(path), str(temporary), temporary.name):
                raise  # of a file that was read in the block
            check()
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
        near = _on_the_disk_of(place, grown)
        shutil.rmtree(place, ignore_errors=True)
        near.replace(place)
        with _folder_of(place) as folder:
            os.fsync(folder)
    except OSError as error:
        raise _refusal(place, error) from error


def _on_the_disk_of(place: Path, grown: Path) -> Path:
    """`grown`, or beside `place` a copy of it, on disk, if that is another file system."""
    if grown.stat().st_dev == place.parent.stat().st_dev:
        return grown
    copy = place.with_name(f".{place.name}.tmp")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(grown, copy)
    for path in copy.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    return copy


def _refusal(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror or error}); check the folder")


@contextmanager
def _folder_of(path: Path, check: Callable[[], None] = lambda: None) -> Iterator[int]:
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        check()
        raise _refusal(path, error) from error
    try:
        yield folder
    finally:
        os.close(folder)
