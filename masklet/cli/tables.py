"""Tables on standard output: plans of dry runs, the status of a run directory, scores."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from masklet.pipeline import Planned
    from masklet.scores import Scores
    from masklet.status import Artifact, Status

_MOST_LINES = 20


def print_plan(planned: Sequence["Planned"]) -> None:
    """One line an artifact: what would be done, and why."""
    _print_columns([("", "stage", "artifact", "why"), *planned])
    makes = sum(one.action == "make" for one in planned)
    if makes:
        typer.echo(f"\n{makes} to make; nothing has been written")
    else:
        typer.echo("\nnothing to make")


def print_status(status: "Status") -> None:
    """One line an artifact: its state, its size, why it was made, and what is wrong with it."""
    if status.holder is not None:
        typer.echo(f"a run is at work here: {status.holder}\n")
    heads = ("state", "stage", "artifact", "bytes", "made because", "")
    _print_columns([heads, *(_line(one) for one in status.artifacts)])
    if (per := status.bytes_per_frame_and_object) is not None:
        typer.echo(f"\nmasklets: {status.masklet_bytes:,} bytes, {per:,.0f} per frame and object")
    for object_id, frames in status.tracked.items():
        typer.echo(f"\nobject {object_id}: {frames:,} frames tracked; the next run goes on there")
    typer.echo("\neverything is up to date" if status.is_right else "\nnot up to date")


def print_scores(scores: "Scores") -> None:
    """One line a video and one of the means, in per cent; figures to the right."""
    from masklet.scores import COLUMNS

    lines = [COLUMNS, *scores.rows()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    _print_columns(
        [
            [name, *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
            for name, *cells in lines
        ]
    )


def print_labelled(summary: Mapping[str, Any], out: str) -> None:
    """How labelling a dataset has ended: the counts, what failed and why, what to look at."""
    counts = [f"{summary[name]} {name}" for name in ("done", "reused", "failed", "pending")]
    pace = summary["frames_per_second"]
    speed = "" if pace is None else f", {pace:.1f} frames per second"
    typer.echo(
        f"{summary['items']} items: {', '.join(c for c in counts if not c.startswith('0 '))}; "
        f"{summary['frames']} frames{speed}, price ${summary['price']:.4f}"
    )
    for item_id, line in list(summary["look_at"].items())[:_MOST_LINES]:
        typer.echo(printable(f"look at {item_id}: {line}"))
    for failure in summary["failures"][:_MOST_LINES]:
        first, more = failure["items"][0], failure["count"] - 1
        items = f"{first} and {more} more" if more else first
        typer.echo(printable(f"failed: {items}: {failure['error']}"))
    typer.echo(f"{out}/dataset.parquet has a row for each item")


def _line(one: "Artifact") -> tuple[str, ...]:
    row = one.row
    if row is None:
        return (one.state, one.stage, one.artifact, "", "", one.why)
    reason = "" if one.stage == "input" else row.reason
    return (one.state, one.stage, one.artifact, f"{row.bytes:,}", reason, one.why)


def _print_columns(lines: Sequence[Sequence[str]]) -> None:
    """Left-aligned columns, never cut: names and reasons are there to be read, or searched."""
    shown = [[printable(text) for text in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for line in shown:
        cells = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def printable(text: str) -> str:
    """Names of files and fields may hold control characters, which would steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
