"""Packing a virtualenv into a bundle: once on the build machine, so that servers have little to do.

All that depends on the build alone is done here: bytecode is compiled and made portable, references
to the prefix are found and listed, and what is not portable is refused.

The same input gives the same bytes: members are sorted, have no owner, and times that follow from
the input. The manifest is the first member, but only known once all others are: so these are
compressed into a temporary file, and appended behind it as a second part, which every reader of
gzip and zstd takes for one whole.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ..archives.compression import FORMS, Packed, form_of, require
from ..archives.tar import CONTROL, FILE, LATEST, Refused
from ..artefacts.bytecode import MODES
from ..errors import BadArchive, Busy, CannotTravel, InvalidPath, TreeError
from ..progress import Notify, Report, silent
from ..relocation.relocate import relocate
from ..system import files
from ..system.locks import locked
from ..virtualenvs import manifest
from ..virtualenvs.layout import absolute_prefix, inspect
from ..virtualenvs.manifest import Base, Head, Row
from . import delta, reader
from .limits import Limits
from .members import Members
from .output import Output, end, put
from .tree import Tree

_MOST_BUILD_METADATA = 100


@dataclass
class Packing(Report):
    """What was packed.

    Attributes:
        archive: the bundle's path.
        changed: whether it was (in a dry run: would be) written.
        dry_run: whether it was only looked at.
        files: how many files, directories and symlinks it has.
        size: bytes in its files.
        packed_size: bytes of the archive.
        sha256: the archive's digest.
        manifest: the digest of its manifest, or of that of the whole.
        base: of a delta bundle, the digest of the manifest of the bundle it was made from.
        carried: how many files it contains; of a full bundle, all.
        references: how many files are to be relocated.
        compiled: how many bytecode files were compiled for it.
        warnings: {"file", "reason"} of what may not work elsewhere.
    """

    archive: str
    changed: bool = True
    dry_run: bool = False
    files: int = 0
    size: int = 0
    packed_size: int = 0
    sha256: str = ""
    manifest: str = ""
    base: str | None = None
    carried: int = 0
    references: int = 0
    compiled: int = 0
    warnings: list[dict[str, str]] = field(default_factory=list)


def pack(
    path: str,
    archive: str,
    *,
    delta_from: str | None = None,
    exclude: Sequence[str] = (),
    prefix: str | None = None,
    bytecode: str = "timestamp",
    level: int | None = None,
    build_metadata: Mapping[str, str] | None = None,
    dry_run: bool = False,
    notify: Notify = silent,
) -> Packing:
    """Pack the virtualenv at `path` into a bundle. Nothing in it is changed.

    Args:
        path: the virtualenv's directory.
        archive: the bundle; its ending sets the form: `.tar`, `.tar.gz` or `.tar.zst`. Its SHA-256
            is written beside it, as `<archive>.sha256`.
        delta_from: the full bundle of a previous release: a delta bundle is written, without the
            files that this one contains.
        exclude: patterns of what is left out, of a path in the virtualenv or of a name.
        prefix: pack it as if it had been built there.
        bytecode: how it knows whether it fits its source: one of MODES.
        level: of the compression; by default a good one.
        build_metadata: names and texts for the manifest, for example a commit.
        dry_run: look, and write nothing.
        notify: called after each step.

    Returns:
        What was packed.

    Raises:
        CannotTravel: something in it would not work on another machine.
        RelocateError: another of its subclasses, in one sentence; an archive of that name is then
            left as it was.
    """
    given = (exclude, prefix, bytecode, level, build_metadata, dry_run, notify)
    return _pack_into(path, [(archive, delta_from)], *given)[0]


def pack_with_deltas(
    path: str,
    archive: str,
    bases: Sequence[str],
    *,
    exclude: Sequence[str] = (),
    prefix: str | None = None,
    bytecode: str = "timestamp",
    level: int | None = None,
    build_metadata: Mapping[str, str] | None = None,
    notify: Notify = silent,
) -> list[Packing]:
    """Pack into a full bundle and delta bundles, and go through the virtualenv only once.

    Each has the bytes that `pack` would give it. The full one is put in place first.

    Args:
        path: the virtualenv's directory.
        archive: the full bundle; the delta bundles are written beside it, see `delta_name`.
        bases: the full bundles of previous releases; one that has all of it is left out, and so
            is `archive` itself.
        exclude: as all that follow, see `pack`.

    Returns:
        What was packed, the full bundle first.

    Raises:
        RelocateError: as `pack` does.
    """
    wanted: dict[str, str | None] = {archive: None}
    for base in bases:
        if os.path.abspath(base) != os.path.abspath(archive):
            wanted[delta_name(archive, base)] = base
    given = (exclude, prefix, bytecode, level, build_metadata, False, notify)
    done = _pack_into(path, list(wanted.items()), *given)
    return done[:1] + [one for one in done[1:] if one.changed]


def _pack_into(
    path: str,
    wanted: Sequence[tuple[str, str | None]],
    exclude: Sequence[str],
    prefix: str | None,
    bytecode: str,
    level: int | None,
    build_metadata: Mapping[str, str] | None,
    dry_run: bool,
    notify: Notify,
) -> list[Packing]:
    """Pack into several bundles of one form, each with the base of a delta bundle or None."""
    form = form_of(wanted[0][0])
    require(form, level)
    if bytecode not in MODES:
        raise InvalidPath(f"bytecode must be one of {', '.join(MODES)}: {bytecode}")
    recorded = _checked(build_metadata or {})
    inspect(path)  # what is no virtualenv is refused before anything is done
    targets: list[_Target] = []
    unreadable: BadArchive | None = None
    for archive, delta_from in wanted:
        archive = os.path.abspath(archive)
        require_apart(path, archive)
        try:
            targets.append(_Target(archive, None if delta_from is None else _base(delta_from)))
        except BadArchive as error:
            if not targets:
                raise
            unreadable = unreadable or error  # the full bundle can still be made
    if prefix is not None:
        prefix = absolute_prefix(prefix, "the prefix")
    order = _Order(tuple(targets), form, level, bytecode, recorded, dry_run)
    try:
        with _relocated(path, prefix) as (place, problems):
            root = files.open_root(place)
            try:
                with locked(root, place, 30.0), closing(Tree(root, place, path, exclude)) as tree:
                    tree.warnings += problems
                    reports = _pack(tree, order, notify)
            finally:
                os.close(root)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise TreeError.of(where, error, "pack") from error
    if unreadable is not None:
        raise unreadable
    return reports


def delta_name(archive: str, base: str) -> str:
    """The path of a delta bundle, beside the full one.

    Raises:
        InvalidPath: one of them has no ending that a bundle has.
    """
    directory, name = os.path.split(archive)
    ending, other = _ending(name), os.path.basename(base)
    stem = other[: -len(_ending(other))]
    return os.path.join(directory, f"{name[: -len(ending)]}.from-{stem}{ending}")


def _ending(name: str) -> str:
    form_of(name)
    return next(ending for ending in FORMS if name.endswith(ending))


def require_apart(path: str, archive: str) -> None:
    """Refuse an archive that would be a part of what it packs, or whose directory is missing."""
    top = os.path.realpath(path)
    directory = os.path.dirname(archive)
    if not os.path.isdir(directory):
        raise InvalidPath(f"there is no directory {directory} to write the archive into: create it")
    if os.path.isdir(archive):
        raise InvalidPath(f"{archive} is a directory: name a file to write")
    if (os.path.realpath(directory) + "/").startswith(top + "/"):
        raise InvalidPath(f"{archive} is inside of what it would pack: name a file outside {path}")


def _checked(build_metadata: Any) -> dict[str, str]:
    is_mapping = isinstance(build_metadata, Mapping)
    given = build_metadata.items() if is_mapping else [(None, None)]
    texts: list[Any] = [one for pair in given for one in pair]
    if (
        len(given) > _MOST_BUILD_METADATA
        or not all(isinstance(one, str) for one in texts)
        or any(map(CONTROL.search, texts))
    ):
        raise InvalidPath(
            f"build_metadata must be at most {_MOST_BUILD_METADATA} names and texts of one line: "
            f"{build_metadata!r}"
        )
    return dict(sorted(build_metadata.items()))


class _Base(NamedTuple):
    """The full bundle that a delta bundle is made from."""

    archive: str
    manifest: str
    """Its manifest's digest."""
    rows: dict[str, Row]
    """By their paths."""
    contents: frozenset[str]
    """The digests of its files."""

    def has(self, row: Row) -> bool:
        """Whether a delta bundle does without the member of that row."""
        return self.rows.get(row.path) == row or row.sha256 in self.contents


