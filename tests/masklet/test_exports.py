"""Every output against masks that are known because the test put them into the store."""

import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from masklet.exports import (
    _in_order,
    bounding_box,
    confidence,
    write_bbox_tracking,
    write_debug_video,
    write_masks,
    write_pixel_confidences,
)
from masklet.media import probe, read_frames
from masklet.plan import ObjectPlan, Plan
from masklet.store import MaskletRow, MaskletWriter, object_folder, upsample
from tests.conftest import HEIGHT, WIDTH, picture

TIMELINE = (2, 4, 5, 6)


def logits_of(frame_index: int, object_id: int | str) -> np.ndarray[Any, Any]:
    """A square that moves right for object 1, and nothing for the other."""
    logits = np.full((24, 40), -4 if object_id == 1 else -1024, np.float32)
    if object_id == 1:
        logits[5:10, frame_index : frame_index + 6] = 3
    return logits


@pytest.fixture
def plan(clip: Path, tmp_path: Path) -> Plan:
    for object_id in (1, "gone"):
        writer = MaskletWriter(object_folder(tmp_path / "masklets", object_id), object_id)
        for frame_index in TIMELINE:
            writer.add(MaskletRow(frame_index, 1.0, logits_of(frame_index, object_id)))
        writer.flush()
    objects = tuple(ObjectPlan(object_id, {2: None}) for object_id in (1, "gone"))  # type: ignore[dict-item]  # prompts are not needed here
    return Plan(probe(clip), TIMELINE, objects, "forward")


class Counter:
    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, steps: int) -> None:
        self.steps += steps


def pictures(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for name in archive.namelist():
            image = Image.open(io.BytesIO(archive.read(name)))
            assert (image.mode, image.size, image.format) == ("L", (WIDTH, HEIGHT), "PNG")
            found[name] = np.asarray(image)
    return found


def test_masks(plan: Plan, tmp_path: Path) -> None:
    counter = Counter()
    path = tmp_path / "masks.zip"
    assert write_masks(plan, tmp_path / "masklets", path, counter) == 8
    found = pictures(path)
    assert list(found) == [f"{index}_{one}.png" for index in TIMELINE for one in (1, "gone")]
    for frame_index in TIMELINE:
        full = upsample(logits_of(frame_index, 1), HEIGHT, WIDTH)
        assert np.array_equal(found[f"{frame_index}_1.png"], np.where(full > 0, 255, 0))
        assert not found[f"{frame_index}_gone.png"].any()
    assert counter.steps == len(TIMELINE)


def test_confidences(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "pixel_confidences.zip"
    assert write_pixel_confidences(plan, tmp_path / "masklets", path, Counter()) == 8
    found = pictures(path)
    full = upsample(logits_of(4, 1), HEIGHT, WIDTH).astype(np.float64)
    expected = np.round(255 / (1 + np.exp(-full)))
    assert np.abs(found["4_1.png"] - expected).max() <= 1
    assert not found["4_gone.png"].any()


def test_confidence_covers_the_whole_range() -> None:
    assert confidence(np.float32([[-1024, -1, 0, 1, 1024]])).tolist() == [[0, 69, 128, 186, 255]]


def test_boxes(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "bbox_tracking.json"
    assert write_bbox_tracking(plan, tmp_path / "masklets", path, Counter()) == len(TIMELINE)
    boxes = json.loads(path.read_text())
    assert list(boxes) == [str(index) for index in TIMELINE]
    for frame_index in TIMELINE:
        [box] = boxes[str(frame_index)]
        rows, columns = np.nonzero(upsample(logits_of(frame_index, 1), HEIGHT, WIDTH) > 0)
        assert box == {
            "frame_index": frame_index,
            "object_id": 1,
            "bbox": [columns.min(), rows.min(), columns.max(), rows.max()],
            "timestep": round(frame_index / 10, 3),
        }


def test_a_box_has_both_edges_inside_the_mask() -> None:
    mask = np.zeros((10, 20), bool)
    assert bounding_box(mask) is None
    mask[3, 7] = True
    assert bounding_box(mask) == [7, 3, 7, 3]
    mask[9, 19] = True
    assert bounding_box(mask) == [7, 3, 19, 9]


def test_the_debug_video_shows_the_source_under_the_masks(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "debug_masks.mp4"
    assert write_debug_video(plan, tmp_path / "masklets", path, Counter()) == len(TIMELINE)
    video = probe(path)
    assert (video.width, video.height, video.num_frames) == (WIDTH, HEIGHT, len(TIMELINE))
    # 4 frames over 0.4 s of the source, from frame 2 to frame 6
    assert video.frame_rate == pytest.approx(Fraction(30, 4), rel=1e-3)
    _, frame = next(iter(read_frames(video, [0])))
    plain = picture(2).astype(int)
    assert np.abs(frame[70:, 100:] - plain[70:, 100:]).mean() < 12
    inside = upsample(logits_of(2, 1), HEIGHT, WIDTH) > 2
    assert np.abs(frame[inside] - plain[inside]).mean() > 25


def test_the_same_masklets_are_the_same_bytes(plan: Plan, tmp_path: Path) -> None:
    for write in (write_masks, write_pixel_confidences, write_bbox_tracking):
        first, second = tmp_path / "first", tmp_path / "second"
        for path in (first, second):
            write(plan, tmp_path / "masklets", path, Counter())
        assert first.read_bytes() == second.read_bytes()


def test_exports_at_once_leave_torch_its_threads() -> None:
    """The second one begins while the first one's workers have one thread each."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    exports = [_in_order(lambda item: item, range(100)) for _ in range(2)]
    try:
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
            for pool, export in zip((one, other), exports, strict=True):
                pool.submit(next, export).result()
            for pool, export in zip((one, other), exports, strict=True):
                pool.submit(export.close).result()
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


def test_a_failure_leaves_what_was_there(plan: Plan, tmp_path: Path) -> None:
    part = next(object_folder(tmp_path / "masklets", "gone").iterdir())
    part.write_bytes(b"damaged")
    path = tmp_path / "masks.zip"
    path.write_bytes(b"old")
    with pytest.raises(Exception, match="Parquet"):
        write_masks(plan, tmp_path / "masklets", path, Counter())
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["masklets", "masks.zip"]
