"""Putting a release onto another Python, such as a security release of its own, and back.

The history records it, so that the release has to be found healthy again, and what it ran on before
is known where it is not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..errors import CannotRun, MarkedBad, NotARelease
from ..interpreters.check import missing_of
from ..interpreters.install import PythonBundle, kept
from ..interpreters.place import Place
from ..progress import Notify, silent
from ..relocation.reinitialize import Reinitialization, final_link
from ..relocation.reinitialize import reinitialize as put_onto
from ..relocation.relocate import has_leftovers
from ..virtualenvs.layout import read_config
from . import history
from .pythons import Wanted
from .root import Root, name_of
from .store import Store, locked


def reinitialize(
    path: str,
    python: str | PythonBundle | None = None,
    *,
    job: str = "",
    dry_run: bool = False,
    notify: Notify = silent,
    wait: float = 30.0,
) -> Reinitialization:
    """Put the virtualenv or release at `path` onto a Python of this machine, or of a bundle.

    It is `relocation.reinitialize`, and keeps the interpreter that is shared with other releases
    for as long as this one runs on it.

    Args:
        path: the virtualenv's directory.
        python: an executable, a command or `X.Y`, or the bundle of an interpreter, which is
            unpacked in `pythons`, beside the directory that the virtualenv is in; by default the
            one that pyvenv.cfg refers to, if it fits, else the first that fits.
        job: what this is done for, such as Salt's job id.
        dry_run: look, and change nothing.
        notify: called after each step.
        wait: seconds to wait for another run.

    Returns:
        What was done. In a dry run with an interpreter that is not unpacked, `python` is the name
        of its bundle.

    Raises:
        MarkedBad: the release was put back from that Python, as it was not healthy on it.
        RelocateError: another one of its subclasses, in one sentence; the virtualenv is as it was
            before.
    """
    here = os.path.abspath(path)
    wanted = Wanted(python, here, Place.beside(os.path.dirname(here), job))
    bundle = python if isinstance(python, PythonBundle) else None
    if bundle is not None:
        wanted.require()
    known = python if isinstance(python, str) else wanted.installed()
    if dry_run and bundle is not None and known is None:
        name, old = bundle.source or bundle.archive, os.path.realpath(f"{here}/bin/python")
        return Reinitialization(path, name, "", old, ["bin/python", "pyvenv.cfg"], dry_run=True)
    if known is not None and is_on(here, known):
        version = read_config(here).get("version", "")
        return Reinitialization(path, known, version, known, dry_run=dry_run)
    if bundle is None or known is not None:
        planned = _planned(path, known, wait)
        if dry_run or not (planned.changed or has_leftovers(here)):
            return replace(planned, dry_run=dry_run)
    with _recorded(here, job, wait) as store, wanted.provided(None, notify, wait) as provided:
        found, problems = provided
        planned = _planned(path, found, wait)
        with kept(planned.python, here, wait):
            if planned.changed and store is not None:
                _note(store, os.path.basename(here), planned)
            done = put_onto(path, found, wait=wait)
            lacks = [{"file": one.file, "reason": one.reason} for one in missing_of(path)]
            return replace(done, problems=problems + [one for one in lacks if one not in problems])


def put_back(
    path: str, reason: str, *, job: str = "", notify: Notify = silent, wait: float = 30.0
) -> Reinitialization:
    """Put a release that is not healthy onto the Python that it ran on before.

    The one that it leaves is not used for this release again, until `unmark_bad` takes the mark
    away. A call that was killed can be repeated.

    Args:
        path: the release.
        reason: why, for the mark and the history.
        job: what this is done for, such as Salt's job id.
        notify: called when it is done.
        wait: seconds to wait for another run.

    Raises:
        NotARelease: it was not put onto another Python, or was found healthy since.
        CannotRun: what it ran on before is not there any more.
        RelocateError: another one of its subclasses; the release is as it was before.
    """
    directory, name = name_of(path)
    root = Root(directory, job)
    root.require(name)
    path = os.path.join(root.path, name)
    with locked(root, f"putting {name} back", wait) as store:
        entry = root.reinitialized(name)
        if entry is None:
            raise NotARelease(
                f"{path} was not put onto another Python since it was found healthy: there is "
                "nothing to put back"
            )
        left, before = entry["python"], entry.get("previous")
        if not before or not os.access(before, os.X_OK):
            what = f"{before}, which it ran on before," if before else "what it ran on before"
            raise CannotRun(
                f"{path} stays on {left}: {what} is not there any more; put it onto another Python"
            )
        with kept(before, path, wait):
            store.note(history.PUT_BACK, name, python=before, previous=left, reason=reason)
            done = put_onto(path, before, wait=wait)
            notify("put back", {"python": done.python})
    return done


@contextmanager
def _recorded(path: str, job: str, wait: float) -> Iterator[Store | None]:
    """Hold the lock of a release's root; None where it is no release, or not this user's."""
    root = Root(os.path.dirname(path), job)
    name = os.path.basename(path)
    if not root.is_ours or root.record(name) is None:
        yield None
        return
    with locked(root, f"putting {name} onto another Python", wait) as store:
        yield store


def _note(store: Store, name: str, planned: Reinitialization) -> None:
    """Write down what is about to be done; a killed run may have done a part of it already."""
    begun = store.root.standing().reinitialized.get(name, {})
    same = begun.get("python") == planned.python
    previous = begun.get("previous") if same else planned.old_python
    store.note(history.REINITIALIZED, name, python=planned.python, previous=previous)


def is_on(path: str, python: str) -> bool:
    """Whether a virtualenv is on a Python, as far as that shows without running it.

    That takes no longer for a large virtualenv than for a small one, in each highstate.
    """
    try:
        links = final_link(os.path.join(path, "bin", "python")) == python
        home = read_config(path).get("home") == os.path.dirname(python)
        return links and home and os.access(python, os.X_OK) and not has_leftovers(path)
    except OSError:
        return False


def _planned(path: str, python: str | None, wait: float) -> Reinitialization:
    """What is to be done; refuses a Python that the release was put back from."""
    planned = put_onto(path, python, dry_run=True, wait=wait)
    root, name = Root(os.path.dirname(os.path.abspath(path))), os.path.basename(path)
    if planned.changed and root.record(name) is not None:
        reason = root.standing().bad_pythons.get(name, {}).get(planned.python)
        if reason is not None:
            raise MarkedBad(
                f"{path} was not healthy on {planned.python} ({reason}): give another Python, or "
                "take the mark away with unmark_bad"
            )
    return planned
