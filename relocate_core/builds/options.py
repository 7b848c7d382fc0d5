"""What a build can be asked for: each parameter is declared here, once, with its default.

The execution module and the state pass what they are given on to `Options.of`, which checks what
can be checked without a look at the disk.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..archives.compression import FORMS
from ..artefacts.bytecode import MODES
from ..errors import InvalidPath
from ..interpreters.install import PythonBundle
from ..system.redact import without_credentials
from ..virtualenvs.layout import absolute_prefix
from .installers import INSTALLERS
from .tools import TOOLS

_CHOICES = {"tool": TOOLS, "installer": INSTALLERS, "bytecode": MODES}
_LISTS = (
    "requirements",
    "pip_packages",
    "wheels",
    "find_links",
    "extra_index",
    "constraints",
    "exclude",
)


@dataclass(frozen=True)
class Options:
    """What a build is asked for, but for the bundle that it writes.

    Attributes:
        cache: a directory that is kept between builds; made where it is missing.
        requirements: requirement files, such as a lock with hashes.
        project: a directory with a pyproject.toml or setup.py, with extras as in `/srv/shop[web]`.
        pip_packages: requirements, such as `gunicorn>=22`.
        wheels: wheel files, with extras likewise.
        find_links: directories or pages with packages, in addition to the configured ones.
        index: the package index, in place of the configured one.
        extra_index: further ones, in place of the configured ones.
        no_index: take packages from `find_links` only.
        require_hashes: refuse packages without a hash.
        constraints: constraint files.
        python: an executable, a command or `X.Y`, or an interpreter bundle, by its path or with
            its hash; by default the first `python3` on the PATH that is not Salt's own.
        tool: what creates the environment: `venv`, `virtualenv` or `uv`.
        installer: what installs: `pip` or `uv`.
        delta_from: full bundles, or how many of the latest beside it: from each a delta bundle is
            written as well, beside it; see `delta_name`.
        system_site_packages: let the environment see the Python's own packages, and install only
            what these do not meet; a server is asked for what is needed of them.
        exclude: patterns of what is left out of the bundle.
        prefix: pack it as if it had been built there.
        bytecode: how it is known whether bytecode matches its source; see `pack`.
        level: of the compression.
        commit: what is built; by default what is checked out in `project`.
        env: more variables for the tools.
    """

    cache: str
    requirements: tuple[str, ...] = ()
    project: str | None = None
    pip_packages: tuple[str, ...] = field(default=(), repr=False)
    wheels: tuple[str, ...] = ()
    find_links: tuple[str, ...] = field(default=(), repr=False)
    index: str | None = field(default=None, repr=False)
    extra_index: tuple[str, ...] = field(default=(), repr=False)
    no_index: bool = False
    require_hashes: bool = False
    constraints: tuple[str, ...] = ()
    python: str | PythonBundle | None = None
    tool: str = "venv"
    installer: str = "pip"
    system_site_packages: bool = False
    delta_from: int | tuple[str, ...] = 0
    exclude: tuple[str, ...] = ()
    prefix: str | None = None
    bytecode: str = "timestamp"
    level: int | None = None
    commit: str | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Check what was given; None is the default.

        Raises:
            InvalidPath: an option is unknown, or has a value that it cannot have.
        """
        _require_known(given, [one.name for one in fields(cls)])
        values = {name: value for name, value in given.items() if value is not None}
        for name, choices in _CHOICES.items():
            if name in values and values[name] not in choices:
                raise InvalidPath(f"{name} must be one of {', '.join(choices)}: {values[name]!r}")
        values["cache"] = absolute_prefix(values.get("cache", ""), "the cache")
        values.update({name: texts(values[name], name) for name in _LISTS if name in values})
        if "index" in values:
            values["index"] = texts(values["index"], "index")[0]
        if "pip_packages" in values:
            values["pip_packages"] = tuple(map(_requirement, values["pip_packages"]))
        if "prefix" in values:
            values["prefix"] = absolute_prefix(str(values["prefix"]), "the prefix")
        if "delta_from" in values:
            values["delta_from"] = _delta_from(values["delta_from"])
        if "python" in values:
            values["python"] = _python(values["python"])
        values["env"] = dict(_variables(values.get("env", {})))
        for name in ("no_index", "require_hashes", "system_site_packages"):
            values[name] = bool(values.get(name))
        if values["system_site_packages"] and values.get("installer") == "uv":
            raise InvalidPath(
                "uv installs again what the system has: with system_site_packages, let pip install"
            )
        level = values.get("level")
        if not isinstance(level, (int, type(None))) or isinstance(level, bool):
            raise InvalidPath(f"level must be a whole number: {level!r}")
        return cls(**values)


def _python(value: Any) -> str | PythonBundle:
    if isinstance(value, PythonBundle):
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise InvalidPath(
            f"python must be a path, a command, a version or an interpreter bundle: {value!r}"
        )
    return PythonBundle(value) if value.endswith(tuple(FORMS)) else value


def _require_known(given: Mapping[str, Any], known: list[str]) -> None:
    for name in given:
        if name not in known:
            similar = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(known)}"
            raise InvalidPath(f"unknown option {name} of a build: {hint}")


def texts(value: Any, what: str) -> tuple[str, ...]:
    """Several texts; one text is a list of one.

    Raises:
        InvalidPath: it is something else.
    """
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(
        isinstance(one, str) and one.strip() for one in values
    ):
        raise InvalidPath(f"{what} must be a list of texts: {value!r}")
    return tuple(values)


def _requirement(text: str) -> str:
    if "\n" in text or text.lstrip().startswith(("-", "#")):
        shown = without_credentials(text)
        raise InvalidPath(f"a package must be a requirement such as 'gunicorn>=22': {shown!r}")
    return text.strip()


def _delta_from(value: Any) -> int | tuple[str, ...]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return texts(value, "delta_from")


def _variables(env: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(env, Mapping):
        raise InvalidPath("env must be names and their values")
    for name, value in env.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise InvalidPath(
                f"the name of a variable must be letters, digits and underscores: {name!r}"
            )
        if not isinstance(value, str) or "\0" in value:
            raise InvalidPath(f"the variable {name} must be a text: put it in quotes")
        yield name, value
