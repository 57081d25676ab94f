"""What a video holds, its frames, a new video; the library's whole contact with ffmpeg."""

from masklet.media.decode import read_frames
from masklet.media.encode import Timing, write_video
from masklet.media.image import ImageSource
from masklet.media.pictures import PictureSource, probe_pictures
from masklet.media.probe import Source, probe
from masklet.media.process import display_name
from masklet.media.sound import sound_of
from masklet.media.source import Transfer

__all__ = [
    "ImageSource",
    "PictureSource",
    "Source",
    "Timing",
    "Transfer",
    "display_name",
    "probe",
    "probe_pictures",
    "read_frames",
    "sound_of",
    "write_video",
]
