"""What the tracker keeps between frames, how objects share a batch, and what feeds it."""

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base
from sam2.utils.misc import load_video_frames

from masklet import tracker
from masklet.checkpoint import Kept, Standing, load_checkpoint, save_checkpoint
from masklet.errors import UserError
from masklet.lanes import Lanes
from masklet.media import Source, probe
from masklet.models import find_model, load_model
from masklet.network import FrameFeatures, Network
from masklet.preprocess import preprocess
from masklet.propagate import segment_frames
from masklet.store import upsample
from masklet.tracker import MemoryBank, Sweep, condition, track
from tests.conftest import HEIGHT, WIDTH, disc, picture
from tests.masklet.comparison import TRACKED_TOLERANCE, click, our_logits, plan_of, said
from tests.masklet.oracle import Prompts, make_oracle

PROMPTS: Prompts = {
    1: {0: said(click((40, 45, 1)))},
    "mask": {0: said(mask=disc(0))},
    "twice": {0: said(click((40, 45, 1))), 9: said(click((67, 45, 1)))},
    "late": {7: said(click((61, 45, 1)))},
    "empty mask": {0: said(mask=np.zeros((HEIGHT, WIDTH), bool))},
}


@pytest.fixture(scope="module")
def source(clip: Path) -> Source:
    return probe(clip)


def test_frames_are_prepared_as_upstream_prepares_them(nano: SAM2Base, tmp_path: Path) -> None:
    Image.fromarray(picture(3)).save(tmp_path / "0.jpg", quality=95)
    size = nano.image_size
    theirs, height, width = load_video_frames(str(tmp_path), size, offload_video_to_cpu=True)
    ours = preprocess(np.asarray(Image.open(tmp_path / "0.jpg")), size)
    assert (height, width) == (HEIGHT, WIDTH)
    assert (ours - theirs[0]).abs().max() < 1e-6


def test_masks_are_upsampled_as_upstream_does_it(nano: SAM2Base) -> None:
    oracle = make_oracle(find_model("nano"), nano)
    logits = torch.randn(1, 1, nano.image_size // 4, nano.image_size // 4)
    state = {"device": "cpu", "video_height": HEIGHT, "video_width": WIDTH}
    _, theirs = oracle._get_orig_video_res_output(state, logits)
    assert np.array_equal(upsample(logits[0, 0].numpy(), HEIGHT, WIDTH), theirs[0, 0].numpy())


def test_objects_alone_are_as_in_a_batch(source: Source, nano: SAM2Base) -> None:
    together = our_logits(plan_of(source, PROMPTS), nano)
    plan = plan_of(source, PROMPTS)
    for frame_index, predictions, _ in segment_frames(plan, ["late"], Network.of(nano)):
        assert list(predictions) == ["late"]
        difference = predictions["late"].logits - together[frame_index, "late"]
        assert difference.abs().max() <= TRACKED_TOLERANCE


def test_the_first_sines_of_a_process_are_computed_by_one_thread(nano: SAM2Base) -> None:
    threads, seen = torch.get_num_threads(), list[int]()
    embedding = nano.memory_encoder.position_encoding
    hook = embedding.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    Network.of(nano)
    hook.remove()
    afterwards = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert (seen, afterwards) == ([1], 2)


def held(bank: MemoryBank) -> int:
    """Bytes that a bank keeps from being freed: a view holds all that it is a view of."""
    memories = [*bank.conditioning.values(), *bank.tracked.values()]
    parts = [getattr(memory, part.name) for memory in memories for part in fields(memory)]
    storages = [part.untyped_storage() for part in parts if part is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_memory_does_not_grow_with_the_video(nano: SAM2Base) -> None:
    network = Network.of(nano)
    [features] = network.encode(torch.zeros(1, 3, nano.image_size, nano.image_size))
    _, memory = condition(network, features, said(click((40, 45, 1))), (HEIGHT, WIDTH))
    bank, other, sizes = MemoryBank({0: memory}), MemoryBank({0: memory}), []
    for position in range(1, 60):
        (_, bank), (_, other) = track(network, features, position, [bank, other], Sweep(60))
        sizes.append(held(bank))
    assert len(bank.tracked) == 15
    assert sum(memory.spatial is not None for memory in bank.tracked.values()) == 6
    assert set(sizes[20:]) == {bank.nbytes}


def test_the_way_back_finds_the_frames_after_the_start(nano: SAM2Base) -> None:
    network = Network.of(nano)
    [features] = network.encode(torch.zeros(1, 3, nano.image_size, nano.image_size))
    _, memory = condition(network, features, said(click((40, 45, 1))), (HEIGHT, WIDTH))
    bank = MemoryBank({10: memory})
    for position in range(11, 60):
        sweep = Sweep(60, retain=range(11, 26))
        [(_, bank)] = track(network, features, position, [bank], sweep)
    kept: Mapping[int, Any] = bank.tracked
    assert set(range(11, 26)) <= set(kept)
    assert all(kept[position].spatial is not None for position in range(11, 17))


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_another_process_goes_on_with_the_same_bits(
    direction: str, source: Source, nano: SAM2Base, tmp_path: Path
) -> None:
    """The state is a value: taken after a frame, written, and read by a process that goes on."""
    taken, path = 9, tmp_path / "state.safetensors"
    begun = {"forward": range(20), "both": range(5, 20)}[direction]
    steps = list(_steps(source, nano, direction, begun[0]))
    save_checkpoint(
        path, {one: Kept("", Standing(taken, bank)) for one, bank in steps[taken - 1].banks.items()}
    )
    went_on = tmp_path / "logits.npz"
    code = f"from tests.masklet import test_tracker as t; t.go_on({direction!r}, {begun[0]})"
    files = {"CLIP": str(source.path), "STATE": str(path), "LOGITS": str(went_on)}
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **files})
    with np.load(went_on, allow_pickle=False) as found:
        expected = _by_name(steps[taken:])
        assert set(found) == set(expected)
        assert all(np.array_equal(found[name], expected[name]) for name in found)


