"""`masklet label`: a whole dataset into a directory."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from masklet.cli.job_options import takes_overrides
from masklet.cli.tables import print_labelled, printable
from masklet.errors import UserError

if TYPE_CHECKING:
    from masklet.dataset import Dataset


@takes_overrides
def label(
    fields: dict[str, Any],
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="File (.yaml, .json, .csv, .jsonl, .parquet), folder or glob of videos.",
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="DIR", help="Directory for the run directories.")
    ],
    processes: Annotated[
        int, typer.Option(min=1, max=256, help="How many items to run at the same time.")
    ] = 1,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Say what it will cost and take; write nothing."),
    ] = False,
    skip_invalid: Annotated[
        bool,
        typer.Option(
            "--skip-invalid", help="Run the items that can be run although others cannot."
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for another run that labels into the directory.")
    ] = False,
) -> None:
    """Run every item of a dataset into DIR/<item_id>, and keep a table of them.

    The same again makes nothing twice: only what is missing, out of date or has failed is done.
    Options go before what the dataset says.
    """
    from masklet.dataset import DatasetError, read_dataset

    found = read_dataset(dataset, fields)
    try:
        sound = found if skip_invalid and found.items else found.require_sound()
    except DatasetError as error:
        for line in error.lines:
            typer.echo(printable(line), err=True)
        raise UserError(f"{dataset}: {error.summary}") from None
    if estimate:
        _estimate(sound)
    else:
        _label(sound, out, processes, wait)


def _label(dataset: "Dataset", out: str, processes: int, wait: bool) -> None:
    from masklet.item_table import FAILED, ItemRow
    from masklet.label import label_dataset

    failed = len(dataset.problems)
    columns = (
        TextColumn("items"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("items", total=len(dataset.items), failed="")

        def report(row: ItemRow) -> None:
            nonlocal failed
            failed += row.status == FAILED
            progress.update(bar, advance=1, failed=f"{failed} failed" if failed else "")

        summary = label_dataset(dataset, out, processes=processes, report=report, wait=wait)
    print_labelled(summary, out)
    if summary["failed"]:
        raise typer.Exit(1)


def _estimate(dataset: "Dataset") -> None:
    from masklet.estimate import estimate

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("videos", total=len(dataset.items))
        found = estimate(dataset.items, lambda: progress.advance(bar))
    for line in found.problems:
        typer.echo(printable(line), err=True)
    hours = "" if found.seconds is None else f", about {_span(found.seconds)} in one process here"
    typer.echo(
        f"{found.items} items, {found.frames} frames, {found.objects} objects{hours}; in dollars:",
        err=True,
    )
    typer.echo(f"{found.price:.4f}")
    if found.problems:
        raise typer.Exit(1)


def _span(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
