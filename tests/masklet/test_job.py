"""The job: its fields, its files, and one line for everything that is wrong with them."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from masklet.errors import UserError
from masklet.job import (
    MAX_PROMPT_FILE_BYTES,
    MAX_YAML_BYTES,
    Prompt,
    SegmentJob,
    load_job_fields,
    load_prompt_list,
    make_job,
)

CLICK: dict[str, Any] = {"frame_index": 3, "object_id": 1, "points": [[1, 2]], "labels": [1]}
BOX: dict[str, Any] = {"frame_index": 3, "object_id": "dog", "box": [1, 2, 30, 40]}
# longer than Python agrees to write out in decimal
HUGE = 16**6000


def short(value: Any) -> str | None:
    """An id for a test of this value; None leaves it to pytest."""
    if value == HUGE:
        return "HUGE"
    return None if isinstance(value, int | float) else ascii(value)[:30]


def refusal(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        call(*arguments, **options)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 700
    return message


def refused(**fields: Any) -> str:
    return refusal(make_job, {"file": "clip.mp4", **fields})


def refused_prompt(**fields: Any) -> str:
    """What is said of a prompt that differs from a good one in these fields; it is the second."""
    bad = {name: value for name, value in {**CLICK, **fields}.items() if value != "leave out"}
    message = refused(prompts=[BOX, bad])
    assert message.startswith("prompts[1]")
    return message


def accepted(**fields: Any) -> Prompt:
    return make_job({"file": "clip.mp4", "prompts": [{**CLICK, **fields}]}).prompts[0]


# Fields


def test_the_defaults_of_the_contract() -> None:
    assert make_job({"file": "clip.mp4"}).model_dump() == {
        "file": "clip.mp4",
        "model_type": "large",
        "checkpoint": None,
        "device": "auto",
        "prompts": [],
        "mask_prompts": None,
        "start_frame": -1,
        "end_frame": -1,
        "frame_interval": 1,
        "direction": "forward",
        "debug_masks": False,
        "pixel_confidences": False,
        "bbox_tracking": False,
        "preview": False,
        "strict": False,
        "multimask_output": False,
        "keep_masklets": True,
        "max_cond_frames": None,
        "precision": "float32",
        "compile": False,
    }


def test_every_field_can_be_given() -> None:
    fields = {
        "file": "a.mp4",
        "model_type": "tiny",
        "checkpoint": Path("w.pt"),
        "device": "cpu",
        "prompts": [{**CLICK, "box": [0, 0, 1, 1]}],
        "mask_prompts": Path("m.zip"),
        "start_frame": 0,
        "end_frame": 9,
        "frame_interval": 2,
        "direction": "both",
        "debug_masks": True,
        "pixel_confidences": True,
        "bbox_tracking": True,
        "preview": True,
        "strict": True,
        "multimask_output": True,
        "keep_masklets": False,
        "max_cond_frames": 4,
        "precision": "bfloat16",
        "compile": True,
    }
    assert set(fields) == set(SegmentJob.model_fields)
    job = make_job(fields)
    assert job.model_dump(exclude_defaults=True) == {
        **fields,
        "prompts": [{**CLICK, "points": [(1, 2)], "box": (0, 0, 1, 1)}],
    }


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("file", "", "file"),
        ("file", 5, "not 5"),
        ("file", "\ud800", "file"),
        ("model_type", None, "not None"),
        ("checkpoint", 5, "should be a path, not 5"),
        ("device", "tpu", "'auto', 'cpu', 'cuda' or 'mps', not 'tpu'"),
        ("prompts", 5, "not 5"),
        ("prompts", {"frame_index": 0}, "list"),
        ("prompts", None, "not None"),
        ("mask_prompts", [], "should be a path, not []"),
        ("start_frame", -2, "greater than or equal to -1, not -2"),
        ("start_frame", True, "not True"),
        ("start_frame", 1.0, "not 1.0"),
        ("start_frame", "1", "not '1'"),
        ("start_frame", 10**9, "not 1000000000"),
        ("start_frame", HUGE, "thousands of digits"),
        ("end_frame", -2, "not -2"),
        ("end_frame", None, "not None"),
        ("end_frame", HUGE, "thousands of digits"),
        ("frame_interval", 0, "greater than or equal to 1, not 0"),
        ("frame_interval", 1.5, "not 1.5"),
        ("direction", "sideways", "'forward', 'backward' or 'both', not 'sideways'"),
        ("direction", "x" * 10_000, "not 'xxx"),
        ("debug_masks", "perhaps", "not 'perhaps'"),
        ("pixel_confidences", 2, "not 2"),
        ("bbox_tracking", None, "not None"),
        ("preview", [], "not []"),
        ("multimask_output", 0.5, "not 0.5"),
        (
            "maskprompts",
            1,
            "is not a field, did you mean mask_prompts? the fields are file",
        ),
        ("[red]\nx" + "y" * 10_000, 1, "is not a field"),
    ],
    ids=short,
)
def test_a_field_that_is_wrong(field: str, value: Any, words: str) -> None:
    message = refused(**{field: value})
    assert message.startswith(field[:5])
    assert words in message


def test_a_job_without_a_file() -> None:
    assert refusal(make_job, {}) == "file is missing"


def test_several_problems_are_counted() -> None:
    assert refused(start_frame=-5, end_frame=-5, direction="up").endswith("(and 2 more)")


# Prompts


def test_of_many_wrong_prompts_clicks_or_labels_the_first_is_the_answer() -> None:
    # there may be millions, and each problem takes its time and a kilobyte
    for fields in (
        {"prompts": [5] * 100},
        {"prompts": [{**CLICK, "points": [5] * 100}]},
        {"prompts": [{**CLICK, "labels": [5] * 100}]},
    ):
        assert "more)" not in refused(**fields)


def test_points_alone_a_box_alone_and_both() -> None:
    assert accepted().box is None
    assert make_job({"file": "a", "prompts": [BOX]}).prompts[0].points is None
    both = accepted(box=[0, 0, 4.5, 5])
    assert (both.points, both.labels, both.box) == ([(1, 2)], [1], (0, 0, 4.5, 5))


def test_a_prompt_names_itself_by_index_frame_and_object() -> None:
    message = refused_prompt(points=None, labels=None)
    assert message.startswith("prompts[1] (frame 3, object 1) has neither points nor a box")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"labels": [1, 0]}, "1 points but 2 labels"),
        ({"labels": None}, "1 points but 0 labels"),
        ({"labels": "leave out"}, "1 points but 0 labels"),
        ({"points": None}, "neither points nor a box"),
        ({"points": "leave out", "box": [0, 0, 1, 1]}, "0 points but 1 labels"),
        ({"points": []}, "points should be a list of [x, y], not []"),
        ({"points": [[1, 2, 3]]}, "points should be a list of [x, y], not [[1, 2, 3]]"),
        ({"points": [[1]]}, "points should be a list of [x, y], not [[1]]"),
        ({"points": [1, 2]}, "points should be a list of [x, y], not [1, 2]"),
        ({"points": "1, 2"}, "points should be a list of [x, y], not '1, 2'"),
        ({"points": [["1", 2]]}, "not '1'"),
        ({"points": [[True, 2]]}, "not True"),
        ({"points": [[None, 2]]}, "not None"),
        ({"points": [[float("nan"), 2]]}, "points.0.0 should be a finite number, not nan"),
        ({"points": [[2, float("inf")]]}, "points.0.1 should be a finite number, not inf"),
        ({"points": [[10**400, 2]]}, "points.0.0 should be a"),
        ({"points": [[HUGE, 2]]}, "points.0.0 should be a"),
        ({"labels": [2]}, "labels.0 should be 0 or 1, not 2"),
        ({"labels": [-1]}, "not -1"),
        ({"labels": ["1"]}, "not '1'"),
        ({"labels": 1}, "labels should be a list of 1 (on the object) and 0 (not on it), not 1"),
        ({"box": [1, 2, 3]}, "box should be [x_min, y_min, x_max, y_max], not [1, 2, 3]"),
        ({"box": [1, 2, 3, 4, 5]}, "box should be [x_min, y_min, x_max, y_max], not [1, 2, 3, 4"),
        ({"box": [1, 2, float("nan"), 4]}, "box.2 should be a finite number, not nan"),
        ({"box": [1, 2, 3, "4"]}, "not '4'"),
        ({"box": {"x": 1}}, "box should be [x_min, y_min, x_max, y_max], not {'x': 1}"),
        ({"frame_index": True}, "frame_index should be a valid integer, not True"),
        ({"frame_index": 0.0}, "not 0.0"),
        ({"frame_index": "0"}, "not '0'"),
        ({"frame_index": -1}, "not -1"),
        ({"frame_index": 10**9}, "not 1000000000"),
        ({"frame_index": HUGE}, "thousands of digits"),
        ({"frame_index": "leave out"}, "frame_index is missing"),
        ({"object_id": "leave out"}, "object_id is missing"),
        ({"mask": 1}, "mask is not a field; a prompt has frame_index, object_id"),
        ({"[/red]": 1}, "[/red] is not a field"),
        ({"bbox": [1, 2, 3, 4]}, "bbox is not a field, did you mean box? a prompt has"),
        ({"points": "leave out", "point_coords": [[1, 2]]}, "did you mean points?"),
        ({"labels": "leave out", "point_labels": [1]}, "did you mean labels?"),
        ({"object_id": "leave out", "obj_id": 1}, "obj_id is not a field, did you mean object_id?"),
        ({"frame_index": "leave out", "frame": 1}, "did you mean frame_index?"),
    ],
)
def test_a_prompt_that_is_wrong(fields: dict[str, Any], words: str) -> None:
    assert words in refused_prompt(**fields)


@pytest.mark.parametrize(
    "box", [[10, 10, 5, 20], [10, 10, 20, 5], [10, 10, 10, 20], [10, 10, 20, 10]]
)
def test_a_box_of_width_and_height_gets_the_hint(box: list[int]) -> None:
    message = refused_prompt(box=box)
    assert str([float(edge) for edge in box]) in message
    assert "[x_min, y_min, x_max, y_max], not [x, y, width, height]" in message
    corners = [*box[:2], box[0] + box[2], box[1] + box[3]]
    assert f"its corners would be {[float(edge) for edge in corners]}" in message


def test_a_box_that_has_no_width_either_gets_no_corners() -> None:
    assert "corners" not in refused_prompt(box=[10, 10, -5, 20])


@pytest.mark.parametrize("prompt", [5, None, "dog", [1, 2], [[[[]]]]])
def test_a_prompt_that_is_no_mapping(prompt: Any) -> None:
    assert "prompts[0] should be a mapping of frame_index" in refused(prompts=[prompt])


@pytest.mark.parametrize(
    "object_id", [0, 7, 10**63, "a", "Dog_1.left-paw", "0", "007", "9z", "a..", "x" * 64]
)
def test_object_ids_that_are_safe(object_id: int | str) -> None:
    found = accepted(object_id=object_id).object_id
    assert found == object_id
    assert type(found) is type(object_id)


@pytest.mark.parametrize(
    "object_id",
    [
        True,
        False,
        1.0,
        None,
        [1],
        {},
        -1,
        10**64,
        HUGE,
        "",
        "x" * 65,
        "a/b",
        "../a",
        "/a",
        "a\\b",
        ".",
        "..",
        ".a",
        "_a",
        "-a",
        "a b",
        "a\n",
        "\na",
        "a\0",
        "é",
        "٣",
        "1٣",
        "１",
        "²",
        "\ud800",
        "[red]",
    ],
    ids=short,
)
def test_object_ids_that_are_not(object_id: Any) -> None:
    message = refused_prompt(object_id=object_id)
    assert message.startswith("prompts[1] (frame 3, object ")
    assert "object_id" in message
    assert "not" in message


# Files of prompts and jobs


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", ["p.json", "p.JSON", "p.yaml", "p.yml", "p"])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
def test_prompts_by_path(tmp_path: Path, name: str, wrapped: bool, mark: bytes) -> None:
    document = {"prompts": [CLICK, BOX]} if wrapped else [CLICK, BOX]
    # JSON is YAML too, and what a file without a suffix may hold
    path = put(tmp_path / name, mark + json.dumps(document).encode())
    inline = make_job({"file": "a.mp4", "prompts": [CLICK, BOX]})
    assert make_job({"file": "a.mp4", "prompts": path}) == inline
    assert make_job({"file": "a.mp4", "prompts": str(path)}) == inline
    assert SegmentJob.model_validate({"file": "a.mp4", "prompts": path}) == inline


def test_prompts_as_json_in_place_of_a_path() -> None:
    given = make_job({"file": "a.mp4", "prompts": [CLICK, BOX]})
    assert make_job({"file": "a.mp4", "prompts": f" {json.dumps([CLICK, BOX])}"}) == given
    assert make_job({"file": "a.mp4", "prompts": json.dumps({"prompts": [CLICK, BOX]})}) == given
    assert refused(prompts="[{").startswith("prompts: is not valid JSON: Expecting")
    assert refused(prompts="[" * 100_000).startswith("prompts: is not valid JSON: it is nested too")
    assert refused(prompts='{"a": 1}').startswith("prompts: prompts are a list of {frame_index")


def test_one_prompt_is_a_list_of_one(tmp_path: Path) -> None:
    path = put(tmp_path / "p.json", json.dumps(CLICK))
    assert load_prompt_list(path) == [CLICK]


def test_prompts_in_real_yaml(tmp_path: Path) -> None:
    path = put(tmp_path / "p.yaml", "# two\n" + yaml.safe_dump([CLICK, BOX]))
    assert load_prompt_list(path) == [CLICK, BOX]


def test_a_wrong_prompt_in_a_file_is_named(tmp_path: Path) -> None:
    path = put(tmp_path / "p.json", json.dumps([CLICK, {**BOX, "box": [5, 5, 1, 1]}]))
    assert refused(prompts=path).startswith("prompts[1] (frame 3, object 'dog') has the box")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP = 10_000


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.json", "", "not valid JSON"),
        ("p.json", "[{]", "not valid JSON"),
        ("p.json", "[1,", "not valid JSON"),
        ("p.json", "- frame_index: 0", "not valid JSON"),
        ("p.json", "5", "list"),
        ("p.json", "{}", "list"),
        ("p.json", '{"prompts": {}}', "list"),
        ("p.json", '{"prompts": [], "more": 1}', "list"),
        ("p.json", '[{"frame_index": 0, "frame_index": 1}]', "'frame_index' is there twice"),
        ("p.json", "[" * DEEP + "]" * DEEP, "nested too deeply"),
        ("p.json", '{"a":' * DEEP + "1" + "}" * DEEP, "nested too deeply"),
        ("p.json", "[" + "1" * 5000 + "]", "not valid JSON"),
        ("p.json", b"\xff\xfe\x00", "byte 0 is not UTF-8"),
        ("p.json", b"[\x89PNG\r\n\x1a\n", "byte 1 is not UTF-8"),
        ("p.yaml", "", "list"),
        ("p.yaml", "5", "list"),
        ("p.yaml", "a: b: c", "not valid YAML in line 1"),
        ("p.yaml", "- a\n- [1, 2\n- b: }", "not valid YAML in line"),
        ("p.yaml", "- a: 1\n  a: 2", "'a' in line 2 is there twice"),
        ("p.yaml", "- {1: 1, '1': 2}", "'1' in line 1 is there twice"),
        ("p.yaml", "- {[1]: 2}", "not valid YAML"),
        ("p.yaml", "- &a 1\n- *a", "aliases (*name) are not supported; write out line 2"),
        ("p.yaml", "&a [*a]", "aliases"),
        ("p.yaml", BOMB, "aliases"),
        ("p.yaml", "[" * DEEP + "]" * DEEP, "nested too deeply"),
        ("p.yaml", "{a: " * DEEP + "}" * DEEP, "nested too deeply"),
        ("p.yaml", "- " * DEEP + "a", "nested too deeply"),
        ("p.yaml", "- !!python/object:os.system {}", "not valid YAML in line 1"),
        ("p.yaml", "- !!python/object/apply:os.abort []", "not valid YAML in line 1"),
        ("p.yaml", "- !mine 1", "not valid YAML in line 1"),
        ("p.yaml", "- !!int ''", "not valid YAML"),
        ("p.yaml", "- !!bool x", "not valid YAML"),
        ("p.yaml", "- !!timestamp x", "not valid YAML"),
        ("p.yaml", "- !!binary x", "not valid YAML"),
        ("p.yaml", "- 2026-99-99", "not valid YAML"),
        ("p.yaml", "a\n--- b\n--- c", "not valid YAML"),
        ("p.yaml", "\t- a", "not valid YAML"),
        ("p.yaml", b"\0\0", "not valid YAML"),
        ("p.yaml", b"\x89PNG\r\n\x1a\n", "byte 0 is not UTF-8"),
    ],
    ids=short,
)
def test_a_file_of_prompts_that_is_none(
    tmp_path: Path, name: str, content: str | bytes, words: str
) -> None:
    path = put(tmp_path / name, content)
    message = refused(prompts=path)
    assert message.startswith(f"{path}: ")
    assert words in message


@pytest.mark.parametrize("depth", [60, 300, 900])
def test_json_that_is_deep_but_can_be_read_is_refused_as_a_prompt(
    tmp_path: Path, depth: int
) -> None:
    path = put(tmp_path / "p.json", f'[{{"frame_index": {"[" * depth + "]" * depth}}}]')
    assert refused(prompts=path).startswith("prompts[0] (frame [[[")


def test_numbers_that_python_does_not_write_out(tmp_path: Path) -> None:
    path = put(tmp_path / "p.yaml", f"- {{frame_index: 0, object_id: 0x{'f' * 6000}, box: 1}}")
    assert "prompts[0] (frame 0, object a number of thousands of digits)" in refused(prompts=path)


@pytest.mark.parametrize(
    ("name", "limit"), [("p.json", MAX_PROMPT_FILE_BYTES), ("p.yaml", MAX_YAML_BYTES)]
)
def test_a_file_over_the_limit_is_not_parsed(tmp_path: Path, name: str, limit: int) -> None:
    path = put(tmp_path / name, b"")
    os.truncate(path, 100 * 2**20)
    message = refused(prompts=path)
    assert f"{path}: is larger than {limit >> 20} MiB" in message


def test_an_endless_device_is_read_up_to_the_limit() -> None:
    assert "/dev/zero: is larger than" in refused(prompts="/dev/zero")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.json", "No such file"),
        ("", "Is a directory"),
        ("a\0b.json", "is not a path"),
        ("\ud800.json", "is not a path"),
        ("x" * 300, "File name too long"),
        ("new\nline.json", "new line.json: cannot be read"),
    ],
)
def test_a_path_that_cannot_be_read(tmp_path: Path, name: str, words: str) -> None:
    assert words in refused(prompts=tmp_path / name)
    assert words in refusal(load_job_fields, tmp_path / name)


@pytest.mark.parametrize("content", ["", "5", "[1]", "a string"])
def test_a_job_file_that_is_no_mapping(tmp_path: Path, content: str) -> None:
    path = put(tmp_path / "job.yaml", content)
    assert "a job file is a mapping" in refusal(load_job_fields, path)


def test_keys_of_a_job_file_become_text(tmp_path: Path) -> None:
    fields = load_job_fields(put(tmp_path / "job.yaml", "file: a.mp4\n1: 2\nnull: 3"))
    assert "1 is not a field" in refusal(make_job, fields)


def test_paths_of_a_job_are_relative_to_its_base(tmp_path: Path) -> None:
    put(tmp_path / "p.json", json.dumps([CLICK]))
    fields = {"file": "a.mp4", "prompts": "p.json", "mask_prompts": "m.zip", "checkpoint": "../w"}
    job = make_job(fields, base=tmp_path)
    assert job.file == str(tmp_path / "a.mp4")
    assert job.mask_prompts == tmp_path / "m.zip"
    assert job.checkpoint == tmp_path / "../w"
    assert job.prompts[0].frame_index == 3


@pytest.mark.parametrize("file", ["/videos/a.mp4", "https://example.org/a.mp4", "s3://b/a.mp4"])
def test_absolute_paths_and_addresses_stay_what_they_are(tmp_path: Path, file: str) -> None:
    assert make_job({"file": file}, base=tmp_path).file == file


# Whatever the input, a value or one line

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, -(10**400), "[red]", "a\nb", "x" * 999])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
PROMPTS = st.fixed_dictionaries(
    {"frame_index": st.just(0) | SCALARS, "object_id": st.just("a") | SCALARS},
    optional={
        "points": st.lists(st.lists(SCALARS, max_size=3), max_size=3) | VALUES,
        "labels": st.lists(st.integers(-1, 2), max_size=3) | VALUES,
        "box": st.lists(st.floats(), min_size=4, max_size=4) | VALUES,
        "more": VALUES,
    },
)
FIELDS = st.dictionaries(
    st.sampled_from([*SegmentJob.model_fields, "more", "a\nb"]), VALUES, max_size=5
)


def check_one_line_or(kind: type, call: Callable[..., object], *arguments: Any) -> None:
    lines = ["no error"]
    try:
        assert isinstance(call(*arguments), kind)
    except UserError as error:
        lines = str(error).splitlines()
    assert len(lines) == 1


@settings(deadline=None)
@given(FIELDS, st.lists(PROMPTS | VALUES, max_size=3), st.booleans())
def test_any_fields(fields: dict[str, Any], prompts: list[Any], given_prompts: bool) -> None:
    if given_prompts or isinstance(fields.get("prompts"), str):
        fields = {**fields, "prompts": prompts}
    check_one_line_or(SegmentJob, make_job, {"file": "a.mp4", **fields})


YAML_TEXT = st.text(st.sampled_from("-:[]{}&*!?|>'\"%@,# \n\t0x1.e=<~ab"), max_size=60)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60) | YAML_TEXT.map(str.encode), st.sampled_from([".json", ".yaml"]))
def test_any_file(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = put(Path(folder) / f"p{suffix}", content)
        check_one_line_or(list, load_prompt_list, path)
        check_one_line_or(dict, load_job_fields, path)
        check_one_line_or(SegmentJob, make_job, {"file": "a.mp4", "prompts": path})


def outcome(prompts: Any) -> str | list[Prompt]:
    try:
        return make_job({"file": "a.mp4", "prompts": prompts}).prompts
    except UserError as error:
        return str(error)


@settings(deadline=None)
@given(st.lists(PROMPTS | VALUES, max_size=3))
def test_a_file_says_what_the_same_prompts_inline_say(prompts: list[Any]) -> None:
    try:
        text = json.dumps(prompts)
    except ValueError:
        assume(False)
    with tempfile.TemporaryDirectory() as folder:
        path = put(Path(folder) / "p.json", text)
        assert outcome(path) == outcome(prompts)
