"""The interpreter bundle that a build is made with: the servers get the very same Python.

It is unpacked in `<cache>/pythons` once a build runs with it. What decides whether a bundle is up
to date is known before that, from its manifest. Beside each bundle that is built on it there is a
copy of it, as servers look for it there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..archives.compression import FORMS
from ..archives.tar import Refused
from ..bundles import reader
from ..bundles.output import Output
from ..errors import BadArchive, InvalidPath, reason_of
from ..interpreters import users
from ..interpreters.install import PythonBundle, compared, provided
from ..interpreters.place import DIRECTORY, Place, described, name_for
from ..progress import Notify
from ..virtualenvs.interpreter import Interpreter, probe
from ..virtualenvs.manifest import BuiltOn
from .sources import file_digest

_VENV = re.compile(r"lib/python[^/]+/venv/__main__\.py\Z")
_PIP = re.compile(r"lib/python[^/]+/ensurepip/_bundled/pip-([^-/]+)-[^/]+\.whl\Z")


@dataclass(frozen=True)
class BundledPython:
    """An interpreter bundle to build on.

    Attributes:
        archive: its path.
        built_on: what the manifest of what is built on it has of it.
        interpreter: as it describes itself, once it is unpacked in the cache.
        place: where in the cache interpreters are.
        has_venv: whether it has the module venv.
        pip: the version of the pip that it brings; "" without one.
    """

    archive: str
    built_on: BuiltOn
    interpreter: Interpreter
    place: Place
    has_venv: bool
    pip: str

    @classmethod
    def of(cls, bundle: PythonBundle, cache: str) -> BundledPython:
        """Read its manifest, and unpack nothing.

        Args:
            bundle: it, as it was asked for.
            cache: that of builds.

        Raises:
            BadArchive: it is no interpreter's, or not the one whose hash was given.
        """
        archive = os.path.abspath(bundle.archive)
        with reader.of_archive(archive, reader.require_interpreter) as known:
            head, digest = known.head, known.digest
            paths = [row.path for row in known.rows()]
        try:
            name = name_for(head, digest)
        except Refused as refusal:
            raise BadArchive(f"cannot build on {archive}: {refusal}; {refusal.advice}") from refusal
        sha256 = compared(archive, bundle.digests or {}, "build on")
        place = Place(os.path.join(cache, DIRECTORY))
        ending = next(one for one in sorted(FORMS, key=len)[::-1] if archive.endswith(one))
        return cls(
            archive,
            BuiltOn(f"{name}{ending}", digest, sha256),
            described(head, os.path.join(place.path, name)),
            place,
            any(map(_VENV.match, paths)),
            next((found[1] for found in map(_PIP.match, paths) if found), ""),
        )

    @contextmanager
    def provided(
        self, environment: str, notify: Notify, wait: float
    ) -> Iterator[tuple[Interpreter, list[dict[str, str]]]]:
        """Have it in the cache for an environment there; the interpreter, and what it lacks.

        Args:
            environment: the environment's path, which is to run on it.
            notify: called after each step.
            wait: seconds to wait for another build that unpacks one.
        """
        # This hash was computed here, and no operator gave it: root runs the build code of all the
        # packages anyway, so whoever builds on a path trusts it.
        bundle = PythonBundle(self.archive, {"sha256": self.built_on.sha256})
        with provided(bundle, self.place, environment, notify=notify, wait=wait) as found:
            yield replace(self.interpreter, magic=probe(found.executable).magic), found.problems

    def beside(self, bundle: str) -> str:
        """Its path beside a bundle that is built on it."""
        return os.path.join(os.path.dirname(bundle), self.built_on.file)

    def is_beside(self, bundle: str) -> bool:
        """Whether it is there.

        Raises:
            InvalidPath: another file is.
        """
        path = self.beside(bundle)
        if not os.path.lexists(path):
            return False
        try:
            found = file_digest(path)
        except OSError as error:
            raise InvalidPath(f"cannot read {path}: {reason_of(error)}; see whose it is") from error
        if found != self.built_on.sha256:
            raise InvalidPath(
                f"{path} is another file than {self.archive}, whose place it takes: build on that "
                "one, or remove it if no bundle there was built on it"
            )
        return True

    def put_beside(self, bundle: str) -> None:
        """Copy it there with its hash, unless it is: complete before it has its name.

        It is no hard link, as whoever writes over the original in place would change this as well.
        """
        path = self.beside(bundle)
        if self.is_beside(bundle):
            return
        with Output(path) as output, open(self.archive, "rb") as source:
            while piece := source.read(1 << 20):
                output.write(piece)
            if output.sha256 != self.built_on.sha256:
                raise BadArchive(f"{self.archive} was replaced during the build: run again")
            output.commit()


def prune(cache: str, wait: float) -> None:
    """Remove the interpreters that no environment in the cache runs on any more.

    One that cannot be removed now is removed after the next build.
    """
    users.prune(Place(os.path.join(cache, DIRECTORY)), wait=wait)
