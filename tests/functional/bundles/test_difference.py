"""What differs between two builds, of packages from the index."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from relocate_core.bundles.difference import Difference, diff
from relocate_core.bundles.pack import pack
from relocate_core.errors import BadArchive, InvalidPath, NotAVirtualenv
from relocate_core.releases.publish import publish
from tests.support.environments import make

OLD = ("six==1.16.0", "idna==3.7", "zope.event==5.0")
NEW = ("six==1.17.0", "zope.event==5.0", "typing-extensions==4.12.2")


class Builds(NamedTuple):
    """Two builds as virtualenvs, as full bundles, and as releases."""

    trees: tuple[str, str]
    bundles: tuple[str, str]
    releases: tuple[str, str]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    place = tmp_path_factory.mktemp("builds")
    trees, bundles, releases = [], [], []
    for name, packages in (("1", OLD), ("2", NEW)):
        made = make("uv", place / f"tree{name}", packages=packages)
        app = Path(made.site_packages, "shop", "migrations")
        app.mkdir(parents=True)
        for file in ("__init__", "0001_initial", "0002_price")[: 1 + int(name)]:
            (app / f"{file}.py").write_text(f"# {file}\n")
        (app.parent / "views.py").write_text(f"RELEASE = {name}\n")
        trees.append(made.path)
        bundles.append(pack(made.path, str(place / f"{name}.tar.gz")).archive)
        releases.append(str(place / "srv" / name))
        publish(bundles[-1], releases[-1])
    return Builds(*map(tuple, (trees, bundles, releases)))  # type: ignore[arg-type]


def facts(found: Difference) -> dict[str, object]:
    return {key: value for key, value in found.as_dict().items() if key not in ("old", "new")}


@pytest.mark.parametrize("form", Builds._fields)
def test_packages_and_migrations(form: str, builds: Builds) -> None:
    found = diff(*getattr(builds, form))
    assert found.changed == {"six": {"old": "1.16.0", "new": "1.17.0"}}
    assert found.added == {"typing-extensions": "4.12.2"}
    assert found.removed == {"idna": "3.7"}
    assert found.migrations == ["shop 0002_price"]
    assert found.summary == (
        "six 1.16.0 -> 1.17.0, +typing-extensions 4.12.2, -idna 3.7; migrations shop 0002_price"
    )
    assert all(count > 0 for count in found.files.values())
    assert set(found.files) == {"added", "removed", *(["changed"] if form != "trees" else [])}


def test_a_release_is_its_bundle(builds: Builds) -> None:
    found = diff(builds.bundles[0], builds.releases[0])
    assert facts(found) == {
        "added": {},
        "removed": {},
        "changed": {},
        "migrations": [],
        "size": 0,
        "files": {"added": 0, "removed": 0, "changed": 0},
        "summary": "the same packages",
    }
    both = facts(diff(*builds.bundles))
    assert facts(diff(builds.releases[0], builds.bundles[1])) == both
    back = diff(*reversed(builds.bundles))
    assert (back.added, back.removed, back.size) == ({"idna": "3.7"}, both["added"], -both["size"])  # type: ignore[operator]
    assert back.migrations == []


@pytest.mark.parametrize("form", Builds._fields)
def test_the_packages_alone(form: str, builds: Builds) -> None:
    found = diff(*getattr(builds, form), brief=True)
    assert found.summary == "six 1.16.0 -> 1.17.0, +typing-extensions 4.12.2, -idna 3.7"
    assert (found.files, found.migrations, found.size) == ({}, [], 0)


def test_names_and_migrations_of_others(tmp_path: Path, builds: Builds) -> None:
    """Names as older installers wrote them are the same package; Alembic's revisions are found."""
    tree = tmp_path / "tree"
    shutil.copytree(builds.trees[0], tree, symlinks=True)
    (packages,) = tree.glob("lib/*/site-packages")
    (dist,) = packages.glob("zope*event-5.0.dist-info")
    dist.rename(packages / "Zope.Event-5.0-py3.11.egg-info")
    versions = tree / "share" / "alembic" / "versions"
    versions.mkdir(parents=True)
    (versions / "1975ea83b712_add_price.py").write_text("")
    found = diff(builds.trees[0], str(tree))
    assert found.summary == "the same packages; migrations 1975ea83b712_add_price"


def test_what_cannot_be_compared(tmp_path: Path, builds: Builds) -> None:
    delta = pack(builds.trees[1], str(tmp_path / "d.tar.gz"), delta_from=builds.bundles[0]).archive
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "text").write_text("no archive\n")
    for other, error, words in (
        (str(tmp_path / "nowhere"), InvalidPath, "nowhere: it does not exist"),
        (delta, InvalidPath, "it is a delta bundle; name the full bundle of that release"),
        (str(empty), NotAVirtualenv, "is not a virtualenv"),
        (str(tmp_path / "text"), BadArchive, "cannot read .*text"),
    ):
        with pytest.raises(error, match=words):
            diff(builds.bundles[0], other)
