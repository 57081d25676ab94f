"""`masklet eval`: how well a model does on videos with true masks."""

from pathlib import Path
from typing import Annotated

import typer

from masklet.cli.progress import progress_bars
from masklet.cli.tables import print_scores


def evaluate(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="Folder in the layout of DAVIS or SA-V.")
    ],
    model: Annotated[
        str, typer.Option(metavar="NAME", help="nano, tiny, small, base_plus, large, …")
    ] = "large",
    prompt: Annotated[
        str,
        typer.Option(
            metavar="mask|box|point",
            help="What is given of each object, on the first frame where it is seen: its true "
            "mask, the box around it, or a click on its innermost pixel.",
        ),
    ] = "mask",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Directory for scores.csv, scores.json, failures.jpg."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights to use instead of the model's own."),
    ] = None,
    sequences: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Videos to take. [default: those in the newest ImageSets/<year>/val.txt, or all]",
        ),
    ] = None,
) -> None:
    """Measure a model on videos with true masks: J, F and J&F of each, and the means.

    Objects are tracked from one prompt; the first and the last annotated frame do not count.
    """
    from masklet.evaluate import evaluate_dataset

    names = None if sequences is None else [name.strip() for name in sequences.split(",")]
    with progress_bars() as progress:
        scores = evaluate_dataset(
            dataset,
            model=model,
            checkpoint=checkpoint,
            prompt=prompt,
            names=names,
            out=out,
            progress=progress,
        )
    print_scores(scores)
