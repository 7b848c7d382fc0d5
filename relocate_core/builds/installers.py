"""pip and uv, as what finds, builds and installs packages.

Both make a plan first, without touching the environment: which distributions should be in it, each
with a description of its content. With pip the plan is a directory of wheels, described by their
RECORDs; so all downloads and compilers have succeeded before anything is installed, and nothing
that is installed contains where it came from. With uv it is the output of `uv pip compile`, hashes
included.

pip is never in the environment that it installs into: it runs from an environment of its own, which
is kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

from ..errors import BuildFailed
from ..virtualenvs.interpreter import Interpreter
from ..virtualenvs.requirements import normal_name
from .environment import Environment
from .runner import Runner, output_of
from .sources import Wheel, digest_of, wheel
from .tools import Program, uv, virtualenv

INSTALLERS = ("pip", "uv")
"""What installs packages."""

_OLDEST_PIP = (22, 3)
_READY = ".ready"
# A backend may ask git for the version; the checkout may belong to whoever pulls.
_TRUSTING_GIT = {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
}
_PIN = re.compile(r"([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?\s*(==|@)\s*(\S+)")
# Without the configured indexes: wheels of the plan are installed from their directory alone.
_NO_CONFIGURATION = {"PIP_CONFIG_FILE": os.devnull, "PIP_REQUIRE_HASHES": None, "PIP_PRE": None}


@dataclass(frozen=True)
class Wanted:
    """What is to be installed.

    Attributes:
        directory: where relative paths in the files start from.
        files: requirement files.
        constraints: constraint files.
        pip_packages: requirements.
        wheels: wheel files, the project's own one among them.
        require_hashes: whether every package needs a hash.
        hashes: the hashes that the requirement files list for a distribution, by its name.
    """

    directory: str
    files: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    pip_packages: tuple[str, ...] = field(default=(), repr=False)
    wheels: tuple[Wheel, ...] = ()
    require_hashes: bool = False
    hashes: Mapping[str, str] = field(default_factory=dict)


class Installer(Protocol):
    """What pip and uv have in common."""

    def prepare(self) -> None:
        """Have it ready to run."""

    @property
    def program(self) -> Program:
        """The program that installs."""

    def wheel_of(self, project: str, environment: Environment, directory: str) -> str:
        """Build a project's wheel into a directory; its path."""

    def plan(self, wanted: Wanted, environment: Environment) -> dict[str, str]:
        """A description of the content of each distribution to install, by its name."""

    def install(
        self, names: Iterable[str], obsolete: Iterable[str], environment: Environment
    ) -> None:
        """Remove the obsolete distributions, and install some of the plan.

        Args:
            names: what is to be installed.
            obsolete: what is not in the plan, or has another content.
            environment: where.
        """


def find_installer(
    name: str,
    directory: str,
    interpreter: Interpreter,
    runner: Runner,
    no_index: bool = False,
    own_pip: str | None = None,
) -> Installer:
    """pip or uv.

    Args:
        name: one of INSTALLERS.
        directory: the build's directory in the cache.
        interpreter: the Python that is installed for.
        runner: runs it.
        no_index: whether it should use no index; pip has a variable for that.
        own_pip: the version of the pip that the Python brings, "" without one; by default it is
            run to find that out.

    Raises:
        BuildFailed: it is not installed; the message has how to install it.
    """
    if name == "uv":
        return Uv(directory, runner, no_index)
    return Pip(directory, interpreter, runner, own_pip)


class _Base:
    """What both have: files of requirements in the directory of the build."""

    def __init__(self, directory: str, runner: Runner) -> None:
        self._directory = directory
        self._runner = runner
        self._requirements = os.path.join(directory, "requirements.txt")
        self._selected = os.path.join(directory, "selected.txt")

    def _write(self, path: str, lines: Iterable[str]) -> str:
        """Write a requirement file that nobody else can read: URLs may have credentials."""
        with suppress(FileNotFoundError):
            os.unlink(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(path, flags, 0o600), "w", errors="surrogateescape") as file:
            file.writelines(f"{line}\n" for line in lines)
        return path

    def _arguments(self, wanted: Wanted, own: Sequence[str]) -> list[str]:
        arguments = [word for file in wanted.files for word in ("-r", file)]
        if own:
            arguments += ["-r", self._write(self._requirements, own)]
        arguments += [word for file in wanted.constraints for word in ("-c", file)]
        return arguments + (["--require-hashes"] if wanted.require_hashes else [])


