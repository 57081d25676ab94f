"""``python -m training.export``: the averaged weights of checkpoints as float16 safetensors.

Of several checkpoints, as those at the ends of two stages, the mean is taken: where they lie in one
basin it is good at what either is good at (model soups, Wortsman et al. 2022).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor


def export(checkpoints: Sequence[Path], out: Path) -> int:
    """Write `out` atomically, with the names of `SAM2Base.state_dict()`; return its bytes."""
    averages: list[dict[str, Tensor]] = [
        torch.load(checkpoint, weights_only=True)["average"] for checkpoint in checkpoints
    ]
    half = {
        name: torch.stack([one[name] for one in averages]).mean(0).half().contiguous()
        if value.is_floating_point()
        else value
        for name, value in averages[-1].items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    save_file(half, part, metadata={"format": "pt"})
    part.chmod(0o644)
    part.replace(out)
    return out.stat().st_size


def load_weights(model: SAM2Base, path: Path) -> None:
    """Load a file of `export` strictly, as float32."""
    model.load_state_dict(
        {
            name: value.float() if value.is_floating_point() else value
            for name, value in load_file(path).items()
        },
        strict=True,
    )


def main() -> None:
    """Command line: export."""
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).parent
    parser.add_argument("--checkpoints", type=Path, nargs="+", default=[here / "runs/nano/last.pt"])
    parser.add_argument(
        "--out", type=Path, default=here.parent / "masklet/weights/nano/nano.safetensors"
    )
    args = parser.parse_args()
    print(export(args.checkpoints, args.out))


if __name__ == "__main__":
    main()
