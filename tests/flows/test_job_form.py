"""What the form of a job gives is the job; its schema is the job's, with entries to fill in."""

from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema

from flows.job_form import read_job
from flows.segment import segment
from masklet.errors import UserError
from masklet.job import SegmentJob, make_job
from masklet.models import model_names

POINT = {"kind": "point", "frame_index": 0, "object_id": 1, "x": 40, "y": 45.5}
BOX = {"kind": "box", "frame_index": 4, "object_id": "b", "x_min": 20, "y_min": 10}
BOX |= {"x_max": 120, "y_max": 90}


def test_points_and_boxes_of_the_form_are_prompts() -> None:
    beside = POINT | {"on_object": False}
    plain = {"frame_index": 5, "object_id": 1, "points": [[1, 2], [3, 4]], "labels": [1, 0]}
    job = read_job({"file": "clip.mp4", "prompts": [POINT, beside, BOX, plain]})
    assert job == make_job(
        {
            "file": "clip.mp4",
            "prompts": [
                {"frame_index": 0, "object_id": 1, "points": [[40, 45.5]], "labels": [1]},
                {"frame_index": 0, "object_id": 1, "points": [[40, 45.5]], "labels": [0]},
                {"frame_index": 4, "object_id": "b", "box": [20, 10, 120, 90]},
                plain,
            ],
        }
    )


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        (POINT | {"x": "left"}, "prompts[0] (frame 0, object 1) points"),
        ({"kind": "point", "frame_index": 0, "object_id": 1}, "kind is not a field"),
        (BOX | {"x_max": 5}, "prompts[0] (frame 4, object 'b') has the box"),
        (BOX | {"colour": "red"}, "colour is not a field"),
        (5, "should be a mapping"),
    ],
)
def test_a_wrong_entry_is_one_line_that_names_it(prompt: Any, line: str) -> None:
    with pytest.raises(UserError) as refused:
        read_job({"file": "clip.mp4", "prompts": [prompt]})
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_form_has_every_field_as_the_job_describes_it() -> None:
    schema = parameter_schema(segment).model_dump()
    ours = SegmentJob.model_json_schema()["properties"]
    form = schema["definitions"]["SegmentJob"]["properties"]
    assert list(form) == list(ours)
    for name in ours.keys() - {"prompts", "model_type"}:
        assert form[name] == ours[name]
    assert form["model_type"] == ours["model_type"] | {"enum": model_names()}
    [by_hand, path] = form["prompts"]["anyOf"]
    kinds = [entry["$ref"].rpartition("/")[2] for entry in by_hand["items"]["anyOf"]]
    assert kinds == ["PointPrompt", "BoxPrompt", "Prompt"]
    assert path["type"] == "string"
    for kind in kinds[:2]:
        assert "kind" in schema["definitions"][kind]["required"]
        assert schema["definitions"][kind]["additionalProperties"] is False
