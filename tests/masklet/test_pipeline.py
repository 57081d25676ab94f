"""The whole job on a real clip with the bundled model: its outputs, and what a rerun does."""

import fcntl
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import masklet
from masklet import pipeline, tracker
from masklet.errors import UserError
from masklet.exports import EXPORTS
from masklet.job import SegmentJob, make_job
from masklet.pipeline import Outputs, dry_run, run_job
from masklet.status import read_status
from tests.conftest import FRAMES, HEIGHT, WIDTH, disc, picture

ALL = {"debug_masks": True, "pixel_confidences": True, "bbox_tracking": True}


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts model calls: how many objects were tracked, frame by frame."""
    calls: list[int] = []
    track = tracker.track

    def counting(*arguments: Any) -> Any:
        calls.append(len(arguments[3]))
        return track(*arguments)

    monkeypatch.setattr(tracker, "track", counting)
    return calls


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a run directory but the manifest, whose times differ, and the lock."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("manifest.parquet", ".lock")
    }


def reasons(out: Path) -> dict[tuple[str, str], str]:
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    return {(row["stage"], row["artifact"]): row["reason"] for row in rows}


def changed(job: dict[str, Any], **fields: Any) -> SegmentJob:
    return make_job(job | fields)


@pytest.fixture(scope="module")
def made(job_fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    """What a job with every output made; to be copied, not touched."""
    return run_job(make_job(job_fields | ALL), tmp_path_factory.mktemp("made"))


@pytest.fixture
def done(
    job_fields: dict[str, Any], made: Outputs, tmp_path: Path
) -> tuple[dict[str, Any], Path, Outputs]:
    """A job with every output, run once: the job, a copy of its run directory, what is there."""
    whole, out = Path(made.files["manifest"]).parent, tmp_path / "out"
    shutil.copytree(whole, out)
    files = {name: str(out / Path(file).relative_to(whole)) for name, file in made.files.items()}
    return job_fields | ALL, out, replace(made, files=files)


def test_every_output_of_the_contract(done: tuple[dict[str, Any], Path, Outputs]) -> None:
    _, out, outputs = done
    names = ["masks", "pixel_confidences", "bbox_tracking", "debug_masks"]
    assert list(outputs.files) == [*names, "price", "masklets", "manifest"]
    assert all(Path(path).exists() for path in outputs.files.values())
    listed = json.loads((out / "outputs.json").read_text())
    assert {name: str(out / path) for name, path in listed.items() if name != "summary"} == dict(
        outputs.files
    )
    expected = [f"{index}_{one}.png" for index in range(FRAMES) for one in (1, "wide")]
    for archive in ("masks.zip", "pixel_confidences.zip"):
        assert zipfile.ZipFile(out / archive).namelist() == expected
    boxes = json.loads((out / "bbox_tracking.json").read_text())
    assert list(boxes) == [str(index) for index in range(FRAMES)]
    assert {box["object_id"] for found in boxes.values() for box in found} <= {1, "wide"}
    price = json.loads((out / "price.json").read_text())
    assert (price["total"], price["frames"], price["objects"]) == (0.01, FRAMES, 2)
    hidden = [path.name for path in out.rglob(".*")]
    assert hidden == [".lock"], "a temporary file was left"


def test_the_clicked_disc_is_found(done: tuple[dict[str, Any], Path, Outputs]) -> None:
    _, out, _ = done
    with zipfile.ZipFile(out / "masks.zip") as archive:
        for frame_index in (0, 10, 19):
            content = io.BytesIO(archive.read(f"{frame_index}_1.png"))
            mask, truth = np.asarray(Image.open(content)) > 0, disc(frame_index)
            assert mask.shape == (HEIGHT, WIDTH)
            assert (mask & truth).sum() / (mask | truth).sum() > 0.7


def test_the_same_job_again_does_nothing(
    job_fields: dict[str, Any], tmp_path: Path, tracked: list[int]
) -> None:
    fields, out = job_fields | ALL, tmp_path / "out"
    run_job(make_job(fields), out)
    assert tracked
    tracked.clear()
    before, manifest = contents(out), (out / "manifest.parquet").read_bytes()
    again = run_job(make_job(fields), out)
    assert contents(out) == before
    assert (out / "manifest.parquet").read_bytes() == manifest
    assert tracked == []
    assert again.frames_per_second is None


def test_the_same_content_under_another_name_does_nothing(
    done: tuple[dict[str, Any], Path, Outputs], tracked: list[int], tmp_path: Path
) -> None:
    fields, out, _ = done
    before = contents(out)
    copy = tmp_path / "copy.mkv"
    copy.write_bytes(Path(fields["file"]).read_bytes())
    run_job(changed(fields, file=str(copy)), out)
    assert contents(out) == before
    assert tracked == []


def test_one_more_output_needs_no_model(
    job_fields: dict[str, Any], tmp_path: Path, tracked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run_job(make_job(job_fields), out)
    tracked.clear()
    masks = (out / "masks.zip").stat().st_mtime_ns
    monkeypatch.setattr(pipeline, "load_model", _must_not_run)
    outputs = run_job(changed(job_fields, bbox_tracking=True), out)
    assert Path(outputs.files["bbox_tracking"]).exists()
    assert tracked == []
    assert (out / "masks.zip").stat().st_mtime_ns == masks


def _must_not_run(*_: Any) -> None:
    raise AssertionError("this was up to date")


def test_only_the_object_whose_prompts_changed_is_tracked(
    done: tuple[dict[str, Any], Path, Outputs], tracked: list[int]
) -> None:
    fields, out, _ = done
    before = contents(out)
    wide = fields["prompts"][1] | {"box": [30, 10, 120, 90]}
    run_job(changed(fields, prompts=[fields["prompts"][0], wide]), out)
    after = contents(out)
    assert set(tracked) == {1}
    assert len(tracked) == FRAMES - 1
    same = {name for name in before if before[name] == after[name]}
    assert {name for name in before if "object=1" in name} <= same
    assert "masks.zip" not in same
    assert reasons(out)["propagate", "wide"] == "parameters changed"
    assert reasons(out)["propagate", "1"] == "new"


def test_an_object_more_and_an_object_less(
    done: tuple[dict[str, Any], Path, Outputs], tracked: list[int]
) -> None:
    fields, out, _ = done
    before = contents(out)
    third = {"frame_index": 2, "object_id": 3, "points": [[46, 45]], "labels": [1]}
    run_job(changed(fields, prompts=[*fields["prompts"], third]), out)
    assert set(tracked) == {1}
    tracked.clear()
    run_job(make_job(fields), out)
    assert tracked == []
    assert contents(out) == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"end_frame": 12}, "parameters changed"),
        ({"frame_interval": 2}, "parameters changed"),
        ({"direction": "both", "start_frame": 0}, "parameters changed"),
    ],
)
def test_other_frames_are_another_tracking(
    change: dict[str, Any],
    reason: str,
    done: tuple[dict[str, Any], Path, Outputs],
    tracked: list[int],
) -> None:
    fields, out, _ = done
    run_job(changed(fields, **change), out)
    assert len(tracked) > 0
    assert reasons(out)["propagate", "1"] == reason


@pytest.mark.parametrize("name", ["masks.zip", "debug_masks.mp4"])
@pytest.mark.parametrize(
    ("harm", "reason"),
    [(Path.unlink, "output missing"), (lambda path: path.write_bytes(b"x"), "output damaged")],
)
def test_a_lost_or_damaged_output_is_made_again_alone(
    name: str,
    harm: Callable[[Path], Any],
    reason: str,
    done: tuple[dict[str, Any], Path, Outputs],
    tracked: list[int],
) -> None:
    fields, out, _ = done
    before = contents(out)
    harm(out / name)
    run_job(make_job(fields), out)
    assert contents(out) == before
    assert tracked == []
    assert [key for key, why in reasons(out).items() if why == reason] == [
        ("masks" if name == "masks.zip" else "debug_masks", name)
    ]


def test_a_lost_masklet_is_tracked_again(
    done: tuple[dict[str, Any], Path, Outputs], tracked: list[int]
) -> None:
    fields, out, _ = done
    for part in (out / "masklets" / "object=wide").iterdir():
        part.unlink()
    run_job(make_job(fields), out)
    assert set(tracked) == {1}
    assert reasons(out)["propagate", "wide"] == "output damaged"


def test_a_raised_code_version_runs_that_stage(
    done: tuple[dict[str, Any], Path, Outputs],
    tracked: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields, out, _ = done
    masks = EXPORTS["masks"]
    monkeypatch.setitem(EXPORTS, "masks", replace(masks, code_version=masks.code_version + 1))
    run_job(make_job(fields), out)
    assert tracked == []
    assert [key for key, why in reasons(out).items() if why == "code changed"] == [
        ("masks", "masks.zip")
    ]


def test_frame_interval_keeps_source_indices_and_prompted_frames(
    job_fields: dict[str, Any], tmp_path: Path
) -> None:
    job = changed(job_fields, frame_interval=3, start_frame=0, end_frame=14, bbox_tracking=True)
    run_job(job, tmp_path / "out")
    indices = [0, 3, 4, 6, 9, 12]
    names = zipfile.ZipFile(tmp_path / "out" / "masks.zip").namelist()
    assert names == [f"{index}_{one}.png" for index in indices for one in (1, "wide")]
    boxes = json.loads((tmp_path / "out" / "bbox_tracking.json").read_text())
    assert list(boxes) == [str(index) for index in indices]
    steps = {box["frame_index"]: box["timestep"] for found in boxes.values() for box in found}
    assert all(step == round(index / 10, 3) for index, step in steps.items())


def test_both_directions_cover_every_frame(job_fields: dict[str, Any], tmp_path: Path) -> None:
    prompts = [{"frame_index": 9, "object_id": 1, "points": [[67, 45]], "labels": [1]}]
    run_job(changed(job_fields, prompts=prompts, direction="both"), tmp_path / "out")
    names = zipfile.ZipFile(tmp_path / "out" / "masks.zip").namelist()
    assert names == [f"{index}_1.png" for index in range(FRAMES)]


def test_a_mask_prompt_alone(job_fields: dict[str, Any], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.zip"
    buffer = io.BytesIO()
    Image.fromarray(disc(0)).save(buffer, "PNG")
    with zipfile.ZipFile(prompts, "w") as archive:
        archive.writestr("0_the_disc.png", buffer.getvalue())
    run_job(changed(job_fields, prompts=[], mask_prompts=str(prompts)), tmp_path / "out")
    content = zipfile.ZipFile(tmp_path / "out" / "masks.zip").read("0_the_disc.png")
    mask, truth = np.asarray(Image.open(io.BytesIO(content))) > 0, disc(0)
    assert (mask & truth).sum() / (mask | truth).sum() > 0.9


def test_two_runs_of_a_job_are_the_same_bytes(
    done: tuple[dict[str, Any], Path, Outputs], tmp_path: Path
) -> None:
    fields, out, _ = done
    run_job(make_job(fields), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(out)


def test_the_python_call(job_fields: dict[str, Any], tmp_path: Path) -> None:
    fields = {name: value for name, value in job_fields.items() if name != "file"}
    outputs = masklet.segment(job_fields["file"], out=tmp_path / "out", **fields)
    assert isinstance(outputs, dict)
    assert Path(outputs["masks"]).is_file()
    returned = masklet.segment(job_fields["file"], out=tmp_path / "out", debug_masks=True, **fields)
    assert isinstance(returned, tuple)
    assert returned[0] == returned[1]["debug_masks"]


def test_an_unnamed_run_directory_is_not_the_working_directory(
    job_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="out is empty"):
        masklet.segment(**job_fields, out="")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["run:1", "file:x", "gs:a/b", "12:30"])
def test_a_run_directory_of_any_name(
    name: str, job_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = make_job({**job_fields, "file": str(Path(job_fields["file"]).absolute())})
    run_job(job, Path(name))
    assert {one.action for one in dry_run(job, Path(name))} == {"reuse"}
    assert read_status(Path(name)).is_right


def test_an_address_is_no_run_directory(job_fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="s3://bucket/x: is an address"):
        masklet.segment(**job_fields, out="s3://bucket/x")


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompts": [{"frame_index": 99, "object_id": 1, "box": [0, 0, 5, 5]}]},
        {"prompts": []},
        {"file": "no such file.mp4"},
        {"checkpoint": "no such file.pt"},
        {"model_type": "huge"},
        {"multimask_output": True},
    ],
)
def test_a_wrong_job_writes_nothing(
    wrong: dict[str, Any], job_fields: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError):
        run_job(changed(job_fields, **wrong), tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


def test_wrong_weights_write_nothing(job_fields: dict[str, Any], tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"weights\.pt"):
        run_job(changed(job_fields, checkpoint=str(weights)), tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == [weights]


def test_wrong_weights_leave_a_finished_run_as_it_was(
    done: tuple[dict[str, Any], Path, Outputs], tmp_path: Path
) -> None:
    fields, out, _ = done
    before, manifest = contents(out), (out / "manifest.parquet").read_bytes()
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"no weights")
    one = fields["prompts"][:1]
    with pytest.raises(UserError, match=r"weights\.pt"):
        run_job(changed(fields, checkpoint=str(weights), prompts=one), out)
    assert contents(out) == before
    assert (out / "manifest.parquet").read_bytes() == manifest


def test_a_stage_that_fails_keeps_what_was_there(
    done: tuple[dict[str, Any], Path, Outputs],
    tracked: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields, out, _ = done
    before = contents(out)
    with monkeypatch.context() as broken:
        broken.setattr("masklet.tracking.track_objects", _must_not_run)
        with pytest.raises(AssertionError):
            run_job(changed(fields, end_frame=12), out)
    assert contents(out) == before
    run_job(make_job(fields), out)
    assert tracked == []
    assert contents(out) == before


def test_outputs_that_no_longer_fit_do_not_stay(
    done: tuple[dict[str, Any], Path, Outputs],
) -> None:
    fields, out, _ = done
    plain = dict.fromkeys(ALL, False)
    run_job(changed(fields, **plain), out)
    assert (out / "debug_masks.mp4").exists()  # not asked for, but still right
    run_job(changed(fields, **plain, end_frame=12), out)
    names = {path.name for path in out.iterdir()}
    assert not names & {"debug_masks.mp4", "bbox_tracking.json", "pixel_confidences.zip"}
    assert {stage for stage, _ in reasons(out)} & EXPORTS.keys() == {"masks"}


@pytest.mark.parametrize("field", ["file", "mask_prompts"])
def test_a_job_does_not_write_over_what_it_reads(
    field: str, done: tuple[dict[str, Any], Path, Outputs]
) -> None:
    fields, out, outputs = done
    before = contents(out)
    own = outputs.files["debug_masks" if field == "file" else "masks"]
    with pytest.raises(UserError, match="is an output of the run directory"):
        run_job(changed(fields, **{field: own}), out)
    assert contents(out) == before


def test_the_masks_of_an_image_are_not_written_over_as_prompts(tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "picture.png")
    out = tmp_path / "out"
    fields: dict[str, Any] = {"file": str(tmp_path / "picture.png"), "model_type": "nano"}
    clicks = {"prompts": [{"frame_index": 0, "object_id": 1, "points": [[40, 45]], "labels": [1]}]}
    run_job(make_job({**fields, **clicks, "multimask_output": True}), out)
    before = contents(out)
    for several in (True, False):
        given = {"mask_prompts": str(out / "masks_0.zip"), "multimask_output": several}
        with pytest.raises(UserError, match="is an output of the run directory"):
            run_job(make_job({**fields, **given}), out)
    assert contents(out) == before


def test_a_manifest_from_elsewhere_removes_nothing_outside(
    done: tuple[dict[str, Any], Path, Outputs], tmp_path: Path
) -> None:
    fields, out, _ = done
    precious = tmp_path / "precious"
    precious.mkdir()
    table = pq.read_table(out / "manifest.parquet")
    rows = [
        row | {"artifact": "../../precious", "path": str(precious)}
        if row["artifact"] == "wide"
        else row
        for row in table.to_pylist()
    ]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), out / "manifest.parquet")
    with pytest.raises(UserError, match="is not a path in the run directory"):
        run_job(make_job(fields), out)
    assert precious.is_dir()


def test_a_failed_stage_is_noted_and_done_by_the_next_run(
    done: tuple[dict[str, Any], Path, Outputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, out, _ = done
    before = contents(out)
    (out / "masks.zip").unlink()

    def fail(*_: Any) -> int:
        raise RuntimeError("no\nluck")

    with monkeypatch.context() as broken:
        broken.setitem(EXPORTS, "masks", replace(EXPORTS["masks"], write=fail))
        with pytest.raises(RuntimeError):
            run_job(make_job(fields), out)
    [row] = [
        r for r in pq.read_table(out / "manifest.parquet").to_pylist() if r["status"] != "done"
    ]
    assert (row["stage"], row["status"], row["error"]) == ("masks", "failed", "no luck")
    run_job(make_job(fields), out)
    assert contents(out) == before
    assert reasons(out)["masks", "masks.zip"] == "failed before"


def test_a_directory_in_use_is_refused_and_a_dead_lock_is_not(
    job_fields: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    lock = os.open(out / ".lock", os.O_RDWR | os.O_CREAT)
    os.write(lock, b"process 4 on somewhere")
    fcntl.flock(lock, fcntl.LOCK_EX)
    growing = out / ".tracking" / "object=1" / "frames-00000000.parquet"
    growing.parent.mkdir(parents=True)
    growing.write_bytes(b"of the other run")
    with pytest.raises(UserError, match="process 4 on somewhere"):
        run_job(make_job(job_fields), out)
    assert growing.read_bytes() == b"of the other run"
    os.close(lock)
    run_job(make_job(job_fields), out)
    assert (out / "masks.zip").exists()


def test_a_damaged_manifest_is_one_clear_line(job_fields: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="remove it to start afresh"):
        run_job(make_job(job_fields), out)


def test_a_full_disk_is_one_clear_line(
    done: tuple[dict[str, Any], Path, Outputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, out, _ = done
    before = contents(out)
    del before["masks.zip"]
    (out / "masks.zip").unlink()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(UserError, match="No space left on device"):
        run_job(make_job(fields), out)
    assert contents(out) == before
