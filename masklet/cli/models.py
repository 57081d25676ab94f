"""`masklet models`: which models there are, where their weights are, and fetching them."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from masklet.models import (
    MODELS,
    ModelSpec,
    find_model,
    locate_checkpoint,
    model_names,
    pull_checkpoint,
)

app = typer.Typer(help="List the models, or fetch the weights of one.")


@app.callback(invoke_without_command=True)
def list_models(context: typer.Context) -> None:
    """List the models, and which of them are on this machine; `pull` fetches one."""
    if context.invoked_subcommand is not None:
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    table = Table("model", "also", "parameters", "size", "weights", box=None)
    for spec in MODELS.values():
        size, weights = _weights(spec)
        also = ", ".join(spec.aliases)
        table.add_row(spec.name, also, f"{spec.parameters:g} M", size, weights)
    Console().print(table)
    typer.echo(f"\nTo fetch one: masklet models pull NAME. The hub cache is {HF_HUB_CACHE}")


def _weights(spec: ModelSpec) -> tuple[str, str]:
    path = locate_checkpoint(spec)
    if path is not None:
        place = "bundled" if spec.repo is None else "in the hub cache"
        return f"{path.stat().st_size / 1e6:.0f} MB", place
    if spec.repo is None:
        return "", "missing"
    # Published weights are float32, and little else is in the file.
    return f"{spec.parameters * 4:.0f} MB", "not here"


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help=f"The model: {', '.join(model_names())}.")],
) -> None:
    """Fetch the weights of a model into the hub cache and print where they are."""
    typer.echo(pull_checkpoint(find_model(name)))
