"""Debian packages that ship pictures and models under free licences, and how to have them.

They are downloaded and unpacked, never installed; it needs apt-get and dpkg, and some 1.3 GB for
pictures and 2.4 GB for models.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """folders: where its pictures are; unwanted: which files there are none. Patterns below it."""

    name: str
    licence: str
    folders: str = "usr"
    unwanted: tuple[str, ...] = ()


_DRAWN = ("*logo*", "*origami*", "*plasma*", "simple_blue*", "this-is-*", "triangles*")
# maps of normals, as many of its PNG files are
_NORMALS = ("**/*.png", "**/*_nm.jpg")

PACKAGES = (
    Package("openclipart-png", "public domain"),
    Package("gnome-backgrounds", "CC BY-SA 3.0"),
    Package("mate-backgrounds", "CC BY-SA 4.0, GPL-2+"),
    Package("plasma-workspace-wallpapers", "CC BY-SA 4.0, LGPL-3"),
    Package("lomiri-wallpapers-16.04", "CC BY-SA, CC BY, CC0"),
    Package("lomiri-wallpapers-20.04", "CC BY-SA, CC BY, CC0"),
    Package("ukui-wallpapers", "CC BY-SA"),
    Package("lxqt-themes", "CC BY-SA 3.0, LGPL-2.1+", "usr/share/lxqt/wallpapers", _DRAWN),
    Package("krank", "public domain", "**/unera-backgrounds", ("menu-*",)),
    Package("tuxpaint-data", "GPL-2+", "usr/share/tuxpaint/templates"),
    Package("gnome-taquin", "CC BY-SA 3.0, public domain", "**/themes/cats"),
    # letters and signs are no objects
    Package("tuxpaint-stamps-default", "GPL-2", "usr/share/tuxpaint/stamps", ("symbols/**/*.png",)),
    Package("wesnoth-1.16-data", "GPL-2+", "**/portraits"),
    Package("supertuxkart-data", "CC BY-SA, CC BY, CC0, GPL", "usr/share/games", _NORMALS),
)

# what moves by itself: people, animals and carts of 0 A.D., cars of TORCS, people of UFO:AI
ACTORS = Package("0ad-data", "CC BY-SA 3.0", "usr/share/games/0ad/mods/public")
CARS = Package("torcs-data", "GPL-2+, Free Art License", "usr/share/games/torcs/cars")
PEOPLE = Package("ufoai-data", "GPL-2+, GPL-3+, CC BY, CC BY-SA", "usr/share/games/ufoai/base")


def fetch(root: Path, packages: Sequence[Package] = PACKAGES) -> list[Path]:
    """Download and unpack what is not there yet; return the folders that the packages name."""
    root.mkdir(parents=True, exist_ok=True)
    folders = []
    for package in packages:
        unpacked = root / package.name
        if not unpacked.is_dir():
            subprocess.run(["apt-get", "download", package.name], cwd=root, check=True)
            [archive] = root.glob(f"{package.name}_*.deb")
            part = root / f"{package.name}.part"
            subprocess.run(["dpkg", "-x", archive.name, part.name], cwd=root, check=True)
            for folder in part.glob(package.folders):
                for file in {file for what in package.unwanted for file in folder.glob(what)}:
                    file.unlink()
            part.rename(unpacked)
            archive.unlink()
        folders += sorted(p for p in unpacked.glob(package.folders) if p.is_dir())
    return folders
