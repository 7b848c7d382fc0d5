"""A directory of interpreters, which all releases beside it share; here it is only read.

Each is at `<directory>/<name>-<digest>`, by the digest of its bundle's manifest. It is complete as
soon as it has that name, and never changed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..archives.tar import Refused
from ..system.ownership import is_own
from ..system.staging import record_of
from ..virtualenvs.interpreter import Interpreter
from ..virtualenvs.layout import absolute_prefix
from ..virtualenvs.manifest import Head, OwnPython
from .prefix import PROGRAM

DIRECTORY = "pythons"
"""What the directory is called, beside the roots of releases."""
RECORDS = ".pythons"
"""In it: the lock, what is being unpacked, and who uses what."""
RECORD = ".interpreter.json"
"""In an interpreter: what it was made of; without it there is none."""
RECORD_FORMAT = 1
_DIGITS = 12
_PROGRAMS = {"cpython": "python", "pypy": "pypy"}
_VERSION = re.compile(r"\d+\.\d+\.\d+\Z")
_FLAGS = re.compile(r"[a-z]{0,8}\Z")


@dataclass(frozen=True)
class Installed:
    """An interpreter that is there.

    Attributes:
        path: its directory.
        record: what RECORD says: name, version, program, manifest, digests, source, installed, job,
            problems.
    """

    path: str
    record: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """Its directory's name, such as `cpython-3.13.0-1f3a9c0b72de`."""
        return os.path.basename(self.path)

    @property
    def executable(self) -> str:
        """The path of its program."""
        return os.path.join(self.path, self.record["program"])

    @property
    def problems(self) -> list[dict[str, str]]:
        """The file and the reason of what is not perfect in it."""
        known = self.record.get("problems", [])
        return [{**one, "file": os.path.join(self.path, one["file"])} for one in known]

    def as_dict(self) -> dict[str, Any]:
        """What an operator wants to see of it, as plain values."""
        kept = ("version", "installed", "source", "files", "size", "job", "problems")
        return {key: self.record[key] for key in kept if self.record.get(key)}


class Place:
    """A directory of interpreters.

    Args:
        path: the directory; it need not exist yet.
        job: what this is done for, such as Salt's job id.

    Raises:
        InvalidPath: nothing can be kept there.
    """

    def __init__(self, path: str, job: str = "") -> None:
        self.path = absolute_prefix(path, "the directory of the interpreters")
        self.job = job

    @classmethod
    def beside(cls, root: str, job: str = "") -> Place:
        """The one that a root of releases shares with the others beside it."""
        return cls(os.path.join(os.path.dirname(root), DIRECTORY), job)

    @property
    def records(self) -> str:
        """The directory of the lock, what is being unpacked, and who uses what."""
        return os.path.join(self.path, RECORDS)

    @property
    def is_ours(self) -> bool:
        """Whether this user keeps interpreters here; those of others are never changed."""
        return is_own(self.records)

    def get(self, name: str) -> Installed | None:
        """The complete interpreter of that name, if there is one."""
        return _at(os.path.join(self.path, name))

    def installed(self) -> list[Installed]:
        """All complete interpreters, by name."""
        try:
            names = sorted(os.listdir(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = (self.get(name) for name in names if name[0] != ".")
        return [one for one in found if one is not None]

    def find(self, digests: Mapping[str, str] | None) -> Installed | None:
        """The interpreter that came from an archive of these hashes, by algorithm."""
        wanted = {algorithm.lower(): value.lower() for algorithm, value in (digests or {}).items()}
        for one in self.installed():
            known = one.record.get("digests", {})
            if wanted and all(known.get(name) == value for name, value in wanted.items()):
                return one
        return None


def _at(path: str) -> Installed | None:
    record = record_of(path, RECORD, RECORD_FORMAT)
    return None if record is None else Installed(path, record)


def containing(path: str) -> Installed | None:
    """The interpreter that a file belongs to, all symlinks followed; None for any other file."""
    above = os.path.dirname(os.path.realpath(path))
    while above != "/":
        if os.path.lexists(os.path.join(above, RECORD)):
            return _at(above)
        above = os.path.dirname(above)
    return None


def own_python(head: Head) -> OwnPython:
    """What a manifest records about its interpreter.

    Raises:
        Refused: it is the bundle of a virtualenv, or no interpreter can be of that kind.
    """
    own = head.interpreter
    if own is None:
        raise Refused("it is the bundle of a virtualenv", advice="name one of --pack-python")
    directory, _, program = own.program.rpartition("/")
    if (
        not program.startswith(_PROGRAMS.get(head.implementation, "/"))
        or not _VERSION.match(head.version)
        or not head.version.startswith(f"{head.python}.")
        or not _FLAGS.match(own.abiflags)
        or directory != "bin"
        or not PROGRAM.match(program)
    ):
        raise Refused(
            "its manifest describes an impossible interpreter",
            advice="name one that was packed with --pack-python",
        )
    return own


def name_for(head: Head, digest: str) -> str:
    """The name of the interpreter with that manifest."""
    flags = "t" if "t" in own_python(head).abiflags else ""
    return f"{head.implementation}-{head.version}{flags}-{digest[:_DIGITS]}"


def described(head: Head, path: str) -> Interpreter:
    """The interpreter of a bundle as it would describe itself, without running it.

    Args:
        head: that of the manifest.
        path: where it is, or is going to be.
    """
    own = own_python(head)
    major, minor, micro = map(int, head.version.split("."))
    here, is_cpython = this_machine(), head.implementation == "cpython"
    return Interpreter(
        executable=os.path.join(path, own.program),
        version=(major, minor, micro),
        implementation=head.implementation,
        suffixes=[f".{own.soabi}.so", *([".abi3.so", ".so"] if is_cpython else [])],
        prefix=path,
        base_prefix=path,
        machine=here.machine,
        cache_tag=own.cache_tag,
        libc=here.libc,
        free_threaded="t" in own.abiflags,
    )


def this_machine() -> Interpreter:
    """The machine and the C library of whoever runs this."""
    import sys

    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        libc = ""
    return Interpreter(
        executable=sys.executable,
        version=sys.version_info[:3],
        implementation="cpython",
        suffixes=[],
        prefix=sys.prefix,
        base_prefix=sys.base_prefix,
        machine=os.uname().machine,
        libc=libc,
    )
