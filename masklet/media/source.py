"""What there is to know of a source."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeAlias

Transfer: TypeAlias = Literal["sdr", "pq", "hlg"]
"""How values become light; of the two of high dynamic range, BT.2100 has both."""


@dataclass(frozen=True)
class Source:
    """A video file and the table of its frames.

    `width` and `height` are the pixels of the first frame as displayed: after rotation metadata,
    with non-square pixels left as they are stored. `pts` is strictly increasing and indexed by
    `frame_index`; a frame with the same time as the one before it is never shown, and is not
    counted. `frame_rate` is the average, 1 for a single frame.
    """

    path: Path
    sha256: str
    width: int
    height: int
    time_base: Fraction
    pts: tuple[int, ...]
    frame_rate: Fraction
    seekable: bool = True
    """Whether a seek arrives at frames with the same pts as decoding from the start."""
    pixel_aspect: Fraction = Fraction(1)
    """The width of a pixel by its height, as displayed."""
    transfer: Transfer = "sdr"
    damage: str = ""
    """What ffmpeg complained of in the file; '' if nothing. The frames are those it found."""

    @property
    def num_frames(self) -> int:
        return len(self.pts)

    def timestep(self, frame_index: int) -> float:
        """Seconds from the first frame to this one."""
        return float((self.pts[frame_index] - self.pts[0]) * self.time_base)
