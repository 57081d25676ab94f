"""Bytes from an address: over http(s), or from a store that fsspec knows.

Both give them from an offset on, if what is there is still what it was, so that a download can go
on where it broke.
"""

import base64
import re
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from typing import Any, NamedTuple

import httpcore
import httpx

from masklet.addresses import WEB, scheme_of, shown_address
from masklet.errors import UserError
from masklet.guard import GuardedBackend, NotPublic
from masklet.settings import Settings

MAX_REDIRECTS = 5
CONNECT_SECONDS = 10.0
CHUNK_BYTES = 2**22
_REDIRECTS = (301, 302, 303, 307, 308)
_FOR_A_WHILE = (408, 425, 429, 500, 502, 503, 504)
_VERSIONS = ("ETag", "etag", "blob_id", "generation")
"""What stores call the version of an object."""


class Broken(Exception):
    """An attempt to fetch that failed, and that may go better another time.

    is_stale: what is here of it does not go with what is there.
    is_unreachable: nobody was there; if that was so from the start, the address may be wrong.
    """

    def __init__(
        self, reason: str, *, is_stale: bool = False, is_unreachable: bool = False
    ) -> None:
        super().__init__(" ".join(reason.split()))
        self.is_stale, self.is_unreachable = is_stale, is_unreachable


class Wanted(NamedTuple):
    """What to ask an address for.

    known: version of a copy that is here; nothing is sent if it is still that.
    offset, version: how many bytes of which version are here already.
    ends: when to give up, in seconds of `time.monotonic`.
    """

    address: str
    known: str
    offset: int
    version: str
    ends: float


class Answer(NamedTuple):
    """Bytes from `offset` on; total: of the whole, None if it is not told.

    version: an ETag or a date, by which a later request tells that nothing changed; '' without one.
    """

    chunks: Iterator[bytes]
    offset: int
    total: int | None
    version: str


@contextmanager
def opened(wanted: Wanted, settings: Settings) -> Iterator[Answer | None]:
    """Ask an address for its bytes; None if they are the known ones.

    Raises UserError if there is nothing to be had, Broken if it may be had another time.
    """
    way = _from_web if scheme_of(wanted.address) in WEB else _from_store
    with way(wanted, settings) as answer:
        yield answer


@contextmanager
def _from_web(wanted: Wanted, settings: Settings) -> Iterator[Answer | None]:
    shown = shown_address(wanted.address)
    try:
        url = httpx.URL(wanted.address).copy_with(fragment=None)
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise UserError(f"{shown}: is no address") from None
    first, headers = url, _headers(wanted)
    stall = settings.source_stall_seconds
    limits = {"timeout": {"connect": min(stall, CONNECT_SECONDS), "read": stall, "write": stall}}
    with ExitStack() as stack, _translated(shown):
        pool = stack.enter_context(
            httpcore.ConnectionPool(
                ssl_context=httpx.create_ssl_context(),
                network_backend=GuardedBackend(settings.allow_addresses, wanted.ends),
            )
        )
        for _ in range(MAX_REDIRECTS + 1):
            login = _login(first) if _origin(url) == _origin(first) else {}
            sent = [*headers.items(), (b"Host", url.netloc), *login.items()]
            way = pool.stream("GET", _target(url), headers=sent, extensions=limits)
            response = stack.enter_context(way)
            if response.status not in _REDIRECTS:
                break
            url = _redirected(url, response, shown)
        else:
            raise UserError(f"{shown}: was redirected more than {MAX_REDIRECTS} times")
        answer = _read_head(wanted, response, shown)
        if answer is not None:
            answer = answer._replace(chunks=_web_chunks(response, shown))
        stack = stack.pop_all()
    with stack:
        yield answer


def _target(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )


def _headers(wanted: Wanted) -> dict[bytes, bytes]:
    headers = {
        b"User-Agent": b"masklet",
        b"Accept": b"*/*",
        b"Accept-Encoding": b"identity",  # else an offset would be one in a compressed stream
    }
    if wanted.known:
        name = b"If-None-Match" if _is_etag(wanted.known) else b"If-Modified-Since"
        headers[name] = wanted.known.encode("latin-1")
    # a weak ETag says that it is as good, not that the bytes are the same
    if wanted.offset and wanted.version and not wanted.version.startswith("W/"):
        headers[b"Range"] = f"bytes={wanted.offset}-".encode()
        headers[b"If-Range"] = wanted.version.encode("latin-1")
    return headers


def _is_etag(version: str) -> bool:
    return version.startswith(('"', 'W/"'))


def _login(url: httpx.URL) -> dict[bytes, bytes]:
    if not url.userinfo:
        return {}
    login = f"{url.username}:{url.password}".encode()
    return {b"Authorization": b"Basic " + base64.b64encode(login)}


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _redirected(url: httpx.URL, response: httpcore.Response, shown: str) -> httpx.URL:
    location = _header(response, b"location")
    try:
        to = url.join(location)
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise UserError(f"{shown}: was redirected to what is no address") from None
    if to.scheme not in WEB or not to.host or not location:
        raise UserError(f"{shown}: was redirected to what is no http(s) address")
    if (url.scheme, to.scheme) == ("https", "http"):
        raise UserError(f"{shown}: was redirected from https to http, which anybody can change")
    return to


