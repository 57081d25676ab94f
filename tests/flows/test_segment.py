"""The flow on a real Prefect server: the same outputs as the library, and what it shows of them."""

import base64
import io
import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect import State, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import ArtifactSort
from prefect.flow_engine import run_flow
from prefect.logging import get_logger

from flows.segment import segment
from masklet.errors import UserError
from masklet.job import make_job
from masklet.pipeline import run_job


def files(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("manifest.parquet", ".lock")
    }


def test_the_flow_makes_what_the_library_makes_and_makes_it_once(
    job_fields: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(job_fields | {"debug_masks": True, "bbox_tracking": True})
    run_job(job, tmp_path / "library")
    video, outputs = segment(job, tmp_path / "flow")
    assert files(tmp_path / "flow") == files(tmp_path / "library")
    assert video == outputs["debug_masks"]

    before = files(tmp_path / "flow")
    with caplog.at_level(logging.INFO):
        state = segment(job, tmp_path / "flow", return_state=True)
    assert state.is_completed()
    assert files(tmp_path / "flow") == before
    for stage in ("propagate 1", "propagate wide", "masks masks.zip", "debug_masks"):
        assert any(f"{stage}" in line and "reused" in line for line in caplog.messages), stage


STAGES = ("ingest", "check_prompts", "propagate", "masks", "look", "finish")


def states_of(state: State[Any]) -> dict[str, str]:
    """The names of the states in which the tasks of a flow run have ended."""
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        for _ in range(300):  # the server notes them some time after the run
            runs = client.read_task_runs(flow_run_filter=of_run)
            if len(runs) == len(STAGES) and all(run.state and run.state.is_final() for run in runs):
                break
            time.sleep(0.2)
    return {run.name.split("-")[0]: str(run.state_name) for run in runs}


def newest(key: str) -> Any:
    """What the newest artifact of this key holds."""
    with get_client(sync_client=True) as client:
        by_key = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
        found = client.read_artifacts(
            artifact_filter=by_key, sort=ArtifactSort.CREATED_DESC, limit=1
        )
    return found[0].data


def newest_table(key: str) -> list[dict[str, Any]]:
    return list(json.loads(newest(key)))


def picture_in(markdown: str) -> Image.Image:
    address = re.search(r"\(data:image/jpeg;base64,([^)]+)\)", markdown)
    assert address
    return Image.open(io.BytesIO(base64.b64decode(address[1])))


def test_what_was_reused_and_why_the_rest_was_made_is_shown(
    job_fields: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = job_fields | {"end_frame": 5}
    first = segment(make_job(fields), tmp_path / "out", return_state=True)
    assert states_of(first) == dict.fromkeys(STAGES, "Completed")
    assert {row["reason"] for row in newest_table("reasons")} == {"new"}

    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = segment(make_job(fields), tmp_path / "out", return_state=True)
    # prompts are checked every time
    done_again = {"check_prompts": "Completed", "look": "Completed"}
    assert states_of(again) == dict.fromkeys(STAGES, "Reused") | done_again
    rows = {(row["stage"], row["artifact"]): row for row in newest_table("reasons")}
    assert {row["outcome"] for row in rows.values()} == {"reused"}
    assert sum(line.endswith(": reused") for line in caplog.messages) == len(rows)

    wide = fields["prompts"][1] | {"box": [30, 10, 120, 90]}
    changed = make_job(fields | {"prompts": [fields["prompts"][0], wide]})
    caplog.clear()
    with caplog.at_level(logging.INFO):
        third = segment(changed, tmp_path / "out", return_state=True)
    states = states_of(third)
    assert states["ingest"] == "Reused"
    assert {states[name] for name in ("propagate", "masks", "finish")} == {"Completed"}
    rows = {(row["stage"], row["artifact"]): row for row in newest_table("reasons")}
    one, other = rows["propagate", "1"], rows["propagate", "wide"]
    assert (one["outcome"], one["reason"], one["seconds"]) == ("reused", "", 0.0)
    assert (other["outcome"], other["reason"]) == ("made", "parameters changed")
    assert other["bytes"] > 0
    for (stage, artifact), row in rows.items():
        start = f"{stage} {artifact}: {row['reason'] or 'reused'}"
        assert any(line.startswith(start) for line in caplog.messages)


def test_the_flow_makes_again_what_is_forced(job_fields: dict[str, Any], tmp_path: Path) -> None:
    job = make_job(job_fields | {"end_frame": 5})
    run_job(job, tmp_path / "out")
    state = segment(job, tmp_path / "out", force="masks", return_state=True)
    states = states_of(state)
    assert (states["propagate"], states["masks"]) == ("Reused", "Completed")
    [made] = [row for row in newest_table("reasons") if row["outcome"] == "made"]
    assert (made["artifact"], made["reason"]) == ("masks.zip", "forced")


def test_a_wrong_job_fails_with_its_one_line_and_writes_nothing(
    job_fields: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = {"frame_index": 99, "object_id": 1, "points": [[1, 1]], "labels": [1]}
    job = make_job(job_fields | {"prompts": [late]})
    with caplog.at_level(logging.INFO):
        state = segment(job, tmp_path / "out", return_state=True)
    assert state.is_failed()
    line = "prompts[0] (frame 99, object 1): there is no frame 99; disc.mp4 has the frames 0 to 19"
    assert state.message == line
    assert "Traceback" not in caplog.text
    with pytest.raises(UserError, match="there is no frame 99"):
        segment(job, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_job_that_is_none_fails_with_its_one_line(
    job_fields: dict[str, Any], tmp_path: Path
) -> None:
    # as a deployment hands it over, checked against the schema at most
    unlabelled = {"frame_index": 0, "object_id": 1, "points": [[1, 1]]}
    fields: Any = job_fields | {"prompts": [unlabelled]}
    state = segment(fields, tmp_path / "out", return_state=True)
    line = "prompts[0] (frame 0, object 1) has 1 points but 0 labels; give one label a point"
    assert (state.type, state.message) == (StateType.FAILED, line)
    assert not (tmp_path / "out").exists()


def test_a_run_shows_its_outputs_its_objects_its_price_and_pictures(
    job_fields: dict[str, Any], tmp_path: Path
) -> None:
    job = make_job(job_fields | {"bbox_tracking": True, "end_frame": 5})
    segment(job, tmp_path / "out")
    outputs = {row["output"]: row for row in newest_table("outputs")}
    assert outputs["masks"]["holds"] == "12 pictures"
    assert outputs["masks"]["bytes"] == Path(outputs["masks"]["path"]).stat().st_size
    boxes = json.loads(Path(outputs["bbox_tracking"]["path"]).read_text())
    assert outputs["bbox_tracking"]["holds"] == f"{sum(map(len, boxes.values()))} boxes"
    assert outputs["masklets"]["holds"] == "2 objects"
    first, second = newest_table("objects")
    assert (first["object"], second["object"]) == ("1", "wide")
    assert (first["frames present"], first["of"]) == (6, 6)
    assert (first["first frame"], first["last frame"]) == (0, 5)
    assert 0.5 < first["mean confidence"] <= 1
    assert {row["what"]: row["value"] for row in newest_table("price")}["total"] == 0.01
    sheet = picture_in(newest("contact-sheet"))
    assert sheet.width > 3 * 160

    segment(job.model_copy(update={"preview": True}), tmp_path / "out")
    assert picture_in(newest("prompted-frames")).width > 2 * 160


def test_a_refusal_is_logged_in_one_line_and_without_a_traceback(
    job_fields: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"job": job_fields | {"file": str(tmp_path / "no.mp4")}, "out": tmp_path / "out"}
    with pytest.raises(UserError, match=r"no\.mp4"):  # as a worker starts it
        run_flow(segment, parameters=given, error_logger=get_logger("flow_runs"))
    assert any(one.startswith("Finished in state Failed(") for one in caplog.messages)
    assert not any(one.exc_info for one in caplog.records)
