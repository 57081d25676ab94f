"""A single image as a source of one frame; a child process with limits decodes it."""

import hashlib
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from masklet.errors import UserError
from masklet.media import image_child
from masklet.media.process import MAX_PIXELS, Child, Stalled, display_name, opened
from masklet.media.source import Source

SECONDS = 60.0
"""For decoding; the child's own limit, in seconds of a CPU, is shorter."""

MAX_ADDRESS_SPACE = 4 * 2**30


@dataclass(frozen=True)
class ImageSource(Source):
    """An image: one frame, as a viewer shows it, upright and without transparency."""

    @staticmethod
    def of(path: Path, sha256: str, width: int, height: int) -> "ImageSource":
        return ImageSource(path, sha256, width, height, Fraction(1), (0,), Fraction(1))


def probe_image(path: Path) -> ImageSource:
    """Decode an image once, to know that it can be. Raises UserError if it cannot."""
    height, width, _ = read_image(path).shape
    with opened(path) as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    return ImageSource.of(path, sha256, width, height)


def read_image(path: Path) -> NDArray[np.uint8]:
    """The pixels of an image as RGB, uint8 of shape (height, width, 3).

    EXIF orientation is applied, transparency lies on white. 16-bit greys keep their high byte,
    32-bit ones are stretched over what they hold. Raises UserError.
    """
    name = display_name(path)
    # -I: neither the working directory nor the environment may put another module in the way
    program = [sys.executable, "-I", image_child.__file__]
    try:
        with (
            opened(path) as file,
            Child(program, stdin=file, limit=SECONDS, address_space=MAX_ADDRESS_SPACE) as child,
        ):
            head = bytearray(image_child.ANSWER.size)
            if not child.read_into(child.stdout, memoryview(head)):
                raise _out_of_limits(name)
            refused, width, height = image_child.ANSWER.unpack(head)
            if refused:
                reason = bytearray(min(width, 1000))
                child.read_into(child.stdout, memoryview(reason))
                raise UserError(f"{name} {reason.decode('utf-8', 'replace')}")
            if not 0 < width * height <= MAX_PIXELS:
                raise _out_of_limits(name)
            image = np.empty((height, width, 3), np.uint8)
            if not child.read_into(child.stdout, image.data.cast("B")):
                raise _out_of_limits(name)
            return image
    except Stalled:
        raise _out_of_limits(name) from None


def _out_of_limits(name: str) -> UserError:
    return UserError(
        f"{name} cannot be decoded with {image_child.CPU_SECONDS} seconds of a CPU and "
        f"{MAX_ADDRESS_SPACE >> 30} GiB of memory: scale it down, or save it in another format"
    )
