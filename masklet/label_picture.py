"""PNG files whose pixels are numbers of objects, as annotations of datasets are.

Pillow reads them in this process, as the numbers in a palette's file are not its colours.
"""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklet.errors import UserError
from masklet.media.probe import MAX_SIDE
from masklet.media.process import MAX_PIXELS


def check_size(path: Path, width: int, height: int) -> None:
    """Raise UserError unless the header says the size of the video."""
    found = _size(path)
    if found != (width, height):
        raise UserError(
            f"{path}: has {found[0]}x{found[1]} pixels, but the video has {width}x{height}"
        )


def read_labels(path: Path, width: int, height: int) -> NDArray[np.uint8]:
    """The pixels as they are stored, (height, width); of colour pictures (height, width, 3).

    Raises UserError when the file cannot be read or has another size, or a value over 255.
    """
    check_size(path, width, height)  # again, as the file may have changed since it was listed
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode in ("P", "L", "1"):
                return np.asarray(image, dtype=np.uint8)
            if image.mode in ("LA", "PA"):
                return np.asarray(image.getchannel(0), dtype=np.uint8)
            if not image.mode.startswith("I"):
                return np.asarray(image.convert("RGB"), dtype=np.uint8)
            values = np.asarray(image)  # of 16 bits
    except Exception as error:
        # Pillow raises whatever its decoder met: OSError, SyntaxError, struct.error, …
        raise _unreadable(path, error) from None
    if values.max(initial=0) > np.iinfo(np.uint8).max:
        raise UserError(f"{path}: has the value {values.max()}; objects are numbered 1 to 255")
    return values.astype(np.uint8)


def _size(path: Path) -> tuple[int, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the size is checked here, before any pixel
        try:
            with Image.open(path, formats=["PNG"]) as image:
                width, height = image.size
        except Exception as error:
            raise _unreadable(path, error) from None
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise UserError(
            f"{path}: has {width}x{height} pixels; the limit is {MAX_SIDE} a side and {MAX_PIXELS} "
            "in all"
        )
    return width, height


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{path}: cannot be read: {error.strerror}")
    return UserError(f"{path}: is not a readable PNG: is the file complete?")
