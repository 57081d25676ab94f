"""The sound of a source, for the video that is made of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import ffmpeg

from masklet.errors import UserError
from masklet.media.images import AnimationSource, ImagesSource
from masklet.media.process import CONTAINERS, Child, Stalled, command, opened
from masklet.media.source import Source

SECONDS = 60.0
"""For finding out whether there is any."""

_SEEK_BACK = 1.0
_LAYOUTS = "mono|stereo|3.0|4.0|quad|5.0|5.0(side)|5.1|5.1(side)|6.1|7.1|7.1(wide)"


@dataclass(frozen=True)
class Sound:
    """The first sound track of a file, from `start` to `end`: seconds in the file's own time."""

    path: Path
    start: Fraction
    end: Fraction

    @property
    def filters(self) -> str:
        """Cuts it and lets it begin at 0, with silence where it begins later than that.

        Where AAC has no such channels they are mixed down.
        """
        start, end = float(self.start), float(self.end)
        cut = f"atrim=start={start:.6f}:end={end:.6f},asetpts=PTS-{start:.6f}/TB"
        return f"{cut},aresample=async=1:first_pts=0,aformat=channel_layouts={_LAYOUTS}"


def sound_of(source: Source, frame_indices: Sequence[int]) -> Sound | None:
    """What is heard while these frames are shown; None if nothing can be decoded of it."""
    if isinstance(source, ImagesSource | AnimationSource):
        return None
    first, last = frame_indices[0], frame_indices[-1]
    start = source.pts[first] * source.time_base
    after = last + 1 < source.num_frames
    end = source.pts[last + 1] * source.time_base if after else _end_of(source)
    sound = Sound(source.path, start, end)
    return sound if _is_heard(sound) else None


def sound_input(sound: Sound, fd: int) -> Any:
    """The track as an input of ffmpeg, from an open descriptor of its own."""
    options: dict[str, Any] = {}
    if sound.start > _SEEK_BACK:
        seconds = float(sound.start) - _SEEK_BACK
        options = {"ss": f"{seconds:.6f}", "seek_timestamp": 1, "noaccurate_seek": None}
    return ffmpeg.input(
        "fd:",
        fd=fd,
        protocol_whitelist="fd",
        format_whitelist=",".join(CONTAINERS),
        **options,
    )["a:0"]


def _end_of(source: Source) -> Fraction:
    return source.pts[-1] * source.time_base + 1 / source.frame_rate


def _is_heard(sound: Sound) -> bool:
    try:
        with opened(sound.path) as file:
            stream = sound_input(sound, file.fileno())
            output = ffmpeg.output(
                stream, "pipe:", f="framecrc", af=sound.filters, **{"frames:a": 1}
            )
            fds = (file.fileno(),)
            with Child(command(output), stdin=file, pass_fds=fds, limit=SECONDS) as child:
                return any(not line.startswith("#") for line in child.lines(child.stdout))
    except (Stalled, UserError):
        return False
