"""What a virtualenv with system site-packages needs of the base Python's own packages.

The build records it by name and version, and a server is asked for just that: what is there in
another version may not load, or behave otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InterpreterMismatch, InterpreterNotFound, reason_of
from ..system.processes import environment as bare_environment
from ..system.processes import identity, run
from .requirements import Requirement, normal_name, parse
from .system_info import PROGRAM

_SECONDS = 60
_SHOWN = 3
Packages = tuple[tuple[str, str], ...]
"""Names, in their normal form and in order, and versions."""


@dataclass(frozen=True)
class Distribution:
    """An installed distribution.

    Attributes:
        version: its version.
        requires: what it asks for.
    """

    version: str
    requires: tuple[Requirement, ...]


@dataclass(frozen=True)
class Installed:
    """The distributions that a Python finds.

    Attributes:
        own: those of a virtualenv, by their names.
        system: those of the Python itself.
        environment: the values of the variables of markers.
    """

    own: Mapping[str, Distribution]
    system: Mapping[str, Distribution]
    environment: Mapping[str, str]

    @property
    def packages(self) -> Packages:
        """All of the system."""
        return tuple(sorted((name, one.version) for name, one in self.system.items()))

    def needed(self, asked: Iterable[Requirement] = ()) -> Packages:
        """What of the system meets a requirement, however indirect, of the virtualenv.

        Args:
            asked: what was asked for beside what the virtualenv's distributions ask for.
        """
        applying = [one for one in asked if one.applies(self.environment)]
        left = [(one.name, one.extras) for one in applying]
        left += [(name, frozenset()) for name in self.own]
        seen = set()
        while left:
            name, extras = left.pop()
            found = self.own.get(name) or self.system.get(name)
            if found is None or (name, extras) in seen:
                continue
            seen.add((name, extras))
            for one in found.requires:
                if one.applies(self.environment, extras):
                    left.append((one.name, one.extras))
        names = {name for name, _ in seen if name not in self.own}
        return tuple(sorted((name, self.system[name].version) for name in names))


def find_installed(
    executable: str, directories: Iterable[str] = (), user: tuple[int, int] | None = None
) -> Installed:
    """Run a base Python, and return what it finds.

    It starts as it does for a program, so that whatever extends its `sys.path` counts, but without
    the packages of a user: a server's user has others.

    Args:
        executable: its path.
        directories: the site-packages directories of a virtualenv on it.
        user: user and group to run it as; None for whoever runs this.

    Raises:
        InterpreterNotFound: it does not run.
    """
    who, home = identity(user)
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    if user is not None:
        variables = bare_environment(os.path.dirname(os.path.dirname(executable)), home)
    command = [executable, "-E", "-s", "-B", "-c", PROGRAM, *map(os.path.abspath, directories)]
    try:
        done = run(command, "/", variables, user=who, seconds=_SECONDS)
        answer = json.loads(done.output)
        return Installed(
            _distributions(answer["own"]),
            _distributions(answer["system"]),
            {str(name): str(value) for name, value in answer["environment"].items()},
        )
    except OSError as error:
        raise InterpreterNotFound(f"{executable} does not run: {reason_of(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InterpreterNotFound(
            f"{executable} does not report which packages it has: try `{executable} -c 'import "
            "site'`, and repair it"
        ) from error


def _distributions(rows: list[Any]) -> dict[str, Distribution]:
    """Distributions by their names; of two of one name the first, which is the one imported."""
    found: dict[str, Distribution] = {}
    for name, version, requires in rows:
        parsed = filter(None, map(parse, requires))
        found.setdefault(normal_name(name), Distribution(str(version), tuple(parsed)))
    return found


def differences(wanted: Packages, executable: str, user: tuple[int, int] | None = None) -> str:
    """What of the packages that are needed a Python lacks, or has in another version.

    Args:
        wanted: what is needed.
        executable: the Python.
        user: user and group to run it as; None for whoever runs this.

    Returns:
        The first few of them and how many more, with what to do; "" where all are there.

    Raises:
        InterpreterNotFound: it does not run.
    """
    if not wanted:
        return ""
    system = find_installed(executable, user=user).system
    wrong = []
    for name, version in wanted:
        if name not in system:
            wrong.append(f"{name} {version}, which is not installed there")
        elif system[name].version != version:
            wrong.append(f"{name} {version}, and {system[name].version} is installed there")
    if not wrong:
        return ""
    more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return (
        f"it needs from the packages of {executable} {'; '.join(wrong[:_SHOWN])}{more}: install "
        "these versions with the system's package manager, or build it without "
        "system_site_packages"
    )


def require(wanted: Packages, doing: str, executable: str) -> None:
    """Refuse a Python that lacks a package that is needed, or has it in another version.

    Args:
        wanted: what is needed.
        doing: what cannot be done then, such as `deploy /srv/app/4f2a9c1`.
        executable: the Python.

    Raises:
        InterpreterMismatch: with the packages, and what is there.
        InterpreterNotFound: it does not run.
    """
    wrong = differences(wanted, executable)
    if wrong:
        raise InterpreterMismatch(f"cannot {doing}: {wrong}")
