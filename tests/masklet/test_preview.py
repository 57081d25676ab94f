"""A preview: the masks of a full run on the prompted frames, drawn, without the frames between."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

import masklet
from masklet.errors import UserError
from masklet.job import make_job
from masklet.media import probe, read_frames
from masklet.overlay import colours_of, overlay
from masklet.pipeline import check_prompts, dry_run, run_job
from masklet.prompt_marks import draw_prompts, prompts_on
from masklet.standings import CHECKPOINT
from masklet.status import State, read_status
from tests.conftest import disc
from tests.masklet.conftest import ALL_OUTPUTS, BOX, CLICK, Eye, contents_of, files_of

# the files that say what was asked for last
NOTES = {"outputs.json", "price.json", "manifest.parquet"}


def picture(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def full_masks(out: Path, frame_index: int, object_ids: list[Any]) -> dict[Any, NDArray[np.bool_]]:
    with zipfile.ZipFile(out / "masks.zip") as archive:
        contents = {one: archive.read(f"{frame_index}_{one}.png") for one in object_ids}
    return {one: np.asarray(Image.open(io.BytesIO(png))) > 0 for one, png in contents.items()}


def expected(fields: dict[str, Any], out: Path) -> dict[str, NDArray[np.uint8]]:
    """The pictures that the masks of the full run in `out` would give."""
    source = probe(fields["file"])
    plan = check_prompts(make_job(fields), source)
    colours = colours_of(plan.object_ids)
    pictures = {}
    for frame_index, frame in read_frames(source, plan.prompted):
        said = prompts_on(plan.objects, frame_index)
        masks = full_masks(out, frame_index, list(said))
        named = [one for one, mask in masks.items() if mask.any()]
        drawn = draw_prompts(overlay(frame, masks, colours), said, colours, named)
        pictures[f"{frame_index}.png"] = drawn
    return pictures


def assert_pictures(out: Path, pictures: dict[str, NDArray[np.uint8]]) -> None:
    assert {path.name for path in (out / "preview").iterdir()} == set(pictures)
    for name, drawn in pictures.items():
        np.testing.assert_array_equal(picture(out / "preview" / name), drawn)


def test_the_masks_are_those_of_the_full_run(
    fields: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    run_job(make_job(fields | {"preview": True}), tmp_path / "out")
    pictures = expected(fields, finished)
    assert set(pictures) == {"0.png", "2.png"}
    assert full_masks(finished, 0, [1])[1].any(), "there is nothing to compare"
    assert_pictures(tmp_path / "out", pictures)


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_every_kind_of_prompt_in_every_direction(
    direction: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(disc(1)).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "prompts.zip", "w") as archive:
        archive.writestr("1_1.png", buffer.getvalue())
    more = [
        {"frame_index": 1, "object_id": 1, "points": [[43, 45], [120, 20]], "labels": [1, 0]},
        {"frame_index": 2, "object_id": "wide", "points": [[60, 40]], "labels": [1]},
        {"frame_index": 2, "object_id": 1, "points": [[46, 45]], "labels": [1]},
    ]
    fields = (
        fields
        | dict.fromkeys(ALL_OUTPUTS, False)
        | {
            "prompts": [CLICK, BOX, *more],
            "mask_prompts": str(tmp_path / "prompts.zip"),
            "direction": direction,
            "frame_interval": 3,
        }
    )
    run_job(make_job(fields), tmp_path / "full")
    run_job(make_job(fields | {"preview": True}), tmp_path / "out")
    assert_pictures(tmp_path / "out", expected(fields, tmp_path / "full"))


def test_what_a_preview_leaves(fields: dict[str, Any], tmp_path: Path, eye: Eye) -> None:
    given = {name: value for name, value in fields.items() if name != "file"}
    out = tmp_path / "out"
    returned = masklet.segment(fields["file"], out=out, preview=True, **given)
    assert isinstance(returned, tuple)
    first, outputs = returned
    assert first == outputs["preview"] == str(out / "preview" / "0.png")
    assert list(outputs) == ["preview", "previews", "price", "manifest"]
    listed = json.loads((out / "outputs.json").read_text())
    assert listed["preview"] == "preview/0.png"
    assert listed["previews"] == "preview"
    assert (listed["summary"]["frames"], listed["summary"]["objects"]) == (2, [1, "wide"])
    assert json.loads((out / "price.json").read_text())["total"] == 0.01
    assert contents_of(out).keys() == {
        *("preview/0.png", "preview/2.png", "outputs.json", "price.json", "frames.parquet")
    }
    # two frames encoded and two prompts answered, and no frame tracked
    assert eye.model_calls == 4
    assert not (out / ".tracking").exists()


def test_the_first_picture_is_of_the_first_prompted_frame(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    fields = fields | {"prompts": [BOX, {**BOX, "frame_index": 1}], "preview": True}
    outputs = run_job(make_job(fields), tmp_path / "out")
    assert outputs.files["preview"] == str(tmp_path / "out" / "preview" / "1.png")


def test_a_preview_again_makes_nothing_and_other_prompts_make_it_anew(
    fields: dict[str, Any], tmp_path: Path, eye: Eye
) -> None:
    fields, out = fields | {"preview": True}, tmp_path / "out"
    run_job(make_job(fields), out)
    before = files_of(out)
    eye.forget()
    run_job(make_job(fields), out)
    assert files_of(out) == before
    # the frames between the prompts are not in the pictures
    other_frames = {"end_frame": 3, "frame_interval": 2, "direction": "both", "debug_masks": False}
    outputs = run_job(make_job(fields | other_frames), out)
    assert [one.artifact for one in outputs.artifacts if one.reason] == ["job"]
    assert eye.saw_nothing()
    outputs = run_job(make_job(fields | {"prompts": [CLICK]}), out)
    assert {one.artifact: one.reason for one in outputs.artifacts}["preview"] == (
        "parameters changed"
    )
    assert {path.name for path in (out / "preview").iterdir()} == {"0.png"}


def test_a_folder_of_somebody_else_is_kept(fields: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "preview").mkdir()
    (tmp_path / "preview" / "thesis.txt").write_text("years")
    (tmp_path / ".editor.tmp").write_text("unsaved")
    job = make_job({**fields, "preview": True})
    with pytest.raises(UserError, match=r"thesis\.txt: is not of a preview"):
        run_job(job, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"preview", ".editor.tmp"}
    (tmp_path / "preview" / "thesis.txt").rename(tmp_path / "thesis.txt")
    run_job(job, tmp_path)
    assert (tmp_path / ".editor.tmp").read_text() == "unsaved"


def test_a_lost_picture_makes_the_preview_again(fields: dict[str, Any], tmp_path: Path) -> None:
    fields, out = fields | {"preview": True}, tmp_path / "out"
    run_job(make_job(fields), out)
    before = contents_of(out)
    (out / "preview" / "2.png").unlink()
    assert {one.artifact: one.state for one in read_status(out).artifacts}["preview"] == (
        State.DAMAGED
    )
    run_job(make_job(fields), out)
    assert contents_of(out) == before


def test_a_preview_leaves_a_full_run_as_it_is(fields: dict[str, Any], out: Path, eye: Eye) -> None:
    before = files_of(out)
    # other prompts, and even an object less
    tried = fields | {"prompts": [{**CLICK, "points": [[50, 45]]}], "keep_masklets": False}
    run_job(make_job(tried | {"preview": True}), out)
    after = files_of(out)
    changed = {name for name in before if before[name] != after.get(name)}
    assert changed == NOTES
    assert after.keys() - before.keys() == {"preview/0.png"}
    eye.forget()
    run_job(make_job(fields), out)
    assert eye.saw_nothing()
    again = files_of(out)
    assert {name for name in before if before[name] != again[name]} <= NOTES
    assert again["preview/0.png"] == after["preview/0.png"]
    assert {name: file.sha256 for name, file in before.items() if name != "manifest.parquet"} == {
        name: sha256 for name, sha256 in contents_of(out).items() if name in before
    }
    run_job(make_job(tried | {"preview": True}), out)
    assert eye.saw_nothing()


def test_a_full_run_that_was_killed_goes_on_after_a_preview(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    kept = tmp_path / "out" / ".tracking" / CHECKPOINT
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"where it stood")
    run_job(make_job(fields | {"preview": True}), tmp_path / "out")
    assert kept.read_bytes() == b"where it stood"
    assert [path.name for path in kept.parent.iterdir()] == [CHECKPOINT]


def test_status_and_dry_run_know_a_preview(fields: dict[str, Any], out: Path) -> None:
    preview = make_job(fields | {"preview": True})
    before = files_of(out)
    planned = {one.artifact: (one.action, one.why) for one in dry_run(preview, out)}
    assert planned["preview"] == ("make", "new")
    assert planned.keys() == {"frames.parquet", "job", "preview", "price.json", "outputs.json"}
    assert files_of(out) == before
    run_job(preview, out)
    assert {one.action for one in dry_run(preview, out)} == {"reuse"}
    status = read_status(out)
    assert status.is_right
    states = {one.artifact: one.state for one in status.artifacts}
    assert states["preview"] == State.DONE
    assert states["masks.zip"] == states["wide"] == State.APART
    planned = {one.artifact: (one.action, one.why) for one in dry_run(make_job(fields), out)}
    assert {name for name, (action, _) in planned.items() if action != "reuse"} == {
        *("job", "price.json", "outputs.json")
    }
    run_job(make_job(fields), out)
    status = read_status(out)
    assert status.is_right
    states = {one.artifact: one.state for one in status.artifacts}
    assert (states["preview"], states["masks.zip"]) == (State.APART, State.DONE)


def test_a_forced_preview(fields: dict[str, Any], tmp_path: Path) -> None:
    preview, out = make_job(fields | {"preview": True}), tmp_path / "out"
    run_job(preview, out)
    outputs = run_job(preview, out, force="preview")
    assert [one.artifact for one in outputs.artifacts if one.reason] == ["preview"]
    for force, job in (("masks", preview), ("propagate", preview), ("preview", make_job(fields))):
        with pytest.raises(UserError, match=f"{force} cannot be forced"):
            run_job(job, out, force=force)


def test_the_row_of_a_preview(fields: dict[str, Any], tmp_path: Path) -> None:
    run_job(make_job(fields | {"preview": True}), tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    [row] = [row for row in rows if row["stage"] == "preview"]
    assert (row["artifact"], row["path"], row["rows"]) == ("preview", "preview", 2)
    assert json.loads(row["inputs"]).keys() >= {"source", "checkpoint", "config"}


def test_a_preview_costs_the_least_however_many_objects(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    prompts = [{**CLICK, "object_id": one, "frame_index": at} for one in range(4) for at in (0, 3)]
    run_job(make_job(fields | {"prompts": prompts, "preview": True}), tmp_path / "out")
    price = json.loads((tmp_path / "out" / "price.json").read_text())
    assert (price["total"], price["frames"], price["objects"]) == (0.01, 2, 4)
    assert (price["price_per_minute"], price["price_per_object_minute"]) == (0, 0)


def test_wrong_weights_write_no_preview(fields: dict[str, Any], tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"no weights")
    wrong = fields | {"preview": True, "checkpoint": str(weights)}
    with pytest.raises(UserError, match=r"weights\.pt"):
        run_job(make_job(wrong), tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == [weights]
