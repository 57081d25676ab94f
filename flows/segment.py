"""The flow `segment`: one job, from source to outputs, as a Prefect run."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias, cast

from prefect import flow
from prefect.states import Cancelled

from flows.job_form import JobForm, read_job
from flows.review import check_can_wait, reviewed
from masklet.cli.progress import progress_bars
from masklet.job import SegmentJob
from masklet.pipeline import Outputs, as_returned, check_prompts, ingest, run_job
from masklet.run import Progress, open_manifest, run_directory
from masklet.works import Force
from tasks.progress import ProgressArtifacts, ProgressLog
from tasks.segment import refusable, task_steps

Returned: TypeAlias = Mapping[str, str] | tuple[str, Mapping[str, str]]


# the job is checked in the flow itself, so that what is wrong with it is one line
@flow(name="segment", persist_result=False, validate_parameters=False)
@refusable
def segment(
    job: JobForm,
    out: Path,
    force: Force | None = None,
    verify: bool = False,
    wait: bool = False,
    approve: bool = False,
) -> Returned:
    """Cut objects out of a video.

    Args:
        job: the video, the prompts, the model and the outputs that are wanted.
        out: run directory; what is there and up to date is not made again. A relative one lies in
            the checkout of the worker.
        force: make this again although it is there, and what follows from it.
        verify: hash what is there, instead of believing untouched files.
        wait: wait for another run that is at work in the directory.
        approve: show a preview first, and wait until a person approves it or corrects the prompts.

    Returns:
        Paths of the outputs by name; with `preview` a tuple of the first picture and them, with
        `debug_masks` of the debug video and them.
    """
    job, out = read_job(job), run_directory(out)
    with _reporting() as progress:

        def run(job: SegmentJob, **options: Any) -> Outputs:
            return run_job(
                job, out, steps=task_steps(), progress=progress, verify=verify, wait=wait, **options
            )

        if approve and not job.preview:
            check_can_wait()
            approved = reviewed(
                job,
                check=lambda one: check_prompts(one, ingest(one, open_manifest(out))),
                show=lambda one: run(one.model_copy(update={"preview": True})),
            )
            if approved is None:
                return cast(Returned, Cancelled(message="the preview was rejected"))
            job = approved
        outputs = run(job, force=force)
    return as_returned(job, outputs)


@contextmanager
def _reporting() -> Iterator[Progress]:
    """Artifacts for the UI; bars for a person at a terminal, and lines in the log elsewhere."""
    artifacts = ProgressArtifacts()
    with progress_bars() if sys.stderr.isatty() else nullcontext(ProgressLog()) as show:

        def report(stage: str, done: int, total: int) -> None:
            show(stage, done, total)
            artifacts(stage, done, total)

        yield report
