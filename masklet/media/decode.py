"""The frames of a video as arrays, each known by its presentation time, never by counting."""

import operator
from collections.abc import Generator, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from masklet.errors import UserError
from masklet.media.image import ImageSource, read_image
from masklet.media.images import AnimationSource, ImagesSource, read_animation, read_images
from masklet.media.probe import SEEK_BACK, Source
from masklet.media.process import decoder, display_name, reported

Frames: TypeAlias = Generator[tuple[int, NDArray[np.uint8]], None, None]

BLOCK_FRAMES = 32
BLOCK_BYTES = 256 * 2**20
"""A descending read holds at most so many frames, and so many bytes, at once."""

FAR_FRAMES = 250
"""Over a gap so long a new process with a seek is cheaper than decoding on."""

_RUNS = 1000  # bounds the length of a command line
# High dynamic range is mapped to what the model and screens know. Reference white, 203 cd/m² by
# BT.2408, becomes white; what is brighter is compressed. Files often leave out what else BT.2100
# prescribes, so it is said.
_TO_SDR = (
    "setparams=color_primaries=bt2020:colorspace=bt2020nc,zscale=t=linear:npl=203,"
    "format=gbrpf32le,zscale=p=bt709,tonemap=mobius,zscale=t=bt709,format=gbrp,"
)
# With these two every CPU gives the same bytes; ffmpeg's default takes a faster path on some.
_EXACT = "bitexact+accurate_rnd"


def read_frames(source: Source, frame_indices: Sequence[int]) -> Frames:
    """Yield (frame_index, image) for each index, in the order given.

    `frame_indices` increase strictly or decrease strictly. An image is RGB, uint8, of shape
    (source.height, source.width, 3); the bytes of a frame do not depend on which others are read.
    A frame of another size than the first is scaled to it. Memory is constant in the number of
    frames; a descending read decodes again from the last keyframe for every block of frames, so
    it is slow where keyframes are far apart. Closing the iterator ends the decoder.

    Raises ValueError for indices that are out of order or out of range, and UserError, while
    iterating, for a frame that cannot be decoded.
    """
    indices = [operator.index(index) for index in frame_indices]
    steps = [after - before for before, after in pairwise(indices)]
    if not (all(step > 0 for step in steps) or all(step < 0 for step in steps)):
        raise ValueError("frame_indices must increase strictly or decrease strictly")
    if indices and not min(indices[0], indices[-1]) >= 0:
        raise ValueError(f"frame_index {min(indices[0], indices[-1])} is negative")
    if indices and max(indices[0], indices[-1]) >= source.num_frames:
        raise ValueError(
            f"frame_index {max(indices[0], indices[-1])} is past the last of {source.num_frames}"
        )
    if isinstance(source, ImageSource):
        return ((index, read_image(source.path)) for index in indices)
    if isinstance(source, ImagesSource):
        return read_images(source, indices)
    descending = bool(steps) and steps[0] < 0
    return _descending(source, indices) if descending else _ascending(source, indices)


def _descending(source: Source, indices: Sequence[int]) -> Frames:
    size = max(1, min(BLOCK_FRAMES, BLOCK_BYTES // (source.width * source.height * 3)))
    for start in range(0, len(indices), size):
        block = list(_ascending(source, indices[start : start + size][::-1]))
        while block:
            yield block.pop()


def _ascending(source: Source, indices: Sequence[int]) -> Frames:
    if isinstance(source, AnimationSource):
        yield from read_animation(source, indices)
        return
    for stretch in _stretches(indices, FAR_FRAMES if source.seekable else source.num_frames):
        done = 0
        while done < len(stretch):
            before = done
            for seek in _seeks(source, stretch[done]):
                for frame in _decode(source, stretch[done:], seek):
                    yield frame
                    done += 1
                if done > before:
                    break
            else:
                raise UserError(
                    f"frame {stretch[done]} of {display_name(source.path)} cannot be decoded: "
                    "is the file damaged? re-encode it, or leave that part out"
                )


def _stretches(indices: Sequence[int], far: int) -> Iterator[Sequence[int]]:
    """Cut the indices at gaps of over `far` frames, and so that no piece has too many runs."""
    start = runs = 0
    for position, (before, after) in enumerate(pairwise(indices), start=1):
        runs += after > before + 1
        if after - before > far or runs >= _RUNS:
            yield indices[start:position]
            start, runs = position, 0
    if indices:
        yield indices[start:]


def _seeks(source: Source, frame_index: int) -> Iterator[float | None]:
    """Where to start decoding, in seconds, in the order to try; None is the start of the file."""
    if source.seekable and frame_index > BLOCK_FRAMES:
        for back in SEEK_BACK:
            seek = float(source.pts[frame_index] * source.time_base) - back
            if seek > source.pts[0] * source.time_base:
                yield seek
    yield None


def _decode(source: Source, indices: Sequence[int], seek: float | None) -> Frames:
    """The wanted frames in one process, up to the first that it does not give."""
    size = f"{source.width}:{source.height}"
    to_sdr = "" if source.transfer == "sdr" else _TO_SDR
    filters = f"select='{_wanted(source, indices)}',{to_sdr}scale={size}:flags={_EXACT}"
    # an encoder of several threads gives a frame with the next one, or after the end of the file
    raw: dict[str, Any] = {"f": "rawvideo", "pix_fmt": "rgb24", "threads": 1}
    with (
        reported(source.path),
        decoder(source.path, seek=seek, vf=filters, **raw) as (child, times),
    ):
        for frame_index in indices:
            for pts in times:
                image = np.empty((source.height, source.width, 3), np.uint8)
                if not child.read_into(child.stdout, image.data.cast("B")):
                    return
                if pts >= source.pts[frame_index]:
                    break
            else:
                return
            if pts > source.pts[frame_index]:
                return
            yield frame_index, image


def _wanted(source: Source, indices: Sequence[int]) -> str:
    """An ffmpeg expression that is true for these frames: a search tree over runs of pts."""
    firsts = [index for n, index in enumerate(indices) if not n or indices[n - 1] != index - 1]
    position = {index: n for n, index in enumerate(indices)}
    ends = [position[first] - 1 for first in firsts[1:]] + [len(indices) - 1]
    runs = [(source.pts[a], source.pts[indices[b]]) for a, b in zip(firsts, ends, strict=True)]
    return _tree(runs)


def _tree(runs: Sequence[tuple[int, int]]) -> str:
    if len(runs) == 1:
        return f"between(pts,{runs[0][0]},{runs[0][1]})"
    middle = len(runs) // 2
    return f"if(lt(pts,{runs[middle][0]}),{_tree(runs[:middle])},{_tree(runs[middle:])})"
