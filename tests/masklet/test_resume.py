"""A run that was cut off goes on from its checkpoint, to the same bytes."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masklet import propagate, store, tracking
from masklet.atomic import TEMPORARY_FILES
from masklet.checkpoint import Kept, Standing, save_checkpoint
from masklet.cli.tables import print_status
from masklet.errors import UserError
from masklet.job import make_job
from masklet.manifest import Manifest
from masklet.pipeline import dry_run, run_job
from masklet.standings import CHECKPOINT
from masklet.status import read_status
from masklet.store import MaskletRow
from masklet.tracker import MemoryBank
from tests.masklet.conftest import keep_checkpoints_all_the_time

pytestmark = pytest.mark.usefixtures("checkpoints_all_the_time")

CHECKPOINT_AT = Path(".tracking", CHECKPOINT)


@pytest.fixture(scope="module")
def fields(clip: Path) -> dict[str, Any]:
    return {
        "file": str(clip),
        "model_type": "nano",
        "direction": "both",
        "bbox_tracking": True,
        "prompts": [
            {"frame_index": 3, "object_id": 1, "points": [[49, 45]], "labels": [1]},
            {"frame_index": 7, "object_id": "two", "box": [30, 10, 120, 90]},
        ],
    }


@pytest.fixture(scope="module")
def whole(fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run makes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run_job(make_job(fields), out)
    return contents(out)


@pytest.fixture
def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of steps that `propagate` was given as done, call by call."""
    calls: list[int] = []
    original = propagate.segment_frames

    def counted(plan: Any, ids: Any, network: Any, first: int = 0, banks: Any = None) -> Any:
        calls.append(first)
        return original(plan, ids, network, first, banks)

    monkeypatch.setattr(propagate, "segment_frames", counted)
    return calls


def contents(out: Path) -> dict[str, bytes]:
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "manifest.parquet"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def cut_off(fields: dict[str, Any], out: Path, after: int) -> None:
    """Run a job until it has taken so many steps of tracking."""

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "propagate" and done > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(make_job(fields), out, progress=progress)


