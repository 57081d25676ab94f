"""Pictures from Debian packages: which files of a package count, and that it is fetched once."""

import subprocess
from pathlib import Path

import pytest

from training.packages import ACTORS, CARS, PACKAGES, PEOPLE, Package, fetch


def unpacking(files: list[str], calls: list[str]) -> object:
    """Stands for apt-get, which needs a network, and for dpkg: the package holds `files`."""

    def run(command: list[str], *, cwd: Path, check: bool) -> None:
        assert check
        calls.append(command[0])
        if command[0] == "apt-get":
            (cwd / f"{command[2]}_1.0_all.deb").touch()
            return
        for name in files:
            path = cwd / command[3] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return run


def test_unwanted_files_go_and_nothing_is_fetched_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Package("stamps", "CC0", "share/stamps", ("symbols/**/*.png", "*_nm.jpg"))
    calls: list[str] = []
    files = ["share/stamps/cat.png", "share/stamps/symbols/latin/a.png", "share/doc/b.png"]
    files += ["share/stamps/wood_nm.jpg"]
    monkeypatch.setattr(subprocess, "run", unpacking(files, calls))
    for _ in range(2):
        [folder] = fetch(tmp_path, (package,))
        assert [p.name for p in folder.rglob("*.*")] == ["cat.png"]
    assert calls == ["apt-get", "dpkg"]


def test_all_pictures_of_a_package_count_unless_it_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", unpacking(["usr/share/clips/a.png"], []))
    [folder] = fetch(tmp_path, (Package("clips", "CC0"),))
    assert [p.name for p in folder.rglob("*.png")] == ["a.png"]


def test_every_package_names_a_licence() -> None:
    everything = (*PACKAGES, ACTORS, CARS, PEOPLE)
    assert all(package.licence for package in everything)
    assert len({package.name for package in everything}) == len(everything)
