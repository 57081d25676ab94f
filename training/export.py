"""``python -m training.export``: the averaged weights of checkpoints as float16 safetensors.

Of several checkpoints, as those at the ends of two stages, the mean is taken: where they lie in one
basin it is good at what either is good at (model soups, Wortsman et al. 2022).

An object of a clip of this world is out of sight on one frame in seven; in real video more seldom,
let it be one in 25. Scores of presence are logits, so another share of frames adds a constant to
them, here log 24 - log 6 (Saerens et al. 2002).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

PRESENCE_BIAS = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"


def export(checkpoints: Sequence[Path], out: Path, presence: float = 0.0) -> int:
    """Write `out` atomically, with the names of `SAM2Base.state_dict()`; return its bytes.

    checkpoints: of training, or files of an earlier export, which bring what was added to their
    presence. presence: added to the logits of it.
    """
    averages = [_average(checkpoint) for checkpoint in checkpoints]
    means = {
        name: torch.stack([one[name].float() for one in averages]).mean(0)
        if value.is_floating_point()
        else value
        for name, value in averages[-1].items()
    }
    means[PRESENCE_BIAS] += presence
    half = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in means.items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    save_file(half, part, metadata={"format": "pt"})
    part.chmod(0o644)
    part.replace(out)
    return out.stat().st_size


def _average(checkpoint: Path) -> dict[str, Tensor]:
    if checkpoint.suffix == ".safetensors":
        return load_file(checkpoint)
    average: dict[str, Tensor] = torch.load(checkpoint, weights_only=True)["average"]
    return average


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
    parser.add_argument(
        "--checkpoints", type=Path, nargs="+", default=[here / "runs/recipe/last.pt"]
    )
    parser.add_argument(
        "--out", type=Path, default=here.parent / "masklet/weights/nano/nano.safetensors"
    )
    parser.add_argument(
        "--presence", type=float, default=0.0, help="added to the logits of an object being there"
    )
    args = parser.parse_args()
    print(export(args.checkpoints, args.out, args.presence))


if __name__ == "__main__":
    main()