def _base(archive: str) -> _Base:
    with reader.of_archive(archive) as known:
        if known.head.base is not None:
            raise BadArchive(
                f"cannot make a delta bundle from {archive}: it is a delta bundle itself; "
                "name the full bundle of that release"
            )
        try:
            rows = {row.path: row for row in known.rows()}
        except Refused as refusal:
            raise BadArchive(
                f"cannot make a delta bundle from {archive}: {refusal}; {refusal.advice}"
            ) from refusal
        contents = frozenset(row.sha256 for row in rows.values() if row.kind == FILE)
        return _Base(archive, known.digest, rows, contents)


@contextmanager
def _relocated(path: str, prefix: str | None) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The tree to pack, itself or a copy that is relocated to `prefix`, and what was left in it.

    The copy has hard links to the files: relocation never writes into a file.
    """
    if prefix is None or inspect(path).old_prefixes == (prefix,):
        yield path, []
        return
    source = os.path.realpath(path)
    above, name = os.path.split(source)
    scratch = os.path.join(above, f".{name}.packing")
    with _scratch(scratch):
        copy = os.path.join(scratch, "tree")
        shutil.copytree(source, copy, symlinks=True, copy_function=_link)
        moved = relocate(copy, prefix, unpublished=True)
        yield copy, [{"file": file, "reason": reason} for file, reason in moved.problems]


@contextmanager
def _scratch(path: str) -> Iterator[None]:
    """A directory with a fixed name, so that the next run removes what a killed one has left."""
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(directory).st_uid != os.geteuid():
            raise InvalidPath(f"{path} is in the way, and belongs to somebody else: remove it")
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Busy(f"another run is packing in {path}; wait for that to end") from None
        os.chmod(path, 0o700)
        for name in os.listdir(path):
            shutil.rmtree(os.path.join(path, name))
        try:
            yield
        finally:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(directory)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


class _Target(NamedTuple):
    """A bundle that is wanted."""

    archive: str
    base: _Base | None
    """Of a delta bundle."""

    def lacks(self, row: Row) -> bool:
        """Whether the base does not have it, so that the bundle must."""
        return self.base is None or not self.base.has(row)


class _Order(NamedTuple):
    """What kind of bundles are wanted, as `pack` takes it."""

    targets: tuple[_Target, ...]
    form: str
    level: int | None
    mode: str
    """How bytecode knows whether it fits its source."""
    build_metadata: dict[str, str]
    dry_run: bool


class _Bundle:
    """One bundle as it is written: its members first, as its manifest follows from them.

    Args:
        target: what is wanted.
        order: how.
        report: what is reported of it.
        stack: what closes the files, and removes them unless they were put in place.
    """

    def __init__(self, target: _Target, order: _Order, report: Packing, stack: ExitStack) -> None:
        self.target = target
        self.report = report
        self._order = order
        self._output = stack.enter_context(Output(target.archive))
        directory = os.path.dirname(target.archive)
        self._body = stack.enter_context(tempfile.TemporaryFile(dir=directory))  # noqa: SIM115 - the stack closes it
        self.packed = Packed(self._body, order.form, order.level)
        stack.callback(self.packed.close)

    def complete(self, text: bytes) -> None:
        """Put the manifest before the members, and the archive in place."""
        end(self.packed)
        with Packed(self._output.file, self._order.form, self._order.level) as first:
            done = self._output.complete(first, text, self._body)
        self.report.packed_size, self.report.sha256 = done


def _pack(tree: Tree, order: _Order, notify: Notify) -> list[Packing]:
    entries = list(tree.entries())
    tree.require_portable(entries)
    members = Members(tree, entries, order.mode)
    notify("looked", {"files": len(entries)})
    reports = [
        Packing(one.archive, dry_run=order.dry_run, warnings=tree.warnings, files=len(entries))
        for one in order.targets
    ]
    if order.dry_run:
        return reports
    time = _time(tree.newest)
    with ExitStack() as stack:
        pairs = zip(order.targets, reports)
        bundles = [_Bundle(target, order, report, stack) for target, report in pairs]
        _write_members(bundles, members, notify)
        head = members.head(order.build_metadata, time)
        full, whole = manifest.document(head, members.rows)
        for bundle in bundles:
            base, report = bundle.target.base, bundle.report
            report.manifest = whole
            if base is None:
                _require_readable(tree.name, head)
                text = full
            elif base.manifest != whole:
                report.base = base.manifest
                text = _delta_manifest(members, head, whole, base)
            elif len(bundles) > 1:
                report.changed = False
                continue
            else:
                raise InvalidPath(
                    f"cannot make a delta bundle of {tree.name} from {base.archive}: nothing "
                    "differs between them; deploy that one"
                )
            bundle.complete(text)
            _finish(bundle, members, tree, notify)
    return reports


def _finish(bundle: _Bundle, members: Members, tree: Tree, notify: Notify) -> None:
    """Report what was packed, and warn of what servers would refuse."""
    report = bundle.report
    report.files, report.size = len(members.rows), members.size
    report.compiled, report.references = members.compiled, len(members.references)
    report.warnings = list(tree.warnings)
    beyond = Limits().exceeded(report.files, report.size, report.packed_size)
    # A delta bundle is small because the base has the rest.
    if beyond and bundle.target.base is None:
        limits = ", ".join(f"{name}: {least}" for name, least in beyond.items())
        reason = f"servers refuse it as too large, unless it is deployed with limits: {{{limits}}}"
        report.warnings.append({"file": os.path.basename(report.archive), "reason": reason})
    notify("packed", {"path": report.archive, "size": report.packed_size})


def _write_members(bundles: Sequence[_Bundle], members: Members, notify: Notify) -> None:
    """Write each member into the bundles whose base does not have it; it is read once."""
    for row, pieces in members:
        takers = [bundle for bundle in bundles if bundle.target.lacks(row)]
        for bundle in takers:
            bundle.report.carried += row.kind == FILE
        if takers:
            put([bundle.packed for bundle in takers], row, pieces)
        if not len(members.rows) & 0xFF:
            notify("packing", {"files": len(members.rows), "size": members.size})


def _delta_manifest(members: Members, head: Head, whole: str, known: _Base) -> bytes:
    """The manifest of a delta bundle, with where the base has what it does without.

    Args:
        members: what the virtualenv has.
        head: the full bundle's.
        whole: the digest of the full bundle's manifest.
        known: the base.
    """
    name = members.tree.name
    paths = {row.path for row in members.rows}
    removed = tuple(path for path in known.rows if path not in paths)
    head = replace(head, base=Base(known.manifest, removed, whole))
    _require_readable(name, head)
    return manifest.document(head, delta.difference(known.rows, members.rows))[0]


def _require_readable(name: str, head: Head) -> None:
    if len(head.line()) + 1000 > manifest.LONGEST_HEAD:
        count = len(head.references) + (len(head.base.removed) if head.base else 0)
        raise CannotTravel(
            f"cannot pack {name}: {count:,} of its files refer to the place where it was built, or "
            "were removed since the base of the delta bundle, which is more than a manifest takes; "
            "deploy it as a plain tarball"
        )


def _time(newest: int) -> int:
    """The time of data files in a release.

    `SOURCE_DATE_EPOCH`, as reproducible-builds.org defines it, else the newest file's.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not given:
        return min(max(newest, manifest.FIXED_TIME), LATEST)
    if not (given.isascii() and given.isdigit() and len(given) < 12):
        raise InvalidPath(f"SOURCE_DATE_EPOCH must be a number of seconds since 1970: {given!r}")
    return int(given)
