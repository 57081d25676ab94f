"""A rerun makes exactly what depends on what changed: model calls are counted, files compared."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from masklet import exports, manifest, models, overlay, pipeline, tracking, works
from masklet.errors import UserError
from masklet.exports import EXPORTS
from masklet.job import ObjectId, make_job
from masklet.manifest import Manifest, Work
from masklet.media import write_video
from masklet.models import MODELS, find_model, locate_checkpoint
from masklet.pipeline import Outputs, dry_run, run_job
from masklet.plan import Plan
from masklet.status import State, read_status
from masklet.store import MaskletRow, MaskletWriter, object_folder
from tests.masklet.conftest import (
    ALL_OUTPUTS,
    BOX,
    CLICK,
    FRAMES,
    Eye,
    contents_of,
    files_of,
    write_clip,
)

ONE = "masklets/object=1/frames-00000000.parquet"
WIDE = "masklets/object=wide/frames-00000000.parquet"
EXPORTED = {name: export.file for name, export in EXPORTS.items()}
OUTPUTS = set(EXPORTED.values())
NOTES = {"outputs.json", "manifest.parquet"}


def rerun(fields: Mapping[str, Any], out: Path, **options: Any) -> tuple[Outputs, set[str]]:
    """Run a job, and say which files it touched, made or removed."""
    before = files_of(out)
    outputs = run_job(make_job(fields), out, **options)
    after = files_of(out)
    touched = {name for name in {**before, **after} if before.get(name) != after.get(name)}
    made = {one.artifact for one in outputs.artifacts if one.reason}
    on_disk = {name for name in made if (out / name).is_file()}
    assert on_disk <= touched, "something is said to be made, and was not"
    assert touched <= made | {"manifest.parquet"} | {n for n in touched if "object=" in n}
    return outputs, touched


def reasons(outputs: Outputs) -> dict[str, str]:
    """Why each artifact was made, of those that were."""
    return {one.artifact: str(one.reason) for one in outputs.artifacts if one.reason}


def fresh(fields: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """What the job makes in an empty directory."""
    run_job(make_job(fields), folder)
    return contents_of(folder)


def test_the_same_job_again_touches_nothing(fields: dict[str, Any], out: Path, eye: Eye) -> None:
    outputs, touched = rerun(fields, out)
    assert touched == set()
    assert reasons(outputs) == {}
    assert eye.saw_nothing()
    assert set(outputs.seconds.values()) == {0.0}


def test_what_comes_to_the_same_is_the_same_job(
    fields: dict[str, Any], out: Path, eye: Eye
) -> None:
    same = {"start_frame": 0, "end_frame": FRAMES - 1, "device": "cpu"}
    assert rerun(fields | same, out)[1] == set()
    assert eye.saw_nothing()


@pytest.mark.parametrize("name", sorted(ALL_OUTPUTS))
def test_one_more_output_is_made_alone(
    name: str, fields: dict[str, Any], tmp_path: Path, eye: Eye, out: Path
) -> None:
    others = {other: other != name for other in ALL_OUTPUTS}
    run_job(make_job(fields | others), tmp_path / "fewer")
    eye.forget()
    _, touched = rerun(fields, tmp_path / "fewer")
    assert touched == {EXPORTED[name], *NOTES}
    assert eye.saw_nothing()
    assert contents_of(tmp_path / "fewer") == contents_of(out)


def test_one_output_less_touches_no_other(fields: dict[str, Any], out: Path, eye: Eye) -> None:
    _, touched = rerun(fields | {"debug_masks": False}, out)
    assert touched == NOTES  # still right, so it stays
    assert rerun(fields, out)[1] == NOTES
    assert eye.saw_nothing()


def test_changed_prompts_of_one_object(fields: dict[str, Any], out: Path, eye: Eye) -> None:
    changed = fields | {"prompts": [CLICK, BOX | {"box": [30, 10, 120, 90]}]}
    outputs, touched = rerun(changed, out)
    assert eye.tracked == ["wide"]
    assert touched == {WIDE, *OUTPUTS, *NOTES}
    assert reasons(outputs)["wide"] == "parameters changed"


def test_one_object_more_and_one_less(fields: dict[str, Any], out: Path, eye: Eye) -> None:
    before = contents_of(out)
    third = {"frame_index": 1, "object_id": 3, "points": [[46, 45]], "labels": [1]}
    more = fields | {"prompts": [CLICK, BOX, third]}
    _, touched = rerun(more, out)
    new = ONE.replace("=1", "=3")
    assert eye.tracked == [3]
    assert touched == {new, "price.json", *OUTPUTS, *NOTES}
    eye.forget()
    _, touched = rerun(fields, out)
    assert eye.saw_nothing()
    assert touched == {new, "price.json", *OUTPUTS, *NOTES}
    assert contents_of(out) == before
    eye.forget()
    _, touched = rerun(fields | {"prompts": [CLICK]}, out)
    assert eye.saw_nothing()
    assert touched == {WIDE, "price.json", *OUTPUTS, *NOTES}
    assert not (out / WIDE).parent.exists()


def test_an_object_less_killed_on_the_way(
    fields: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest has forgotten the object, its masklet is still there."""
    forget = Manifest.forget

    def killed(self: Manifest, stage: str, artifact: str) -> None:
        forget(self, stage, artifact)
        raise KeyboardInterrupt

    fewer = fields | {"prompts": [CLICK]}
    with monkeypatch.context() as cut:
        cut.setattr(Manifest, "forget", killed)
        with pytest.raises(KeyboardInterrupt):
            run_job(make_job(fewer), out)
    assert (out / WIDE).exists()
    run_job(make_job(fewer), out)
    assert not (out / WIDE).parent.exists()


