"""What docs/hostile.md says: every attempt of its table, through the command line.

Each ends with exit code 2 and one line, and writes nothing. The parsers have tests of their own
with more cases; these show that nothing between the command and a parser undoes what it does.
"""

import io
import json
import os
import random
import re
import stat
import struct
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from masklet import pipeline
from masklet.cli import main
from masklet.dataset import describe, read_dataset
from masklet.errors import UserError
from masklet.manifest import Manifest
from masklet.media import probe, read_frames, write_video
from masklet.run import open_manifest

WIDTH, HEIGHT = 64, 48
CLICK: dict[str, Any] = {"frame_index": 0, "object_id": 1, "points": [[5, 6]], "labels": [1]}
DOCS = Path(__file__).parents[2] / "docs" / "hostile.md"

Refuse = Callable[..., str]
Build = Callable[[Path], list[Any]]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = (np.full((HEIGHT, WIDTH, 3), 20 * number, np.uint8) for number in range(5))
    write_video(path, frames, width=WIDTH, height=HEIGHT, frame_rate=Fraction(10))
    return path


@pytest.fixture
def refuse(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Refuse:
    """The line of `masklet segment … --out out`, which must leave no trace and load no model."""
    monkeypatch.chdir(tmp_path)

    def no_model(*_: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(pipeline, "load_model", no_model)

    def call(*arguments: Any) -> str:
        before = sorted(tmp_path.rglob("*"))
        command = ["masklet", "segment", "--out", "out", "--model-type", "nano", *arguments]
        monkeypatch.setattr(sys, "argv", [str(one) for one in command])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        assert (stopped.value.code, printed.out) == (2, "")
        assert sorted(tmp_path.rglob("*")) == before
        [line] = printed.err.splitlines()
        assert len(line) < 1000
        assert line.isprintable()
        return line

    return call


def prompts(*said: Any) -> Build:
    def build(folder: Path) -> list[Any]:
        (folder / "p.json").write_text(json.dumps(said))
        return ["clip.mp4", "--prompts", "p.json"]

    return build


def prompt_file(content: str | bytes, name: str = "p.json") -> Build:
    def build(folder: Path) -> list[Any]:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)
        return ["clip.mp4", "--prompts", name]

    return build


def huge_file(folder: Path) -> list[Any]:
    (folder / "p.json").touch()
    os.truncate(folder / "p.json", 100 * 2**20)
    return ["clip.mp4", "--prompts", "p.json"]


Entry = tuple[str | zipfile.ZipInfo, bytes]


def zipped(
    *entries: Entry, encrypted: bool = False, compression: int = zipfile.ZIP_DEFLATED
) -> bytes:
    stream = io.BytesIO()
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(stream, "w", compression) as archive,
    ):
        warnings.simplefilter("ignore")  # of two entries with one name
        for name, content in entries:
            archive.writestr(name, content)
    changed = bytearray(stream.getvalue())
    if encrypted:
        for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            changed[changed.index(signature) + flags] |= 1
    return bytes(changed)


def masks(*entries: Entry, **options: Any) -> Build:
    def build(folder: Path) -> list[Any]:
        (folder / "m.zip").write_bytes(zipped(*entries, **options))
        return ["clip.mp4", "--mask-prompts", "m.zip"]

    return build


def frames(*entries: Entry, encrypted: bool = False) -> Build:
    """A zip of images as the video."""
    return media(zipped(*entries, encrypted=encrypted), "x.zip")


def media(content: bytes, name: str = "x.mp4") -> Build:
    def build(folder: Path) -> list[Any]:
        (folder / "p.json").write_text(json.dumps([CLICK]))
        (folder / name).write_bytes(content)
        (folder / "other.mp4").write_bytes((folder / "clip.mp4").read_bytes())
        return [name, "--prompts", "p.json"]

    return build


def png(width: int = WIDTH, height: int = HEIGHT) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (width, height), 255).save(stream, "PNG")
    return stream.getvalue()


