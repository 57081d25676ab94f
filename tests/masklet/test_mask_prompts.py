"""Zips of masks as people make them, and as someone hostile would."""

import io
import os
import stat
import struct
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from masklet import mask_prompts
from masklet.errors import UserError
from masklet.mask_prompts import MaskPrompts

WIDTH, HEIGHT = 64, 48
SHAPE = (HEIGHT, WIDTH)
MASK = np.zeros(SHAPE, bool)
MASK[5:20, 7:50] = True
MASK[30, 0] = True


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def gray(mask: NDArray[Any] = MASK) -> bytes:
    return png(Image.fromarray(mask.astype(np.uint8) * 255))


def npy(values: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def npy_header(text: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    header = text.encode("latin1")
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header + data


def zip_of(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def read_all(path: Path, *, read: bool = True) -> None:
    with MaskPrompts(path, WIDTH, HEIGHT) as masks:
        assert read, "the names alone should have been refused"
        for key in masks:
            assert masks.read(*key).shape == SHAPE


def refusal(path: Path, *, read: bool = True) -> str:
    """The one line that says what is wrong, after opening and (by default) reading every mask."""
    with pytest.raises(UserError) as raised:
        read_all(path, read=read)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{path}")
    assert len(message) < len(str(path)) + 400
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "masks.zip"


def read_one(path: Path, name: str, content: bytes) -> NDArray[np.bool_]:
    with MaskPrompts(zip_of(path, {name: content}), WIDTH, HEIGHT) as masks:
        return masks.read(*masks.keys[0])


# What is read

PALETTE = Image.fromarray(MASK.astype(np.uint8) * 3, "L").convert("P")
PALETTE.putdata((MASK * 3).ravel().tolist())
PALETTE.putpalette([0, 0, 0, 9, 9, 9, 0, 0, 0, 0, 0, 0])
RGBA = np.zeros((*SHAPE, 4), np.uint8)
RGBA[MASK, 2] = 1
RGBA[..., 3] = 255


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(MASK.astype(np.uint8) * 255),
        Image.fromarray(MASK.astype(np.uint8)),
        Image.fromarray(MASK),
        PALETTE,  # an index that is not 0 counts, whatever its color, as in DAVIS
        Image.fromarray(MASK.astype(np.uint16)),
        Image.fromarray(RGBA),
        Image.fromarray(RGBA[..., :3]),
        Image.fromarray(np.dstack([np.full((*SHAPE, 3), 255, np.uint8), MASK * np.uint8(255)])),
    ],
    ids=["L", "L of 0 and 1", "1", "P", "I;16", "RGBA", "RGB", "white on a transparent ground"],
)
def test_a_png_of_any_mode_is_true_where_it_is_not_zero(path: Path, image: Image.Image) -> None:
    mask = read_one(path, "0_1.png", png(image))
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, MASK)


@pytest.mark.parametrize(
    "values",
    [
        MASK,
        np.asfortranarray(MASK),
        MASK.astype(np.uint8) * 7,
        np.asfortranarray(MASK.astype(np.uint8)),
        MASK.astype(np.int64) * -1,
        MASK.astype(">i4"),
        MASK.astype(np.float32) * 0.25,
        np.where(MASK, np.nan, 0.0),
        MASK.astype(np.float16),
    ],
    ids=lambda values: f"{values.dtype} {'F' if values.flags.f_contiguous else 'C'}",
)
def test_an_npy_of_numbers_is_true_where_it_is_not_zero(path: Path, values: NDArray[Any]) -> None:
    mask = read_one(path, "0_1.npy", npy(values))
    assert (mask.dtype, mask.shape) == (np.bool_, SHAPE)
    np.testing.assert_array_equal(mask, MASK)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_compressed_zips(path: Path, compression: int) -> None:
    zip_of(path, {"0_1.npy": npy(MASK)}, compression)
    with MaskPrompts(path, WIDTH, HEIGHT) as masks:
        np.testing.assert_array_equal(masks.read(0, 1), MASK)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_unusual_packing_is_refused(path: Path, compression: int) -> None:
    zip_of(path, {"0_1.npy": npy(MASK)}, compression)
    with pytest.raises(UserError, match=r"'0_1.npy' is packed in an unusual way"):
        MaskPrompts(path, WIDTH, HEIGHT)


def test_a_pipe_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(UserError, match="is not a file"):
        MaskPrompts(path, WIDTH, HEIGHT)


def test_names_split_at_the_first_underscore_and_digits_are_ints(path: Path) -> None:
    names = ["3_a_b.png", "12_7.png", "3_007x.npy", "0_a.b-c.png", "00_0.npy", "2_x.png.png"]
    zip_of(path, {name: gray() if name.endswith("png") else npy(MASK) for name in names})
    with MaskPrompts(path, WIDTH, HEIGHT) as masks:
        assert masks.keys == [
            (0, 0),
            (0, "a.b-c"),
            (2, "x.png"),
            (3, "007x"),
            (3, "a_b"),
            (12, 7),
        ]
        for key in masks:
            np.testing.assert_array_equal(masks.read(*key), MASK)


