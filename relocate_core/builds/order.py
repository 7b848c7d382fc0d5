"""What a build was asked for, read from the disk, with a digest.

The digest is stored in the bundle: as long as it is the same, the bundle is up to date.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..archives.compression import FORMS, form_of, require
from ..bundles import reader
from ..errors import BadArchive, InvalidPath, TreeChanged
from ..interpreters.install import PythonBundle
from ..system.redact import without_credentials
from ..virtualenvs import manifest
from ..virtualenvs.discovery import find_named
from ..virtualenvs.interpreter import Interpreter
from ..virtualenvs.layout import absolute_prefix
from ..virtualenvs.system_packages import Packages, find_installed
from . import sources
from .options import Options
from .pythons import BundledPython
from .runner import tool_env
from .sources import Requirements, Tree, Wheel, digest_of
from .tools import Program, default_python, find_tool

COMMIT = "{commit}"
"""In an archive's name it is replaced by the commit."""

_FILE_URL = "file://"
_FORMAT = 1  # to be raised when a build of the same inputs gives another result


@dataclass(frozen=True)
class Inputs:
    """What is to be installed, as it was read."""

    requirements: Requirements
    constraints: Requirements
    tree: Tree | None
    pip_packages: tuple[str, ...]
    places: tuple[str | None, ...]
    """The file or the directory that each of `pip_packages` refers to, if it does."""
    wheels: tuple[Wheel, ...]

    @classmethod
    def of(cls, options: Options) -> Inputs:
        """Read everything.

        Raises:
            InvalidPath: some of it does not exist, or none of it was given.
        """
        files, tree = options.requirements, None
        directory = os.path.dirname(os.path.abspath(files[0])) if files else "/"
        if options.project is not None:
            tree = sources.project(_absolute(options.project, "the project"))
            directory = tree.project
        inputs = cls(
            sources.requirements(files, "the requirement file", directory),
            sources.requirements(options.constraints, "the constraint file", directory),
            tree,
            options.pip_packages,
            tuple(sources.place_of(one, directory) for one in options.pip_packages),
            tuple(map(_wheel, options.wheels)),
        )
        inputs._require_buildable(options.installer)
        return inputs

    def _require_buildable(self, installer: str) -> None:
        for editable in self.requirements.editables:
            raise InvalidPath(
                f"the requirement file asks for {editable} as editable, which would leave its code "
                "where it is: give it as the project, or without -e"
            )
        if not (self.requirements.files or self.tree or self.pip_packages or self.wheels):
            raise InvalidPath(
                "there is nothing to build: give requirements, a project, pip_packages or wheels"
            )
        places = (*self.requirements.directories, *filter(None, self.places))
        for directory in filter(os.path.isdir, places if installer == "uv" else ()):
            raise InvalidPath(
                f"the directory {os.path.normpath(directory)} is to be installed, and uv does not "
                "notice every change in one: give it as the project, or let pip install"
            )

    @property
    def directory(self) -> str:
        """What relative paths in requirement files start from, without a project."""
        files = self.requirements.files
        return os.path.dirname(files[0]) if files else "/"

    def digest(self) -> str:
        """Differs when the content differs."""
        tree = self.tree
        project = (
            (tree.digest, tree.extras, os.path.relpath(tree.project, tree.top)) if tree else None
        )
        wheels = [(os.path.basename(one.path), one.digest, one.extras) for one in self.wheels]
        packages = [
            (without_credentials(one), place and sources.content_of(place))
            for one, place in zip(self.pip_packages, self.places)
        ]
        return digest_of(
            self.requirements.digest, self.constraints.digest, project, packages, wheels
        )


