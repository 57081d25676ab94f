"""Labelling a dataset: what fails alone, what is made once, and what killed processes leave."""

import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from masklet import item_table, label, lock, pipeline, storage
from masklet.atomic import replacing
from masklet.dataset import Dataset, Item, read_dataset
from masklet.errors import UserError
from masklet.estimate import estimate
from masklet.item_table import SCHEMA, ItemRow, read_rows
from masklet.label import label_dataset
from masklet.shards import forget_shards, plan_shards, run_shard, shard_rows, take_over
from tests.conftest import HEIGHT, WIDTH

CLICK = {"frame_index": 0, "object_id": 1, "points": [[40, 45]], "labels": [1]}
NANO = {"model_type": "nano", "end_frame": 1}


@pytest.fixture
def folder(clip: Path, tmp_path: Path) -> Path:
    """Two videos and between them a file that is none, each with a click beside it."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a", "c"):
        shutil.copy(clip, data / f"{name}.mp4")
    (data / "b.mp4").write_bytes(b"no video")
    for name in ("a", "b", "c"):
        (data / f"{name}.json").write_text(json.dumps([CLICK]))
    return data


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return read_dataset(folder, NANO)


def statuses(out: Path) -> dict[str, str]:
    return {row.item_id: row.status for row in read_rows(str(out / "dataset.parquet"))}


def test_a_bad_item_fails_alone_and_a_rerun_does_what_is_missing(
    dataset: Dataset, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    original = pipeline.load_model
    monkeypatch.setattr(pipeline, "load_model", lambda *given: loaded.append(1) or original(*given))
    out, said = tmp_path / "out", list[ItemRow]()
    summary = label_dataset(dataset, str(out), report=said.append)
    assert [row.item_id for row in said] == ["a", "b", "c"]
    assert len(loaded) == 1
    counts = ("items", "done", "reused", "failed", "pending", "is_complete", "frames", "price")
    assert [summary[name] for name in counts] == [3, 2, 0, 1, 0, False, 4, 0.02]
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["failures"][0]["items"] == ["b"]
    assert pq.read_schema(out / "dataset.parquet").equals(SCHEMA)
    first = {row.item_id: row for row in read_rows(str(out / "dataset.parquet"))}
    assert (first["a"].status, first["a"].reason, first["a"].frames) == ("done", "new", 2)
    assert (
        first["b"].error
        == "b.mp4 is not a video or image in a format that masklet reads, such as mp4 or png"
    )
    assert not (out / "b").exists()

    shutil.copy(folder / "a.mp4", folder / "b.mp4")
    (out / "c" / "masks.zip").unlink()
    again = label_dataset(dataset, str(out))
    assert statuses(out) == {"a": "reused", "b": "done", "c": "done"}
    assert again["is_complete"]
    rows = {row.item_id: row for row in read_rows(str(out / "dataset.parquet"))}
    assert rows["c"].reason == "output missing"
    assert rows["c"].model_seconds == 0.0


def test_the_table_is_right_after_every_item(dataset: Dataset, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", list[dict[str, str]]()
    label_dataset(dataset, str(out), report=lambda row: seen.append(statuses(out)))
    pending = dict.fromkeys("abc", "pending")
    # written after an item unless that would take long
    assert seen[-1].keys() == pending.keys()
    for before, after in zip([pending, *seen], seen, strict=False):
        assert all(after[one] == before[one] or before[one] == "pending" for one in after)
    with pytest.raises(RuntimeError, match="stop"):
        label_dataset(dataset, str(tmp_path / "other"), report=_stop)
    assert statuses(tmp_path / "other") == {"a": "done", "b": "pending", "c": "pending"}


def test_an_item_is_written_down_while_the_next_one_is_at_work(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_table, "_SHARE_OF_TIME", 0.01)  # too soon to write after the first
    with label.open_table(dataset, str(tmp_path), "run") as table:
        table.put(replace(table.rows()[0], run_id="run").failed("no video", 0.0))
        assert statuses(tmp_path)["a"] == "pending"
        for _ in range(600):
            if statuses(tmp_path)["a"] == "failed":
                break
            time.sleep(0.1)
        assert json.loads((tmp_path / "summary.json").read_text())["failed"] == 1
        table.put(replace(table.rows()[1], run_id="run").failed("no video", 0.0))
    assert statuses(tmp_path) == {"a": "failed", "b": "failed", "c": "pending"}


def _stop(row: ItemRow) -> None:
    raise RuntimeError("stop")


def test_processes_do_what_one_does(dataset: Dataset, tmp_path: Path) -> None:
    label_dataset(dataset, str(tmp_path / "one"))
    summary = label_dataset(dataset, str(tmp_path / "two"), processes=2)
    assert (summary["done"], summary["failed"]) == (2, 1)
    assert statuses(tmp_path / "one") == statuses(tmp_path / "two")
    for name in ("a", "c"):
        whole = [tmp_path / out / name / "masks.zip" for out in ("one", "two")]
        assert whole[0].read_bytes() == whole[1].read_bytes()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_an_item_whose_process_dies_fails_alone(
    sent: signal.Signals, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label, "_begin", partial(begin_with_signal_at_b, sent))
    out = tmp_path / "out"
    summary = label_dataset(dataset, str(out), processes=2)
    assert statuses(out) == {"a": "done", "b": "failed", "c": "done"}
    assert summary["failures"][0]["error"].startswith("its process died")


def test_children_of_whoever_labels_are_left_alone(dataset: Dataset, tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(3600,))
    child.start()
    try:
        with pytest.raises(RuntimeError, match="stop"):
            label_dataset(dataset, str(tmp_path / "out"), processes=2, report=_stop)
        child.join(0.5)
        assert child.is_alive()
    finally:
        child.kill()


def begin_with_signal_at_b(sent: signal.Signals, threads: int) -> None:
    """Begins a process that is killed at b, or asked to end, for want of memory for instance."""
    BEGIN(threads)

    def run_item(item: Item, *given: Any, **options: Any) -> ItemRow:
        if item.item_id == "b":
            os.kill(os.getpid(), sent)
        return RUN_ITEM(item, *given, **options)

    label.run_item = run_item


RUN_ITEM, BEGIN = label.run_item, label._begin


def test_a_killed_run_loses_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [str(folder), "--out", str(out), "--model-type", "nano", "--end-frame", "1"]
    whole = [sys.executable, "-c", "from masklet.cli import main; main()", "label", *command]
    with subprocess.Popen([*whole, "--processes", "2"], stderr=subprocess.DEVNULL) as process:
        for _ in range(1000):
            if (out / "a" / "manifest.parquet").exists():
                break
            time.sleep(0.1)
        process.kill()
    children_are_gone(out)
    ended = subprocess.run(whole, check=False, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1  # b is no video
    assert "Traceback" not in ended.stderr
    assert ended.stdout.count("failed: b: b.mp4 is not a video") == 1
    rows = {row.item_id: row for row in read_rows(str(out / "dataset.parquet"))}
    assert rows["b"].status == "failed"
    assert {rows["a"].status, rows["c"].status} <= {"done", "reused"}
    for one in ("a", "c"):
        made = pq.read_table(out / one / "manifest.parquet")["reason"].to_pylist()
        assert set(made) == {"new"}


def children_are_gone(out: Path) -> None:
    """Wait until no process holds one of the items."""
    for _ in range(300):
        if not any(lock.holder(folder) for folder in out.iterdir() if folder.is_dir()):
            return
        time.sleep(0.1)
    raise AssertionError("a process of the pool has outlived its parent")


def test_an_unnamed_directory_is_not_the_root(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="out is empty"):
        label_dataset(dataset, "")


def test_a_directory_that_looks_like_an_address(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    summary = label_dataset(dataset, "run:2")
    assert (summary["done"], summary["failed"]) == (2, 1)
    assert statuses(Path("run:2")) == {"a": "done", "b": "failed", "c": "done"}


@pytest.mark.parametrize("field", ["checkpoint", "mask_prompts", "\ud800"])
def test_a_name_that_is_no_text_fails_alone(field: str, folder: Path, tmp_path: Path) -> None:
    jobs = [{"item_id": "a", "file": str(folder / "a.mp4"), "prompts": [CLICK], **NANO}]
    jobs.append({**jobs[0], "item_id": "odd", field: "\ud800"})
    path = tmp_path / "jobs.jsonl"
    path.write_text("".join(json.dumps(job) + "\n" for job in jobs))
    found = read_dataset(path, {})
    out = tmp_path / "out"
    summary = label_dataset(found, str(out))
    assert (summary["done"], summary["failed"]) == (1, 1)


def test_a_file_whose_name_is_no_text_fails_alone(folder: Path, tmp_path: Path) -> None:
    for suffix in ("mp4", "json"):
        shutil.copy(folder / f"a.{suffix}", os.fsencode(folder) + b"/gr\xf6sse." + suffix.encode())
    summary = label_dataset(read_dataset(folder, NANO), str(tmp_path / "out"))
    assert (summary["done"], summary["failed"]) == (2, 2)


def test_two_runs_do_not_label_into_one_directory(dataset: Dataset, tmp_path: Path) -> None:
    with (
        lock.held(tmp_path / "out"),
        pytest.raises(UserError, match="another run is at work there"),
    ):
        label_dataset(dataset, str(tmp_path / "out"))


def test_what_a_killed_run_was_about_to_write_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".dataset.parquet.9.tmp").write_bytes(b"half")
    with label.holding(str(tmp_path)):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_damaged_table_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "dataset.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="remove it to start afresh"):
        label_dataset(dataset, str(tmp_path))


def test_invalid_items_are_failed_rows_of_those_who_skip_them(clip: Path, tmp_path: Path) -> None:
    items = [{"item_id": "a/b", "file": "no.mp4"}, {"item_id": "good", "file": str(clip)}]
    defaults = {**NANO, "prompts": [CLICK]}
    (tmp_path / "set.json").write_text(json.dumps({"defaults": defaults, "items": items}))
    out = tmp_path / "out"
    label_dataset(read_dataset(tmp_path / "set.json"), str(out))
    assert statuses(out) == {"item 1 (a/b)": "failed", "good": "done"}
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["good"]


def test_an_estimate_adds_up_and_lists_what_would_fail(dataset: Dataset) -> None:
    found = estimate(dataset.items)
    assert (found.items, found.frames, found.objects, found.price) == (2, 4, 2, 0.02)
    assert found.seconds is not None
    assert found.seconds > 0
    assert found.problems == [
        "b: b.mp4 is not a video or image in a format that masklet reads, such as mp4 or png"
    ]


def test_an_estimate_of_an_item_with_masks_on_late_frames(clip: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        stream = io.BytesIO()
        np.save(stream, np.ones((HEIGHT, WIDTH), bool))
        archive.writestr("19_late.npy", stream.getvalue())
    job = {"file": str(clip), "prompts": [CLICK], "mask_prompts": str(tmp_path / "m.zip")}
    (tmp_path / "jobs.json").write_text(json.dumps([{**job, "model_type": "nano"}]))
    found = estimate(read_dataset(tmp_path / "jobs.json", {}).items)
    assert found.seconds


def test_an_object_that_is_hardly_seen_is_worth_a_look(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set.json").write_text(
        json.dumps([{"item_id": "a", "file": str(clip), "prompts": [CLICK], **NANO}])
    )
    dataset = read_dataset(tmp_path / "set.json")
    assert label_dataset(dataset, str(tmp_path / "out"))["look_at"] == {}
    monkeypatch.setattr(label, "_RARELY", 1.0)
    summary = label_dataset(dataset, str(tmp_path / "out"))
    assert summary["look_at"] == {"a": "object 1 is on 2 frames of 2"}


def test_a_damaged_source_is_worth_a_look(folder: Path, tmp_path: Path) -> None:
    content = (folder / "a.mp4").read_bytes()
    middle = len(content) // 2
    (folder / "b.mp4").write_bytes(content[:middle] + bytes(400) + content[middle + 400 :])
    for _ in range(2):  # made, and there already
        summary = label_dataset(read_dataset(folder, NANO), str(tmp_path / "out"))
        assert summary["failed"] == 0
        assert summary["look_at"].keys() == {"b"}
        assert summary["look_at"]["b"].startswith("the source is damaged: ")


def test_attempts_at_a_shard_do_what_is_left(dataset: Dataset, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    [shard] = plan_shards(dataset.items, out, "run", 100)
    assert plan_shards(dataset.items, out, "run", 100) == [shard]
    first = run_shard(shard.place, out, "run")
    assert next(first).status == "done"
    first.close()  # killed after an item
    assert shard_rows(shard.place, "run").keys() == {"a"}
    second = list(run_shard(shard.place, out, "run", 1))
    assert [row.status for row in second] == ["done", "failed", "done"]
    assert second[0] == shard_rows(shard.place, "run")["a"]

    # of an attempt that is run again, as by Prefect's Retry
    rows = list(run_shard(shard.place, out, "run", 1))
    assert rows == second
    Path(shard.place.replace(".jsonl", "-0.parquet")).unlink()
    assert list(shard_rows(shard.place, "run").values()) == second

    # an item that was corrected meanwhile
    other = replace(dataset.items[0], job=dataset.items[0].job.model_copy(update={"end_frame": 2}))
    [changed] = plan_shards([other, *dataset.items[1:]], out, "run", 100)
    assert shard_rows(changed.place, "run") == {}

    # a parent that was killed before it took over these rows
    table = label.open_table(dataset, out, "next")
    take_over(table, out, "next")
    assert [row.status for row in table.rows()] == ["done", "failed", "done"]
    assert table.missing(dataset.items) == list(dataset.items)
    forget_shards(out)
    with pytest.raises(UserError, match="there is no such shard"):
        next(run_shard(shard.place, out, "run"))


def test_what_is_not_of_a_run_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    for name in ("summary.mp4", "cup.mp4"):
        shutil.copy(folder / "a.mp4", tmp_path / name)
        (tmp_path / name).with_suffix(".json").write_text(json.dumps([CLICK]))
    before = (tmp_path / "summary.json").read_bytes()
    with pytest.raises(UserError, match="is not of a run of masklet"):
        label_dataset(read_dataset(tmp_path, NANO), str(tmp_path))
    assert (tmp_path / "summary.json").read_bytes() == before
    (tmp_path / "other").mkdir()
    for content in ("7", '"run_id"', "{}", "no JSON"):
        (tmp_path / "other/summary.json").write_text(content)
        with pytest.raises(UserError, match="is not of a run of masklet"):
            label_dataset(read_dataset(tmp_path / "*.mp4", NANO), str(tmp_path / "other"))
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables/dataset.parquet"
    rows = [{"item_id": "a", "file": str(tmp_path / "cup.mp4"), "prompts": json.dumps([CLICK])}]
    pq.write_table(pa.Table.from_pylist(rows), table)
    with pytest.raises(UserError, match="is the dataset"):
        label_dataset(read_dataset(table, NANO), str(table.parent))


def test_a_folder_can_be_labelled_into_itself(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "a.mp4", tmp_path / "cup.mp4")
    (tmp_path / "cup.json").write_text(json.dumps([CLICK]))
    for done in ("done", "reused"):
        found = read_dataset(tmp_path, NANO).require_sound()
        assert label_dataset(found, str(tmp_path))[done] == 1


def test_files_that_are_being_written_are_not_listed(tmp_path: Path) -> None:
    with replacing(tmp_path / "whole") as temporary:
        temporary.write_bytes(b"half")
        assert storage.list_files(str(tmp_path)) == {}
    assert storage.list_files(str(tmp_path)) == {"whole": 4}


def test_an_address_that_names_no_place_is_no_folder(dataset: Dataset) -> None:
    for place in ("s3://", "memory:///"):
        with pytest.raises(UserError, match="names no place"):
            label_dataset(dataset, place)


def test_the_password_of_a_store_is_not_shown(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ftp://127\.0\.0\.1:9/out") as caught:
        label_dataset(dataset, "ftp://me:SECRET@127.0.0.1:9/out")
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in str(label.pending_row(dataset.items[0], "ftp://me:SECRET@h/out"))


@pytest.fixture(scope="module")
def store() -> Iterator[None]:
    """A server that speaks S3, known by the environment."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    S3FileSystem.clear_instance_cache()  # those of another server's tests
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "masklet")
        yield
    S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def bucket(store: None) -> str:
    """A folder in a bucket of its own."""
    name = f"masklet-{uuid.uuid4().hex}"
    S3FileSystem().mkdir(name)
    return f"s3://{name}/out"


