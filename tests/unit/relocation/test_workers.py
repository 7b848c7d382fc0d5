"""Tests of the worker processes: whether they would run the code that this process has loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import relocate_core
from relocate_core.relocation import workers


@pytest.mark.parametrize(
    "changed", ["cli.py", "artefacts/scripts.py", "releases/schemas/schema.py"]
)
def test_a_change_in_any_package_is_noticed(changed: str, tmp_path: Path) -> None:
    package = tmp_path / "core"
    shutil.copytree(Path(relocate_core.__file__).parent, package)
    before = workers._fingerprint(str(package))
    with open(package / changed, "a") as file:
        file.write("# another version\n")
    assert workers._fingerprint(str(package)) != before


def test_a_module_that_came_or_went_is_noticed(tmp_path: Path) -> None:
    package = tmp_path / "core"
    shutil.copytree(Path(relocate_core.__file__).parent, package)
    before = workers._fingerprint(str(package))
    (package / "artefacts" / "new.py").write_text("")
    assert workers._fingerprint(str(package)) != before
    (package / "artefacts" / "new.py").unlink()
    assert workers._fingerprint(str(package)) == before