# --- pip ------------------------------------------------------------------------------------------


class Pip(_Base):
    """pip, in an environment of its own."""

    def __init__(
        self,
        directory: str,
        interpreter: Interpreter,
        runner: Runner,
        own_version: str | None = None,
    ) -> None:
        super().__init__(directory, runner)
        self._interpreter = interpreter
        self._known_version = own_version
        self._home = os.path.join(directory, "pip")
        self._python = os.path.join(self._home, "bin", "python")
        self._wheels = os.path.join(directory, "planned")
        self._planned: dict[str, Wheel] = {}

    @property
    def program(self) -> Program:
        """pip in the cache, or before that the one that is bundled with the Python."""
        return Program("pip", (self._python,), self._kept_version() or self._own_version())

    def _kept_version(self) -> str:
        try:
            with open(os.path.join(self._home, _READY)) as file:
                executable, version = file.read().splitlines()
        except (OSError, ValueError):
            return ""
        return version if executable == self._identity() else ""

    def _own_version(self) -> str:
        command = ("-I", "-c", "import ensurepip; print(ensurepip.version())")
        version = self._known_version
        if version is None:
            version = (output_of(self._interpreter.executable, *command) or "").strip()
        return version if _is_new_enough(version) else ""

    def _identity(self) -> str:
        return f"{self._interpreter.executable} {self._interpreter.long_version}"

    def prepare(self) -> None:
        """Create pip's own environment, unless it exists."""
        if self._kept_version() and os.access(self._python, os.X_OK):
            return
        shutil.rmtree(self._home, ignore_errors=True)
        self._runner.run("creating an environment for pip", self._creation(), self._directory)
        pip = [self._python, "-I", "-m", "pip"]
        version = _version_of(pip)
        if not _is_new_enough(version):
            upgrade = [*pip, "install", "--upgrade", "pip>=22.3"]
            self._runner.run("upgrading pip", upgrade, self._directory, PIP_REQUIRE_HASHES=None)
            version = _version_of(pip)
        with open(os.path.join(self._home, _READY), "w") as file:
            file.write(f"{self._identity()}\n{version}\n")

    def _creation(self) -> list[str]:
        python = self._interpreter.executable
        if output_of(python, "-I", "-c", "import venv, ensurepip") is not None:
            return [python, "-I", "-m", "venv", self._home]
        other = virtualenv(self._interpreter)
        if other is not None:
            return [*other.command, "--no-periodic-update", "--python", python, self._home]
        raise BuildFailed(
            f"there is no pip for {python}: install its ensurepip (on Debian: python3-venv) or "
            "virtualenv, or let uv install the packages"
        )

    def _pip(self, environment: Environment, *words: str) -> list[str]:
        return [self._python, "-I", "-m", "pip", "--python", environment.python, *words]

    def wheel_of(self, project: str, environment: Environment, directory: str) -> str:
        """Build a project's wheel into a directory; its path."""
        command = self._pip(environment, "wheel", "--no-deps", "--wheel-dir", directory, project)
        env = {"PIP_REQUIRE_HASHES": None, **_TRUSTING_GIT}
        self._runner.run("building the project", command, project, **env)
        return _only_wheel(directory)

    def plan(self, wanted: Wanted, environment: Environment) -> dict[str, str]:
        """Get wheels of all that is to be installed; a description of the content of each."""
        own = [
            f"{one.name}{one.extras} @ {_url(one.path)}#sha256={one.digest}"
            for one in wanted.wheels
        ]
        shutil.rmtree(self._wheels, ignore_errors=True)
        if environment.system_site_packages:
            self._collect_lacking(wanted, own, environment)
        else:
            command = self._pip(environment, "wheel", "--wheel-dir", self._wheels)
            arguments = self._arguments(wanted, [*wanted.pip_packages, *own])
            self._runner.run("finding the packages", [*command, *arguments], wanted.directory)
        names = [name for name in os.listdir(self._wheels) if name.endswith(".whl")]
        wheels = [wheel(os.path.join(self._wheels, name)) for name in names]
        self._planned = {one.name: one for one in wheels}
        return {one.name: f"{one.version} {_content_of(one)}" for one in wheels}

    def _collect_lacking(self, wanted: Wanted, own: list[str], environment: Environment) -> None:
        """Get wheels of what the Python itself lacks, as pip would install it there, and of the
        given wheels."""
        os.mkdir(self._wheels, 0o755)
        report = os.path.join(self._directory, "report.json")
        with suppress(FileNotFoundError):
            os.unlink(report)
        pip = [self._python, "-I", "-m", "pip", "--python", self._interpreter.executable]
        command = [*pip, "install", "--dry-run", "--report", report]
        command += self._arguments(wanted, [*wanted.pip_packages, *own])
        # A server's user has other packages of their own.
        self._runner.run(
            "finding the packages", command, wanted.directory, PYTHONNOUSERSITE="1", PIP_USER="0"
        )
        with open(report, encoding="utf-8") as file:
            found = dict(map(_direct, json.load(file)["install"]))
        os.unlink(report)
        given = {one.name: line for one, line in zip(wanted.wheels, own)}
        lines = {**found, **given}.values()
        if lines:
            command = self._pip(environment, "wheel", "--no-deps", "--wheel-dir", self._wheels)
            command += ["-r", self._write(self._requirements, lines)]
            env = {"PIP_REQUIRE_HASHES": None}  # those were checked
            self._runner.run("getting the packages", command, wanted.directory, **env)

    def install(
        self, names: Iterable[str], obsolete: Iterable[str], environment: Environment
    ) -> None:
        """Remove the obsolete distributions, and install some of the plan."""
        environment.remove(obsolete)
        pins = [f"{name}=={self._planned[name].version}" for name in sorted(names)]
        if not pins:
            return
        command = self._pip(environment, "--isolated", "install", "--no-index", "--no-deps")
        command += ["--ignore-installed"] if environment.system_site_packages else []
        command += ["--find-links", self._wheels, "--no-compile", "--no-warn-script-location"]
        command += ["-r", self._write(self._selected, pins)]
        self._runner.run("installing the packages", command, self._directory, **_NO_CONFIGURATION)


