"""The one description of a job: `SegmentJob`.

The options of the command line, the keys of a job file, the parameters of the Prefect flow and the
Python signature are all read off this model.
"""

import json
import re
import reprlib
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from masklet.addresses import scheme_of
from masklet.errors import UserError

OBJECT_ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
MAX_PROMPT_FILE_BYTES = 16 * 2**20  # 200,000 clicks, which are checked in seconds
MAX_YAML_BYTES = 2 * 2**20  # PyYAML is slow: seconds for each MiB
MAX_YAML_DEPTH = 50
MAX_KEYS = 1000  # each unknown one would be a problem of its own
MAX_FRAME_INDEX = 10**9 - 1

ObjectId: TypeAlias = int | str
# strict: true and "5" are not numbers, although Python and pydantic would take them for some
Coordinate = Annotated[float, Field(strict=True, allow_inf_nan=False)]

if TYPE_CHECKING:
    _YamlLoader = yaml.SafeLoader
else:
    _YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Prompt(BaseModel):
    """What a person says about one object on one frame: clicks, a box, or a box and clicks.

    Coordinates are pixels of the displayed frame, x to the right and y downwards.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    frame_index: StrictInt = Field(
        ge=0, le=MAX_FRAME_INDEX, description="Frame of the source, counted from 0."
    )
    object_id: StrictInt | StrictStr = Field(description="Number or short name of the object.")
    points: list[tuple[Coordinate, Coordinate]] | None = Field(
        None, min_length=1, fail_fast=True, description="Clicks as [[x, y], …]."
    )
    labels: list[Literal[0, 1]] | None = Field(
        None, fail_fast=True, description="One label a click: 1 is on the object, 0 is not."
    )
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = Field(
        None, description="[x_min, y_min, x_max, y_max] around the object."
    )

    @field_validator("object_id")
    @classmethod
    def _safe_as_file_name(cls, object_id: ObjectId) -> ObjectId:
        return check_object_id(object_id)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.points is None and self.box is None:
            raise _invalid("has neither points nor a box; give at least one of them")
        clicks, labels = len(self.points or ()), len(self.labels or ())
        if clicks != labels:
            raise _invalid(f"has {clicks} points but {labels} labels; give one label a point")
        if self.box is not None:
            x_min, y_min, x_max, y_max = self.box
            if x_max <= x_min or y_max <= y_min:
                message = (
                    f"has the box {list(self.box)} whose max is not above its min; "
                    "a box is [x_min, y_min, x_max, y_max], not [x, y, width, height]"
                )
                if x_max > 0 and y_max > 0:
                    corners = [x_min, y_min, x_min + x_max, y_min + y_max]
                    message += f", as it seems to be: its corners would be {corners}"
                raise _invalid(message)
        return self


class SegmentJob(BaseModel):
    """Objects to cut out of one video, and what to make of them."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    file: str = Field(
        min_length=1,
        description="Video or image to segment: a path, or an address such as https:// or s3://. "
        "A folder or a zip of images is a video.",
    )
    model_type: str = Field(
        "large",
        description="nano (bundled), tiny, small, base_plus or large, or a full name such as "
        "sam2_hiera_large. Bare names mean SAM 2.1.",
    )
    checkpoint: Path | None = Field(
        None, description="Weights to use instead of the model's own: a .pt or .safetensors file."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where the model runs; auto takes a GPU if there is one."
    )
    prompts: list[Prompt] = Field(
        [],
        fail_fast=True,
        description="What to segment: a list of {frame_index, object_id, points?, labels?, box?}, "
        "or the path of a JSON or YAML file that holds it.",
    )
    mask_prompts: Path | None = Field(
        None,
        description="Zip of masks {frame_index}_{object_id}.png or .npy, of the video's size.",
    )
    start_frame: StrictInt = Field(
        -1,
        ge=-1,
        le=MAX_FRAME_INDEX,
        description="First frame to process; -1 is the first one.",
    )
    end_frame: StrictInt = Field(
        -1,
        ge=-1,
        le=MAX_FRAME_INDEX,
        description="Last frame to process, inclusive; -1 is the last one.",
    )
    frame_interval: StrictInt = Field(
        1,
        ge=1,
        le=MAX_FRAME_INDEX,
        description="Process every n-th frame from start_frame on, and prompted frames.",
    )
    direction: Literal["forward", "backward", "both"] = Field(
        "forward",
        description="forward from the earliest prompt, backward from the latest, or both ways "
        "from the earliest.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Of the large matrix products; bfloat16 is faster where the machine has it, "
        "and moves the edges of masks a little.",
    )
    compile: bool = Field(
        False,
        description="Compile the model for this machine and these objects first: that takes a "
        "minute or more and a C++ compiler, and pays on long videos.",
    )
    max_cond_frames: int | None = Field(
        None,
        ge=2,
        strict=True,
        description="How many prompted frames of an object a frame attends to, the nearest ones; "
        "all by default.",
    )
    debug_masks: bool = Field(False, description="Also make a video with the masks drawn on it.")
    pixel_confidences: bool = Field(
        False, description="Also make 8-bit pictures of each pixel's confidence."
    )
    bbox_tracking: bool = Field(False, description="Also write bounding boxes as JSON.")
    keep_masklets: bool = Field(
        True,
        description="Keep the masklets when the outputs are complete. They are the largest thing "
        "there; without them another output costs the tracking again.",
    )
    preview: bool = Field(
        False,
        description="Segment the prompted frames only and make pictures of them, nothing else; "
        "takes seconds.",
    )
    strict: bool = Field(
        False,
        description="Refuse a damaged source, instead of taking the frames that can be decoded.",
    )
    multimask_output: bool = Field(
        False,
        description="Images only: three masks instead of one, the best first, with quality scores.",
    )

    @field_validator("prompts", mode="before")
    @classmethod
    def _prompts_by_path(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str | Path):
            return read_prompts(value, (info.context or {}).get("base"))
        return value

    @field_validator("mask_prompts", "checkpoint")
    @classmethod
    def _beside_the_job_file(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        return None if value is None else _relative_to(value, info)

    @field_validator("file")
    @classmethod
    def _source_beside_the_job_file(cls, value: str, info: ValidationInfo) -> str:
        if "://" not in value:
            return str(_relative_to(value, info))
        if not scheme_of(value):
            # it is not shown, as it may be an address with a secret in it
            raise _invalid("is neither a path nor an address, which begins as https:// does")
        return value.strip()


def job_schema() -> dict[str, Any]:
    """The JSON Schema of a job file; `prompts` may be the path of a file there."""
    schema = SegmentJob.model_json_schema()
    prompts = schema["properties"]["prompts"]
    listed = {name: prompts.pop(name) for name in ("type", "items")}
    prompts["anyOf"] = [listed, {"type": "string", "minLength": 1}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def check_object_id(object_id: ObjectId) -> ObjectId:
    """Return `object_id` if it is safe as a part of a file name; raises PydanticCustomError."""
    # an int is compared, since Python refuses to write out a very large one
    if isinstance(object_id, int):
        safe = 0 <= object_id < 10**64
    else:
        safe = re.fullmatch(OBJECT_ID_PATTERN, object_id) is not None
    if not safe:
        raise _invalid(
            "is not safe as a part of a file name; an id is 1 to 64 letters, digits, '_', '.' or "
            "'-', and starts with a letter or a digit"
        )
    return object_id


def make_job(fields: Mapping[str, Any], *, base: Path | None = None) -> SegmentJob:
    """Check `fields` and make the job of them; relative paths are taken from `base`.

    Raises UserError in one line that names the field, or the prompt by index, frame and object.
    """
    if isinstance(prompts := fields.get("prompts"), str | Path):
        # read here, so that an error can name the prompt by its frame and object
        fields = {**fields, "prompts": read_prompts(prompts, base)}
    try:
        return SegmentJob.model_validate(fields, context={"base": base})
    except ValidationError as error:
        raise UserError(_explain(error, fields)) from None


def load_job_fields(path: Path) -> dict[str, Any]:
    """Read a job file (YAML or JSON) into a mapping of fields, not checked yet."""
    fields = load_document(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path}: a job file is a mapping of fields such as 'file: clip.mp4'")
    return {str(key): value for key, value in fields.items()}


def read_prompts(given: str | Path, base: Path | None = None) -> Any:
    """Prompts by what a job has in place of a list: JSON itself, or a path that `base` precedes."""
    if not are_inline(given):
        return load_prompt_list((base or Path()) / given)
    try:
        return _prompt_list(parse_json(str(given)), "prompts")
    except (ValueError, RecursionError) as error:
        raise UserError(f"prompts: is not valid JSON: {_explain_parser(error)}") from None


def are_inline(prompts: str | Path) -> bool:
    """Whether this is JSON instead of a path."""
    return isinstance(prompts, str) and prompts.lstrip()[:1] in ("[", "{")


def load_prompt_list(path: Path) -> Any:
    """Read a file of prompts (JSON or YAML): a list, one prompt, or a mapping with `prompts`."""
    return _prompt_list(load_document(path), str(path))


def _prompt_list(document: Any, name: str) -> Any:
    if isinstance(document, dict) and set(document) == {"prompts"}:
        document = document["prompts"]
    if isinstance(document, dict) and "frame_index" in document:
        return [document]
    if not isinstance(document, list):
        raise UserError(
            f"{name}: prompts are a list of {{frame_index, object_id, points and labels, or box}}"
        )
    return document


def load_document(path: Path) -> Any:
    """Read a JSON or YAML file, within limits of size and depth; raises UserError."""
    is_json = path.suffix.lower() == ".json"
    kind, limit = ("JSON", MAX_PROMPT_FILE_BYTES) if is_json else ("YAML", MAX_YAML_BYTES)
    try:
        # a bounded read, as a device or a pipe has no size that could be asked for
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(
            f"{str(path)!r} is not a path: it holds a NUL or a broken character"
        ) from None
    if len(content) > limit:
        hint = "" if is_json else "; larger ones are read as JSON, from a file named .json"
        raise UserError(f"{path}: is larger than {limit >> 20} MiB, the limit of {kind}{hint}")
    try:
        text = content.decode("utf-8-sig")
        return parse_json(text) if is_json else _parse_yaml(text)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}: is not valid YAML{line}: {error.problem}") from None
    except Exception as error:
        # besides their own errors, PyYAML's constructors raise whatever they meet
        raise UserError(f"{path}: is not valid {kind}: {_explain_parser(error)}") from None


def parse_json(text: str) -> Any:
    """Parse JSON, refusing a key given twice and mappings of many keys; raises ValueError."""
    return json.loads(text, object_pairs_hook=_distinct)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise ValueError(f"a mapping has {len(pairs)} keys; {MAX_KEYS} are allowed")
    fields = dict(pairs)
    if len(fields) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {_shorten(key)} is there twice")
    return fields


def _parse_yaml(text: str) -> Any:
    depth = 0
    for event in yaml.parse(text, Loader=_YamlLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        # a few lines of aliases of aliases stand for billions of values
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"aliases (*name) are not supported; write out line {line}")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_YAML_DEPTH:
            raise ValueError(f"line {line} is nested too deeply")
    return yaml.load(text, Loader=_DistinctKeysLoader)


class _DistinctKeysLoader(_YamlLoader):
    """A safe loader that refuses a key given twice, of which PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                line = key.start_mark.line + 1
                raise ValueError(f"the key {_shorten(key.value)} in line {line} is there twice")
            keys.update([key.value] if isinstance(key, yaml.ScalarNode) else [])
        return super().construct_mapping(node, deep)


def _relative_to(value: str | Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("base")
    return Path(value) if base is None else Path(base) / value


def _invalid(message: str) -> PydanticCustomError:
    # pydantic formats templates with {}, which user input may contain
    return PydanticCustomError("masklet", "{message}", {"message": message})


def _explain(error: ValidationError, fields: Mapping[str, Any]) -> str:
    problems = error.errors(include_url=False, include_context=False)
    places = {tuple(part for part in p["loc"] if part not in ("int", "str")) for p in problems}
    first = _most_telling(problems)
    place, value = list(first["loc"]), first["input"]
    message, form = str(first["msg"]), _form_of(place)
    if first["type"] == "extra_forbidden":
        message = _explain_unknown(place)
    elif first["type"] in _WRONG_FORMS and form:
        prompt = fields["prompts"][place[1]]
        message, place = f"should be {form}, not {_shorten(prompt[place[2]])}", place[:3]
    elif first["type"] == "missing":
        message = "is missing"
    elif first["type"] == "model_type":
        message = f"should be a mapping of {', '.join(Prompt.model_fields)}, not {_shorten(value)}"
    elif first["type"] == "string_unicode":
        # of a key the place is that of its mapping
        message = f"{'' if place else 'a key '}should be text, not {_shorten(value)}"
    elif first["type"] == "path_type":
        message = f"should be a path, not {_shorten(value)}"
    elif place[-1] in ("int", "str"):
        message = f"should be a whole number or a short name, not {_shorten(value)}"
    elif first["type"] != "masklet":
        message = message.removeprefix("Input ").removesuffix(", unable to interpret input")
        message = f"{message[:1].lower()}{message[1:]}"
        if ", not " not in message:
            message = f"{message}, not {_shorten(value)}"
    more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
    return f"{_name_place(place, fields)} {message}{more}".lstrip()


def _most_telling(problems: list[ErrorDetails]) -> ErrorDetails:
    """The first problem, or in its prompt a field of another name, of which the others come."""
    of_prompt = [p for p in problems if p["loc"][:2] == problems[0]["loc"][:2]]
    unknown = (p for p in of_prompt if p["type"] == "extra_forbidden")
    return next(unknown, problems[0])


def _explain_unknown(place: list[int | str]) -> str:
    in_prompt = place[0] == "prompts"
    names = list(Prompt.model_fields if in_prompt else SegmentJob.model_fields)
    name = _NAMES_IN_SAM2.get(str(place[-1]), str(place[-1])[:60])
    near = get_close_matches(name, names, n=1)
    meant = f", did you mean {near[0]}?" if near else ""
    whose = "a prompt has" if in_prompt else "the fields are"
    return f"is not a field{meant or ';'} {whose} {', '.join(names)}"


_NAMES_IN_SAM2 = {"point_coords": "points", "point_labels": "labels", "obj_id": "object_id"}
_WRONG_FORMS = ("missing", "tuple_type", "list_type", "too_long", "too_short")
_FORMS = {
    "points": "a list of [x, y]",
    "labels": "a list of 1 (on the object) and 0 (not on it)",
    "box": "[x_min, y_min, x_max, y_max]",
}


def _form_of(place: list[int | str]) -> str | None:
    """What a prompt's field looks like, if the place is in one."""
    return _FORMS.get(str(place[2])) if place[:1] == ["prompts"] and len(place) > 2 else None


def _name_place(place: list[int | str], fields: Mapping[str, Any]) -> str:
    if len(place) < 2 or place[0] != "prompts" or not isinstance(place[1], int):
        return ".".join(str(part)[:60] for part in place)
    prompts = fields.get("prompts")
    prompt = prompts[place[1]] if isinstance(prompts, list) else None
    name = f"prompts[{place[1]}]"
    if isinstance(prompt, dict):
        name += f" (frame {_shorten(prompt.get('frame_index', '?'))}, "
        name += f"object {_shorten(prompt.get('object_id', '?'))})"
    field = [str(part)[:60] for part in place[2:] if part not in ("int", "str")]
    return f"{name} {'.'.join(field)}".rstrip()


def _shorten(value: Any) -> str:
    try:
        text = _REPR.repr(value)
    except ValueError:
        # Python refuses to write out an int of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:59]}…"


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def _explain_parser(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8 text"
    if "integer string conversion" in str(error):
        return "it has a number of thousands of digits"
    return str(error)[:200] or type(error).__name__
