"""The other releases of a root follow the active one onto its Python.

So a rollback does not bring back the Python that was left, such as one without a security fix. They
follow once the active release was found healthy on it: a Python that is wrong for that one reaches
no other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import InterpreterMismatch, MarkedBad, NotARelease, RelocateError
from ..interpreters.install import PythonBundle
from ..interpreters.place import Place
from ..progress import Notify, Report, silent
from ..relocation.reinitialize import final_link
from ..virtualenvs.discovery import find_named
from ..virtualenvs.layout import Virtualenv, inspect
from .pythons import Wanted
from .reinitialize import is_on, reinitialize
from .root import CURRENT, WAIT, Root, link_name


@dataclass
class Following(Report):
    """What became of the other releases of a root, or would in a dry run.

    Attributes:
        root: the directory of the releases.
        active: the name of the release that they follow.
        python: the executable that they should run on; where that is not unpacked, its bundle.
        moved: what each release that was put onto it ran on before, by name; None for a copy.
        left: why a release stays on its Python, by name.
        failed: why a release could not be put onto it, by name.
        waiting: why none follows yet; None where nothing is in the way.
        dry_run: whether it was only looked at.
    """

    root: str
    active: str
    python: str
    moved: dict[str, str | None] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    waiting: str | None = None
    dry_run: bool = False


def reinitialize_others(
    directory: str,
    python: str | PythonBundle,
    *,
    link: str = CURRENT,
    checked: bool = True,
    job: str = "",
    dry_run: bool = False,
    notify: Notify = silent,
    wait: float = WAIT,
) -> Following:
    """Put the other releases of a root onto the Python that the active one was put onto.

    Nothing is unpacked, and nothing is done before the active release runs on that Python. Each of
    the others is put onto it as by `reinitialize`: it has to be found healthy on it when it is
    activated, and is put back where it is not. A call that was killed can be repeated.

    Args:
        directory: the root.
        python: as that of `reinitialize`.
        link: the name or path of the link to the active release.
        checked: whether the active release has to be found healthy on that Python before; False
            is for an app whose health nothing checks.
        job: what this is done for, such as Salt's job id.
        dry_run: look, and change nothing; `moved` is what would follow once nothing is in the way.
        notify: called after each release.
        wait: seconds to wait for another run in the same root.

    Returns:
        What was done. A release stays as it is where the Python does not fit, where it was put back
        from that one, and where another link points to it.

    Raises:
        NotARelease: the link points to no release.
        RelocateError: another one of its subclasses: the Python is not there, or must not be run.
    """
    root = Root(directory, job)
    link = link_name(root, link)
    active = root.active(link)
    if active is None:
        path = os.path.join(root.path, link)
        raise NotARelease(f"{path} points to no release, so there is none to follow: activate one")
    root.require(active)
    executable = _executable(root, active, python)
    found = Following(root.path, active, executable or _name(python), dry_run=dry_run)
    pending = [name for name in root.names() if name != active and not _is_on(root, name, found)]
    if not pending:
        return found
    found.waiting = _waiting(root, link, active, found.python, checked)
    found.left.update(_left(root, active, pending, found.python))
    pending = [name for name in pending if name not in found.left]
    if found.waiting is None:
        _follow(root, pending, found, notify, wait)
    elif dry_run:
        found.moved = {name: _runs_on(root, name) for name in pending}
    else:
        found.left.update(dict.fromkeys(pending, found.waiting))
    return found


def _name(python: str | PythonBundle) -> str:
    return python if isinstance(python, str) else python.source or python.archive


def _executable(root: Root, active: str, python: str | PythonBundle) -> str | None:
    """The program of a Python; None where that of a bundle is not unpacked."""
    path = os.path.join(root.path, active)
    if isinstance(python, PythonBundle):
        return Wanted(python, path, Place.beside(root.path, root.job)).installed()
    return python if is_on(path, python) else find_named(python).executable


def _is_on(root: Root, name: str, found: Following) -> bool:
    return is_on(os.path.join(root.path, name), found.python)


def _runs_on(root: Root, name: str) -> str | None:
    return final_link(os.path.join(root.path, name, "bin", "python"))


def _waiting(root: Root, link: str, active: str, python: str, checked: bool) -> str | None:
    """Why no release follows the active one yet."""
    if not _runs(os.path.join(root.path, active), python):
        return f"{active}, which is active, is not on that Python"
    is_proven = root.standing().proven.get(link) == active and root.reinitialized(active) is None
    if checked and not is_proven:
        return f"{active}, which is active, was not found healthy on that Python yet"
    return None


def _runs(path: str, python: str) -> bool:
    """Whether a release is on a Python; one that has copies of it shows that by their content."""
    try:
        return is_on(path, python) or not reinitialize(path, python, dry_run=True).changed
    except RelocateError:
        return False


def _left(root: Root, active: str, names: list[str], python: str) -> Iterator[tuple[str, str]]:
    """The releases that stay on their Python, and why, as far as it is known without their files.

    That keeps a highstate from reading all packages of what does not fit, each time.
    """
    fits = _kind(inspect(os.path.join(root.path, active)))
    bad: Mapping[str, Mapping[str, str]] = root.standing().bad_pythons
    links = {name: link for link, name in root.links().items()}
    for name in names:
        reason = bad.get(name, {}).get(python)
        try:
            kind = _kind(inspect(os.path.join(root.path, name)))
        except RelocateError:  # the same is reported when it is put onto the Python
            kind = fits
        if name in links:
            yield name, f"{links[name]} points to it, so it is put onto a Python for itself"
        elif reason is not None:
            yield name, f"it was not healthy on that Python ({reason})"
        elif kind != fits:
            yield name, f"it is for {' '.join(kind)}, and {active} for {' '.join(fits)}"


def _kind(environment: Virtualenv) -> tuple[str, str]:
    names = {"cpython": "Python", "pypy": "PyPy"}
    what = names.get(environment.implementation, environment.implementation)
    return what, f"{environment.python}{'t' if environment.free_threaded else ''}"


def _follow(root: Root, names: list[str], found: Following, notify: Notify, wait: float) -> None:
    """Put each of some releases onto the Python."""
    for name in names:
        path = os.path.join(root.path, name)
        try:
            done = reinitialize(path, found.python, job=root.job, dry_run=found.dry_run, wait=wait)
        except (InterpreterMismatch, MarkedBad) as error:
            found.left[name] = str(error)
            continue
        except RelocateError as error:
            found.failed[name] = str(error)
            continue
        if done.changed:
            found.moved[name] = done.old_python
            notify("reinitialized", {"release": name, "python": done.python})
