"""Building a bundle: packages into an environment that is kept, and that packed.

What a build is made of has a digest, which its bundle carries: where it stands and nothing has
changed, nothing is done. Else the kept environment is brought in step with what is asked for, so
that packages that did not change are neither fetched nor installed again, and packed. The bundle
before, and its digest, stay until the new one is complete.

`<cache>/<Python, platform and tools>` has the environment, one build at a time; the packages that
pip and uv have fetched and built are shared, in `<cache>/pip` and `<cache>/uv`. All of it is below
one directory, so that a build machine's disk is looked after, and a build repeated, with one name.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..archives.compression import FORMS, form_of, require
from ..artefacts.bytecode import MODES
from ..bundles import reader
from ..bundles.pack import Packing, name_against, pack
from ..errors import (
    BadArchive,
    BuildFailed,
    Busy,
    InterpreterNotFound,
    InvalidPath,
    TreeChanged,
    TreeError,
)
from ..progress import Report, Tell, silent
from ..system.locks import held, locked
from ..system.ownership import require_trusted
from ..system.redact import without_credentials
from ..virtualenvs import manifest
from ..virtualenvs.discovery import find_named, program_directories
from ..virtualenvs.interpreter import Interpreter, probe
from ..virtualenvs.layout import absolute_prefix
from . import sources
from .environment import TOOLS, Environment, Program, find_tool
from .installers import INSTALLERS, Installer, Wanted, find_installer
from .runner import Runner, environment
from .sources import Requirements, Tree, Wheel, digest_of

WAIT = 3600.0
"""Seconds to wait for another build: one that compiles takes long."""

COMMIT = "{commit}"
"""What stands for the commit in an archive's name."""

_LOCAL = "file://"
_FORMAT = 1  # to be raised when a build of the same inputs gives something else


@dataclass
class Building(Report):
    """What was built, or in a dry run would be.

    Attributes:
        archive: the bundle's path, with the commit put in.
        changed: whether it was (in a dry run: would be) built.
        dry_run: whether it was only looked at.
        reason: why it was built; "" where it was not.
        commit: what it was built from; "" where nobody knows.
        python: the version of its Python.
        tool: what made the environment, with its version.
        installer: what installed the packages, with its version.
        installed: the packages that were installed, by name: their versions.
        removed: the names of those that were removed.
        kept: how many were there already.
        old_sha256: the digest of the bundle before; None where there was none.
        sha256: the bundle's digest.
        files: how many members it has.
        size: bytes in its files.
        packed_size: bytes of the archive.
        manifest: the digest of its manifest.
        against: the bundles that have only what an earlier one lacks, and their sizes in bytes.
        log: what the tools said; None where none was run.
        warnings: {"file", "reason"} of what may not work elsewhere.
    """

    archive: str
    changed: bool = False
    dry_run: bool = False
    reason: str = ""
    commit: str = ""
    python: str = ""
    tool: str = ""
    installer: str = ""
    installed: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    kept: int = 0
    old_sha256: str | None = None
    sha256: str | None = None
    files: int = 0
    size: int = 0
    packed_size: int = 0
    manifest: str = ""
    against: dict[str, int] = field(default_factory=dict)
    log: str | None = None
    warnings: list[dict[str, str]] = field(default_factory=list)


