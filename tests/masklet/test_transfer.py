"""No thread waits for the device while a video is tracked; torch's meta device stands for a GPU."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from masklet import lanes, tracker
from masklet.media import probe
from masklet.network import Network, Prediction
from masklet.propagate import segment_frames
from masklet.tracker import MemoryBank, Sweep, condition, track
from masklet.transfer import bring, send
from tests.conftest import HEIGHT, WIDTH
from tests.masklet.comparison import click, plan_of, said


class Traffic(TorchDispatchMode):
    """Notes every operator whose tensors are on two devices, but for those that `send` calls.

    What would read a number back from the device fails by itself: meta tensors have none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.crossings: list[str] = []
        self.sent = 0
        self._sends = False

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        # a CPU's scalar goes along with the call
        if len({x.device for x in tensors if x.dim() > 0}) > 1 and not self._sends:
            self.crossings.append(str(op))
        return result

    def send(self, tensor: Tensor, device: torch.device) -> Tensor:
        self._sends, self.sent = True, self.sent + 1
        try:
            return send(tensor, device)
        finally:
            self._sends = False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_frame_needs_is_sent_without_waiting(
    dtype: torch.dtype, nano: SAM2Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network.of(deepcopy(nano).to("meta"), dtype)
    size, device = nano.image_size, torch.device("meta")
    pictures = [torch.zeros(3, size, size, device=device) for _ in range(2)]
    _, memory = condition(
        network, network.encode(pictures)[0], said(click((40, 45, 1))), (HEIGHT, WIDTH)
    )
    # of two layouts of memory
    banks = [MemoryBank({0: memory}), MemoryBank({0: memory, 3: memory})]
    traffic = Traffic()
    monkeypatch.setattr(tracker, "send", traffic.send)
    with traffic:
        for position in range(1, 4):
            features = network.encode(pictures)[0]
            tracked = track(network, features, position, banks, Sweep(20))
            banks = [bank for _, bank in tracked]
    assert traffic.crossings == []
    assert traffic.sent > 0
    assert {prediction.logits.device for prediction, _ in tracked} == {device}


def test_a_frame_is_waited_for_when_the_next_one_is_under_way(
    clip: Path, nano: SAM2Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, int]] = []
    begin = lanes.Lanes.track

    def noting_track(self: Any, features: Any, position: int, *rest: Any) -> Any:
        order.append(("begun", position))
        return begin(self, features, position, *rest)

    def noting_bring(prediction: Prediction) -> Any:
        arrives = bring(prediction)

        def wait() -> Prediction:
            order.append(("waited for", sum(what == "waited for" for what, _ in order) + 1))
            return arrives()

        return wait

    monkeypatch.setattr(lanes.Lanes, "track", noting_track)
    monkeypatch.setattr(lanes, "bring", noting_bring)
    plan = plan_of(probe(clip), {1: {0: said(click((40, 45, 1)))}}, timeline=range(6))
    for _ in segment_frames(plan, plan.object_ids, Network.of(nano)):
        pass
    assert len(order) == 10
    for position in range(1, 5):
        assert order.index(("waited for", position)) > order.index(("begun", position + 1))
