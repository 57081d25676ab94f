"""`python -m benchmarks.tracker_speed`: masklet beside upstream's SAM2VideoPredictor.

Same weights, same file, same prompts, in turn in one run, each from the file to what it keeps:
upstream decodes and prepares all frames, tracks, and makes masks of the video's size, as
`propagate_in_video` gives them; masklet decodes, tracks and writes the masklet store. Figures are
medians over `--rounds`; the ratio is upstream's time over masklet's.
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
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.clips import grid_plan, open_clip
from benchmarks.machine import describe
from masklet.media import read_frames
from masklet.models import find_model, load_model
from masklet.network import Network
from masklet.plan import Plan
from masklet.propagate import propagate
from masklet.tracker import preprocess
from tests.masklet.oracle import make_oracle


def upstream(predictor: Any, plan: Plan) -> None:
    """From the file to masks (objects, height, width) of every frame."""
    size = predictor.image_size
    frames = [preprocess(frame, size) for _, frame in read_frames(plan.source, plan.timeline)]
    shape = plan.source.height, plan.source.width
    with (
        torch.inference_mode(),
        patch(
            "sam2.sam2_video_predictor.load_video_frames", lambda **_: (torch.stack(frames), *shape)
        ),
    ):
        state = predictor.init_state("unused")
        for one in plan.objects:
            for at, prompts in one.prompts.items():
                for clicks in prompts.clicks:
                    predictor.add_new_points_or_box(
                        state, at, one.object_id, points=clicks.points, labels=clicks.labels
                    )
        for _, _, logits in predictor.propagate_in_video(state):
            (logits > 0).cpu()


def ours(network: Network, plan: Plan) -> None:
    """From the file to the masklet store."""
    folder = Path(tempfile.mkdtemp())
    try:
        propagate(plan, plan.object_ids, network, folder, lambda steps: None)
    finally:
        shutil.rmtree(folder)


def in_turn(rounds: int, *functions: Callable[[], None]) -> list[float]:
    """Median seconds of each function, taken in turn."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for taken, function in zip(seconds, functions, strict=True):
            begun = time.perf_counter()
            function()
            taken.append(time.perf_counter() - begun)
    return [statistics.median(taken) for taken in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", nargs="?", type=Path, help="a video; the demo's without one")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    source, spec = open_clip(args.clip), find_model(args.model)
    model = load_model(spec)
    predictor = make_oracle(spec, model)
    networks = {
        "float32": Network.of(model),
        "bfloat16": Network.of(model, torch.bfloat16),
    }
    table = Table("objects", "upstream fps", box=None)
    for name in networks:
        table.add_column(f"masklet {name}")
        table.add_column("ratio")
    for objects in args.objects:
        plan = grid_plan(source, args.frames, objects)
        runs = [partial(ours, network, plan) for network in networks.values()]
        theirs, *mine = in_turn(args.rounds, partial(upstream, predictor, plan), *runs)
        frames = len(plan.timeline)
        pairs = [(f"{frames / seconds:.2f}", f"{theirs / seconds:.2f}") for seconds in mine]
        table.add_row(
            str(objects), f"{frames / theirs:.2f}", *(cell for pair in pairs for cell in pair)
        )
    console = Console()
    console.print(
        f"{spec.name}, {source.width}x{source.height}, {args.frames} frames; {describe()}"
    )
    console.print(table)


if __name__ == "__main__":
    main()
