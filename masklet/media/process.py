"""One ffmpeg process: its limits, its pipes, its end.

Videos are hostile input, so nothing of them is parsed in this process. Every child runs in a
session of its own (Ctrl-C reaches only Python, which then kills the child's process group) with
a limit on its memory and on the time it may go without progress. A child whose parent was
SIGKILLed ends by itself at its next write to a pipe that nobody reads; PR_SET_PDEATHSIG would
need `preexec_fn`, which is not safe in a program with threads.
"""

import contextlib
import fcntl
import os
import re
import resource
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import ffmpeg
import imageio_ffmpeg

from masklet.errors import UserError

STALL_SECONDS = 60.0
"""A child that neither reads nor writes for so long is killed."""

MAX_PIXELS = 2**27
MAX_ADDRESS_SPACE = 16 * 2**30
MAX_ALLOCATION = 2**30
THREADS = min(8, os.cpu_count() or 1)

# Containers that hold their frames themselves. Playlists, concat scripts, image sequences and
# devices are left out: each can name other files.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm",
    "avi",
    "mpegts",
    "mpeg",
    "mpegvideo",
    "m4v",
    "flv",
    "ogg",
    "asf",
    "h264",
    "hevc",
    "av1",
    "obu",
    "ivf",
    "mxf",
    "dv",
    "nut",
    "rm",
    "yuv4mpegpipe",
    "gif",
)

_STDERR_BYTES = 2**16
_PIPE_BYTES = 2**20


class Stalled(Exception):
    """The child made no progress within its limit."""


def display_name(path: Path) -> str:
    """The file name without its folder, safe to print: odd characters become `?`."""
    return "".join(c if c.isprintable() else "?" for c in path.name)


def opened(path: Path) -> BufferedReader:
    """The file, open for reading; a UserError when it is missing or may not be read."""
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(
            f"{display_name(path)} cannot be read ({error.strerror}): check the path"
        ) from None


def video_input(*, seek: float | None = None) -> Any:
    """The first video stream (cover pictures apart) of stdin, with the file's own timestamps.

    A file comes as an open descriptor, so its name means nothing to ffmpeg: not an option, not a
    protocol, not a pattern of image names, not an extension to believe. `seek` is an absolute
    presentation time in seconds: decoding starts at a keyframe near it.
    """
    options: dict[str, Any] = {} if seek is None else {"ss": f"{seek:.6f}", "seek_timestamp": 1}
    return ffmpeg.input(
        "fd:",
        protocol_whitelist="fd",
        format_whitelist=",".join(CONTAINERS),
        max_pixels=MAX_PIXELS,
        threads=THREADS,
        # Pictures whose references are missing, right after a seek, are left out instead of
        # shown grey: the reader notices that they are missing and starts further back.
        flags="-output_corrupt",
        noaccurate_seek=None,
        **options,
    )["V:0"]


@contextlib.contextmanager
def decoder(
    path: Path, *, seek: float | None, limit: float | None = None, **options: Any
) -> Iterator[tuple["Child", Iterator[int]]]:
    """A child that decodes to stdout, and the pts of each frame, known before its data is written.

    The pts are those of the file, in the file's own time base, whether or not `seek` was given.
    """
    times, times_write = os.pipe()
    try:
        output = ffmpeg.output(
            video_input(seek=seek),
            "pipe:",
            fps_mode="passthrough",
            enc_time_base="demux",
            stats_enc_pre=f"pipe:{times_write}",
            stats_enc_pre_fmt="{pts}",
            **options,
        )
        with (
            opened(path) as file,
            Child(command(output), stdin=file, pass_fds=(times_write,), limit=limit) as child,
        ):
            os.close(times_write)
            times_write = -1
            yield child, map(int, child.lines(times))
    finally:
        os.close(times)
        if times_write >= 0:
            os.close(times_write)


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Tell the user about a file on which ffmpeg hangs."""
    try:
        yield
    except Stalled:
        raise UserError(
            f"ffmpeg was stopped on {display_name(path)}, it made no progress within its limit: "
            "re-encode the file first, or give it a faster disk"
        ) from None


def command(output: Any, *, loglevel: str = "error") -> list[str]:
    """The command line of an ffmpeg-python output, with the limits every child gets."""
    limited = output.global_args(
        *("-nostdin", "-hide_banner", "-loglevel", loglevel, "-copyts"),
        *("-max_alloc", str(MAX_ALLOCATION), "-filter_threads", str(THREADS)),
    )
    arguments: list[str] = limited.compile(cmd=imageio_ffmpeg.get_ffmpeg_exe())
    return arguments


_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TMPDIR")


def _environment() -> dict[str, str]:
    """What a decoder needs of this process's environment; the rest may be secret."""
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}