def build(
    archive: str,
    *,
    cache: str,
    requirements: Sequence[str] = (),
    project: str | None = None,
    packages: Sequence[str] = (),
    wheels: Sequence[str] = (),
    find_links: Sequence[str] = (),
    index: str | None = None,
    extra_index: Sequence[str] = (),
    no_index: bool = False,
    require_hashes: bool = False,
    constraints: Sequence[str] = (),
    python: str | None = None,
    tool: str = "venv",
    installer: str = "pip",
    against: int | Sequence[str] = 0,
    exclude: Sequence[str] = (),
    prefix: str | None = None,
    bytecode: str = "timestamp",
    level: int | None = None,
    commit: str | None = None,
    environ: Mapping[str, str] | None = None,
    force: bool = False,
    dry_run: bool = False,
    wait: float = WAIT,
    job: str = "",
    tell: Tell = silent,
) -> Building:
    """Build a bundle out of packages, unless it stands and nothing has changed.

    After a failure or a kill the bundle before stands as it was, and the same call builds.

    Args:
        archive: the bundle: `.tar`, `.tar.gz` or `.tar.zst`. `{commit}` in it is replaced.
        cache: a directory that is kept between builds; made where it is missing.
        requirements: requirement files, such as a lock with hashes.
        project: a directory with a pyproject.toml or setup.py, with extras as in `/srv/shop[web]`.
        packages: requirements, such as `gunicorn>=22`.
        wheels: wheel files, with extras likewise.
        find_links: directories or pages with packages, besides those that are configured.
        index: the package index, for the configured one.
        extra_index: further ones, for the configured ones.
        no_index: take packages from `find_links` only.
        require_hashes: refuse packages without a hash.
        constraints: constraint files.
        python: an executable, a command or `X.Y`; by default the first `python3` on the PATH that
            is not Salt's own.
        tool: what makes the environment: `venv`, `virtualenv` or `uv`.
        installer: what installs: `pip` or `uv`.
        against: earlier bundles, or how many of the latest beside it: for each another bundle is
            written beside it that has only what the earlier one lacks; see `name_against`.
        exclude: patterns of what is left out of the bundle.
        prefix: pack it as if it had been built there.
        bytecode: how it knows whether it fits its source; see `pack`.
        level: of the compression.
        commit: what is built; by default what is checked out in `project`.
        environ: more variables for the tools.
        force: build though nothing has changed, as for an index that has moved.
        dry_run: look, and change nothing.
        wait: seconds to wait for another build in the same cache.
        job: what this is done for, Salt's job id for one.
        tell: called after each step.

    Returns:
        What was built.

    Raises:
        BuildFailed: a tool failed, or is not there.
        RelocateError: another of its subclasses, in one sentence.
    """
    if tool not in TOOLS:
        raise InvalidPath(f"tool must be one of {', '.join(TOOLS)}: {tool!r}")
    if installer not in INSTALLERS:
        raise InvalidPath(f"installer must be one of {', '.join(INSTALLERS)}: {installer!r}")
    if bytecode not in MODES:
        raise InvalidPath(f"bytecode must be one of {', '.join(MODES)}: {bytecode!r}")
    try:
        known = _Sources.read(requirements, constraints, project, packages, wheels)
        for directory in known.requirements.directories if installer == "uv" else ():
            raise InvalidPath(
                f"the requirement file names the directory {directory}, and uv does not notice "
                "every change in one: name it as the project, or let pip install"
            )
        links = tuple(_link(one) for one in _texts(find_links, "find_links"))
        first = index if index is None else _texts(index, "index")[0]
        indexes = _Indexes(first, _texts(extra_index, "extra_index"), no_index, links)
        interpreter = _default_python() if python is None else find_named(python)
        revision = sources.commit_of(commit, known.tree, COMMIT in archive)
        pattern = fnmatch.translate(os.path.basename(archive.replace(COMMIT, "*")))
        archive = _place(archive, revision, level)
        packing = {
            "exclude": _texts(exclude, "exclude"),
            "prefix": _prefix(prefix),
            "bytecode": bytecode,
            "level": level,
        }
        order = _Order(
            archive,
            absolute_prefix(cache, "the cache"),
            known,
            indexes,
            bool(require_hashes),
            interpreter,
            find_tool(tool, interpreter),
            installer,
            revision,
            dict(_variables(environ or {})),
            packing,
            _against(against),
            pattern,
        )
        return _Build(order, job, tell).run(force, dry_run, wait)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else cache
        raise TreeError.of(where, error, "build in") from error


