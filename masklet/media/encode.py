"""Write a video that every browser plays."""

import subprocess
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import ffmpeg
import numpy as np
from numpy.typing import NDArray

from masklet.atomic import replacing
from masklet.errors import UserError
from masklet.media.process import THREADS, Child, command, display_name, reported

FINISH_SECONDS = 1800.0
"""For moving the index of a finished file to its front, which copies the file once."""


def write_video(
    path: str | Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    width: int,
    height: int,
    frame_rate: Fraction,
) -> None:
    """Encode RGB frames, uint8 of shape (height, width, 3), as H.264 yuv420p in an mp4 file.

    That format has even sizes only: the last column or row of an odd frame is repeated. The file
    appears under `path` complete or not at all, and replaces what was there.

    Raises ValueError for no frame, a frame of another shape or dtype, or a frame rate that is not
    positive; UserError when the file cannot be written.
    """
    if width < 1 or height < 1 or frame_rate <= 0:
        raise ValueError(f"cannot write {width}x{height} pixels at {frame_rate} frames per second")
    target = Path(path).absolute()
    with replacing(target) as temporary, reported(target):
        _encode(target, temporary, frames, width, height, frame_rate)


def _encode(
    target: Path,
    temporary: Path,
    frames: Iterable[NDArray[np.uint8]],
    width: int,
    height: int,
    frame_rate: Fraction,
) -> None:
    arguments = _command(temporary, width + width % 2, height + height % 2, frame_rate)
    count = 0
    with Child(arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
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


def _command(temporary: Path, width: int, height: int, frame_rate: Fraction) -> list[str]:
    rate = frame_rate.limit_denominator(1001 * 100)
    raw = ffmpeg.input(
        "pipe:",
        f="rawvideo",
        pix_fmt="rgb24",
        video_size=(width, height),
        framerate=f"{rate.numerator}/{rate.denominator}",
    )
    output = ffmpeg.output(
        raw,
        f"file:{temporary}",
        f="mp4",
        vcodec="libx264",
        preset="veryfast",
        crf=20,
        threads=THREADS,
        # Players take HD for BT.709 and SD for BT.601 when nothing is said, so it is said.
        vf="scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd,format=yuv420p",
        colorspace="bt709",
        color_primaries="bt709",
        color_trc="bt709",
        color_range="tv",
        movflags="+faststart",
        fflags="+bitexact",
    )
    return command(output)
