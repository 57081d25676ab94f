"""Sources from elsewhere: a real HTTP server that behaves as servers do, and a real S3 one."""

import base64
import contextlib
import hashlib
import json
import logging
import os
import random
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from masklet import fetch as fetch_module
from masklet.addresses import local_path, scheme_of, shown_address
from masklet.dataset import read_dataset
from masklet.errors import UserError
from masklet.fetch import TRIES, fetch
from masklet.guard import is_allowed
from masklet.item_table import read_rows
from masklet.job import make_job
from masklet.label import label_dataset
from masklet.manifest import Manifest
from masklet.pipeline import run_job
from masklet.remote import MAX_REDIRECTS
from masklet.settings import PREFIX, Settings, load_settings
from tests.masklet.conftest import CLICK, Eye, contents_of

CONTENT = random.Random(5).randbytes(700_000)
HALF = 300_000
Route = Callable[["Request"], None]


@dataclass
class Request:
    """One request as it came, and the connection to answer on."""

    handler: BaseHTTPRequestHandler
    number: int
    headers: Mapping[str, str]
    waiting: threading.Event

    def head(self, status: int, **headers: object) -> None:
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), str(value))
        self.handler.end_headers()

    def send(self, content: bytes) -> None:
        self.handler.wfile.write(content)

    def serve(
        self, content: bytes = CONTENT, etag: str | None = '"one"', until: int | None = None
    ) -> None:
        """As a good server does; `until` breaks the connection after so many bytes of the file."""
        named = {"ETag": etag} if etag else {}
        if etag and self.headers.get("If-None-Match") == etag:
            self.head(304, **named)
            return
        offset = 0
        if "Range" in self.headers and self.headers.get("If-Range") == etag:
            offset = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            part = f"bytes {offset}-{len(content) - 1}/{len(content)}"
            self.head(206, Content_Length=len(content) - offset, Content_Range=part, **named)
        else:
            self.head(200, Content_Length=len(content), **named)
        self.send(content[offset:until])


@dataclass
class Site:
    """A server on 127.0.0.1. routes: what it does by path. requests: what it was asked."""

    port: int = 0
    routes: dict[str, Route] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    waiting: threading.Event = field(default_factory=threading.Event)

    def address(self, path: str = "/clip.mp4", *, host: str = "127.0.0.1", user: str = "") -> str:
        return f"http://{user}{host}:{self.port}{path}"


