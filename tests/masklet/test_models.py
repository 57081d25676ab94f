"""The registry, the weights' way from the hub into a model, and every error on it."""

import errno
import hashlib
import os
import pickle
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from hydra.utils import instantiate
from safetensors.torch import save_file

from masklet.errors import UserError
from masklet.models import (
    MODELS,
    REPOSITORY,
    checkpoint_sha256,
    find_model,
    load_model,
    locate_checkpoint,
    model_config,
    model_names,
    pull_checkpoint,
)

NANO, TINY = find_model("nano"), find_model("tiny")
CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "c" * 40
RESOLVE = f"/{TINY.repo}/resolve/main/{TINY.checkpoint}"

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def nano_state() -> State:
    """Seeded random weights for the bundled nano config."""
    torch.manual_seed(7)
    state: State = instantiate(model_config(NANO)).state_dict()
    return state


def error_of(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        call(*arguments, **options)
    message = str(raised.value)
    assert "\n" not in message
    return message


# Names


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_a_bare_name_means_sam_2_1(size: str) -> None:
    assert find_model(size) is find_model(f"sam2.1_hiera_{size}")
    assert find_model(f"sam2_hiera_{size}").repo == f"facebook/sam2-hiera-{size}".replace("_", "-")
    assert find_model(size).repo == f"facebook/sam2.1-hiera-{size}".replace("_", "-")
    assert find_model(size).checkpoint == f"sam2.1_hiera_{size}.pt"


def test_names_are_unique_and_all_are_found() -> None:
    said = [name for spec in MODELS.values() for name in (spec.name, *spec.aliases)]
    assert sorted(said) == sorted(model_names())
    assert len(said) == len(set(said)) == 13
    assert {find_model(name).name for name in model_names()} == set(MODELS)
    assert model_names()[:5] == ["nano", "tiny", "small", "base_plus", "large"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Large", "large"),
        ("bas_plus", "base_plus"),
        ("base-plus", "base_plus"),
        ("facebook/sam2.1-hiera-tiny", "sam2.1_hiera_tiny"),
        ("sam2_hiera_tinny", "sam2_hiera_tiny"),
    ],
)
def test_an_unknown_name_gets_a_suggestion_and_the_choices(said: str, meant: str) -> None:
    message = error_of(find_model, said)
    assert f"Did you mean {meant}?" in message
    assert all(name in message for name in model_names())


def test_a_name_like_no_other_gets_the_choices_alone() -> None:
    message = error_of(find_model, "quux")
    assert "Did you mean" not in message
    assert "sam2.1_hiera_large" in message


def test_prices() -> None:
    rates = {n: (s.price_per_minute, s.price_per_object_minute) for n, s in MODELS.items()}
    assert rates["sam2.1_hiera_large"] == rates["sam2_hiera_large"] == (0.216, 0.0288)
    assert rates["sam2.1_hiera_tiny"] == rates["sam2_hiera_tiny"] == (0.144, 0.0288)
    by_size = sorted(MODELS.values(), key=lambda spec: spec.parameters)
    assert [s.price_per_minute for s in by_size] == sorted(s.price_per_minute for s in by_size)


# Configs


@pytest.fixture(scope="module")
def shapes() -> dict[str, State]:
    """Every model's state dict on torch's meta device, which has shapes and no numbers."""
    with pytest.MonkeyPatch.context() as patch:
        # Hiera reads its drop path rates back as Python numbers.
        linspace = torch.linspace
        patch.setattr(torch, "linspace", lambda *args: linspace(*args, device="cpu"))
        with torch.device("meta"):
            return {
                name: instantiate(model_config(spec)).state_dict() for name, spec in MODELS.items()
            }


@pytest.mark.parametrize("name", MODELS)
def test_every_config_builds_a_model_of_the_promised_size(
    name: str, shapes: dict[str, State]
) -> None:
    parameters = sum(tensor.numel() for tensor in shapes[name].values()) / 1e6
    assert parameters == pytest.approx(MODELS[name].parameters, abs=0.1)


@pytest.mark.parametrize("name", [*(n for n in MODELS if "2.1" in n), "sam2_hiera_tiny"])
def test_another_models_weights_are_recognised(
    name: str, shapes: dict[str, State], tmp_path: Path
) -> None:
    path = tmp_path / "other.pt"
    torch.save({"model": shapes[name]}, path)
    message = error_of(load_model, NANO, path)
    assert f"does not fit nano, these look like the weights of {name}:" in message
    assert "--checkpoint PATH" in message


