"""The flow `segment`: one job, from source to outputs, as a Prefect run."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from prefect import flow

from masklet.cli.progress import progress_bars
from masklet.job import SegmentJob
from masklet.pipeline import Outputs, as_returned, run_job
from masklet.run import Progress
from tasks.progress import ProgressArtifacts, log_tenths
from tasks.segment import STEPS


@flow(name="segment", persist_result=False)
def segment(
    job: SegmentJob, out: Path = Path("out")
) -> Mapping[str, str] | tuple[str, Mapping[str, str]]:
    """Cut objects out of a video.

    Args:
        job: the video, the prompts, the model and the outputs that are wanted.
        out: run directory; what is there and up to date is not made again.

    Returns:
        Paths of the outputs by name; with `debug_masks` a tuple of the debug video and them.
    """
    return as_returned(job, _run(job, out))


def _run(job: SegmentJob, out: Path) -> Outputs:
    with _reporting() as progress:
        return run_job(job, out, steps=STEPS, progress=progress)


@contextmanager
def _reporting() -> Iterator[Progress]:
    """Artifacts for the UI; bars for a person at a terminal, and lines in the log elsewhere."""
    artifacts = ProgressArtifacts()
    with progress_bars() if sys.stderr.isatty() else nullcontext(log_tenths) as show:

        def report(stage: str, done: int, total: int) -> None:
            show(stage, done, total)
            artifacts(stage, done, total)

        yield report
