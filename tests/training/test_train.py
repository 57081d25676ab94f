"""Two steps of every kind of stage, and going on from a checkpoint, with a small network."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("cv2")

from omegaconf import OmegaConf
from safetensors.torch import load_file
from sam2.modeling.sam2_base import SAM2Base

from training import replay, train
from training.batch import Batch, Plan, Rng, draw
from training.export import PRESENCE_BIAS, export, load_weights
from training.model import build
from training.optim import orthogonalise
from training.step import loss

NANO = Path(__file__).parents[2] / "configs/models/nano.yaml"
RECIPE = """
weight_decay: 0.05
muon: true
stages:
  - {name: images, size: 64, frames: 1, videos: 2, objects: 1, steps: 2, lr: 1.0e-3, lr_end: 1.0e-3}
  - {name: clips, size: 64, frames: 3, videos: 1, objects: 2, steps: 2, lr: 1.0e-3, lr_end: 1.0e-3}
"""


@pytest.fixture(autouse=True)
def other_tests_keep_their_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bank, a small config and a two-stage recipe."""
    folder = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(0)
    np.save(folder / "photos_train.npy", rng.integers(0, 256, (2, 384, 512, 3), dtype=np.uint8))
    np.save(folder / "cutouts_train.npy", np.zeros((0, 160, 160, 4), np.uint8))
    config = OmegaConf.load(NANO)
    trunk = config.model.image_encoder.trunk
    trunk.embed_dim, trunk.stages, trunk.global_att_blocks = 8, [1, 1, 2, 1], [3]
    config.model.image_encoder.neck.backbone_channel_list = [64, 32, 16, 8]
    config.model.image_size = 64
    OmegaConf.save(config, folder / "tiny.yaml")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def arguments(work: Path, out: str) -> list[str]:
    return [
        "--recipe",
        str(work / "recipe.yaml"),
        "--config",
        str(work / "tiny.yaml"),
        "--bank",
        str(work),
        "--out",
        str(work / out),
        "--ranks",
        "1",
        "--threads",
        "1",
        "--log-every",
        "1",
        "--save-every",
        "1",
        "--precision",
        "float32",
    ]


@pytest.mark.parametrize("name", ["recipe", "one_hour"])
def test_recipes_are_read(name: str) -> None:
    stages = train.Recipe.read(Path(train.__file__).parent / f"{name}.yaml").stages
    assert len({stage.name for stage in stages}) == len(stages)
    for stage in stages:
        assert stage.size % 32 == 0
        assert stage.videos % 2 == 0
        assert train.lesson(stage, 0, 0).plan.kind in {"click", "clicks", "box", "mask"}


def test_clips_drawn_ahead_by_other_processes_are_the_same(work: Path) -> None:
    for workers in ("0", "2"):
        train.main([*arguments(work, f"drawn{workers}"), "--workers", workers])
    one, two = (torch.load(work / f"drawn{n}/last.pt", weights_only=True) for n in (0, 2))
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value)


def test_trains_exports_and_goes_on(work: Path) -> None:
    train.main(arguments(work, "run"))
    kept = torch.load(work / "run/last.pt", weights_only=True)
    assert (kept["stage"], kept["seen"]) == (2, 4)
    assert len((work / "run/log.jsonl").read_text().splitlines()) == 4
    export([work / "run/last.pt"] * 2, work / "out.safetensors")
    model = build(work / "tiny.yaml")
    load_weights(model, work / "out.safetensors")
    made = load_file(work / "out.safetensors")
    assert {v.dtype for v in made.values()} == {torch.float16}
    export([work / "run/last.pt", work / "out.safetensors"], work / "mixed.safetensors", 2.0)
    mixed = load_file(work / "mixed.safetensors")
    for name, value in made.items():
        expected = value + 2.0 if name == PRESENCE_BIAS else value
        torch.testing.assert_close(mixed[name], expected, rtol=0, atol=2e-3)

    (work / "half").mkdir()
    (work / "run/after_images.pt").rename(work / "half/last.pt")
    train.main(arguments(work, "half"))
    again = torch.load(work / "half/last.pt", weights_only=True)
    for name, value in kept["model"].items():
        torch.testing.assert_close(again["model"][name], value)


