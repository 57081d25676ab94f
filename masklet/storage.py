"""Places for results: a folder of this machine, or a URL that fsspec knows, such as s3://.

What 'atomic' means: a local file is there whole or not at all, by renaming. An object of a store is
too, since a PUT shows it when it is complete. A run directory in a store is published file by file
with its manifest last, so the manifest never speaks of what is not there; while an artifact is
replaced there may be a newer one than the manifest knows, which the next run finds and makes again.
There is no lock in a store.
"""

import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from masklet.addresses import shown_address
from masklet.atomic import TEMPORARY_FILES, replacing
from masklet.content import Stamp
from masklet.errors import UserError
from masklet.manifest import FILE_NAME as MANIFEST
from masklet.works import written_files

_IN_FOLDERS_OF_A_RUN = re.compile(r"masklets/object=[^/]+/frames-\d+\.parquet|preview/\d+\.png")


def is_url(place: str) -> bool:
    return "://" in place


def require_name(place: str) -> str:
    """The same place; raises UserError for an empty one.

    As a path that would be the working directory, and an unset variable is easily passed on.
    """
    if place == "":
        raise UserError("out is empty: name a directory for the outputs, '.' for this one")
    if is_url(place) and not place.partition("://")[2].strip("/"):
        raise UserError(f"out is {place}, which names no place: is a variable unset?")
    return place


def absolute(place: str) -> str:
    """The same place wherever a process works; raises UserError for an empty one."""
    require_name(place)
    return place if is_url(place) else str(Path(place).absolute())


def join(place: str, *names: str) -> str:
    return "/".join([place.rstrip("/") or "/", *names])


def read_bytes(place: str) -> bytes | None:
    """What is in a file; None if there is none."""
    try:
        if not is_url(place):
            return Path(place).read_bytes()
        with _store(place, may_be_missing=True) as (fs, path):
            return bytes(fs.cat_file(path))
    except FileNotFoundError:
        return None


def write_bytes(place: str, content: bytes) -> None:
    """Put a file in its place, whole or not at all; its folder is made."""
    if is_url(place):
        with _store(place) as (fs, path):
            fs.pipe_file(path, content)
        return
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(place)) as temporary:
        temporary.write_bytes(content)


def list_files(place: str) -> dict[str, int]:
    """The sizes of all files in a folder and below, by name relative to it.

    Others may be at work there: in a folder, what they are about to write is left out.
    """
    if not is_url(place):
        return dict(_files_below(Path(place)))
    with _store(place, may_be_missing=True) as (fs, root_path):
        fs.invalidate_cache()
        try:
            found_there = fs.find(root_path, detail=True)
        except FileNotFoundError:
            return {}
        return {
            name[len(root_path) :].lstrip("/"): int(about["size"])
            for name, about in found_there.items()
        }


def _files_below(root: Path) -> Iterator[tuple[str, int]]:
    for path in root.rglob("*"):
        with suppress(FileNotFoundError):  # renamed or removed meanwhile
            about = path.stat()
            if stat.S_ISREG(about.st_mode) and not path.match(TEMPORARY_FILES):
                yield path.relative_to(root).as_posix(), about.st_size


def remove(place: str) -> None:
    """Remove a folder and what is in it, if it is there."""
    if not is_url(place):
        shutil.rmtree(place, ignore_errors=True)
        return
    with _store(place) as (fs, path):
        if list_files(place):
            fs.rm(path, recursive=True)


@contextmanager
def run_directory(place: str) -> Iterator[Path]:
    """The folder to run in: `place` itself, or a scratch copy of it that is published at the end.

    It is published when the block raises an Exception too, as far as its manifest goes.
    """
    if not is_url(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="masklet-") as scratch:
        folder = Path(scratch, "run")
        pulled = _pull(place, folder)
        try:
            yield folder
        except Exception:
            _publish(folder, place, pulled)
            raise
        _publish(folder, place, pulled)


def _pull(place: str, folder: Path) -> dict[str, Stamp | None]:
    """Fetch a run directory that has a manifest; gives the stamps of its files.

    Without one nothing is fetched, but what a run that was killed has put there has to go.
    """
    there = list_files(place)
    if MANIFEST not in there:
        files = set(written_files())
        return {
            name: None for name in there if name in files or _IN_FOLDERS_OF_A_RUN.fullmatch(name)
        }
    stamps = {}
    with _store(place) as (fs, root):
        for name in there:
            if _is_hidden(name):
                continue  # somebody else's, which stays where it is
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise UserError(
                    f"{shown_address(place)}: has a file {name!r}, which is no path in it"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(f"{root}/{name}", str(path))
            stamps[name] = Stamp.of(path)
    return stamps


def _publish(folder: Path, place: str, pulled: dict[str, Stamp | None]) -> None:
    """Put what is new there, the manifest last, and then remove what is no longer part of it."""
    if not (folder / MANIFEST).exists():
        return
    files = {path.relative_to(folder).as_posix(): path for path in _published(folder)}
    new = [name for name, path in files.items() if pulled.get(name) != Stamp.of(path)]
    with _store(place) as (fs, root):
        for name in sorted(new, key=lambda name: name == MANIFEST):
            fs.put_file(str(files[name]), f"{root}/{name}")
        for name in pulled.keys() - files.keys():
            fs.rm_file(f"{root}/{name}")


def _published(folder: Path) -> Iterator[Path]:
    """The files of a run directory but for those of the process at work: locks, scratch."""
    for path in folder.rglob("*"):
        hidden = _is_hidden(path.relative_to(folder).as_posix())
        if path.is_file() and not hidden and not path.match(TEMPORARY_FILES):
            yield path


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


@contextmanager
def _store(place: str, *, may_be_missing: bool = False) -> Iterator[tuple[Any, str]]:
    """The file system of a URL and the path in it; its errors become UserErrors.

    may_be_missing: let FileNotFoundError pass.
    """
    import fsspec

    try:
        yield fsspec.core.url_to_fs(place)
    except UserError:
        raise
    except FileNotFoundError as error:
        if may_be_missing:
            raise
        raise UserError(f"{shown_address(place)}: the store answered: {error}") from None
    except ImportError as error:
        raise UserError(
            f"{shown_address(place)}: {error}; or use a folder of this machine"
        ) from None
    except Exception as error:
        # every store has errors of its own; whichever it is, one line says where
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{shown_address(place)}: the store answered: {reason}") from error
