"""The Python that a release is put onto: one of this machine, or one that it brings in a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace

from ..bundles.reader import read_head, read_proven_head
from ..errors import BadArchive, InterpreterNotFound
from ..interpreters.install import PythonBundle, provided
from ..interpreters.place import Place
from ..progress import Notify
from ..system import files
from ..virtualenvs import manifest_reader
from ..virtualenvs.discovery import find_named, for_bundle
from ..virtualenvs.interpreter import Interpreter
from ..virtualenvs.manifest import BuiltOn

Beside = Callable[[str], AbstractContextManager["tuple[str, str | None]"]]
"""Gets the file of a name that is beside a release's archive: where that is, for messages, and the
path of the file on this machine; None where it is not to be had."""


@dataclass(frozen=True)
class Wanted:
    """The Python that an operator chose for a release.

    Attributes:
        python: an executable, a command, `X.Y`, the bundle of an interpreter, or None for any.
        path: the release's path.
        place: the interpreters that are shared by all roots beside the release's.
        as_root: whether the operator named root as the user who should run it.
    """

    python: str | PythonBundle | None
    path: str
    place: Place
    as_root: bool = False

    def require(self) -> None:
        """Refuse a Python that is not there, or must not be run.

        Raises:
            RelocateError: InterpreterNotFound or CannotRun.
        """
        if isinstance(self.python, PythonBundle):
            self.python.require_trust(self.as_root)
        elif self.python is not None:
            find_named(self.python)

    def require_fit(self, archive: str) -> None:
        """Refuse a bundle that no Python of this machine can run, where both are at hand.

        Raises:
            RelocateError: InterpreterNotFound or InterpreterMismatch.
        """
        if not isinstance(self.python, PythonBundle):
            with suppress(BadArchive):  # no bundle, or not fetched: seen once it is unpacked
                for_bundle(read_head(archive), self.path, self.python)

    def installed(self) -> str | None:
        """The program of the bundle's interpreter, where it is there by its hash."""
        bundle = self.python if isinstance(self.python, PythonBundle) else None
        found = self.place.find(bundle.digests) if bundle is not None else None
        return None if found is None else found.executable

    @contextmanager
    def provided(
        self, archive: str | None, notify: Notify, wait: float
    ) -> Iterator[tuple[str | None, list[dict[str, str]]]]:
        """The Python, for as long as the release is deployed onto it, and what is wrong with it.

        Args:
            archive: the release's; the interpreter is compared with what it needs, before either
                is unpacked.
            notify: called after each step.
            wait: seconds to wait for another run in the same place.
        """
        if not isinstance(self.python, PythonBundle):
            yield self.python, []
            return

        def fits(interpreter: Interpreter) -> None:
            try:
                head = read_head(archive or "")
            except BadArchive:  # no bundle, or none at hand: seen once it is unpacked
                return
            for_bundle(head, self.path, interpreter)

        with provided(
            self.python,
            self.place,
            self.path,
            as_root=self.as_root,
            fits=fits,
            notify=notify,
            wait=wait,
        ) as found:
            yield found.executable, found.problems


def built_on(archive: str) -> BuiltOn | None:
    """The interpreter bundle that an archive was built on; None where it is none, or unknown."""
    try:
        return read_head(archive).built_on
    except BadArchive:  # no bundle, or not at hand: what is wrong is seen when it is unpacked
        return None


@contextmanager
def of_release(
    wanted: Wanted,
    archive: str,
    digests: Mapping[str, str] | None,
    source: str | None,
    beside: Beside | None,
) -> Iterator[Wanted]:
    """What is wanted, or else the interpreter that the release's manifest names.

    It is fetched only where it is not there, and only once the release's archive was compared with
    its hashes: who can change the archive could otherwise name any program for root to run.

    Args:
        wanted: what the operator chose.
        archive: the release's, on this machine.
        digests: what that has to hash to, by algorithm.
        source: what the archive is called, if not by its path.
        beside: gets files that are beside the archive; by default from its directory.

    Raises:
        InterpreterNotFound: it is not to be had.
        CannotRun: root would run it, and the release is not trusted.
    """
    named = built_on(archive) if wanted.python is None else None
    if named is None:
        yield wanted
        return
    name = source or archive
    bundle = PythonBundle(named.file, {"sha256": named.sha256}, None, name, digests)
    if wanted.place.find(bundle.digests) is not None:
        # Nothing of it is unpacked: whoever deployed it has trusted it.
        yield replace(wanted, python=replace(bundle, release=""))
        return
    bundle.require_trust(wanted.as_root)
    if digests and read_proven_head(archive, digests).built_on != named:
        raise BadArchive(f"{archive} was replaced meanwhile: run again")
    with (beside or _in_directory_of(archive))(named.file) as (where, file):
        if file is None:
            raise InterpreterNotFound(
                f"cannot deploy {name}, as it was built on the Python of {named.file}, and there "
                f"is none at {where}: put it there, or give python"
            )
        yield replace(wanted, python=replace(bundle, archive=file, source=where))


def _in_directory_of(archive: str) -> Beside:
    @contextmanager
    def beside(name: str) -> Iterator[tuple[str, str | None]]:
        path = os.path.join(os.path.dirname(os.path.abspath(archive)), name)
        yield path, path if os.path.isfile(path) else None

    return beside


def of_deployed(wanted: Wanted) -> Wanted:
    """What is wanted, or else the interpreter that a deployed release was built on, if it is there.

    Its manifest fetches nothing: whoever the release belongs to could have changed that.

    Raises:
        InterpreterNotFound: it is not there.
    """
    if wanted.python is not None:
        return wanted
    named = _built_on_of(wanted.path)
    if named is None:
        return wanted
    bundle = PythonBundle(named.file, {"sha256": named.sha256})
    if wanted.place.find(bundle.digests) is None:
        raise InterpreterNotFound(
            f"{wanted.path} was built on the Python of {named.file}, which is not in "
            f"{wanted.place.path}: give python, with that file as source, and its source_hash"
        )
    return replace(wanted, python=bundle)


def _built_on_of(path: str) -> BuiltOn | None:
    root = files.open_root(path)
    try:
        head = manifest_reader.head_in(root)
    finally:
        os.close(root)
    return None if head is None else head.built_on