def test_what_macos_leaves_in_a_zip_does_not_count(path: Path) -> None:
    zip_of(
        path, {"__MACOSX/": b"", "__MACOSX/._0_1.png": b"x", ".DS_Store": b"x", "0_1.png": gray()}
    )
    with MaskPrompts(path, WIDTH, HEIGHT) as masks:
        assert masks.keys == [(0, 1)]


# Names

BAD_NAMES = [
    "../0_1.png",
    "/0_1.png",
    "C:\\0_1.png",
    "masks/0_1.png",
    "0_1/",
    "0_.png",
    "_1.png",
    "0.png",
    "0_.x.png",
    "0_-1.png",
    "-1_1.png",
    "0_1.PNG",
    "0_1.jpg",
    "0_1.npz",
    "0_a b.png",
    "0_é.png",
    "٣_1.png",
    "0_٣.png",
    "0_1.png\n",
    "0_\n1.png",
    f"0_{'a' * 65}.png",
    "1234567890_1.png",
    "[red]0_1.png",
    "._0_1.png",
    "x" * 5000,
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name)[:20])
def test_an_entry_of_another_name(path: Path, name: str) -> None:
    zip_of(path, {"0_2.png": gray(), name: gray()})
    message = refusal(path, read=False)
    assert repr(name[:20])[:-1] in message
    assert "{frame_index}_{object_id}.png" in message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0_1.png", "0_01.png"),
        ("0_1.png", "00_1.png"),
        ("0_1.png", "0_1.npy"),
        ("0_a.png", "0_a.npy"),
    ],
)
def test_two_masks_of_one_frame_and_object(path: Path, one: str, other: str) -> None:
    zip_of(path, {one: gray(), other: npy(MASK)})
    message = refusal(path, read=False)
    assert repr(one) in message
    assert repr(other) in message
    assert "same frame and object" in message


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0_1.png", gray())
        archive.writestr("0_1.png", gray(~MASK))
    assert "same frame and object" in refusal(path, read=False)


# Zips that are none


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", gray(), b"\0" * 100_000, b"PK\x05\x06"])
def test_a_file_that_is_no_zip(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "is not a zip of masks" in refusal(path, read=False)


def test_an_empty_zip(path: Path) -> None:
    assert "holds no mask" in refusal(zip_of(path, {}), read=False)


def test_a_zip_that_is_missing_or_a_directory(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.zip", read=False)
    assert "is not a file" in refusal(tmp_path, read=False)
    assert "is not a zip of masks" in refusal(tmp_path / "a\0b.zip", read=False)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.98])
def test_a_truncated_zip(path: Path, keep: float) -> None:
    content = zip_of(path, {"0_1.png": gray(), "1_1.png": gray()}).read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert "is not a zip of masks" in refusal(path, read=False)


def test_too_many_entries_or_pixels(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zip_of(path, {f"{frame}_1.png": b"" for frame in range(5)})
    monkeypatch.setattr(mask_prompts, "MAX_BYTES", 4 * WIDTH * HEIGHT)
    assert "5 masks of 64x48 pixels" in refusal(path, read=False)
    monkeypatch.setattr(mask_prompts, "MAX_MEMBERS", 4)
    assert "5 entries; 4 are allowed" in refusal(path, read=False)


def test_an_encrypted_entry(path: Path) -> None:
    zip_of(path, {"0_1.png": gray()})
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    path.write_bytes(content)
    assert "'0_1.png' is encrypted" in refusal(path, read=False)


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "secret.png"
    target.write_bytes(gray())
    link = zipfile.ZipInfo("0_1.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, str(target))
    assert "'0_1.png' is not a readable PNG" in refusal(path)


# Masks that are none


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("0_1.png", gray(MASK.T), "shape (64, 48)"),
        ("0_1.npy", npy(MASK.T), "shape (64, 48)"),
        ("0_1.npy", npy(MASK[None]), "shape (1, 48, 64)"),
        ("0_1.npy", npy(MASK.ravel()), "shape (3072,)"),
        ("0_1.npy", npy(np.array(True)), "shape ()"),
        ("0_1.png", gray()[:-40], "not a readable PNG"),
        ("0_1.png", gray()[:20], "not a readable PNG"),
        ("0_1.png", b"", "not a readable PNG"),
        ("0_1.png", npy(MASK), "not a readable PNG"),
        ("0_1.png", b"GIF89a" + bytes(100), "not a readable PNG"),
        ("0_1.png", huge_png(5000), "shape (5000, 5000)"),
        # refused by Pillow, or by us where something has lifted Pillow's limit
        ("0_1.png", huge_png(60_000), ""),
        ("0_1.npy", npy(MASK)[:-1], "not a readable .npy"),
        ("0_1.npy", npy(MASK)[:20], "not a readable .npy"),
        ("0_1.npy", b"", "not a readable .npy"),
        ("0_1.npy", gray(), "not a readable .npy"),
        ("0_1.npy", npy(np.array([["a"]])), "holds <U1, not booleans or numbers"),
        ("0_1.npy", npy(MASK.astype(complex)), "holds complex128"),
        ("0_1.npy", npy(np.zeros(SHAPE, "M8[s]")), "holds datetime64"),
        ("0_1.npy", npy(np.zeros(SHAPE, [("a", "?")])), "not booleans or numbers"),
        (
            "0_1.npy",
            npy_header("{'descr': '|b1', 'fortran_order': False, 'shape': (10**9,)}" + " " * 9),
            "not a readable .npy",
        ),
        (
            "0_1.npy",
            npy_header(f"{{'descr': '|b1', 'fortran_order': False, 'shape': ({2**62}, 9)}}\n"),
            "has the shape",
        ),
        (
            "0_1.npy",
            npy_header(f"{{'descr': '|b1', 'fortran_order': False, 'shape': {(9,) * 900}}}\n"),
            "has the shape",
        ),
        ("0_1.npy", npy_header(" " * 60_000), "not a readable .npy"),
        ("0_1.npy", npy_header("{}", version=(2, 0))[:8] + b"\xff" * 4, "not a readable .npy"),
        ("0_1.npy", npy_header("(" * 3000), "not a readable .npy"),
        ("0_1.npy", npy_header("{'descr': ("), "not a readable .npy"),
        ("0_1.npy", npy_header("[1, 2"), "not a readable .npy"),
        ("0_1.npy", b"\x93NUMPY\x09\x00" + bytes(50), "not a readable .npy"),
    ],
)
def test_content_that_is_no_mask_of_this_size(
    path: Path, name: str, content: bytes, words: str
) -> None:
    message = refusal(zip_of(path, {name: content}))
    assert message.startswith(f"{path}: {name!r}")
    assert words in message


