"""Command line options made from the fields of `SegmentJob`, so that they are described once."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from masklet.dataset import load_overrides
from masklet.errors import UserError
from masklet.job import SegmentJob, are_inline, load_job_fields, make_job
from masklet.media import display_name

Command = Callable[..., None]
_CONFIG_HELP = "Job file (YAML or JSON) with any of these fields; options override it."


def takes_job(function: Callable[..., None]) -> Command:
    """Give a command an argument FILE, `--config`, and an option for every field of a job.

    The decorated function gets the checked `job` as its first argument; its other parameters
    become options of their own.
    """

    fields = {name: field for name, field in SegmentJob.model_fields.items() if name != "file"}

    def command(file: str | None, config: Path | None, **options: Any) -> None:
        given = {name: options.pop(name) for name in fields}
        function(_job_of(file, config, given), **options)

    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in list(inspect.signature(function).parameters.values())[1:]
    ]
    parameters = [
        _parameter("file", str | None, typer.Argument(help="Video to segment: path or address.")),
        *own,
        _parameter("config", Path | None, typer.Option(help=_CONFIG_HELP)),
        *(_option(name, field) for name, field in fields.items()),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # a function takes it
    command.__doc__, command.__name__ = function.__doc__, function.__name__
    return command


def takes_overrides(function: Callable[..., None]) -> Command:
    """Give a command `--config` and an option for every field of a job that holds for many videos.

    The decorated function gets what was given, by name and not checked, as its first argument; its
    other parameters stay as they are.
    """
    own = {"file", "prompts", "mask_prompts"}
    fields = {name: field for name, field in SegmentJob.model_fields.items() if name not in own}

    def command(config: Path | None, **options: Any) -> None:
        given = {name: options.pop(name) for name in fields}
        function(_fields_of(config, given), **options)

    parameters = [
        *list(inspect.signature(function).parameters.values())[1:],
        _parameter("config", Path | None, typer.Option(help=_CONFIG_HELP)),
        *(_option(name, field) for name, field in fields.items()),
    ]
    keyword = inspect.Parameter.KEYWORD_ONLY
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # a function takes it
        [parameter.replace(kind=keyword) for parameter in parameters]
    )
    command.__doc__, command.__name__ = function.__doc__, function.__name__
    return command


def _fields_of(config: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    fields = load_overrides(config) if config else {}
    return fields | {
        name: str(Path(value).absolute()) if name in _PATH_FIELDS else value
        for name, value in given.items()
        if value is not None
    }


def _job_of(file: str | None, config: Path | None, given: dict[str, Any]) -> SegmentJob:
    fields = {name: value for name, value in {"file": file, **given}.items() if value is not None}
    if config is None:
        if file is None:
            raise UserError("name a video, or a job file with --config; see masklet segment --help")
        if "://" not in file and Path(file).suffix.lower() in _JOB_FILES:
            name = display_name(Path(file))
            raise UserError(f"{name} is no video: if it is a job file, put --config before it")
        return make_job(fields)
    for name in _PATH_FIELDS & fields.keys():
        # those in the job file are relative to it, those on the command line are not
        if "://" not in str(fields[name]) and not are_inline(fields[name]):
            fields[name] = str(Path.cwd() / fields[name])
    return make_job(load_job_fields(config) | fields, base=config.absolute().parent)


_JOB_FILES = frozenset({".yaml", ".yml", ".json"})
_PATH_FIELDS = frozenset({"file", "prompts", "mask_prompts", "checkpoint"})


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    description = field.description or ""
    if field.annotation is bool:
        return _parameter(
            name, bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", help=description)
        )
    default = field.get_default()
    shown = "" if default in (None, [], -1) else f" [default: {default}]"
    if get_origin(field.annotation) is Literal:
        choices = "|".join(get_args(field.annotation))
        return _parameter(
            name, str | None, typer.Option(flag, metavar=choices, help=description + shown)
        )
    if name == "prompts":
        how = typer.Option(flag, metavar="FILE|JSON", help=description)
        return _parameter(name, str | None, how)
    if name in _PATH_FIELDS:
        metavar = "ZIP" if name == "mask_prompts" else "FILE"
        how = typer.Option(flag, metavar=metavar, help=description)
        return _parameter(name, Path | None, how)
    is_number = int in (field.annotation, *get_args(field.annotation))
    annotation, metavar = (int, "N") if is_number else (str, "NAME")
    how = typer.Option(flag, metavar=metavar, help=description + shown)
    return _parameter(name, annotation | None, how)


def _parameter(name: str, annotation: Any, how: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation, how],
    )