@dataclass(frozen=True)
class Indexes:
    """Where packages come from."""

    index: str | None
    extra: tuple[str, ...]
    none: bool
    links: tuple[str, ...]

    @classmethod
    def of(cls, options: Options) -> Indexes:
        """Those of a build.

        Raises:
            InvalidPath: a directory of packages does not exist.
        """
        links = tuple(map(_link, options.find_links))
        return cls(options.index, options.extra_index, options.no_index, links)

    @property
    def urls(self) -> tuple[str, ...]:
        """All of them; they may have credentials."""
        return (self.index or "", *self.extra, *self.links)

    def variables(self, installer: str, env: Mapping[str, str]) -> dict[str, str]:
        """The variables for the installer: a command line can be read by everybody."""
        if installer == "uv":
            links = ",".join(filter(None, (env.get("UV_FIND_LINKS"), *self.links)))
            names = ("UV_DEFAULT_INDEX", "UV_INDEX", "", "UV_FIND_LINKS")
        else:
            links = " ".join(filter(None, (env.get("PIP_FIND_LINKS"), *self.links)))
            names = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_FIND_LINKS")
        values = (self.index, " ".join(self.extra), "1" if self.none else "", links)
        return {name: value for name, value in zip(names, values) if name and value}

    def overridden(self) -> set[str]:
        """The older names of the variables that are given."""
        older = (("UV_INDEX_URL", self.index), ("UV_EXTRA_INDEX_URL", self.extra))
        return {name for name, given in older if given}

    def digest(self) -> str:
        """Differs when the content differs; the content of an index is not looked at."""
        directories = [link[len(_FILE_URL) :] for link in self.links if link.startswith(_FILE_URL)]
        local = [sources.listing(directory) for directory in directories]
        return digest_of([without_credentials(url) for url in self.urls], self.none, local)


@dataclass(frozen=True)
class Order:
    """All that a build was asked for.

    Attributes:
        archive: the bundle's path, with the commit put in.
        pattern: matches the names of the bundles of this project, whatever their commit.
        options: as they were given.
        inputs: what is to be installed.
        indexes: where packages come from.
        interpreter: the Python to build for.
        bundled: the interpreter bundle that it comes from; it need not be unpacked yet.
        tool: what creates the environment.
        commit: what is built; "" where it is unknown.
        system_packages: the Python's own packages, where the environment sees them.
    """

    archive: str
    pattern: str
    options: Options
    inputs: Inputs
    indexes: Indexes
    interpreter: Interpreter
    bundled: BundledPython | None
    tool: Program
    commit: str
    system_packages: Packages = ()

    @classmethod
    def of(cls, archive: str, options: Options) -> Order:
        """Read all that was asked for; nothing is unpacked for that.

        Raises:
            RelocateError: it cannot be built.
        """
        inputs, indexes = Inputs.of(options), Indexes.of(options)
        bundled = None
        if isinstance(options.python, PythonBundle):
            bundled = BundledPython.of(options.python, options.cache)
            interpreter = bundled.interpreter
        else:
            interpreter = default_python() if not options.python else find_named(options.python)
        commit = sources.commit_of(options.commit, inputs.tree, COMMIT in archive)
        path = _archive(archive.replace(COMMIT, commit), options.level)
        _require_full_bundles(options.delta_from)
        pattern = fnmatch.translate(os.path.basename(archive.replace(COMMIT, "*")))
        tool = find_tool(options.tool, interpreter, bundled.has_venv if bundled else None)
        seen = options.system_site_packages
        if seen and bundled is not None:
            raise InvalidPath(
                "an interpreter bundle has no packages of a system: build without "
                "system_site_packages, or name a Python of this machine"
            )
        system = find_installed(interpreter.executable).packages if seen else ()
        return cls(
            path, pattern, options, inputs, indexes, interpreter, bundled, tool, commit, system
        )

    @property
    def directory(self) -> str:
        """The directory in the cache of this Python, platform and tools."""
        python = self.interpreter
        abi = re.sub(r"\.(?:so|pyd|dylib)\Z", "", (python.suffixes or [""])[0]).strip(".")
        parts = (abi or python.implementation, python.machine, python.long_version, python.libc)
        plain = [part.replace(" ", "") for part in parts if part and part not in parts[0][1:]]
        tools = [self.tool.name, self.options.installer]
        tools += ["system"] if self.options.system_site_packages else []
        return os.path.join(self.options.cache, "-".join((*plain, *tools)))

    @property
    def packing(self) -> dict[str, Any]:
        """How the environment is packed: options of `pack`."""
        options = self.options
        return {
            "exclude": options.exclude,
            "prefix": options.prefix,
            "bytecode": options.bytecode,
            "level": options.level,
        }

    def digest(self, installer: Program) -> str:
        """Differs when a build would give another result."""
        python, options = self.interpreter, self.options
        form = next(ending for ending in FORMS if self.archive.endswith(ending))
        bundled = () if self.bundled is None else (self.bundled.built_on,)
        return digest_of(
            (_FORMAT, manifest.FORMAT),
            (python.executable, python.implementation, python.version, python.suffixes),
            (python.machine, python.libc, python.magic),
            (str(self.tool), str(installer)),
            (self.inputs.digest(), self.indexes.digest(), options.require_hashes, self.commit),
            sorted((name, without_credentials(value)) for name, value in options.env.items()),
            (options.system_site_packages, self.system_packages),
            (sorted(self.packing.items()), form, os.environ.get("SOURCE_DATE_EPOCH", "")),
            *bundled,
        )

    def require_unchanged(self) -> None:
        """Check that the inputs are what they were when they were read: the bundle records that.

        Raises:
            TreeChanged: they are not.
        """
        now = Inputs.of(self.options)
        commits = {one.tree.commit if one.tree else None for one in (self.inputs, now)}
        if now.digest() != self.inputs.digest() or len(commits) > 1:
            raise TreeChanged(
                "the project or the requirements have changed since this build began: run again"
            )

    def base_bundles(self) -> tuple[str, ...]:
        """The bundles to make delta bundles from, the latest first."""
        delta_from = self.options.delta_from
        if not isinstance(delta_from, int):
            return tuple(map(os.path.abspath, delta_from))
        directory = os.path.dirname(self.archive)
        names = [name for name in os.listdir(directory) if re.match(self.pattern, name)]
        bundles = [os.path.join(directory, name) for name in names if ".from-" not in name]
        bundles.sort(key=lambda bundle: os.stat(bundle).st_mtime_ns, reverse=True)
        return tuple(islice((one for one in bundles if self._is_base(one)), delta_from))

    def _is_base(self, bundle: str) -> bool:
        try:
            return bundle != self.archive and reader.read_head(bundle).base is None
        except BadArchive:
            return False

    def env(self) -> dict[str, str]:
        """The variables that the tools are run with."""
        options, tree = self.options, self.inputs.tree
        env = tool_env(options.env)
        env |= self.indexes.variables(options.installer, env)
        caches = {"PIP_CACHE_DIR": "pip", "UV_CACHE_DIR": "uv"}
        env |= {name: os.path.join(options.cache, directory) for name, directory in caches.items()}
        # Wheels record the time of their files; the same sources should give the same wheel.
        epoch = tree.time if tree and tree.time else manifest.FIXED_TIME
        env.setdefault("SOURCE_DATE_EPOCH", str(epoch))
        return {name: value for name, value in env.items() if name not in self.indexes.overridden()}

    def texts_with_credentials(self) -> list[str]:
        """All texts that may have credentials in them."""
        inputs = self.inputs
        files = [*inputs.requirements.texts, *inputs.constraints.texts]
        return [*files, *self.indexes.urls, *inputs.pip_packages]