@contextlib.contextmanager
def running(context: ssl.SSLContext | None = None) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self.close_connection = True
            request = Request(self, len(site.requests), dict(self.headers.items()), site.waiting)
            site.requests.append(request)
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                site.routes[self.path.partition("?")[0]](request)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    site.port = server.server_port
    site.routes["/clip.mp4"] = Request.serve
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        site.waiting.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    with running() as site:
        yield site


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A cache of its own; 127.0.0.1 may be fetched from, and broken downloads go on at once."""
    given = {
        "SOURCE_CACHE": tmp_path / "cache",
        "SOURCE_RETRY_SECONDS": 0,
        "ALLOW_ADDRESSES": "127.0.0.1",
    }
    for name, value in given.items():
        monkeypatch.setenv(PREFIX + name, str(value))
    return load_settings()


def refused(address: str, settings: Settings, match: str) -> str:
    """Fetching ends in one line, without a secret and without a file to use."""
    with pytest.raises(UserError, match=match) as caught:
        fetch(address, settings)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    assert "SECRET" not in text
    assert not list(settings.source_cache.glob("sources/*"))
    return text


# --- fetching over http


def test_what_was_fetched_is_not_fetched_again(site: Site, settings: Settings) -> None:
    path = fetch(site.address(), settings)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    assert path == settings.source_cache / "sources" / sha256 / "clip.mp4"
    assert path.read_bytes() == CONTENT
    about = path.stat()
    assert fetch(site.address(), settings) == path
    assert path.stat() == about
    assert site.requests[1].headers["If-None-Match"] == '"one"'
    assert settings.source_cache.stat().st_mode & 0o77 == 0


def test_the_same_bytes_from_another_address_are_the_same_file(
    site: Site, settings: Settings
) -> None:
    site.routes["/other.mov"] = Request.serve
    assert fetch(site.address(), settings) == fetch(site.address("/other.mov?x=1"), settings)
    assert len(list(settings.source_cache.glob("sources/*/*"))) == 1


def test_a_changed_source_is_fetched(site: Site, settings: Settings) -> None:
    fetch(site.address(), settings)
    site.routes["/clip.mp4"] = lambda request: request.serve(b"new", '"two"')
    assert fetch(site.address(), settings).read_bytes() == b"new"


@pytest.mark.parametrize("header", ["ETag", "Last-Modified", None])
def test_a_date_serves_as_well_as_an_etag(
    header: str | None, site: Site, settings: Settings
) -> None:
    """Without either nothing can be told, and it is fetched each time."""
    date = "Mon, 02 Nov 2026 10:00:00 GMT"

    def route(request: Request) -> None:
        asked = request.headers.get("If-Modified-Since") or request.headers.get("If-None-Match")
        if asked:
            request.head(304)
        else:
            value = {"ETag": 'W/"weak"', "Last-Modified": date}
            request.head(200, **({header: value[header]} if header else {}), Content_Length=3)
            request.send(b"abc")

    site.routes["/clip.mp4"] = route
    assert fetch(site.address(), settings) == fetch(site.address(), settings)
    asked = {name for name in site.requests[1].headers if name.startswith("If-")}
    assert asked == {
        "ETag": {"If-None-Match"},
        "Last-Modified": {"If-Modified-Since"},
        None: set(),
    }[header]  # fmt: skip


def test_a_broken_download_goes_on_where_it_broke(site: Site, settings: Settings) -> None:
    site.routes["/clip.mp4"] = lambda request: request.serve(
        until=(request.number + 1) * HALF if request.number < 2 else None
    )
    assert fetch(site.address(), settings).read_bytes() == CONTENT
    assert [one.headers.get("Range") for one in site.requests] == [
        None,
        f"bytes={HALF}-",
        f"bytes={2 * HALF}-",
    ]
    assert not list(settings.source_cache.glob("addresses/*/partial*"))


def test_what_changed_meanwhile_is_fetched_from_its_start(site: Site, settings: Settings) -> None:
    def route(request: Request) -> None:
        if request.number == 0:
            request.serve(until=HALF)
        else:
            request.serve(CONTENT[::-1], '"two"')

    site.routes["/clip.mp4"] = route
    assert fetch(site.address(), settings).read_bytes() == CONTENT[::-1]
    assert site.requests[1].headers["If-Range"] == '"one"'


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_version_it_is_fetched_from_its_start(
    etag: str | None, site: Site, settings: Settings
) -> None:
    site.routes["/clip.mp4"] = lambda request: request.serve(
        etag=etag, until=None if request.number else HALF
    )
    assert fetch(site.address(), settings).read_bytes() == CONTENT
    assert "Range" not in site.requests[1].headers


def test_a_server_that_sends_another_part_is_not_believed(site: Site, settings: Settings) -> None:
    def route(request: Request) -> None:
        if request.number == 0:
            request.serve(until=HALF)
        elif request.number == 1:
            size, rest = len(CONTENT), len(CONTENT) - HALF
            part = f"bytes 5-{rest + 4}/{size}"
            request.head(206, ETag='"one"', Content_Range=part, Content_Length=rest)
            request.send(CONTENT[5 : rest + 5])
        else:
            request.serve()

    site.routes["/clip.mp4"] = route
    assert fetch(site.address(), settings).read_bytes() == CONTENT


@pytest.mark.parametrize("version", [("ETag", '"%s"'), ("Last-Modified", "Mon, %s GMT")])
def test_a_part_of_another_version_is_not_taken(
    version: tuple[str, str], site: Site, settings: Settings
) -> None:
    """From a server that knows nothing of If-Range."""
    name, value = version
    changed = CONTENT[::-1]

    def route(request: Request) -> None:
        if request.number == 0:
            request.head(200, **{name: value % "one"}, Content_Length=len(CONTENT))
            request.send(CONTENT[:HALF])
        elif "Range" in request.headers:
            part = f"bytes {HALF}-{len(CONTENT) - 1}/{len(CONTENT)}"
            length = len(CONTENT) - HALF
            headers = {name: value % "two", "Content_Range": part, "Content_Length": length}
            request.head(206, **headers)
            request.send(changed[HALF:])
        else:
            request.head(200, **{name: value % "two"}, Content_Length=len(CONTENT))
            request.send(changed)

    site.routes["/clip.mp4"] = route
    assert fetch(site.address(), settings).read_bytes() == changed
    assert len(site.requests) == 3


def test_a_server_that_never_sends_the_part_it_was_asked_for_is_left(
    site: Site, settings: Settings
) -> None:
    def route(request: Request) -> None:
        if request.number >= 50:
            request.serve()
        elif "Range" in request.headers:
            request.head(206, ETag='"one"', Content_Range="bytes 0-4/5", Content_Length=5)
            request.send(CONTENT[:5])
        else:
            request.serve(until=HALF)

    site.routes["/clip.mp4"] = route
    refused(site.address(), settings, "cannot be fetched: the server sends another part than it")


def test_a_server_may_send_less_than_the_rest(site: Site, settings: Settings) -> None:
    def route(request: Request) -> None:
        if request.number == 0:
            request.serve(until=HALF)
        else:
            begin = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            end = min(begin + 150_000, len(CONTENT))
            part = f"bytes {begin}-{end - 1}/{len(CONTENT)}"
            request.head(206, ETag='"one"', Content_Range=part, Content_Length=end - begin)
            request.send(CONTENT[begin:end])

    site.routes["/clip.mp4"] = route
    assert fetch(site.address(), settings).read_bytes() == CONTENT
    assert len(site.requests) == 4


def test_a_server_with_less_than_is_here_is_asked_anew(site: Site, settings: Settings) -> None:
    def route(request: Request) -> None:
        if request.number == 1:
            request.head(416, Content_Range="bytes */5", Content_Length=0)
        else:
            request.serve(until=None if request.number else HALF)

    site.routes["/clip.mp4"] = route
    assert fetch(site.address(), settings).read_bytes() == CONTENT


def test_a_wrong_length_ends_after_some_tries(site: Site, settings: Settings) -> None:
    def route(request: Request) -> None:
        request.head(200, Content_Length=1000)
        request.send(b"short")

    site.routes["/clip.mp4"] = route
    refused(site.address(), settings, r"clip\.mp4: cannot be fetched: ")
    assert len(site.requests) == TRIES + 1  # the first one came further than nothing


_FETCH = "import sys; from masklet.fetch import fetch; print(fetch(sys.argv[1]))"


def start_fetch(address: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(fetch_module.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", _FETCH, address], env=environment, text=True, stdout=subprocess.PIPE
    )


def test_a_killed_process_is_gone_on_with(site: Site, settings: Settings) -> None:
    def stand_still(request: Request) -> None:
        request.serve(until=HALF)
        request.waiting.wait()

    site.routes["/clip.mp4"] = stand_still
    with start_fetch(site.address()) as process:
        while not any(
            one.stat().st_size > HALF // 2
            for one in settings.source_cache.glob("addresses/*/partial")
        ):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    site.waiting.set()
    site.routes["/clip.mp4"] = Request.serve
    path = fetch(site.address(), settings)
    assert path.read_bytes() == CONTENT
    assert path.parent.name == hashlib.sha256(CONTENT).hexdigest()
    offset = int(site.requests[1].headers["Range"].removeprefix("bytes=").removesuffix("-"))
    assert HALF // 2 < offset <= HALF


def test_two_processes_fetch_once(site: Site, settings: Settings) -> None:
    started = [start_fetch(site.address()) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in started}
    assert paths == {str(fetch(site.address(), settings))}
    assert sum("If-None-Match" not in one.headers for one in site.requests) == 1


def test_two_addresses_of_the_same_bytes_at_once(site: Site, settings: Settings) -> None:
    names = [f"/{number}.mp4" for number in range(6)]
    site.routes |= dict.fromkeys(names, Request.serve)
    with ThreadPoolExecutor(len(names)) as pool:
        paths = set(pool.map(lambda name: fetch(site.address(name), settings), names))
    assert len(paths) == 1
    assert paths.pop().read_bytes() == CONTENT


def test_a_damaged_copy_is_fetched_again(site: Site, settings: Settings) -> None:
    path = fetch(site.address(), settings)
    path.chmod(0o644)
    path.write_bytes(CONTENT[::-1])
    assert fetch(site.address(), settings).read_bytes() == CONTENT
    path.unlink()
    assert fetch(site.address(), settings).read_bytes() == CONTENT
    next(settings.source_cache.glob("addresses/*/copy.json")).write_text("{")
    assert fetch(site.address(), settings).read_bytes() == CONTENT


# --- limits


def endless(request: Request) -> None:
    request.head(200, ETag='"one"')
    with contextlib.suppress(OSError):
        while not request.waiting.wait(0.001):
            request.send(bytes(1000))


def test_what_is_too_large_is_refused(site: Site, settings: Settings) -> None:
    small = settings.model_copy(update={"source_max_bytes": type(settings.source_max_bytes)(5000)})
    refused(site.address(), small, r"clip\.mp4: is larger than 4\.9KiB, the limit \(MASKLET_")
    site.routes["/endless"] = endless
    refused(site.address("/endless"), small, r"endless: is larger than 4\.9KiB, the limit")
    assert not list(settings.source_cache.glob("addresses/*/partial"))


def trickle_head(request: Request) -> None:
    with contextlib.suppress(OSError):
        request.send(b"HTTP/1.1 200 OK\r\nX: ")
        while not request.waiting.wait(0.001):
            request.send(b"x")


@pytest.mark.parametrize("route", [endless, trickle_head])
def test_the_time_limit_holds_for_a_server_that_never_ends(
    route: Route, site: Site, settings: Settings
) -> None:
    short = settings.model_copy(update={"source_max_seconds": 0.2, "source_stall_seconds": 60})
    site.routes["/clip.mp4"] = route
    refused(site.address(), short, r"it took longer than 0\.2 seconds.*the next run goes on")
    assert len(site.requests) <= 1  # on a busy machine the time may be over before it is asked


def test_a_server_that_sends_nothing_more_is_left(site: Site, settings: Settings) -> None:
    def stall(request: Request) -> None:
        request.serve(until=HALF)
        request.waiting.wait()

    short = settings.model_copy(update={"source_stall_seconds": 0.3})
    site.routes["/clip.mp4"] = stall
    refused(site.address(), short, "the server does not answer, or sends nothing more")
    assert f"bytes={HALF}-" in [request.headers.get("Range") for request in site.requests]
    site.routes["/clip.mp4"] = Request.serve
    assert fetch(site.address(), settings).read_bytes() == CONTENT  # with what is here of it


def test_a_full_disk_is_one_line(site: Site, settings: Settings) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, before[1]))
    try:
        refused(
            site.address(), settings, r"cannot be kept in .*cache \(File too large\); make room"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(settings.source_cache.glob("addresses/*/partial"))


def test_a_cache_that_is_no_folder_is_one_line(
    site: Site, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    other = settings.model_copy(update={"source_cache": tmp_path / "file"})
    refused(site.address(), other, r"clip\.mp4: cannot be kept in .*MASKLET_SOURCE_CACHE")


# --- what servers say


@pytest.mark.parametrize(
    ("status", "match"),
    [
        (404, "the server says 404 Not Found: check the address"),
        (403, "403 Forbidden: it needs credentials, or a signed address has expired"),
        (204, "204 No Content: there is no file"),
        (304, "304 Not Modified: there is no file"),  # nobody asked
        (299, "299: there is no file"),
    ],
)
def test_a_refusal_of_the_server_is_passed_on(
    status: int, match: str, site: Site, settings: Settings
) -> None:
    site.routes["/clip.mp4"] = lambda request: request.head(status, Content_Length=0)
    refused(site.address("/clip.mp4?sig=SECRET"), settings, match)
    assert len(site.requests) == 1


def test_a_busy_server_is_asked_again(site: Site, settings: Settings) -> None:
    def route(request: Request) -> None:
        if request.number < TRIES - 1:
            request.head(503, Content_Length=0)
        else:
            request.serve()

    site.routes["/clip.mp4"] = route
    assert fetch(site.address(), settings).read_bytes() == CONTENT
    site.routes["/down"] = lambda request: request.head(500, Content_Length=0)
    with pytest.raises(UserError, match="cannot be fetched: the server says 500 Internal"):
        fetch(site.address("/down"), settings)


def test_nobody_there_is_told_at_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module.time, "sleep", lambda _: pytest.fail("tries again"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    refused(f"http://127.0.0.1:{port}/", settings, "cannot be fetched: .*Connection refused")
    refused("http://no-such-name.invalid/", settings, "cannot be fetched: the name cannot be")


def test_what_is_no_http_is_refused(site: Site, settings: Settings) -> None:
    site.routes["/clip.mp4"] = lambda request: request.send(b"220 mail.example ESMTP\r\n")
    refused(site.address(), settings, "cannot be fetched")
    site.routes["/clip.mp4"] = lambda request: request.send(b"HTTP/1.1 200 OK\r\n" + b"a" * 200_000)
    refused(site.address(), settings, "cannot be fetched")
    site.routes["/clip.mp4"] = lambda request: request.head(200, Content_Encoding="gzip")
    refused(site.address(), settings, "sends it compressed")


def test_a_copy_serves_while_the_server_cannot_be_asked(
    site: Site, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    address = site.address("/clip.mp4?sig=SECRET")
    path = fetch(address, settings)
    site.routes["/clip.mp4"] = lambda request: request.head(503, Content_Length=0)
    with caplog.at_level(logging.DEBUG):
        assert fetch(address, settings) == path
    assert "cannot be asked whether it changed (the server says 503" in caplog.text
    assert len(site.requests) == 2
    # a server that says no is another thing, and so is one that has something new but breaks off
    for route, match in [
        (lambda request: request.head(404, Content_Length=0), "404 Not Found"),
        (lambda request: request.serve(b"other", '"two"', until=2), "cannot be fetched"),
    ]:
        site.routes["/clip.mp4"] = route
        with pytest.raises(UserError, match=match):
            fetch(address, settings)
    assert "SECRET" not in caplog.text


# --- redirects


def to(address: str, status: int = 302) -> Route:
    return lambda request: request.head(status, Location=address, Content_Length=0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(status: int, site: Site, settings: Settings) -> None:
    site.routes["/a"] = to("b?x=1#part", status)
    site.routes["/b"] = to(site.address(), status)
    assert fetch(site.address("/a"), settings).read_bytes() == CONTENT


def test_redirects_are_limited(site: Site, settings: Settings) -> None:
    for number in range(MAX_REDIRECTS + 1):
        site.routes[f"/{number}"] = to(f"/{number + 1}")
    site.routes[f"/{MAX_REDIRECTS + 1}"] = Request.serve
    refused(site.address("/0"), settings, "was redirected more than 5 times")
    assert len(site.requests) == MAX_REDIRECTS + 1
    assert fetch(site.address("/1"), settings).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "s3://bucket/key", "ftp://h/f", "", "http://a b\x01/"],
)
def test_redirects_to_other_schemes_are_refused(
    location: str, site: Site, settings: Settings
) -> None:
    site.routes["/a"] = to(location)
    refused(site.address("/a"), settings, "was redirected to what is no")


def test_every_hop_is_checked(site: Site, settings: Settings) -> None:
    for host in ("localhost.localdomain", "127.0.0.2", "[::1]", "0"):
        site.routes["/a"] = to(site.address(host=host))
        with pytest.raises(UserError, match=r"leads to a private|cannot be resolved"):
            fetch(site.address("/a"), settings)
    assert {one.handler.path for one in site.requests} == {"/a"}


# --- credentials


def test_credentials_are_sent_and_shown_nowhere(
    site: Site, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    address = site.address("/clip.mp4?sig=SECRET2#SECRET3", user="me:SECRET%21@")
    with running() as other, caplog.at_level(logging.DEBUG):
        site.routes["/clip.mp4"] = to("/next")
        site.routes["/next"] = to(other.address())
        fetch(address, settings)
        other_headers = other.requests[0].headers
    login = "Basic " + base64.b64encode(b"me:SECRET!").decode()
    assert [one.headers["Authorization"] for one in site.requests] == [login, login]
    assert "Authorization" not in other_headers
    assert site.requests[0].handler.path == "/clip.mp4?sig=SECRET2"
    assert "SECRET" not in caplog.text
    for path in settings.source_cache.rglob("*"):
        assert "SECRET" not in str(path)
        assert path.is_dir() or b"SECRET" not in path.read_bytes()
    site.routes["/clip.mp4"] = lambda request: request.head(401, Content_Length=0)
    with pytest.raises(UserError, match="401") as caught:
        fetch(address, settings)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:SECRET@h:81/a%20b.mp4?sig=SECRET#SECRET", "https://h:81/a%20b.mp4"),
        ("HTTPS://SECRET@h/a", "https://h/a"),
        ("https://a@b:SECRET@h/a", "https://h/a"),
        ("https://me:SECRET/a@h/x", "https://…"),
        ("https://me:SECRET#a@h/x", "https://…"),
        ("https:///me:SECRET@h", "https://…"),
        ("https://[SECRET/", "https://…"),
        ("s3://bucket/key?versionId=SECRET", "s3://bucket/key"),
        ("/videos/a?b#c@d.mp4", "/videos/a?b#c@d.mp4"),
        (" https://me:SECRET@h/a?SECRET", "https://h/a"),
        ("'https://me:SECRET@h/a?SECRET'", "…"),
    ],
)
def test_what_is_shown_of_an_address(address: str, shown: str) -> None:
    assert shown_address(address) == shown


@given(st.text())
def test_no_text_breaks_the_reading_of_addresses(text: str) -> None:
    for address in (text, f"https://{text}", f"s3://{text}"):
        shown_address(address)
        assert scheme_of(Path("a" + address.replace("\0", ""))) == ""


def test_file_addresses(tmp_path: Path) -> None:
    assert local_path("file:///a/b%20c.mp4") == Path("/a/b c.mp4")
    assert local_path("FILE://localhost/a") == Path("/a")
    assert local_path("a.mp4") == Path.cwd() / "a.mp4"
    assert local_path(Path("https://h/a")) == Path.cwd() / "https:/h/a"
    with pytest.raises(UserError, match="names another machine"):
        local_path("file://host/a")


# --- addresses that lead into a network


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "LOCALHOST.", "127.1", "0x7f.1", "2130706433", "0177.0.0.1"),
        *("[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "0", "0.0.0.0"),
        *("[::]", "[2002:7f00:1::]", "[fe80::1]", "[fe80::1%25lo]", "example.org@127.0.0.1"),
        *("１２７.0.0.1", "127。0。0。1", "10.0.0.1", "169.254.169.254", "[::127.0.0.1]"),
        *("224.0.0.1", "255.255.255.255", "100.64.0.1", "[fd00::1]", "[ff02::1]"),
    ],
)
def test_private_addresses_are_refused(
    host: str, site: Site, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = settings.model_copy(update={"allow_addresses": ()})
    refused(site.address(host=host), default, "leads to a private|is no address|cannot be resolved")
    assert site.requests == []
    assert not list(settings.source_cache.glob("addresses/*"))


def test_what_a_name_leads_to_is_what_is_checked(
    site: Site, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server may answer as it likes, and something else the next time."""
    asked = []
    answers = [["93.184.215.14", "127.0.0.1"], ["127.0.0.1"]]

    def resolve(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        places = answers.pop(0) if host == "innocent.example" else [host]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in places]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    default = settings.model_copy(update={"allow_addresses": ()})
    for _ in range(2):
        refused(site.address(host="innocent.example"), default, "leads to a private")
    assert asked == ["innocent.example"] * 2
    assert site.requests == []
    # where it is allowed, the address that was looked at is the one that is connected to
    answers[:] = [["127.0.0.1"], ["10.0.0.1"]]
    fetch(site.address(host="innocent.example"), settings)
    assert site.requests[0].headers["Host"] == f"innocent.example:{site.port}"
    assert answers == [["10.0.0.1"]]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("64:ff9b::a00:1", False),
        ("64:ff9b:1::808:808", False),
        ("2002:808:808::", False),
        ("2001:0:808:808::", False),
        ("::8.8.8.8", False),
        ("192.168.1.1", False),
        ("172.31.255.255", False),
        ("172.32.0.0", True),
        ("100.127.255.255", False),
        ("100.128.0.0", True),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_allowed(ip_address(address)) == public


