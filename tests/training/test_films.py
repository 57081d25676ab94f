"""What moves by itself: the games' files are read, posed, drawn and put into the world."""

import io
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2")
pytest.importorskip("numba")

from training.actors import (
    Archive,
    Posed,
    choose,
    dyed,
    matrices,
    posed,
    read_animation,
    read_mesh,
)
from training.assets import CUTOUT_SIZE, PHOTO_HEIGHT, PHOTO_WIDTH, Bank
from training.cars import driven, read_car
from training.films import PHASES, SIZE, Subject, film, grounds, save, subjects, whole
from training.people import Models, acted, read_model, read_tags
from training.raster import triangles
from training.sprites import Film
from training.world import cast, render

CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
# two triangles a side
SIDES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
FACES = np.array([t for a, b, c, d in SIDES for t in ((a, b, c), (a, c, d))], np.uint16)
NO_TURN = (0.0, 0.0, 0.0, 1.0)


def packed(magic: bytes, version: int, body: bytes) -> bytes:
    return magic + struct.pack("<II", version, len(body)) + body


def pmd(points: dict[str, tuple[float, ...]], version: int = 4, bone: int = 0) -> bytes:
    """A cube that hangs on one bone, at rest above the origin, with points to attach things to."""
    layers = struct.pack("<I", 1) if version >= 4 else b""
    body = struct.pack("<I", len(CUBE)) + layers
    for corner in CUBE:
        uv = (corner[:2] + 1) / 2
        body += np.array([*corner, *corner, *uv], "<f4").tobytes()
        body += bytes([bone, 255, 255, 255]) + np.array([1, 0, 0, 0], "<f4").tobytes()
    body += struct.pack("<I", len(FACES)) + FACES.astype("<u2").tobytes()
    body += struct.pack("<I", 1) + np.array([0, 1, 0, *NO_TURN], "<f4").tobytes()
    body += struct.pack("<I", len(points))
    for name, at in points.items():
        body += struct.pack("<I", len(name)) + name.encode()
        body += np.array([*at, *NO_TURN], "<f4").tobytes() + bytes([0])
    return packed(b"PSMD", version, body)


def psa(steps: list[tuple[float, float, float]]) -> bytes:
    """One bone that is at each of `steps` in turn."""
    body = struct.pack("<I", 0) + struct.pack("<f", 33) + struct.pack("<II", 1, len(steps))
    for at in steps:
        body += np.array([*at, *NO_TURN], "<f4").tobytes()
    return packed(b"PSSA", 1, body)


def dds(colour: tuple[int, int, int], side: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (side, side), (*colour, 255)).save(out, "dds")
    return out.getvalue()


ACTOR = """<actor version="1"><group><variant name="a">
<mesh>cube.dae</mesh><textures><texture file="red.png" name="baseTex"/></textures>
<animations>
<animation file="walk.dae" name="Walk"/><animation file="gone.dae" name="Run"/>
</animations>
<props>
<prop actor="hat.xml" attachpoint="head"/><prop actor="particle/dust.xml" attachpoint="root"/>
</props>
</variant></group><material>{material}</material></actor>"""
HAT = """<actor version="1"><group><variant file="hat.xml"/></group></actor>"""
HAT_LOOKS = """<variant><mesh>cube.dae</mesh>
<textures><texture file="red.png" name="baseTex"/></textures></variant>"""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "public.zip"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("art/actors/fauna/ox.xml", ACTOR.format(material="no_trans.xml"))
        out.writestr("art/actors/units/man.xml", ACTOR.format(material="player_trans.xml"))
        out.writestr("art/actors/units/ghost.xml", "<actor><group/></actor>")
        broken = ACTOR.format(material="no_trans.xml").replace("cube.dae", "lost.dae")
        out.writestr("art/actors/units/broken.xml", broken)
        out.writestr("art/actors/hat.xml", HAT)
        out.writestr("art/variants/hat.xml", HAT_LOOKS)
        out.writestr("art/actors/particle/dust.xml", HAT)
        out.writestr("art/meshes/cube.dae.cached.pmd", pmd({"head": (0, 1, 0)}))
        walk = psa([(0, 1, 0), (5, 1, 0)])
        out.writestr("art/animation/walk.dae.cached.psa", walk)
        out.writestr("art/textures/skins/red.png.cached.dds", dds((200, 0, 0)))
        ground = io.BytesIO()
        Image.fromarray(noise).save(ground, "dds")
        out.writestr("art/textures/terrain/grass.png.cached.dds", ground.getvalue())
        out.writestr("art/textures/terrain/grass_norm.png.cached.dds", ground.getvalue())
        out.writestr("art/textures/terrain/flat.png.cached.dds", dds((9, 9, 9)))
    return path


