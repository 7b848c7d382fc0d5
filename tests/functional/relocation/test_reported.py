"""What cannot be rewritten is reported by its path, in place and in a bundle."""

from __future__ import annotations

import marshal
import os
import pickle
import shutil
import zipapp
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from relocate_core.bundles.pack import pack
from relocate_core.relocation.relocate import relocate
from tests.support.bundles import unpack_by_tar
from tests.support.environments import Environment, differences, digest, make

NEW = "/opt/x/1"


def zip_application(path: Path, place: str, python: str) -> None:
    source = path.parent / f"{path.name}.d"
    source.mkdir()
    (source / "__main__.py").write_text(f"PLACE = '{place}/share'\n" * 9)
    zipapp.create_archive(source, path, python, compressed=True)
    (source / "__main__.py").unlink()
    source.rmdir()


def spelled(separator: str) -> Callable[[Path, str], object]:
    """Write a path with another spelling of its slashes."""
    return lambda path, place: path.write_text(f'{{"a": "{f"{place}/x".replace("/", separator)}"}}')


LEFT: dict[str, Callable[[Path, str], object]] = {
    "bin/tool.pyz": lambda path, place: zip_application(path, place, "/usr/bin/env python3"),
    "etc/nuxt.js": spelled("\\u002F"),
    "etc/page.html": spelled("&#x2F;"),
    "etc/next.txt": spelled("%252F"),
    "etc/joined.conf": spelled("//"),
    "lib/python3.11/site-packages/urls.json": spelled("\\\\/"),
    "share/model.joblib": lambda path, place: path.write_bytes(zlib.compress(place.encode() * 9)),
    "share/short.marshal": lambda path, place: path.write_bytes(marshal.dumps(place)),
}


@pytest.fixture
def venv(tmp_path: Path) -> Environment:
    made = make("venv-3.11", tmp_path / "venv", without_pip=True)
    relocate(made.path)
    for name in ("etc", "share"):
        Path(made.path, name).mkdir(exist_ok=True)
    return made


def problems(made: Environment) -> dict[str, str]:
    return dict(relocate(made.path, NEW, dry_run=True).problems)


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.few(3)
def test_it_is_left_and_reported(name: str, venv: Environment) -> None:
    assert problems(venv) == {}
    LEFT[name](Path(venv.path, name), venv.path)
    before = Path(venv.path, name).read_bytes()
    assert list(problems(venv)) == [name]
    relocate(venv.path, NEW)
    assert Path(venv.path, name).read_bytes() == before


def test_a_bundle_reports_the_same(venv: Environment, tmp_path: Path) -> None:
    for name, write in LEFT.items():
        write(Path(venv.path, name), venv.path)
    assert set(problems(venv)) == set(LEFT)
    pack(venv.path, str(tmp_path / "bundle.tar"))
    place = unpack_by_tar(tmp_path / "bundle.tar", tmp_path / "one")
    assert set(dict(relocate(place).problems)) == set(LEFT)


def test_behind_a_rewritten_shebang(venv: Environment) -> None:
    path = Path(venv.path, "bin", "tool.pyz")
    zip_application(path, venv.path, f"{venv.path}/bin/python")
    report = relocate(venv.path, NEW)
    assert path.read_bytes().startswith(f"#!{NEW}/bin/python\n".encode())
    assert report.problems == [("bin/tool.pyz", "it is a zip archive")]


def test_a_pickle_of_text_and_what_systemd_has_before_a_program(venv: Environment) -> None:
    etc = Path(venv.path, "etc")
    (etc / "old.pickle").write_bytes(pickle.dumps({"place": f"{venv.path}/x"}, protocol=0))
    (etc / "x.service").write_text(
        f"ExecStart=+{venv.path}/bin/x\nExecReload=-!!{venv.path}/bin/y\n"
    )
    before = digest(venv.path, times="files")
    report = relocate(venv.path, NEW)
    assert report.problems == []
    assert pickle.loads((etc / "old.pickle").read_bytes()) == {"place": f"{NEW}/x"}
    assert (etc / "x.service").read_text() == f"ExecStart=+{NEW}/bin/x\nExecReload=-!!{NEW}/bin/y\n"
    relocate(venv.path, venv.path)
    assert differences(before, digest(venv.path, times="files")) == {}


def test_a_symlink_that_comes_back_by_the_old_name(tmp_path: Path) -> None:
    made = make("venv-3.11", tmp_path / "old", without_pip=True)
    relocate(made.path)
    links = {
        "out-and-in": "../old/lib",
        "deep/out-and-in": "../../old/bin",
        "absolute": f"{made.path}/../old/lib",
        "inside": "deep/../lib",
        "plain": f"{made.path}/lib",
        "outside": "../other/lib",
    }
    Path(made.path, "deep").mkdir()
    for name, target in links.items():
        Path(made.path, name).symlink_to(target)
    new = Path(shutil.move(made.path, tmp_path / "new"))
    report = relocate(str(new))
    assert [name for name, _ in report.problems] == ["absolute", "deep/out-and-in", "out-and-in"]
    assert all("make it relative" in reason for _, reason in report.problems)
    assert os.readlink(new / "plain") == f"{new}/lib"
    assert os.readlink(new / "absolute") == links["absolute"]


def test_a_symlink_by_a_name_that_stays(tmp_path: Path) -> None:
    made = make("venv-3.11", tmp_path / "one" / "venv", without_pip=True)
    relocate(made.path)
    Path(made.path, "link").symlink_to("../venv/lib")
    (tmp_path / "two").mkdir()
    new = Path(shutil.move(made.path, tmp_path / "two" / "venv"))
    assert relocate(str(new)).problems == []
    assert (new / "link").is_dir()


def test_a_colon_in_the_new_path(venv: Environment) -> None:
    new = Path(shutil.move(venv.path, f"{venv.path}:1"))
    ((name, reason),) = relocate(str(new)).problems
    assert name == "bin/activate"
    assert "colon" in reason


def test_progress_ends_with_all_files(tmp_path: Path) -> None:
    made = make("venv-3.11", tmp_path / "4f2a9c1")
    seen: list[tuple[int, int]] = []
    relocate(made.path, dry_run=True, progress=lambda *counts: seen.append(counts))
    every = [
        path for path in Path(made.path).rglob("*") if path.is_file() and not path.is_symlink()
    ]
    assert seen[-1] == (len(every), len(every))
