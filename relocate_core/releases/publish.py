"""Making a release out of an archive: unpacked, relocated, tried, and then given its name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from ..bundles.limits import Limits
from ..bundles.reuse import Previous
from ..bundles.unpack import unpack
from ..errors import CannotRun, InvalidPath, NoBase, NotARelease, RelocateError
from ..progress import Tell, silent
from ..relocation.check import check
from ..relocation.reinitialize import reinitialize
from ..relocation.relocate import has_leftovers, relocate
from ..system import locks
from ..system.running import identity, let_through
from ..virtualenvs.fitting import require_fit
from ..virtualenvs.interpreter import Interpreter, named
from ..virtualenvs.manifest import RECORD
from . import history
from .root import WAIT, Root, name_of
from .shared import checked, require_targets, share
from .smoke import smoke

# What makes a release useless; all other problems are for the operator to judge.
_FATAL = ("interpreter", "reference")


@dataclass
class Publication:
    """What was deployed, or in a dry run would be.

    Attributes:
        path: the release.
        changed: whether anything was (in a dry run: would be) done.
        dry_run: whether it was only looked at.
        repaired: whether it stood there, on a Python that is gone, and was put onto another one.
        old_prefixes: the paths that the archive's files named.
        rewritten: how many files were rewritten, by kind.
        python: the executable that it runs on.
        old_python: where `bin/python` led before, if it stood there and was repaired.
        files: how many members the archive had.
        size: bytes in its files.
        reused: how many of them an earlier release gave.
        problems: {"file", "reason"} of what is not perfect, but does not keep it from running.
    """

    path: str
    changed: bool = False
    dry_run: bool = False
    repaired: bool = False
    old_prefixes: list[str] = field(default_factory=list)
    rewritten: dict[str, int] = field(default_factory=dict)
    python: str | None = None
    old_python: str | None = None
    files: int = 0
    size: int = 0
    reused: int = 0
    problems: list[dict[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON and Salt."""
        return asdict(self)


def publish(
    archive: str,
    path: str,
    *,
    python: str | None = None,
    owner: tuple[int, int] | None = None,
    mode: int = 0o755,
    smoke_tests: Sequence[str] = (),
    smoke_user: tuple[int, int] | None = None,
    limits: Mapping[str, object] | None = None,
    digests: Mapping[str, str] | None = None,
    shared: Mapping[str, str] | None = None,
    hard_links: bool = False,
    source: str | None = None,
    job: str = "",
    dry_run: bool = False,
    tell: Tell = silent,
    wait: float = WAIT,
) -> Publication:
    """Deploy an archive of a virtualenv as the release `path`.

    A bundle is refused before anything is unpacked where this machine cannot run it, and needs no
    search for what is to be relocated.

    Nothing stands at `path` before all is done; after a failure or a kill the same call does it.

    Args:
        archive: path of a tar, plain or packed with gzip, bzip2, xz or zstd.
        path: where the release should stand: `<root>/<name>`.
        python: an executable, a command or `X.Y` to run it on; by default the first that fits.
        owner: user and group that its files should belong to; by default whoever runs this.
        mode: of the release's own directory.
        smoke_tests: commands that have to succeed in it before it counts.
        smoke_user: user and group to run them as; by default the owner.
        limits: what to refuse as too much: files, size (bytes), ratio.
        digests: what the archive has to hash to, by algorithm.
        shared: absolute paths of what outlives releases, by where it should be in each.
        hard_links: whether a bundle's files may be second links to those of another release.
        source: what the archive is called in the records, if not by its path.
        job: what this is done for, Salt's job id for one.
        dry_run: look, and change nothing.
        tell: called after each step.
        wait: seconds to wait for another run in the same root.

    Returns:
        What was done. Nothing is done where the release stands.

    Raises:
        RelocateError: one of its subclasses, in one sentence; nothing stands at `path` then.
    """
    directory, name = name_of(path)
    root = Root(directory, job)
    path = os.path.join(root.path, name)
    bounds = Limits.of(limits)
    links = checked(shared)
    identity(smoke_user)  # whoever cannot be run as is refused before anything is done
    stands = _stands(root, name, path, digests)
    runs = stands and _runs(path)
    if python is not None and not runs:
        named(python)  # a wrong one is refused before anything is done
    if stands:
        if dry_run or (runs and root.is_tidy() and not has_leftovers(path)):
            return _standing(path, runs, dry_run)
    elif dry_run:
        return Publication(path, changed=True, dry_run=True)
    with root.locked(f"deploying {name}", wait, create=True):
        if _stands(root, name, path, digests):  # another run has just done it, or it needs repair
            return _repaired(path, python, tell)
        require_targets(links)
        with root.staged() as staging:
            staged = os.path.join(staging, name)
            bases = _Bases(root, hard_links)
            with _called(staged, path):
                done, record = _prepare(
                    archive, staged, path, python, owner, bounds, digests, bases, tell
                )
            if links:
                share(staged, links, owner)
                record["shared"] = links
            os.chmod(staged, mode)  # whoever may not read it then may not try it either
            smoke(staged, path, smoke_tests, smoke_user or owner)
            if smoke_tests:
                tell("tried", {"commands": len(smoke_tests)})
            record |= {"source": source or archive, "published": locks.now(), "job": job}
            root.publish(staged, name, record)
            root.note(history.PUBLISHED, name, source=source or archive)
            tell("published", {"path": path})
    return done


@contextmanager
def _called(staged: str, path: str) -> Iterator[None]:
    """Let what goes wrong in a staged release tell of the release, of which an operator knows."""
    try:
        yield
    except RelocateError as error:
        error.args = (str(error).replace(staged, path),)
        raise


