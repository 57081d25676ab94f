"""``python -m training.curves``: how well a training went, as a picture, from its log."""

from __future__ import annotations

import argparse
import json
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

CURVES = {
    "iou_click": "one click",
    "iou_box": "box",
    "iou_last": "last frame of a clip, any prompt",
}
SMOOTH = 5


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each value, those before it and those after it, SMOOTH in all, without gaps (nan)."""
    padded = np.pad(values, SMOOTH // 2, constant_values=np.nan)
    return np.nanmean(np.lib.stride_tricks.sliding_window_view(padded, SMOOTH), axis=1)


def draw(entries: list[dict[str, Any]], out: Path) -> None:
    """One curve for each prompt over all steps, and a line where a stage begins."""
    figure, axes = plt.subplots(figsize=(8, 3.6))
    steps: list[int] = []
    begun, stage, last = 0, "", 0
    heights = cycle((1.02, 1.06))  # names of short stages would overlap in one line
    for entry in entries:
        if entry["stage"] != stage:
            begun, stage = begun + last, entry["stage"]
            axes.axvline(begun, color="0.8", linewidth=1)
            axes.text(begun, next(heights), stage, fontsize=7)
        last = entry["step"]
        steps.append(begun + last)
    for name, label in CURVES.items():
        axes.plot(steps, smoothed(np.array([e.get(name, np.nan) for e in entries])), label=label)
    axes.set(xlabel="step", ylabel="IoU on training clips", ylim=(0, 1))
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def main() -> None:
    """Command line: draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).parent
    parser.add_argument("--log", type=Path, default=here / "runs/recipe/log.jsonl")
    parser.add_argument("--out", type=Path, default=here.parent / "docs/nano-curves.png")
    args = parser.parse_args()
    draw([json.loads(line) for line in args.log.read_text().splitlines()], args.out)


if __name__ == "__main__":
    main()
