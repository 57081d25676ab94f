"""Decode one image from standard input; a program of its own, which `image.read_image` starts.

Images are hostile input, and the decoders are C. Here nothing can be reached but this process,
which sets limits for itself before it reads. The answer on standard output is a byte (0, or 1 for a
refusal) and two numbers of 4 bytes; then come the pixels as RGB, 8 bits each, of that width and
height, or the reason of that length.
"""

import io
import math
import resource
import struct
import sys
import warnings
from contextlib import suppress

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
ANIMATIONS = ("PNG", "WEBP", "GIF", "AVIF")
MAX_FILE_BYTES = 2**29
CPU_SECONDS = 10
ANSWER = struct.Struct("!BII")


class Refused(Exception):
    """Why an image cannot be taken, in words that follow the name of its file."""


def decode(content: bytes) -> Image.Image:
    """The image as a viewer shows it: upright, without transparency, as 8-bit RGB."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # from this size on, Pillow takes an image for a bomb, and only warns up to twice that
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.format in ANIMATIONS and getattr(image, "is_animated", False):
                raise Refused("is an animation: make a video of it first")
            image.load()
            return _opaque(_upright(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS or 0
        raise Refused(
            f"has more than {limit / 1e6:.0f} million pixels: scale it down first"
        ) from None
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise Refused(f"is damaged, or no image in a format that masklet reads ({known})") from None
    except Refused:
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


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    try:
        if len(content) > MAX_FILE_BYTES:
            raise Refused(f"is larger than {MAX_FILE_BYTES >> 20} MiB, the limit of an image")
        image = decode(content)
        answer = ANSWER.pack(0, *image.size) + image.tobytes()
    except Refused as refused:
        reason = str(refused).encode()
        answer = ANSWER.pack(1, len(reason), 0) + reason
    sys.stdout.buffer.write(answer)


if __name__ == "__main__":
    main()
