"""The Python that a release is put onto: one of this machine, or one that it brings in a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ..bundles.reader import read_head
from ..errors import BadArchive
from ..interpreters.install import PythonBundle, provided
from ..interpreters.place import Place
from ..progress import Notify
from ..virtualenvs.discovery import find_named, for_bundle
from ..virtualenvs.interpreter import Interpreter


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
            problems = [
                {"file": f"{found.path}/{one['file']}", "reason": one["reason"]}
                for one in found.record.get("problems", [])
            ]
            yield found.executable, problems
