"""Real virtualenvs for the tests: built by the real tools, at a path that is gone afterwards.

`make` builds each kind once a machine, at `<build root>/relocate-build-<key>/<old>`, moves the
result into a cache directory and hands out copies.  So every copy names an old path that no longer
exists, which is what a virtualenv built elsewhere and carried here looks like.

Variables: `RELOCATE_TEST_CACHE` is the cache directory (default `~/.cache/relocate-core-tests`),
`RELOCATE_TEST_BUILD` the build root (default the directory for temporary files).  Remove the cache
directory to build everything again.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest

RECIPE = 1  # part of every cache key: raise it when this file builds something differently

VERSIONS = ("3.6", "3.7", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "3.15")
TOOLS = {  # tool -> (requirement, Pythons that may run it, best first)
    "virtualenv-16": ("virtualenv>=16.7,<17", ("2.7",)),
    "virtualenv-20": ("virtualenv==20.26.6", ("3.11", "3.12", "3.10", "3.9", "3.13", "3.8")),
    "virtualenv-21": (
        "virtualenv>=21,<22",
        ("3.11", "3.12", "3.13", "3.14", "3.10", "3.9", "3.15"),
    ),
    "uv": ("uv>=0.5", ("3.11", "3.12", "3.13", "3.14", "3.10", "3.9", "3.8", "3.15")),
}
PEERS = {"virtualenv-tools3": ("virtualenv-tools3>=3.1", ("3.11", "3.12", "3.13", "3.10", "3.9"))}
WHEELS = (((3, 7), "wheel<0.38"), ((3, 9), "wheel<0.43"))
KINDS = (*(f"venv-{version}" for version in VERSIONS), *TOOLS, "pypy3.9")

# Variables that would change what the tools write, or stop them from writing bytecode.
UNWANTED = (
    "PIP_NO_COMPILE",
    "PIP_PREFIX",
    "PIP_REQUIRE_VIRTUALENV",
    "PIP_TARGET",
    "PIP_USER",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHOME",
    "PYTHONOPTIMIZE",
    "PYTHONPATH",
    "PYTHONPYCACHEPREFIX",
    "PYTHONSAFEPATH",
    "PYTHONWARNINGS",
    "SOURCE_DATE_EPOCH",
    "UV_COMPILE_BYTECODE",
    "UV_LINK_MODE",
    "UV_PYTHON",
    "UV_SYSTEM_PYTHON",
    "VIRTUAL_ENV",
    "VIRTUAL_ENV_PROMPT",
    "__PYVENV_LAUNCHER__",
)


class BuildError(RuntimeError):
    """A real tool failed; the message holds its command and its output."""


def environ(**extra: str) -> dict[str, str]:
    """The ambient variables without those that change what the tools write."""
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in UNWANTED and not name.startswith(("VIRTUALENV_", "PYTHON_VENV_"))
    }
    env.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_ROOT_USER_ACTION="ignore", **extra)
    return env


def run(*command: str, cwd: str | None = None, **extra: str) -> str:
    """Run a command with `environ(**extra)`, return its output, raise `BuildError` if it fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environ(**extra),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="surrogateescape",
    )
    if done.returncode:
        raise BuildError(f"{command} gave {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


# -- interpreters ---------------------------------------------------------------------------------

PROBE = """
import json, platform, sys
import pip
if sys.version_info[0] > 2:
    import ensurepip, venv
print(json.dumps({
    "executable": sys.executable,
    "implementation": platform.python_implementation(),
    "version": list(sys.version_info[:3]),
    "full": sys.version,
    "flags": getattr(sys, "abiflags", ""),
    "virtual": sys.prefix != getattr(sys, "base_prefix", sys.prefix) or hasattr(sys, "real_prefix"),
}))
"""


class Python(NamedTuple):
    """What an interpreter says of itself."""

    executable: str
    implementation: str
    version: tuple[int, int, int]
    full: str
    flags: str
    virtual: bool

    @property
    def name(self) -> str:
        """`3.12`, `3.14t`, `2.7`, `pypy3.9`: the name `interpreter` knows it by."""
        start = "pypy" if self.implementation == "PyPy" else ""
        end = "t" if "t" in self.flags else ""  # free-threaded
        return f"{start}{self.version[0]}.{self.version[1]}{end}"


@functools.cache
def probe(executable: str) -> Python | None:
    """Ask an interpreter who it is; None where it does not run or cannot make a virtualenv.

    Debian's Pythons have no pip of their own; for those, ensurepip and venv are enough.
    """
    for script in (PROBE, PROBE.replace("import pip\n", "")):
        try:
            done = subprocess.run(
                [executable, "-c", script],
                env=environ(PYENV_VERSION=""),
                cwd=os.sep,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=60,
            )
            said = json.loads(done.stdout.decode("utf-8", "replace")) if not done.returncode else {}
        except (OSError, ValueError, subprocess.TimeoutExpired):
            continue
        if said and (script is PROBE or said["version"][0] > 2):
            said["version"] = tuple(said["version"])
            return Python(**said)
    return None


@functools.cache
def interpreters(version: str) -> tuple[str, ...]:
    """Every installed base interpreter of a version ("3.12", "2.7", "pypy3.9"), best known first.

    Looks on PATH, in pyenv's and in uv's directories, and at the interpreter that runs the tests.
    """
    pypy = version.startswith("pypy")
    names = [version, f"pypy{version[4:5]}", "pypy"] if pypy else [f"python{version}"]
    directories = [
        directory for directory in os.get_exec_path() if "shims" not in directory.split(os.sep)
    ]
    roots = [os.environ.get("PYENV_ROOT") or "~/.pyenv", "~/.pyenv"]
    patterns = [os.path.join(root, "versions/*/bin") for root in roots]
    patterns.append("~/.local/share/uv/python/*/bin")
    for pattern in patterns:
        directories += sorted(glob.glob(os.path.expanduser(pattern)))
    candidates = [os.path.join(directory, name) for directory in directories for name in names]
    candidates.append(getattr(sys, "_base_executable", sys.executable))
    found: dict[str, str] = {}
    for candidate in candidates:
        real = os.path.realpath(candidate)
        if real in found or not os.access(candidate, os.X_OK):
            continue
        python = probe(candidate)
        if python and not python.virtual and python.name == version:
            found[real] = python.executable
    return tuple(found.values())


def interpreter(version: str) -> str | None:
    """The first installed interpreter of a version ("3.12", "2.7", "pypy3.9"), or None."""
    return next(iter(interpreters(version)), None)


def require(version: str) -> str:
    """The interpreter of a version; skips the test where it is not installed."""
    found = interpreter(version)
    if found is None:
        name = f"PyPy {version[4:]}" if version.startswith("pypy") else f"Python {version}"
        pytest.skip(f"{name} is not on this machine")
    return found


def require_any(versions: Iterable[str]) -> str:
    """The interpreter of the first of these versions that is installed; else skips the test."""
    versions = tuple(versions)
    for version in versions:
        found = interpreter(version)
        if found:
            return found
    pytest.skip(f"none of Python {', '.join(versions)} is on this machine")


# -- cache and tools ------------------------------------------------------------------------------


def cache(*parts: str) -> str:
    """A path in the cache directory, its parent made on demand."""
    root = os.environ.get("RELOCATE_TEST_CACHE") or "~/.cache/relocate-core-tests"
    path = os.path.join(os.path.abspath(os.path.expanduser(root)), *parts)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def _key(*values: object) -> str:
    """A short digest of anything json can spell."""
    text = json.dumps([RECIPE, *values], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


@contextmanager
def _lock(name: str) -> Iterator[None]:
    """One process at a time, for one cache entry."""
    with open(cache("locks", name), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class Tool(NamedTuple):
    """An installed tool: the interpreter that runs it, its directory, its exact version."""

    python: str
    directory: str
    version: str


@functools.cache
def tool(name: str) -> Tool:
    """Install a tool of `TOOLS` or `PEERS` into the cache, once; whole or not at all."""
    requirement, hosts = {**TOOLS, **PEERS}[name]
    python = require_any(hosts)
    base = probe(python)
    assert base is not None
    entry = f"{name}-{_key(requirement, base.full)}"
    directory = cache("tools", entry)
    with _lock(entry):
        if not os.path.isdir(directory):
            part = directory + ".part"
            shutil.rmtree(part, ignore_errors=True)
            pip = python
            if "3" in base.name and not _has_pip(python):
                pip = os.path.join(part + ".pip", "bin", "python")
                run(python, "-m", "venv", "--clear", part + ".pip")
            run(pip, "-m", "pip", "install", "-q", "--target", part, requirement)
            shutil.rmtree(part + ".pip", ignore_errors=True)
            os.rename(part, directory)
    distribution = re.split("[<>=]", requirement)[0].replace("-", "_")
    for info in os.listdir(directory):
        match = re.fullmatch(rf"{distribution}-([0-9.]+)\.dist-info", info)
        if match:
            return Tool(python, directory, match.group(1))
    raise BuildError(f"no {distribution} in {directory}")


def installed(requirements: Sequence[str]) -> str:
    """Install packages into the cache for the Python that runs the tests, once; the directory."""
    entry = f"libraries-{_key(*requirements, sys.version)}"
    directory = cache("tools", entry)
    with _lock(entry):
        if not os.path.isdir(directory):
            part = directory + ".part"
            shutil.rmtree(part, ignore_errors=True)
            run(sys.executable, "-m", "pip", "install", "-q", "--target", part, *requirements)
            os.rename(part, directory)
    return directory


def _has_pip(python: str) -> bool:
    return not subprocess.call(
        [python, "-c", "import pip"], env=environ(), stderr=subprocess.DEVNULL
    )


def uv(*arguments: str, cwd: str | None = None) -> str:
    """Run the cached uv."""
    return run(os.path.join(tool("uv").directory, "bin", "uv"), *arguments, cwd=cwd)


# -- small projects -------------------------------------------------------------------------------

MODES = ("default", "strict", "compat", "develop", "regular")


@dataclass(frozen=True)
class Project:
    """A small setuptools project, and how `make` is to install it.

    layout  "src" (`package_dir={"": "src"}`), "flat", or "mapped" (each package lies in a directory
            of another name, so that setuptools writes `__editable___x_finder.py`).
    mode    "default", "strict" or "compat" (`pip install -e` of a modern setuptools), "develop"
            (`setup.py develop` of an old one: egg-link, easy-install.pth), "regular" (a copy).
    inside  the project lies at `<venv>/src/<name>`; else beside the virtualenv, at
            `<venv>-src/<name>`, which is gone after the build.
    """

    name: str
    modules: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()
    entry_points: tuple[str, ...] = ()
    layout: str = "src"
    mode: str = "default"
    inside: bool = True

    def write(self, path: str | os.PathLike[str]) -> str:
        """Write the project into a new directory."""
        return project(
            path,
            self.name,
            self.modules,
            scripts=self.scripts,
            entry_points=self.entry_points,
            layout=self.layout,
        )


def project(
    path: str | os.PathLike[str],
    name: str,
    modules: Sequence[str] = (),
    *,
    scripts: Sequence[str] = (),
    entry_points: Sequence[str] = (),
    layout: str = "src",
) -> str:
    """Write a minimal setuptools project (Python 2.7 and 3, installable offline); return its path.

    Each of `modules` (default: the project's name) is a package whose `main()` prints where the
    package lies and `sys.prefix`.  Each of `scripts` is a `scripts=` file that calls it.
    `entry_points` are console scripts: a name, or `name = package:function`.
    """
    path = os.fspath(path)
    modules = list(modules) or [name.replace("-", "_")]
    directories = {"src": "src/{}", "flat": "{}", "mapped": "code/{}-of-{}"}
    code = "import os\nimport sys\n\nHERE = os.path.dirname(os.path.abspath(__file__))\n"
    code += "\n\ndef main():\n    print(HERE)\n    print(sys.prefix)\n"
    where = {module: directories[layout].format(module, name) for module in modules}
    for directory in where.values():
        os.makedirs(os.path.join(path, directory))
        _write(os.path.join(path, directory, "__init__.py"), code)
    for script in scripts:
        text = f"#!/usr/bin/env python\nimport {modules[0]}\n\n{modules[0]}.main()\n"
        _write(os.path.join(path, "scripts", script), text, 0o755)
    points = [e if "=" in e else f"{e} = {modules[0]}:main" for e in entry_points]
    arguments: dict[str, object] = {
        "name": name,
        "version": "1.0",
        "packages": modules,
        "package_dir": {"": "src"} if layout == "src" else where if layout == "mapped" else {},
        "scripts": [f"scripts/{script}" for script in scripts],
        "entry_points": {"console_scripts": points},
        "zip_safe": False,
    }
    body = "".join(f"    {key}={value!r},\n" for key, value in arguments.items())
    _write(os.path.join(path, "setup.py"), f"from setuptools import setup\n\nsetup(\n{body})\n")
    return path


def _write(path: str, text: str, mode: int = 0o644) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as handle:
        handle.write(text)
    os.chmod(path, mode)


# -- virtualenvs ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Environment:
    """A virtualenv carried to `path`; its files still name `old_prefix`, which does not exist."""

    kind: str
    path: str
    old_prefix: str
    python: str  # the base interpreter
    version: str  # "3.12.1"
    tool: str  # "venv", "virtualenv 20.26.6", "uv 0.5.1"
    outside: str = field(default="", repr=False)  # where projects beside the virtualenv lay

    @property
    def executable(self) -> str:
        """`bin/python`."""
        return os.path.join(self.path, "bin", "python")

    @property
    def site_packages(self) -> str:
        """The directory with the installed packages."""
        (found,) = glob.glob(os.path.join(glob.escape(self.path), "lib", "*", "site-packages"))
        return found

    def bin(self, name: str) -> str:
        """A file of `bin`."""
        return os.path.join(self.path, "bin", name)

    def run(self, *arguments: str, **extra: str) -> str:
        """Run `bin/python` with a clean environment; return what it printed."""
        return run(self.executable, *arguments, **extra)


def make(
    kind: str,
    path: str | os.PathLike[str],
    *,
    packages: Sequence[str] = (),
    projects: Sequence[Project] = (),
    commands: Sequence[Sequence[str]] = (),
    python: str | None = None,
    old: str = "venv",
    copies: bool = False,
    system_site_packages: bool = False,
    prompt: str | None = None,
    relocatable: bool = False,
    seed: bool = False,
    without_pip: bool = False,
) -> Environment:
    """Hand out a real virtualenv at `path` (which must not exist); skip if a Python is missing.

    kind      one of `KINDS`.
    packages  requirements for pip, or for uv where the kind is uv.
    projects  see `Project`; the build tools they need are installed too.
    commands  more commands to run at the old path; "{prefix}" stands for it, in every argument.
    python    for virtualenv and uv: a version or a path; for venv: another interpreter's path.
    old       the end of the old path, after `<build root>/relocate-build-<key>/`.  It may have
              directories, spaces, quotes, and any length.
    seed      uv only: install pip (and setuptools) too.  relocatable: uv only.
    without_pip  venv only: a fiftieth of the files, for what needs none of them.
    """
    host = _host(kind)
    base = _base(kind, python, host)
    only_venv = without_pip and host is not None
    if only_venv or (copies if kind == "uv" else relocatable or seed):
        raise ValueError(f"{kind} has no such option")
    root = os.path.realpath(os.environ.get("RELOCATE_TEST_BUILD") or tempfile.gettempdir())
    options = [copies, system_site_packages, prompt, relocatable, seed]
    options += ["without pip"] * without_pip
    key = _key(
        *(kind, root, base.executable, base.full, host and host.version, old, options),
        *(list(packages), [repr(p) for p in projects], [list(c) for c in commands]),
    )
    build = os.path.join(root, f"relocate-build-{key}")
    prefix = os.path.join(build, old)
    entry = f"{kind}-{key}"
    kept = cache("environments", entry)
    with _lock(entry):
        if not os.path.isdir(kept):
            shutil.rmtree(kept + ".part", ignore_errors=True)
            shutil.rmtree(build, ignore_errors=True)
            os.makedirs(os.path.dirname(prefix))
            try:
                _create(kind, prefix, base, host, options)
                _install(kind, prefix, packages)
                for each in projects:
                    _install_project(kind, prefix, each, base)
                for command in commands:
                    run(*(word.replace("{prefix}", prefix) for word in command), cwd=prefix)
                os.makedirs(kept + ".part")
                shutil.move(prefix, os.path.join(kept + ".part", "tree"))
            finally:
                shutil.rmtree(build, ignore_errors=True)
            os.rename(kept + ".part", kept)
        if os.path.lexists(build):
            raise BuildError(f"the old path must be gone: {build}")
    path = os.path.abspath(os.fspath(path))
    copy(os.path.join(kept, "tree"), path)
    return Environment(
        kind=kind,
        path=path,
        old_prefix=prefix,
        python=base.executable,
        version=".".join(map(str, base.version)),
        tool=f"{kind.partition('-')[0]} {host.version}" if host else "venv",
        outside=prefix + "-src",
    )


def copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> str:
    """Copy a tree to a new path: symlinks as such, with modes, times and xattrs; no file is shared.

    By `cp`, which takes a third of what Python's own way takes.
    """
    source, target = os.path.abspath(source), os.path.abspath(target)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    run("cp", "-a", "--no-preserve=links", "-T", "--", source, target)
    return target


def _host(kind: str) -> Tool | None:
    if kind not in KINDS:
        raise ValueError(f"no such kind: {kind}")
    return tool(kind) if kind in TOOLS else None


def _base(kind: str, python: str | None, host: Tool | None) -> Python:
    """The interpreter that the virtualenv is for."""
    if python is None and host is not None and kind != "uv":
        python = host.python
    if python is None and kind == "uv":
        python = require_any(("3.12", "3.13", "3.11", "3.14", "3.10", "3.9", "3.8"))
    if python is None:
        python = require(kind.removeprefix("venv-"))
    elif os.sep not in python:
        python = require(python)
    base = probe(python)
    if base is None:
        raise BuildError(f"{python} cannot make a virtualenv")
    return base


def _create(
    kind: str, prefix: str, base: Python, host: Tool | None, options: Sequence[object]
) -> None:
    """Let the tool make an empty virtualenv."""
    copies, system_site_packages, prompt, relocatable, seed, *without_pip = options
    shared = ["--system-site-packages"] if system_site_packages else []
    if prompt is not None:
        shared += ["--prompt", str(prompt)]
    if kind == "uv":
        flags = [flag for flag, on in (("--relocatable", relocatable), ("--seed", seed)) if on]
        uv("venv", "-q", "-p", base.executable, *shared, *flags, prefix)
        return
    if host is None:
        flags = ["--copies"] if copies else []
        flags += ["--without-pip"] if without_pip else []
        run(base.executable, "-m", "venv", *shared, *flags, prefix)
        return
    flags = ["--no-download", "-p", base.executable]
    if copies:
        flags.append("--always-copy")
    run(host.python, "-m", "virtualenv", *shared, *flags, prefix, PYTHONPATH=host.directory)


def _install(kind: str, prefix: str, arguments: Sequence[str], cwd: str | None = None) -> None:
    """Install with the tool that a user of this kind would take."""
    python = os.path.join(prefix, "bin", "python")
    if not arguments:
        return
    if kind == "uv":
        uv("pip", "install", "-q", "-p", python, *arguments, cwd=cwd)
    else:
        run(python, "-m", "pip", "install", "-q", *arguments, cwd=cwd)


def _install_project(kind: str, prefix: str, each: Project, base: Python) -> None:
    """Write a project inside or beside the virtualenv, and install it as its mode says."""
    if each.mode not in MODES:
        raise ValueError(f"no such mode: {each.mode}")
    parent = os.path.join(prefix, "src") if each.inside else prefix + "-src"
    directory = each.write(os.path.join(parent, each.name))
    if each.mode == "develop":
        _install(kind, prefix, ["setuptools<80"])
        run(os.path.join(prefix, "bin", "python"), "setup.py", "-q", "develop", cwd=directory)
        return
    # an old pip takes a release that its Python cannot run, so name the last that it can
    wheel = next((w for v, w in WHEELS if base.version < v), "wheel")
    if each.mode == "regular" or base.version < (3, 7):
        _install(kind, prefix, ["setuptools", wheel])
    else:
        _install(kind, prefix, ["-U", *([] if kind == "uv" else ["pip"]), "setuptools", wheel])
    arguments = ["--no-deps", "--no-build-isolation"]
    if each.mode in ("strict", "compat"):
        if base.version < (3, 7):
            raise ValueError("setuptools has editable modes from Python 3.7 on")
        arguments += ["--config-settings", f"editable_mode={each.mode}"]
    if each.mode != "regular":
        arguments.append("-e")
    _install(kind, prefix, [*arguments, directory], cwd=directory)


# -- oracles: none of them uses relocate_core ------------------------------------------------------


def references(tree: str | os.PathLike[str], needle: str | bytes) -> list[str]:
    """Relative paths of all files that hold the needle, and of all links whose target does.

    A plain search for bytes: it has no notion of where a path ends.
    """
    wanted = os.fsencode(needle)
    found = []
    for path, status in _walk(os.fspath(tree)):
        full = os.path.join(os.fspath(tree), path)
        if stat.S_ISLNK(status.st_mode):
            text = os.fsencode(os.readlink(full))
        elif stat.S_ISREG(status.st_mode):
            text = _read(full)
        else:
            continue
        if wanted in text:
            found.append(path)
    return found


class Fingerprint(NamedTuple):
    """Everything about a file that a relocation must not change by accident."""

    type: str  # "file", "link", "directory", "other"
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    size: int  # 0 for a directory
    content: str  # sha256 of a file, target of a link
    xattrs: tuple[tuple[str, bytes], ...]


def digest(tree: str | os.PathLike[str], *, times: str = "all") -> dict[str, Fingerprint]:
    """Fingerprint each path of a tree, "." too.

    times  "all", "files" (leave out those of directories, which any rename inside them changes)
           or "none".
    """
    if times not in ("all", "files", "none"):
        raise ValueError(f"no such times: {times}")
    root = os.fspath(tree)
    found = {}
    for path, status in [(".", os.lstat(root)), *_walk(root)]:
        full = os.path.join(root, path)
        size, content, kind = status.st_size, "", "other"
        if stat.S_ISDIR(status.st_mode):
            size, kind = 0, "directory"
        elif stat.S_ISLNK(status.st_mode):
            content, kind = os.readlink(full), "link"
        elif stat.S_ISREG(status.st_mode):
            content, kind = hashlib.sha256(_read(full)).hexdigest(), "file"
        timed = times == "all" or (times == "files" and kind != "directory")
        found[path] = Fingerprint(
            kind,
            stat.S_IMODE(status.st_mode),
            (status.st_uid, status.st_gid),
            status.st_mtime_ns if timed else 0,
            size,
            content,
            _xattrs(full),
        )
    return found


def differences(
    before: Mapping[str, Fingerprint], after: Mapping[str, Fingerprint]
) -> dict[str, tuple[str, ...]]:
    """Which fields of which paths differ: `{"bin/pip": ("content", "size")}`."""
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted({*before, *after}):
        old, new = before.get(path), after.get(path)
        if old is None or new is None:
            found[path] = ("added",) if old is None else ("removed",)
        elif old != new:
            names = Fingerprint._fields
            found[path] = tuple(name for name, a, b in zip(names, old, new) if a != b)
    return found


def _walk(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every path below root, sorted, no link followed."""
    left = [""]
    while left:
        path = left.pop()
        if path:
            status = os.lstat(f"{root}/{path}")
            yield path, status
            if not stat.S_ISDIR(status.st_mode):
                continue
        names = sorted(os.listdir(f"{root}/{path}"), reverse=True)
        left += [f"{path}/{name}" if path else name for name in names]


def _read(path: str) -> bytes:
    with open(path, "rb") as handle:
        return handle.read()


def _xattrs(path: str) -> tuple[tuple[str, bytes], ...]:
    """Extended attributes of a path itself; none where there is no such thing."""
    if not hasattr(os, "listxattr"):
        return ()
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
        return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
    except OSError:
        return ()
