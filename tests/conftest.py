"""What several tests share: a small clip with a known object, and the bundled model."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base

from masklet.media import write_video
from masklet.models import find_model, load_model

WIDTH, HEIGHT, FRAMES = 160, 96, 20


def disc(frame_index: int, speed: float = 3.0) -> NDArray[np.bool_]:
    """Where the clip's disc is, (96, 160) bool."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.asarray((x - 40 - speed * frame_index) ** 2 + (y - 45) ** 2 < 22**2)


def picture(frame_index: int, speed: float = 3.0) -> NDArray[np.uint8]:
    """A red disc that moves to the right over a smooth blue and green ground, (96, 160, 3)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    ground = np.stack([40 + 0 * x, 60 + 60 * y / HEIGHT, 120 + 80 * np.sin(x / 20)], axis=2)
    shade = 230 - 60 * ((x - 40 - speed * frame_index) ** 2 + (y - 45) ** 2) / 22**2
    red = np.stack([shade, shade / 5, shade / 6], axis=2)
    return np.where(disc(frame_index, speed)[..., None], red, ground).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An mp4 of 20 frames of 160x96 pixels at 10 frames per second."""
    path = tmp_path_factory.mktemp("clip") / "disc.mp4"
    frames = (picture(frame_index) for frame_index in range(FRAMES))
    write_video(path, frames, width=WIDTH, height=HEIGHT, frame_rate=Fraction(10))
    return path


@pytest.fixture(scope="session")
def job_fields(clip: Path) -> dict[str, Any]:
    """A job with two objects: one click on the disc, and a box on its surroundings later on."""
    return {
        "file": str(clip),
        "model_type": "nano",
        "prompts": [
            {"frame_index": 0, "object_id": 1, "points": [[40, 45]], "labels": [1]},
            {"frame_index": 4, "object_id": "wide", "box": [20, 10, 120, 90]},
        ],
    }


@pytest.fixture(scope="session")
def nano() -> SAM2Base:
    """The bundled model on the CPU."""
    return load_model(find_model("nano"))