@pytest.fixture
def car(tmp_path: Path) -> Path:
    folder = tmp_path / "cars" / "coupe"
    folder.mkdir(parents=True)
    corners = CUBE * [2.2, 0.5, 0.8] + [0, 0.8, 0]
    lines = ["AC3Db", "OBJECT world", "kids 1", "OBJECT poly", 'texture "coupe.png" base']
    lines += [f"numvert {len(corners)}"]
    lines += [" ".join(map(str, [*at, *normal])) for at, normal in zip(corners, CUBE, strict=True)]
    for a, b, c, d in SIDES:
        lines += ["SURF 0x14", "mat 0", "refs 4", *(f"{i} .5 .5" for i in (a, b, d, c))]
    (folder / "coupe.acc").write_text("\n".join(lines))
    Image.new("RGB", (8, 8), (0, 0, 220)).save(folder / "coupe.png")
    (folder / "coupe.xml").write_text(
        '<section name="Front Axle"><attnum name="xpos" unit="m" val="1.5"/></section>'
        '<section name="Rear Left Wheel"><attnum name="ypos" val="0.9"/></section>'
    )
    return folder


WOMAN = "models/civilians/female/body01.md2"


def md2(skin: str, steps: int = 1) -> bytes:
    """A cube, y from 0 to 2, that is one further along x in every frame; its skin is 8 wide."""
    frames = b""
    for i in range(steps):
        frames += np.array([2, 2, 2, i - 1, 0, -1], "<f4").tobytes() + b"walk".ljust(16, b"\0")
        for corner in CUBE:
            frames += bytes([*((corner + 1) / 2).astype(np.uint8), 0])
    corners = np.array([[0, 0], [4, 0], [4, 8]], "<i2").tobytes()
    triangles = b"".join(np.array([*face, 0, 1, 2], "<u2").tobytes() for face in FACES)
    parts = [f".{skin}".encode().ljust(64, b"\0"), corners, triangles, frames]
    at = np.cumsum([68, *map(len, parts)])
    counts = [1, len(CUBE), 3, len(FACES), 0, steps]
    header = [8, 8, 8, len(frames) // steps, *counts, *at[:4], at[4], at[4]]
    return b"IDP2" + np.array(header, "<i4").tobytes() + b"".join(parts)


def tag(origins: list[tuple[float, float, float]]) -> bytes:
    """A head that is at each of `origins` in turn, and looks along y."""
    names = b"tag_head".ljust(64, b"\0")
    axes = [np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1], at], "<f4") for at in origins]
    header = np.array([1, 1, len(origins), 32, 32 + len(names), 0, 0], "<i4").tobytes()
    return b"JDP2" + header + names + b"".join(a.tobytes() for a in axes)


def picture(colour: tuple[int, int, int], kind: str = "png") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, kind)
    return out.getvalue()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "0models.pk3"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr(WOMAN, md2("body01a", 9))
        out.writestr(WOMAN.replace(".md2", ".tag"), tag([(i, 0, 2) for i in range(9)]))
        moves = "// name start end fps\n\nwalk0 0 8 18\ndeath1 2 7 18\ndead1 7 7 0\n"
        out.writestr(WOMAN.replace(".md2", ".anm"), moves)
        folder = str(Path(WOMAN).parent)
        out.writestr(f"{folder}/body01a.png", picture((200, 0, 0)))
        out.writestr(f"{folder}/body01b.png", picture((0, 0, 200)))
        out.writestr(f"{folder}/body01a_nm.png", picture((128, 128, 255)))
        out.writestr(f"{folder}/body02.png", picture((0, 200, 0)))
        out.writestr(f"{folder}/head01.md2", md2("face"))
        out.writestr(f"{folder}/face.png", picture((9, 9, 9)))
        out.writestr("models/objects/chair/chair.md2", md2("chair"))
        out.writestr("models/objects/chair/chair.png", picture((90, 60, 30)))
        out.writestr("models/objects/bare.md2", md2("lost"))
        out.writestr("models/weapons/gun.md2", md2("gun"))
    return path


