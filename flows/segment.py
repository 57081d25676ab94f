"""The flow `segment`: one job, from source to outputs, as a Prefect run."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from prefect import flow

from masklet.cli.progress import progress_bars
from masklet.job import SegmentJob
from masklet.pipeline import as_returned, run_job
from masklet.run import Progress
from masklet.works import Force
from tasks.progress import ProgressArtifacts, log_tenths
from tasks.segment import STEPS


@flow(name="segment", persist_result=False)
def segment(
    job: SegmentJob,
    out: Path = Path("out"),
    force: Force | None = None,
    verify: bool = False,
    wait: bool = False,
) -> Mapping[str, str] | tuple[str, Mapping[str, str]]:
    """Cut objects out of a video.

    Args:
        job: the video, the prompts, the model and the outputs that are wanted.
        out: run directory; what is there and up to date is not made again.
        force: make this again although it is there, and what follows from it.
        verify: hash what is there, instead of believing untouched files.
        wait: wait for another run that is at work in the directory.

    Returns:
        Paths of the outputs by name; with `preview` a tuple of the first picture and them, with
        `debug_masks` of the debug video and them.
    """
    with _reporting() as progress:
        outputs = run_job(
            job, out, steps=STEPS, progress=progress, force=force, verify=verify, wait=wait
        )
    return as_returned(job, outputs)


@contextmanager
def _reporting() -> Iterator[Progress]:
    """Artifacts for the UI; bars for a person at a terminal, and lines in the log elsewhere."""
    artifacts = ProgressArtifacts()
    with progress_bars() if sys.stderr.isatty() else nullcontext(log_tenths) as show:

        def report(stage: str, done: int, total: int) -> None:
            show(stage, done, total)
            artifacts(stage, done, total)

        yield report