@given(st.ip_addresses(v=4))
def test_an_address_in_another_spelling_is_judged_as_itself(address: IPv4Address) -> None:
    public = is_allowed(address)
    assert not public or (address.is_global and not address.is_multicast)
    assert public or not address.is_global or address.is_multicast or _is_a_relay(address)
    for prefix in (0xFFFF << 32, 0x64FF9B << 96):
        assert is_allowed(IPv6Address(prefix | int(address))) == public
    assert is_allowed(address, [ip_network(address)])


def _is_a_relay(address: IPv4Address) -> bool:
    # in blocks of which Python calls some addresses global
    return any(address in ip_network(one) for one in ("192.0.0.0/24", "192.88.99.0/24"))


@given(st.ip_addresses(v=6))
def test_no_special_ipv6_address_is_public(address: IPv6Address) -> None:
    stands_for_ipv4 = address.ipv4_mapped or address in ip_network("64:ff9b::/96")
    if is_allowed(address) and not stands_for_ipv4:
        assert address.is_global
        assert not address.is_multicast


# --- schemes


@pytest.mark.parametrize(
    "address",
    [
        *("ftp://h/a", "ssh://h/a", "sftp://h/a", "smb://h/a", "github://o:r@/a", "memory://a"),
        *("local:///etc/passwd", "zip::http://h/a.zip", "simplecache::s3://b/k", "data://a"),
        *("reference://x", "jupyter://h/a", "dir::file:///", "S3A://b/k"),
    ],
)
def test_other_schemes_are_refused(address: str, settings: Settings) -> None:
    refused(address, settings, r"addresses are not fetched from here; the operator allows abfs, az")
    with pytest.raises(UserError, match="not fetched from here"):
        fetch("http://127.0.0.1/", settings.model_copy(update={"source_schemes": frozenset()}))


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("s3://b/a.zip::http://127.0.0.1/", "chained addresses"),
        ("s3://key:SECRET@bucket/a", "credentials for a store come from the environment"),
        ("http://", "is no address"),
        ("http:///a", "is no address"),
        ("http://[::1", "is no address"),
        ("http://h\\@127.0.0.1/", "is no address"),
        ("http://h/a\nb", "is no address"),
        ("http://h:99999/", "is no address"),
        ("http://h/" + "a" * 9000, "longer than 8192"),
        ("http://" + "a" * 300 + "/", "cannot be"),
        ("http://\udcff/", "is no address"),
        ("gs://bucket/key", "gcsfs"),
    ],
)
def test_what_is_no_address_is_refused(address: str, match: str, settings: Settings) -> None:
    refused(address, settings, match)


