"""Write a video that every browser plays."""

import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, chain, groupby, pairwise
from pathlib import Path
from typing import Any

import ffmpeg
import numpy as np
from numpy.typing import NDArray

from masklet.atomic import replacing
from masklet.errors import UserError
from masklet.media.process import THREADS, Child, command, display_name, opened, reported
from masklet.media.sound import Sound, sound_input
from masklet.media.source import Source

FINISH_SECONDS = 1800.0
"""For moving the index of a finished file to its front, which copies the file once."""

# On processors with AVX-512 this step of x264 depends on memory that nobody has written: the same
# frames are now and then another video.
_REPEATABLE = "mbtree=0"

# mp4 keeps differences of times in 32 bits, and reordered frames lie some frames apart
_MOST_TICKS = 2**31 // 4
_COARSER = (Fraction(1, 90_000), Fraction(1, 1000))


@dataclass(frozen=True)
class Timing:
    """When each frame is shown: pts, increasing, in units of `time_base` seconds."""

    time_base: Fraction
    pts: Sequence[int]

    @staticmethod
    def of(source: Source, frame_indices: Sequence[int]) -> "Timing":
        """That of some frames of a source; the first is at 0.

        The time base is the source's, or a coarser one where mp4 could not hold the differences.
        """
        first = source.pts[frame_indices[0]]
        own = Timing(source.time_base, [source.pts[index] - first for index in frame_indices])
        return next(filter(Timing._fits, chain([own], map(own._in, _COARSER))), own)

    def _fits(self) -> bool:
        return max((b - a for a, b in pairwise(self.pts)), default=0) < _MOST_TICKS

    def _in(self, time_base: Fraction) -> "Timing":
        ratio = self.time_base / time_base
        nearest = [round(pts * ratio) for pts in self.pts]
        # where two frames fall together the later ones move on
        ahead = accumulate((at - index for index, at in enumerate(nearest)), max)
        return Timing(time_base, [at + index for index, at in enumerate(ahead)])


def write_video(
    path: str | Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    width: int,
    height: int,
    frame_rate: Fraction,
    timing: Timing | None = None,
    pixel_aspect: Fraction = Fraction(1),
    sound: Sound | None = None,
) -> None:
    """Encode RGB frames, uint8 of shape (height, width, 3), as H.264 yuv420p in an mp4 file.

    That format has even sizes only: the last column or row of an odd frame is repeated. The file
    appears under `path` complete or not at all, and replaces what was there.

    Args:
        frame_rate: frames per second, if `timing` does not say when each is shown.
        pixel_aspect: the width of a pixel by its height.
        sound: what is heard from the first frame on, as AAC.

    Raises ValueError for no frame, a frame of another shape or dtype, or a frame rate that is not
    positive; UserError when the file cannot be written.
    """
    if width < 1 or height < 1 or frame_rate <= 0:
        raise ValueError(f"cannot write {width}x{height} pixels at {frame_rate} frames per second")
    target = Path(path).absolute()
    with ExitStack() as stack:
        temporary = stack.enter_context(replacing(target))
        stack.enter_context(reported(target))
        filters = stack.enter_context(tempfile.TemporaryFile())
        filters.write(_filters(timing, pixel_aspect).encode())
        filters.seek(0)
        inputs, fds = [_raw_input(width, height, frame_rate)], [filters.fileno()]
        if sound is not None:
            fds.append(stack.enter_context(opened(sound.path)).fileno())
            inputs.append(sound_input(sound, fds[-1]))
        arguments = _command(temporary, inputs, filters.fileno(), timing, sound)
        child = Child(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=tuple(fds)
        )
        _encode(target, temporary, stack.enter_context(child), frames, width, height)


def _encode(
    target: Path,
    temporary: Path,
    child: Child,
    frames: Iterable[NDArray[np.uint8]],
    width: int,
    height: int,
) -> None:
    count = 0
    for frame in frames:
        if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
            raise ValueError(
                f"frame {count} is {frame.dtype} of shape {frame.shape}, "
                f"not uint8 of shape {(height, width, 3)}"
            )
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        try:
            child.write(even.data.cast("B"))
        except BrokenPipeError:  # the exit status and stderr say why
            break
        count += 1
    if child.finish(FINISH_SECONDS):
        reason = child.reason().replace(str(temporary), target.name) or "it was killed"
        raise UserError(
            f"{display_name(target)} cannot be written: check the folder and its free space "
            f"(ffmpeg: {reason})"
        )
    if not count:
        raise ValueError("a video needs at least one frame")


def _raw_input(width: int, height: int, frame_rate: Fraction) -> Any:
    rate = frame_rate.limit_denominator(1001 * 100)
    return ffmpeg.input(
        "pipe:",
        f="rawvideo",
        pix_fmt="rgb24",
        video_size=(width + width % 2, height + height % 2),
        framerate=f"{rate.numerator}/{rate.denominator}",
    )


def _command(
    temporary: Path,
    inputs: Sequence[Any],
    filters: int,
    timing: Timing | None,
    sound: Sound | None,
) -> list[str]:
    options: dict[str, Any] = {}
    if timing is not None:
        base = f"{timing.time_base.numerator}/{timing.time_base.denominator}"
        options |= {"fps_mode": "passthrough", "enc_time_base": base}
    if sound is not None:
        options |= {"acodec": "aac", "audio_bitrate": "160k", "af": sound.filters}
    output = ffmpeg.output(
        *inputs,
        f"file:{temporary}",
        f="mp4",
        vcodec="libx264",
        preset="veryfast",
        crf=21,
        threads=THREADS,
        colorspace="bt709",
        color_primaries="bt709",
        color_trc="bt709",
        color_range="tv",
        movflags="+faststart",
        fflags="+bitexact",
        **{"/filter:v": f"/dev/fd/{filters}", "x264-params": _REPEATABLE},
        **options,
    )
    return command(output)


def _filters(timing: Timing | None, pixel_aspect: Fraction) -> str:
    """What is done to the frames; long where each has a time of its own, so it goes as a file."""
    # Players take HD for BT.709 and SD for BT.601 when nothing is said, so it is said.
    to_yuv = (
        "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd,format=yuv420p,"
        "setparams=color_primaries=bt709:color_trc=bt709,"
        f"setsar={pixel_aspect.numerator}/{pixel_aspect.denominator}"
    )
    if timing is None:
        return to_yuv
    base = f"{timing.time_base.numerator}/{timing.time_base.denominator}"
    times = _tree(list(_runs(timing.pts)))
    return f"settb={base},setpts='{times}',{to_yuv}"


def _runs(pts: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(number of the first frame, its pts, step) of each run of frames that are as far apart."""
    steps = [after - before for before, after in pairwise(pts)]
    number = 0
    for step, run in groupby(steps):
        yield number, pts[number], step
        number += len(list(run))
    if not steps:
        yield 0, pts[0], 1


def _tree(runs: Sequence[tuple[int, int, int]]) -> str:
    """An ffmpeg expression for the pts of frame N: a search tree over the runs."""
    if len(runs) == 1:
        number, pts, step = runs[0]
        return f"{pts}+(N-{number})*{step}"
    middle = len(runs) // 2
    return f"if(lt(N,{runs[middle][0]}),{_tree(runs[:middle])},{_tree(runs[middle:])})"