def test_figures_are_whole_things(models: Path) -> None:
    found = Models(models)
    assert found.figures() == [
        WOMAN,
        "models/objects/bare.md2",
        "models/objects/chair/chair.md2",
    ]
    assert found.figure("models/objects/bare.md2") is None
    woman, chair = (found.figure(found.figures()[i]) for i in (0, 2))
    assert woman is not None
    assert chair is not None
    assert (woman.walks, woman.falls) == ([(0, 8)], [(2, 7)])
    assert {tuple(skin[0, 0, :3]) for skin in woman.skins} == {(200, 0, 0), (0, 0, 200)}
    assert [len(choice) for _, choice in woman.heads] == [1]
    assert (chair.walks, chair.heads, chair.neck) == ([], [], None)


def test_a_model_stands_upright_and_moves_between_its_frames() -> None:
    model = read_model(md2("skin", 3))
    skin = np.zeros((8, 8, 4), np.uint8)
    corners = {tuple(p) for p in model.at(0, skin).positions.tolist()}
    assert corners == {(x, z, -1 - y) for x, y, z in CUBE.tolist()}
    moved = model.at(1.25, skin).positions - model.at(0, skin).positions
    assert np.allclose(moved, [1.25, 0, 0])
    # the first row of a skin is that of v = 0; (0, 0) in the file is its upper left
    assert {tuple(uv) for uv in model.uv.tolist()} == {(0, 1), (0.5, 1), (0.5, 0)}
    front = model.at(0, skin)
    outward = (front.normals * (front.positions - front.positions.mean(0))).sum(1)
    assert (outward > 0).all() or (outward < 0).all()
    with pytest.raises(ValueError, match="IDP2"):
        read_model(psa([]))
    with pytest.raises(ValueError, match="JDP2"):
        read_tags(psa([]))


def test_a_head_sits_on_its_neck_and_goes_with_the_body(models: Path) -> None:
    [neck] = read_tags(tag([(3, 0, 2)]))["tag_head"]
    assert np.allclose(neck @ [0, 0, 0, 1], [3, 2, 0, 1])
    assert np.allclose(neck @ [1, 0, 0, 1], [3, 2, -1, 1])  # ahead is along the file's y
    assert np.allclose(neck @ [0, 1, 0, 1], [3, 3, 0, 1])  # up stays up
    woman = Models(models).figure(WOMAN)
    assert woman is not None
    scenes = acted(np.random.default_rng(0), woman, PHASES)
    ways = [[part.positions.mean(0)[0] for part in scene] for scene in scenes]
    assert len({round(float(body), 2) for body, _ in ways}) > 3
    # the middle of the head is one along its y, which the neck turns to -x
    assert all(abs(body - 1 - head) <= 0.51 for body, head in ways)


def test_what_is_dyed_has_other_colours_in_the_same_places() -> None:
    skin = np.full((64, 64, 4), 255, np.uint8)
    skin[:32, :, :3], skin[32:, :, :3] = (200, 30, 30), (30, 30, 200)
    looks = [dyed(np.random.default_rng(i), skin) for i in range(8)]
    for look in looks:
        assert np.array_equal(look[..., 3], skin[..., 3])
        for half in (look[:22], look[42:]):
            assert np.ptp(half[..., :3].reshape(-1, 3), axis=0).max() <= 8
    assert len({look.tobytes() for look in looks}) == len(looks)
    assert np.array_equal(looks[0], dyed(np.random.default_rng(0), skin))


@pytest.mark.parametrize("version", [3, 4])
def test_a_mesh_is_read(version: int) -> None:
    mesh = read_mesh(pmd({"head": (0, 2, 0)}, version))
    assert np.array_equal(mesh.positions, CUBE)
    assert np.array_equal(mesh.faces, FACES)
    assert mesh.points["head"][0] == 0
    assert np.array_equal(mesh.points["head"][1][:3, 3], [0, 2, 0])


def test_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match="PSMD"):
        read_mesh(psa([(0, 0, 0)]))
    with pytest.raises(ValueError, match="PSSA"):
        read_animation(pmd({}))


def test_a_quaternion_turns() -> None:
    quarter = np.array([1, 2, 3, 0, 0, np.sqrt(0.5), np.sqrt(0.5)], np.float32)
    assert np.allclose(matrices(quarter) @ [1, 0, 0, 1], [1, 3, 3, 1], atol=1e-6)


