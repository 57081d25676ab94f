"""Decode images for a parent process; a program of its own, which `image.ImageDecoder` starts.

Images are hostile input, and the decoders are C. Here they have nothing of the parent's memory and
environment, and limits that this process sets for itself before it decodes.

A request on standard input is a letter and a number of 8 bytes: how many bytes of a file follow, or
of `FRAME` which frame of the animation that was opened last. The answer on standard output is a
byte (`GIVEN`, `REFUSED`, `ANIMATED`) and two numbers of 4 bytes. These are the width and height of
the image, after which come its pixels as RGB, 8 bits each, if they were asked for; or the length of
the reason, which follows; or the number of frames, after which come their durations in
milliseconds, 4 bytes each.
"""

import io
import math
import resource
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
ANIMATIONS = ("PNG", "WEBP", "GIF", "AVIF")
MAX_FILE_BYTES = 2**29
CPU_SECONDS = 10
"""For each request, and for each frame of an animation."""
MAX_FRAMES = 100_000
BROWSER_MILLISECONDS = 100
"""How long browsers show a frame that says 0."""

REQUEST, ANSWER = struct.Struct("!cQ"), struct.Struct("!BII")
SIZE, PIXELS, ANIMATION, FRAME = b"s", b"p", b"a", b"f"
GIVEN, REFUSED, ANIMATED = range(3)

_ORIENTATION = 0x0112
# of TIFF
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO, _PLANAR, _SEPARATE = 258, 262, 0, 284, 2


class Refused(Exception):
    """Why an image cannot be taken, in words that follow the name of its file."""


class Animated(Exception):
    """An image was asked for, and the file has several frames."""


def decode(content: bytes) -> Image.Image:
    """The image as a viewer shows it: upright, without transparency, as 8-bit RGB."""
    with _refusing():
        image = _open(content)
        if _is_animation(image):
            raise Animated
        image.load()
        return _opaque(_upright(image))


def size_of(content: bytes) -> tuple[int, int]:
    """(width, height) when upright, by what the header says."""
    with _refusing():
        image = _open(content)
        if _is_animation(image):
            raise Refused("is an animation: a video is made of images that have one frame each")
        turned = False
        with suppress(Exception):
            # PNG's own method decodes the image to look behind it
            turned = Image.Image.getexif(image).get(_ORIENTATION, 1) >= 5
        return image.size[::-1] if turned else image.size


class Animation:
    """The frames of an animation, each as a viewer shows it."""

    def __init__(self, content: bytes) -> None:
        with _refusing():
            self._image = _open(content)
            # an APNG may begin with a picture for viewers that know no animation
            self._first = int(bool(getattr(self._image, "default_image", False)))
            count = getattr(self._image, "n_frames", 1) - self._first
            if count > MAX_FRAMES:
                raise Refused(f"has over {MAX_FRAMES} frames: cut it into parts")
            self.durations = [self._duration(index) for index in range(count)]

    def _duration(self, index: int) -> int:
        self._load(index)
        return max(0, round(self._image.info.get("duration", 0))) or BROWSER_MILLISECONDS

    def _load(self, index: int) -> None:
        _allow_time()
        self._image.seek(self._first + index)
        self._image.load()
        self._loaded = index

    def frame(self, index: int) -> Image.Image:
        with _refusing():
            # one by one, as the decoders go: each frame has its time
            begin = 0 if index < self._loaded else self._loaded + 1
            for before in range(begin, index + 1):
                self._load(before)
            return _opaque(_upright(self._image))


def _open(content: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        if content[4:8] == b"ftyp" and content[8:11] in (b"hei", b"hev", b"mif", b"msf"):
            raise Refused("is HEIC, which Pillow does not read: save it as JPEG or PNG") from None
        raise
    _refuse_misread(image)
    return image


def _refuse_misread(image: Image.Image) -> None:
    """Raise Refused for what Pillow takes for something else, without an error."""
    if not isinstance(image, TiffImageFile) or max(image.tag_v2.get(_BITS, (8,))) <= 8:
        return
    if image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise Refused("is a TIFF of over 8 bits in which 0 is white: save it as PNG")
    if image.tag_v2.get(_PLANAR) == _SEPARATE and image.tile[0].codec_name == "raw":
        raise Refused("is a TIFF of over 8 bits with a plane for each colour: save it as PNG")


def _is_animation(image: Image.Image) -> bool:
    return image.format in ANIMATIONS and getattr(image, "is_animated", False)


@contextmanager
def _refusing() -> Iterator[None]:
    """Whatever a decoder raises becomes a `Refused`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # from this size on, Pillow takes an image for a bomb, and only warns up to twice that
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS or 0
        raise Refused(
            f"has more than {limit / 1e6:.0f} million pixels: scale it down first"
        ) from None
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise Refused(f"is damaged, or no image in a format that masklet reads ({known})") from None
    except (Refused, Animated):
        raise
    except MemoryError:
        raise Refused("needs too much memory: scale it down first") from None
    except Exception as error:
        # Pillow raises whatever its decoder met: OSError, SyntaxError, struct.error, …
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise Refused(f"cannot be decoded ({reason}): is the file complete?") from None


def _upright(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # a broken EXIF block turns nothing
        return ImageOps.exif_transpose(image)
    return image


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # the high byte, as of the 16-bit colours that Pillow reduces by itself; it would clip these
        return image.convert("I").point(lambda value: value * (1 / 256) + 0).convert("RGB")
    if image.mode in ("I", "F"):
        return _stretched(image).convert("RGB")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")


def _stretched(image: Image.Image) -> Image.Image:
    """32-bit greys as 8 bits, the darkest 0 and the brightest 255: they say no range themselves."""
    image = image.convert("F")
    low, high = image.getextrema()
    assert isinstance(low, float)
    assert isinstance(high, float)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise Refused("has pixels that are not finite numbers")
    scale = 255 / (high - low) if high > low else 0.0
    return image.point(lambda value: value * scale + (0.5 - low * scale)).convert("L")


def _allow_time() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main() -> None:
    animation: Animation | None = None
    while head := sys.stdin.buffer.read(REQUEST.size):
        what, number = REQUEST.unpack(head)
        _allow_time()
        content = b"" if what == FRAME else sys.stdin.buffer.read(number)
        try:
            if what == SIZE:
                answer = ANSWER.pack(GIVEN, *size_of(content))
            elif what == ANIMATION:
                animation = Animation(content)
                count = len(animation.durations)
                answer = ANSWER.pack(ANIMATED, count, 0)
                answer += struct.pack(f"!{count}I", *animation.durations)
            else:
                image = animation.frame(number) if animation else decode(content)
                answer = ANSWER.pack(GIVEN, *image.size) + image.tobytes()
        except Animated:
            answer = ANSWER.pack(ANIMATED, 0, 0)
        except Refused as refused:
            reason = str(refused).encode()
            answer = ANSWER.pack(REFUSED, len(reason), 0) + reason
        sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