def go_on(direction: str, at: int) -> None:
    """What the other process does."""
    kept = load_checkpoint(Path(os.environ["STATE"]))
    banks = {one: found.standing.bank for one, found in kept.items()}
    first = next(iter(kept.values())).standing.steps
    model, source = load_model(find_model("nano")), probe(os.environ["CLIP"])
    np.savez(os.environ["LOGITS"], **_by_name(_steps(source, model, direction, at, first, banks)))


def _steps(
    source: Source,
    model: SAM2Base,
    direction: Any,
    at: int,
    first: int = 0,
    banks: Mapping[Any, MemoryBank] | None = None,
) -> Any:
    prompts: Prompts = {
        1: {at: said(click((40 + 3 * at, 45, 1)))},
        "late": {at + 3: said(mask=disc(at + 3))},
    }
    plan = plan_of(source, prompts, direction)
    return segment_frames(plan, plan.object_ids, Network.of(model), first, banks)


def _by_name(steps: Any) -> dict[str, Any]:
    return {
        f"{step.frame_index} {one}": prediction.logits.numpy()
        for step in steps
        for one, prediction in step.predictions.items()
    }


class SmallMachine:
    """Tracks and encodes like the real functions, but has memory for `most` at a time only."""

    def __init__(self, most: int) -> None:
        self.most, self.encode, self.track = most, Network.encode, tracker.track

    def small_encode(self, network: Network, images: Sequence[torch.Tensor]) -> list[FrameFeatures]:
        self._check(len(images))
        return self.encode(network, images)

    def small_track(self, network: Any, features: Any, at: Any, banks: Any, sweep: Any) -> Any:
        self._check(len(banks))
        return self.track(network, features, at, banks, sweep)

    def _check(self, size: int) -> None:
        if size > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture
def large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches as large as on a GPU, so that there is something to halve."""
    monkeypatch.setattr("masklet.lanes._batch_sizes", lambda *_: (64, 4))


@pytest.mark.usefixtures("large_batches")
def test_batches_that_do_not_fit_are_halved(
    source: Source,
    nano: SAM2Base,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = plan_of(source, PROMPTS, timeline=range(10))
    enough = our_logits(plan, nano)
    machine = SmallMachine(most=2)
    monkeypatch.setattr(Network, "encode", lambda *given: machine.small_encode(*given))
    monkeypatch.setattr(tracker, "track", machine.small_track)
    with caplog.at_level(logging.WARNING):
        scarce = our_logits(plan, nano)
    assert scarce.keys() == enough.keys()
    for key, logits in scarce.items():
        assert (logits - enough[key]).abs().max() <= TRACKED_TOLERANCE
        assert torch.equal(logits > 0, enough[key] > 0)
    for what in ("objects", "frames"):
        said_of_it = [r.message for r in caplog.records if f" {what} at a time" in r.message]
        assert len(said_of_it) == 1, said_of_it


def test_a_model_for_the_cpu_leaves_the_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream's constructors use one that is there; here none is, so that would raise."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_model(find_model("nano"), device="cpu").device.type == "cpu"


def test_a_model_that_does_not_fit_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "to", full)
        with pytest.raises(UserError, match="out of memory for the model nano"):
            load_model(find_model("nano"))
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(UserError, match="out of memory on the device"):
        load_model(find_model("nano"))


@pytest.mark.usefixtures("large_batches")
def test_not_even_one_object_fits(
    source: Source, nano: SAM2Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(source, PROMPTS, timeline=range(10))
    monkeypatch.setattr(tracker, "track", SmallMachine(most=0).small_track)
    with pytest.raises(UserError, match="out of memory with one of the objects at a time"):
        our_logits(plan, nano)


def test_not_even_a_prompted_frame_fits(
    source: Source, nano: SAM2Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SmallMachine(most=0)
    monkeypatch.setattr(Network, "encode", lambda *given: machine.small_encode(*given))
    with pytest.raises(UserError, match="out of memory on a prompted frame; free some memory"):
        our_logits(plan_of(source, PROMPTS), nano)


@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_a_lack_of_memory_without_a_class_of_its_own(
    words: str, source: Source, nano: SAM2Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Sequence[object]:
        raise RuntimeError(words)

    monkeypatch.setattr(tracker, "track", fail)
    with pytest.raises(UserError, match="out of memory"):
        our_logits(plan_of(source, {1: {0: said(click((40, 45, 1)))}}, timeline=range(2)), nano)


@pytest.mark.usefixtures("large_batches")
def test_other_errors_are_not_taken_for_a_lack_of_memory(
    nano: SAM2Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Sequence[object]:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(tracker, "track", fail)
    with Lanes(Network.of(nano), 2) as lanes:
        [piece] = lanes.track(FrameFeatures(()), 0, [MemoryBank({})] * 2, Sweep(2))
        with pytest.raises(RuntimeError, match="shapes"):
            piece.result()


class CountingBackend:
    """Compiles nothing, and counts how often it is asked to."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, _: object) -> object:
        self.graphs += 1
        return graph.forward


