"""RECORD rows of bytecode, which are rare but allowed, and of virtualenvs inside another."""

from __future__ import annotations

import hashlib
import shutil
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from relocate_core.bundles.pack import pack
from relocate_core.errors import CannotTravel
from relocate_core.releases.publish import publish
from relocate_core.relocation.check import check
from relocate_core.relocation.relocate import relocate
from tests.support import checks, environments
from tests.support.environments import Environment, differences, digest, make


@pytest.fixture
def hashed(tmp_path: Path) -> Environment:
    """A virtualenv in which a RECORD lists bytecode with its hash."""
    made = make("venv-3.11", tmp_path / "4f2a9c1", packages=("chardet",))
    record = _record(made)
    lines = []
    for line in record.read_text().splitlines():
        path = line.partition(",")[0]
        if path.endswith(".pyc"):
            content = Path(made.site_packages, path).read_bytes()
            code = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            line = f"{path},sha256={code},{len(content)}"
        lines.append(line)
    record.write_text("".join(f"{line}\n" for line in lines))
    assert ".pyc,sha256=" in record.read_text()
    return made


def _record(made: Environment) -> Path:
    return next(Path(made.site_packages).glob("chardet-*.dist-info")) / "RECORD"


def _mismatches(made: Environment) -> list[str]:
    problems = check(made.path, deep=True).problems
    return [problem.file for problem in problems if problem.kind == "record"]


def test_hashed_bytecode_follows(hashed: Environment) -> None:
    before = digest(hashed.path, times="files")
    said = relocate(hashed.path, dry_run=True)
    done = relocate(hashed.path)
    assert said.rewritten == done.rewritten
    assert said.files == done.files
    assert str(_record(hashed).relative_to(hashed.path)) in done.files
    assert _mismatches(hashed) == []
    relocate(hashed.path, hashed.old_prefix)
    assert differences(before, digest(hashed.path, times="files")) == {}


def test_a_run_killed_before_the_record_was_written_is_finished(hashed: Environment) -> None:
    untouched = Path(hashed.path).with_name("untouched")
    shutil.copytree(hashed.path, untouched, symlinks=True)
    relocate(hashed.path)
    finished = digest(hashed.path, times="none")
    # Bytecode is rewritten first; then come RECORD and all the rest.
    for path in ("bin", str(_record(hashed).parent.relative_to(hashed.path))):
        shutil.rmtree(Path(hashed.path, path))
        shutil.copytree(untouched / path, Path(hashed.path, path), symlinks=True)
    relocate(hashed.path)
    assert differences(finished, digest(hashed.path, times="none")) == {}
    assert _mismatches(hashed) == []


def test_bytecode_that_was_changed_before_is_still_reported(hashed: Environment) -> None:
    changed = next(Path(hashed.site_packages, "chardet", "__pycache__").glob("enums.*.pyc"))
    changed.write_bytes(changed.read_bytes() + b"\0")
    relocate(hashed.path)
    assert _mismatches(hashed) == [str(changed.relative_to(hashed.path))]


# --- virtualenvs inside ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["envs/inner", "a/b/c/d/inner", "packages"])
@pytest.mark.parametrize("bundle", [False, True])
@pytest.mark.few(2)
def test_a_virtualenv_inside_a_virtualenv(bundle: bool, where: str, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    environments.uv("venv", "-q", str(outer))
    if where == "packages":
        (packages,) = outer.glob("lib/*/site-packages")
        where = str(packages.relative_to(outer) / "tool" / "env")
    inner = outer / where
    inner.parent.mkdir(parents=True)
    environments.uv("venv", "-q", str(inner))
    for each in (outer, inner):
        environments.uv("pip", "install", "-q", "-p", f"{each}/bin/python", "cowsay", "chardet")
    if bundle:
        with pytest.raises(CannotTravel, match=f"{where}/bin/python points to .*, out of"):
            pack(str(outer), str(tmp_path / "app.tar"))
        pack(str(outer), str(tmp_path / "app.tar"), exclude=[f"{where}/bin/python*"])
        shutil.rmtree(outer)
        moved = Path(publish(str(tmp_path / "app.tar"), str(tmp_path / "srv" / "one")).path)
    else:
        moved = Path(shutil.move(outer, tmp_path / "moved"))
        report = relocate(str(moved))
        assert any(file.startswith(where) and "RECORD" in file for file in report.files)
        assert not relocate(str(moved)).changed
    for each in (moved, moved / where):
        assert checks.record_mismatches(str(each)) == set()
        if not (bundle and each != moved):
            checks.run_script(str(each), "cowsay", "-t", "x")
    assert check(str(moved), deep=True).problems == ()
    if not bundle:
        source = next((moved / where).glob("lib/*/site-packages/cowsay/__init__.py"))
        source.write_text(f"{source.read_text()}# changed\n")
        (found,) = check(str(moved), deep=True).problems
        assert found.file == str(source.relative_to(moved))