def test_temporary_files_are_removed_where_runs_write_them(
    fields: dict[str, Any], out: Path
) -> None:
    """A folder in a run directory may be another one, in which a process is at work."""
    (out / "other").mkdir()
    ours, theirs = out / ".masks.zip.9.tmp", out / "other" / ".masks.zip.9.tmp"
    ours.touch()
    theirs.touch()
    run_job(make_job(fields), out)
    assert not ours.exists()
    assert theirs.exists()


@pytest.mark.parametrize(
    ("owner", "constant", "value", "touched"),
    [
        (overlay, "COLOURS", ((255, 0, 0), (0, 0, 255)), {"debug_masks.mp4"}),
        (overlay, "FILL", 0.9, {"debug_masks.mp4"}),
        (overlay, "OUTER_EDGE", 0.9, {"debug_masks.mp4"}),
        (exports, "PNG_COMPRESSION", 1, {"masks.zip", "pixel_confidences.zip"}),
        (exports, "ZIP_METHOD", 8, {"masks.zip", "pixel_confidences.zip"}),
    ],
)
def test_other_settings_of_an_output(
    owner: Any,
    constant: str,
    value: Any,
    touched: set[str],
    fields: dict[str, Any],
    out: Path,
    eye: Eye,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = contents_of(out)
    monkeypatch.setattr(owner, constant, value)
    outputs, found = rerun(fields, out)
    assert found == {*touched, "manifest.parquet"}
    assert set(reasons(outputs).values()) == {"parameters changed"}
    assert eye.saw_nothing()
    after = contents_of(out)
    assert {name for name in after if after[name] != before[name]} == touched


@pytest.mark.parametrize(
    "change",
    [
        {"frame_interval": 2},
        {"end_frame": 3},
        {"direction": "both", "prompts": [CLICK | {"frame_index": 1}, BOX]},
        {"precision": "bfloat16"},
        {"max_cond_frames": 2},
    ],
)
def test_other_frames_and_other_tracking_make_all_masklets_again(
    change: dict[str, Any], fields: dict[str, Any], out: Path, eye: Eye, tmp_path: Path
) -> None:
    frames = json.dumps(files_of(out)["frames.parquet"])
    outputs, _ = rerun(fields | change, out)
    assert eye.tracked == [1, "wide"]
    assert eye.probes == 0
    assert json.dumps(files_of(out)["frames.parquet"]) == frames
    assert {reasons(outputs)[one] for one in ("1", "wide")} == {"parameters changed"}
    assert contents_of(out) == fresh(fields | change, tmp_path / "fresh")


def test_another_checkpoint_file(
    fields: dict[str, Any], out: Path, eye: Eye, tmp_path: Path
) -> None:
    bundled = locate_checkpoint(find_model("nano"))
    assert bundled
    same, other = tmp_path / "same.safetensors", tmp_path / "other.safetensors"
    shutil.copyfile(bundled, same)
    outputs, touched = rerun(fields | {"checkpoint": str(same)}, out)
    assert (touched, reasons(outputs)) == ({"manifest.parquet"}, {})
    assert eye.saw_nothing()

    weights = load_file(bundled)
    name = next(name for name in weights if name.endswith("mask_tokens.weight"))
    save_file(weights | {name: weights[name] * np.float32(1.01)}, other)
    outputs, touched = rerun(fields | {"checkpoint": str(other)}, out)
    assert eye.tracked == [1, "wide"]
    assert {ONE, WIDE} <= touched
    assert {reasons(outputs)[one] for one in ("1", "wide")} == {"inputs changed"}
    assert eye.probes == 0


def test_another_model(
    fields: dict[str, Any], out: Path, eye: Eye, monkeypatch: pytest.MonkeyPatch
) -> None:
    nano = find_model("nano")
    other = replace(nano, name="other", aliases=(), price_per_minute=1000.0)
    monkeypatch.setitem(MODELS, "other", other)
    outputs, _ = rerun(fields | {"model_type": "other"}, out)
    assert eye.tracked == [1, "wide"]
    assert {"1", "wide", "price.json", "outputs.json"} <= reasons(outputs).keys()
    assert "frames.parquet" not in reasons(outputs)


def test_other_inference_settings_of_the_model(
    fields: dict[str, Any], out: Path, eye: Eye, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.INFERENCE_SETTINGS, "max_cond_frames_in_attn", 3)
    outputs, _ = rerun(fields, out)
    assert eye.tracked == [1, "wide"]
    assert reasons(outputs)["1"] == "inputs changed"


def test_another_content_of_the_source_under_the_same_name(
    fields: dict[str, Any], out: Path, eye: Eye, tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    shutil.copyfile(fields["file"], clip)
    assert rerun(fields | {"file": str(clip)}, out)[1] == {"manifest.parquet"}
    assert eye.saw_nothing()
    write_clip(clip, speed=4.0)
    outputs, _ = rerun(fields | {"file": str(clip)}, out)
    assert eye.tracked == [1, "wide"]
    assert eye.probes == 1
    assert reasons(outputs)["frames.parquet"] == "inputs changed"
    assert contents_of(out) == fresh(fields | {"file": str(clip)}, tmp_path / "fresh")


def test_the_same_content_under_another_name(
    fields: dict[str, Any], out: Path, eye: Eye, tmp_path: Path
) -> None:
    copy = tmp_path / "another name.mkv"
    shutil.copyfile(fields["file"], copy)
    os.utime(copy, (0, 0))
    outputs, touched = rerun(fields | {"file": str(copy)}, out)
    # which remembers where the file lies now
    assert (touched, reasons(outputs)) == ({"manifest.parquet"}, {})
    assert rerun(fields | {"file": str(copy)}, out)[1] == set()
    assert eye.saw_nothing()


def delete(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    """Change one byte in the middle; the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def flip_unseen(path: Path) -> None:
    """Change one byte and leave the time as it was."""
    about = path.stat()
    flip(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


FILES = [*sorted(OUTPUTS), "price.json", "outputs.json", "frames.parquet"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [delete, cut, flip, flip_unseen])
def test_a_lost_or_damaged_file_is_made_again_alone(
    name: str, harm: Callable[[Path], None], fields: dict[str, Any], out: Path, eye: Eye
) -> None:
    before = contents_of(out)
    harm(out / name)
    must_ask = harm is flip_unseen and name != "frames.parquet"
    if must_ask:
        assert rerun(fields, out)[1] == set(), "a file that was not touched is believed"
    outputs, touched = rerun(fields, out, verify=must_ask)
    assert touched == {name, "manifest.parquet"}
    missing = "output missing" if harm is delete else "output damaged"
    assert reasons(outputs) == {name: missing}
    assert eye.tracked == []
    assert eye.probes == (name == "frames.parquet")
    assert contents_of(out) == before


@pytest.mark.parametrize("harm", [delete, cut, flip, flip_unseen])
def test_a_lost_or_damaged_masklet_is_tracked_again_alone(
    harm: Callable[[Path], None], fields: dict[str, Any], out: Path, eye: Eye
) -> None:
    harm(out / WIDE)
    outputs, touched = rerun(fields, out, verify=harm is flip_unseen)
    assert eye.tracked == ["wide"]
    assert reasons(outputs)["wide"] == "output damaged"
    # rounding depends on which objects share a batch: if it shows, the outputs are made again
    assert {WIDE, "manifest.parquet"} <= touched <= {WIDE, *OUTPUTS, *NOTES}
    assert rerun(fields, out)[1] == set()


def test_a_masklet_that_is_gone_altogether(fields: dict[str, Any], out: Path, eye: Eye) -> None:
    before = contents_of(out)
    shutil.rmtree(out / "masklets")
    outputs, touched = rerun(fields, out)
    assert eye.tracked == [1, "wide"]
    assert touched == {ONE, WIDE, "manifest.parquet"}
    assert reasons(outputs) == {"1": "output missing", "wide": "output missing"}
    assert contents_of(out) == before


def test_verify_alone_touches_nothing(fields: dict[str, Any], out: Path, eye: Eye) -> None:
    assert rerun(fields, out, verify=True)[1] == set()
    assert eye.saw_nothing()


AFTER_TRACKING = OUTPUTS | {"outputs.json"}
AFTER_CHECKS = {"1", "wide", "price.json"} | AFTER_TRACKING


@pytest.mark.parametrize(
    ("stage", "made"),
    [
        ("ingest", {"frames.parquet"} | AFTER_CHECKS),
        ("check_prompts", {"job"} | AFTER_CHECKS),
        ("propagate", {"1", "wide"} | AFTER_TRACKING),
        *((name, {EXPORTED[name]}) for name in EXPORTS),
        ("finish", {"price.json", "outputs.json"}),
    ],
)
def test_a_raised_code_version_makes_all_from_that_stage_on(
    stage: str,
    made: set[str],
    fields: dict[str, Any],
    out: Path,
    eye: Eye,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = contents_of(out)
    if stage in EXPORTS:
        raised = replace(EXPORTS[stage], code_version=EXPORTS[stage].code_version + 1)
        monkeypatch.setitem(EXPORTS, stage, raised)
    else:
        monkeypatch.setitem(works.CODE_VERSIONS, stage, works.CODE_VERSIONS[stage] + 1)
    outputs, _ = rerun(fields, out)
    found = reasons(outputs)
    assert found.keys() == made
    rows = {one.artifact: one.stage for one in outputs.artifacts}
    assert all((found[name] == "code changed") == (rows[name] == stage) for name in made)
    assert eye.tracked == ([1, "wide"] if "1" in made else [])
    assert eye.probes == (stage == "ingest")
    assert contents_of(out) == before
    assert rerun(fields, out)[1] == set()


@pytest.mark.parametrize(
    ("stage", "made"),
    [
        ("all", {"frames.parquet", "job"} | AFTER_CHECKS),
        ("propagate", AFTER_CHECKS),
        *((name, {EXPORTED[name]}) for name in EXPORTS),
    ],
)
def test_force_makes_a_stage_again(
    stage: str, made: set[str], fields: dict[str, Any], out: Path, eye: Eye
) -> None:
    before = contents_of(out)
    outputs, _ = rerun(fields, out, force=stage)
    assert reasons(outputs) == dict.fromkeys(made, "forced")
    assert eye.tracked == ([1, "wide"] if "1" in made else [])
    assert eye.probes == (stage == "all")
    assert contents_of(out) == before
    assert rerun(fields, out)[1] == set()


def test_force_of_what_the_job_does_not_have(fields: dict[str, Any], out: Path) -> None:
    before = files_of(out)
    with pytest.raises(UserError, match="the job does not ask for it"):
        run_job(make_job(fields | {"debug_masks": False}), out, force="debug_masks")
    with pytest.raises(UserError, match="what is forced is one of all, propagate"):
        run_job(make_job(fields), out, force="everything")
    assert files_of(out) == before


# Retention


@pytest.fixture
def light(fields: dict[str, Any], tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """A finished job that does not keep its masklets, with all outputs but the boxes."""
    job = fields | {"keep_masklets": False, "bbox_tracking": False}
    run_job(make_job(job), tmp_path / "light")
    return job, tmp_path / "light"


def test_masklets_that_are_not_kept(
    light: tuple[dict[str, Any], Path], out: Path, eye: Eye
) -> None:
    fields, folder = light
    assert not (folder / "masklets").exists()
    listed = json.loads((folder / "outputs.json").read_text())
    assert "masklets" not in listed
    assert listed["summary"]["masklet_bytes"] == 0
    rows = pq.read_table(folder / "manifest.parquet").to_pylist()
    kept = {row["artifact"]: row for row in pq.read_table(out / "manifest.parquet").to_pylist()}
    removed = [row for row in rows if row["stage"] == "propagate"]
    assert [(row["artifact"], row["status"]) for row in removed] == [
        ("1", "removed"),
        ("wide", "removed"),
    ]
    for row in removed:
        assert (row["sha256"], row["bytes"]) == (
            kept[row["artifact"]]["sha256"],
            kept[row["artifact"]]["bytes"],
        )
    assert contents_of(folder)["masks.zip"] == contents_of(out)["masks.zip"]
    assert rerun(fields, folder)[1] == set()
    assert eye.saw_nothing()


@pytest.mark.parametrize("name", ["masks", "outputs.json", "job"])
def test_objects_that_are_called_as_an_artifact_is(
    name: str, fields: dict[str, Any], tmp_path: Path, eye: Eye
) -> None:
    prompts = [{**prompt, "object_id": name} for prompt in fields["prompts"][:1]]
    job, folder = fields | {"keep_masklets": False, "prompts": prompts}, tmp_path / "out"
    run_job(make_job(job), folder)
    assert {one.action for one in dry_run(make_job(job), folder)} == {"reuse"}
    assert read_status(folder).is_right
    assert rerun(job, folder)[1] == set()
    assert eye.tracked == [name]


def test_one_more_output_without_masklets_is_tracked_again_and_says_so(
    light: tuple[dict[str, Any], Path], out: Path, eye: Eye, caplog: pytest.LogCaptureFixture
) -> None:
    fields, folder = light
    with caplog.at_level(logging.WARNING):
        outputs, touched = rerun(fields | {"bbox_tracking": True}, folder)
    [line] = [line for line in caplog.messages if "masklets were removed" in line]
    assert "track 2 objects again: 1, wide" in line
    assert eye.tracked == [1, "wide"]
    assert reasons(outputs)["1"] == "masklets removed"
    # they came out as they were, so the other outputs are right
    assert touched == {"bbox_tracking.json", *NOTES}
    assert contents_of(folder)["bbox_tracking.json"] == contents_of(out)["bbox_tracking.json"]
    assert not (folder / "masklets").exists()


def test_masklets_are_removed_from_a_finished_run(
    fields: dict[str, Any], out: Path, eye: Eye
) -> None:
    _, touched = rerun(fields | {"keep_masklets": False}, out)
    assert touched == {ONE, WIDE, *NOTES}
    assert eye.saw_nothing()
    before = contents_of(out)
    rerun(fields, out)
    assert eye.tracked == [1, "wide"]
    assert contents_of(out).keys() == before.keys() | {ONE, WIDE}


def test_a_lost_output_without_masklets(light: tuple[dict[str, Any], Path], eye: Eye) -> None:
    fields, folder = light
    before = contents_of(folder)
    (folder / "masks.zip").unlink()
    _, touched = rerun(fields, folder)
    assert eye.tracked == [1, "wide"]
    assert touched == {"masks.zip", "manifest.parquet"}
    assert contents_of(folder) == before


def test_a_failed_output_keeps_the_masklets(
    fields: dict[str, Any], tmp_path: Path, eye: Eye, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise RuntimeError("no luck")

    job = fields | {"keep_masklets": False}
    with monkeypatch.context() as broken:
        broken.setitem(EXPORTS, "masks", replace(EXPORTS["masks"], write=fail))
        with pytest.raises(RuntimeError):
            run_job(make_job(job), tmp_path / "light")
    eye.forget()
    rerun(job, tmp_path / "light")
    assert eye.saw_nothing()
    assert not (tmp_path / "light" / "masklets").exists()


def test_what_was_given_up_has_not_failed(
    fields: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise UserError("no luck")

    def go_on(*given: Any) -> int:
        for _ in range(6000):
            given[-1](0)  # advances
            time.sleep(0.01)
        raise AssertionError("it was not given up")

    (out / "masks.zip").unlink()
    (out / "bbox_tracking.json").unlink()
    with monkeypatch.context() as broken:
        for name, write in (("masks", fail), ("bbox_tracking", go_on)):
            broken.setitem(EXPORTS, name, replace(EXPORTS[name], write=write))
        with pytest.raises(UserError, match="no luck"):
            run_job(make_job(fields), out)
    plan = {one.artifact: one.why for one in dry_run(make_job(fields), out)}
    assert plan["masks.zip"] == "failed before (no luck)"
    assert plan["bbox_tracking.json"] == "output missing"


# A long video

MANY = 10_000


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A finished run directory of 10,000 frames, whose masklet no model made."""
    folder = tmp_path_factory.mktemp("long")
    still = np.zeros((32, 32, 3), np.uint8)
    frames = (still for _ in range(MANY))
    write_video(folder / "long.mp4", frames, width=32, height=32, frame_rate=Fraction(25))

    def draw(
        plan: Plan, asked: Mapping[ObjectId, Work], _: Any, __: Any, to: Path, *___: Any
    ) -> None:
        logits = np.full((8, 8), -9, np.float32)
        logits[2:5, 2:5] = 9
        for one in asked:
            writer = MaskletWriter(object_folder(to, one), one)
            for frame_index in plan.frame_indices:
                writer.add(MaskletRow(frame_index, 1.0, logits))
            writer.flush()

    click = {"frame_index": 0, "object_id": 1, "points": [[9, 9]], "labels": [1]}
    fields = {"file": str(folder / "long.mp4"), "model_type": "nano", "prompts": [click]}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tracking, "track_objects", draw)
        run_job(make_job(fields | {"bbox_tracking": True}), folder / "out")
    return fields | {"bbox_tracking": True}, folder / "out"


def test_a_long_rerun_reads_neither_frames_nor_masklets(
    long_run: tuple[dict[str, Any], Path], eye: Eye, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, out = long_run
    assert len(json.loads((out / "bbox_tracking.json").read_text())) == MANY
    read: list[Path] = []
    hash_of = manifest.content_hash

    def counting(path: Path) -> str:
        read.append(path)
        return hash_of(path)

    def must_not_run(*_: Any, **__: Any) -> None:
        raise AssertionError("this was up to date")

    monkeypatch.setattr(manifest, "content_hash", counting)
    monkeypatch.setattr(exports, "read_together", must_not_run)
    monkeypatch.setattr(exports, "read_frames", must_not_run)
    monkeypatch.setattr("masklet.propagate.read_frames", must_not_run)
    _, touched = rerun(fields, out)
    assert touched == set()
    assert {path.name for path in read} <= {"frames.parquet"}
    assert eye.saw_nothing()
    assert read_status(out).is_right
    assert {one.state for one in read_status(out).artifacts} == {State.DONE}


def test_a_rerun_does_not_even_import_torch(long_run: tuple[dict[str, Any], Path]) -> None:
    fields, out = long_run
    code = (
        "import json, sys; from pathlib import Path\n"
        "from masklet.job import make_job; from masklet.pipeline import run_job\n"
        "outputs = run_job(make_job(json.loads(sys.argv[1])), Path(sys.argv[2]))\n"
        "print([one for one in outputs.artifacts if one.reason], 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(fields), str(out)],
        cwd=Path(pipeline.__file__).parents[1],
        capture_output=True,
        timeout=300,
        check=True,
    )
    assert done.stdout == b"[] False\n"