def test_an_empty_list_of_schemes_allows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SOURCE_SCHEMES", "SOURCE_CACHE", "SOURCE_MAX_BYTES"):
        monkeypatch.setenv(PREFIX + name, "")
    settings = load_settings()
    assert settings.source_schemes == frozenset()
    assert settings.source_max_bytes == 64 * 2**30
    assert settings.source_cache.name == "masklet"
    refused(
        "https://example.org/clip.mp4", settings, "https:// addresses are not fetched from here"
    )


def test_a_wrong_setting_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in [
        ("ALLOW_ADDRESSES", "localhost"),
        ("SOURCE_MAX_BYTES", "much"),
        ("SOURCE_MAX_SECONDS", "nan"),
    ]:
        with monkeypatch.context() as environment:
            environment.setenv(PREFIX + name, value)
            with pytest.raises(UserError, match=f"^MASKLET_{name}: "):
                load_settings()


# --- TLS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that nobody has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "masklet")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_certificates_are_checked(
    certificate: Path, site: Site, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(site.address().replace("http:", "https:"), settings, "cannot be fetched")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with running(context) as secure:
        address = secure.address().replace("http:", "https:")
        refused(address, settings, "the server's certificate is not valid")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch(address, settings).read_bytes() == CONTENT
        secure.routes["/down"] = to(site.address())
        with pytest.raises(UserError, match="was redirected from https to http"):
            fetch(address.replace("clip.mp4", "down"), settings)


