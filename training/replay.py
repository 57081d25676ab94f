"""Hard-example replay: clips that came out worst are drawn once more, some steps later.

Online hard-example mining (Shrivastava et al. 2016) would choose among clips of one step, and pay
for all of them. Here a step's worst clip takes the place of a new one `AFTER` steps later, when the
weights have changed. No clip comes a third time, so that one which nobody could follow is soon
gone. A step of single pictures leaves out what was due in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor

# more than the lessons that are drawn ahead, so that what is due is known when a clip is drawn
AFTER = 64

# the state of the random generator that draws the clip
Seed = dict[str, Any]


@dataclass
class Replay:
    """What is to be drawn again, of all ranks: by step, then by rank."""

    due: dict[int, list[list[Seed]]] = field(default_factory=dict)

    def of(self, step: int, rank: int) -> list[Seed]:
        """What a rank draws again in this step."""
        return self.due[step][rank] if step in self.due else []

    def take_in(self, step: int, hard: list[Seed], ranks: int) -> None:
        """After a step of all ranks: forget what came in it, remember each rank's hard clips."""
        everyone = [hard] * ranks
        if ranks > 1:
            dist.all_gather_object(everyone, hard)
        self.due.pop(step, None)
        self.due[step + AFTER] = everyone


def worst(seeds: Sequence[Seed], quality: Tensor, count: int) -> list[Seed]:
    """The seeds of the `count` clips with the least IoU; quality: (V,), nan where it has none."""
    order = quality.nan_to_num(nan=1.0).argsort(stable=True)
    return [seeds[index] for index in order[:count].tolist()]
