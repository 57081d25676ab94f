"""A person looks at the preview before a run goes on: `approve` of the flow `segment`.

The run is suspended meanwhile and holds no worker. Whoever resumes it gives a `Review`; the flow
then begins anew, finds what was answered so far, and goes on from there.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.input.actions import filter_flow_run_input
from prefect.logging import get_run_logger
from prefect.runtime import deployment
from pydantic import Field

from flows.job_form import PromptEntry, plain_prompts
from masklet.errors import UserError
from masklet.job import SegmentJob, make_job

_KEY = "review"
_MAX_ENTRIES = 200  # three for each review


class Review(RunInput):
    """What a person says of the preview."""

    decision: Literal["approve", "correct", "reject"] = Field(
        description="approve: go on. correct: take the prompts below and show them. reject: end."
    )
    prompts: list[PromptEntry] = Field(
        [], description="All prompts of the job anew, where the decision is correct."
    )


def check_can_wait() -> None:
    """Raise UserError in a run that could not be started again after it was suspended."""
    if deployment.id is None:
        raise UserError(
            "approve: only a run of a deployment can wait for a person; start it in the UI or with "
            "`prefect deployment run segment/segment`, or leave approve out"
        )


def reviewed(
    job: SegmentJob,
    check: Callable[[SegmentJob], object],
    show: Callable[[SegmentJob], object],
) -> SegmentJob | None:
    """The job with the prompts that a person has approved, None if they were rejected.

    Suspends the run, as long as nobody has decided.

    Args:
        check: raises UserError for prompts that do not fit the video.
        show: makes the preview of a job and shows it.
    """
    problem = ""
    for answer in _answers():
        decision = answer.get("decision")
        get_run_logger().info("review: %s", decision)
        if decision == "reject":
            return None
        if decision == "approve":
            return job
        try:
            corrected = _corrected(job, answer.get("prompts") or [])
            check(corrected)
            job, problem = corrected, ""
        except UserError as error:
            problem = f"The corrected prompts cannot be used: {error}. "
    show(job)
    words = "Look at the artifact `prompted-frames` of this run; then approve, correct or reject."
    suspend_flow_run(
        wait_for_input=Review.with_initial_data(description=problem + words),
        key=f"{_KEY}-{time.time_ns()}",  # of its own, as the flow begins anew after each
        timeout=None,
    )
    raise AssertionError("a suspended run does not go on")


def _corrected(job: SegmentJob, prompts: list[Any]) -> SegmentJob:
    fields = job.model_dump(mode="json", exclude={"prompts"})
    return make_job({**fields, "prompts": plain_prompts(prompts)})


def _answers() -> list[Mapping[str, Any]]:
    """What was answered in this run so far, in order."""
    found: Any = filter_flow_run_input(key_prefix=f"suspended-{_KEY}-", limit=_MAX_ENTRIES)
    by_time: dict[int, Mapping[str, Any]] = {}
    for one in found:
        asked, _, kind = one.key.removeprefix(f"suspended-{_KEY}-").partition("-")
        if kind == "response":
            by_time[int(asked)] = one.decoded_value
    return [by_time[asked] for asked in sorted(by_time)]
