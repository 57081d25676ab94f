"""What a video holds, its frames, a new video; the library's whole contact with ffmpeg."""

from masklet.media.decode import read_frames
from masklet.media.encode import Timing, write_video
from masklet.media.image import ImageSource
from masklet.media.images import AnimationSource, ImagesSource, image_names, probe_images
from masklet.media.probe import Source, probe
from masklet.media.process import display_name
from masklet.media.sound import sound_of
from masklet.media.source import Transfer

__all__ = [
    "AnimationSource",
    "ImageSource",
    "ImagesSource",
    "Source",
    "Timing",
    "Transfer",
    "display_name",
    "image_names",
    "probe",
    "probe_images",
    "read_frames",
    "sound_of",
    "write_video",
]
