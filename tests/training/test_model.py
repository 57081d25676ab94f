"""The unrolled network says what upstream's predictor says."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("cv2")

import torch.nn.functional as F
from omegaconf import OmegaConf
from PIL import Image

from masklet.preprocess import normalize
from training.model import (
    build,
    choose,
    encode,
    from_mask,
    initialise,
    prompted,
    remember,
    tracked,
)

NANO = Path(__file__).parents[2] / "configs/models/nano.yaml"
FRAMES = 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.yaml"
    config = OmegaConf.load(NANO)
    trunk = config.model.image_encoder.trunk
    trunk.embed_dim, trunk.stages, trunk.global_att_blocks = 8, [1, 1, 2, 1], [3]
    config.model.image_encoder.neck.backbone_channel_list = [64, 32, 16, 8]
    config.model.image_size = 64
    OmegaConf.save(config, path)
    return path


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(FRAMES):
        picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        picture.save(tmp_path / f"{i}.jpg")
    return tmp_path


@pytest.mark.parametrize("kind", ["click", "mask"])
def test_unrolled_equals_predictor(
    tiny: Path, frames: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.model.LONG_VIDEO", FRAMES)
    torch.manual_seed(0)
    predictor = build(
        tiny, _target_="sam2.sam2_video_predictor.SAM2VideoPredictor", fill_hole_area=0
    )
    initialise(predictor)
    with torch.no_grad():
        predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias += 1
    mask = np.zeros((64, 64), bool)
    mask[20:40, 10:50] = True
    with torch.inference_mode():
        state = predictor.init_state(str(frames))
        if kind == "mask":
            predictor.add_new_mask(state, 0, 1, mask)
        else:
            predictor.add_new_points_or_box(
                state, 0, 1, points=np.array([[30.0, 21.0]]), labels=np.array([1])
            )
        theirs = [logits[0, 0] for _, _, logits in predictor.propagate_in_video(state)]
        pictures = np.stack([np.asarray(Image.open(frames / f"{i}.jpg")) for i in range(FRAMES)])
        every = encode(predictor, normalize(torch.from_numpy(pictures).permute(0, 3, 1, 2)))
        first = every.take(torch.tensor([0]))
        if kind == "mask":
            memory = from_mask(predictor, first, torch.from_numpy(mask)[None, None].float())
        else:
            points = torch.tensor([[[30.0, 21.0]]]), torch.ones(1, 1, dtype=torch.int32)
            answer = prompted(predictor, first, points)
            low, pointer = choose(predictor, answer, True)
            memory = remember(predictor, first, low, pointer, answer.presence, True)
        bank = {"cond_frame_outputs": {0: memory}, "non_cond_frame_outputs": {}}
        for i in range(1, FRAMES):
            features = every.take(torch.tensor([i]))
            answer = tracked(predictor, features, i, bank)
            low, pointer = choose(predictor, answer, True)
            bank["non_cond_frame_outputs"][i] = remember(
                predictor, features, low, pointer, answer.presence, False
            )
            ours = F.interpolate(low, size=(64, 64), mode="bilinear", align_corners=False)[0, 0]
            torch.testing.assert_close(ours, theirs[i], rtol=1e-4, atol=1e-4)
