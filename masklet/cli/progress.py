"""Progress bars for a run in the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from masklet.run import Progress as ReportProgress


@contextmanager
def progress_bars() -> Iterator[ReportProgress]:
    """Show a bar for every stage that reports; gives the function to report to, for any thread."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames"),
        TimeRemainingColumn(),
    )
    bars: dict[str, TaskID] = {}
    lock = Lock()
    progress = Progress(*columns, console=Console(stderr=True))

    def report(stage: str, done: int, total: int) -> None:
        with lock:
            if not bars:
                progress.start()
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
        progress.update(bars[stage], completed=done)

    try:
        yield report
    finally:
        # a job that is refused before any report has no bars, and no empty line for them
        if bars:
            progress.stop()
