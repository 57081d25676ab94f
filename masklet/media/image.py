"""A single image as a source of one frame; a child process with limits decodes it."""

import hashlib
import struct
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

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


class AnimatedError(UserError):
    """A file that was taken for an image has several frames."""


def probe_image(path: Path) -> ImageSource:
    """Decode an image once, to know that it can be. Raises UserError if it cannot."""
    height, width, _ = read_image(path).shape
    with opened(path) as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    return ImageSource.of(path, sha256, width, height)


def read_image(path: Path) -> NDArray[np.uint8]:
    """The pixels of an image as RGB, uint8 of shape (height, width, 3).

    EXIF orientation is applied, transparency lies on white. 16-bit greys keep their high byte,
    32-bit ones are stretched over what they hold. Raises UserError, of an animation AnimatedError.
    """
    name = display_name(path)
    with ImageDecoder(limit=SECONDS) as decoder:
        return decoder.pixels(read_limited(path, name), name)


def read_limited(path: Path, name: str) -> bytes:
    """The content of an image's file; raises UserError when it is too large for one."""
    with opened(path) as file:
        content = file.read(image_child.MAX_FILE_BYTES + 1)
    check_length(len(content), name)
    return content


def check_length(length: int, name: str) -> None:
    """Raise UserError for a file of so many bytes, if it is too large for an image."""
    if length > image_child.MAX_FILE_BYTES:
        raise UserError(
            f"{name} is larger than {image_child.MAX_FILE_BYTES >> 20} MiB, the limit of an image"
        )


class ImageDecoder:
    """A child process with limits that decodes images, one after another.

    Each method takes a file's content and the name that an error gives it, and raises UserError.
    Leaving the context ends the process. `limit` is how many seconds it may take in all.
    """

    def __init__(self, *, limit: float | None = None) -> None:
        # -I: neither the working directory nor the environment may put another module in the way
        program = [sys.executable, "-I", image_child.__file__]
        self._child = Child(
            program, stdin=subprocess.PIPE, limit=limit, address_space=MAX_ADDRESS_SPACE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.__exit__(kind, error, trace)

    def size(self, content: bytes, name: str) -> tuple[int, int]:
        """(width, height) when upright, as the header says; the pixels are not decoded."""
        return self._ask(image_child.SIZE, len(content), content, name)

    def pixels(self, content: bytes, name: str) -> NDArray[np.uint8]:
        """RGB, uint8 of shape (height, width, 3); raises AnimatedError for several frames."""
        width, height = self._ask(image_child.PIXELS, len(content), content, name)
        return self._image(width, height, name)

    def open_animation(self, content: bytes, name: str) -> list[int]:
        """How long each frame is shown, in milliseconds; they are all decoded for that."""
        head = image_child.REQUEST.pack(image_child.ANIMATION, len(content))
        what, count, _ = self._answer(head, content, name)
        if what != image_child.ANIMATED or not 0 < count <= image_child.MAX_FRAMES:
            raise _out_of_limits(name)
        durations = bytearray(4 * count)
        self._fill(memoryview(durations), name)
        return list(struct.unpack(f"!{count}I", durations))

    def frame(self, index: int, name: str) -> NDArray[np.uint8]:
        """One frame of the animation that was opened, like `pixels`; quick in rising order."""
        return self._image(*self._ask(image_child.FRAME, index, b"", name), name)

    def _ask(self, what: bytes, number: int, content: bytes, name: str) -> tuple[int, int]:
        kind, width, height = self._answer(image_child.REQUEST.pack(what, number), content, name)
        if kind == image_child.ANIMATED:
            raise AnimatedError(f"{name} is an animation: make a video of it first")
        if kind != image_child.GIVEN or not 0 < width * height <= MAX_PIXELS:
            raise _out_of_limits(name)
        return width, height

    def _answer(self, head: bytes, content: bytes, name: str) -> tuple[int, int, int]:
        try:
            self._child.write(memoryview(head))
            self._child.write(memoryview(content))
        except (BrokenPipeError, Stalled):
            raise _out_of_limits(name) from None
        answer = bytearray(image_child.ANSWER.size)
        self._fill(memoryview(answer), name)
        what, first, second = image_child.ANSWER.unpack(answer)
        if what == image_child.REFUSED:
            reason = bytearray(min(first, 1000))
            self._fill(memoryview(reason), name)
            raise UserError(f"{name} {reason.decode('utf-8', 'replace')}")
        return what, first, second

    def _image(self, width: int, height: int, name: str) -> NDArray[np.uint8]:
        image = np.empty((height, width, 3), np.uint8)
        self._fill(image.data.cast("B"), name)
        return image

    def _fill(self, buffer: memoryview, name: str) -> None:
        try:
            if self._child.read_into(self._child.stdout, buffer):
                return
        except Stalled:
            pass
        raise _out_of_limits(name)


def _out_of_limits(name: str) -> UserError:
    return UserError(
        f"{name} cannot be decoded with {image_child.CPU_SECONDS} seconds of a CPU and "
        f"{MAX_ADDRESS_SPACE >> 30} GiB of memory: scale it down, or save it in another format"
    )
