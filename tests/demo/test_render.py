import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from demo.render import is_rendered, render_to
from demo.scene import KITE, OBJECT_IDS, label
from masklet.job import load_job_fields, make_job
from masklet.mask_prompts import MaskPrompts


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    render_to(folder, width=214, height=120, frames=24)
    return folder


def test_the_truth_is_one_picture_of_labels_a_frame(clip, frames):
    with zipfile.ZipFile(clip / "truth.zip") as truth:
        assert tuple(json.loads(truth.read("objects.json"))) == OBJECT_IDS
        assert len(truth.namelist()) == 1 + len(frames)
        for frame in frames:
            with truth.open(f"{frame.frame_index}.png") as data:
                np.testing.assert_array_equal(np.asarray(Image.open(data)), frame.labels)


def test_the_job_is_one_that_masklet_accepts(clip):
    job = make_job(load_job_fields(clip / "job.yaml"), base=clip)
    assert job.file == str(clip / "clip.mp4")
    assert job.model_type == "nano"
    assert {prompt.object_id for prompt in job.prompts} == set(OBJECT_IDS) - {KITE}
    assert job.debug_masks
    assert job.bbox_tracking
    assert job.pixel_confidences


def test_the_mask_prompt_is_the_truth_of_its_frame(clip, frames):
    masks = MaskPrompts(clip / "mask_prompts.zip", 214, 120)
    assert masks.keys == [(0, KITE)]
    np.testing.assert_array_equal(masks.read(0, KITE), frames[0].labels == label(KITE))


def test_the_clip_is_a_video(clip):
    assert b"ftyp" in (clip / "clip.mp4").read_bytes()[:16]


def test_only_a_complete_render_of_this_version_counts(clip, tmp_path, monkeypatch):
    assert is_rendered(clip)
    assert not is_rendered(tmp_path)
    monkeypatch.setattr("demo.render.RENDER_VERSION", -1)
    assert not is_rendered(clip)


def test_the_same_render_is_the_same_truth_file(clip, tmp_path):
    render_to(tmp_path, width=214, height=120, frames=24)
    for name in ("truth.zip", "prompts.json", "mask_prompts.zip", "job.yaml"):
        assert (tmp_path / name).read_bytes() == (clip / name).read_bytes()
