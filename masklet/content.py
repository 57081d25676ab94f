"""What a file or folder holds, and by what it is recognised without reading it.

A folder is the files in it: hidden ones, those of the system and folders do not count.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple, Self

OF_THE_SYSTEM = ("__MACOSX", "Thumbs.db", "desktop.ini")
"""What systems put into folders and zips beside what the user has there."""


class Stamp(NamedTuple):
    """By what a file is recognised as untouched.

    Of a folder, `mtime_ns` is when a file in it, or a link to one, was last changed, in content or
    in name, and `inode` a number that stands for all names and inodes. Folders in it do not count.
    """

    bytes: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """None if there is neither a file nor a folder at `path`."""
        is_folder = path.is_dir()
        if not is_folder and not path.is_file():
            return None
        about = path.stat()
        if not is_folder:
            return cls(about.st_size, about.st_mtime_ns, about.st_ino)
        parts = [(part.name, part.stat(), part.lstat()) for part in sorted(_files(path))]
        # ctime: of files that change places, or give way to older ones, the newest mtime stays
        changed = max((one.st_ctime_ns for _, *both in parts for one in both), default=0)
        size = sum(about.st_size for _, about, _ in parts)
        return cls(size, changed, _number([[name, about.st_ino] for name, about, _ in parts]))


def content_hash(path: Path) -> str:
    """sha256 of a file's bytes, or of the names and hashes of a folder's files, as hexadecimal."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    parts = [[part.name, content_hash(part)] for part in sorted(_files(path))]
    return _digest(parts).hex()


def _digest(value: list[list[Any]]) -> bytes:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(os.fsencode(text)).digest()


def _number(value: list[list[Any]]) -> int:
    """One that fits a signed column of 64 bits."""
    return int.from_bytes(_digest(value)[:8]) >> 1


def _files(folder: Path) -> list[Path]:
    parts = (part for part in folder.iterdir() if not part.name.startswith("."))
    return [part for part in parts if part.name not in OF_THE_SYSTEM and part.is_file()]
