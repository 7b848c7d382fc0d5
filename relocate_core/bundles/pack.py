"""Packing a virtualenv into a bundle: once on the build machine, so that servers have little to do.

All that depends on the build alone is done here: bytecode is compiled and made portable, references
to the prefix are found and listed, and what is not portable is refused.

The same input gives the same bytes: members are sorted, have no owner, and times that follow from
the input. The manifest is the first member, but only known once all others are: so these are
compressed first, in blocks, and put behind it, which every reader of gzip and zstd takes for one
whole.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

from ..archives.compression import form_of, require
from ..archives.tar import CONTROL, FILE, LATEST, Refused
from ..artefacts.bytecode import MODES
from ..errors import BadArchive, CannotTravel, InvalidPath, TreeError
from ..progress import Notify, Report, silent
from ..system import files
from ..system.locks import locked
from ..virtualenvs import manifest
from ..virtualenvs.layout import absolute_prefix, inspect
from ..virtualenvs.manifest import Base, BuiltOn, Head, Row
from . import delta
from .base import BaseBundle, base_bundle, delta_name
from .blocks import Block, Body, Store, cut
from .kept import Cache
from .limits import Limits
from .members import Members
from .output import Output, end, put
from .portability import require_portable
from .relocated import relocated
from .tree import Tree

_MOST_BUILD_METADATA = 100
_WAIT = 30.0  # seconds, for another run


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


@dataclass(frozen=True)
class Options:
    """How a virtualenv is packed.

    Attributes:
        exclude: patterns of what is left out, of a path in the virtualenv or of a name.
        prefix: pack it as if it had been built there.
        bytecode: how it knows whether it fits its source: one of MODES.
        level: of the compression; by default a good one.
        build_metadata: names and texts for the manifest, for example a commit.
        cache: a directory that is kept between packings of the same virtualenv, made where it is
            missing: files that did not change are not read again, and blocks of them not compressed
            again. The bytes are the same with and without it.
        requirements: what the virtualenv was built for. What of it, and of what its packages
            require, the base Python's packages meet is recorded, where it sees them.
        built_on: the interpreter bundle that it was built on.
    """

    exclude: Sequence[str] = ()
    prefix: str | None = None
    bytecode: str = MODES[0]
    level: int | None = None
    build_metadata: Mapping[str, str] | None = None
    cache: str | None = None
    requirements: Sequence[str] = ()
    built_on: BuiltOn | None = None


def pack(
    path: str,
    archive: str,
    *,
    delta_from: str | None = None,
    dry_run: bool = False,
    notify: Notify = silent,
    **options: Any,
) -> Packing:
    """Pack the virtualenv at `path` into a bundle. Nothing in it is changed.

    Args:
        path: the virtualenv's directory.
        archive: the bundle; its ending sets the form: `.tar`, `.tar.gz` or `.tar.zst`. Its SHA-256
            is written beside it, as `<archive>.sha256`.
        delta_from: the full bundle of a previous release: a delta bundle is written, without the
            files that this one contains.
        dry_run: look, and write nothing.
        notify: called after each step.
        options: how it is packed, by the names of `Options`.

    Returns:
        What was packed.

    Raises:
        CannotTravel: something in it would not work on another machine.
        RelocateError: another of its subclasses, in one sentence; an archive of that name is then
            left as it was.
    """
    return _pack_into(path, [(archive, delta_from)], Options(**options), dry_run, notify)[0]


def pack_with_deltas(
    path: str, archive: str, bases: Sequence[str], *, notify: Notify = silent, **options: Any
) -> list[Packing]:
    """Pack into a full bundle and delta bundles, and go through the virtualenv only once.

    Each has the bytes that `pack` would give it. The full one is put in place first.

    Args:
        path: the virtualenv's directory.
        archive: the full bundle; the delta bundles are written beside it, see `delta_name`.
        bases: the full bundles of previous releases; one that has all of it is left out, and so
            is `archive` itself.
        notify: called after each step.
        options: how it is packed, by the names of `Options`.

    Returns:
        What was packed, the full bundle first.

    Raises:
        RelocateError: as `pack` does.
    """
    wanted: dict[str, str | None] = {archive: None}
    for base in bases:
        if os.path.abspath(base) != os.path.abspath(archive):
            wanted[delta_name(archive, base)] = base
    done = _pack_into(path, list(wanted.items()), Options(**options), False, notify)
    return done[:1] + [one for one in done[1:] if one.changed]


def _pack_into(
    path: str,
    wanted: Sequence[tuple[str, str | None]],
    options: Options,
    dry_run: bool,
    notify: Notify,
) -> list[Packing]:
    """Pack into several bundles of one form, each with the base of a delta bundle or None."""
    form, cache = form_of(wanted[0][0]), options.cache
    require(form, options.level)
    if options.bytecode not in MODES:
        raise InvalidPath(f"bytecode must be one of {', '.join(MODES)}: {options.bytecode}")
    recorded = _checked(options.build_metadata or {})
    inspect(path)  # what is no virtualenv is refused before anything is done
    if cache is not None:
        _require_outside(path, cache, "a directory")
    targets: list[_Target] = []
    unreadable: BadArchive | None = None
    for archive, delta_from in wanted:
        archive = os.path.abspath(archive)
        require_apart(path, archive)
        try:
            base = None if delta_from is None else base_bundle(delta_from)
            targets.append(_Target(archive, base))
        except BadArchive as error:
            if not targets:
                raise
            unreadable = unreadable or error  # the full bundle can still be made
    prefix = options.prefix
    if prefix is not None:
        prefix = absolute_prefix(prefix, "the prefix")
    order = _Order(
        tuple(targets), form, options.level, options.bytecode, recorded, options.built_on, dry_run
    )
    try:
        with ExitStack() as stack:
            place, problems = stack.enter_context(relocated(path, prefix))
            root = files.open_root(place)
            stack.callback(os.close, root)
            stack.enter_context(locked(root, place, _WAIT))
            tree = stack.enter_context(closing(Tree(root, place, path, options.exclude)))
            tree.warnings += problems
            tree.find_system_packages(options.requirements)
            if cache is None or dry_run:
                reports = _pack(tree, order, notify)
            else:
                kept = stack.enter_context(Cache.of(cache, f"packing {path}", _WAIT))
                tree.index = kept.index(path, tree, options.bytecode)
                order = order._replace(store=kept.store(form, options.level))
                reports = _pack(tree, order, notify)
                kept.tidy_up()
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise TreeError.of(where, error, "pack") from error
    if unreadable is not None:
        raise unreadable
    return reports


def require_apart(path: str, archive: str) -> None:
    """Refuse an archive that would be a part of what it packs, or whose directory is missing."""
    directory = os.path.dirname(archive)
    if not os.path.isdir(directory):
        raise InvalidPath(f"there is no directory {directory} to write the archive into: create it")
    if os.path.isdir(archive):
        raise InvalidPath(f"{archive} is a directory: name a file to write")
    _require_outside(path, archive, "a file")


def _require_outside(path: str, other: str, what: str) -> None:
    directory = os.path.realpath(os.path.dirname(os.path.abspath(other)))
    if (directory + "/").startswith(os.path.realpath(path) + "/"):
        raise InvalidPath(f"{other} is inside of what it would pack: name {what} outside {path}")


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


class _Target(NamedTuple):
    """A bundle that is wanted."""

    archive: str
    base: BaseBundle | None
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
    built_on: BuiltOn | None
    dry_run: bool
    store: Store | None = None
    """Keeps the blocks of full bundles."""


class _Bundle:
    """One bundle as it is written: its members first, as its manifest follows from them.

    Args:
        target: what is wanted.
        order: how.
        report: what is reported of it.
        store: keeps the blocks of a full bundle.
        stack: what closes the files, and removes them unless they were put in place.
    """

    def __init__(
        self,
        target: _Target,
        order: _Order,
        report: Packing,
        store: Store | None,
        stack: ExitStack,
    ) -> None:
        self.target = target
        self.report = report
        self._output = stack.enter_context(Output(target.archive))
        self.body = Body(os.path.dirname(target.archive), order.form, order.level, store)
        stack.callback(self.body.close)

    def complete(self, text: bytes) -> None:
        """Put the manifest before the members, and the archive in place."""
        done = self._output.complete(text, self.body)
        self.report.packed_size, self.report.sha256 = done


def _pack(tree: Tree, order: _Order, notify: Notify) -> list[Packing]:
    entries = tree.entries()
    require_portable(tree, entries)
    members = Members(tree, entries, order.mode, order.store)
    notify("looked", {"files": len(entries)})
    reports = [
        Packing(one.archive, dry_run=order.dry_run, warnings=tree.warnings, files=len(entries))
        for one in order.targets
    ]
    if order.dry_run:
        return reports
    time = _time(tree.newest)
    store = order.store
    with ExitStack() as stack:
        pairs = zip(order.targets, reports)
        bundles = [_Bundle(target, order, report, store, stack) for target, report in pairs]
        _write_members(bundles, members, store, notify)
        tree.index.save()
        head = members.head(order.build_metadata, time, order.built_on)
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


def _write_members(
    bundles: Sequence[_Bundle], members: Members, store: Store | None, notify: Notify
) -> None:
    """Write each member into the bundles whose base does not have it; it is read once, if at all.

    Args:
        bundles: the full one first, if it is wanted.
        members: what the virtualenv has.
        store: has the blocks of earlier bundles, which need not be read or compressed again.
        notify: called now and then.
    """
    full = bundles[0] if bundles[0].target.base is None else None
    deltas = bundles[1:] if full else bundles
    blocks = _plan(members, store if full else None)
    taken = iter(members)
    for block in blocks:
        begin, takers = len(members.rows), bundles
        contents: Iterator[tuple[Row | None, Iterator[bytes]]]
        contents = islice(taken, block.last - block.first)
        if block.path and full and store is not None:
            deque(contents, 0)
            full.body.add(block.path)
            full.report.carried += sum(row.kind == FILE for row in block.rows)
            takers, contents = deltas, iter(())
            if any(bundle.target.lacks(row) for bundle in deltas for row in block.rows):
                contents = store.read(block.path, block.rows)
        for row, pieces in contents:
            if row is not None:
                _put(takers, row, pieces)
        key = block.key
        if store is not None and not key:
            key = store.key(members.rows[begin:])
        members.tree.index.end_block(key)
        if full and not block.path:
            full.body.finish(key)
        notify("packing", {"files": len(members.rows), "size": members.size})
    for bundle in bundles:
        end(bundle.body)


def _plan(members: Members, store: Store | None) -> list[Block]:
    """Cut the members into blocks, and find those that are kept.

    Args:
        members: what the virtualenv has; what is in such a block is not wanted of them.
        store: has the blocks of earlier full bundles.
    """
    blocks = []
    for first, last in cut(members.entries):
        rows = None if store is None else members.planned(first, last)
        key = store.key(rows) if store is not None and rows is not None else ""
        path = store.find(key) if store is not None and key else ""
        if rows is not None and path:
            members.wanted[first:last] = [False] * (last - first)
            blocks.append(Block(first, last, key, path, rows))
        else:
            blocks.append(Block(first, last))
    return blocks


def _put(takers: Sequence[_Bundle], row: Row, pieces: Iterator[bytes]) -> None:
    """Write a member into the bundles whose base does not have it."""
    takers = [bundle for bundle in takers if bundle.target.lacks(row)]
    for bundle in takers:
        bundle.report.carried += row.kind == FILE
    if takers:
        put([bundle.body for bundle in takers], row, pieces)


def _delta_manifest(members: Members, head: Head, whole: str, known: BaseBundle) -> bytes:
    """The manifest of a delta bundle, with where the base has what it does without.

    Args:
        members: what the virtualenv has.
        head: the full bundle's.
        whole: the digest of the full bundle's manifest.
        known: the base.
    """
    try:
        rows, removed = delta.difference(known.lines, members.rows)
    except Refused as refusal:
        raise BadArchive(
            f"cannot make a delta bundle from {known.archive}: {refusal}; {refusal.advice}"
        ) from refusal
    head = replace(head, base=Base(known.manifest, tuple(removed), whole))
    _require_readable(members.tree.name, head)
    return manifest.document(head, rows)[0]


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
