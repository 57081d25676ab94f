"""A video that comes as JPEG files, one a frame, as datasets have them.

Pillow decodes them, in this process: SAM 2's own evaluation reads them so, and another decoder's
colours differ by a few levels.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklet.errors import UserError
from masklet.media.probe import MAX_FRAMES, MAX_SIDE, Source
from masklet.media.process import MAX_PIXELS

_FRAME_RATE = Fraction(24)  # the files have no times; nothing that is measured depends on it


@dataclass(frozen=True, kw_only=True)
class PictureSource(Source):
    """JPEG files of one size as the frames of a video. `sha256` is empty: they are not hashed."""

    files: tuple[Path, ...]


def probe_pictures(folder: Path, files: Sequence[Path]) -> PictureSource:
    """Make a source of JPEG files in this order, by what their headers say.

    Raises UserError for no file, or one that is no JPEG, too large, or of another size.
    """
    if not 0 < len(files) <= MAX_FRAMES:
        raise UserError(f"{folder}: has {len(files)} JPEG files; 1 to {MAX_FRAMES} make a video")
    width, height = picture_size(files[0], "JPEG")
    for file in files:
        check_size(file, picture_size(file, "JPEG"), (width, height))
    return PictureSource(
        path=folder,
        sha256="",
        width=width,
        height=height,
        time_base=1 / _FRAME_RATE,
        pts=tuple(range(len(files))),
        frame_rate=_FRAME_RATE,
        files=tuple(files),
    )


def picture_size(path: Path, format: str) -> tuple[int, int]:
    """(width, height) that a picture's header says. Raises UserError when it is too large."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the size is checked here, before any pixel
        try:
            with Image.open(path, formats=[format]) as image:
                width, height = image.size
        except Exception as error:
            raise _unreadable(path, format, error) from None
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise UserError(
            f"{path}: has {width}x{height} pixels; the limit is {MAX_SIDE} a side and {MAX_PIXELS} "
            "in all"
        )
    return width, height


def check_size(path: Path, found: tuple[int, int], expected: tuple[int, int]) -> None:
    """Raise UserError unless a picture's (width, height) is that of the video."""
    if found != expected:
        raise UserError(
            f"{path}: has {found[0]}x{found[1]} pixels, but the video has "
            f"{expected[0]}x{expected[1]}"
        )


def read_picture(source: PictureSource, frame_index: int) -> NDArray[np.uint8]:
    """The frame as RGB, uint8 of shape (source.height, source.width, 3)."""
    return read_pixels(
        source.files[frame_index], "JPEG", (source.width, source.height), ("RGB",), "RGB"
    )


def read_pixels(
    path: Path, format: str, size: tuple[int, int], modes: Sequence[str], otherwise: str
) -> NDArray[np.uint8]:
    """A picture's pixels as they are in one of Pillow's `modes`, converted to `otherwise` if not.

    Raises UserError when it cannot be read, or has another (width, height) than `size`.
    """
    # again, as the file may have changed since it was probed
    check_size(path, picture_size(path, format), size)
    try:
        with Image.open(path, formats=[format]) as image:
            kept = image if image.mode in modes else image.convert(otherwise)
            return np.asarray(kept, dtype=np.uint8)
    except Exception as error:
        # Pillow raises whatever its decoder met: OSError, SyntaxError, struct.error, …
        raise _unreadable(path, format, error) from None


def _unreadable(path: Path, format: str, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{path}: cannot be read: {error.strerror}")
    return UserError(f"{path}: is not a readable {format}: is the file complete?")