def _direct(item: Mapping[str, Any]) -> tuple[str, str]:
    """The name of what a report of pip would install, and a requirement of just that file."""
    name, place = item["metadata"]["name"], item["download_info"]
    url, archive = place["url"], place.get("archive_info", {})
    if "vcs_info" in place:
        url = f"{place['vcs_info']['vcs']}+{url}@{place['vcs_info']['commit_id']}"
    sha256 = archive.get("hashes", {}).get("sha256")
    parts = [f"subdirectory={place['subdirectory']}"] if place.get("subdirectory") else []
    parts += [f"sha256={sha256}"] if sha256 else []
    return normal_name(name), f"{name} @ {url}{'#' if parts else ''}{'&'.join(parts)}"


def _version_of(pip: Sequence[str]) -> str:
    match = re.match(r"pip (\S+)", output_of(*pip, "--version") or "")
    return match[1] if match else ""


def _is_new_enough(version: str) -> bool:
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    return numbers >= _OLDEST_PIP


def _content_of(one: Wheel) -> str:
    """A description of a wheel's content that is the same when it is built again: its RECORD."""
    tags = os.path.basename(one.path).split("-", 2)[2]
    try:
        with zipfile.ZipFile(one.path) as file:
            record = next(name for name in file.namelist() if name.endswith(".dist-info/RECORD"))
            return f"{tags} {hashlib.sha256(file.read(record)).hexdigest()}"
    except (OSError, zipfile.BadZipFile, StopIteration, RuntimeError):
        return f"{tags} {one.digest}"  # pip will report what is wrong with it


# --- uv -------------------------------------------------------------------------------------------