# --- what is asked for ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sources:
    """What is to be installed, as it was read."""

    requirements: Requirements
    constraints: Requirements
    tree: Tree | None
    packages: tuple[str, ...]
    wheels: tuple[Wheel, ...]
    given: tuple[Any, ...] = ()

    @classmethod
    def read(
        cls,
        requirements: Sequence[str],
        constraints: Sequence[str],
        project: str | None,
        packages: Sequence[str],
        wheels: Sequence[str],
    ) -> _Sources:
        """Read everything.

        Raises:
            InvalidPath: something of it is not there, or none of it was named.
        """
        files = _texts(requirements, "requirements")
        tree = sources.project(_absolute(project, "the project")) if project is not None else None
        directory = (
            tree.project if tree else os.path.dirname(os.path.abspath(files[0])) if files else "/"
        )
        known = cls(
            sources.requirements(files, "the requirement file", directory),
            sources.requirements(
                _texts(constraints, "constraints"), "the constraint file", directory
            ),
            tree,
            tuple(_requirement(one) for one in _texts(packages, "packages")),
            tuple(_wheel(one) for one in _texts(wheels, "wheels")),
            (requirements, constraints, project, packages, wheels),
        )
        for editable in known.requirements.editables:
            raise InvalidPath(
                f"the requirement file asks for {editable} as editable, which would leave its code "
                "where it is: name it as the project, or without -e"
            )
        if not (files or tree or known.packages or known.wheels):
            raise InvalidPath(
                "there is nothing to build: name requirements, a project, packages or wheels"
            )
        return known

    @property
    def directory(self) -> str:
        """What relative paths in requirement files start from, without a project."""
        files = self.requirements.files
        return os.path.dirname(files[0]) if files else "/"

    def require_same(self) -> None:
        """See that nothing has changed since it was read: a bundle tells what it is made of.

        Raises:
            TreeChanged: something has.
        """
        now = _Sources.read(*self.given)
        commits = [one.tree.commit if one.tree else None for one in (self, now)]
        if now.digest() != self.digest() or len(set(commits)) > 1:
            raise TreeChanged(
                "the project or the requirements have changed since this build began: run again"
            )

    def digest(self) -> str:
        """Tells one content from another."""
        tree = (self.tree.digest, self.tree.extras, _below(self.tree)) if self.tree else None
        wheels = [(os.path.basename(one.path), one.digest, one.extras) for one in self.wheels]
        packages = [without_credentials(one) for one in self.packages]
        return digest_of(self.requirements.digest, self.constraints.digest, tree, packages, wheels)


@dataclass(frozen=True)
class _Indexes:
    """Where packages come from."""

    index: str | None
    extra: tuple[str, ...]
    none: bool
    links: tuple[str, ...]

    def variables(self, installer: str, known: Mapping[str, str]) -> dict[str, str]:
        """The variables that tell the installer: a command line is for all to see."""
        if installer == "uv":
            links = ",".join(filter(None, (known.get("UV_FIND_LINKS"), *self.links)))
            names = ("UV_DEFAULT_INDEX", "UV_INDEX", "", "UV_FIND_LINKS")
        else:
            links = " ".join(filter(None, (known.get("PIP_FIND_LINKS"), *self.links)))
            names = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_FIND_LINKS")
        values = (self.index, " ".join(self.extra), "1" if self.none else "", links)
        return {name: value for name, value in zip(names, values) if name and value}

    def overridden(self) -> set[str]:
        """The older names of what is given."""
        return {
            name
            for name, given in (("UV_INDEX_URL", self.index), ("UV_EXTRA_INDEX_URL", self.extra))
            if given
        }

    def digest(self) -> str:
        """Tells one content from another; that of an index is not looked at."""
        urls = (self.index or "", *self.extra, *self.links)
        directories = [link[len(_LOCAL) :] for link in self.links if link.startswith(_LOCAL)]
        local = [sources.listing(directory) for directory in directories]
        return digest_of([without_credentials(url) for url in urls], self.none, local)