def test_run_directories_in_a_store(dataset: Dataset, bucket: str, tmp_path: Path) -> None:
    left = ("debug_masks.mp4", "bbox_tracking_1.json", "masklets/object=1/frames-00000900.parquet")
    for name in (*left, "readme.txt"):
        # as a run of another job that was killed before it put its manifest there
        storage.write_bytes(f"{bucket}/a/{name}", b"of before")
    summary = label_dataset(dataset, bucket)
    assert (summary["done"], summary["failed"]) == (2, 1)
    S3FileSystem().rm_file(f"{bucket}/a/readme.txt")
    label_dataset(dataset, str(tmp_path / "here"))
    here = {
        name: size
        for name, size in storage.list_files(str(tmp_path / "here" / "a")).items()
        if name not in (".lock", "manifest.parquet")
    }
    there = storage.list_files(f"{bucket}/a")
    assert there.pop("manifest.parquet") > 0
    assert there == here
    assert storage.list_files(f"{bucket}/b") == {}

    notes = f"{bucket}/a/.notes/a.txt"
    S3FileSystem().pipe_file(notes, b"somebody's")
    storage.remove(f"{bucket}/c")
    again = label_dataset(dataset, bucket)
    rows = {row.item_id: row.status for row in read_rows(f"{bucket}/dataset.parquet")}
    assert rows == {"a": "reused", "b": "failed", "c": "done"}
    assert (again["done"], again["reused"]) == (1, 1)
    assert S3FileSystem().cat_file(notes) == b"somebody's"


def test_a_store_that_is_not_there_is_a_refusal(dataset: Dataset, bucket: str) -> None:
    for place in ("s3://no-such-bucket/out", "nothing://out"):
        with pytest.raises(UserError, match=place.split(":")[0]):
            label_dataset(dataset, place)
