"""A job's source on this machine: what lies elsewhere is fetched once, into a cache.

The cache is `sources/<sha256 of the content>/<name>`; `addresses/<sha256 of the address>/` knows
which content an address had, and holds what a broken download has left. So the same bytes from two
addresses are one file, and whatever is computed from a source knows it by its content alone.
"""

import errno
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from masklet import lock
from masklet.addresses import WEB, check_address, file_name, local_path, scheme_of, shown_address
from masklet.atomic import replacing
from masklet.content import Stamp, content_hash
from masklet.errors import UserError

if TYPE_CHECKING:
    from masklet.remote import Answer, Broken
    from masklet.settings import Settings

TRIES = 5
"""How often in a row a download may break without having come any further."""

_LONGEST_PAUSE = 30.0
_LOGGER = logging.getLogger(__name__)


class _Copy(BaseModel):
    """What an address had, and where that is in the cache: `sources/<sha256>/<name>`."""

    model_config = ConfigDict(frozen=True)

    address: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    stamp: Stamp
    version: str
    fetched: str

    def path(self, cache: Path) -> Path:
        return cache / "sources" / self.sha256 / self.name


class _Begun(BaseModel):
    """What a partial file is a part of."""

    model_config = ConfigDict(frozen=True)

    version: str


def fetch(file: str | Path, settings: "Settings | None" = None) -> Path:
    """The absolute path of a source; what is an address is fetched first, if that is needed.

    A path and a file:// address need not exist. Of another address the file is in the cache, must
    not be written to, and its content is what the address has now: a server that gives an ETag or
    a date is asked whether it changed. One that cannot be reached is believed to have what it had.

    Raises UserError, in one line and without what is secret in the address.
    """
    path = local_path(file)
    if path is not None:
        return path
    # not for jobs whose source is here
    from masklet.settings import load_settings

    address, settings = str(file), settings or load_settings()
    check_address(address, settings)
    cache, shown = settings.source_cache, shown_address(address)
    # a fragment is never sent; in the names of objects in a store # has no meaning
    whole = address.partition("#")[0] if scheme_of(address) in WEB else address
    key = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()
    place = cache / "addresses" / key
    with _kept(shown, cache, place):
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        # a second process waits here, and then finds what the first one fetched
        with lock.held(place, wait=True):
            try:
                return _fetch(address, place, settings)
            finally:
                if {path.name for path in place.iterdir()} <= {lock.FILE_NAME}:
                    shutil.rmtree(place)  # nothing came of it


def _fetch(address: str, place: Path, settings: "Settings") -> Path:
    from masklet.remote import Broken

    cache, shown = settings.source_cache, shown_address(address)
    copy = _read_copy(place, cache)
    try:
        found = _download(address, place, copy, settings)
    except Broken as error:
        assert copy  # without one it would be a UserError
        _LOGGER.warning(
            "%s: cannot be asked whether it changed (%s); going on with what it had on %s",
            shown,
            error,
            copy.fetched,
        )
        return copy.path(cache)
    if found is None:
        assert copy
        return copy.path(cache)
    sha256, version = found
    path = _publish(place, cache, sha256, file_name(address))
    stamp = Stamp.of(path)
    assert stamp
    now = datetime.now(UTC).isoformat(timespec="seconds")
    new = _Copy(
        address=shown, sha256=sha256, name=path.name, stamp=stamp, version=version, fetched=now
    )
    with replacing(place / "copy.json") as temporary:
        temporary.write_text(new.model_dump_json(), encoding="utf-8")
    return path


def _download(
    address: str, place: Path, copy: _Copy | None, settings: "Settings"
) -> tuple[str, str] | None:
    """Fetch into the partial file, going on after breaks; None if the copy is still the same.

    Returns the sha256 of the whole file, and its version. Raises Broken if the copy may still be
    the same, but this cannot be known; UserError if there is nothing to go on with.
    """
    from masklet.remote import Broken, Wanted, opened

    shown, ends = shown_address(address), time.monotonic() + settings.source_max_seconds
    partial, failed = _Partial(place), 0
    furthest = partial.size  # a server that makes every try begin anew brings nobody further
    while True:
        known = copy.version if copy else ""
        try:
            with opened(
                Wanted(address, known, partial.size, partial.version, ends), settings
            ) as answer:
                if answer is None:
                    return None
                copy = None  # it is another one now
                _receive(answer, partial, shown, settings, ends)
            return partial.digest.hexdigest(), partial.version
        except Broken as broken:
            error = _late(settings) if time.monotonic() >= ends else broken
            reached = partial.size
            if error.is_stale:
                partial.begin("")
            failed = 0 if reached > furthest else failed + 1
            furthest = max(furthest, reached)
            if copy:
                raise error from None
            # the library of a store has tried again itself
            is_hopeless = scheme_of(address) not in WEB or (
                broken.is_unreachable and partial.size == 0
            )
            if is_hopeless or failed >= TRIES or time.monotonic() >= ends:
                raise UserError(f"{shown}: cannot be fetched: {error}") from None
            _LOGGER.info("%s: %s; trying again", shown, error)
        time.sleep(min(settings.source_retry_seconds * 2 ** max(failed - 1, 0), _LONGEST_PAUSE))


