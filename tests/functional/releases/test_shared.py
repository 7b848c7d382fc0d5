"""Persistent data: symlinks in each release before it gets its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from relocate_core import RelocateError, check, pack, publish, remove
from tests.support import roots, steps

MEDIA, SETTINGS = "media", "site/local_settings.py"


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A virtualenv as a tarball and as a bundle; a placeholder stands where media should be."""
    directory = tmp_path_factory.mktemp("archives")
    plain = roots.packed(directory, "plain", extra={f"{MEDIA}/.gitkeep": ""})
    build = steps.small(directory / "build").path
    Path(build, MEDIA).mkdir()
    Path(build, MEDIA, ".gitkeep").touch()
    pack(build, str(directory / "bundle.tar.gz"))
    return {"tarball": plain, "bundle": str(directory / "bundle.tar.gz")}


@pytest.fixture(params=["tarball", "bundle"])
def archive(request: pytest.FixtureRequest, archives: dict[str, str]) -> str:
    """Each of the two."""
    return archives[request.param]


@pytest.fixture
def shared(tmp_path: Path) -> dict[str, str]:
    """A directory and a file that outlive releases."""
    kept = tmp_path / "kept"
    (kept / MEDIA).mkdir(parents=True)
    (kept / "local_settings.py").write_text("SECRET = 1\n")
    return {MEDIA: str(kept / MEDIA), SETTINGS: str(kept / "local_settings.py")}


def deploy(tmp_path: Path, archive: str, name: str, **options: Any) -> str:
    """Deploy an archive; the release's path."""
    path = str(tmp_path / "srv" / name)
    publish(archive, path, **options)
    return path


def test_every_release_has_the_links_and_they_outlive_it(
    tmp_path: Path, archive: str, shared: dict[str, str]
) -> None:
    first = deploy(tmp_path, archive, "1", shared=shared)
    Path(first, MEDIA, "upload").write_text("kept")
    second = deploy(tmp_path, archive, "2", shared=shared)
    assert Path(second, MEDIA, "upload").read_text() == "kept"
    assert Path(second, SETTINGS).read_text() == "SECRET = 1\n"
    for path, target in shared.items():
        assert os.readlink(os.path.join(second, path)) == target
    remove(first)
    assert Path(second, MEDIA, "upload").read_text() == "kept"


def test_they_are_there_when_the_smoke_test_runs(
    tmp_path: Path, archive: str, shared: dict[str, str]
) -> None:
    deploy(tmp_path, archive, "1", shared=shared, smoke_tests=[f"grep -q SECRET {SETTINGS}"])


def test_they_are_accounted_for(tmp_path: Path, archives: dict[str, str], shared: Any) -> None:
    release = deploy(tmp_path, archives["bundle"], "1", shared=shared)
    assert check(release, deep=True).ok
    os.unlink(os.path.join(release, SETTINGS))
    os.symlink("/etc/passwd", os.path.join(release, SETTINGS))
    (problem,) = check(release, deep=True).problems
    assert problem.file == SETTINGS
    assert "points to /etc/passwd" in problem.reason


def test_the_next_release_takes_over_from_one_with_links(
    tmp_path: Path, archives: dict[str, str], shared: dict[str, str]
) -> None:
    deploy(tmp_path, archives["bundle"], "1", shared=shared)
    path = str(tmp_path / "srv" / "2")
    done = publish(archives["bundle"], path, shared=shared, hard_links=True)
    assert done.reused
    assert check(path, deep=True).ok


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_they_belong_to_the_releases_owner(
    tmp_path: Path, archive: str, shared: dict[str, str]
) -> None:
    release = deploy(tmp_path, archive, "1", shared=shared, owner=(65534, 65534))
    for path in (*shared, os.path.dirname(SETTINGS)):
        assert os.lstat(os.path.join(release, path)).st_uid == 65534
    assert os.stat(shared[SETTINGS]).st_uid == 0


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("bin", "must be a path in the release"),
        ("bin/python", "must be a path in the release"),
        ("../out", "must be a path in the release"),
        ("/etc", "must be a path in the release"),
        ("", "must be a path in the release"),
        (".release.json", "must be a path in the release"),
        (".relocation/x", "must be a path in the release"),
        ("pyvenv.cfg", "must be a path in the release"),
        ("lib", "the release has"),
        ("lib64/x", "is no directory"),
        (roots.MARKER, "the release has a file there"),
    ],
)
def test_a_place_that_is_taken_or_impossible_is_refused(
    tmp_path: Path, archives: dict[str, str], shared: dict[str, str], path: str, words: str
) -> None:
    with pytest.raises(RelocateError, match=words) as caught:
        deploy(tmp_path, archives["tarball"], "1", shared={path: shared[MEDIA]})
    assert roots.one_sentence(caught.value)
    assert not os.path.lexists(tmp_path / "srv" / "1")
    assert roots.left_behind(str(tmp_path / "srv")) == [] or not (tmp_path / "srv").exists()


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        (["media"], "must be paths in the release"),
        ({"media": "kept"}, "must be an absolute path"),
        ({"media": 3}, "must be an absolute path"),
        ({3: "/srv"}, "must be a path in the release"),
        ({"media": "/srv", "media/a": "/srv"}, "leave one of them out"),
        ({"media": "/nowhere/at/all"}, "create it first"),
    ],
    ids=["a list", "relative", "number", "number as path", "one in another", "not there"],
)
def test_bad_input_is_refused(
    tmp_path: Path, archives: dict[str, str], shared: Any, words: str
) -> None:
    with pytest.raises(RelocateError, match=words) as caught:
        deploy(tmp_path, archives["tarball"], "1", shared=shared)
    assert roots.one_sentence(caught.value)
    assert not os.path.lexists(tmp_path / "srv" / "1")
