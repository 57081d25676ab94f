"""The models masklet knows: their names and prices, finding, fetching and loading their weights.

The registry itself is `configs/models.yaml`. Torch, sam2 and huggingface_hub are imported inside
the functions that need them, so that naming a model or printing a help text stays fast.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from masklet.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from sam2.modeling.sam2_base import SAM2Base
    from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[1]

# `build_sam2_video_predictor` in sam2/build_sam.py gives every published model these settings, so
# they belong to what "SAM 2" means although no config file has them. Its `fill_hole_area` is left
# out: that acts on finished masks, and only where sam2's CUDA extension is built.
INFERENCE_SETTINGS: dict[str, Any] = {
    "sam_mask_decoder_extra_args": {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    },
    "binarize_mask_from_pts_for_mem_enc": True,
}


@dataclass(frozen=True)
class ModelSpec:
    """One model: an entry of `configs/models.yaml`, which explains the fields."""

    name: str
    aliases: tuple[str, ...]
    repo: str | None
    config: str
    checkpoint: str
    parameters: float
    price_per_minute: float
    price_per_object_minute: float

    @property
    def short_name(self) -> str:
        """The name to type: the first alias, or the full name where there is none."""
        return self.aliases[0] if self.aliases else self.name


def _read_registry(path: Path) -> dict[str, ModelSpec]:
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {
        name: ModelSpec(name=name, **{**fields, "aliases": tuple(fields["aliases"])})
        for name, fields in entries.items()
    }


MODELS = _read_registry(REPOSITORY / "configs" / "models.yaml")


def model_names() -> list[str]:
    """Return every name a user may say, the short ones first."""
    short = [spec.short_name for spec in MODELS.values()]
    return list(dict.fromkeys([*short, *MODELS]))


def find_model(name: str) -> ModelSpec:
    """Return the model of this full name or alias.

    Raises UserError for any other name, with the choices and the closest of them.
    """
    for spec in MODELS.values():
        if name == spec.name or name in spec.aliases:
            return spec
    # People paste the hub's spelling, facebook/sam2.1-hiera-tiny, too.
    spelled = name.rsplit("/", 1)[-1].lower().replace("-", "_")
    close = difflib.get_close_matches(spelled, model_names(), n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UserError(f"There is no model {name!r}.{hint} The models are {', '.join(model_names())}.")


def locate_checkpoint(spec: ModelSpec, checkpoint: Path | None = None) -> Path | None:
    """Return the file that holds the model's weights, or None when it is not on this machine.

    Looks at `checkpoint` alone when it is given, else at the bundled file or in the local hub
    cache. Never uses the network. Raises UserError when `checkpoint` is given and is no file.
    """
    if checkpoint is not None:
        path = checkpoint.expanduser()
        if not path.is_file():
            raise UserError(f"There is no checkpoint file {path}: {_remedy(spec, path)}.")
        return path
    if spec.repo is None:
        path = REPOSITORY / spec.checkpoint
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    # Besides a path and None there is a marker object for "known not to exist in the repository".
    cached = try_to_load_from_cache(spec.repo, spec.checkpoint)
    return Path(cached) if isinstance(cached, str) else None


def require_checkpoint(spec: ModelSpec, checkpoint: Path | None = None) -> Path:
    """As `locate_checkpoint`, but raises UserError naming the command that fetches the weights."""
    path = locate_checkpoint(spec, checkpoint)
    if path is None:
        raise _not_here(spec)
    return path


def pull_checkpoint(spec: ModelSpec) -> Path:
    """Fetch the model's published weights into the hub cache and return the file there.

    A file that is there already is only checked. A connection that breaks is taken up again where
    it broke, size and SHA-256 are verified, and a damaged copy in the cache is replaced. A bundled
    model needs no network. Obeys HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME and the hub's other
    variables. Raises UserError with the reason when the weights cannot be had.
    """
    if spec.repo is None:
        path = locate_checkpoint(spec)
        if path is None:
            raise _not_here(spec)
        return path
    path = _download(spec)
    if _is_damaged(path):
        path = _download(spec, force=True)
    if _is_damaged(path):
        path.unlink()
        raise UserError(
            f"{spec.repo}/{spec.checkpoint} arrived damaged (its SHA-256 is not the one the server "
            f"announced): try `masklet models pull {spec.short_name}` later."
        )
    return path


def _download(spec: ModelSpec, force: bool = False) -> Path:
    from huggingface_hub import constants, hf_hub_download

    try:
        return Path(hf_hub_download(spec.repo, spec.checkpoint, force_download=force))
    # The hub client lets through errors of three HTTP stacks, its own and the system's: whichever
    # it is, the user needs one line with the reason.
    except Exception as error:
        raise UserError(
            f"Cannot fetch {spec.repo}/{spec.checkpoint} from {constants.ENDPOINT}: "
            f"{_download_failure(error)}; then run `masklet models pull {spec.short_name}`, "
            "or name a file you have with --checkpoint PATH."
        ) from error


def _download_failure(error: Exception) -> str:
    """Say in a few words what stopped a download and what would let it pass."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE forbids it and the file is not in the hub cache; unset it"
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            return f"the server answered {status}; check HF_ENDPOINT and HF_TOKEN, or wait"
        if isinstance(cause, OSError) and cause.strerror and cause.filename is not None:
            return f"{cause.strerror}: {cause.filename}; set HF_HOME to a folder that can be used"
        if isinstance(cause, OSError) and cause.strerror and cause.errno is not None:
            return f"{cause.strerror}; check the space in {constants.HF_HUB_CACHE} and the network"
    detail = (str(causes[-1]) or type(causes[-1]).__name__).strip().splitlines()[0].rstrip(".")
    return f"{detail}; check the network"


