"""RECORD rows of bytecode: rare, as installers list bytecode without a hash, but allowed."""

from __future__ import annotations

import hashlib
import shutil
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from relocate_core.relocation.check import check
from relocate_core.relocation.relocate import relocate
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