@pytest.mark.parametrize("name", MODELS)
def test_the_config_has_upstreams_inference_settings(name: str) -> None:
    config = model_config(MODELS[name])
    assert config._target_ == "sam2.modeling.sam2_base.SAM2Base"
    assert config.compile_image_encoder is False
    assert config.binarize_mask_from_pts_for_mem_enc is True
    assert config.sam_mask_decoder_extra_args == {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    }
    assert "fill_hole_area" not in config


def test_a_config_keeps_its_own_settings_but_not_its_target(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "size: 64\n"
        "model:\n"
        "  _target_: os.system\n"
        "  image_size: ${size}\n"
        "  binarize_mask_from_pts_for_mem_enc: false\n"
        "  compile_image_encoder: true\n"
        "  sam_mask_decoder_extra_args: {dynamic_multimask_stability_thresh: 0.5}\n"
    )
    config = model_config(replace(NANO, config=str(path)))
    assert config._target_ == "sam2.modeling.sam2_base.SAM2Base"
    assert config.image_size == 64
    assert config.binarize_mask_from_pts_for_mem_enc is False
    assert config.compile_image_encoder is False
    assert config.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh == 0.5
    assert config.sam_mask_decoder_extra_args.dynamic_multimask_stability_delta == 0.05


def test_upstreams_predictor_can_be_made_of_the_same_config(nano_state: State) -> None:
    config = model_config(NANO)
    config._target_ = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    config.fill_hole_area = 0
    predictor = instantiate(config)
    predictor.load_state_dict(nano_state, strict=True)
    assert predictor.fill_hole_area == 0
    assert predictor.sam_mask_decoder.dynamic_multimask_via_stability is True


# Loading


def assert_loaded(model: Any, state: State) -> None:
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    for name, tensor in loaded.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].float()), name


def test_the_bundled_model_loads() -> None:
    model = load_model(NANO)
    assert type(model).__name__ == "SAM2Base"
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert pull_checkpoint(NANO) == locate_checkpoint(NANO) == REPOSITORY / NANO.checkpoint


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_safetensors_load_as_float32(dtype: torch.dtype, nano_state: State, tmp_path: Path) -> None:
    state = {name: tensor.to(dtype) for name, tensor in nano_state.items()}
    save_file(state, tmp_path / "w.safetensors")
    assert_loaded(load_model(NANO, tmp_path / "w.safetensors"), state)


