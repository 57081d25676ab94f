"""Datasets: many jobs described in one file, in a folder or by a glob.

A file is YAML or JSON (a list of items, or `{defaults: {…}, items: […]}`), CSV, JSONL or Parquet.
An item has an `item_id`, a `file`, and any other field of `SegmentJob`. In a folder, or among the
files of a glob, an item is a video with its prompts beside it, under the same name: clip.mp4 with
clip.json or clip.yaml, or with the mask prompts clip.zip.
"""

import csv
import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

from masklet.addresses import check_address, local_path, shown_address
from masklet.errors import UserError
from masklet.job import SegmentJob, load_document, load_job_fields, make_job, parse_json
from masklet.manifest import FILE_NAME as RUN_MANIFEST
from masklet.models import find_model, require_checkpoint
from masklet.plan import check_without_source

ITEM_ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
RESERVED = frozenset({"dataset.parquet", "summary.json"})
"""What lies beside the items' directories."""

MAX_ITEMS = 1_000_000
MAX_BYTES = 2**30
_PROMPTS = (".json", ".yaml", ".yml")
_MASKS = ".zip"
# only to tell a video without prompts from a file that is none; with prompts any name is taken
_VIDEOS = re.compile(
    r"\.(3gp|avi|flv|gif|m2ts|m4v|mkv|mov|mp4|mpe?g|mts|ogv|ts|webm|wmv)", re.IGNORECASE
)
_COLUMNS = ("item_id", *SegmentJob.model_fields)
_MOST_LINES = 50
_ITEM = "an item is a mapping with item_id, file and prompts"


@dataclass(frozen=True)
class Item:
    """One video of a dataset; `item_id` is safe as the name of a folder."""

    item_id: str
    job: SegmentJob


class Problem(NamedTuple):
    """What is wrong with an item. place: such as `line 4 (cat-7)`, unique in the dataset."""

    place: str
    file: str
    message: str


@dataclass(frozen=True)
class Dataset:
    """A dataset as it was read: the items that can be run, and what is wrong with the others."""

    source: str
    items: tuple[Item, ...]
    problems: tuple[Problem, ...]

    def require_sound(self) -> "Dataset":
        """Itself; raises DatasetError if an item has a problem."""
        if self.problems:
            raise DatasetError(self)
        return self


class DatasetError(UserError):
    """Items that cannot be run: `summary` in one line, `lines` of all of them."""

    def __init__(self, dataset: Dataset) -> None:
        self.lines = describe(dataset.problems)
        broken, total = len(dataset.problems), len(dataset.problems) + len(dataset.items)
        self.summary = (
            f"{broken} of {total} items cannot be run, so nothing was; correct them, or run the "
            "others with --skip-invalid"
        )
        super().__init__(f"{dataset.source}: {self.summary}. {self.lines[0]}")


def describe(problems: Iterable[Problem]) -> list[str]:
    """One line a kind of problem, with the first item that has it."""
    by_message: dict[str, list[str]] = {}
    for one in problems:
        by_message.setdefault(one.message, []).append(one.place)
    lines = [
        f"{places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''}: {message}"
        for message, places in by_message.items()
    ]
    left = len(lines) - _MOST_LINES
    return lines[:_MOST_LINES] + ([f"and {left} more kinds of problems"] if left > 0 else [])


class _Row(NamedTuple):
    """The fields of one item as they were given, and where. problem: why there are none."""

    place: str
    fields: Mapping[str, Any]
    problem: str = ""


def read_dataset(
    dataset: str | Path, overrides: Mapping[str, Any] | None = None, *, weights: bool = True
) -> Dataset:
    """Read a dataset and check all that can be checked without opening the videos.

    Relative paths are taken from the dataset's file, or from its folder.

    Args:
        dataset: a file, a folder or a glob.
        overrides: fields of `SegmentJob` that go before those of the items, which go before the
            dataset's defaults.
        weights: whether the models' weights have to be on this machine.

    Raises UserError if there is no dataset, or none that can be read.
    """
    base, defaults, rows = _open(str(dataset))
    items: dict[str, Item] = {}
    problems: list[Problem] = []
    known_weights: dict[tuple[str, Path | None], str] = {}
    for row in rows:
        fields = {**defaults, **row.fields}
        item_id = fields.pop("item_id", None)
        file = str(fields.get("file") or "")
        item_id = _slug(Path(shown_address(file)).stem) if item_id is None else str(item_id)
        place = row.place if item_id in ("", row.place) else f"{row.place} ({item_id[:130]})"
        try:
            if row.problem:
                raise UserError(row.problem)
            if not file:
                raise UserError(_ITEM)
            job = make_job(fields | dict(overrides or {}), base=base)
            _check_id(item_id, items)
            _check_files(job)
            if trouble := _trouble_with_model(job, known_weights, weights=weights):
                raise UserError(trouble)
        except UserError as error:
            problems.append(Problem(place, file, str(error)))
        else:
            items[item_id.casefold()] = Item(item_id, job)
        if len(items) + len(problems) > MAX_ITEMS:
            raise UserError(f"{dataset}: has more than {MAX_ITEMS} items; split it")
    if not items and not problems:
        raise UserError(f"{dataset}: has no items")
    return Dataset(str(dataset), tuple(items.values()), tuple(problems))