class Child:
    """A running ffmpeg or other decoder.

    Leaving the context kills, reaps and closes whatever is left of it.

    `limit` is how many seconds the process may take in all, besides `STALL_SECONDS`, and
    `address_space` how many bytes of memory it may ask for.
    """

    def __init__(
        self,
        arguments: list[str],
        *,
        stdin: IO[bytes] | int,
        stdout: int = subprocess.PIPE,
        pass_fds: tuple[int, ...] = (),
        limit: float | None = None,
        address_space: int = MAX_ADDRESS_SPACE,
    ) -> None:
        self._deadline = None if limit is None else time.monotonic() + limit
        self._input = None if isinstance(stdin, int) else stdin
        self._process = subprocess.Popen(
            arguments,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            start_new_session=True,
            bufsize=0,
            # Every thread reserves an arena of address space, which the limit below counts.
            env={**_environment(), "MALLOC_ARENA_MAX": "4"},
        )
        self._errors = b""
        self._stderr_open = True
        if hasattr(resource, "prlimit"):  # Linux only
            with contextlib.suppress(OSError):  # it may have ended already
                limits = (address_space, address_space)
                resource.prlimit(self._process.pid, resource.RLIMIT_AS, limits)
        if self._process.stdout:
            enlarge_pipe(self._process.stdout.fileno())
        if self._process.stdin:
            enlarge_pipe(self._process.stdin.fileno())
            os.set_blocking(self._process.stdin.fileno(), False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

    @property
    def stdout(self) -> int:
        assert self._process.stdout
        return self._process.stdout.fileno()

    def read_into(self, fd: int, buffer: memoryview) -> bool:
        """Fill `buffer` from one of the child's pipes; False if the pipe ended before."""
        done = 0
        while done < len(buffer):
            self._wait(fd, select.POLLIN)
            got = os.readv(fd, [buffer[done:]])
            if not got:
                return False
            done += got
        return True

    def lines(self, fd: int) -> Iterator[str]:
        """The lines of one of the child's pipes, as they come."""
        rest = b""
        while True:
            self._wait(fd, select.POLLIN)
            chunk = os.read(fd, 65536)
            if not chunk:
                return
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line.decode("ascii", "replace")

    def write(self, data: memoryview) -> None:
        """Give `data` to the child's stdin. Raises BrokenPipeError when it reads no more."""
        assert self._process.stdin
        fd = self._process.stdin.fileno()
        while data:
            self._wait(fd, select.POLLOUT)
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(fd, data) :]

    def finish(self, seconds: float = STALL_SECONDS) -> int:
        """Close stdin, wait for the end for `seconds` at most, and return the exit status."""
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        deadline = time.monotonic() + seconds
        while self._stderr_open:
            self._poll(None, 0, deadline)
        try:
            return self._process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise Stalled from None

    @property
    def said(self) -> str:
        """What it wrote to stderr, as far as it is kept."""
        return self._errors.decode("utf-8", "replace")

    def reason(self) -> str:
        """ffmpeg's first complaint as one short line without addresses, or ''."""
        # what writes the output complains of times that it does not like, which are the file's own
        lines = [one for one in self.said.split("\n") if not one.startswith(("[out", "[framecrc"))]
        text = re.sub(r"\[[^\]]* @ 0x[0-9a-f]+\] *", "", "\n".join(lines))
        first = text.strip().split("\n")[0]
        return "".join(c for c in first if c.isprintable())[:200].rstrip(". ")

    def _wait(self, fd: int, event: int) -> None:
        """Return when `fd` can be read or written."""
        while True:
            read = self._bytes_read()
            deadline = time.monotonic() + STALL_SECONDS
            if self._deadline is not None:
                deadline = min(deadline, self._deadline)
            try:
                while not self._poll(fd, event, deadline):
                    pass
                return
            except Stalled:
                is_late = self._deadline is not None and deadline == self._deadline
                if is_late or self._bytes_read() == read:
                    raise

    def _bytes_read(self) -> int:
        """Where the child stands in the file it has from us: while it skips, it says nothing."""
        if self._input is None:
            return 0
        try:
            return os.lseek(self._input.fileno(), 0, os.SEEK_CUR)
        except OSError:  # of no file that has places
            return 0

    def _poll(self, fd: int | None, event: int, deadline: float) -> bool:
        """Wait once, taking what stderr says on the way: a full stderr would block the child."""
        assert self._process.stderr
        stderr = self._process.stderr.fileno()
        poll = select.poll()
        if self._stderr_open:
            poll.register(stderr, select.POLLIN)
        if fd is not None:
            poll.register(fd, event)
        ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if not ready:
            raise Stalled
        if stderr in ready:
            said = os.read(stderr, 65536)
            self._stderr_open = bool(said)
            self._errors = (self._errors + said)[:_STDERR_BYTES]
        return fd in ready


def enlarge_pipe(fd: int) -> None:
    """Fewer wake-ups per frame, where the system allows it (Linux, up to its own limit)."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