def test_upstreams_format_loads_into_tiny(shapes: dict[str, State], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    state = {
        name: torch.rand(tensor.shape, generator=generator)
        for name, tensor in shapes[TINY.name].items()
    }
    torch.save({"model": state}, tmp_path / TINY.checkpoint)
    assert_loaded(load_model(TINY, tmp_path / TINY.checkpoint), state)


def test_torchvision_is_not_imported_and_naming_models_imports_no_torch(
    nano_state: State, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_file(nano_state, path)
    code = (
        "import sys, pathlib, masklet.models as m, masklet.cli.models\n"
        "heavy = {'torch', 'sam2', 'huggingface_hub', 'omegaconf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "m.load_model(m.find_model('nano'), pathlib.Path(sys.argv[1]))\n"
        "assert 'torch' in sys.modules\n"
        "assert 'torchvision' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=REPOSITORY)


# Files that are no weights, or not these


class Payload:
    """Unpickled, it would write a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "w.pt"
    for write in (torch.save, lambda o, p: p.write_bytes(pickle.dumps(o, protocol=2))):
        write({"model": Payload(trace)}, path)
        message = error_of(load_model, TINY, path)
        assert "could run code" in message
        assert "masklet models pull tiny" in message
        assert not trace.exists()


def test_files_that_are_no_checkpoint(nano_state: State, tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save({"model": nano_state}, whole)
    whole_safetensors = tmp_path / "whole.safetensors"
    save_file(nano_state, whole_safetensors)

    def written(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("readme.txt", "no weights here")
    torch.save(nano_state, tmp_path / "bare.pt")
    torch.save({"model": [1, 2]}, tmp_path / "list.pt")
    files = {
        written("cut.pt", whole.read_bytes()[:100_000]): "is truncated or is no checkpoint",
        written("cut.safetensors", whole_safetensors.read_bytes()[:-4]): "is truncated or is no",
        written("empty.pt", b""): "is truncated or is no checkpoint",
        written("empty.safetensors", b""): "is truncated or is no checkpoint",
        written("page.pt", b"<html>404</html>"): "is no checkpoint",
        written("page.safetensors", b"<html>404</html>"): "is truncated or is no checkpoint",
        tmp_path / "zip.pt": "is truncated or is no checkpoint",
        tmp_path / "bare.pt": "has no state dict under 'model'",
        tmp_path / "list.pt": "has no state dict under 'model'",
    }
    for path, expected in files.items():
        message = error_of(load_model, TINY, path)
        assert message.startswith(f"{path} "), path
        assert expected in message, path
        assert "run `masklet models pull tiny`" in message, path


def test_tensors_that_do_not_fit_are_named(nano_state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    pointer, none, position = "no_obj_ptr", "no_mem_embed", "no_mem_pos_enc"
    rows = nano_state[none].shape[-1]
    no_numbers = "is no tensor of floating-point numbers"
    cases: list[tuple[dict[str, Any], list[str]]] = [
        (
            {none: "text", position: nano_state[position].long(), pointer: torch.eye(9).to("meta")},
            [f"{none} {no_numbers}", f"{position} {no_numbers}", f"{pointer} {no_numbers}"],
        ),
        (
            {none: torch.zeros(2), "extra": torch.eye(2), pointer: torch.eye(9).to_sparse()},
            [
                f"{none} is [2] instead of [1, 1, {rows}]",
                "extra is not part of the model",
                f"{pointer} {no_numbers}",
            ],
        ),
        ({none: torch.full_like(nano_state[none], float("nan"))}, [f"{none} has NaN"]),
        ({none: nano_state[none].double() + 1e300}, [f"{none} has NaN or infinity"]),
    ]
    for change, expected in cases:
        torch.save({"model": {**nano_state, **change}}, path)
        message = error_of(load_model, NANO, path)
        assert all(part in message for part in expected)
        assert str(path) in message
        assert "--checkpoint PATH" in message


def test_missing_tensors_are_named(nano_state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"model": {k: v for k, v in nano_state.items() if k != "no_mem_embed"}}, path)
    assert "no_mem_embed is missing" in error_of(load_model, NANO, path)
    # Of many, three are enough; and a scalar has no width to recognise a model by.
    torch.save({"model": {"image_encoder.trunk.patch_embed.proj.weight": torch.tensor(1.0)}}, path)
    message = error_of(load_model, NANO, path)
    assert message.count(" is missing") == 3
    assert "and more" in message


def test_weights_that_are_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert locate_checkpoint(TINY) is None
    assert "run `masklet models pull tiny`" in error_of(load_model, TINY)
    absent = tmp_path / "absent.pt"
    for call in (load_model, locate_checkpoint):
        message = error_of(call, TINY, absent)
        assert f"no checkpoint file {absent}" in message
        assert "run `masklet models pull tiny`" in message
    assert "no checkpoint file" in error_of(load_model, TINY, tmp_path)
    assert "leave out --checkpoint for the bundled weights" in error_of(load_model, NANO, absent)
    unbundled = replace(NANO, checkpoint="masklet/weights/absent.safetensors")
    assert locate_checkpoint(unbundled) is None
    assert "install masklet again" in error_of(load_model, unbundled)
    assert "install masklet again" in error_of(pull_checkpoint, unbundled)


def test_a_damaged_bundled_file_is_no_fault_of_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masklet.models.REPOSITORY", tmp_path)
    damaged = tmp_path / NANO.checkpoint
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"damaged")
    for named in (None, damaged):
        assert "install masklet again" in error_of(load_model, NANO, named)


def test_an_unknown_device(nano_state: State, tmp_path: Path) -> None:
    save_file(nano_state, tmp_path / "w.safetensors")
    for device in ("abacus", "cuda:99"):
        message = error_of(load_model, NANO, tmp_path / "w.safetensors", device=device)
        assert f"no device '{device}'" in message


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    assert checkpoint_sha256(tmp_path / "f") == SHA256


# Fetching, from a server that speaks as much of the hub's protocol as a download needs


class Hub(ThreadingHTTPServer):
    """Serves CONTENT as TINY's checkpoint and keeps the requests; its fields make it fail."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.requests: list[tuple[str, str | None]] = []
        self.sha256 = SHA256
        self.size = len(CONTENT)
        self.status = 200
        self.cut_after: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        hub = self.server
        hub.requests.append(("HEAD", None))
        found = self.path == RESOLVE
        self.send_response(hub.status if found else 404)
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound")
        elif hub.status == 200:
            self.send_header("ETag", f'"{hub.sha256}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(hub.size))
        self.end_headers()

    def do_GET(self) -> None:
        hub, wanted = self.server, self.headers.get("Range")
        if self.path != RESOLVE:
            self.send_error(404)
            return
        hub.requests.append(("GET", wanted))
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if wanted:
            last = len(CONTENT) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(CONTENT)}")
        self.end_headers()
        end, hub.cut_after = hub.cut_after, None
        self.wfile.write(CONTENT[start:end])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # The client waits between its attempts.
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_pull_fetches_once_and_locate_finds(hub: Hub) -> None:
    assert locate_checkpoint(TINY) is None
    path = pull_checkpoint(TINY)
    assert path.read_bytes() == CONTENT
    assert path.name == TINY.checkpoint
    assert locate_checkpoint(TINY) == path
    assert pull_checkpoint(TINY) == path
    assert [method for method, _ in hub.requests].count("GET") == 1


def test_a_cut_connection_is_taken_up_where_it_broke(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cut_after = 300_000
    # What the client has in its buffer when the connection breaks is fetched again.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    assert pull_checkpoint(TINY).read_bytes() == CONTENT
    gets = [wanted for method, wanted in hub.requests if method == "GET"]
    assert gets == [None, "bytes=300000-"]


def test_a_damaged_copy_in_the_cache_is_replaced(hub: Hub) -> None:
    path = pull_checkpoint(TINY)
    path.resolve().write_bytes(CONTENT[:-1] + b"x")
    assert pull_checkpoint(TINY).read_bytes() == CONTENT


def test_other_content_than_announced_is_refused(hub: Hub) -> None:
    hub.sha256 = "0" * 64
    assert "SHA-256" in error_of(pull_checkpoint, TINY)
    assert locate_checkpoint(TINY) is None


def test_another_size_than_announced_is_refused(hub: Hub) -> None:
    hub.size += 1
    message = error_of(pull_checkpoint, TINY)
    assert "Consistency check failed" in message
    assert locate_checkpoint(TINY) is None


@pytest.mark.parametrize("status", [401, 404, 503])
def test_a_server_that_refuses(hub: Hub, status: int) -> None:
    hub.status = status
    message = error_of(pull_checkpoint, TINY)
    assert f"Cannot fetch {TINY.repo}/{TINY.checkpoint} from {hub.url}" in message
    assert f"the server answered {status}" in message
    assert "masklet models pull tiny" in message
    assert "--checkpoint PATH" in message


def test_a_file_the_repository_does_not_have(hub: Hub) -> None:
    message = error_of(pull_checkpoint, replace(TINY, checkpoint="absent.pt"))
    assert "the server answered 404" in message


def test_a_server_that_is_down_serves_only_what_is_cached(hub: Hub) -> None:
    path = pull_checkpoint(TINY)
    hub.shutdown()
    hub.server_close()
    assert pull_checkpoint(TINY) == path
    message = error_of(pull_checkpoint, find_model("small"))
    assert f"from {hub.url}" in message
    assert "check the network" in message
    assert "masklet models pull small" in message


def test_a_full_disk_and_a_cache_that_is_no_folder(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    message = error_of(pull_checkpoint, TINY)
    assert "Not a directory" in message
    assert "HF_HOME" in message

    def full(*args: object, **options: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    assert "No space left on device; check the space" in error_of(pull_checkpoint, TINY)


# The command line, in processes that have only the environment to go by


def masklet_models(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys\n"
        "from masklet.cli.models import app\n"
        "from masklet.errors import UserError\n"
        "try:\n"
        "    app()\n"
        "except UserError as error:\n"
        "    sys.exit(str(error))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "COLUMNS": "80", **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def test_the_commands(hub: Hub, tmp_path: Path) -> None:
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
    }
    before = masklet_models(**environment, HF_HUB_OFFLINE="1")
    assert before.returncode == 0
    assert all(name in before.stdout for name in model_names())
    assert "masklet models pull NAME" in before.stdout
    assert "in the hub cache" not in before.stdout
    assert "not here" in before.stdout

    offline = masklet_models("pull", "tiny", **environment, HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "HF_HUB_OFFLINE forbids it" in offline.stderr.splitlines()[-1]
    assert hub.requests == []

    pulled = masklet_models("pull", "tiny", **environment)
    assert pulled.returncode == 0, pulled.stderr
    assert Path(pulled.stdout.strip()).read_bytes() == CONTENT

    again = masklet_models("pull", "tiny", **environment, HF_HUB_OFFLINE="1")
    assert again.stdout == pulled.stdout
    after = masklet_models(**environment, HF_HUB_OFFLINE="1")
    assert "in the hub cache" in after.stdout

    unknown = masklet_models("pull", "tinny", **environment)
    assert "Did you mean tiny?" in unknown.stderr
    assert len(unknown.stderr.splitlines()) == 1
