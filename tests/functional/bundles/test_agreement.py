"""What unpacking refuses, packing refuses in the same words, before a bundle is made."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from relocate_core.bundles import writer
from relocate_core.bundles.limits import Limits
from relocate_core.bundles.pack import pack
from relocate_core.bundles.unpack import unpack
from relocate_core.errors import BadArchive, CannotTravel
from tests.support.environments import copy, make


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A virtualenv without pip."""
    return make("venv-3.11", tmp_path_factory.mktemp("small") / "made", without_pip=True).path


@pytest.fixture
def tree(small: str, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(copy(small, tmp_path / "tree"))


def configuration_by_a_link(tree: Path) -> None:
    (tree / "pyvenv.cfg").rename(tree / "etc.cfg")
    (tree / "pyvenv.cfg").symlink_to("etc.cfg")


def activation_by_a_link(tree: Path) -> None:
    (tree / "bin" / "activate").rename(tree / "bin" / "activate.sh")
    (tree / "bin" / "activate").symlink_to("activate.sh")


def long_target(tree: Path) -> None:
    (tree / "long").symlink_to("./" * 600 + "bin")


def control_in_a_target(tree: Path) -> None:
    (tree / "odd").symlink_to("bin\x1b[2J")


def deep(tree: Path) -> None:
    (tree / ("d/" * 102)).mkdir(parents=True)


def large_configuration(tree: Path) -> None:
    (tree / "share").mkdir(exist_ok=True)
    (tree / "share" / "pyvenv.cfg").write_bytes(bytes(2 << 20))


SPOILT = (
    *(configuration_by_a_link, activation_by_a_link, long_target, control_in_a_target),
    *(deep, large_configuration),
)


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.few(6)
def test_the_same_is_refused(
    spoil: Callable[[Path], None], dry_run: bool, tree: Path, tmp_path: Path
) -> None:
    spoil(tree)
    plain = tmp_path / "plain.tar"
    subprocess.run(["tar", "-C", tree, "-cf", plain, "."], check=True)
    (tmp_path / "out").mkdir()
    directory = os.open(tmp_path / "out", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(BadArchive) as unpacking:
            unpack(str(plain), directory)
    finally:
        os.close(directory)
    with pytest.raises(CannotTravel) as packing:
        pack(str(tree), str(tmp_path / "bundle.tar.gz"), dry_run=dry_run)
    reason = str(unpacking.value).removeprefix(f"cannot unpack {plain}: ").rpartition("; ")[0]
    assert reason.removeprefix("./") in str(packing.value)
    assert str(packing.value).startswith(f"cannot pack {tree}: ")
    assert not list(tmp_path.glob("*bundle*")), "nothing was made"


def test_twins_are_packed_with_a_warning_and_deployed_where_they_can_be(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("crypto", "Crypto"):
        (tree / name).mkdir()
        (tree / name / "who").write_text(name)
    if (tree / "crypto" / "who").read_text() != "crypto":
        pytest.skip("this file system folds case")
    bundle = str(tmp_path / "bundle.tar.gz")
    warnings = pack(str(tree), bundle).warnings
    twins = [one["file"] for one in warnings if "differs from Crypto" in one["reason"]]
    assert twins == ["crypto", "crypto/who"]
    out = tmp_path / "out"
    out.mkdir()
    directory = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        unpack(bundle, directory)
        assert (out / "crypto" / "who").read_text() == "crypto"
        assert (out / "Crypto" / "who").read_text() == "Crypto"
        shutil.rmtree(out / "Crypto")
        monkeypatch.setattr(writer, "folds_names", lambda directory: True)
        for name in os.listdir(out):
            if (out / name).is_dir() and not (out / name).is_symlink():
                shutil.rmtree(out / name)
            else:
                os.unlink(out / name)
        with pytest.raises(BadArchive, match=r"crypto differs from Crypto only in case") as caught:
            unpack(bundle, directory)
    finally:
        os.close(directory)
    assert "case-sensitive" in str(caught.value)


@pytest.mark.parametrize("archive", ["app.tar.gz", "app.tar.zst"])
@pytest.mark.few(1)
def test_what_the_usual_limits_refuse_is_a_warning(
    archive: str, tree: Path, tmp_path: Path
) -> None:
    """Who deploys it may raise them, so it is packed, and the warning has what to raise them to."""
    with open(tree / "zeros", "wb") as file:
        file.truncate(100 << 20)
    packed = pack(str(tree), str(tmp_path / archive))
    (warning,) = (one for one in packed.warnings if one["file"] == archive)
    ratio = int(warning["reason"].rpartition("limits: {ratio: ")[2].rstrip("}"))
    for given, error in ((None, BadArchive), (Limits(ratio=ratio), None)):
        place = tmp_path / f"place-{error}"
        place.mkdir()
        directory = os.open(place, os.O_RDONLY)
        try:
            if error is None:
                unpack(packed.archive, directory, limits=given)
            else:
                with pytest.raises(error, match="200 times its size"):
                    unpack(packed.archive, directory, limits=given)
        finally:
            os.close(directory)


@pytest.mark.slow
def test_a_delta_bundle_is_not_too_large_for_being_small(tree: Path, tmp_path: Path) -> None:
    """What the base has does not count: the ratio to the whole says nothing."""
    with open(tree / "random", "wb") as file:
        file.write(os.urandom(40 << 20))
    full = pack(str(tree), str(tmp_path / "1.tar.gz"))
    (tree / "new").write_text("new\n")
    delta = pack(str(tree), str(tmp_path / "2.tar.gz"), delta_from=full.archive)
    assert delta.size > 200 * delta.packed_size
    assert delta.warnings == full.warnings
