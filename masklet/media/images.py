"""Images in an order as a video: those of a folder or a zip, or the frames of an animated image.

A zip is read member by member and never extracted, so the names in it reach no file.
"""

import hashlib
import re
import stat
import zipfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from masklet.content import OF_THE_SYSTEM, content_hash
from masklet.errors import UserError
from masklet.media.image import ImageDecoder, check_length, read_limited
from masklet.media.process import display_name, opened
from masklet.media.source import Source
from masklet.zips import is_encrypted, is_read_in_pieces

FRAME_RATE = Fraction(24)
"""Of a folder or a zip; the images have no times."""

MAX_IMAGES = 100_000
PROBE_SECONDS = 120.0
"""For decoding every frame of an animation once."""

_BOMB_BYTES, _BOMB_RATIO = 2**24, 200


@dataclass(frozen=True, kw_only=True)
class ImagesSource(Source):
    """Images of one size as the frames of a video; `path` is their folder or zip."""

    names: tuple[str, ...]

    @staticmethod
    def of(
        path: Path, names: Sequence[str], sha256: str, width: int, height: int
    ) -> "ImagesSource":
        return ImagesSource(
            path=path,
            sha256=sha256,
            width=width,
            height=height,
            time_base=1 / FRAME_RATE,
            pts=tuple(range(len(names))),
            frame_rate=FRAME_RATE if len(names) > 1 else Fraction(1),
            names=tuple(names),
        )


