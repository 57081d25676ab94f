"""The library's whole contact with ffmpeg: what a video holds, its frames, a new video."""

from masklet.media.decode import read_frames
from masklet.media.encode import write_video
from masklet.media.probe import Source, probe

__all__ = ["Source", "probe", "read_frames", "write_video"]