def test_a_clip_is_drawn_again_from_its_seed(work: Path) -> None:
    bank = train.load_bank(work, "train")
    first = draw(np.random.default_rng(3), bank, 64, 3, 2, 2)
    other = draw(np.random.default_rng(4), bank, 64, 2, 2, 2)
    mixed = draw(np.random.default_rng(4), bank, 64, 3, 2, 2, again=[first.seeds[1]])
    assert torch.equal(mixed.frames, torch.cat([first.frames[1:2], other.frames]))
    assert torch.equal(mixed.masks, torch.cat([first.masks[2:4], other.masks]))
    assert mixed.seeds == other.seeds


def test_the_worst_clips_come_once_more_even_after_a_stop(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "AFTER", 2)
    stage = "videos: 3, replays: 1, images: 0.3"
    hard = RECIPE.replace("videos: 1", stage).replace("steps: 2", "steps: 9")
    (work / "hard.yaml").write_text(hard)
    came: list[tuple[Batch, list[float]]] = []

    def watched(model: SAM2Base, rng: Rng, batch: Batch, plan: Plan) -> Any:
        if len(came) == stop_after:
            raise KeyboardInterrupt
        found = loss(model, rng, batch, plan)
        came.append((batch, found[2].tolist()))
        return found

    monkeypatch.setattr(train, "loss", watched)
    stop_after = 14
    with pytest.raises(KeyboardInterrupt):
        train.main([*arguments(work, "hard"), "--recipe", str(work / "hard.yaml")])
    stop_after = 18
    train.main([*arguments(work, "hard"), "--recipe", str(work / "hard.yaml")])

    replayed = 0
    for (earlier, quality), (batch, _) in zip(came[9:], came[11:], strict=False):
        new = quality[3 - len(earlier.seeds) :]
        if earlier.seeds and batch.seeds:
            worst = draw_again(work, earlier.seeds[new.index(min(new))])
            assert torch.equal(batch.frames[0], worst.frames[0])
            replayed += 1
        assert len(batch.seeds) in (0, 3 - bool(earlier.seeds))
    assert replayed >= 3


def draw_again(work: Path, seed: replay.Seed) -> Batch:
    return draw(np.random.default_rng(), train.load_bank(work, "train"), 64, 1, 3, 2, again=[seed])


def test_ranks_end_with_the_process_that_was_started(work: Path) -> None:
    (work / "long.yaml").write_text(RECIPE.replace("steps: 2", "steps: 100000"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["--ranks", "2", "--recipe", str(work / "long.yaml"), "--port", port]
    # SIGINT, by which torch ends them, is ignored by what a shell starts with an &
    command = ["sh", "-c", 'trap "" INT; exec "$0" "$@"', sys.executable, "-m", "training.train"]
    command += [*arguments(work, "killed"), *options]
    with subprocess.Popen(command, cwd=NANO.parents[2]) as started:
        while not (work / "killed/last.pt").exists():
            assert started.poll() is None
            time.sleep(0.05)
        ranks = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        assert len(ranks) >= 2
        started.kill()
    for _ in range(600):
        if not any(is_alive(int(rank)) for rank in ranks):
            return
        time.sleep(0.1)
    for rank in ranks:
        os.kill(int(rank), signal.SIGKILL)
    raise AssertionError("ranks are still at work")


def is_alive(process: int) -> bool:
    """Whether it runs; one that nobody waits for has ended, too."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("kind", ["click", "box", "mask"])
def test_every_plan_has_a_finite_loss_that_reaches_the_encoder(work: Path, kind: str) -> None:
    model = build(work / "tiny.yaml")
    rng = np.random.default_rng(1)
    batch = draw(rng, train.load_bank(work, "train"), 64, 1, 3, 2)
    value, _, quality = loss(model, rng, batch, Plan(kind, 2, kind == "click", 2, 5))
    value.backward()
    assert torch.isfinite(value)
    assert quality.shape == (1,)
    grad = model.image_encoder.trunk.patch_embed.proj.weight.grad
    assert grad is not None
    assert grad.abs().sum() > 0


def test_newton_schulz_brings_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(2, 8, 24)))
    assert values.min() > 0.6
    assert values.max() < 1.3
