"""Putting a virtualenv onto another base Python.

A virtualenv holds no Python, only symlinks to one (or a copy of its executable) and pyvenv.cfg,
which records where that one is. On another machine, both have to refer to a Python there.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

from ..errors import InterpreterMismatch, TreeError
from ..progress import Report
from ..system import files
from ..system.locks import locked
from ..system.transaction import Change, Transaction, reserve
from ..virtualenvs import rewritten
from ..virtualenvs.carried import carried_python, probe_carried
from ..virtualenvs.contents import read_contents
from ..virtualenvs.discovery import find_fitting, find_named, require_fit
from ..virtualenvs.interpreter import (
    PROGRAM_NAME,
    Interpreter,
    is_program,
    probe_own,
)
from ..virtualenvs.layout import Virtualenv, inspect, read_config
from ..virtualenvs.manifest_reader import system_packages

# Any other may be something else, unless `python` is just that.
_USUAL_NAME = re.compile(r"(?:python|pypy)[\d.]*t?\Z")


@dataclass
class Reinitialization(Report):
    """What putting a virtualenv onto a Python did, or in a dry run would do.

    Attributes:
        path: the virtualenv, as it was given.
        python: the executable that it runs on now.
        version: that Python's X.Y.Z.
        old_python: what `bin/python` pointed to before; None where it was a copy.
        files: what was written, relative to the virtualenv; empty where nothing was to be done.
        dry_run: whether nothing was changed.
        problems: {"file", "reason"} of what that Python misses of the system, where it was tried.
    """

    path: str
    python: str
    version: str
    old_python: str | None
    files: list[str] = field(default_factory=list)
    dry_run: bool = False
    problems: list[dict[str, str]] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether anything was (in a dry run: would be) written."""
        return bool(self.files)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON and Salt."""
        return {**super().as_dict(), "changed": self.changed}


def reinitialize(
    path: str,
    python: str | Interpreter | None = None,
    *,
    dry_run: bool = False,
    wait: float = 30.0,
    unpublished: bool = False,
    as_root: bool | None = None,
    home: str | None = None,
    compiled: dict[str, set[str]] | None = None,
) -> Reinitialization:
    """Put the virtualenv at `path` onto a Python of this machine.

    Symlinks and copies of the interpreter and pyvenv.cfg are made to refer to it; nothing is
    downloaded and no package is touched. The result is run once before it counts.

    Args:
        path: the virtualenv's directory.
        python: an executable, a command on the PATH or a version `X.Y`, or a Python that is known
            to be the right one; by default the Python that the virtualenv carries itself, or that
            pyvenv.cfg refers to, if it is there and fits, else the first that fits.
        dry_run: look, and change nothing.
        wait: seconds to wait for another run on the same virtualenv.
        unpublished: whether nobody relies on the tree yet; see `relocate`.
        as_root: whether the operator named root as the owner who should run it; see `probe_own`.
        home: the path that it is going to be renamed to, where it is not there yet.
        compiled: the file name endings of its compiled modules, where they are known; see
            `read_contents`.

    Returns:
        What was done. Nothing is done where it is on that Python already.

    Raises:
        RelocateError: one of its subclasses, in one sentence; the virtualenv is as it was before.
    """
    environment = inspect(path)
    root = files.open_root(path)
    try:
        with locked(root, path, wait):
            environment = inspect(path)
            if compiled is None:
                compiled = read_contents(environment).compiled
            system = () if isinstance(python, Interpreter) else system_packages(root, environment)
            own = carried_python(environment, home) if python is None else None
            if own is not None:
                return _on_its_own(environment, own, home, as_root, compiled)
            if python is None:
                interpreter = find_fitting(environment, compiled, system)
            else:
                interpreter = find_named(python) if isinstance(python, str) else python
                require_fit(environment, interpreter, compiled, system)
            return _Swap(root, environment, interpreter, dry_run, unpublished, as_root).run()
    except OSError as error:
        raise TreeError.of(path, error) from error
    finally:
        os.close(root)


def _on_its_own(
    environment: Virtualenv,
    python: str,
    home: str | None,
    as_root: bool | None,
    compiled: dict[str, set[str]],
) -> Reinitialization:
    """Nothing is done to a virtualenv that carries its Python, once that has run."""
    found = probe_carried(environment, python, as_root)
    require_fit(environment, found, {} if found.untried else compiled)
    top = os.path.abspath(environment.path)
    final = (home or top) + python[len(top) :]
    return Reinitialization(environment.path, final, found.long_version, final)


class _Swap:
    """Putting one virtualenv onto one Python."""

    def __init__(
        self,
        root: int,
        environment: Virtualenv,
        interpreter: Interpreter,
        dry_run: bool,
        unpublished: bool,
        as_root: bool | None,
    ) -> None:
        self.root = root
        self.as_root = as_root
        self.unpublished = unpublished
        self.environment = environment
        self.interpreter = interpreter
        self.old_base = _old_base(environment)
        # What is to be written, by its path: symlinks and their targets, copies and of what, texts.
        self.links: dict[str, str] = {}
        self.copies: dict[str, str] = {}
        self.texts: dict[str, bytes] = {}
        old = os.path.join(environment.path, "bin", "python")
        self.report = Reinitialization(
            environment.path,
            interpreter.executable,
            interpreter.long_version,
            None if environment.copies else final_link(old),
            dry_run=dry_run,
        )

    def run(self) -> Reinitialization:
        if not self.report.dry_run and not self.unpublished:
            files.clear_leftovers(self.root)
        self._plan_interpreters()
        self._plan_links()
        self._plan_config()
        self.report.files = sorted((*self.links, *self.copies, *self.texts))
        if not self.report.dry_run and self.report.changed:
            transaction = Transaction(
                self.root, self.environment.path, durable=not self.unpublished
            )
            with reserve(self.root) as release:
                try:
                    self._write(transaction)
                    transaction.commit(_rank, 1, keep=True)
                    self._verify()
                    transaction.clean()
                except BaseException:
                    release()
                    transaction.put_back()
                    raise
        return self.report

    def _plan_interpreters(self) -> None:
        """The symlinks and copies in `bin` that are the base Python."""
        base = self.interpreter.executable
        directory = os.path.join(self.environment.path, "bin")
        python = os.path.join(directory, "python")
        final = final_link(python)
        for name in sorted(filter(PROGRAM_NAME.match, os.listdir(directory))):
            path = os.path.join(directory, name)
            certain = _USUAL_NAME.match(name)
            if os.path.islink(path):
                target = os.readlink(path)
                if "/" not in target or _inside(path, target, directory):
                    continue
                if target != base and (certain or target == final):
                    self.links[f"bin/{name}"] = base
            elif (
                is_program(path)
                and not _same_content(path, base)
                and (certain or (is_program(python) and _same_content(path, python)))
            ):
                self.copies[f"bin/{name}"] = base

    def _plan_links(self) -> None:
        """Other symlinks into the old base: virtualenv 16's library, PyPy's shared library."""
        if self.old_base is None or self.old_base == self.interpreter.base_prefix:
            return
        for top in ("bin", "lib", "lib64", "include"):
            for directory, directories, names in os.walk(os.path.join(self.environment.path, top)):
                if os.path.basename(directory) == "site-packages":
                    directories.clear()
                    continue
                for name in (*directories, *names):
                    path = os.path.join(directory, name)
                    relative = os.path.relpath(path, self.environment.path)
                    if name.startswith(files.TEMPORARY):
                        continue
                    if os.path.islink(path) and relative not in self.links:
                        self._plan_link(relative, os.readlink(path))

    def _plan_link(self, path: str, target: str) -> None:
        if not target.startswith(f"{self.old_base}/"):
            return
        moved = self.interpreter.base_prefix + target[len(str(self.old_base)) :]
        if os.path.exists(moved):
            self.links[path] = moved

    def _plan_config(self) -> None:
        """pyvenv.cfg, or what virtualenv 16 has in its place."""
        for name, edit in (
            ("pyvenv.cfg", self._edit_config),
            (f"lib/python{self.environment.python}/orig-prefix.txt", self._edit_orig_prefix),
        ):
            try:
                with open(os.path.join(self.environment.path, name), "rb") as file:
                    old = file.read()
            except FileNotFoundError:
                continue
            new = edit(old)
            if new != old:
                self.texts[name] = new

    def _edit_orig_prefix(self, old: bytes) -> bytes:
        return os.fsencode(self.interpreter.base_prefix)

    def _edit_config(self, old: bytes) -> bytes:
        """Only values change, and only of keys that are there; every other byte stays."""
        interpreter = self.interpreter
        values = {
            b"home": os.path.dirname(interpreter.executable),
            b"executable": os.path.realpath(interpreter.executable),
            b"base-executable": interpreter.executable,
            b"base-prefix": interpreter.base_prefix,
            b"base-exec-prefix": interpreter.base_prefix,
            b"version": interpreter.long_version,
        }
        lines = []
        for line in old.splitlines(keepends=True):
            match = re.match(rb"([ \t]*([\w-]+)[ \t]*=[ \t]*)(.*?)([ \t]*\r?\n?)\Z", line, re.S)
            if match:
                key, value = match[2].lower(), match[3]
                if key == b"version_info":
                    value = _version_info(value, interpreter)
                elif key in values:
                    value = os.fsencode(values[key])
                line = match[1] + value + match[4]
            lines.append(line)
        return b"".join(lines)

    def _write(self, transaction: Transaction) -> None:
        for path, target in self.links.items():
            transaction.link(path, target)
        for path, source in self.copies.items():
            with open(source, "rb") as file:
                transaction.write(path, "copy", iter(lambda: file.read(1 << 20), b""))
        for path, data in self.texts.items():
            transaction.write(path, "config", data)
        rewritten.update(self.root, transaction)

    def _verify(self) -> None:
        """Run the virtualenv's Python: it has to be the wanted one."""
        base: str | None = os.path.dirname(self.interpreter.executable)
        if not self.unpublished and os.stat(self.environment.path).st_uid != 0:
            base = None  # its owner could put anything in the place of the link to it
        found = probe_own(self.environment.path, base, self.as_root)
        if found.version != self.interpreter.version:
            raise InterpreterMismatch(
                f"cannot put {self.environment.path} onto {self.interpreter.executable}: "
                f"its bin/python then is Python {found.long_version}"
            )