def _stands(root: Root, name: str, path: str, digests: Mapping[str, str] | None) -> bool:
    """Whether the release is there; an error where something else is."""
    if not os.path.lexists(path):
        return False
    known = root.record(name)
    if known is None:
        raise NotARelease(
            f"{path} is there, and is no release that was deployed: move it away, and run again"
        )
    for algorithm, wanted in (digests or {}).items():
        found = known.get("digests", {}).get(algorithm.lower())
        if found is not None and found != wanted.lower():
            raise InvalidPath(
                f"{path} stands, and was made of another archive ({algorithm} {found:.12}..., not "
                f"{wanted:.12}...): a release is never changed, so deploy this one by another name"
            )
    return True


def _runs(path: str) -> bool:
    return os.access(os.path.join(path, "bin", "python"), os.X_OK)


def _standing(path: str, runs: bool, dry_run: bool = False) -> Publication:
    """A release that stands, and what its Python was where that is gone."""
    done = Publication(path, changed=not runs, dry_run=dry_run, repaired=not runs)
    if not runs:
        done.old_python = os.path.realpath(os.path.join(path, "bin", "python"))
    return done


def _repaired(path: str, python: str | None, tell: Tell) -> Publication:
    """Put a release onto another Python where its own is gone, as after an upgrade of the host."""
    runs = _runs(path)
    done = _standing(path, runs)
    if not runs or has_leftovers(path):
        done.python = reinitialize(path, python).python
        tell("repaired", {"python": done.python})
    return done


class _Bases:
    """The releases in a root that may give their files to a new one."""

    def __init__(self, root: Root, hard_links: bool) -> None:
        self.root = root
        self.hard_links = hard_links

    def find(self, manifest: str | None) -> Previous | None:
        """The release with a manifest of that digest; for None the likeliest to have the same."""
        changed: NoBase | None = None
        active = set(self.root.links().values())
        known = [one for one in self.root.releases() if one.record.get("manifest")]
        known.sort(key=lambda one: one.name not in active)  # of which nothing but the order changes
        for release in known:
            digest = release.record["manifest"]
            if manifest in (None, digest):
                try:
                    return Previous(release.path, RECORD, digest, self.hard_links)
                except NoBase as error:
                    changed = error
        if manifest is not None and changed is not None:
            raise changed
        return None


def _prepare(
    archive: str,
    staged: str,
    path: str,
    python: str | None,
    owner: tuple[int, int] | None,
    limits: Limits,
    digests: Mapping[str, str] | None,
    bases: _Bases,
    tell: Tell,
) -> tuple[Publication, dict[str, Any]]:
    """Unpack the archive into the staging directory, as `staged`, and relocate it for
    `path`."""
    directory = os.path.join(os.path.dirname(staged), "unpacked")
    os.mkdir(directory, 0o700)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fitting: list[Interpreter] = []
    try:
        unpacked = unpack(
            archive,
            descriptor,
            limits=limits,
            digests=digests,
            owner=owner,
            progress=lambda files, size: tell("unpacking", {"files": files, "size": size}),
            accept=lambda head: fitting.append(require_fit(head, path, python)),
            find=bases.find,
        )
        if owner is not None:
            os.fchown(descriptor, *owner)
    finally:
        os.close(descriptor)
    tell(
        "unpacked",
        {"files": unpacked.files, "size": unpacked.size, "reused": unpacked.reused or None},
    )
    # Directly into a directory that is ours alone: its own files may belong to somebody else.
    os.rename(os.path.join(directory, unpacked.top) if unpacked.top else directory, staged)
    moved = relocate(staged, path, staged=True, as_packed=unpacked.bundle is not None)
    tell("relocated", {"files": sum(moved.rewritten.values())})
    compiled = links = None
    if unpacked.bundle is not None:
        python, links = fitting[0].executable, unpacked.links
        compiled = {module: set(endings) for endings, module in unpacked.bundle.compiled}
    let_through(staged)  # what of it is run from here on is not run as root, if it can be helped
    swapped = reinitialize(staged, python, staged=True, compiled=compiled)
    tell("reinitialized", {"python": swapped.python})
    base = os.path.dirname(swapped.python)
    verdict = check(staged, home=path, base=base, compiled=compiled, links=links)
    fatal = [problem for problem in verdict.problems if problem.kind in _FATAL]
    if fatal:
        more = f" and {len(fatal) - 1} more problems" if len(fatal) > 1 else ""
        raise CannotRun(
            f"{path} is not deployed, as it would not run: {fatal[0].file or 'it'}: "
            f"{fatal[0].reason}{more}; fix the build, and deploy it under a new name"
        )
    tell("checked", {"problems": len(verdict.problems)})
    problems = [{"file": file, "reason": reason} for file, reason in moved.problems]
    problems += [{"file": item.file, "reason": item.reason} for item in verdict.problems]
    done = Publication(
        path,
        changed=True,
        old_prefixes=moved.old_prefixes,
        rewritten=moved.rewritten,
        python=swapped.python,
        files=unpacked.files,
        size=unpacked.size,
        reused=unpacked.reused,
        problems=problems,
    )
    record = {
        # Others know a release by its full archive; this one may be only what another one lacked.
        "digests": {} if unpacked.base else unpacked.digests,
        "python": swapped.python,
        "python_version": swapped.version,
        "old_prefixes": moved.old_prefixes,
        "rewritten": moved.rewritten,
        "files": unpacked.files,
        "size": unpacked.size,
    }
    if unpacked.manifest:
        record["manifest"] = unpacked.manifest
    return done, record
