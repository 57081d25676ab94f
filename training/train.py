"""``python -m training.train``: train the nano checkpoint from scratch, stage after stage.

Every random choice of a step comes from (seed, stage, step, rank), so a run that was stopped goes
on as if it had not been. Ranks are processes with one thread each that average their gradients:
on CPU that is faster than one process with as many threads. On a GPU one rank trains while other
processes draw its clips.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from masklet.heap import keep_freed_memory
from training.assets import Bank, load_bank
from training.batch import Batch, Plan, draw, plan
from training.export import load_weights
from training.model import build, initialise
from training.optim import exchange, optimizers
from training.precision import products, quicker
from training.replay import AFTER, Replay, Seed, worst
from training.step import loss

SEED = 2
IMAGES_PER_CLIP = 4
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Stage:
    """Part of the recipe: pictures of `size`, clips of `frames`, learning rate from lr to lr_end.

    videos counts over all ranks. A share `images` of the steps takes single pictures,
    `IMAGES_PER_CLIP` for every clip. prompts: how often each kind is given, as `plan` takes it.
    stride: how far frames are apart, in the world's units of time. replays: how many of a rank's
    clips in a step are ones that came out worst in an earlier step.
    """

    name: str
    size: int
    frames: int
    videos: int
    objects: int
    steps: int
    lr: float
    lr_end: float
    warmup: int = 50
    images: float = 0.0
    prompts: Mapping[str, float] | None = None
    stride: float = 1.0
    replays: int = 0

    def rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine."""
        wave = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.steps))
        return (self.lr_end + (self.lr - self.lr_end) * wave) * min(1.0, (step + 1) / self.warmup)


@dataclass(frozen=True)
class Recipe:
    """What is trained, stage after stage. muon: for hidden matrices, otherwise AdamW for all."""

    weight_decay: float
    muon: bool
    stages: Sequence[Stage]

    @staticmethod
    def read(path: Path) -> Recipe:
        """The recipe of a YAML file. Raises TypeError for a field that is not known."""
        fields: dict[str, Any] = yaml.safe_load(path.read_text())
        return Recipe(**{**fields, "stages": [Stage(**stage) for stage in fields["stages"]]})