# --- stores


@pytest.fixture(scope="session")
def store() -> Iterator[None]:
    """An S3-protocol server, which s3fs is told of as an operator would."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    S3FileSystem.clear_instance_cache()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "masklet")
        yield
    S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def bucket(store: None) -> str:
    name = f"masklet-{uuid.uuid4().hex}"
    S3FileSystem().mkdir(name)
    return f"s3://{name}"


def fetched_at(settings: Settings) -> list[str]:
    """What the cache knows of addresses; it is written when something was fetched."""
    return [
        f"{path.stat().st_mtime_ns} {path.stat().st_ino}"
        for path in settings.source_cache.glob("addresses/*/copy.json")
    ]


def test_an_object_in_a_store(bucket: str, settings: Settings) -> None:
    address = f"{bucket}/a folder/clip#1.mp4"
    S3FileSystem().pipe_file(address, CONTENT)
    path = fetch(address, settings)
    assert path.read_bytes() == CONTENT
    before = fetched_at(settings)
    assert fetch(address, settings) == path
    assert fetched_at(settings) == before
    S3FileSystem().pipe_file(address, CONTENT[::-1])
    assert fetch(address, settings).read_bytes() == CONTENT[::-1]
    S3FileSystem().pipe_file(f"{bucket}/a folder/clip#2.mp4", b"2")
    assert fetch(f"{bucket}/a folder/clip#2.mp4", settings).read_bytes() == b"2"
    assert len(list(settings.source_cache.glob("addresses/*"))) == 2


def test_what_a_store_refuses_is_one_line(bucket: str, settings: Settings) -> None:
    S3FileSystem().pipe_file(f"{bucket}/folder/large", CONTENT)
    small = settings.model_copy(update={"source_max_bytes": type(settings.source_max_bytes)(5000)})
    refused(f"{bucket}/folder/large", small, r"is larger than 4\.9KiB")
    for address in (f"{bucket}/none", f"{bucket}/folder", bucket, "s3://no-such-bucket/key"):
        refused(address, settings, "there is no such file|may not be read")
    refused("s3://B_A_D!/key", settings, "s3://B_A_D!/key: ")


def test_an_object_is_gone_on_with(bucket: str, settings: Settings) -> None:
    address = f"{bucket}/clip.mp4"
    S3FileSystem().pipe_file(address, CONTENT)
    place = settings.source_cache / "addresses" / hashlib.sha256(address.encode()).hexdigest()
    place.mkdir(parents=True)
    etag = S3FileSystem().info(address)["ETag"]
    # of these bytes it can be told that they were not fetched again
    (place / "partial").write_bytes(bytes(HALF))
    (place / "partial.json").write_text(json.dumps({"version": etag}))
    assert fetch(address, settings).read_bytes() == bytes(HALF) + CONTENT[HALF:]


def test_a_copy_serves_while_the_store_is_away(
    bucket: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    address = f"{bucket}/clip.mp4"
    S3FileSystem().pipe_file(address, CONTENT)
    path = fetch(address, settings)
    with pytest.MonkeyPatch.context() as patch:

        def info(*_: Any, **__: Any) -> None:
            raise ConnectionError("cannot connect")

        patch.setattr(S3FileSystem(), "info", info)
        assert fetch(address, settings) == path
        assert "cannot be asked whether it changed" in caplog.text
        with pytest.raises(UserError, match="the store answered: cannot connect"):
            fetch(address + "2", settings)


# --- jobs


@pytest.fixture
def clip_site(site: Site, fields: dict[str, Any]) -> Site:
    """The clip of `fields` at two addresses."""
    content = Path(fields["file"]).read_bytes()
    site.routes["/clip.mp4"] = site.routes["/moved"] = lambda request: request.serve(content)
    return site


def test_the_content_is_the_source_wherever_it_lies(
    clip_site: Site, settings: Settings, fields: dict[str, Any], finished: Path, eye: Eye,
    tmp_path: Path, bucket: str,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    address = clip_site.address("/clip.mp4?sig=SECRET", user="me:SECRET@")
    first = run_job(make_job({**fields, "file": address}), out)
    assert first.summary["source"] == clip_site.address()
    made = contents_of(out)
    assert {**made, "outputs.json": ""} == {**contents_of(finished), "outputs.json": ""}
    row = Manifest(out, "").row("input", "source")
    assert json.loads(row.parameters) == {"address": clip_site.address()}
    S3FileSystem().put_file(fields["file"], f"{bucket}/other name")
    for other in (
        clip_site.address("/moved"),
        Path(fields["file"]).as_uri(),
        f"{bucket}/other name",
        address,
        fields["file"],
    ):
        eye.forget()
        outputs = run_job(make_job({**fields, "file": other}), out)
        assert eye.saw_nothing(), other
        assert not any(one.reason for one in outputs.artifacts)
        known = json.loads(Manifest(out, "").row("input", "source").parameters).get("address", "")
        assert known == ("" if "://" not in other or "file:" in other else shown_address(other))
    assert contents_of(out) == made
    for path in out.rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes()


def test_a_dataset_of_addresses(
    clip_site: Site, settings: Settings, fields: dict[str, Any], tmp_path: Path
) -> None:
    clip_site.routes["/none.mp4"] = lambda request: request.head(404, Content_Length=0)
    files = [
        clip_site.address("/clip.mp4?sig=SECRET.x"),
        clip_site.address("/none.mp4?sig=SECRET"),
        "ftp://me:SECRET@h/other.mp4",
    ]
    items = [{"file": file, "model_type": "nano", "prompts": [CLICK]} for file in files]
    (tmp_path / "items.json").write_text(json.dumps(items))
    dataset = read_dataset(tmp_path / "items.json")
    assert [item.item_id for item in dataset.items] == ["clip", "none"]
    assert "ftp:// addresses are not fetched from here" in dataset.problems[0].message
    summary = label_dataset(dataset, str(tmp_path / "out"))
    assert (summary["done"], summary["failed"]) == (1, 2)
    rows = {row.item_id: row for row in read_rows(str(tmp_path / "out" / "dataset.parquet"))}
    assert rows["clip"].file == clip_site.address()
    assert "404 Not Found" in rows["none"].error
    assert not (tmp_path / "out" / "none").exists()
    assert "SECRET" not in repr([rows, summary, [one.message for one in dataset.problems]])


def masklet(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", "from masklet.cli import main; main()", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(fetch_module.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_line(clip_site: Site, settings: Settings, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([CLICK]))
    options = ["--model-type", "nano", "--prompts", str(prompts), "--out", "out"]
    clip_site.routes["/text"] = lambda request: request.serve(b"no video, but text" * 100)
    for address, line in [
        (
            clip_site.address("/text?sig=SECRET"),
            "text is not a video or image in a format that masklet",
        ),
        (clip_site.address(host="127.0.0.2"), "leads to a private or reserved network address"),
    ]:
        told = masklet("segment", address, *options, cwd=tmp_path)
        assert (told.returncode, told.stdout) == (2, "")
        assert told.stderr.startswith("masklet: ")
        assert told.stderr.count("\n") == 1
        assert line in told.stderr
        assert "SECRET" not in told.stderr
        assert not (tmp_path / "out").exists()
    told = masklet("segment", clip_site.address(), *options, cwd=tmp_path)
    assert (told.returncode, told.stderr.count("Traceback")) == (0, 0)
    assert json.loads((tmp_path / "out/outputs.json").read_text())["summary"]["source"]
    pictures = masklet("prompts", "check", str(prompts), clip_site.address(), cwd=tmp_path)
    assert pictures.stdout.split() == ["prompts_check/0.png"]
    said = masklet("settings", cwd=tmp_path).stdout
    assert "MASKLET_ALLOW_ADDRESSES=127.0.0.1/32\n" in said
    assert "MASKLET_SOURCE_MAX_BYTES=68719476736\n" in said
