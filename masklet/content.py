"""What a file or folder holds, and by what it is recognised without reading it.

A folder is the files in it: hidden ones and folders do not count.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple, Self


class Stamp(NamedTuple):
    """By what a file is recognised as untouched.

    Of a folder, `mtime_ns` is when it or a file in it was last changed, in content or in name, and
    `inode` is the sum of all of theirs: of links, the files they lead to count.
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
        parts = [part.stat() for part in _files(path)]
        # ctime: of files that change places, or give way to older ones, the newest mtime stays
        changed = max(one.st_ctime_ns for one in (about, *parts))
        inodes = sum(one.st_ino for one in (about, *parts)) % 2**63
        return cls(sum(part.st_size for part in parts), changed, inodes)


def content_hash(path: Path) -> str:
    """sha256 of a file's bytes, or of the names and hashes of a folder's files, as hexadecimal."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    parts = [[part.name, content_hash(part)] for part in sorted(_files(path))]
    text = json.dumps(parts, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def _files(folder: Path) -> list[Path]:
    return [part for part in folder.iterdir() if not part.name.startswith(".") and part.is_file()]
