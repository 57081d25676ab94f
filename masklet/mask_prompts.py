"""Mask prompts: a zip of masks, read member by member as the hostile file that it may be."""

import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from masklet.errors import UserError
from masklet.job import OBJECT_ID_PATTERN, ObjectId
from masklet.zips import is_encrypted, is_read_in_pieces

MAX_MEMBERS = 100_000
MAX_BYTES = 2**32  # of all masks in memory, one byte a pixel
_MEMBER_NAME = re.compile(rf"(\d{{1,9}})_({OBJECT_ID_PATTERN})\.(png|npy)", re.ASCII)
_LEFT_BY_MACOS = re.compile(r"__MACOSX/|\.DS_Store$")
_NPY_HEADER_BYTES = 4096


class MaskPrompts:
    """The masks of one zip: `keys` now, pixels one at a time by `read` until it is closed.

    Args:
        path: a zip of `{frame_index}_{object_id}.png` or `.npy`, flat. An id of digits alone is
            an int; names are split at the first underscore only.
        width, height: size every mask must have, in pixels: that of the displayed frame.

    Raises UserError for anything else.
    """

    def __init__(self, path: Path, width: int, height: int) -> None:
        self._path, self._shape = path, (height, width)
        self._members: dict[tuple[int, ObjectId], zipfile.ZipInfo] = {}
        self._archive = _open_zip(path)
        try:
            self._list(self._archive.infolist())
        except UserError:
            self._archive.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._archive.close()

    @property
    def keys(self) -> list[tuple[int, ObjectId]]:
        """(frame_index, object_id) of every mask, by frame and then by id."""
        return sorted(self._members, key=lambda key: (key[0], str(key[1])))

    def name(self, frame_index: int, object_id: ObjectId) -> str:
        """How an error names this mask: the zip and the entry in it."""
        return f"{self._path}: {self._members[frame_index, object_id].filename!r}"

    def read(self, frame_index: int, object_id: ObjectId) -> NDArray[np.bool_]:
        """The mask, (height, width) bool: whatever is not zero. Raises UserError."""
        member, name = self._members[frame_index, object_id], self.name(frame_index, object_id)
        height, width = self._shape
        limit = 16 * height * width + (1 << 20)
        try:
            with self._archive.open(member) as file:
                content = file.read(limit + 1)
        except Exception as error:
            # zipfile raises what its fields lead to, and zlib has an error of its own
            raise UserError(f"{name} cannot be unpacked: {_explain(error)}") from None
        if len(content) > limit:
            raise UserError(f"{name} unpacks to more than a {width}x{height} mask can need")
        read = _read_npy if member.filename.endswith(".npy") else _read_png
        return read(content, self._shape, name)

    def __iter__(self) -> Iterator[tuple[int, ObjectId]]:
        return iter(self.keys)

    def _list(self, members: list[zipfile.ZipInfo]) -> None:
        if len(members) > MAX_MEMBERS:
            raise UserError(f"{self._path}: has {len(members)} entries; {MAX_MEMBERS} are allowed")
        members = [one for one in members if not _LEFT_BY_MACOS.match(one.filename)]
        for member in members:
            self._add(member)
        if not members:
            raise UserError(f"{self._path}: holds no mask named {{frame_index}}_{{object_id}}.png")
        height, width = self._shape
        if len(members) * height * width > MAX_BYTES:
            raise UserError(
                f"{self._path}: has {len(members)} masks of {width}x{height} pixels, more than fit "
                f"in {MAX_BYTES >> 30} GiB; prompt fewer frames"
            )

    def _add(self, member: zipfile.ZipInfo) -> None:
        match = _MEMBER_NAME.fullmatch(member.filename)
        if match is None:
            raise UserError(
                f"{self._path}: {member.filename[:100]!r} is not named "
                "{frame_index}_{object_id}.png or .npy, with an id of letters, digits, '_.-'"
            )
        if is_encrypted(member):
            raise UserError(
                f"{self._path}: {member.filename!r} is encrypted; zip it without a password"
            )
        if not is_read_in_pieces(member):
            raise UserError(
                f"{self._path}: {member.filename!r} is packed in an unusual way; zip it with "
                "deflate, or stored"
            )
        frame_index, object_id = int(match[1]), match[2]
        key = (frame_index, int(object_id) if object_id.isdigit() else object_id)
        if key in self._members:
            raise UserError(
                f"{self._path}: {self._members[key].filename!r} and {member.filename!r} are masks "
                "of the same frame and object"
            )
        self._members[key] = member


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        if not path.is_file() and path.exists():  # a pipe would be waited for
            raise UserError(f"{path}: is not a file; mask prompts are a zip")
        return zipfile.ZipFile(path)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception:
        # besides BadZipFile, zipfile raises whatever the fields of a damaged directory lead to
        raise UserError(
            f"{path}: is not a zip of masks, {{frame_index}}_{{object_id}}.png or .npy"
        ) from None


def _explain(error: Exception) -> str:
    return str(error)[:200] or type(error).__name__


def _read_png(content: bytes, shape: tuple[int, int], name: str) -> NDArray[np.bool_]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is checked here, before any pixel
            with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                _check_shape((image.height, image.width), shape, name)
                if image.mode in ("P", "1", "L", "I;16", "I"):
                    return np.asarray(np.asarray(image) != 0)
                colours = np.asarray(image.convert("RGBA"))
                return np.asarray(colours[..., :3].any(axis=2) & (colours[..., 3] > 0))
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{name} is not a readable PNG") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name} has more pixels than any video") from None
    except Exception as error:
        # Pillow raises whatever its decoder met: OSError, SyntaxError, struct.error, …
        raise UserError(f"{name} is not a readable PNG: {_explain(error)}") from None


def _read_npy(content: bytes, shape: tuple[int, int], name: str) -> NDArray[np.bool_]:
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, fortran, dtype = read_header(stream, max_header_size=_NPY_HEADER_BYTES)
        if dtype.kind not in "buif" or dtype.itemsize > 16:
            raise UserError(f"{name} holds {dtype}, not booleans or numbers")
        _check_shape(found, shape, name)
        values = np.frombuffer(content, dtype, count=shape[0] * shape[1], offset=stream.tell())
    except UserError:
        raise
    except Exception:
        # the header is a Python literal: numpy raises whatever its tokens and types lead to
        raise UserError(f"{name} is not a readable .npy array") from None
    return np.asarray(values.reshape(shape, order="F" if fortran else "C") != 0)


def _check_shape(found: tuple[int, ...], expected: tuple[int, int], name: str) -> None:
    if tuple(found) != expected:
        raise UserError(
            f"{name} has the shape {str(tuple(found))[:60]}; a mask has that of the video, "
            f"(height, width) = {expected}"
        )