def test_an_actor_moves_with_all_that_is_attached(archive: Path) -> None:
    rng = np.random.default_rng(0)
    ox = choose(Archive(archive), rng, "fauna/ox.xml")
    assert ox is not None
    assert set(ox.animations) == {"walk"}
    assert [point for _, point in ox.parts] == ["head"]
    still = np.eye(4, dtype=np.float32)
    for frame, shift in ((0, 0), (1, 5), (2, 0)):
        body, hat = posed(ox, "walk", 0.0, frame, still)
        assert np.allclose(body.positions, CUBE + np.array([shift, 0, 0]))
        assert np.allclose(hat.positions, CUBE + np.array([shift, 2, 0]))
    resting = posed(ox, "swim", 0.0, 1, still)
    assert np.allclose(resting[0].positions, CUBE)


def test_what_hangs_on_no_bone_stays(archive: Path) -> None:
    mesh = read_mesh(pmd({}, bone=255))
    ox = choose(Archive(archive), np.random.default_rng(0), "fauna/ox.xml")
    assert ox is not None
    ox.mesh, ox.parts = mesh, []
    [body] = posed(ox, "walk", 0.0, 1, np.eye(4, dtype=np.float32))
    assert np.allclose(body.positions, CUBE)


def test_an_actor_without_a_body_is_none(archive: Path) -> None:
    assert choose(Archive(archive), np.random.default_rng(0), "units/ghost.xml") is None
    with pytest.raises(KeyError):
        choose(Archive(archive), np.random.default_rng(0), "units/broken.xml")


