"""`masklet status` and `--dry-run`: what they say is so, and they only look."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from masklet import lock, models, overlay, works
from masklet.cli import main
from masklet.errors import UserError
from masklet.exports import EXPORTS
from masklet.job import make_job
from masklet.manifest import Work
from masklet.pipeline import dry_run, run_job
from masklet.status import State, read_status
from tests.masklet.conftest import BOX, CLICK, Eye, files_of, rewritten, write_clip

Masklet = Callable[..., tuple[int, str, str]]
Table = pa.Table


@pytest.fixture
def masklet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Masklet:
    """Call `masklet ARGUMENTS`: its exit code, standard output and standard error."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["masklet", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return call


def one_line(said: tuple[int, str, str]) -> str:
    code, out, err = said
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    return err.removeprefix("masklet: ").rstrip("\n")


def wrong(out: Path, **options: Any) -> dict[str, tuple[State, str]]:
    """State and explanation of all artifacts that are not simply done."""
    found = read_status(out, **options).artifacts
    return {one.artifact: (one.state, one.why) for one in found if one.state != State.DONE}


def test_everything_is_right(out: Path, masklet: Masklet, eye: Eye) -> None:
    before = files_of(out)
    code, printed, err = masklet("status", out)
    assert (code, err) == (0, "")
    lines = printed.splitlines()
    assert lines[-1] == "everything is up to date"
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    for row in rows:
        [line] = [line for line in lines if line.split()[1:3] == [row["stage"], row["artifact"]]]
        assert line.split()[0] == "done"
        assert f"{row['bytes']:,}" in line
    size = sum(path.stat().st_size for path in (out / "masklets").glob("*/*"))
    assert f"masklets: {size:,} bytes, {size / 10:,.0f} per frame and object" in lines
    assert wrong(out, verify=True) == {}
    assert files_of(out) == before
    assert eye.saw_nothing()