@dataclass(frozen=True)
class AnimationSource(Source):
    """An animated WebP, PNG or AVIF; ffmpeg does not read all of these. Times are in 1/1000 s."""


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip does."""
    with opened(path) as file:
        return file.read(4) in (b"PK\3\4", b"PK\5\6")


def probe_images(path: Path, names: Sequence[str] | None = None) -> ImagesSource:
    """Make a source of images, by what their headers say.

    path: a folder or a zip. names: those in it that count; `image_names(path)` by default.
    Raises UserError if there is none, or one is no image or has another size than the first.
    """
    names = image_names(path) if names is None else names
    if not 0 < len(names) <= MAX_IMAGES:
        raise UserError(
            f"{_kind(path)} with {len(names) or 'no'} images in it; 1 to {MAX_IMAGES} make a video"
        )
    size: tuple[int, int] | None = None
    with _contents(path) as read, ImageDecoder() as decoder:
        for name in names:
            found = decoder.size(read(name), _shown(path, name))
            size = size or found
            _check_size(path, name, found, size)
    assert size
    return ImagesSource.of(path, names, content_hash(path), *size)


def image_names(path: Path) -> list[str]:
    """The images of a folder or a zip as people count: 2 before 10.

    Hidden files are left out, and folders in a folder. Raises UserError for a zip that is hostile,
    cannot be read, or has images in several folders.
    """
    return sorted(_folder_names(path) if path.is_dir() else _zip_names(path), key=natural_order)


def read_images(
    source: ImagesSource, frame_indices: Sequence[int]
) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
    """Yield (frame_index, image) in the order given; see `decode.read_frames`."""
    with _contents(source.path) as read, ImageDecoder() as decoder:
        for frame_index in frame_indices:
            name = source.names[frame_index]
            image = decoder.pixels(read(name), _shown(source.path, name))
            # again, as the file may have changed since it was probed
            found = (image.shape[1], image.shape[0])
            _check_size(source.path, name, found, (source.width, source.height))
            yield frame_index, image


def probe_animation(path: Path) -> AnimationSource:
    """Decode every frame of an animated image once; raises UserError if one cannot be."""
    name = display_name(path)
    content = read_limited(path, name)
    with ImageDecoder(limit=PROBE_SECONDS) as decoder:
        durations = decoder.open_animation(content, name)
        height, width, _ = decoder.frame(0, name).shape
    pts = tuple(accumulate(durations[:-1], initial=0))
    return AnimationSource(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        width=width,
        height=height,
        time_base=Fraction(1, 1000),
        pts=pts,
        frame_rate=Fraction(1000 * (len(pts) - 1), pts[-1]) if pts[-1] else Fraction(1),
    )


def read_animation(
    source: AnimationSource, frame_indices: Sequence[int]
) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
    """Yield (frame_index, image); indices that rise are read in one pass."""
    name = display_name(source.path)
    with ImageDecoder() as decoder:
        decoder.open_animation(read_limited(source.path, name), name)
        for frame_index in frame_indices:
            image = decoder.frame(frame_index, name)
            if image.shape != (source.height, source.width, 3):
                raise UserError(f"{name} has frames of several sizes: make a video of it first")
            yield frame_index, image


def natural_order(name: str) -> list[tuple[str, int, str]]:
    """A key by which numbers in names count as numbers, however many digits they have.

    >>> sorted(["f10.png", "f2.png", "f1.png"], key=natural_order)
    ['f1.png', 'f2.png', 'f10.png']
    """
    parts = re.findall(r"([^0-9]*)([0-9]*)", name)
    counted = [(words, digits.lstrip("0")) for words, digits in parts]
    # without int(), which refuses thousands of digits; the name itself decides between 1 and 01
    return [(words, len(digits), digits) for words, digits in counted] + [(name, 0, "")]


def _folder_names(path: Path) -> list[str]:
    try:
        return [one.name for one in path.iterdir() if not _is_hidden(one.name) and not one.is_dir()]
    except OSError as error:
        raise UserError(
            f"{display_name(path)} cannot be read ({error.strerror}): check the path"
        ) from None


def _zip_names(path: Path) -> list[str]:
    with _open_zip(path) as archive:
        members = [one for one in archive.infolist() if not one.is_dir()]
    if sum(one.file_size for one in members) > max(_BOMB_BYTES, _BOMB_RATIO * path.stat().st_size):
        raise UserError(
            f"{display_name(path)} unpacks to over {_BOMB_RATIO} times its size: save the images "
            "as PNG or JPEG"
        )
    names: dict[str, None] = {}
    for member in members:
        _check_member(path, member)
        if member.filename in names:
            raise UserError(f"{_shown(path, member.filename)} is there twice: leave one out")
        names[member.filename] = None
    kept = [name for name in names if not _is_hidden(name)]
    folders = sorted({name.rpartition("/")[0] for name in kept})
    if len(folders) > 1:
        a, b = (_printable(folder or ".") for folder in folders[:2])
        raise UserError(
            f"{_kind(path)} with images in several folders, {a} and {b}: zip those of one video"
        )
    return kept


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    shown = _shown(path, member.filename)
    # nothing is ever written under these names, but who gives them has no images in mind
    if member.filename.startswith("/") or {"..", ""} & set(re.split(r"[/\\]", member.filename)):
        raise UserError(f"{shown} has a name that leads elsewhere: zip plain files")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UserError(f"{shown} is a link: zip the file itself")
    if is_encrypted(member):
        raise UserError(f"{shown} is encrypted: zip it without a password")
    if not is_read_in_pieces(member):
        raise UserError(f"{shown} is packed in an unusual way: zip it with deflate, or stored")
    check_length(member.file_size, shown)


@contextmanager
def _contents(path: Path) -> Iterator[Callable[[str], bytes]]:
    """A function that gives the content of the image of a name."""
    if path.is_dir():
        yield partial(_read_file, path)
    else:
        with _open_zip(path) as archive:
            yield partial(_read_member, archive, path)


def _read_file(folder: Path, name: str) -> bytes:
    file = folder / name
    if not file.is_file():
        raise UserError(f"{_shown(folder, name)} is not a regular file: leave it out")
    return read_limited(file, _shown(folder, name))


def _read_member(archive: zipfile.ZipFile, path: Path, name: str) -> bytes:
    try:
        member = archive.getinfo(name)
        _check_member(path, member)  # again, as the file may have changed since it was probed
        return archive.read(member)
    except UserError:
        raise
    except Exception as error:
        # zipfile raises what its fields lead to, and zlib has an error of its own
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(f"{_shown(path, name)} cannot be unpacked ({_printable(reason)})") from None


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise UserError(
            f"{display_name(path)} cannot be read ({error.strerror}): check the path"
        ) from None
    except Exception:
        # besides BadZipFile, zipfile raises whatever the fields of a damaged directory lead to
        raise UserError(
            f"{display_name(path)} is a zip that cannot be read: is the file complete?"
        ) from None


def _check_size(path: Path, name: str, found: tuple[int, int], expected: tuple[int, int]) -> None:
    if found != expected:
        raise UserError(
            f"{_shown(path, name)} has {found[0]}x{found[1]} pixels, but the first image has "
            f"{expected[0]}x{expected[1]}"
        )


def _is_hidden(name: str) -> bool:
    parts = name.split("/")
    return any(part.startswith(".") or part in OF_THE_SYSTEM for part in parts)


def _kind(path: Path) -> str:
    return f"{display_name(path)} is a {'folder' if path.is_dir() else 'zip'}"


def _shown(path: Path, name: str) -> str:
    """How an error names an image."""
    return f"{_kind(path)}, and {_printable(name)} in it"


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name[:100])