@dataclass(frozen=True)
class _Order:
    """All that was asked for."""

    archive: str
    cache: str
    sources: _Sources
    indexes: _Indexes
    require_hashes: bool
    interpreter: Interpreter
    tool: Program
    installer: str
    commit: str
    environ: dict[str, str]
    packing: dict[str, Any]
    against: int | tuple[str, ...]
    """Earlier bundles, or how many of the latest."""
    pattern: str
    """What matches the names of this project's bundles."""

    @property
    def directory(self) -> str:
        """The directory in the cache of this Python, platform and tools."""
        python = self.interpreter
        abi = re.sub(r"\.(?:so|pyd|dylib)\Z", "", (python.suffixes or [""])[0]).strip(".")
        parts = (abi or python.implementation, python.machine, python.long_version, python.libc)
        plain = [part.replace(" ", "") for part in parts if part and part not in parts[0][1:]]
        return os.path.join(self.cache, "-".join((*plain, self.tool.name, self.installer)))

    def digest(self, installer: Program) -> str:
        """Tells whether a build of this would give something else."""
        python = self.interpreter
        form = next(ending for ending in FORMS if self.archive.endswith(ending))
        return digest_of(
            (_FORMAT, manifest.FORMAT),
            (python.executable, python.implementation, python.version, python.suffixes),
            (python.machine, python.libc, python.magic),
            (str(self.tool), str(installer)),
            (self.sources.digest(), self.indexes.digest(), self.require_hashes, self.commit),
            sorted((name, without_credentials(value)) for name, value in self.environ.items()),
            (sorted(self.packing.items()), form, os.environ.get("SOURCE_DATE_EPOCH", "")),
        )

    def earlier(self) -> tuple[str, ...]:
        """The bundles to pack against, the latest first."""
        if not isinstance(self.against, int):
            return self.against
        directory = os.path.dirname(self.archive)
        known = [name for name in os.listdir(directory) if re.match(self.pattern, name)]
        bundles = [os.path.join(directory, name) for name in known if ".from-" not in name]
        bundles.sort(key=lambda bundle: os.stat(bundle).st_mtime_ns, reverse=True)
        return tuple(islice((one for one in bundles if self._is_earlier(one)), self.against))

    def _is_earlier(self, bundle: str) -> bool:
        try:
            return bundle != self.archive and reader.read_head(bundle).base is None
        except BadArchive:
            return False

    def variables(self) -> dict[str, str]:
        """The tools' environment."""
        known = environment(self.environ)
        known |= self.indexes.variables(self.installer, known)
        caches = {"PIP_CACHE_DIR": "pip", "UV_CACHE_DIR": "uv"}
        known |= {name: os.path.join(self.cache, directory) for name, directory in caches.items()}
        # Wheels know the time of their files; the same sources should give the same wheel.
        tree = self.sources.tree
        epoch = tree.time if tree and tree.time else manifest.SOURCE_TIME
        known.setdefault("SOURCE_DATE_EPOCH", str(epoch))
        return {name: one for name, one in known.items() if name not in self.indexes.overridden()}

    def urls(self) -> list[str]:
        """All texts that may have credentials in them."""
        texts = [*self.sources.requirements.texts, *self.sources.constraints.texts]
        given = [self.indexes.index or "", *self.indexes.extra, *self.indexes.links]
        return [*texts, *given, *self.sources.packages]


# --- building it ----------------------------------------------------------------------------------