def _absolute(path: str, what: str) -> str:
    if not path or "\0" in path or "\n" in path:
        raise InvalidPath(f"{what} must be a path: {path!r}")
    return os.path.abspath(path)


def _wheel(path: str) -> Wheel:
    match = re.fullmatch(r"(.+\.whl)(\[[\w\s.,-]+\])?", path, re.S)
    if match is None:
        raise InvalidPath(f"{path} is not named as a wheel is, such as shop-1.0-py3-none-any.whl")
    return sources.wheel(_absolute(match[1], "a wheel"), match[2] or "")


def _link(place: str) -> str:
    """A place of packages as a URL without any character that separates two of them."""
    from urllib.parse import quote

    if "://" in place:
        return place.replace(" ", "%20").replace(",", "%2C")
    path = _absolute(place, "a place in find_links")
    if not os.path.exists(path):
        raise InvalidPath(f"there is no {path} to find packages in: give an existing directory")
    return f"{_FILE_URL}{quote(path)}"


def _archive(path: str, level: int | None) -> str:
    """The bundle's absolute path, if one can be written there."""
    require(form_of(path), level)
    path = absolute_prefix(path, "the archive")
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise InvalidPath(f"there is no directory {directory} to write the archive into: create it")
    if os.path.isdir(path):
        raise InvalidPath(f"{path} is a directory: give the path of a file to write")
    return path


def _require_full_bundles(delta_from: int | tuple[str, ...]) -> None:
    for bundle in () if isinstance(delta_from, int) else map(os.path.abspath, delta_from):
        if not os.path.isfile(bundle):
            raise InvalidPath(
                f"there is no {bundle} to make a delta bundle from: give a full bundle"
            )
        if reader.read_head(bundle).base is not None:
            raise InvalidPath(f"{bundle} is a delta bundle itself: give a full one")
