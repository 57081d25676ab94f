"""The form of a job in Prefect's UI: `SegmentJob`, with prompts that can be filled in by hand."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StrictInt,
    StrictStr,
    TypeAdapter,
)
from pydantic.config import JsonDict
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from masklet.job import MAX_FRAME_INDEX, Prompt, SegmentJob, make_job
from masklet.models import model_names

_FRAME = Field(ge=0, le=MAX_FRAME_INDEX, description="Frame of the source, counted from 0.")
_OBJECT = Field(description="Number or short name of the object.")


def _require_kind(schema: JsonDict) -> None:
    # a form finds the kind of an entry by what is required of it, although it has a default
    schema["required"] = ["kind", *cast(list[str], schema["required"])]


class PointPrompt(BaseModel):
    """A click on an object, or beside it. Several refine each other in their order."""

    model_config = ConfigDict(extra="forbid", title="Point prompt", json_schema_extra=_require_kind)

    kind: Literal["point"] = "point"
    frame_index: StrictInt = _FRAME
    object_id: StrictInt | StrictStr = _OBJECT
    x: float = Field(ge=0, description="Pixels from the left of the displayed frame.")
    y: float = Field(ge=0, description="Pixels from its top.")
    on_object: bool = Field(True, description="Off: this point is not on the object.")


class BoxPrompt(BaseModel):
    """A box around an object."""

    model_config = ConfigDict(extra="forbid", title="Box prompt", json_schema_extra=_require_kind)

    kind: Literal["box"] = "box"
    frame_index: StrictInt = _FRAME
    object_id: StrictInt | StrictStr = _OBJECT
    x_min: float = Field(ge=0, description="Left edge, in pixels of the displayed frame.")
    y_min: float = Field(ge=0, description="Top edge.")
    x_max: float = Field(ge=0, description="Right edge.")
    y_max: float = Field(ge=0, description="Bottom edge.")


PromptEntry: TypeAlias = PointPrompt | BoxPrompt | Prompt
_PROMPTS = TypeAdapter(list[PromptEntry])


class _AsForm:
    """The JSON Schema of a job as the form needs it; the job itself is checked by `make_job`."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        job = handler(schema)
        fields = handler.resolve_ref_schema(job)["properties"]
        entries = handler(_PROMPTS.core_schema)["items"]
        prompts = fields["prompts"]
        del prompts["type"], prompts["items"]
        by_hand = {"type": "array", "items": entries}
        prompts["anyOf"] = [by_hand, {"type": "string", "minLength": 1}]
        fields["model_type"]["enum"] = model_names()
        return job


JobForm: TypeAlias = Annotated[SegmentJob, _AsForm()]
"""A job as the parameter of a flow."""


def read_job(given: SegmentJob | Mapping[str, Any]) -> SegmentJob:
    """The job that a form or an API call gives; raises UserError in one line that says what."""
    if isinstance(given, SegmentJob):
        return given
    fields = dict(given)
    if isinstance(prompts := fields.get("prompts"), list):
        fields["prompts"] = plain_prompts(prompts)
    return make_job(fields)


def plain_prompts(prompts: list[Any]) -> list[Any]:
    """Points and boxes of the form as prompts of a job; all others are left as they are."""
    return [_plain(prompt) if isinstance(prompt, Mapping) else prompt for prompt in prompts]


def _plain(prompt: Mapping[str, Any]) -> Mapping[str, Any]:
    fields = dict(prompt)
    kind, names = fields.pop("kind", None), fields.keys()
    if kind == "point" and {"x", "y"} <= names:
        points = [[fields.pop("x"), fields.pop("y")]]
        return {"points": points, "labels": [int(fields.pop("on_object", True))], **fields}
    corners = ("x_min", "y_min", "x_max", "y_max")
    if kind == "box" and {*corners} <= names:
        return {"box": [fields.pop(corner) for corner in corners], **fields}
    return prompt
