"""A run that waits for a person: the process ends, and the answer starts it again."""

import base64
import io
import re
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from PIL import Image
from prefect import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.flow_runs import resume_flow_run

from flows.segment import segment
from masklet.job import make_job


@pytest.fixture
def run_id(job_fields: dict[str, Any], tmp_path: Path) -> UUID:
    """A run of a deployment that waits for approval, not begun yet."""
    job = job_fields | {"end_frame": 5}
    parameters = {"job": job, "out": str(tmp_path / "out"), "approve": True}
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(segment)
        deployment = client.create_deployment(flow_id=flow_id, name="segment")
        run = client.create_flow_run_from_deployment(deployment, parameters=parameters)
    return run.id


def work(run_id: UUID) -> tuple[StateType, str]:
    """Do what a worker does with a run that is due; gives the state in which it ends."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)
        with suppress(Pause):
            run_flow(segment, flow_run=run, parameters=run.parameters, return_type="state")
        state = client.read_flow_run(run_id).state
    assert state
    return state.type, state.message or ""


def previews(run_id: UUID) -> list[str]:
    of_run = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]),
        key=ArtifactFilterKey(any_=["prompted-frames"]),
    )
    with get_client(sync_client=True) as client:
        return [str(one.data) for one in client.read_artifacts(artifact_filter=of_run)]


def test_nothing_is_tracked_before_the_corrected_prompts_are_approved(
    run_id: UUID, tmp_path: Path
) -> None:
    assert work(run_id)[0] is StateType.PAUSED
    assert not (tmp_path / "out" / "masks.zip").exists()
    [picture] = previews(run_id)
    address = re.search(r"base64,([^)]+)\)", picture)
    assert address
    assert Image.open(io.BytesIO(base64.b64decode(address[1]))).width > 2 * 160

    box = {"kind": "box", "frame_index": 0, "object_id": 7, "x_min": 20, "y_min": 20, "y_max": 70}
    resume_flow_run(run_id, {"decision": "correct", "prompts": [box | {"x_max": 900}]})
    assert work(run_id)[0] is StateType.PAUSED  # the box is not inside the frame
    resume_flow_run(run_id, {"decision": "correct", "prompts": [box | {"x_max": 65}]})
    assert work(run_id)[0] is StateType.PAUSED
    assert not (tmp_path / "out" / "masks.zip").exists()
    resume_flow_run(run_id, {"decision": "approve"})
    assert work(run_id)[0] is StateType.COMPLETED
    assert (tmp_path / "out" / "masks.zip").exists()
    assert [path.name for path in (tmp_path / "out" / "masklets").iterdir()] == ["object=7"]


def test_a_rejected_preview_ends_the_run(run_id: UUID, tmp_path: Path) -> None:
    work(run_id)
    with pytest.raises(RuntimeError, match="decision"):
        resume_flow_run(run_id, {})  # nobody has decided
    resume_flow_run(run_id, {"decision": "reject"})
    assert work(run_id) == (StateType.CANCELLED, "the preview was rejected")
    assert not (tmp_path / "out" / "masks.zip").exists()


def test_a_run_without_a_deployment_cannot_wait(job_fields: dict[str, Any], tmp_path: Path) -> None:
    state = segment(make_job(job_fields), tmp_path / "out", approve=True, return_state=True)
    assert state.is_failed()
    assert (state.message or "").startswith("approve: only a run of a deployment can wait")
    assert not (tmp_path / "out").exists()