class _Build:
    """One build."""

    def __init__(self, order: _Order, job: str, tell: Tell) -> None:
        self.order = order
        self.job = job
        self.tell = tell
        self.directory = order.directory
        log = os.path.join(self.directory, "build.log")
        self.runner = Runner(f"build {order.archive}", log, order.variables())
        self.runner.conceal(order.urls())
        self.installer: Installer = find_installer(
            order.installer, self.directory, order.interpreter, self.runner, order.indexes.none
        )

    def run(self, force: bool, dry_run: bool, wait: float) -> Building:
        """Build it, unless it stands."""
        report = self._looked(force)
        report.dry_run = dry_run
        if dry_run or not report.changed:
            return report
        with _locked(self.directory, self.order, self.job, wait) as lock:
            report = self._looked(force)  # another run may have just built it
            if not report.changed:
                return report
            self.runner.start(lock)
            report.log = self.runner.log
            try:
                self._install(report)
                self.order.sources.require_same()
                self._pack(report)
            finally:
                self._tidy_up()
        return report

    def _looked(self, force: bool) -> Building:
        """What stands, and whether it is of the same inputs."""
        order, program = self.order, self.installer.program
        report = Building(
            order.archive,
            commit=order.commit,
            python=order.interpreter.long_version,
            tool=str(order.tool),
            installer=str(program),
        )
        report.sha256 = report.old_sha256 = _digest_beside(order.archive)
        report.reason = self._reason(order.digest(program), report.sha256, force)
        report.changed = bool(report.reason)
        return report

    def _reason(self, inputs: str, digest: str | None, force: bool) -> str:
        """Why a build is needed; "" where it is not."""
        archive = self.order.archive
        if not os.path.isfile(archive):
            return "there is no bundle yet"
        if digest is None:
            return "its digest is missing"
        try:
            facts = reader.read_head(archive).facts
        except BadArchive:
            return "what stands there is no bundle"
        if facts.get("inputs") != inputs:
            return "what it is made of has changed"
        return "it was asked for" if force else ""

    def _install(self, report: Building) -> None:
        """Bring the kept environment in step with what is asked for."""
        order = self.order
        self.installer.prepare()
        report.installer = str(self.installer.program)
        kept = Environment(self.directory, order.interpreter, order.tool, self.runner, order.cache)
        kept.prepare()
        self.tell("prepared", {"environment": kept.path, "new": kept.made})
        plan = self.installer.plan(self._wanted(kept), kept)
        self.tell("planned", {"packages": len(plan)})
        before = {} if kept.made else kept.packages
        same = {name for name, what in plan.items() if before.get(name) == what}
        obsolete = sorted(set(before) - same)
        fresh = sorted(set(plan) - same)
        if kept.made or obsolete or fresh:
            self._change(kept, plan, fresh, obsolete)
        if kept.made:
            same = set()
        report.installed = {name: _version(plan[name]) for name in sorted(set(plan) - same)}
        report.removed = sorted(set(before) - set(plan))
        report.kept = len(same)
        self.environment = kept.path
        self.tell("installed", {"installed": len(report.installed), "removed": len(report.removed)})

    def _change(
        self, kept: Environment, plan: dict[str, str], fresh: list[str], obsolete: list[str]
    ) -> None:
        """Install what is new; all of it into a new environment where the order would matter."""
        if not kept.made:
            clean = not kept.is_shared()
            if clean:
                with kept.changing(plan):
                    self.installer.install(fresh, obsolete, kept)
                if kept.is_whole(plan) and not kept.is_shared():
                    return
            kept.make()
        with kept.changing(plan):
            self.installer.install(sorted(plan), (), kept)
        if not kept.is_whole(plan):
            raise BuildFailed(
                f"cannot {self.runner.doing}: what is in {kept.path} is not what was to be "
                f"installed; see {self.runner.log}, and report it as a bug"
            )

    def _wanted(self, kept: Environment) -> Wanted:
        """What is to be installed, with the project as one more wheel."""
        known = self.order.sources
        wheels, directory = list(known.wheels), known.directory
        own = os.path.join(self.directory, "wheels")
        shutil.rmtree(own, ignore_errors=True)
        os.mkdir(own, 0o755)
        for number, one in enumerate(wheels):
            place = os.path.join(own, str(number))
            os.mkdir(place, 0o755)
            copy = shutil.copy(one.path, place)
            wheels[number] = sources.wheel(copy, one.extras)
        if known.tree is not None:
            copied = known.tree.copy(os.path.join(self.directory, "source"))
            place = os.path.join(own, "project")
            os.mkdir(place, 0o755)
            built = self.installer.wheel_of(copied, kept, place)
            wheels.append(sources.wheel(built, known.tree.extras))
            directory = copied
        return Wanted(
            directory,
            known.requirements.files,
            known.constraints.files,
            known.packages,
            tuple(wheels),
            self.order.require_hashes,
            known.requirements.hashes,
        )

    def _pack(self, report: Building) -> None:
        """Pack the environment."""
        order = self.order
        facts = {
            "inputs": order.digest(self.installer.program),
            "commit": order.commit,
            "python": f"{order.interpreter.implementation} {order.interpreter.long_version}",
            "builder": str(order.tool),
            "installer": report.installer,
        }
        told = {name: value for name, value in facts.items() if value}
        packed: Packing = pack(
            self.environment, order.archive, facts=told, tell=self.tell, **order.packing
        )
        report.sha256, report.manifest = packed.sha256, packed.manifest
        report.files, report.size = packed.files, packed.size
        report.packed_size, report.warnings = packed.packed_size, packed.warnings
        for earlier in order.earlier():
            if reader.read_digest(earlier) == packed.manifest:
                continue  # it has all of it
            packed = pack(
                self.environment,
                name_against(order.archive, earlier),
                against=earlier,
                facts=told,
                tell=self.tell,
                **order.packing,
            )
            report.against[packed.archive] = packed.packed_size

    def _tidy_up(self) -> None:
        """Remove what only this build needed; some of it may have credentials."""
        for name in ("source", "wheels", "planned"):
            shutil.rmtree(os.path.join(self.directory, name), ignore_errors=True)
        for name in ("requirements.txt", "selected.txt", "pins.txt"):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self.directory, name))


