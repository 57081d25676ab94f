import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from demo.report import IoUSummary, mean_iou, report
from masklet.errors import UserError

OBJECT_IDS = [1, "kite"]


def png(pixels) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def write(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def square(left: int, value: int = 1) -> np.ndarray:
    pixels = np.zeros((10, 20), np.uint8)
    pixels[2:6, left : left + 4] = value
    return pixels


@pytest.fixture
def clip(tmp_path):
    """Object 1 stands still; the kite is seen on the first of three frames only."""
    labels = [square(1) + square(10, 2), square(1), square(1)]
    members = {f"{index}.png": png(frame) for index, frame in enumerate(labels)}
    write(tmp_path / "truth.zip", {"objects.json": json.dumps(OBJECT_IDS).encode(), **members})
    prompts = [
        {"frame_index": 0, "object_id": 1, "points": [[2, 3], [11, 3]], "labels": [1, 0]},
        {"frame_index": 2, "object_id": 1, "box": [1, 2, 4, 5]},
    ]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    write(tmp_path / "mask_prompts.zip", {"0_kite.png": png(square(10, 255))})
    return tmp_path


@pytest.fixture
def masks():
    return {
        "0_1.png": png(square(1, 255)),
        "1_1.png": png(square(3, 255)),
        "2_1.png": png(square(1, 255)),
        "0_kite.png": png(square(10, 255)),
        "1_kite.png": png(square(10, 0)),
        "2_kite.png": png(square(10, 255)),
    }


def test_mean_iou_is_over_the_frames_on_which_an_object_is_seen(clip, masks):
    scores = mean_iou(write(clip / "masks.zip", masks), clip / "truth.zip")
    shifted_by_half = 8 / 24
    assert scores[1] == IoUSummary(pytest.approx((2 + shifted_by_half) / 3), 3, None, 0)
    assert scores["kite"] == IoUSummary(1.0, 1, 0.5, 2)


def test_members_that_the_truth_does_not_expect_are_not_read(clip, masks):
    masks["0_other.png"] = b"no picture"
    assert set(mean_iou(write(clip / "masks.zip", masks), clip / "truth.zip")) == set(OBJECT_IDS)


def test_a_missing_mask_is_named(clip, masks):
    del masks["1_kite.png"]
    with pytest.raises(UserError, match=r"masks\.zip: has no 1_kite\.png"):
        mean_iou(write(clip / "masks.zip", masks), clip / "truth.zip")


def test_a_mask_of_another_size_is_named(clip, masks):
    masks["0_1.png"] = png(np.zeros((5, 7), np.uint8))
    with pytest.raises(UserError, match=r"0_1\.png is 7x5, not 20x10"):
        mean_iou(write(clip / "masks.zip", masks), clip / "truth.zip")


def test_the_report_names_outputs_prompts_scores_and_where_to_look_first(clip, masks, monkeypatch):
    monkeypatch.chdir(clip)
    write(clip / "masks.zip", masks)
    (clip / "contact_sheet.png").write_bytes(png(square(1)))
    (clip / "bbox_tracking.json").write_text(json.dumps({"0": [{}, {}], "1": [{}]}))
    (clip / "price.json").write_text(json.dumps({"price": 0.02}))
    (clip / "masklets").mkdir()
    (clip / "masklets" / "one.parquet").write_bytes(b"12345")
    names = ("masks.zip", "bbox_tracking.json", "price.json", "masklets", "contact_sheet.png")
    outputs = {Path(name).stem: str(clip / name) for name in names}
    summary = {"frames": 3, "width": 20, "height": 10, "frames_per_second": 14.24, "price": 0.0144}
    console = Console(file=io.StringIO(), width=120)
    report({**outputs, "summary": summary}, clip, clip / "contact_sheet.png", console)
    text = console.file.getvalue()
    for part in (
        "masks.zip",
        "6 pictures",
        "3 boxes",
        "1 file",
        "5 B",
        "2 clicks on frame 0, box on frame 2",
        "mask on frame 0",
        "0.778",
        "50% of 2",
        "14.2 frames per second, price $0.0144",
        "look first at contact_sheet.png",
    ):
        assert part in text
    assert str(clip) not in text
