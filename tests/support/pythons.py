"""Small real Pythons with a prefix of their own, and the bundles of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from relocate_core import PythonPacking, pack, pack_python
from relocate_core.artefacts import binaries, elf
from relocate_core.errors import RelocateError
from relocate_core.interpreters.prefix import inspect
from tests.support import environments
from tests.support.bundles import rewritten
from tests.support.packages import unpacked

VERSIONS = ("3.12", "3.13", "3.11", "3.10", "3.9")
_USED = """
import sys, sysconfig, json, encodings.utf_8, importlib.machinery, importlib.util, collections
import math, zlib, warnings, encodings.idna, os, re, runpy, pkgutil, stringprep
import platform, struct, subprocess, site, logging, typing, contextlib, importlib.metadata
sysconfig.get_config_vars()
for module in list(sys.modules.values()):
    file = getattr(module, '__file__', None)
    if file:
        print(file)
"""


@cache
def prefix_of(version: str) -> str | None:
    """The prefix of a Python of that version which can be packed."""
    for executable in environments.interpreters(version):
        prefix = os.path.dirname(os.path.dirname(os.path.realpath(executable)))
        try:
            inspect(prefix)
        except RelocateError:
            continue
        return prefix
    return None


def require(*versions: str) -> str:
    """The prefix of the first of these that can be packed; skips without any."""
    for version in versions or VERSIONS:
        prefix = prefix_of(version)
        if prefix is not None:
            return prefix
    pytest.skip(f"no Python {', '.join(versions)} with a prefix of its own on this machine")


def small(prefix: str, to: str | os.PathLike[str]) -> str:
    """A copy of a Python with hardly more than it needs to start; its prefix.

    It still refers to the prefix that it was built for, in all the kinds of files that do.
    """
    program = os.path.join(prefix, inspect(prefix).program)
    done = subprocess.run(
        [program, "-I", "-c", _USED], capture_output=True, text=True, check=True, cwd="/"
    )
    wanted = [*done.stdout.split(), *_described(prefix)]
    for path in dict.fromkeys(wanted):
        if os.path.realpath(path).startswith(prefix + "/"):
            target = os.path.join(to, os.path.relpath(path, prefix))
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy2(path, target, follow_symlinks=False)
    _strip(os.fspath(to))
    return os.fspath(to)


def _strip(prefix: str) -> None:
    """Take the debug information out, four fifths of its bytes, where there is a tool for it."""
    tool = shutil.which("strip")
    binaries = (*Path(prefix).glob("bin/*"), *Path(prefix).rglob("*.so*"))
    named = [str(path) for path in binaries if not path.is_symlink() and _is_elf(path)]
    if tool and named:
        subprocess.run([tool, "--strip-debug", "--preserve-dates", *named], check=True)


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _described(prefix: str) -> Iterator[str]:
    """The programs, the shared libraries, and what contains how it was built."""
    top = Path(prefix)
    patterns = (
        *("bin/python*", "lib/libpython*.so*", "lib/pkgconfig/python*.pc"),
        *("lib/python3*/config-*/Makefile", "include/python3*/pyconfig.h"),
        "lib/python3*/_sysconfigdata*.py",
    )
    for pattern in patterns:
        for path in top.glob(pattern):
            if path.is_symlink() or path.is_file():
                yield str(path)


def published(prefix: str, directory: Path, ending: str = ".tar.gz") -> Path:
    """A small Python in an archive, as python-build-standalone publishes `install_only` ones.

    It was built for /install, where nothing of it is, and its programs find their library relative
    to themselves.

    Args:
        prefix: the Python's.
        directory: where the archive is made, and what is in it.
        ending: that of the archive's name.
    """
    top = directory / "published" / "python"
    if not top.exists():
        small(prefix, top)
        for path in top.rglob("*"):
            if path.is_file() and not path.is_symlink():
                _publish(path, os.fsencode(prefix))
    archive = directory / f"cpython-3+20250612-x86_64-unknown-linux-gnu-install_only{ending}"
    subprocess.run(["tar", "-caf", archive, "-C", top.parent, "python"], check=True)
    return archive


def _publish(path: Path, prefix: bytes) -> None:
    data = path.read_bytes()
    if not data.startswith(elf.MAGIC):
        path.write_bytes(data.replace(prefix, b"/install"))
    elif binaries.runpath(data):
        path.write_bytes(binaries.with_runpath(data, b"$ORIGIN/../lib"))


@dataclass(frozen=True)
class Pair:
    """A small Python's bundle, and the bundle of a virtualenv of it.

    Attributes:
        prefix: where that Python is.
        python: its bundle, as it was packed.
        app: the path of the virtualenv's bundle.
    """

    prefix: str
    python: PythonPacking
    app: str

    @classmethod
    def make(cls, directory: Path, version: str | None = None, ending: str = ".tar") -> Pair:
        """Pack both; skips without a Python that can be packed."""
        base = require(*([version] if version else VERSIONS))
        prefix = small(base, directory / "small")
        python = pack_python(prefix, str(directory / f"python{ending}"), keep=["headers"])
        made = environments.make("uv", directory / "build", python=inspect(base).executable)
        app = str(directory / f"app{ending}")
        pack(str(made.path), app)
        return cls(prefix, python, app)

    def naming(self, to: str | os.PathLike[str]) -> str:
        """Write the virtualenv's bundle as if it was built on the Python's; its path."""
        known = self.python
        built_on = {"file": self.file, "manifest": known.manifest, "sha256": known.sha256}
        return rewritten(self.app, to, lambda head: head.update(built_on=built_on))

    @property
    def file(self) -> str:
        """What a build calls the Python's bundle beside the virtualenv's."""
        return f"cpython-{self.python.version}-{self.python.manifest[:12]}.tar"

    @property
    def digests(self) -> dict[str, str]:
        """What the Python's bundle hashes to."""
        return {"sha256": self.python.sha256}


def extended(prefix: str, to: str | os.PathLike[str], *wheels: str | os.PathLike[str]) -> str:
    """A Python with the standard library of another one, and packages of its own.

    Args:
        prefix: the other one's.
        to: its own.
        wheels: what it has on the system level.

    Returns:
        Its program.
    """
    program = os.path.join(prefix, inspect(prefix).program)
    library = Path(to, "lib", os.path.basename(program))
    site_packages = library / "site-packages"
    site_packages.mkdir(parents=True)
    for entry in os.scandir(os.path.join(prefix, "lib", library.name)):
        if entry.name != "site-packages":
            os.symlink(entry.path, library / entry.name)
    own = Path(to, "bin", library.name)
    own.parent.mkdir()
    shutil.copy2(program, own)
    for wheel in wheels:
        unpacked(Path(wheel), site_packages)
    return os.fspath(own)