class Uv(_Base):
    """uv, which runs outside of the environment anyway."""

    def __init__(self, directory: str, runner: Runner, no_index: bool) -> None:
        super().__init__(directory, runner)
        self.program = uv()
        self._index = ["--no-index"] if no_index else []
        self._pins = os.path.join(directory, "pins.txt")
        self._wanted = Wanted(directory)
        self._own: list[str] = []
        self._python = ""
        self._env: dict[str, str | None] = {}

    def prepare(self) -> None:
        """Nothing is needed."""

    def wheel_of(self, project: str, environment: Environment, directory: str) -> str:
        """Build a project's wheel into a directory; its path."""
        command = [*self.program.command, "build", "--wheel", "--python", environment.python]
        command += [*self._index, "--out-dir", directory, project]
        env = {"UV_REQUIRE_HASHES": None, **_TRUSTING_GIT}
        self._runner.run("building the project", command, project, **env)
        return _only_wheel(directory)

    def plan(self, wanted: Wanted, environment: Environment) -> dict[str, str]:
        """Resolve all that is to be installed, to versions and hashes."""
        self._wanted, self._python = wanted, environment.python
        self._own = [
            f"{one.name}{one.extras}=={one.version} --hash=sha256:{one.digest}"
            for one in wanted.wheels
        ]
        links = [self._runner.env.get("UV_FIND_LINKS", ""), *self._page(wanted.wheels)]
        self._env = {"UV_FIND_LINKS": ",".join(filter(None, links)) or None}
        resolved = os.path.join(self._directory, "resolved.txt")
        with suppress(FileNotFoundError):
            os.unlink(resolved)
        command = [*self.program.command, "pip", "compile", "--python", environment.python]
        command += ["--generate-hashes", "--no-header", "--no-annotate", "--refresh"]
        command += [*self._index, "--output-file", resolved]
        arguments = [word for word in self._inputs() if word != "--require-hashes"]
        files = [word for word in arguments if word != "-r"]
        self._runner.run("finding the packages", [*command, *files], wanted.directory, **self._env)
        with open(resolved, errors="surrogateescape") as file:
            known = dict(_pins(file.read()))
        os.unlink(resolved)
        exact = (f"{name}=={what.split()[1]}" for name, what in known.items() if what[0] == "=")
        self._write(self._pins, exact)
        self._require_hashes(wanted)
        # The hashes in the requirements decide as well which file is installed.
        known = {name: f"{what} {wanted.hashes.get(name, '')}" for name, what in known.items()}
        return {
            **known,
            **{one.name: f"== {one.version} {_content_of(one)}" for one in wanted.wheels},
        }

    def _page(self, wheels: Sequence[Wheel]) -> list[str]:
        """A page of the given wheels with their hashes, which uv reads only from a page."""
        if not wheels:
            return []
        path = os.path.join(self._directory, "wheels", "links.html")
        with open(path, "w") as file:
            for one in wheels:
                name = os.path.basename(one.path)
                file.write(f'<a href="{_url(one.path)}#sha256={one.digest}">{name}</a>\n')
        return [_url(path)]

    def _require_hashes(self, wanted: Wanted) -> None:
        """Let uv check that each requirement has a hash, also where all of them are installed."""
        if wanted.require_hashes:
            command = [*self._install_command(), "--dry-run"]
            self._runner.run("checking the hashes", command, wanted.directory, **self._env)

    def _inputs(self) -> list[str]:
        return self._arguments(self._wanted, [*self._wanted.pip_packages, *self._own])

    def _install_command(self) -> list[str]:
        command = [*self.program.command, "pip", "install", "--python", self._python]
        return [*command, *self._index, "--exact", "-c", self._pins, *self._inputs()]

    def install(
        self, names: Iterable[str], obsolete: Iterable[str], environment: Environment
    ) -> None:
        """Remove the obsolete distributions, and install some of the plan."""
        again = [word for name in obsolete for word in ("--reinstall-package", name)]
        self._runner.run(
            "installing the packages",
            [*self._install_command(), *again],
            self._wanted.directory,
            **self._env,
        )


def _pins(text: str) -> Iterable[tuple[str, str]]:
    """The distributions of a resolved file, by name: the version, and a digest of the line."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        match = _PIN.match(line.strip())
        if match:
            # A digest, as a URL may have credentials, and this is kept.
            version = match[3] if match[2] == "==" else "?"
            yield normal_name(match[1]), f"{match[2]} {version} {digest_of(*sorted(line.split()))}"


# --- both -----------------------------------------------------------------------------------------


def _url(path: str) -> str:
    return f"file://{quote(path, safe='/')}"


def _only_wheel(directory: str) -> str:
    names = [name for name in os.listdir(directory) if name.endswith(".whl")]
    if len(names) != 1:
        raise BuildFailed(
            f"the build of the project wrote {len(names)} wheels: it has to write one"
        )
    return os.path.join(directory, names[0])