def _is_damaged(path: Path) -> bool:
    # The hub cache names a file after its ETag, which is the SHA-256 for a file in large file
    # storage, and links to it from the snapshot. One link only: the next may lead to a store that
    # names by another hash. Where links cannot be made there is nothing to compare with.
    announced = path.readlink().name if path.is_symlink() else ""
    return bool(re.fullmatch("[0-9a-f]{64}", announced)) and checkpoint_sha256(path) != announced


def checkpoint_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def config_sha256(spec: ModelSpec) -> str:
    """Hash of the model's config with the inference settings, which its logits depend on."""
    from omegaconf import OmegaConf

    text = OmegaConf.to_yaml(model_config(spec), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def model_config(spec: ModelSpec) -> DictConfig:
    """Return the model's config, resolved and with upstream's `INFERENCE_SETTINGS`.

    `hydra.utils.instantiate` makes a SAM2Base of it; with another `_target_` and
    `fill_hole_area: 0` it makes upstream's SAM2VideoPredictor. Settings that the config file makes
    itself are kept.
    """
    from omegaconf import DictConfig, OmegaConf

    root = REPOSITORY if spec.repo is None else _sam2_folder().parent
    file = OmegaConf.load(root / spec.config)
    OmegaConf.resolve(file)
    # A config can name any callable, so what is made of the whole never comes from a file.
    # Compiling would replace the image encoder's forward before the weights are there.
    fixed = {"_target_": "sam2.modeling.sam2_base.SAM2Base", "compile_image_encoder": False}
    config = OmegaConf.merge(INFERENCE_SETTINGS, file.model, fixed)
    assert isinstance(config, DictConfig)
    return config


def _sam2_folder() -> Path:
    # Importing sam2 to ask for its place would import torch and start hydra.
    found = find_spec("sam2")
    if found is None or found.origin is None:
        raise UserError("The sam2 package is not installed: run `pip install sam2==1.1.0`.")
    return Path(found.origin).parent


def load_model(spec: ModelSpec, checkpoint: Path | None = None, device: str = "cpu") -> SAM2Base:
    """Build the model and load its weights: float32, in eval mode, without gradients.

    `checkpoint` names other weights for the same architecture: `.safetensors`, or what upstream
    saves with torch, `{"model": state_dict}`. Nothing is downloaded. Raises UserError when the
    weights are not on this machine, cannot be read, hold code, are another model's or are not all
    finite numbers, and when there is no such device.
    """
    path = locate_checkpoint(spec, checkpoint)
    if path is None:
        raise _not_here(spec)
    _check_device(device)
    state = _read_weights(spec, path)

    from unittest.mock import patch

    from hydra.utils import instantiate

    from masklet.out_of_memory import memory_needed

    # upstream's constructors put tables on a GPU that is there, wanted or not and full or not;
    # masklet makes them where they are used
    with patch("torch.cuda.is_available", return_value=False):
        model = instantiate(model_config(spec))
    _check_weights(spec, path, state, model.state_dict())
    model.load_state_dict(state, strict=True)
    with memory_needed(f"for the model {spec.name}"):
        return model.to(device=device).eval().requires_grad_(False)


def _check_device(device: str) -> None:
    import torch

    from masklet.out_of_memory import memory_needed

    try:
        with memory_needed(f"on the device {device!r}"):
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        raise UserError(f"There is no device {device!r} here: use --device cpu.") from error


def _read_weights(spec: ModelSpec, path: Path) -> dict[str, Tensor]:
    """Return the state dict in the file, with whatever names, shapes and dtypes it has."""
    import pickle

    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): {_remedy(spec, path)}.") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is no checkpoint, or holds more than tensors, and was not opened, because "
            f"that could run code: {_remedy(spec, path)}."
        ) from error
    # A damaged or hostile file can break its parser in any way.
    except Exception as error:
        raise UserError(
            f"{path} is truncated or is no checkpoint: {_remedy(spec, path)}."
        ) from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{path} has no state dict under 'model': {_remedy(spec, path)}.")
    return state


