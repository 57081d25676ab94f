"""The commands."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from masklet.cli import models
from masklet.cli.job_options import takes_job
from masklet.cli.progress import progress_bars
from masklet.job import SegmentJob

app = typer.Typer(
    help="Cut objects out of video with SAM 2.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(models.app, name="models")
console = Console()


@app.command()
@takes_job()
def segment(
    job: SegmentJob,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run directory for the outputs.")],
) -> None:
    """Track every prompted object through a video and write masks and more to a directory.

    The same job again makes nothing twice: only what is missing or out of date is done.
    """
    from masklet.pipeline import run_job

    with progress_bars() as progress:
        outputs = run_job(job, out, progress=progress)
    table = Table("output", "path")
    for name, path in outputs.files.items():
        table.add_row(name, path)
    console.print(table)
    summary, speed = outputs.summary, outputs.frames_per_second
    pace = "nothing to track again" if speed is None else f"{speed:.1f} frames per second"
    console.print(
        f"{summary['frames']} frames, {len(summary['objects'])} objects, {pace}, "
        f"price ${summary['price']:.4f}"
    )


@app.command()
@takes_job()
def price(job: SegmentJob) -> None:
    """Say what a job will cost, without running it: the number alone on standard output."""
    from masklet.models import find_model
    from masklet.pipeline import check_prompts, ingest
    from masklet.price import price as price_of

    spec = find_model(job.model_type)
    plan = check_prompts(job, ingest(job))
    cost = price_of(spec, len(plan.frame_indices), len(plan.objects))
    Console(stderr=True).print(
        f"{cost.frames} frames, {cost.objects} objects, {spec.name}, in dollars:", highlight=False
    )
    console.print(f"{cost.total:.4f}", highlight=False)
