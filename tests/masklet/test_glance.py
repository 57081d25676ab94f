"""A run at a glance says what its outputs say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masklet.glance import glance, is_seen, preview_sheet
from masklet.job import make_job
from masklet.media import probe
from masklet.pipeline import run_job
from masklet.plan import plan_job
from masklet.store import upsample


def test_objects_are_seen_where_their_boxes_are(job_fields: dict[str, Any], tmp_path: Path) -> None:
    job = make_job(job_fields | {"bbox_tracking": True, "end_frame": 9})
    outputs = run_job(job, tmp_path)
    plan = plan_job(job, probe(job.file))
    seen, sheet = glance(plan, tmp_path / "masklets")
    boxes = json.loads(Path(outputs.files["bbox_tracking"]).read_text())
    assert [one.object_id for one in seen] == [1, "wide"]
    for one in seen:
        frames = [int(f) for f in boxes if one.object_id in [b["object_id"] for b in boxes[f]]]
        assert (one.frames, one.first_frame, one.last_frame) == (
            len(frames),
            min(frames, default=None),
            max(frames, default=None),
        )
        assert 0.5 < (one.confidence or 0) <= 1
    assert sheet.size[0] > 4 * plan.source.width  # eight pictures in two rows


def test_the_sheet_of_a_preview_shows_its_pictures(
    job_fields: dict[str, Any], tmp_path: Path
) -> None:
    run_job(make_job(job_fields | {"preview": True}), tmp_path)
    sheet = np.asarray(preview_sheet(tmp_path / "preview"))
    assert sheet.shape[1] > 2 * 160  # two prompted frames side by side
    assert sheet[:, :160].std() > 20


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (23, 31), (480, 854)])
def test_seen_means_that_the_mask_at_source_size_has_a_pixel(size: tuple[int, int]) -> None:
    chance = np.random.default_rng(size[0])
    answers = set()
    for logits in chance.normal(-2.6, 1, (60, 64, 64)).astype(np.float32):
        logits[chance.random((64, 64)) < chance.random()] = -9
        expected = bool((upsample(logits, *size) > 0).any())
        assert is_seen(logits, *size) == expected
        answers.add(expected)
    assert answers == {True, False}