def test_compiled_before_the_first_frame_and_never_again(source: Source, nano: SAM2Base) -> None:
    """Objects with one prompted frame and with two are two shapes of memory, pictures a third."""
    backend, counts = CountingBackend(), []
    prompts: Prompts = {
        1: {0: said(click((40, 45, 1)))},
        "twice": {0: said(click((40, 45, 1))), 1: said(click((43, 45, 1)))},
    }
    plan = plan_of(source, prompts)
    network = Network.of(nano).compile(backend)
    ours = {}
    for step in segment_frames(plan, plan.object_ids, network):
        counts.append(backend.graphs)
        ours |= {(step.frame_index, one): p.logits for one, p in step.predictions.items()}
    assert set(counts) == {3}
    for key, logits in our_logits(plan, nano).items():
        assert (ours[key] - logits).abs().max() <= TRACKED_TOLERANCE


def test_the_full_memory_is_what_is_compiled_for(
    source: Source, nano: SAM2Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(source, {1: {0: said(click((40, 45, 1)))}})
    network = Network.of(nano).compile(CountingBackend())
    assert network.compiled
    compiled, plain = [], []
    step = network.compiled.step
    for name, calls in (("_compiled", compiled), ("_plain", plain)):
        original = getattr(step, name)
        monkeypatch.setattr(step, name, lambda *t, f=original, c=calls: (c.append(t), f(*t))[1])
    for _ in segment_frames(plan, plan.object_ids, network):
        pass
    # one call warms it up; 15 frames pass before there are 15 pointers beside the prompted frame's
    assert (len(plain), len(compiled)) == (15, 1 + 4)


@pytest.mark.parametrize("limit", [-1, 2])
def test_the_full_memory_has_the_shape_of_the_last_frames(
    limit: int, nano: SAM2Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nano, "max_cond_frames_in_attn", limit)
    network, shapes = Network.of(nano), []
    step = Network.step

    def noting(self: Network, features: FrameFeatures, memory: Any) -> Any:
        shapes.append([part.shape for part in memory])
        return step(self, features, memory)

    monkeypatch.setattr(Network, "step", noting)
    [features] = network.encode(torch.zeros(1, 3, nano.image_size, nano.image_size))
    _, memory = condition(network, features, said(click((40, 45, 1))), (HEIGHT, WIDTH))
    bank, sweep = MemoryBank(dict.fromkeys(range(3), memory)), Sweep(20)
    for position in range(3, 20):
        [(_, bank)] = track(network, features, position, [bank], sweep)
    [full] = tracker.full_memory(network, [bank], sweep)
    assert shapes[-1] == [part.shape for part in full]
    assert shapes[0] != shapes[-1]


def test_a_machine_that_cannot_compile(source: Source, nano: SAM2Base) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("no compiler\nwas found")

    network = Network.of(nano).compile(broken)
    plan = plan_of(source, {1: {0: said(click((40, 45, 1)))}})
    with pytest.raises(UserError, match=r"cannot be compiled .*leave out --compile"):
        next(segment_frames(plan, plan.object_ids, network))


def test_batches_that_do_not_fit_are_halved_before_they_are_compiled_for(
    source: Source, nano: SAM2Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masklet.lanes._batch_sizes", lambda *_: (64, 1))
    tried: list[int] = []

    def small(graph: torch.fx.GraphModule, given: Any) -> Any:
        tensors = [one for one in given if isinstance(one, torch.Tensor)]
        of_memory = [one for one in tensors if one.shape[2:] == (nano.mem_dim,)]
        objects = max((len(one) for one in of_memory), default=0)
        tried.append(objects)
        if objects > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return graph.forward

    network = Network.of(nano).compile(small)
    click_at = {0: said(click((40, 45, 1)))}
    plan = plan_of(source, dict.fromkeys(range(5), click_at), timeline=range(3))
    for step in segment_frames(plan, plan.object_ids, network):
        assert len(step.predictions) == 5
    assert max(tried) == 5
    assert 2 in tried
