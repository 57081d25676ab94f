"""Every frame of these videos carries its number in its pixels, so "which frame" is exact."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from masklet.errors import UserError
from masklet.media import Source, probe, process, read_frames, write_video
from masklet.media.decode import FAR_FRAMES
from masklet.media.process import Child, Stalled

WIDTH, HEIGHT, BLOCK = 128, 96, 32
FRAMES = 100

X264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p")
QUIET = ("-x265-params", "log-level=0")


def picture(number: int) -> NDArray[np.uint8]:
    """A frame whose twelve blocks are the bits of its number, with some texture on them."""
    bits = [(number >> bit) & 1 for bit in range(12)]
    blocks = np.array(bits, np.uint8).reshape(3, 4).repeat(BLOCK, 0).repeat(BLOCK, 1) * 200
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    texture = np.stack([(x * 3 + number) % 40, (y * 5 + number) % 40, (x + y) % 40], -1)
    return np.asarray(blocks[..., None] + texture, np.uint8)


def number(image: NDArray[np.uint8]) -> int:
    bits = image.mean(-1).reshape(3, BLOCK, 4, BLOCK).mean((1, 3)) > 120
    return sum(int(bit) << n for n, bit in enumerate(bits.ravel()))


def ffmpeg(*arguments: str | Path, stdin: bytes = b"") -> None:
    start = (imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y")
    subprocess.run([*start, *map(str, arguments)], input=stdin, check=True, timeout=60)


RAW = b"".join(picture(n).tobytes() for n in range(FRAMES))


def make(path: Path, *options: str, raw: bytes = RAW) -> Path:
    size = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", "25")
    ffmpeg(*size, "-i", "-", *options, f"file:{path}", stdin=raw)
    return path


def numbers(source: Source, indices: Sequence[int]) -> list[int]:
    frames = list(read_frames(source, indices))
    assert [index for index, _ in frames] == list(indices)
    return [number(image) for _, image in frames]


FORMATS = {
    "long_gop.mp4": (*X264, "-g", "250", "-bf", "3"),
    "b_frames.mp4": (*X264, "-g", "12", "-bf", "3"),
    "open_gop.mp4": (*X264, "-g", "12", "-bf", "3", "-x264-params", "open-gop=1"),
    "intra_refresh.mkv": (*X264, "-g", "25", "-intra-refresh", "1"),
    "hevc.mp4": (
        "-c:v",
        "libx265",
        "-preset",
        "ultrafast",
        "-x265-params",
        "log-level=0:keyint=20",
    ),
    "h264.mkv": (*X264, "-g", "25"),
    "h264.ts": (*X264, "-g", "25"),
    "open_gop.ts": (*X264, "-g", "25", "-x264-params", "open-gop=1"),
    "h264.avi": (*X264, "-g", "25", "-bf", "2"),
    "mpeg4.avi": ("-c:v", "mpeg4", "-bf", "2", "-q:v", "3"),
    "mpeg2.mpg": ("-c:v", "mpeg2video", "-bf", "2", "-q:v", "3"),
    "vp8.webm": ("-c:v", "libvpx", "-cpu-used", "8", "-deadline", "realtime", "-b:v", "1M"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime", "-g", "30"),
    "raw.h264": (*X264, "-g", "25"),
    "animated.gif": (),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="session")
def video(folder: Path) -> Callable[[str], Path]:
    def get(name: str) -> Path:
        path = folder / name
        return path if path.exists() else make(path, *FORMATS[name])

    return get


@pytest.fixture(scope="session")
def probed(video: Callable[[str], Path]) -> Callable[[str], Source]:
    cache: dict[str, Source] = {}

    def get(name: str) -> Source:
        if name not in cache:
            cache[name] = probe(video(name))
        return cache[name]

    return get


@pytest.mark.parametrize("name", FORMATS)
def test_every_frame_of_every_format_both_ways(name: str, probed: Callable[[str], Source]) -> None:
    source = probed(name)
    assert (source.width, source.height, source.num_frames) == (WIDTH, HEIGHT, FRAMES)
    assert source.frame_rate == pytest.approx(25, rel=1e-3)
    assert source.timestep(0) == 0.0
    assert source.timestep(50) == pytest.approx(2.0, abs=2e-3)
    forward = dict(read_frames(source, range(FRAMES)))
    assert [number(image) for image in forward.values()] == list(range(FRAMES))
    for indices in (range(FRAMES - 1, -1, -1), range(45, FRAMES, 7), [FRAMES - 1]):
        again = list(read_frames(source, indices))
        assert [index for index, _ in again] == list(indices)
        assert all(np.array_equal(image, forward[index]) for index, image in again)


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_gop.ts", "mpeg4.avi"])
def test_any_subset_in_both_directions(name: str, probed: Callable[[str], Source]) -> None:
    source = probed(name)

    @settings(max_examples=6, deadline=None, derandomize=True)
    @given(st.sets(st.integers(0, FRAMES - 1), min_size=1, max_size=12), st.booleans())
    def check(indices: set[int], descending: bool) -> None:
        wanted = sorted(indices, reverse=descending)
        assert numbers(source, wanted) == wanted

    check()


LONG = 2 * FAR_FRAMES + 100


@pytest.fixture(scope="module")
def long_raw() -> bytes:
    return b"".join(picture(n).tobytes() for n in range(LONG))


@pytest.fixture
def seeks(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Where decoders were started, one after another."""
    begun: list[float | None] = []
    real = process.video_input

    def spy(*, seek: float | None = None) -> object:
        begun.append(seek)
        return real(seek=seek)

    monkeypatch.setattr(process, "video_input", spy)
    return begun