def test_a_pickle_is_never_loaded(path: Path, tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
            return Path.touch, (tmp_path / "touched",)

    objects = np.full(SHAPE, None, object)
    objects[0, 0] = Touch()
    message = refusal(zip_of(path, {"0_1.npy": npy(objects)}))
    assert "holds object, not booleans or numbers" in message
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["0_1.png", "0_1.npy"])
def test_an_entry_that_inflates_without_end_is_not_inflated(path: Path, name: str) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w", force_zip64=True) as file,
    ):
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    try:
        message = refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "more than a 64x48 mask can need" in message
    assert peak < 16 * 2**20


@pytest.mark.parametrize("claimed", [0, 10, 2**31])
def test_a_directory_that_lies_about_sizes(path: Path, claimed: int) -> None:
    zip_of(path, {"0_1.npy": npy(MASK)}, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = struct.pack("<I", claimed)
    path.write_bytes(content)
    if claimed < 4000:
        assert "'0_1.npy'" in refusal(path)
    else:
        read_all(path)  # what is there is what counts


def test_a_damaged_entry_says_so(path: Path) -> None:
    zip_of(path, {"0_1.npy": npy(MASK)})
    content = bytearray(path.read_bytes())
    content[300] ^= 0xFF
    path.write_bytes(content)
    message = refusal(path)
    assert "'0_1.npy' cannot be unpacked: Bad CRC-32" in message


# Whatever the bytes, a mask or one line


def check_one_line_or_masks(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks.zip"
        path.write_bytes(content)
        message = str(path)
        try:
            read_all(path)
        except UserError as error:
            message = str(error)
    assert len(message.splitlines()) == 1
    assert message.startswith(str(path))


def make_zip(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


WHOLE = make_zip({"0_1.png": gray(), "1_dog.npy": npy(MASK)}, zipfile.ZIP_DEFLATED)
CONTENTS = {"png": gray(), "npy": npy(MASK)}
# the fields of a zip, of a PNG's header and of an npy's header are all near an end
PLACE = st.integers(0, 200) | st.integers(-250, -1)


@settings(deadline=None)
@given(st.lists(st.tuples(PLACE, st.binary(min_size=1, max_size=4)), min_size=1, max_size=4))
def test_any_damage_to_a_zip(changes: list[tuple[int, bytes]]) -> None:
    check_one_line_or_masks(damaged(WHOLE, changes))


@settings(deadline=None)
@given(
    st.sampled_from(["png", "npy"]),
    st.lists(st.tuples(PLACE, st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
)
def test_any_damage_to_a_mask(kind: str, changes: list[tuple[int, bytes]]) -> None:
    check_one_line_or_masks(make_zip({f"0_1.{kind}": damaged(CONTENTS[kind], changes)}))


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_npy_header(text: str) -> None:
    header = text.encode("utf-8")
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(WIDTH * HEIGHT)
    check_one_line_or_masks(make_zip({"0_1.npy": content}))


@settings(deadline=None)
@given(st.text(max_size=70), st.text("0123456789_.ab/\\\n٣pngnpy", max_size=70))
def test_any_name(one: str, other: str) -> None:
    # zipfile cannot write a name that is empty, or has a lone surrogate or a NUL
    safe = one.encode("utf-8", "ignore").decode().replace("\0", "") or "0_1.png"
    names = [safe, f"{other}.png"]
    check_one_line_or_masks(make_zip(dict.fromkeys(names, gray())))


def damaged(content: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    changed = bytearray(content)
    for place, new in changes:
        at = place % len(changed)
        changed[at : at + len(new)] = new
    return bytes(changed)