def _read_head(wanted: Wanted, response: httpcore.Response, shown: str) -> Answer | None:
    """What the head of an answer says, without its chunks; None for Not Modified."""
    status = response.status
    if status == HTTPStatus.NOT_MODIFIED and wanted.known:
        return None
    length = _header(response, b"content-length")
    total = int(length) if re.fullmatch(r"\d{1,18}", length) else None
    offset = 0
    if status == HTTPStatus.PARTIAL_CONTENT:
        found = re.fullmatch(
            r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", _header(response, b"content-range")
        )
        offset = int(found[1]) if found else -1
        if found is None or offset != wanted.offset:
            raise Broken("the server sends another part than it was asked for", is_stale=True)
        # some answer with the part of whatever is there now, without a look at If-Range
        name = b"etag" if _is_etag(wanted.version) else b"last-modified"
        if _header(response, name) not in ("", wanted.version):
            raise Broken("the server has another file by now", is_stale=True)
        total = None if found[2] == "*" else int(found[2])
    elif status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and wanted.offset:
        raise Broken("the server has no more than what is here of it", is_stale=True)
    elif status in _FOR_A_WHILE:
        raise Broken(f"the server says {_phrase(status)}")
    elif status != HTTPStatus.OK:
        raise UserError(f"{shown}: the server says {_phrase(status)}: {_advice(status)}")
    if _header(response, b"content-encoding") not in ("", "identity"):
        raise UserError(f"{shown}: the server sends it compressed, although it was asked not to")
    found_version = _header(response, b"etag") or _header(response, b"last-modified")
    is_sound = found_version.isascii() and found_version.isprintable() and len(found_version) < 500
    return Answer(iter(()), offset, total, found_version if is_sound else "")


def _header(response: httpcore.Response, name: bytes) -> str:
    """The header's value; '' without it."""
    values = [value for key, value in response.headers if key.lower() == name]
    return values[0].decode("latin-1").strip() if values else ""


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _advice(status: int) -> str:
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return "it needs credentials, or a signed address has expired"
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return "check the address"
    return "there is no file to be had"


def _web_chunks(response: httpcore.Response, shown: str) -> Iterator[bytes]:
    with _translated(shown):
        yield from response.iter_stream()


@contextmanager
def _translated(shown: str) -> Iterator[None]:
    """What httpcore raises, as UserError or Broken."""
    try:
        yield
    except NotPublic:
        raise UserError(
            f"{shown}: leads to a private or reserved network address, which is not fetched from; "
            "an operator can allow it with MASKLET_ALLOW_ADDRESSES"
        ) from None
    except httpcore.ConnectTimeout:
        raise Broken("the server does not answer", is_unreachable=True) from None
    except httpcore.TimeoutException:
        raise Broken("the server does not answer, or sends nothing more") from None
    except httpcore.LocalProtocolError:
        raise UserError(f"{shown}: is no address that can be asked for") from None
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise UserError(
                    f"{shown}: the server's certificate is not valid ({cause.verify_message})"
                ) from None
            cause = cause.__cause__ or cause.__context__
        is_unreachable = isinstance(error, httpcore.ConnectError)
        reason = str(error) or "the connection broke"
        raise Broken(reason, is_unreachable=is_unreachable) from None


@contextmanager
def _from_store(wanted: Wanted, settings: Settings) -> Iterator[Answer | None]:
    with ExitStack() as stack, _of_a_store(wanted.address):
        import fsspec

        fs, path = fsspec.core.url_to_fs(wanted.address)
        fs.invalidate_cache()
        about = fs.info(path)
        if about.get("type") != "file":
            raise FileNotFoundError
        found = next((str(about[name]) for name in _VERSIONS if about.get(name)), "")
        answer = None
        if not (found and found == wanted.known):
            offset = wanted.offset if found and found == wanted.version else 0
            file = stack.enter_context(fs.open(path, "rb", block_size=CHUNK_BYTES))
            file.seek(offset)
            chunks = _store_chunks(file, wanted.address)
            answer = Answer(chunks, offset, about.get("size"), found)
        stack = stack.pop_all()
    with stack:
        yield answer


def _store_chunks(file: Any, address: str) -> Iterator[bytes]:
    with _of_a_store(address):
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


@contextmanager
def _of_a_store(address: str) -> Iterator[None]:
    """What a store raises, as UserError or Broken; every store has errors of its own."""
    shown = shown_address(address)
    try:
        yield
    except UserError:
        raise
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{shown}: there is no such file: check the address") from None
    except PermissionError:
        raise UserError(
            f"{shown}: may not be read with the credentials of this process, or is not there"
        ) from None
    except (ImportError, ValueError) as error:
        raise UserError(f"{shown}: {_without(address, error)}") from None
    except Exception as error:
        raise Broken(f"the store answered: {_without(address, error)}") from error


def _without(address: str, error: Exception) -> str:
    """What an error says, without the whole address, which may hold a secret."""
    text = str(error).replace(address, shown_address(address))
    query = address.partition("?")[2]
    text = text.replace(query, "…") if query else text
    return " ".join(text.split())[:300] or type(error).__name__
