"""Making a release from an archive: unpacked, relocated, tried, and then given its name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ..bundles.limits import Limits
from ..bundles.reuse import Previous
from ..bundles.unpack import Unpacked, unpack
from ..errors import CannotRun, InvalidPath, NoBase, NotARelease, RelocateError
from ..interpreters.install import PythonBundle, kept
from ..interpreters.place import Place
from ..interpreters.users import tidy
from ..progress import Notify, Report, silent
from ..relocation.check import Verdict, check
from ..relocation.reinitialize import Reinitialization, reinitialize
from ..relocation.relocate import has_leftovers, relocate
from ..system import locks
from ..system.processes import identity, let_through
from ..virtualenvs.discovery import for_bundle
from ..virtualenvs.interpreter import Interpreter
from ..virtualenvs.manifest import RECORD, Head
from . import history
from .pythons import Beside, Wanted, built_on, of_deployed, of_release
from .root import WAIT, Root, name_of
from .shared import checked, require_targets, share
from .smoke import smoke
from .store import locked

# What makes a release useless; all other problems are for the operator to judge.
_FATAL = ("interpreter", "reference")


@dataclass
class Publication(Report):
    """What was deployed, or in a dry run would be.

    Attributes:
        path: the release.
        changed: whether anything was (in a dry run: would be) done.
        dry_run: whether it was only looked at.
        repaired: whether it existed, on a Python that is gone, and was put onto another one.
        old_prefixes: the paths that the archive's files referred to.
        rewritten: how many files were rewritten, by kind.
        python: the executable that it runs on.
        interpreter: in a dry run, the file name of the interpreter bundle that the archive was
            built on, where that would be unpacked.
        old_python: what `bin/python` pointed to before, if it was repaired.
        files: how many members the archive had.
        size: bytes in its files.
        reused: how many of them another release gave.
        problems: {"file", "reason"} of what is not perfect, but does not keep it from running.
    """

    path: str
    changed: bool = False
    dry_run: bool = False
    repaired: bool = False
    old_prefixes: list[str] = field(default_factory=list)
    rewritten: dict[str, int] = field(default_factory=dict)
    python: str | None = None
    interpreter: str | None = None
    old_python: str | None = None
    files: int = 0
    size: int = 0
    reused: int = 0
    problems: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """How a release is deployed.

    Attributes:
        python: an executable, a command or `X.Y` to run it on, or the bundle of an interpreter,
            which is unpacked beside the root, in `pythons`, where it is missing; by default the
            interpreter bundle that the archive was built on, or the first that fits.
        owner: user and group that its files should belong to; by default the user who runs this.
            Only where root is given here, root runs what the archive has in the place of its
            Python, where nobody else can.
        mode: of the release's own directory.
        smoke_tests: commands that have to succeed in it before it counts.
        smoke_user: user and group to run them as; by default the owner.
        limits: what to refuse as too much: files, size (bytes), ratio.
        digests: what the archive has to hash to, by algorithm.
        shared: absolute paths of the persistent files and directories, by their path in a release.
        hard_links: whether a bundle's files may be second links to those of another release.
        source: what the archive is called in the records, if not by its path.
        beside: gets the interpreter bundle that the archive was built on, by its file's name; by
            default from the archive's directory.
    """

    python: str | PythonBundle | None = None
    owner: tuple[int, int] | None = None
    mode: int = 0o755
    smoke_tests: Sequence[str] = ()
    smoke_user: tuple[int, int] | None = None
    limits: Mapping[str, object] | None = None
    digests: Mapping[str, str] | None = None
    shared: Mapping[str, str] | None = None
    hard_links: bool = False
    source: str | None = None
    beside: Beside | None = None

    @property
    def as_root(self) -> bool:
        """Whether the operator named root as the owner, and so as the user who runs it."""
        return self.owner is not None and self.owner[0] == 0


def publish(
    archive: str | None,
    path: str,
    options: Options | None = None,
    *,
    job: str = "",
    dry_run: bool = False,
    notify: Notify = silent,
    wait: float = WAIT,
    **more: Any,
) -> Publication:
    """Deploy an archive of a virtualenv as the release `path`.

    A bundle is refused before anything is unpacked where this machine cannot run it, and needs no
    search for what is to be relocated.

    Nothing exists at `path` before all is done; after a failure or a kill the same call does it.

    Args:
        archive: path of a tar, plain or packed with gzip, bzip2, xz or zstd; None in a dry run
            where it is not at hand, so that only the rest is looked at.
        path: where the release should be: `<root>/<name>`.
        options: how it is deployed.
        job: what this is done for, such as Salt's job id.
        dry_run: look, and change nothing.
        notify: called after each step.
        wait: seconds to wait for another run in the same root.
        more: single options, by the names of `Options`.

    Returns:
        What was done. Nothing is done where the release exists.

    Raises:
        RelocateError: one of its subclasses, in one sentence; nothing exists at `path` then.
    """
    options = replace(options or Options(), **more)
    directory, name = name_of(path)
    root = Root(directory, job)
    path = os.path.join(root.path, name)
    Limits.of(options.limits)
    links = checked(options.shared)
    identity(options.smoke_user)  # a user who cannot be run as is refused before anything is done
    exists = _exists(root, name, path, options.digests)
    runs = exists and _runs(path)
    wanted = Wanted(options.python, path, Place.beside(root.path, job), options.as_root)
    if not runs:
        wanted.require()  # a wrong one is refused before anything is done
    if exists:
        if not dry_run:
            tidy(wanted.place)
        if dry_run or (runs and root.is_tidy() and not has_leftovers(path)):
            return _existing(path, runs, dry_run, wanted)
    elif dry_run:
        return _would_publish(archive, path, wanted)
    if archive is None:
        raise InvalidPath(f"there is no archive to deploy {path} from: name one")
    with locked(root, f"deploying {name}", wait, create=True) as store:
        if _exists(root, name, path, options.digests):  # another run did it, or it needs repair
            return _repaired(path, wanted, notify, wait)
        require_targets(links)
        prepared = _provided(wanted, archive, options, notify, wait)
        with prepared as (python, problems), store.staged() as staging:
            staged = os.path.join(staging, name)
            release = _Release(archive, staged, path, options, python, notify)
            with _named(staged, path):
                done, record = release.prepare(_Bases(root, options.hard_links))
            done.problems += problems
            if links:
                share(staged, links, options.owner)
                record["shared"] = links
            os.chmod(staged, options.mode)  # whoever may not read it then may not try it either
            smoke(staged, path, options.smoke_tests, options.smoke_user or options.owner)
            if options.smoke_tests:
                notify("tried", {"commands": len(options.smoke_tests)})
            source = options.source or archive
            record |= {"source": source, "published": locks.now(), "job": job}
            with kept(done.python, path, wait):
                store.publish(staged, name, record)
            store.note(history.PUBLISHED, name, source=source)
            notify("published", {"path": path})
    return done


def _would_publish(archive: str | None, path: str, wanted: Wanted) -> Publication:
    """What would be deployed, as far as it is known without fetching anything."""
    named = built_on(archive) if archive is not None and wanted.python is None else None
    if named is not None:
        wanted = replace(wanted, python=PythonBundle(named.file, {"sha256": named.sha256}))
    if archive is not None:
        wanted.require_fit(archive)
    python = wanted.installed()
    missing = named.file if named is not None and python is None else None
    return Publication(path, changed=True, dry_run=True, python=python, interpreter=missing)


@contextmanager
def _provided(
    wanted: Wanted, archive: str, options: Options, notify: Notify, wait: float
) -> Iterator[tuple[str | None, list[dict[str, str]]]]:
    """The Python that is wanted, or that the archive was built on; see `Wanted.provided`."""
    digests, source, beside = options.digests, options.source, options.beside
    with ExitStack() as stack:
        named = of_release(wanted, archive, digests, source, beside)
        wanted = stack.enter_context(named)
        yield stack.enter_context(wanted.provided(archive, notify, wait))


@contextmanager
def _named(staged: str, path: str) -> Iterator[None]:
    """Let an error in a staged release name the path that an operator knows."""
    try:
        yield
    except RelocateError as error:
        error.args = (str(error).replace(staged, path),)
        raise


def _exists(root: Root, name: str, path: str, digests: Mapping[str, str] | None) -> bool:
    """Whether the release exists; an error where something else does."""
    if not os.path.lexists(path):
        return False
    known = root.record(name)
    if known is None:
        raise NotARelease(
            f"{path} exists, and is no release that was deployed: move it away, and run again"
        )
    for algorithm, wanted in (digests or {}).items():
        found = known.get("digests", {}).get(algorithm.lower())
        if found is not None and found != wanted.lower():
            raise InvalidPath(
                f"{path} is deployed, and from another archive ({algorithm} {found:.12}..., "
                f"not {wanted:.12}...): a release is never changed, so deploy this one under "
                "another name"
            )
    return True


def _runs(path: str) -> bool:
    return os.access(os.path.join(path, "bin", "python"), os.X_OK)


def _existing(path: str, runs: bool, dry_run: bool, wanted: Wanted) -> Publication:
    """A release that exists, and what its Python was where that is gone."""
    done = Publication(path, changed=not runs, dry_run=dry_run, repaired=not runs)
    if not runs:
        done.old_python = os.path.realpath(os.path.join(path, "bin", "python"))
        done.python = wanted.installed()
    return done


def _repaired(path: str, wanted: Wanted, notify: Notify, wait: float) -> Publication:
    """Put a release onto another Python where its own is gone, as after an upgrade of the host."""
    runs = _runs(path)
    done = _existing(path, runs, False, wanted)
    if not runs or has_leftovers(path):
        # One that runs is only tidied up: what was begun on its Python is finished, and no more.
        wanted = replace(wanted, python=_begun(path)) if runs else of_deployed(wanted)
        with wanted.provided(None, notify, wait) as (python, problems):
            done.python = reinitialize(path, python, as_root=wanted.as_root).python
            done.problems += problems
            with kept(done.python, path, wait):
                notify("repaired", {"python": done.python})
    return done


def _begun(path: str) -> str | None:
    """The Python that a release was last put onto, if it is there."""
    python = Root(os.path.dirname(path)).standing().pythons.get(os.path.basename(path), "")
    return python if os.access(python, os.X_OK) else None


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


class _Release:
    """A release on its way from an archive to its name.

    Args:
        archive: the archive's path.
        staged: the path that it is prepared at, in a directory of its own.
        path: the path that it is prepared for.
        options: how it is deployed.
        python: the executable, command or `X.Y` to run it on; None for the first that fits.
        notify: called after each step.
    """

    def __init__(
        self,
        archive: str,
        staged: str,
        path: str,
        options: Options,
        python: str | None,
        notify: Notify,
    ) -> None:
        self.archive = archive
        self.staged = staged
        self.path = path
        self.options = options
        self.python = python
        self.notify = notify
        self._fitting: list[Interpreter] = []

    def prepare(self, bases: _Bases) -> tuple[Publication, dict[str, Any]]:
        """Unpack, relocate and check it; what was done, and what is to be recorded."""
        unpacked = self._unpack(bases)
        moved = relocate(
            self.staged, self.path, unpublished=True, as_packed=unpacked.bundle is not None
        )
        self.notify("relocated", {"files": sum(moved.rewritten.values())})
        swapped, verdict = self._reinitialize(unpacked)
        problems = [{"file": file, "reason": reason} for file, reason in moved.problems]
        problems += [{"file": item.file, "reason": item.reason} for item in verdict.problems]
        done = Publication(
            self.path,
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
            # Others know a release by its full archive; a delta bundle is only a part of it.
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

    def _unpack(self, bases: _Bases) -> Unpacked:
        options, directory = self.options, os.path.join(os.path.dirname(self.staged), "unpacked")
        os.mkdir(directory, 0o700)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            unpacked = unpack(
                self.archive,
                descriptor,
                limits=Limits.of(options.limits),
                digests=options.digests,
                owner=options.owner,
                progress=lambda files, size: self.notify(
                    "unpacking", {"files": files, "size": size}
                ),
                accept=self._accept,
                find=bases.find,
            )
            if options.owner is not None:
                os.fchown(descriptor, *options.owner)
        finally:
            os.close(descriptor)
        facts = {"files": unpacked.files, "size": unpacked.size, "reused": unpacked.reused or None}
        self.notify("unpacked", facts)
        # Directly into a directory that is ours alone: its own files may belong to somebody else.
        inner = os.path.join(directory, unpacked.top) if unpacked.top else directory
        os.rename(inner, self.staged)
        return unpacked

    def _accept(self, head: Head) -> None:
        """Refuse a bundle that this machine cannot run."""
        self._fitting.append(for_bundle(head, self.path, self.python))

    def _reinitialize(self, unpacked: Unpacked) -> tuple[Reinitialization, Verdict]:
        """Put it onto a Python of this machine, and check that it runs there."""
        python: str | Interpreter | None = self.python
        as_root, compiled, links = self.options.as_root, None, None
        if unpacked.bundle is not None:
            python, links = self._fitting[0], unpacked.links
            compiled = {module: set(endings) for endings, module in unpacked.bundle.compiled}
        let_through(self.staged)  # so that others can run what root does not run
        swapped = reinitialize(
            self.staged,
            python,
            unpublished=True,
            as_root=as_root,
            home=self.path,
            compiled=compiled,
        )
        self.notify("reinitialized", {"python": swapped.python})
        verdict = check(
            self.staged,
            home=self.path,
            base=os.path.dirname(swapped.python),
            as_root=as_root,
            compiled=compiled,
            links=links,
            user=self.options.smoke_user or self.options.owner,
        )
        self._require_runnable(verdict)
        self.notify("checked", {"problems": len(verdict.problems)})
        return swapped, verdict

    def _require_runnable(self, verdict: Verdict) -> None:
        for problem in verdict.problems:
            if problem.kind == "access":
                raise CannotRun(problem.reason)
        fatal = [problem for problem in verdict.problems if problem.kind in _FATAL]
        if fatal:
            more = f" and {len(fatal) - 1} more problems" if len(fatal) > 1 else ""
            raise CannotRun(
                f"{self.path} is not deployed, as it would not run: {fatal[0].file or 'it'}: "
                f"{fatal[0].reason}{more}; fix the build, and deploy it under a new name"
            )