def png_that_claims(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def npy(values: Any, *, pickled: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=pickled)
    return stream.getvalue()


def npy_with_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(9)


def link(target: str) -> Entry:
    entry = zipfile.ZipInfo("0_1.png")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry, target.encode()


def identified(object_id: Any) -> Build:
    return prompts({**CLICK, "object_id": object_id})


SHAPE = (HEIGHT, WIDTH)
HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n%s\n#EXT-X-ENDLIST\n"

ATTEMPTS: dict[str, Build] = {
    # mask prompts
    "a zip bomb": masks(("0_1.png", bytes(16 * 2**20))),
    "an entry `../0_1.png`": masks(("../0_1.png", png())),
    "an entry `/etc/0_1.png`": masks(("/etc/0_1.png", png())),
    "a symbolic link": masks(link("/etc/hostname")),
    "two entries of one name": masks(("0_1.png", png()), ("0_1.png", png())),
    "an encrypted zip": masks(("0_1.png", png()), encrypted=True),
    "a zip bomb of bzip2": masks(("0_1.png", bytes(2**24)), compression=zipfile.ZIP_BZIP2),
    "a `.npy` with a pickle": masks(("0_1.npy", npy(np.full(SHAPE, None, object), pickled=True))),
    "a `.npy` header of 60,000 characters": masks(("0_1.npy", npy_with_header(" " * 60_000))),
    "a `.npy` that claims 2⁶² rows": masks(
        (
            "0_1.npy",
            npy_with_header(f"{{'descr': '|b1', 'fortran_order': False, 'shape': ({2**62}, 9)}}\n"),
        )
    ),
    "a mask of 60,000 x 60,000": masks(("0_1.png", png_that_claims(60_000))),
    "a mask of another size": masks(("0_1.png", png(9, 9))),
    "a mask of complex numbers": masks(("0_1.npy", npy(np.zeros(SHAPE, complex)))),
    "a mask on frame 99 of 5": masks(("99_1.png", png())),
    # prompts
    "JSON of 100 MB": huge_file,
    "JSON of a million wrong prompts": prompt_file(f"[{'1,' * 999_999}1]"),
    "JSON of a million keys": prompt_file(
        "[{" + ",".join(f'"{number}":1' for number in range(10**6)) + "}]"
    ),
    "JSON nested 10,000 deep": prompt_file("[" * 10_000 + "]" * 10_000),
    "YAML nested 10,000 deep": prompt_file("[" * 10_000 + "]" * 10_000, "p.yaml"),
    "YAML aliases that grow without end": prompt_file("- &a [1]\n- *a", "p.yaml"),
    "YAML that makes Python objects": prompt_file("- !!python/object/apply:os.abort []", "p.yaml"),
    "a prompt at NaN": prompt_file(
        '[{"frame_index": 0, "object_id": 1, "points": [[NaN, 1]], "labels": [1]}]'
    ),
    "a prompt at infinity": prompt_file(
        '[{"frame_index": 0, "object_id": 1, "box": [0, 0, Infinity, 9]}]'
    ),
    "a frame index of -1": prompts({**CLICK, "frame_index": -1}),
    "a frame index of 10⁹": prompts({**CLICK, "frame_index": 10**9}),
    "a frame index of 5,000 digits": prompt_file(f"[{'9' * 5000}]"),
    "an object id with a slash": identified("../../etc/passwd"),
    "an object id of dots": identified(".."),
    "an object id with a newline": identified("a\nb"),
    "an object id with control characters": identified("\x1b[2J\x9b"),
    "an object id that is not ASCII": identified("größe"),
    "an object id of 500 characters": identified("x" * 500),
    # media
    "a playlist of other files": media(HLS % b"other.mp4"),
    "a playlist of addresses": media(HLS % b"http://127.0.0.1:1/x.ts"),
    "a concat file": media(b"ffconcat version 1.0\nfile 'other.mp4'\n"),
    "a description of a stream (SDP)": media(
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"
    ),
    "a picture of 60,000 x 60,000": media(png_that_claims(60_000)),
    "a video of 20,000 x 100": media(
        b"YUV4MPEG2 W20000 H100 F25:1 Ip C420\nFRAME\n" + bytes(3_000_000)
    ),
    "a zip of images that is a bomb": frames(("1.png", bytes(32 * 2**20))),
    "in a zip of images, an entry `../1.png`": frames(("../1.png", png())),
    "in a zip of images, a symbolic link": frames(("0.png", png()), link("/etc/hostname")),
    "in a zip of images, two entries of one name": frames(("1.png", png()), ("1.png", png())),
    "a zip of images that is encrypted": frames(("1.png", png()), encrypted=True),
    "in a zip of images, one of 60,000 x 60,000": frames(("1.png", png_that_claims(60_000))),
    "in a zip of images, a zip": frames(("1.zip", zipped(("1.png", png())))),
    "a file named `-i` that is no video": media(b"text " * 99, "./-i"),
    "a file name with a newline": media(b"text " * 99, "a\nb.mp4"),
    "a private address": lambda _: ["http://169.254.169.254/latest/meta-data"],
    "this machine, oddly spelled": lambda _: ["http://0x7f.1/clip.mp4"],
    "an address with a password": lambda _: ["http://user:secret@127.0.0.1/clip.mp4?key=secret"],
    "an address of a scheme that is not allowed": lambda _: ["ftp://example.org/clip.mp4"],
    "a chained address": lambda _: ["zip::http://example.org/clip.mp4"],
    "an address of ffmpeg's, `concat:…`": lambda _: ["concat:other.mp4|x"],
    "an address of ffmpeg's, `subfile,…`": lambda _: ["subfile,,start,0,end,9,,:x"],
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_an_attempt(attempt: str, refuse: Refuse, tmp_path: Path, clip: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    assert refuse(*ATTEMPTS[attempt](tmp_path)) == f"masklet: {answers()[attempt]}"


def test_the_table_in_the_docs_has_every_attempt() -> None:
    assert list(answers()) == list(ATTEMPTS)


def answers() -> dict[str, str]:
    """By attempt, what the docs say that the user is told."""
    table = DOCS.read_text(encoding="utf-8").partition("| attempt | answer |\n|---|---|\n")[2]
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", table, re.MULTILINE)
    return {attempt: answer.replace("\\|", "|") for attempt, answer in rows}


# Whatever the bytes, something of the right kind or one line


def damaged(content: bytes, seed: int) -> bytes:
    """A few bytes overwritten, and every other time the end cut off."""
    chance, hurt = random.Random(seed), bytearray(content)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(chance.choice((min(200, len(hurt)), len(hurt))))
        hurt[at : at + 4] = chance.randbytes(chance.randrange(1, 5))
    return bytes(hurt[: chance.randrange(1, len(hurt)) if seed % 2 else len(hurt)])


def one_line(error: UserError) -> None:
    assert len(str(error).splitlines()) == 1


@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32))
def test_any_damage_to_a_video(clip: Path, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(damaged(clip.read_bytes(), seed))
        try:
            source = probe(path)
            for _, frame in read_frames(source, range(source.num_frames)):
                assert frame.shape == (source.height, source.width, 3)
        except UserError as error:
            one_line(error)
        assert list(Path(folder).iterdir()) == [path]


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"]), st.integers(0, 2**32))
def test_any_damage_to_an_image(kind: str, seed: int) -> None:
    stream = io.BytesIO()
    Image.effect_noise((WIDTH, HEIGHT), 99).save(stream, kind)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(damaged(stream.getvalue(), seed))
        try:
            source = probe(path)
            [(_, frame)] = read_frames(source, [0])
            assert frame.shape == (source.height, source.width, 3)
        except UserError as error:
            one_line(error)


DATASETS = {
    ".yaml": b"items:\n- item_id: a\n  file: a.mp4\n  prompts: a.json\n",
    ".json": b'{"items": [{"item_id": "a", "file": "a.mp4", "prompts": []}]}',
    ".jsonl": b'{"item_id": "a", "file": "a.mp4", "prompts": "p.json"}\n' * 3,
    ".csv": b"item_id,file,prompts\na,a.mp4,p.json\nb,b.mp4,p.json\n",
}


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(DATASETS)), st.integers(0, 2**32) | st.binary(max_size=200))
def test_any_dataset(suffix: str, damage: int | bytes) -> None:
    content = damage if isinstance(damage, bytes) else damaged(DATASETS[suffix], damage)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"d{suffix}"
        path.write_bytes(content)
        try:
            problems = describe(read_dataset(path).problems)
        except UserError as error:
            one_line(error)
        else:
            assert all(len(problem.splitlines()) == 1 for problem in problems)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32))
def test_any_damage_to_a_manifest(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.parquet"
        manifest = Manifest(Path(folder), "run")
        manifest.remember(manifest.identify("source", DOCS))
        assert path.exists()
        path.write_bytes(damaged(path.read_bytes(), seed))
        try:
            open_manifest(Path(folder)).rows()
        except UserError as error:
            one_line(error)