def _version(what: str) -> str:
    """The version in what tells a distribution's content; a URL's has none."""
    words = what.split()
    return words[0] if words[0] not in ("==", "@") else words[1] if words[0] == "==" else ""


def _digest_beside(archive: str) -> str | None:
    """The digest of a bundle, as it was written beside it."""
    try:
        with open(f"{archive}.sha256") as file:
            match = re.match(r"[0-9a-f]{64}\b", file.read(4096))
    except (OSError, ValueError):
        return None
    return match[0] if match and os.path.isfile(archive) else None


@contextmanager
def _locked(directory: str, order: _Order, job: str, wait: float) -> Iterator[int]:
    """Hold a directory of the cache, which is made where it is missing; a descriptor of it.

    Raises:
        Busy: another build held it all the time.
        UnsafeDirectory: somebody else could change what is built.
    """
    until = time.monotonic() + wait
    for one in (order.cache, directory):
        _make(one)
    with ExitStack() as stack:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        doing = f"building {os.path.basename(order.archive)} {job}"
        stack.enter_context(held(descriptor, directory, doing, wait))
        try:
            stack.enter_context(locked(descriptor, directory, max(0.0, until - time.monotonic())))
        except Busy:
            raise Busy(
                f"cannot build in {directory}: what an earlier, killed build has started is still "
                "at work there; wait for it to end, or end it, and run again"
            ) from None
        yield descriptor


def _make(directory: str) -> None:
    """Make a directory of the cache with all above it; nobody else may change what is in it."""
    above = directory
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    require_trusted(above)
    os.makedirs(directory, 0o755, exist_ok=True)
    if above != directory:
        os.chmod(directory, 0o755)  # whatever the umask


# --- arguments ------------------------------------------------------------------------------------


def _texts(value: Any, what: str) -> tuple[str, ...]:
    """Several texts; one is as good as a list of one."""
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(
        isinstance(one, str) and one.strip() for one in values
    ):
        raise InvalidPath(f"{what} must be a list of texts: {value!r}")
    return tuple(values)