def _rank(item: Change) -> int:
    # What refers to the old base comes last: a second run has to know it to find what is left.
    return 1 if item.kind == "config" else 0


def final_link(path: str) -> str | None:
    """Where a chain of symlinks leaves its own directory; None where `path` is no symlink."""
    directory = os.path.dirname(path)
    target = None
    for _ in range(8):
        if not os.path.islink(path):
            break
        target = os.readlink(path)
        path = os.path.join(directory, target)
        if "/" in target:
            break
    return target


def _inside(path: str, target: str, directory: str) -> bool:
    """Whether a symlink in `directory` stays in it."""
    return (
        os.path.dirname(os.path.normpath(os.path.join(os.path.dirname(path), target))) == directory
    )


def _same_content(one: str, other: str) -> bool:
    import filecmp

    return filecmp.cmp(one, other, shallow=False)


def _old_base(environment: Virtualenv) -> str | None:
    """The prefix of the base Python that the virtualenv was made from."""
    config = read_config(environment.path)
    if "base-prefix" in config:
        return config["base-prefix"]
    if environment.home:
        return os.path.dirname(environment.home)
    library = os.path.join(environment.path, "lib", f"python{environment.python}")
    try:
        with open(os.path.join(library, "orig-prefix.txt"), errors="surrogateescape") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def _version_info(old: bytes, interpreter: Interpreter) -> bytes:
    """The version in as many parts as there were: `3.11.7` (uv) or `3.11.7.final.0`."""
    parts = [*map(str, interpreter.version), "final", "0"]
    return ".".join(parts[: max(3, old.count(b".") + 1)]).encode()
