"""The commands."""

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from masklet.cli import models, prompts
from masklet.cli.evaluation import evaluate
from masklet.cli.job_options import takes_job
from masklet.cli.label import label
from masklet.cli.progress import progress_bars
from masklet.cli.tables import print_plan, print_status
from masklet.job import SegmentJob, job_schema
from masklet.run import run_directory
from masklet.works import Force

app = typer.Typer(
    help="Cut objects out of video with SAM 2.",
    rich_markup_mode=None,  # help texts hold [ and ] that are no markup
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(models.app, name="models")
app.add_typer(prompts.app, name="prompts")
app.command("eval")(evaluate)
app.command("label")(label)


_VERIFY = typer.Option(
    "--verify", help="Hash every file there, instead of believing untouched ones."
)


@app.command()
@takes_job
def segment(
    job: SegmentJob,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", parser=run_directory, help="Run directory for outputs."
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be made and why; write nothing.")
    ] = False,
    force: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(get_args(Force)),
            help="Make again what is there: all, propagate and what follows, or one output.",
        ),
    ] = None,
    verify: Annotated[bool, _VERIFY] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for another run that is at work in the directory.")
    ] = False,
) -> None:
    """Cut the prompted objects out of a video into a directory.

    The same job again makes nothing twice: only what is missing or out of date is done.
    """
    from masklet import pipeline

    options: dict[str, Any] = {"force": force, "verify": verify}
    if dry_run:
        print_plan(pipeline.dry_run(job, out, **options))
        return
    with progress_bars() as progress:
        outputs = pipeline.run_job(job, out, progress=progress, wait=wait, **options)
    for name, path in outputs.files.items():
        typer.echo(f"{name:<18} {path}")
    summary, speed = outputs.summary, outputs.frames_per_second
    pace = "nothing to track again" if speed is None else f"{speed:.1f} frames per second"
    pace = "prompted frames only" if job.preview else pace
    typer.echo(
        f"\n{_sizes(summary['frames'], len(summary['objects']))}, {pace}, "
        f"price ${summary['price']:.4f}"
    )


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory to look at.")],
    verify: Annotated[bool, _VERIFY] = False,
) -> None:
    """Say what is in a run directory, and what is stale, missing or damaged.

    Only looks: neither the model nor the video is needed, and a run at work there goes on.
    """
    from masklet.status import read_status

    print_status(read_status(folder, verify=verify))


@app.command()
@takes_job
def price(job: SegmentJob) -> None:
    """Say what a job will cost, without running it.

    Standard output gets the number alone, in dollars.
    """
    from masklet.models import find_model
    from masklet.pipeline import check_prompts, ingest
    from masklet.price import price_of

    spec = find_model(job.model_type)
    plan = check_prompts(job, ingest(job))
    cost = price_of(job, plan, spec)
    typer.echo(f"{_sizes(cost.frames, cost.objects)}, {spec.name}, in dollars:", err=True)
    typer.echo(f"{cost.total:.4f}")


def _sizes(frames: int, objects: int) -> str:
    counts = {"frame": frames, "object": objects}
    return ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items())


@app.command()
def settings() -> None:
    """Print what the operator of this machine has set: environment variables, one a line."""
    from masklet.settings import PREFIX, Settings, as_text, load_settings

    found = load_settings()
    for name, field in Settings.model_fields.items():
        typer.echo(f"# {field.description}")
        typer.echo(f"{PREFIX}{name.upper()}={as_text(getattr(found, name))}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a job file, for editors and other programs."""
    typer.echo(json.dumps(job_schema(), indent=2))