def test_a_far_frame_is_reached_by_a_seek(
    long_raw: bytes, seeks: list[float | None], tmp_path: Path
) -> None:
    source = probe(make(tmp_path / "long.mp4", *X264, "-g", "50", raw=long_raw))
    seeks.clear()
    wanted = [0, 1, 2, FAR_FRAMES + 50, LONG - 1]
    assert numbers(source, wanted) == wanted
    assert seeks[0] is None
    assert len(seeks) == 3
    assert None not in seeks[1:]
    down = range(LONG - 1, LONG - 80, -1)
    assert numbers(source, down) == list(down)


def test_a_file_that_cannot_be_seeked_is_decoded_once(
    long_raw: bytes, seeks: list[float | None], tmp_path: Path
) -> None:
    source = probe(make(tmp_path / "long.h264", *X264, "-g", "50", raw=long_raw))
    assert not source.seekable
    seeks.clear()
    wanted = [0, FAR_FRAMES + 50, LONG - 1]
    assert numbers(source, wanted) == wanted
    assert seeks == [None]


def test_no_indices_no_frames_and_wrong_indices(probed: Callable[[str], Source]) -> None:
    source = probed("h264.mkv")
    assert list(read_frames(source, [])) == []
    for wrong in ([1, 1], [0, 2, 1], [-1], [FRAMES], [3, 2, -1]):
        with pytest.raises(ValueError, match="frame_ind"):
            read_frames(source, wrong)


def test_rotation_is_applied(tmp_path: Path, video: Callable[[str], Path]) -> None:
    rotated = tmp_path / "rotated.mp4"
    ffmpeg("-display_rotation", "90", "-i", video("b_frames.mp4"), "-c", "copy", rotated)
    source = probe(rotated)
    assert (source.width, source.height) == (HEIGHT, WIDTH)
    upright = [np.rot90(image, -1) for _, image in read_frames(source, [5, 90])]
    turned = [np.rot90(image, 1) for _, image in read_frames(source, [5, 90])]
    assert [5, 90] in ([number(image) for image in upright], [number(image) for image in turned])


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    kept = [n for n in range(FRAMES) if n % 10 in (0, 1, 4)]
    drop = ("-vf", "select='eq(mod(n,10),0)+eq(mod(n,10),1)+eq(mod(n,10),4)'")
    path = make(tmp_path / "vfr.mkv", *drop, "-fps_mode", "vfr", *X264, "-g", "250")
    source = probe(path)
    assert numbers(source, range(source.num_frames)) == kept
    times = [source.timestep(index) for index in range(source.num_frames)]
    assert times == pytest.approx([n / 25 for n in kept], abs=1e-3)


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.ts"])
def test_a_cut_without_encoding(name: str, tmp_path: Path, video: Callable[[str], Path]) -> None:
    cut = tmp_path / name
    ffmpeg("-ss", "1.5", "-i", video("long_gop.mp4"), "-c", "copy", cut)
    source = probe(cut)
    shown = numbers(source, range(source.num_frames))
    assert shown == list(range(shown[0], FRAMES))
    if name == "cut.mp4":  # its edit list hides what comes before the cut
        assert shown[0] in (37, 38)
    down = range(source.num_frames - 1, -1, -1)
    assert numbers(source, down) == shown[::-1]


