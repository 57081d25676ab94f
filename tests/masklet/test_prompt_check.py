"""`masklet prompts check` and `masklet schema`: prompts looked at without a model."""

import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from masklet import models
from masklet.cli import main
from masklet.job import job_schema, make_job
from masklet.media import probe, read_frames
from masklet.overlay import colours_of
from masklet.plan import plan_job
from masklet.prompt_marks import draw_prompts, prompts_on
from tests.conftest import disc, picture

CLICK: dict[str, Any] = {
    "frame_index": 0,
    "object_id": 1,
    "points": [[40, 45], [9, 9]],
    "labels": [1, 0],
}
BOX: dict[str, Any] = {"frame_index": 4, "object_id": "wide", "box": [20, 10, 120, 90]}

Masklet = Callable[..., tuple[int, str, str]]


@pytest.fixture
def masklet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Masklet:
    """Call `masklet ARGUMENTS` in `tmp_path`; no model may be loaded."""
    monkeypatch.chdir(tmp_path)

    def no_model(*_: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(models, "load_model", no_model)

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["masklet", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return call


def test_prompts_are_drawn_on_their_frames(masklet: Masklet, tmp_path: Path, clip: Path) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([CLICK, BOX]))
    code, out, err = masklet("prompts", "check", prompts, clip, "--out", "seen")
    assert (code, err) == (0, "")
    assert out.splitlines() == ["seen/0.png", "seen/4.png"]
    source = probe(clip)
    plan = plan_job(make_job({"file": str(clip), "prompts": [CLICK, BOX]}), source)
    for frame_index, frame in read_frames(source, [0, 4]):
        said = prompts_on(plan.objects, frame_index)
        drawn = draw_prompts(frame, said, colours_of(plan.object_ids))
        found = np.asarray(Image.open(tmp_path / "seen" / f"{frame_index}.png"))
        np.testing.assert_array_equal(found, drawn)
        assert (found != frame).any()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        *("0.png", "4.png", "prompts.json", "seen")
    ]


def test_a_zip_of_masks_and_an_image(masklet: Masklet, tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "photo.png")
    buffer = io.BytesIO()
    Image.fromarray(disc(0)).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "masks.zip", "w") as archive:
        archive.writestr("0_a.png", buffer.getvalue())
    code, out, _ = masklet("prompts", "check", "masks.zip", "photo.png")
    assert (code, out) == (0, "prompts_check/0.png\n")
    found = np.asarray(Image.open(tmp_path / "prompts_check" / "0.png"))
    # inside of the disc, and far from it
    assert (found[45, 40] != picture(0)[45, 40]).any()
    np.testing.assert_array_equal(found[90:], picture(0)[90:])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({**CLICK, "frame_index": 20}, "prompts[1] (frame 20, object 1): there is no frame 20"),
        ({**CLICK, "points": [[160, 1]], "labels": [1]}, "the point (160, 1) is outside"),
        ({**BOX, "box": [90, 50, 40, 30]}, "its corners would be [90.0, 50.0, 130.0, 80.0]"),
        ({**BOX, "box": [0, 0, 161, 30]}, "with x from 0 to 160 and y from 0 to 96"),
    ],
)
def test_wrong_prompts_are_one_line_and_nothing_is_written(
    prompt: dict[str, Any], words: str, masklet: Masklet, tmp_path: Path, clip: Path
) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([CLICK, prompt]))
    code, out, err = masklet("prompts", "check", prompts, clip)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [prompts]


def test_pictures_do_not_take_the_place_of_the_source(masklet: Masklet, tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps([CLICK]))
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(2):
        Image.fromarray(picture(index)).save(frames / f"{index}.png")
    (tmp_path / "link").symlink_to(frames)
    before = {path.name: path.read_bytes() for path in frames.iterdir()}
    for source, out in ((frames, "frames"), (frames, "link"), (frames / "0.png", "frames")):
        code, _, err = masklet("prompts", "check", "prompts.json", source, "--out", out)
        assert code == 2
        assert "is in the place of the source" in err
        assert len(err.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in frames.iterdir()} == before


def test_the_schema_of_a_job(masklet: Masklet) -> None:
    code, out, err = masklet("schema")
    assert (code, err) == (0, "")
    schema = json.loads(out)
    assert schema == job_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    accepts = jsonschema.Draft202012Validator(schema).is_valid
    assert accepts({"file": "a.mp4", "prompts": [CLICK, BOX], "direction": "both"})
    assert accepts({"file": "a.mp4", "prompts": "prompts.json"})
    assert schema["properties"]["preview"]["description"]
    for wrong in (
        {},
        {"file": "a.mp4", "bogus": 1},
        {"file": "a.mp4", "direction": "up"},
        {"file": "a.mp4", "prompts": 5},
        {"file": "a.mp4", "prompts": [{**CLICK, "labels": [2, 1]}]},
        {"file": "a.mp4", "prompts": [{**BOX, "box": [1, 2, 3]}]},
    ):
        assert not accepts(wrong), wrong
