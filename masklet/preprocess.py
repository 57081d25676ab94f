"""What the image encoder takes: pictures as SAM 2 was trained on, and as upstream prepares them.

Upstream resamples the frames of a video and single images in two ways, and so does this.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def preprocess(frame: NDArray[np.uint8], image_size: int) -> Tensor:
    """Stretch an RGB frame (H, W, 3) to (3, image_size, image_size) float32, normalized.

    The same pixels as `sam2.utils.misc.load_video_frames` makes of a folder of pictures.
    """
    return normalize(stretch(frame, image_size))


def stretch(frame: NDArray[np.uint8], image_size: int) -> Tensor:
    """The half of `preprocess` that takes the time: (3, image_size, image_size) uint8.

    Several threads can do it at once. A quarter of the bytes of what `normalize` makes of it, it is
    also what should travel to a GPU.
    """
    resized = Image.fromarray(frame).resize((image_size, image_size), Image.Resampling.BICUBIC)
    # not by torch, which would start a team of threads of its own in a thread that reads ahead
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(resized), 2, 0)))


def normalize(image: Tensor) -> Tensor:
    """The other half: (..., 3, h, w) uint8 to float32, on the same device."""
    return _normalized(image.float().div_(255))


def preprocess_image(image: NDArray[np.uint8], image_size: int) -> Tensor:
    """Stretch an RGB image (H, W, 3) to (3, image_size, image_size) float32, normalized.

    As SAM2ImagePredictor does it: bilinear and antialiased, where a video's frames are bicubic.
    """
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    size = (image_size, image_size)
    return _normalized(
        F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)[0]
    )


def _normalized(pixels: Tensor) -> Tensor:
    """In place; levels are from 0 to 1."""
    mean, std = _statistics(pixels.device)
    return pixels.sub_(mean).div_(std)


@lru_cache(maxsize=4)
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, device=device) for values in (_MEAN, _STD))
    return mean[:, None, None], std[:, None, None]