@pytest.mark.parametrize("after", [1, 4, 16, 18, 19])
def test_goes_on_to_the_same_bytes(
    after: int,
    fields: dict[str, Any],
    whole: dict[str, bytes],
    steps_taken: list[int],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    cut_off(fields, out, after)
    run_job(make_job(fields), out)
    assert steps_taken == [0, after]
    assert contents(out) == whole


def test_cut_off_again_and_again(
    fields: dict[str, Any], whole: dict[str, bytes], steps_taken: list[int], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for after in range(1, 20, 3):
        cut_off(fields, out, after)
    run_job(make_job(fields), out)
    assert steps_taken == [0, *range(1, 20, 3)]
    assert contents(out) == whole


def test_status_and_a_dry_run_say_where_it_stands(
    fields: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    cut_off(fields, out, 9)
    status = read_status(out)
    assert status.tracked == {"1": 9, "two": 9}
    print_status(status)
    assert "object two: 9 frames tracked; the next run goes on there" in capsys.readouterr().out
    planned = {(one.stage, one.artifact): one.why for one in dry_run(make_job(fields), out)}
    assert planned["propagate", "1"].endswith("goes on after 9 frames")


def test_an_object_more(
    fields: dict[str, Any], whole: dict[str, bytes], steps_taken: list[int], tmp_path: Path
) -> None:
    """Those that were begun go on, the new one begins."""
    out = tmp_path / "out"
    cut_off(fields, out, 9)
    new = {"frame_index": 5, "object_id": 3, "points": [[55, 45]], "labels": [1]}
    run_job(make_job({**fields, "prompts": [*fields["prompts"], new]}), out)
    assert steps_taken == [0, 9, 0]
    made = contents(out)
    kept = [name for name in whole if name.startswith(("masklets/object=1", "masklets/object=two"))]
    assert len(kept) == 4
    assert all(made[name] == whole[name] for name in kept)


def test_another_job_does_not_go_on(
    fields: dict[str, Any], steps_taken: list[int], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    cut_off(fields, out, 9)
    other = {**fields, "end_frame": 12}
    run_job(make_job(other), out)
    run_job(make_job(other), tmp_path / "other")
    assert steps_taken == [0, 0, 0]
    assert contents(out) == contents(tmp_path / "other")


def test_parts_of_another_job_are_not_taken_in(
    fields: dict[str, Any],
    whole: dict[str, bytes],
    steps_taken: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A checkpoint without parts, and then a job that was cut off before it kept one."""
    out = tmp_path / "out"
    cut_off(fields, out, 9)
    monkeypatch.setenv("MASKLET_CHECKPOINT_SECONDS", "3600")
    monkeypatch.setattr(store, "PART_ROWS", 2)
    cut_off({**fields, "start_frame": 2}, out, 9)
    grown = list((out / ".tracking").glob("object=*/*.parquet"))
    assert grown
    monkeypatch.undo()
    run_job(make_job(fields), out)
    assert contents(out) == whole


def test_force_begins_anew(fields: dict[str, Any], steps_taken: list[int], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_job(make_job(fields), out)
    (out / "masklets/object=1/frames-00000000.parquet").unlink()
    cut_off(fields, out, 9)
    run_job(make_job(fields), out, force="propagate")
    assert steps_taken == [0, 0, 0]


def test_force_begins_a_first_run_anew(
    fields: dict[str, Any], steps_taken: list[int], tmp_path: Path
) -> None:
    """What was never made is new and not forced, and yet what was tracked of it does not count."""
    out = tmp_path / "out"
    cut_off(fields, out, 9)
    plan = dry_run(make_job(fields), out, force="propagate")
    assert not [one for one in plan if "goes on" in one.why]
    run_job(make_job(fields), out, force="propagate")
    assert steps_taken == [0, 0]


@pytest.fixture(scope="module")
def cut_off_on_the_way_back(
    fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """There is a part of each object then, and a checkpoint."""
    out = tmp_path_factory.mktemp("way_back") / "out"
    with pytest.MonkeyPatch.context() as patch:
        keep_checkpoints_all_the_time(patch)
        cut_off(fields, out, 19)
    return out


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "after"),
    [
        (lambda out: None, 19),
        (lambda out: flip_a_bit(out / CHECKPOINT_AT), 0),
        (lambda out: os.truncate(out / CHECKPOINT_AT, 1000), 0),
        (lambda out: (out / CHECKPOINT_AT).write_bytes(b""), 0),
        (lambda out: (out / CHECKPOINT_AT).unlink(), 0),
        (lambda out: [flip_a_bit(p) for p in out.glob(".tracking/object=*/*")], 0),
        (lambda out: [p.unlink() for p in out.glob(".tracking/object=*/*")], 0),
    ],
    ids=["nothing", "bit", "half", "empty", "gone", "bits of parts", "parts gone"],
)
def test_what_is_damaged_is_tracked_again(
    harm: Callable[[Path], object],
    after: int,
    fields: dict[str, Any],
    whole: dict[str, bytes],
    steps_taken: list[int],
    cut_off_on_the_way_back: Path,
    tmp_path: Path,
) -> None:
    out = shutil.copytree(cut_off_on_the_way_back, tmp_path / "out")
    harm(out)
    run_job(make_job(fields), out)
    assert steps_taken == [after]
    assert contents(out) == whole


@pytest.mark.parametrize("published", [0, 1, 2])
def test_cut_off_while_publishing(
    published: int,
    fields: dict[str, Any],
    whole: dict[str, bytes],
    steps_taken: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """All is tracked, some masklets are in place, and the manifest does not know yet."""
    out, done = tmp_path / "out", []

    def publish(grown: Path, place: Path) -> None:
        if len(done) == published:
            raise KeyboardInterrupt
        original(grown, place)
        done.append(place)

    with monkeypatch.context() as cut:
        original = tracking.publish
        cut.setattr(tracking, "publish", publish)
        if published == 2:
            cut.setattr(Manifest, "record", _cut_off_record(Manifest.record))
        with pytest.raises(KeyboardInterrupt):
            run_job(make_job(fields), out)
    run_job(make_job(fields), out)
    assert steps_taken == [0]
    assert contents(out) == whole


def _cut_off_record(original: Callable[..., None]) -> Callable[..., None]:
    def record(self: Manifest, done: Any) -> None:
        if done[0].work.stage == "propagate":
            raise KeyboardInterrupt
        original(self, done)

    return record


def test_a_masklet_in_its_place_is_on_disk_before_the_manifest_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    grown, place = tmp_path / "grown", tmp_path / "masklets" / "object=1"
    grown.mkdir()
    tracking.publish(grown, place)
    assert place.is_dir()
    assert place.parent.stat().st_ino in flushed


def test_a_masklet_whose_place_is_taken_is_refused(tmp_path: Path) -> None:
    grown, place = tmp_path / "grown", tmp_path / "object=1"
    grown.mkdir()
    place.write_text("a file")
    with pytest.raises(UserError, match="object=1: cannot be written"):
        tracking.publish(grown, place)


def test_a_run_that_left_nothing_of_use_is_taken_back(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKLET_CHECKPOINT_SECONDS", "1e9")
    cut_off(fields, tmp_path / "new/out", 5)
    assert not (tmp_path / "new").exists()


_KILLED = """
import sys, time
from masklet import pipeline, propagate
from masklet.job import make_job
propagate._MOST_FOR_KEEPING = 1e9
def progress(stage, done, total):
    if stage == "propagate" and done > 7:
        print("tracking", flush=True)
        time.sleep(600)
import json
pipeline.run_job(make_job(json.loads(sys.argv[1])), pipeline.Path(sys.argv[2]), progress=progress)
"""


def test_killed(
    fields: dict[str, Any], whole: dict[str, bytes], steps_taken: list[int], tmp_path: Path
) -> None:
    """A process that is killed leaves its lock and its temporary files to the next one."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", _KILLED, json.dumps(fields), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "tracking\n"
        with pytest.raises(UserError, match=f"another run is at work there .process {process.pid}"):
            run_job(make_job(fields), out)
        process.send_signal(signal.SIGKILL)
    (out / ".masks.zip.99.tmp").write_bytes(b"half")
    (out / ".tracking" / f".{CHECKPOINT}.99.tmp").write_bytes(b"half")
    run_job(make_job(fields), out)
    assert steps_taken == [7]
    assert contents(out) == whole
    assert not list(out.rglob(TEMPORARY_FILES))


def test_checkpoints_come_by_time(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every so many seconds, less often where the disk is slow, and when all is tracked."""
    now, kept = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setenv("MASKLET_CHECKPOINT_SECONDS", "30")
    monkeypatch.setattr(propagate, "_MOST_FOR_KEEPING", 0.025)
    monkeypatch.setattr(tracking, "save_checkpoint", lambda path, objects: save(objects))

    def save(objects: Any) -> None:
        kept.append(next(iter(objects.values())).standing.steps)
        now[0] += 2.0  # every fortieth of 80 seconds

    def progress(stage: str, done: int, total: int) -> None:
        now[0] += 10.0 if stage == "propagate" else 0.0

    run_job(make_job({**fields, "direction": "forward"}), tmp_path / "out", progress=progress)
    # the first call is for none; then 10 s a step
    assert kept == [2, 10, 17]


def test_a_checkpoint_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    rows = [MaskletRow(0, 1.0, np.zeros((64, 64), np.float32))]
    path = tmp_path / CHECKPOINT
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match=r"checkpoint\.safetensors: cannot be written"):
            save_checkpoint(path, {1: Kept("key", Standing(1, MemoryBank({}), rows))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