def test_of_the_video_and_the_model_nothing_is_needed(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    clip, folder = tmp_path / "clip.mp4", tmp_path / "run"
    shutil.copyfile(fields["file"], clip)
    run_job(make_job(fields | {"file": str(clip)}), folder)
    clip.unlink()
    assert wrong(folder) == {
        "source": (State.MISSING, f"{clip} is gone; what was made of it is kept")
    }
    assert read_status(folder).is_right


def test_a_changed_source_makes_all_of_it_stale(fields: dict[str, Any], tmp_path: Path) -> None:
    clip, folder = tmp_path / "clip.mp4", tmp_path / "run"
    shutil.copyfile(fields["file"], clip)
    run_job(make_job(fields | {"file": str(clip)}), folder)
    write_clip(clip, speed=4.0)
    found = wrong(folder)
    assert found.pop("source") == (State.STALE, f"the content of {clip} changed")
    assert found.keys() == {"frames.parquet", "job", "1", "wide", "outputs.json"} | {
        export.file for export in EXPORTS.values()
    }
    assert found["wide"] == (State.STALE, "inputs changed (source)")
    assert found["masks.zip"][0] == State.STALE
    assert not read_status(folder).is_right


def test_another_config_of_the_model(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.INFERENCE_SETTINGS, "max_cond_frames_in_attn", 3)
    assert wrong(out)["1"] == (State.STALE, "inputs changed (config)")


def test_other_settings_of_an_output(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "FILL", 0.9)
    assert wrong(out) == {"debug_masks.mp4": (State.STALE, "parameters changed (settings)")}


def test_a_raised_code_version(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raised = replace(EXPORTS["masks"], code_version=EXPORTS["masks"].code_version + 1)
    with monkeypatch.context() as patched:
        patched.setitem(EXPORTS, "masks", raised)
        why = f"code changed (version {raised.code_version - 1} to {raised.code_version})"
        assert wrong(out) == {"masks.zip": (State.STALE, why)}
    version = works.CODE_VERSIONS["propagate"]
    monkeypatch.setitem(works.CODE_VERSIONS, "propagate", version + 1)
    found = wrong(out)
    assert found["1"] == (State.STALE, f"code changed (version {version} to {version + 1})")
    assert "code of propagate" in found["masks.zip"][1]
    assert found.keys() & {"frames.parquet", "job", "price.json"} == set()


def test_missing_and_damaged(out: Path, masklet: Masklet) -> None:
    (out / "masks.zip").unlink()
    (out / "bbox_tracking.json").write_bytes(b"{}")
    shutil.rmtree(out / "masklets" / "object=1")
    before = files_of(out)
    assert wrong(out) == {
        "masks.zip": (State.MISSING, "output missing"),
        "bbox_tracking.json": (State.DAMAGED, "output damaged"),
        "1": (State.MISSING, "output missing"),
    }
    code, printed, _ = masklet("status", out)
    assert code == 0
    assert printed.splitlines()[-1] == "not up to date"
    assert files_of(out) == before


def test_only_verify_finds_damage_that_hides(out: Path, masklet: Masklet) -> None:
    path = out / "masks.zip"
    about, content = path.stat(), bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert wrong(out) == {}
    assert wrong(out, verify=True) == {"masks.zip": (State.DAMAGED, "output damaged")}
    assert "damaged" not in masklet("status", out)[1]
    assert "damaged" in masklet("status", out, "--verify")[1]


def test_a_failure_is_shown_with_its_error(
    fields: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise RuntimeError("no\nluck")

    (out / "masks.zip").unlink()
    with monkeypatch.context() as broken:
        broken.setitem(EXPORTS, "masks", replace(EXPORTS["masks"], write=fail))
        with pytest.raises(RuntimeError):
            run_job(make_job(fields), out)
    assert wrong(out) == {"masks.zip": (State.FAILED, "failed before (no luck)")}


def test_removed_masklets_are_no_fault(fields: dict[str, Any], out: Path, masklet: Masklet) -> None:
    run_job(make_job(fields | {"keep_masklets": False}), out)
    why = "another output would need it to be tracked again"
    assert wrong(out) == {"1": (State.REMOVED, why), "wide": (State.REMOVED, why)}
    code, printed, _ = masklet("status", out)
    assert code == 0
    assert printed.splitlines()[-1] == "everything is up to date"
    assert "per frame and object" not in printed


def test_an_output_that_is_not_asked_for_any_more(fields: dict[str, Any], out: Path) -> None:
    run_job(make_job(fields | {"debug_masks": False}), out)
    assert wrong(out) == {}


def test_inputs_that_the_last_job_did_not_read_do_not_count(
    fields: dict[str, Any], out: Path, tmp_path: Path
) -> None:
    path = tmp_path / "masks.zip"
    shutil.copyfile(out / "masks.zip", path)
    run_job(make_job(fields | {"mask_prompts": str(path)}), out)
    assert wrong(out) == {}
    path.write_bytes(b"another content")
    assert wrong(out) == {"mask_prompts": (State.STALE, f"the content of {path} changed")}
    assert not read_status(out).is_right
    run_job(make_job(fields), out)
    assert wrong(out) == {}


@pytest.mark.parametrize("name", ["none", "file", "empty"])
def test_no_run_directory(name: str, tmp_path: Path, masklet: Masklet) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert "is no run directory" in one_line(masklet("status", tmp_path / name))
    assert sorted(tmp_path.rglob("*")) == before


def test_while_a_process_holds_the_directory(out: Path, masklet: Masklet) -> None:
    with lock.held(out):
        code, printed, _ = masklet("status", out)
    assert code == 0
    assert printed.startswith(f"a run is at work here: process {os.getpid()} on ")
    assert "a run is at work" not in masklet("status", out)[1]
    with pytest.raises(RuntimeError), lock.held(out):
        raise RuntimeError
    assert read_status(out).holder is None, "a run that failed has left"


# Manifests that masklet did not write


def of_row(**values: Any) -> Callable[[Path], None]:
    return lambda out: rewritten(out, "masks", **values)


def truncate(out: Path) -> None:
    path = out / "manifest.parquet"
    path.write_bytes(path.read_bytes()[:-50])


def empty(out: Path) -> None:
    (out / "manifest.parquet").write_bytes(b"")


def rename_a_column(out: Path) -> None:
    path = out / "manifest.parquet"
    names = ["checksum" if n == "sha256" else n for n in pq.read_schema(path).names]
    pq.write_table(pq.read_table(path).rename_columns(names), path)


def other_types(out: Path) -> None:
    path = out / "manifest.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("bytes")
    pq.write_table(table.set_column(at, "bytes", table["bytes"].cast(pa.string())), path)


def no_manifest_at_all(out: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), out / "manifest.parquet")


@pytest.mark.parametrize(
    "harm",
    [
        of_row(path="../precious"),
        of_row(path="masklets/../../precious"),
        of_row(path="/etc/passwd"),
        of_row(stage="propagate", artifact="../../precious", path="../precious"),
        of_row(inputs="no json"),
        of_row(parameters="[]"),
        of_row(parameters="[" * 100_000),
        of_row(sha256=None),
        of_row(schema_version=99),
        of_row(status="bogus"),
        of_row(key="0" * 64),
        of_row(parameters='{"objects": "\\ud800"}'),
        rename_a_column,
        other_types,
        no_manifest_at_all,
        truncate,
        empty,
    ],
)
def test_a_hostile_manifest_is_one_line_and_touches_nothing(
    harm: Callable[[Path], None],
    fields: dict[str, Any],
    out: Path,
    tmp_path: Path,
    masklet: Masklet,
) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    harm(out)
    before = files_of(tmp_path)
    assert "remove it to start afresh" in one_line(masklet("status", out, "--verify"))
    prompts = tmp_path.parent / "prompts.json"
    prompts.write_text('[{"frame_index": 0, "object_id": 1, "points": [[9, 9]], "labels": [1]}]')
    job = (fields["file"], "--model-type", "nano", "--prompts", prompts, "--out", out)
    for options in ([], ["--dry-run"]):
        assert "remove it to start afresh" in one_line(masklet("segment", *job, *options))
    assert files_of(tmp_path) == before


def test_a_job_that_cannot_be_understood_is_not_compared_with(out: Path, masklet: Masklet) -> None:
    path = out / "manifest.parquet"
    before = pq.read_table(path).to_pylist()
    [job] = [row for row in before if row["stage"] == "check_prompts"]
    asked, inputs = json.loads(job["parameters"]), json.loads(job["inputs"])
    for parameters in (
        {},
        {"model": 3},
        inputs,
        asked | {"outputs": ["masks_5"]},
        asked | {"outputs": ["masks", "masks_" + "9" * 5000]},
        asked | {"outputs": ["preview"], "tracking": {}},
    ):
        work = Work("check_prompts", job["code_version"], "job", "", parameters, inputs)
        said = {"parameters": json.dumps(parameters), "key": work.key}
        rows = [row | said if row is job else row for row in before]
        pq.write_table(pa.Table.from_pylist(rows), path)
        status = read_status(out)
        assert status.asked is None
        assert not status.is_right
        assert masklet("status", out)[0] == 0


def test_an_input_that_is_no_file_is_not_read(out: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = out / "manifest.parquet"
    rows = [
        row | {"path": str(tmp_path / "pipe")} if row["artifact"] == "source" else row
        for row in pq.read_table(path).to_pylist()
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert wrong(out, verify=True)["source"][0] == State.MISSING


# Dry runs


def statuses(out: Path) -> dict[tuple[str, str], str]:
    """What the manifest says of each artifact."""
    path = out / "manifest.parquet"
    rows = pq.read_table(path).to_pylist() if path.exists() else []
    return {(row["stage"], row["artifact"]): row["status"] for row in rows}


def planned_and_done(
    fields: dict[str, Any], out: Path, **options: Any
) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]:
    """What a dry run says, and what the run then does: '' for what is reused."""
    before, was = files_of(out), statuses(out)
    plan = dry_run(make_job(fields), out, **options)
    assert files_of(out) == before, "a dry run wrote something"
    outputs = run_job(make_job(fields), out, **options)
    now = statuses(out)
    said = {(one.stage, one.artifact): "" for one in plan if one.action == "reuse"}
    makes = {(one.stage, one.artifact): one.why for one in plan if one.action == "make"}
    removes = {(one.stage, one.artifact) for one in plan if one.action == "remove"}
    assert all(makes.values())
    assert {now.get(place, "removed") for place in removes} <= {"removed"}
    for place, status in now.items():
        stays_removed = was.get(place) == "removed" and place not in makes
        assert (status == "removed") == (place in removes or stays_removed), place
    return (
        said | makes,
        {(one.stage, one.artifact): str(one.reason or "") for one in outputs.artifacts},
    )


def test_a_dry_run_says_what_the_run_then_does(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "walk"
    other = BOX | {"box": [30, 10, 120, 90]}
    third = {"frame_index": 1, "object_id": 3, "points": [[46, 45]], "labels": [1]}

    def raise_version() -> None:
        monkeypatch.setitem(works.CODE_VERSIONS, "propagate", 7)

    plain = {"debug_masks": False, "pixel_confidences": False, "bbox_tracking": False}
    steps: list[tuple[Callable[[], Any] | None, dict[str, Any], dict[str, Any]]] = [
        (None, plain, {}),
        (None, plain, {}),
        (None, {}, {}),
        (None, {"prompts": [CLICK, other]}, {}),
        (None, {"prompts": [CLICK, other, third]}, {}),
        (None, {"prompts": [CLICK]}, {}),
        (None, {"end_frame": 3, "bbox_tracking": False}, {}),
        ((out / "masks.zip").unlink, {"end_frame": 3}, {"verify": True}),
        (lambda: (out / "debug_masks.mp4").write_bytes(b""), {"end_frame": 3}, {}),
        (None, {"end_frame": 3}, {"force": "masks"}),
        (None, {"end_frame": 3}, {"force": "propagate"}),
        (None, {"end_frame": 3}, {"force": "all"}),
        (raise_version, {"end_frame": 3}, {}),
        ((out / "frames.parquet").unlink, {"end_frame": 3, "keep_masklets": False}, {}),
        (None, {"end_frame": 3, "keep_masklets": False}, {}),
        (None, {"end_frame": 3, "keep_masklets": False}, {"force": "masks"}),
        (None, {"end_frame": 3}, {}),
    ]
    reasons = set()
    for number, (prepare, change, options) in enumerate(steps):
        if prepare:
            prepare()
        said, done = planned_and_done(fields | change, out, **options)
        assert said.keys() == done.keys(), number
        for place, reason in done.items():
            # what it is about follows in brackets
            assert said[place].split(" (")[0] == reason, (number, place)
        reasons |= set(done.values())
    assert reasons == {
        "",
        "new",
        "inputs changed",
        "parameters changed",
        "code changed",
        "output missing",
        "output damaged",
        "masklets removed",
        "forced",
    }


def test_a_dry_run_says_that_rounding_may_have_a_say(fields: dict[str, Any], out: Path) -> None:
    shutil.rmtree(out / "masklets" / "object=1")
    plan = {one.artifact: (one.action, one.why) for one in dry_run(make_job(fields), out)}
    assert plan["1"] == ("make", "output missing")
    assert plan["wide"] == plan["price.json"] == ("reuse", "")
    assert plan["masks.zip"] == ("reuse", "unless a masklet comes out otherwise, by rounding")


def test_a_dry_run_in_an_empty_place_writes_nothing(
    fields: dict[str, Any], tmp_path: Path, masklet: Masklet, eye: Eye
) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text('[{"frame_index": 0, "object_id": 1, "points": [[9, 9]], "labels": [1]}]')
    job = (fields["file"], "--model-type", "nano", "--prompts", prompts)
    code, printed, err = masklet("segment", *job, "--out", tmp_path / "a" / "b", "--dry-run")
    assert (code, err) == (0, "")
    assert list(tmp_path.iterdir()) == [prompts]
    assert eye.models_loaded == 0
    lines = printed.splitlines()
    assert ["make", "propagate", "1", "new"] in [line.split() for line in lines]
    assert lines[-1] == "6 to make; nothing has been written"


def test_a_dry_run_while_a_process_holds_the_directory(fields: dict[str, Any], out: Path) -> None:
    with lock.held(out):
        assert {one.action for one in dry_run(make_job(fields), out)} == {"reuse"}
        with pytest.raises(UserError, match=f"process {os.getpid()} on "):
            run_job(make_job(fields), out)
