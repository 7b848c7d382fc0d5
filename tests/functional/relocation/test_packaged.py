"""A common prefix, and packages whose own text looks like it."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from relocate_core.relocation.check import check
from relocate_core.relocation.relocate import Relocation, relocate
from relocate_core.system.transaction import Transaction
from tests.support.environments import Environment, differences, digest
from tests.support.steps import NEW, small

COMMON = ["/app", "/v1", "/home/user", "/usr/src/app"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return small(tmp_path_factory.mktemp("packaged") / "venv")


@pytest.fixture
def venv(made: Environment, tmp_path: Path) -> Environment:
    shutil.copytree(made.path, tmp_path / "venv", symlinks=True)
    return Environment(**{**made.__dict__, "path": str(tmp_path / "venv")})


def ship(
    venv: Environment, name: str, text: str, *, recorded: bool = True, hashed: bool = True
) -> Path:
    """Put a module into the package `omega`, as if its wheel had it."""
    path = Path(venv.site_packages, "omega", name)
    path.write_text(text)
    if recorded:
        found = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        (record,) = Path(venv.site_packages).glob("omega-*.dist-info/RECORD")
        with record.open("a") as file:
            row = f"sha256={found.decode()},{len(text)}" if hashed else ","
            file.write(f"omega/{name},{row}\n")
    subprocess.run([venv.executable, "-m", "py_compile", path], check=True)
    return path


def left(report: Relocation) -> list[str]:
    return [os.path.basename(path) for path, _ in report.problems]


def imported(venv: Environment, module: str, name: str) -> str:
    """A module's value, from its bytecode where Python takes that."""
    return venv.run("-B", "-c", f"import omega.{module} as m; print(m.{name})").strip()


@pytest.mark.parametrize(("prefix", "hashed"), [*((one, True) for one in COMMON), ("/app", False)])
def test_a_packages_own_text_is_left_and_reported(
    prefix: str, hashed: bool, venv: Environment
) -> None:
    relocate(venv.path, prefix)
    text = f'STATIC = "{prefix}/static/"\n'
    path = ship(venv, "urls.py", text, hashed=hashed)
    before = digest(venv.path, times="files")
    report = relocate(venv.path, NEW)
    assert path.read_text() == text
    assert imported(venv, "urls", "STATIC") == f"{prefix}/static/"
    assert left(report) == ["urls.py"]
    assert prefix + "/static/" in report.problems[0][1]
    assert [each for each in check(venv.path, deep=True).problems if each.kind == "record"] == []
    relocate(venv.path, prefix)
    assert differences(before, digest(venv.path, times="files")) == {}


@pytest.mark.parametrize("prefix", COMMON)
def test_what_a_locally_built_package_refers_to_is_relocated(
    prefix: str, venv: Environment
) -> None:
    relocate(venv.path, prefix)
    text = f'PYTHON = "{prefix}/bin/python"\nSTATIC = "{prefix}/static/"\n'
    path = ship(venv, "built.py", text)
    before = digest(venv.path, times="files")
    report = relocate(venv.path, NEW)
    assert path.read_text() == f'PYTHON = "{NEW}/bin/python"\nSTATIC = "{prefix}/static/"\n'
    assert imported(venv, "built", "PYTHON") == f"{NEW}/bin/python"
    assert imported(venv, "built", "STATIC") == f"{prefix}/static/"
    assert left(report) == ["built.py"]
    assert [each for each in check(venv.path, deep=True).problems if each.kind == "record"] == []
    relocate(venv.path, prefix)
    assert differences(before, digest(venv.path, times="files")) == {}


def test_what_was_changed_or_added_after_the_installation_is_relocated(venv: Environment) -> None:
    relocate(venv.path, "/app")
    added = ship(venv, "added.py", 'PLACE = "/app/var/data"\n', recorded=False)
    changed = ship(venv, "changed.py", "PLACE = None\n")
    changed.write_text('PLACE = "/app/var/data"\n')
    config = Path(venv.path, "etc/site.conf")
    config.write_text("data = /app/var/data\n")
    report = relocate(venv.path, NEW)
    assert left(report) == []
    for path in (added, changed):
        assert path.read_text() == f'PLACE = "{NEW}/var/data"\n'
    assert config.read_text() == f"data = {NEW}/var/data\n"
    assert imported(venv, "added", "PLACE") == f"{NEW}/var/data"


def test_a_prefix_that_nobody_else_writes_is_relocated_everywhere(venv: Environment) -> None:
    relocate(venv.path, NEW)
    path = ship(venv, "place.py", f'PLACE = "{NEW}/var/data"\n')
    report = relocate(venv.path, "/srv/app/9876543210")
    assert left(report) == []
    assert path.read_text() == 'PLACE = "/srv/app/9876543210/var/data"\n'
    assert imported(venv, "place", "PLACE") == "/srv/app/9876543210/var/data"


def test_a_failure_gives_everything_back(
    venv: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytecode that was rewritten at once goes back, and the package's own text stays."""
    ship(venv, "urls.py", 'STATIC = "/app/static/"\n')
    before = digest(venv.path, times="files")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Transaction, "commit", fail)
    with pytest.raises(Exception, match=r"(?i)no space left"):
        relocate(venv.path, "/app")
    assert differences(before, digest(venv.path, times="files")) == {}


def test_names_that_python_passes_over(venv: Environment) -> None:
    """A directory and a dangling symlink called `x.pth` add nothing to the path."""
    os.mkdir(os.path.join(venv.site_packages, "directory.pth"))
    os.symlink("/nowhere", os.path.join(venv.site_packages, "dangling.pth"))
    relocate(venv.path, venv.path)
    assert {each.kind for each in check(venv.path).problems} <= {"link", "path"}


def test_configuration_with_other_slashes_is_found(venv: Environment) -> None:
    """Neither file has the plain path in it."""
    relocate(venv.path, NEW)
    escaped, quoted = Path(venv.path, "etc/a.json"), Path(venv.path, "etc/b.conf")
    escaped.write_text('{"tool": "' + f"{NEW}/bin/omega".replace("/", "\\/") + '"}')
    quoted.write_text("host = http+unix://" + f"{NEW}/run.sock".replace("/", "%2F"))
    before = digest(venv.path, times="files")
    relocate(venv.path, "/opt/x/1")
    assert escaped.read_text() == r'{"tool": "\/opt\/x\/1\/bin\/omega"}'
    assert quoted.read_text() == "host = http+unix://%2Fopt%2Fx%2F1%2Frun.sock"
    relocate(venv.path, NEW)
    assert differences(before, digest(venv.path, times="files")) == {}