def _absolute(path: str, what: str) -> str:
    if not path or "\0" in path or "\n" in path:
        raise InvalidPath(f"{what} must be a path: {path!r}")
    return os.path.abspath(path)


def _requirement(text: str) -> str:
    if "\n" in text or text.lstrip().startswith(("-", "#")):
        shown = without_credentials(text)
        raise InvalidPath(f"a package must be a requirement such as 'gunicorn>=22': {shown!r}")
    return text.strip()


def _wheel(path: str) -> Wheel:
    match = re.fullmatch(r"(.+\.whl)(\[[\w\s.,-]+\])?", path, re.S)
    if match is None:
        raise InvalidPath(f"{path} is not named as a wheel is, such as shop-1.0-py3-none-any.whl")
    return sources.wheel(_absolute(match[1], "a wheel"), match[2] or "")


def _link(place: str) -> str:
    """A place of packages as a URL, which has no character that separates two of them."""
    from urllib.parse import quote

    if "://" in place:
        return place.replace(" ", "%20").replace(",", "%2C")
    path = _absolute(place, "a place in find_links")
    if not os.path.exists(path):
        raise InvalidPath(f"there is no {path} to find packages in: name a directory that is there")
    return f"{_LOCAL}{quote(path)}"


def _variables(environ: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(environ, Mapping):
        raise InvalidPath("environ must be names and their values")
    for name, value in environ.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise InvalidPath(f"a variable's name has letters, digits and underscores: {name!r}")
        if not isinstance(value, str) or "\0" in value:
            raise InvalidPath(f"the variable {name} must have a text: put it in quotes")
        yield name, value


def _place(archive: str, commit: str, level: Any) -> str:
    """The bundle's path, if one can be written there."""
    if not isinstance(level, (int, type(None))) or isinstance(level, bool):
        raise InvalidPath(f"level must be a whole number: {level!r}")
    require(form_of(archive), level)
    archive = absolute_prefix(archive.replace(COMMIT, commit), "the archive")
    directory = os.path.dirname(archive)
    if not os.path.isdir(directory):
        raise InvalidPath(f"there is no directory {directory} to write the archive into: create it")
    if os.path.isdir(archive):
        raise InvalidPath(f"{archive} is a directory: name a file to write")
    return archive


def _against(against: Any) -> int | tuple[str, ...]:
    """The earlier bundles that are meant, if they are there."""
    if isinstance(against, int) and not isinstance(against, bool) and against >= 0:
        return against
    found = tuple(map(os.path.abspath, _texts(against, "against")))
    for bundle in found:
        if not os.path.isfile(bundle):
            raise InvalidPath(f"there is no {bundle} to pack against: name an earlier bundle")
        if reader.read_head(bundle).base is not None:
            raise InvalidPath(f"{bundle} was packed against another one itself: name a full one")
    return found


def _prefix(prefix: Any) -> str | None:
    if prefix is None:
        return None
    return absolute_prefix(str(prefix), "the prefix")


def _below(tree: Tree) -> str:
    return os.path.relpath(tree.project, tree.top)


def _default_python() -> Interpreter:
    """The first `python3` on the PATH that is not Salt's own: servers have none like that.

    Raises:
        InterpreterNotFound: there is none at all.
    """
    first = find_named("python3")
    if not _is_salts(first):
        return first
    for directory in program_directories():
        executable = os.path.join(directory, "python3")
        if os.access(executable, os.X_OK):
            with suppress(InterpreterNotFound):
                other = probe(executable)
                if not _is_salts(other):
                    return other
    return first


def _is_salts(python: Interpreter) -> bool:
    """Whether it is the one in Salt's onedir packages, which have their programs beside `bin`."""
    names = ("salt-call", "salt-minion")
    return any(os.path.exists(os.path.join(python.base_prefix, name)) for name in names)