def load_overrides(config: Path) -> dict[str, Any]:
    """Read a job file whose fields are to hold for every item; its paths are relative to it."""
    fields = load_job_fields(config)
    for name, value in fields.items():
        if name not in SegmentJob.model_fields or name in ("file", "prompts", "mask_prompts"):
            raise UserError(f"{config}: {name:.60} cannot be the same for every item")
        if name == "checkpoint" and isinstance(value, str):
            fields[name] = str(config.absolute().parent / value)
    return fields


def _open(dataset: str) -> tuple[Path, Mapping[str, Any], Iterator[_Row]]:
    """Where relative paths start, the defaults, and the items."""
    path = Path(dataset)
    is_file, is_folder = path.is_file(), path.is_dir()
    if is_folder:
        base = path.absolute()
        return base, {}, _of_files(base, (one for one in sorted(base.iterdir())))
    if not is_file:
        if not glob.has_magic(dataset):
            raise UserError(f"{dataset}: there is no such dataset file or folder")
        folder, pattern = _split_glob(dataset)
        if not (found := sorted(folder.glob(pattern))):
            raise UserError(f"{dataset}: matches no file")
        return folder, {}, _of_files(folder, found)
    base = path.absolute().parent
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{dataset}: is larger than {MAX_BYTES >> 20} MiB; split it")
    kind = path.suffix.lower()
    if kind in (".yaml", ".yml", ".json"):
        defaults, items = _of_document(path)
        return base, defaults, items
    readers = {".csv": _of_csv, ".jsonl": _of_jsonl, ".parquet": _of_parquet}
    if kind not in readers:
        raise UserError(
            f"{dataset}: a dataset is a .yaml, .json, .csv, .jsonl or .parquet file, a folder or "
            "a glob; for one video there is masklet segment"
        )
    return base, {}, _refusing(path, readers[kind](path))


def _of_document(path: Path) -> tuple[Mapping[str, Any], Iterator[_Row]]:
    document = load_document(path)
    if isinstance(document, list):
        document = {"items": document}
    if not isinstance(document, dict) or not isinstance(document.get("items"), list):
        raise UserError(f"{path}: a dataset is a list of items, or {{defaults: …, items: […]}}")
    if wrong := [str(key) for key in document if key not in ("defaults", "items")]:
        raise UserError(f"{path}: {wrong[0]} is not part of a dataset; it has defaults and items")
    defaults = document.get("defaults") or {}
    if not isinstance(defaults, dict):
        raise UserError(f"{path}: defaults are a mapping of fields of a job")
    if wrong := [str(key) for key in defaults if key not in _COLUMNS[1:]]:
        raise UserError(
            f"{path}: defaults are fields of a job, {wrong[0]:.60} is none of them: "
            f"{', '.join(_COLUMNS[1:])}"
        )
    return defaults, (_row(f"item {at}", one) for at, one in enumerate(document["items"], 1))