@pytest.mark.parametrize(
    ("name", "options"),
    [("t.mkv", ()), ("t.ts", ()), ("t.mp4", ("-movflags", "+faststart")), ("t.avi", ())],
)
def test_a_truncated_file_has_the_frames_that_are_readable(
    name: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    path = make(tmp_path / name, *X264, "-g", "25", *options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    source = probe(path)
    assert 30 < source.num_frames < 80
    shown = numbers(source, range(source.num_frames))
    # The packet that the cut went through may show old blocks.
    assert shown[:-3] == list(range(source.num_frames - 3))
    assert numbers(source, range(source.num_frames - 1, -1, -1)) == shown[::-1]


def test_a_file_that_starts_in_the_middle(tmp_path: Path, video: Callable[[str], Path]) -> None:
    path = tmp_path / "tail.ts"
    content = video("h264.ts").read_bytes()
    path.write_bytes(content[len(content) // 3 :])
    source = probe(path)
    shown = numbers(source, range(source.num_frames))
    assert shown == list(range(shown[0], FRAMES))
    assert shown[0] % 25 == 0


def test_times_that_run_backwards_are_refused(tmp_path: Path, video: Callable[[str], Path]) -> None:
    path = tmp_path / "joined.ts"
    path.write_bytes(video("h264.ts").read_bytes() * 2)
    with pytest.raises(UserError, match=r"joined\.ts run backwards at frame 100"):
        probe(path)


def test_a_frame_that_is_gone_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "damaged.mkv", "-c:v", "ffv1", "-g", "1")
    source = probe(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40_000] = os.urandom(40_000)
    path.write_bytes(content)
    reader = read_frames(source, range(FRAMES))
    shown: list[int] = []
    with pytest.raises(UserError, match=r"^frame \d+ of damaged\.mkv cannot be decoded"):
        shown.extend(number(image) for _, image in reader)
    assert shown == list(range(len(shown)))


def test_a_change_of_size_is_scaled_to_the_first(tmp_path: Path) -> None:
    parts = []
    for n, scale in enumerate(("128:96", "64:48")):
        parts.append(make(tmp_path / f"{n}.ts", "-vf", f"scale={scale}", *X264, "-g", "25"))
    shift = tmp_path / "shifted.ts"
    ffmpeg("-i", parts[1], "-c", "copy", "-output_ts_offset", "5", shift)
    both = tmp_path / "both.ts"
    both.write_bytes(parts[0].read_bytes() + shift.read_bytes())
    source = probe(both)
    assert (source.width, source.height, source.num_frames) == (WIDTH, HEIGHT, 2 * FRAMES)
    assert numbers(source, range(2 * FRAMES)) == [*range(FRAMES), *range(FRAMES)]


HOSTILE = ["-i", "-y.mp4", "a:b.mp4", "new\nline.mp4", "concat:x|y", "%03d.png", "pipe:0", "é 'q'"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_only_a_name(
    name: str, tmp_path: Path, video: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(video("h264.mkv").read_bytes())
    monkeypatch.chdir(tmp_path)
    source = probe(name)
    assert source.path == tmp_path / name
    assert numbers(source, [70]) == [70]


def test_a_file_address_and_the_identity(video: Callable[[str], Path], tmp_path: Path) -> None:
    copy = tmp_path / "with space.bin"
    copy.write_bytes(video("h264.mkv").read_bytes())
    source = probe(copy.as_uri())
    assert source.path == copy
    assert source.sha256 == probe(video("h264.mkv")).sha256
    assert len(source.sha256) == 64


def refused(file: str | Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        probe(file)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    assert "/tmp" not in text
    assert " @ " not in text


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    refused(
        tmp_path / "none.mp4",
        r"none\.mp4 cannot be read \(No such file or directory\): check the path",
    )
    refused(tmp_path, "is a folder")
    refused("http://example.org/a.mp4", "has to be fetched first")
    refused("s3://bucket/key", "has to be fetched first")
    refused("", "give the path")
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", "not a regular file")


@pytest.mark.parametrize("kind", ["PPM", "JPEG2000"])
def test_an_image_of_another_format_is_refused_as_one(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.mp4"
    Image.fromarray(picture(5)).save(path, kind)
    refused(path, r"^picture\.mp4 is damaged, or no image in a format that masklet reads \(JPEG, ")


def test_what_is_no_video_is_refused(tmp_path: Path, video: Callable[[str], Path]) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(b"")
    refused(path, r"x\.mp4 is empty")
    path.write_text("not a video, but a text " * 100)
    refused(path, "not a video or image in a format")
    path.write_bytes(np.random.default_rng(0).bytes(100_000))
    refused(path, "x.mp4")
    path.write_bytes(video("long_gop.mp4").read_bytes()[:20_000])
    refused(path, "x.mp4")
    for sound in ("sound.m4a", "sound.wav", "sound.mka"):
        ffmpeg("-f", "lavfi", "-i", "sine=d=1", tmp_path / sound)
        refused(tmp_path / sound, "sound")
    cover = tmp_path / "cover.m4a"
    Image.fromarray(picture(5)).save(tmp_path / "c.png")
    inputs = ("-f", "lavfi", "-i", "sine=d=1", "-i", tmp_path / "c.png")
    ffmpeg(
        *inputs, "-map", "0", "-map", "1", "-c:v", "copy", "-disposition:v", "attached_pic", cover
    )
    refused(cover, "holds no video")


def test_playlists_reach_no_other_file(tmp_path: Path, video: Callable[[str], Path]) -> None:
    other = tmp_path / "other.ts"
    other.write_bytes(video("h264.ts").read_bytes())
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{other}\n#EXT-X-ENDLIST\n"
    for name in ("list.m3u8", "list.mp4"):
        (tmp_path / name).write_text(hls)
        refused(tmp_path / name, "not a video or image in a format")
    for name in ("list.ffconcat", "concat.mp4"):
        (tmp_path / name).write_text(f"ffconcat version 1.0\nfile '{other.name}'\n")
        refused(tmp_path / name, "not a video or image in a format")


def test_a_huge_frame_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.y4m"
    path.write_bytes(b"YUV4MPEG2 W20000 H100 F25:1 Ip C420\nFRAME\n" + bytes(20000 * 100 * 3 // 2))
    refused(path, "20000x100 pixels; the limit is 16384")
    path.write_bytes(b"YUV4MPEG2 W16000 H16000 F25:1 Ip C420\nFRAME\n" + bytes(1000))
    refused(path, "no frame of huge.y4m")


def test_a_decoder_without_progress_is_stopped(
    video: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sleeper = video("h264.mkv"), tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nsleep 1000\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(process, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(sleeper))
    before = children()
    refused(path, r"stopped on h264\.mkv")
    assert children() == before


def test_a_decoder_that_reads_on_makes_progress(
    video: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that skips to a late frame says nothing for long, but reads the file."""
    silent: list[float] = []

    def no_word(child: Child, fd: int, event: int, deadline: float) -> bool:
        silent.append(deadline)
        if len(silent) <= 3:
            os.lseek(file.fileno(), len(silent), os.SEEK_SET)
        raise Stalled

    with video("raw.h264").open("rb") as file:
        with Child(["sleep", "1000"], stdin=file) as child, monkeypatch.context() as patch:
            patch.setattr(Child, "_poll", no_word)
            with pytest.raises(Stalled):
                next(child.lines(child.stdout))
        assert len(silent) == 4
        silent.clear()
        with Child(["sleep", "1000"], stdin=file, limit=0) as child:
            monkeypatch.setattr(Child, "_poll", no_word)
            with pytest.raises(Stalled):
                next(child.lines(child.stdout))
        assert len(silent) == 1


def test_how_far_a_decoder_has_read_is_known(video: Callable[[str], Path]) -> None:
    path = video("raw.h264")
    output = process.ffmpeg.output(process.video_input(), "pipe:", f="null")
    with path.open("rb") as file, Child(process.command(output), stdin=file) as child:
        assert child.finish() == 0
        assert file.tell() == path.stat().st_size


def test_much_on_stderr_does_not_block(
    video: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talker = tmp_path / "talker"
    talker.write_text("#!/bin/sh\nyes 'so much to say' | head -c 3000000 >&2\nexit 1\n")
    talker.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(talker))
    refused(video("h264.mkv"), r"\(ffmpeg: so much to say\)")


def children() -> set[int]:
    """Process ids of this process's children, dead but not reaped ones included."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= set(map(int, (task / "children").read_text().split()))
    return found


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_decoders_are_not_told_what_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "topsecret")
    command = [sys.executable, "-I", "-c", "import os; print(sorted(os.environ))"]
    with Child(command, stdin=subprocess.DEVNULL) as child:
        stdout = child._process.stdout
        assert stdout
        told = stdout.read().decode()
    assert "MALLOC_ARENA_MAX" in told
    assert "SECRET" not in told


def test_closing_early_leaves_nothing(probed: Callable[[str], Source]) -> None:
    source = probed("long_gop.mp4")
    before, files, threads = children(), open_files(), threading.active_count()
    for indices in (range(FRAMES), range(FRAMES - 1, -1, -1)):
        reader = read_frames(source, indices)
        assert next(reader)[0] == indices[0]
        reader.close()
        assert children() == before
        assert open_files() == files
        assert threading.active_count() == threads


write = partial(write_video, width=WIDTH, height=HEIGHT, frame_rate=Fraction(30000, 1001))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_text("old")
    write(path, (picture(n) for n in range(60)))
    source = probe(path)
    assert (source.width, source.height, source.num_frames) == (WIDTH, HEIGHT, 60)
    assert source.frame_rate == Fraction(30000, 1001)
    images = dict(read_frames(source, range(60)))
    assert [number(image) for image in images.values()] == list(range(60))
    assert np.abs(images[9].astype(int) - picture(9)).mean() < 12
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_frames_are_the_same_video_whatever_was_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    height, width = 240, 426
    coarse = np.random.default_rng(0).integers(0, 255, (32, 62, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(coarse).resize((width + 72, height + 16)))
    frames = [scene[:height, 3 * n : 3 * n + width] for n in range(16)]
    videos = set()
    for filling in ("1", "165"):  # glibc fills with this what it hands out
        monkeypatch.setenv("MALLOC_PERTURB_", filling)
        path = tmp_path / f"{filling}.mp4"
        write_video(path, frames, width=width, height=height, frame_rate=Fraction(30))
        videos.add(path.read_bytes())
    assert len(videos) == 1


def umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


@pytest.mark.parametrize("size", [(127, 95), (1, 1), (128, 95), (33, 96)])
def test_odd_sizes_repeat_the_last_row_and_column(size: tuple[int, int], tmp_path: Path) -> None:
    width, height = size
    frame = np.full((height, width, 3), 30, np.uint8)
    frame[-1, :] = 220
    frame[:, -1] = 220
    path = tmp_path / "odd.mp4"
    write_video(path, [frame] * 3, width=width, height=height, frame_rate=Fraction(25))
    source = probe(path)
    assert (source.width, source.height) == (width + width % 2, height + height % 2)
    ((_, image),) = read_frames(source, [2])
    assert image[-1].mean() > 190
    assert image[:, -1].mean() > 190


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    before = children()
    path = tmp_path / "out.mp4"
    path.write_text("old")

    def broken() -> Iterator[NDArray[np.uint8]]:
        yield picture(0)
        raise RuntimeError("from the caller")

    with pytest.raises(RuntimeError, match="from the caller"):
        write(path, broken())
    floats: Any = picture(0).astype(np.float32)
    for wrong in ([], [picture(0)[:, :64]], [floats]):
        with pytest.raises(ValueError, match="frame"):
            write(path, wrong)
    with pytest.raises(ValueError, match="frames per second"):
        write(path, [picture(0)], frame_rate=Fraction(0))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    assert children() == before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out\.mp4: cannot be written .*check the folder"):
        write(tmp_path / "none" / "out.mp4", (picture(n) for n in range(FRAMES)))
    with pytest.raises(UserError, match=f"{tmp_path.name}: cannot be written"):
        write(tmp_path, [picture(0)])
    assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.parent.glob(".*.mp4")) == []
