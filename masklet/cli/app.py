"""The commands."""

from pathlib import Path
from typing import Annotated

import typer

from masklet.cli import models
from masklet.cli.job_options import takes_job
from masklet.cli.progress import progress_bars
from masklet.job import SegmentJob

app = typer.Typer(
    help="Cut objects out of video with SAM 2.",
    rich_markup_mode=None,  # help texts hold [ and ] that are no markup
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(models.app, name="models")


@app.command()
@takes_job
def segment(
    job: SegmentJob,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run directory for the outputs.")],
) -> None:
    """Cut the prompted objects out of a video into a directory.

    The same job again makes nothing twice: only what is missing or out of date is done.
    """
    from masklet.pipeline import run_job

    with progress_bars() as progress:
        outputs = run_job(job, out, progress=progress)
    for name, path in outputs.files.items():
        typer.echo(f"{name:<18} {path}")
    summary, speed = outputs.summary, outputs.frames_per_second
    pace = "nothing to track again" if speed is None else f"{speed:.1f} frames per second"
    typer.echo(
        f"\n{summary['frames']} frames, {len(summary['objects'])} objects, {pace}, "
        f"price ${summary['price']:.4f}"
    )


@app.command()
@takes_job
def price(job: SegmentJob) -> None:
    """Say what a job will cost, without running it.

    Standard output gets the number alone, in dollars.
    """
    from masklet.models import find_model
    from masklet.pipeline import check_prompts, ingest
    from masklet.price import price as price_of

    spec = find_model(job.model_type)
    plan = check_prompts(job, ingest(job))
    cost = price_of(spec, len(plan.frame_indices), len(plan.objects))
    typer.echo(f"{cost.frames} frames, {cost.objects} objects, {spec.name}, in dollars:", err=True)
    typer.echo(f"{cost.total:.4f}")
