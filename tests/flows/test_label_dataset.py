"""Datasets as Prefect runs: shards in process and by a deployment, on a real server."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import ArtifactSort
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed
from prefect.testing.utilities import prefect_test_harness

from flows.label_dataset import label_dataset
from masklet.dataset import read_dataset
from masklet.item_table import ItemRow, blank_row, summarise
from masklet.shards import plan_shards
from tasks.artifacts import show_dataset
from tasks.label_dataset import ended, run_on_workers

CLICK = {"frame_index": 0, "object_id": 1, "points": [[40, 45]], "labels": [1]}


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.fixture
def dataset(clip: Path, tmp_path: Path) -> Path:
    """Three items of two frames, of which one is no video."""
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    shutil.copy(clip, tmp_path / "good.mp4")
    files = {"one": "good.mp4", "bad": "bad.mp4", "two": "good.mp4"}
    items = [{"item_id": name, "file": file} for name, file in files.items()]
    defaults = {"model_type": "nano", "prompts": [CLICK], "end_frame": 1}
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"defaults": defaults, "items": items}))
    return path


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    return {row["item_id"]: row for row in pq.read_table(out / "dataset.parquet").to_pylist()}


def statuses(out: Path) -> dict[str, str]:
    return {name: row["status"] for name, row in rows_of(out).items()}


def artifact(key: str) -> Any:
    with get_client(sync_client=True) as client:
        by_key = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
        newest = ArtifactSort.CREATED_DESC
        return client.read_artifacts(artifact_filter=by_key, sort=newest, limit=1)[0].data


def test_a_bad_item_fails_the_run_and_stops_no_other(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    state = label_dataset(str(dataset), str(out), shard_size=2, return_state=True)
    line = "2 done, 0 reused, 1 failed; price $0.0200. bad: bad.mp4 is not a video"
    assert state.type == StateType.FAILED
    assert str(state.message).startswith(line)
    assert statuses(out) == {"one": "done", "bad": "failed", "two": "done"}
    assert not (out / ".shards").exists()
    assert artifact("items") == 100.0
    assert [row["item"] for row in json.loads(artifact("failed-items"))] == ["bad"]
    shown = {row["what"]: row["value"] for row in json.loads(artifact("dataset"))}
    assert (shown["done"], shown["failed"], "failures" in shown) == ("2", "1", False)

    shutil.copy(dataset.parent / "good.mp4", dataset.parent / "bad.mp4")
    again = label_dataset(str(dataset), str(out), return_state=True)
    assert again.is_completed()
    assert statuses(out) == {"one": "reused", "bad": "done", "two": "reused"}


def test_what_to_look_at_is_a_table_of_its_own() -> None:
    row = blank_row("a", "a.mp4", "out/a", "run")
    seen = replace(row, status="done", look_at="object 1 is on 2 frames of 90")
    flow(name="shows", persist_result=False)(show_dataset)(summarise([seen], "run"), [seen])
    assert json.loads(artifact("look-at")) == [{"item": "a", "look at": seen.look_at}]


def test_a_run_that_has_not_come_to_an_item_has_failed() -> None:
    state = ended(summarise([blank_row("a", "a.mp4", "out/a", "")], "run"))
    assert state.is_failed()
    assert state.message == "0 done, 0 reused, 0 failed, 1 pending; price $0.0000"


def test_a_dataset_with_problems_is_refused_with_all_of_them(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = json.loads(dataset.read_text())
    document["items"] += [{"item_id": "a/b", "file": "good.mp4"}, {"item_id": "c", "file": "no"}]
    dataset.write_text(json.dumps(document))
    state = label_dataset(str(dataset), str(tmp_path / "out"), return_state=True)
    assert state.is_failed()
    assert "2 of 5 items cannot be run" in str(state.message)
    for line in ("item 4 (a/b): the item_id is not safe", "item 5 (c): "):
        assert any(said.startswith(line) for said in caplog.messages)
    assert "Traceback" not in caplog.text
    assert not (tmp_path / "out").exists()


@pytest.fixture
def worker() -> Iterator[str]:
    """The name of a deployment of label-shard, and a process that serves it."""
    environment = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    with subprocess.Popen(
        [sys.executable, "-c", SERVE],
        cwd=Path(__file__).parents[2],
        env=environment,
        start_new_session=True,
    ) as serving:
        try:
            with get_client(sync_client=True) as client:
                while serving.poll() is None and not client.read_deployments():
                    time.sleep(0.2)
            yield "label-shard/label-shard"
        finally:
            os.killpg(serving.pid, signal.SIGKILL)


SERVE = """
from flows.label_dataset import label_shard
label_shard.serve("label-shard", limit=1)
"""


def test_shards_run_by_a_deployment(dataset: Path, tmp_path: Path, worker: str) -> None:
    out = tmp_path / "out"
    state = label_dataset(
        str(dataset), str(out), shard_size=2, deployment=worker, return_state=True
    )
    assert str(state.message).startswith("2 done, 0 reused, 1 failed")
    assert statuses(out) == {"one": "done", "bad": "failed", "two": "done"}
    assert len({row["worker"] for row in rows_of(out).values()}) == 2  # a process a shard


def test_runs_that_ended_before_a_retry_are_not_held_against_an_item(
    dataset: Path, tmp_path: Path, worker: str
) -> None:
    out = str(tmp_path / "out")
    [shard] = plan_shards(read_dataset(str(dataset)).items, out, "retried", 100)
    later = datetime.now(UTC) + timedelta(days=1)
    for attempt in range(3):
        key = f"retried-{shard.name}-{attempt}"
        sent = run_deployment(
            worker,
            parameters={"shard": shard.place, "out": out, "run_id": "retried"},
            timeout=0,
            idempotency_key=key,
            scheduled_time=later,
        )
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(sent.id, Crashed(), force=True)

    @flow(persist_result=False)
    def parent() -> list[ItemRow]:
        sends = run_on_workers([shard], worker, out, "retried", processes=1, in_flight=1)
        return list(sends)[-1]

    assert {row.item_id: row.status for row in parent()} == {
        "one": "done",
        "bad": "failed",
        "two": "done",
    }


def test_a_deployment_that_is_not_there(dataset: Path, tmp_path: Path) -> None:
    state = label_dataset(
        str(dataset), str(tmp_path / "out"), deployment="label-shard/none", return_state=True
    )
    assert str(state.message).startswith("label-shard/none: the server has no such deployment")