def _check_weights(
    spec: ModelSpec, path: Path, state: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    """Raise UserError unless `state` has exactly the tensors of `expected`, all finite."""
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is not part of the model" for name in state if name not in expected]
    for name in expected.keys() & state.keys():
        problem = _mismatch(state[name], expected[name])
        if problem:
            problems.append(f"{name} {problem}")
    if problems:
        other = _recognise(state)
        guess = (
            f"these look like the weights of {other}"
            if other not in (None, spec.name)
            else f"{'; '.join(sorted(problems)[:3])}{' and more' if len(problems) > 3 else ''}"
        )
        raise UserError(f"{path} does not fit {spec.name}, {guess}: {_remedy(spec, path)}.")
    for name, tensor in state.items():
        if not tensor.float().isfinite().all():
            raise UserError(
                f"{path} is damaged, {name} has NaN or infinity: {_remedy(spec, path)}."
            )


def _mismatch(tensor: object, expected: Tensor) -> str | None:
    import torch

    # Sparse and meta tensors have a shape too, but no numbers to copy.
    if (
        not isinstance(tensor, torch.Tensor)
        or tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or not tensor.is_floating_point()
    ):
        return "is no tensor of floating-point numbers"
    if tensor.shape != expected.shape:
        return f"is {list(tensor.shape)} instead of {list(expected.shape)}"
    return None


# What Hiera takes when a config leaves it out: sam2/modeling/backbones/hieradet.py.
_HIERA_EMBED_DIM = 96
_HIERA_STAGES = (2, 3, 16, 3)


def _recognise(state: dict[str, Tensor]) -> str | None:
    """Return the name of the model these weights are of, judged by a few cheap features."""
    patch_embed = getattr(state.get("image_encoder.trunk.patch_embed.proj.weight"), "shape", ())
    blocks = {m[1] for n in state if (m := re.match(r"image_encoder\.trunk\.blocks\.(\d+)\.", n))}
    features = (next(iter(patch_embed), 0), len(blocks), "no_obj_embed_spatial" in state)
    for spec in MODELS.values():
        config = model_config(spec)
        trunk = config.image_encoder.trunk
        if features == (
            trunk.get("embed_dim", _HIERA_EMBED_DIM),
            sum(trunk.get("stages", _HIERA_STAGES)),
            config.get("no_obj_embed_spatial", False),
        ):
            return spec.name
    return None


def _not_here(spec: ModelSpec) -> UserError:
    return UserError(f"The weights of {spec.name} are not on this machine: {_remedy(spec)}.")


def _remedy(spec: ModelSpec, checkpoint: Path | None = None) -> str:
    """What to do instead of `checkpoint`, or where the model's own weights are missing."""
    own = "name weights that fit with --checkpoint PATH"
    if spec.repo is not None:
        return f"run `masklet models pull {spec.short_name}` for the published weights, or {own}"
    if checkpoint in (None, REPOSITORY / spec.checkpoint):
        return f"install masklet again, or {own}"
    return f"leave out --checkpoint for the bundled weights, or {own}"