@dataclass
class State:
    """What a checkpoint holds."""

    model: SAM2Base
    average: dict[str, Tensor]
    optimizers: list[torch.optim.Optimizer]
    stage: int = 0
    step: int = 0
    seen: int = 0
    replay: Replay = field(default_factory=Replay)

    def save(self, path: Path) -> None:
        """Write atomically."""
        torch.save(
            {
                "model": self.model.state_dict(),
                "average": self.average,
                "optimizers": [o.state_dict() for o in self.optimizers],
                "stage": self.stage,
                "step": self.step,
                "seen": self.seen,
                "replay": self.replay.due,
            },
            path.with_suffix(".part"),
        )
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        kept = torch.load(path, map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(kept["model"])
        self.average = kept["average"]
        for optimizer, state in zip(self.optimizers, kept["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.stage, self.step = kept["stage"], kept["step"]
        self.seen, self.replay = kept["seen"], Replay(kept["replay"])


def follow_average(state: State) -> None:
    """Exponential moving average of the weights, quick at the start."""
    keep = min(0.99, (1 + state.seen) / (10 + state.seen))
    weights = state.model.state_dict()
    names = [n for n, w in weights.items() if w.is_floating_point()]
    torch._foreach_lerp_([state.average[n] for n in names], [weights[n] for n in names], 1 - keep)


def resize(model: SAM2Base, size: int) -> None:
    """Set the size of picture that the network expects; weights do not depend on it."""
    grid = size // model.backbone_stride
    model.image_size = size
    model.sam_image_embedding_size = grid
    encoder = model.sam_prompt_encoder
    encoder.image_embedding_size = (grid, grid)
    encoder.input_image_size = (size, size)
    encoder.mask_input_size = (4 * grid, 4 * grid)


@dataclass(frozen=True)
class Lesson:
    """What one step is about: it is the same for all ranks, and follows from its place."""

    stage: Stage
    place: tuple[int, int]  # of the stage in the recipe, of the step in the stage
    is_pictures: bool
    plan: Plan

    def batch(self, bank: Bank, rank: int, ranks: int, again: Sequence[Seed]) -> Batch:
        """A rank's share of the step's clips, some of them `again`."""
        rng = np.random.default_rng([SEED, *self.place, rank, 0])
        videos, size, objects = self.stage.videos // ranks, self.stage.size, self.stage.objects
        if self.is_pictures:
            return draw(rng, bank, size, videos * IMAGES_PER_CLIP, 1, objects)
        frames, stride = self.stage.frames, self.stage.stride
        return draw(rng, bank, size, videos, frames, objects, stride, again)


def lesson(stage: Stage, number: int, step: int) -> Lesson:
    """The lesson of a step of the recipe's `number`-th stage."""
    rng = np.random.default_rng([SEED, number, step])
    is_pictures = bool(stage.images and rng.random() < stage.images)
    frames = 1 if is_pictures else stage.frames
    return Lesson(stage, (number, step), is_pictures, plan(rng, frames, stage.prompts))


def update(
    state: State, given: Lesson, batch: Batch, rank: int, ranks: int, precision: str
) -> dict[str, float]:
    """One step; returns what to write in the log."""
    rng = np.random.default_rng([SEED, *given.place, rank, 1])
    device = state.model.device
    with products(precision, device.type):
        value, log, quality = loss(state.model, rng, batch.to(device), given.plan)
    torch.autograd.backward(value)
    weights = [p for p in state.model.parameters() if p.requires_grad]
    for p in weights:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    if ranks > 1:
        exchange([p.grad for p in weights if p.grad is not None], ranks)
    norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = given.stage.rate(state.step) * group["share"]
        optimizer.step()
        optimizer.zero_grad()
    if given.stage.replays:
        new = quality[len(quality) - len(batch.seeds) :]
        hard = worst(batch.seeds, new, given.stage.replays)
        state.replay.take_in(state.step, hard, ranks)
    state.step += 1
    state.seen += 1
    follow_average(state)
    return {"loss": value.item(), "norm": float(norm), **log}


class Log:
    """Running means, written as one JSON line every `every` steps."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self.sums: dict[str, list[float]] = {}
        self.since = time.time()

    def add(self, state: State, stage: Stage, values: dict[str, float]) -> None:
        """Take in one step's values."""
        for key, value in values.items():
            if not math.isnan(value):
                self.sums.setdefault(key, []).append(value)
        if state.step % self.every == 0:
            means = {k: round(sum(v) / len(v), 4) for k, v in sorted(self.sums.items())}
            pace = round(self.every / (time.time() - self.since), 3)
            line = {
                "time": time.strftime("%H:%M:%S"),
                "stage": stage.name,
                "step": state.step,
                "lr": f"{stage.rate(state.step):.2e}",
                "steps_s": pace,
                **means,
            }
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self.sums, self.since = {}, time.time()


def run(rank: int, args: argparse.Namespace) -> None:
    """One rank's share of the training."""
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    torch.manual_seed(SEED)
    if args.ranks > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(args.port))
        dist.init_process_group("gloo", rank=rank, world_size=args.ranks)
    recipe = Recipe.read(args.recipe)
    stages = recipe.stages
    model = build(args.config)
    initialise(model)
    if args.weights:
        load_weights(model, args.weights)
    model.to(args.device)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    state = State(model, average, optimizers(model, 0.0, recipe.weight_decay, recipe.muon))
    state.stage = [s.name for s in stages].index(args.stage) if args.stage else 0
    if (args.out / "last.pt").exists():
        state.load(args.out / "last.pt")
    log = Log(args.out / "log.jsonl", args.log_every)
    for number in range(state.stage, len(stages)):
        stage = stages[number]
        resize(model, stage.size)
        lessons = [lesson(stage, number, step) for step in range(state.step, stage.steps)]
        sharing = rank, args.ranks, args.workers
        for given, batch in batches(lessons, state.replay, args.bank, *sharing):
            if (parent := parent_process()) and not parent.is_alive():
                return  # it was killed; another run may go on in this folder
            values = update(state, given, batch, rank, args.ranks, args.precision)
            if rank == 0:
                log.add(state, stage, values)
                if state.step % args.save_every == 0:
                    state.save(args.out / "last.pt")
        state.stage, state.step, state.replay = number + 1, 0, Replay()
        if rank == 0:
            state.save(args.out / "last.pt")
            state.save(args.out / f"after_{stage.name}.pt")


def batches(
    lessons: Sequence[Lesson], replay: Replay, bank: Path, rank: int, ranks: int, workers: int
) -> Iterator[tuple[Lesson, Batch]]:
    """Lessons with their batches, which `workers` processes, or this one, draw ahead."""
    if workers == 0:
        here = load_bank(bank, "train")
        for one in lessons:
            yield one, one.batch(here, rank, ranks, replay.of(one.place[1], rank))
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:

        def submit(one: Lesson) -> tuple[Lesson, Future[Batch]]:
            again = replay.of(one.place[1], rank)
            return one, pool.submit(drawn, one, bank, rank, ranks, again)

        waiting = iter(lessons)
        ahead = deque(map(submit, islice(waiting, min(AFTER, BATCHES_AHEAD * workers))))
        while ahead:
            one, batch = ahead.popleft()
            yield one, batch.result()
            ahead.extend(map(submit, islice(waiting, 1)))


def drawn(one: Lesson, bank: Path, rank: int, ranks: int, again: Sequence[Seed]) -> Batch:
    """A lesson's batch, in a process of its own."""
    torch.set_num_threads(1)
    return one.batch(load_bank(bank, "train"), rank, ranks, again)


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    out = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    here = Path(__file__).parent
    out.add_argument("--recipe", type=Path, default=here / "recipe.yaml")
    out.add_argument("--config", type=Path, default=here.parent / "configs/models/nano.yaml")
    out.add_argument("--bank", type=Path, default=here / "runs/bank")
    out.add_argument("--out", type=Path, help="unless given, runs/ and the recipe's name")
    out.add_argument("--weights", type=Path, help="start from this file, not from random weights")
    out.add_argument("--stage", help="start with this stage of the recipe")
    out.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    out.add_argument("--ranks", type=int, help="unless given, one per core, or one on a GPU")
    out.add_argument("--threads", type=int, default=1, help="per rank")
    out.add_argument(
        "--workers", type=int, help="per rank, to draw clips ahead; on a CPU none unless given"
    )
    out.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="of matrix products; unless given, what is quicker on this device",
    )
    out.add_argument("--port", type=int, default=29517)
    out.add_argument("--log-every", type=int, default=20)
    out.add_argument("--save-every", type=int, default=100)
    return out


def main(argv: list[str] | None = None) -> None:
    """Command line: train, or go on training."""
    args = parser().parse_args(argv)
    cores, on_cpu = os.cpu_count() or 1, args.device == "cpu"
    args.out = args.out or Path(__file__).parent / "runs" / args.recipe.stem
    args.ranks = args.ranks or (cores if on_cpu else 1)
    args.workers = (0 if on_cpu else cores) if args.workers is None else args.workers
    args.precision = args.precision or (quicker() if on_cpu else "bfloat16")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.ranks == 1:
        run(0, args)
    else:
        spawn(run, args=(args,), nprocs=args.ranks)


if __name__ == "__main__":
    main()
