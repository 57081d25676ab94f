"""The flow on a real Prefect server: the same outputs as the library, and what it shows of them."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.testing.utilities import prefect_test_harness

from flows.segment import segment
from masklet.errors import UserError
from masklet.job import make_job
from masklet.pipeline import run_job


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=300):
        yield


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
    assert any("Reused" in line for line in caplog.messages)


def test_a_wrong_job_fails_with_its_one_line_and_writes_nothing(
    job_fields: dict[str, Any], tmp_path: Path
) -> None:
    late = {"frame_index": 99, "object_id": 1, "points": [[1, 1]], "labels": [1]}
    job = make_job(job_fields | {"prompts": [late]})
    state = segment(job, tmp_path / "out", return_state=True)
    assert state.is_failed()
    assert "there is no frame 99" in (state.message or "")
    with pytest.raises(UserError, match="there is no frame 99"):
        segment(job, tmp_path / "out")
    assert not (tmp_path / "out").exists()