def _receive(
    answer: "Answer", partial: "_Partial", shown: str, settings: "Settings", ends: float
) -> None:
    limit = settings.source_max_bytes
    if answer.offset == 0:
        partial.begin(answer.version)

    def check(size: int) -> None:
        if size > limit:
            partial.begin("")
            raise UserError(
                f"{shown}: is larger than {limit.human_readable()}, the limit "
                "(MASKLET_SOURCE_MAX_BYTES)"
            )
        if time.monotonic() >= ends:
            raise _late(settings)

    check(answer.total or 0)
    with partial.file.open("ab") as file:
        for chunk in answer.chunks:
            check(partial.size + len(chunk))
            file.write(chunk)
            partial.count(chunk)
        file.flush()
        os.fsync(file.fileno())
    if answer.total is not None and partial.size != answer.total:
        raise _ended_early(partial.size, answer.total)


def _ended_early(size: int, total: int) -> "Broken":
    from masklet.remote import Broken

    return Broken(f"the connection ended after {size} of {total} bytes", is_stale=size > total)


def _late(settings: "Settings") -> "Broken":
    from masklet.remote import Broken

    return Broken(
        f"it took longer than {settings.source_max_seconds:g} seconds, the limit "
        "(MASKLET_SOURCE_MAX_SECONDS); the next run goes on where this one stopped"
    )


class _Partial:
    """The beginning of a file, as far as it came; what a killed process has left is gone on with.

    size: bytes that are here. version: of what they are. digest: sha256 of them.
    """

    def __init__(self, place: Path) -> None:
        self._begun, self.file = place / "partial.json", place / "partial"
        try:
            self.version = _Begun.model_validate_json(self._begun.read_bytes()).version
            with self.file.open("rb") as file:
                self.digest = hashlib.file_digest(file, "sha256")
            self.size = self.file.stat().st_size
        except (OSError, ValidationError):
            self.begin("")

    def begin(self, version: str) -> None:
        """Start anew with a file of this version."""
        self.file.unlink(missing_ok=True)
        self._begun.unlink(missing_ok=True)
        self.version, self.size, self.digest = version, 0, hashlib.sha256()
        if version:
            self._begun.write_text(_Begun(version=version).model_dump_json(), encoding="utf-8")

    def count(self, chunk: bytes) -> None:
        """Note bytes that were appended to the file."""
        self.size += len(chunk)
        self.digest.update(chunk)


def _publish(place: Path, cache: Path, sha256: str, name: str) -> Path:
    """Move the complete file to where its content belongs; one that is there already is kept."""
    partial, folder = place / "partial", cache / "sources" / sha256
    folder.parent.mkdir(exist_ok=True)
    new = place / "new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    partial.rename(new / name)
    (place / "partial.json").unlink(missing_ok=True)
    (new / name).chmod(0o444)
    for _ in range(2):
        try:
            new.rename(folder)  # another process may do the same with the same content
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            there = next((path for path in folder.iterdir() if path.is_file()), None)
            if there is not None and content_hash(there) == sha256:
                shutil.rmtree(new)
                return there
            shutil.rmtree(folder)  # damaged
        else:
            return folder / name
    raise UserError(f"{folder}: cannot be written; remove it")


def _read_copy(place: Path, cache: Path) -> _Copy | None:
    """What the address had, if it is here and still what was fetched."""
    try:
        copy = _Copy.model_validate_json((place / "copy.json").read_bytes())
    except (OSError, ValidationError):
        return None
    path = copy.path(cache)
    stamp = Stamp.of(path)
    if stamp is None or (stamp != copy.stamp and content_hash(path) != copy.sha256):
        return None
    return copy


@contextmanager
def _kept(shown: str, cache: Path, place: Path) -> Iterator[None]:
    """What the cache's disk raises, such as that it is full, as UserError."""
    try:
        yield
    except OSError as error:
        with suppress(OSError):
            (place / "partial").unlink(missing_ok=True)  # it may be what filled the disk
        raise UserError(
            f"{shown}: cannot be kept in {cache} ({error.strerror or error}); make room there, or "
            "set MASKLET_SOURCE_CACHE to another folder"
        ) from None
