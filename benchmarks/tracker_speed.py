"""`python -m benchmarks.tracker_speed`: masklet beside upstream's SAM2VideoPredictor.

Same weights, same file, same prompts, in turn in one run, each from the file to what it keeps:
upstream decodes and prepares all frames, tracks, and makes masks of the video's size, as
`propagate_in_video` gives them; masklet decodes, tracks and writes the masklet store. On a GPU
upstream runs under bfloat16 autocast, as it is and compiled (`vos_optimized`). Figures are medians
over `--rounds` after a first one that warms up; the ratio is upstream's best time over masklet's.
The IoU is that of the masks in bfloat16 with those in float32, at the model's resolution.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.clips import grid_plan, open_clip
from benchmarks.machine import describe
from benchmarks.upstream import any_weights, make_predictor, track
from masklet.models import find_model
from masklet.network import Network
from masklet.plan import Plan
from masklet.propagate import propagate, segment_frames

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def ours(network: Network, plan: Plan) -> None:
    """From the file to the masklet store."""
    folder = Path(tempfile.mkdtemp())
    try:
        propagate(plan, plan.object_ids, network, folder, lambda steps: None)
    finally:
        shutil.rmtree(folder)


def in_turn(rounds: int, *functions: Callable[[], None]) -> list[float]:
    """Median seconds of each function, taken in turn; a first turn is not counted."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for taken, function in zip(seconds, functions, strict=True):
            begun = time.perf_counter()
            function()
            taken.append(time.perf_counter() - begun)
    return [statistics.median(taken[1:]) for taken in seconds]


def mean_iou(plan: Plan, *networks: Network) -> float:
    """Of two networks' masks, over all objects and frames on which either has one."""
    ious = []
    for steps in zip(*(segment_frames(plan, plan.object_ids, n) for n in networks), strict=True):
        for one in steps[0].predictions:
            first, second = (step.predictions[one].logits > 0 for step in steps)
            if (union := (first | second).sum()) > 0:
                ious.append(float((first & second).sum() / union))
    return statistics.mean(ious) if ious else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description="masklet beside upstream, in one run")
    parser.add_argument("clip", nargs="?", type=Path, help="a video; the demo's without one")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    source, spec = open_clip(args.clip), find_model(args.model)
    model = any_weights(spec, args.device)
    networks = {name: Network.of(model, dtype) for name, dtype in DTYPES.items()}
    predictors = {"upstream": make_predictor(spec, model)}
    if args.device == "cuda":
        predictors["compiled"] = make_predictor(spec, model, compiled=True)
    table = Table("objects", *(f"{name} fps" for name in predictors), box=None)
    for name in networks:
        table.add_column(f"masklet {name}")
        table.add_column("ratio")
    table.add_column("IoU")
    for objects in args.objects:
        plan = grid_plan(source, args.frames, objects)
        theirs = [partial(track, predictor, plan) for predictor in predictors.values()]
        mine = [partial(ours, network, plan) for network in networks.values()]
        seconds = in_turn(args.rounds, *theirs, *mine)
        rates = [len(plan.timeline) / taken for taken in seconds]
        best = max(rates[: len(theirs)])
        cells = [f"{rate:.2f}" for rate in rates[: len(theirs)]]
        for rate in rates[len(theirs) :]:
            cells += [f"{rate:.2f}", f"{rate / best:.2f}"]
        table.add_row(str(objects), *cells, f"{mean_iou(plan, *networks.values()):.4f}")
    console = Console(width=120)
    console.print(
        f"{spec.name} on {args.device}, {source.width}x{source.height}, {args.frames} frames; "
        f"{describe()}"
    )
    console.print(table)


if __name__ == "__main__":
    main()