def drawn(corners: list[list[float]], colour: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    picture, nearness = np.zeros((size, size, 4), np.uint8), np.zeros((size, size), np.float32)
    draw_into(picture, nearness, corners, colour)
    return picture, nearness


def draw_into(
    picture: np.ndarray, nearness: np.ndarray, corners: list[list[float]], colour: int
) -> None:
    triangles(
        picture,
        nearness,
        np.array(corners, np.float32),
        np.zeros((3, 2), np.float32),
        np.ones(3, np.float32),
        np.array([[0, 1, 2]], np.uint16),
        np.full((1, 1, 4), (colour, colour, colour, 255), np.uint8),
    )


def test_a_triangle_covers_its_half_of_a_square_and_near_hides_far() -> None:
    half = [[0, 0, 0.5], [31, 0, 0.5], [0, 31, 0.5]]
    picture, nearness = drawn(half, 200)
    assert abs(int((picture[..., 3] > 0).sum()) - 32 * 32 // 2) <= 32
    draw_into(picture, nearness, [[x, y, 0.2] for x, y, _ in half], 50)
    assert picture[5, 5, 0] == 200
    draw_into(picture, nearness, [[x, y, 0.9] for x, y, _ in half], 100)
    assert picture[5, 5, 0] == 100


def test_what_is_behind_the_camera_or_outside_is_not_drawn() -> None:
    picture, _ = drawn([[0, 0, -1], [31, 0, 0.5], [0, 31, 0.5]], 200)
    assert not picture.any()
    picture, _ = drawn([[100, 100, 1], [200, 100, 1], [100, 200, 1]], 200)
    assert not picture.any()


def test_a_film_fills_its_picture_in_every_phase() -> None:
    skin = np.full((4, 4, 4), (10, 120, 240, 255), np.uint8)
    cube = Posed(CUBE, CUBE, np.zeros((8, 2), np.float32), FACES, skin)
    shot = film(np.random.default_rng(3), [[cube]] * PHASES)
    assert shot is not None
    assert shot.shape == (PHASES, SIZE, SIZE, 4)
    covered = (shot[..., 3] >= 128).any(0)
    rows, cols = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    assert max(np.ptp(rows), np.ptp(cols)) > SIZE - 12
    assert (shot[..., 3] >= 128).mean((1, 2)).min() > 0.3
    inside = shot[..., 3] == 255
    assert (shot[inside][:, 2] > shot[inside][:, 0]).all()


def test_nets_and_crowds_are_no_things() -> None:
    net = np.zeros((384, 384, 4), np.uint8)
    net[::8], net[:, ::8] = 255, 255
    assert whole(net) is None
    crowd = np.zeros((384, 384, 4), np.uint8)
    crowd[:100, :100], crowd[200:300, 200:300] = 255, 255
    assert whole(crowd) is None
    crumb = np.zeros((384, 384, 4), np.uint8)
    crumb[:100, :100], crumb[200:210, 200:210] = 255, 255
    kept = whole(crumb)
    assert kept is not None
    assert (kept[..., 3] > 0).sum() == 100 * 100


def test_a_car_has_a_body_and_wheels_that_turn(car: Path) -> None:
    coupe = read_car(car)
    assert np.allclose(coupe.hubs[:2, 0], 1.5)
    assert np.isclose(coupe.hubs[3, 2], 0.9)
    assert len(coupe.body) == 1
    assert len(coupe.body[0].faces) == 12
    first, second = driven(np.random.default_rng(0), coupe, 2)
    assert len(first) == 1 + 4
    assert not np.allclose(first[1].positions, second[1].positions)
    assert np.allclose(first[1].positions.mean(0), second[1].positions.mean(0), atol=1e-5)


def test_subjects_are_shot_alike_every_time(archive: Path, car: Path, models: Path) -> None:
    everything = [replace(s, count=2.5) for s in subjects(archive, car.parent, models)]
    assert {s.name for s in everything} >= {"fauna/ox.xml", "units/man.xml", "coupe", WOMAN}
    shots = {s.name: s.shoot() for s in everything}
    assert shots["units/broken.xml"] == []
    for name in ("fauna/ox.xml", "coupe", WOMAN):
        [again] = [Subject(s.source, s.name, s.count).shoot() for s in everything if s.name == name]
        assert len(again) == len(shots[name]) > 0
        assert all(np.array_equal(a, b) for a, b in zip(again, shots[name], strict=True))


def test_grounds_are_pictures_of_many_colours(archive: Path, tmp_path: Path) -> None:
    found = dict(grounds(archive))
    assert list(found) == ["art/textures/terrain/grass.png.cached.dds"]
    [ground] = found.values()
    assert ground.shape == (PHOTO_HEIGHT, PHOTO_WIDTH, 3)


def test_a_kind_is_saved_by_split(tmp_path: Path) -> None:
    named = [(str(i), np.full((2, 2), i, np.uint8)) for i in range(50)]
    counts = save("grounds", named, tmp_path)
    assert sum(counts.values()) == 50
    assert np.load(tmp_path / "grounds_train.npy").shape == (counts["grounds_train"], 2, 2)


@pytest.fixture(scope="module")
def bank() -> Bank:
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (2, PHOTO_HEIGHT, PHOTO_WIDTH, 3), dtype=np.uint8)
    cutouts = rng.integers(0, 256, (3, CUTOUT_SIZE, CUTOUT_SIZE, 4), dtype=np.uint8)
    films = np.zeros((2, PHASES, SIZE, SIZE, 4), np.uint8)
    for phase in range(PHASES):
        films[:, phase, 10 * phase : 10 * phase + 60, 60:120] = (255, 20 * phase, 0, 255)
    return Bank(photos, cutouts, films, photos)


def test_a_film_goes_there_and_back(bank: Bank) -> None:
    shot = Film(bank.films[0], 64, 0.0, 1.0, False, np.eye(3, 4, dtype=np.float32))
    looks = [shot.at(t) for t in range(2 * PHASES - 1)]
    assert np.array_equal(looks[0], looks[-1])
    assert all(np.array_equal(looks[i], looks[-1 - i]) for i in range(PHASES))
    assert len({look.tobytes() for look in looks}) == PHASES
    mirrored = Film(bank.films[0], 64, 0.0, 1.0, True, np.eye(3, 4, dtype=np.float32))
    assert np.array_equal(mirrored.at(3)[:, ::-1], looks[3])


def test_the_world_shows_films_and_grounds_and_stays_seeded(bank: Bank) -> None:
    things = [t for i in range(5) for t in cast(np.random.default_rng(i), bank, 1.0, 0.05, 64)]
    assert 0 < sum(t.film is not None for t in things) < len(things)
    one, two = (render(np.random.default_rng(5), bank, 64, 3, 3.0) for _ in range(2))
    assert np.array_equal(one.frames, two.frames)
    assert np.array_equal(one.labels, two.labels)


def test_a_bank_without_films_shows_none(bank: Bank) -> None:
    old = Bank(bank.photos, bank.cutouts)
    assert all(thing.film is None for thing in cast(np.random.default_rng(1), old, 1.0, 0.05, 48))
    assert render(np.random.default_rng(11), old, 48, 2).frames.shape == (2, 48, 48, 3)
