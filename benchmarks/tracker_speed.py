"""`python -m benchmarks.tracker_speed`: masklet beside upstream's SAM2VideoPredictor.

Same weights, same file, same prompts, in turn in one run, each from the file to what it keeps:
upstream decodes and prepares all frames, tracks, and makes masks of the video's size, as
`propagate_in_video` gives them; masklet decodes, tracks and writes the masklet store. Each has a
process of its own, so that neither runs with settings of the other. On a GPU upstream runs under
bfloat16 autocast, as it is and compiled (`vos_optimized`), and masklet in bfloat16 compiled as
well. Figures are medians over `--rounds` after a first one that warms up and compiles; the ratio is
upstream's best time over masklet's. The IoU is that of the masks in bfloat16 with those in float32,
at the model's resolution.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from sam2.modeling.sam2_base import SAM2Base

from benchmarks.clips import grid_plan, open_clip
from benchmarks.machine import describe
from benchmarks.upstream import any_weights, make_predictor, track
from masklet.models import find_model
from masklet.network import Network
from masklet.plan import Plan
from masklet.propagate import propagate, segment_frames

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COMPILED = " compiled"


def ours(network: Network, plan: Plan) -> None:
    """From the file to the masklet store."""
    folder = Path(tempfile.mkdtemp())
    try:
        propagate(plan, plan.object_ids, network, folder, lambda steps: None)
    finally:
        shutil.rmtree(folder)


class Clip(NamedTuple):
    """What is tracked, and by which model."""

    path: Path | None
    model: str
    device: str
    frames: int
    objects: int


def seconds_of(name: str, clip: Clip) -> float:
    """How long one takes: `upstream` or masklet's precision, both also with ` compiled`."""
    plan = _plan(clip)
    if name.startswith("upstream"):
        predictor = _predictor(clip.model, clip.device, name)
        begun = time.perf_counter()
        track(predictor, plan)
    else:
        network = _network(clip.model, clip.device, name)
        begun = time.perf_counter()
        ours(network, plan)
    return time.perf_counter() - begun


@cache
def _plan(clip: Clip) -> Plan:
    return grid_plan(open_clip(clip.path), clip.frames, clip.objects)


@cache
def _model(name: str, device: str) -> SAM2Base:
    return any_weights(find_model(name), device)


@cache
def _network(model: str, device: str, name: str) -> Network:
    network = Network.of(_model(model, device), DTYPES[name.removesuffix(COMPILED)])
    return network.compile() if name.endswith(COMPILED) else network


@cache
def _predictor(model: str, device: str, name: str) -> Any:
    return make_predictor(
        find_model(model), _model(model, device), compiled=name.endswith(COMPILED)
    )


def in_turn(rounds: int, processes: Mapping[str, Executor], clip: Clip) -> dict[str, float]:
    """Median frames per second of each name; a first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(rounds + 1):
        for name, process in processes.items():
            seconds[name].append(process.submit(seconds_of, name, clip).result())
    frames = len(_plan(clip).timeline)
    return {name: frames / statistics.median(taken[1:]) for name, taken in seconds.items()}


def mean_iou(clip: Clip) -> float:
    """Of the masks in both precisions, over all objects and frames on which either has one."""
    plan, ious = _plan(clip), []
    networks = [_network(clip.model, clip.device, name) for name in DTYPES]
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
    os.environ["TQDM_DISABLE"] = "1"
    theirs, masklets = ["upstream"], list(DTYPES)
    if args.device == "cuda":
        theirs.append("upstream" + COMPILED)
        masklets.append("bfloat16" + COMPILED)
    table = Table("objects", *(f"{name} fps" for name in theirs), box=None)
    for name in masklets:
        table.add_column(f"masklet {name}")
        table.add_column("ratio")
    table.add_column("IoU")
    with _process() as upstream, _process() as masklet:
        processes = dict.fromkeys(theirs, upstream) | dict.fromkeys(masklets, masklet)
        for objects in args.objects:
            clip = Clip(args.clip, args.model, args.device, args.frames, objects)
            rates = in_turn(args.rounds, processes, clip)
            best = max(rates[name] for name in theirs)
            cells = [f"{rates[name]:.2f}" for name in theirs]
            for name in masklets:
                cells += [f"{rates[name]:.2f}", f"{rates[name] / best:.2f}"]
            iou = masklet.submit(mean_iou, clip).result()
            table.add_row(str(objects), *cells, f"{iou:.4f}")
    source, spec = open_clip(args.clip), find_model(args.model)
    frames = min(args.frames, source.num_frames)
    console = Console(width=120)
    console.print(
        f"{spec.name} on {args.device}, {source.width}x{source.height}, {frames} frames; "
        f"{describe()}"
    )
    console.print(table)


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"))


if __name__ == "__main__":
    main()
