"""`masklet prompts`: looking at prompts before a model does."""

import zipfile
from pathlib import Path
from typing import Annotated

import typer

from masklet.job import make_job

app = typer.Typer(help="Look at prompts before a run.", no_args_is_help=True)


@app.callback()
def _prompts() -> None:
    """Look at prompts before a run."""


@app.command()
def check(
    file: Annotated[
        Path, typer.Argument(help="Prompts as JSON or YAML, or a zip of mask prompts.")
    ],
    video: Annotated[str, typer.Argument(help="Video, image, or folder or zip of images.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the pictures, one a prompted frame.")
    ] = Path("prompts_check"),
) -> None:
    """Check prompts against a video, and draw them on its frames.

    No model is needed.
    """
    from masklet.pipeline import ingest
    from masklet.plan import plan_job
    from masklet.prompt_check import draw_on_frames

    field = "mask_prompts" if file.is_file() and zipfile.is_zipfile(file) else "prompts"
    job = make_job({"file": video, field: file, "preview": True})
    plan = plan_job(job, ingest(job))
    for path in draw_on_frames(plan, out):
        typer.echo(path)