def _of_csv(path: Path) -> Iterator[_Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        _check_columns(path, reader.fieldnames or ())
        for cells in reader:
            given = {name: cell for name, cell in cells.items() if cell}
            place = f"line {reader.line_num}"
            more = "the line has more cells than the first one has columns" if None in given else ""
            fields = {name: _value(name, cell) for name, cell in given.items() if name is not None}
            yield _Row(place, fields, more)


def _of_jsonl(path: Path) -> Iterator[_Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if text := line.strip():
                place = f"line {number}"
                try:
                    yield _row(place, parse_json(text))
                except RecursionError:
                    yield _Row(place, {}, "is nested too deeply")
                except ValueError as error:
                    yield _Row(place, {}, f"is not valid JSON: {error}")


def _of_parquet(path: Path) -> Iterator[_Row]:
    import pyarrow.parquet as pq  # not for every command

    file = pq.ParquetFile(path.absolute())  # a:b would be an address
    about = file.metadata
    size = sum(about.row_group(at).total_byte_size for at in range(about.num_row_groups))
    if about.num_rows > MAX_ITEMS or size > MAX_BYTES:
        raise UserError(f"{path}: holds more than {MAX_ITEMS} items or {MAX_BYTES >> 20} MiB")
    _check_columns(path, file.schema_arrow.names)
    number = 0
    for batch in file.iter_batches(batch_size=1000):
        for fields in batch.to_pylist():
            number += 1
            given = {name: _value(name, value) for name, value in _without_none(fields).items()}
            yield _Row(f"row {number}", given)


def _of_files(base: Path, paths: Iterable[Path]) -> Iterator[_Row]:
    for path in paths:
        if path.name.startswith(".") or path.suffix.lower() in (*_PROMPTS, _MASKS):
            continue
        beside = {one: path.with_suffix(one) for one in (*_PROMPTS, _MASKS)}
        prompts = next((p for one in _PROMPTS if (p := beside[one]).is_file()), None)
        masks = beside[_MASKS] if beside[_MASKS].is_file() else None
        is_video = path.is_file() and _VIDEOS.fullmatch(path.suffix)
        if not (is_video or ((prompts or masks) and path.exists())):
            continue
        if (path / RUN_MANIFEST).is_file():
            continue  # a run directory, of the video beside it
        name = path.relative_to(base)
        fields = {"item_id": _slug(str(name.with_suffix(""))), "file": str(path)}
        fields |= {"prompts": str(prompts)} if prompts else {}
        fields |= {"mask_prompts": str(masks)} if masks else {}
        yield _Row(str(name), fields)


def _refusing(path: Path, rows: Iterator[_Row]) -> Iterator[_Row]:
    """The rows; whatever a parser makes of a damaged file becomes a UserError."""
    try:
        yield from rows
    except UserError:
        raise
    except Exception as error:
        kind = path.suffix[1:].upper()
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: is not valid {kind}: {reason}") from None


def _check_columns(path: Path, names: Iterable[str]) -> None:
    wrong = [name for name in names if name not in _COLUMNS]
    if wrong:
        raise UserError(
            f"{path}: {wrong[0]!r:.60} is not a column of a dataset; they are {', '.join(_COLUMNS)}"
        )
    if len(set(names)) < len(list(names)):
        raise UserError(f"{path}: has a column twice")


def _row(place: str, value: Any) -> _Row:
    if isinstance(value, dict):
        return _Row(place, {str(key): one for key, one in value.items()})
    return _Row(place, {}, _ITEM)


def _value(name: str, cell: Any) -> Any:
    """What a cell means, in a format that has only text for it."""
    if not isinstance(cell, str):
        return cell
    field = SegmentJob.model_fields.get(name)
    if field is not None and int in (field.annotation, *get_args(field.annotation)):
        return int(cell) if re.fullmatch(r"\s*-?\d{1,18}\s*", cell) else cell
    return cell


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return [_without_none(one) for one in value] if isinstance(value, list) else value


def _check_id(item_id: str, taken: Mapping[str, Item]) -> None:
    if not item_id:
        raise UserError("there is no item_id, and the file's name gives none")
    if not re.fullmatch(ITEM_ID_PATTERN, item_id):
        raise UserError(
            "the item_id is not safe as the name of a folder; it is 1 to 128 letters, digits, "
            "'_', '.' or '-', and starts with a letter or a digit"
        )
    if item_id.casefold() in RESERVED:
        raise UserError("the item_id is the name of a file that masklet writes there")
    # folded, as some file systems do
    if item_id.casefold() in taken:
        other = shown_address(taken[item_id.casefold()].job.file)
        raise UserError(f"the item_id is there twice; the other one is of {other}")


def _check_files(job: SegmentJob) -> None:
    if not job.prompts and job.mask_prompts is None:
        raise UserError("there are neither prompts nor mask_prompts")
    source = local_path(job.file)
    if source is None:
        from masklet.settings import load_settings

        check_address(job.file, load_settings())
    for given in (source, job.mask_prompts):
        if given is not None:
            # a folder of images is a video, of masks it is none
            if not (Path(given).is_file() or (given is source and Path(given).is_dir())):
                raise UserError(f"{given}: there is no such file")
            if not os.access(given, os.R_OK):
                raise UserError(f"{given}: may not be read")
    if source is not None and source.is_file() and source.stat().st_size == 0:
        raise UserError(f"{source}: is empty: was it copied completely?")
    check_without_source(job)


def _trouble_with_model(
    job: SegmentJob, known: dict[tuple[str, Path | None], str], *, weights: bool
) -> str:
    """What is wrong with the model or its weights; '' if nothing. Each is looked at once."""
    which = job.model_type, job.checkpoint
    if which not in known:
        try:
            spec = find_model(job.model_type)
            if weights:
                require_checkpoint(spec, job.checkpoint)
            known[which] = ""
        except UserError as error:
            known[which] = str(error)
    return known[which]


def _split_glob(dataset: str) -> tuple[Path, str]:
    """The folder above the first part that is no plain name, and the rest."""
    parts = Path(dataset).absolute().parts
    plain = next(at for at, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:plain]), str(Path(*parts[plain:]))


def _slug(name: str) -> str:
    """A name for an item without one: of its file, with anything unsafe replaced."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name.replace("\\", "/")).lstrip("_.-")[:128]
