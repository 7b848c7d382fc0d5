"""Packing a virtualenv into a bundle: once on the build machine, so that servers have little to do.

All that depends on the build alone is done here. Bytecode is compiled where it lacks, and made
portable: it names its sources relative to the virtualenv, which Python puts right when it imports
them, and its time is that which the bundle gives them. What names the prefix is found and listed.
What cannot travel is refused.

The same input gives the same bytes: members are sorted, have no owner, and times that follow from
the input. The manifest is the first member, and only known when all others are: so these are
compressed aside, and appended behind it as a second part, which every reader of gzip and zstd
takes for one whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ..archives.compression import FORMS, Packed, form_of, require
from ..archives.tar import BLOCK, CONTROL, DIRECTORY, FILE, LINK, Refused, printable
from ..artefacts import bytecode, metadata
from ..artefacts.bytecode import MODES
from ..artefacts.elf import Needs, needs
from ..errors import BadArchive, Busy, CannotTravel, InvalidPath, TreeChanged, TreeError
from ..progress import Report, Tell, silent
from ..relocation.relocate import relocate
from ..relocation.scan import HIDDEN_FIRST, WHOLE, hidden_reference, needles
from ..system import files
from ..system.locks import locked
from ..virtualenvs import manifest, rewritten
from ..virtualenvs.contents import compiled_module, editables, read_contents
from ..virtualenvs.interpreter import probe
from ..virtualenvs.layout import absolute_prefix, inspect, recorded_prefixes
from ..virtualenvs.manifest import PLACE, RECORD, Base, Head, Row, directory_mode, file_mode
from . import delta, reader
from . import links as linking
from .compiler import Compiler, Job
from .output import Output, put

BYTECODE = "bytecode"
_ELF = b"\x7fELF"
_PIECE = 1 << 20
_MOST_FACTS = 100


@dataclass
class Packing(Report):
    """What was packed.

    Attributes:
        archive: the bundle's path.
        changed: whether it was (in a dry run: would be) written.
        dry_run: whether it was only looked at.
        files: how many files, directories and links it has.
        size: bytes in its files.
        packed_size: bytes of the archive.
        sha256: the archive's digest.
        manifest: the digest of its manifest, or of that of the whole.
        base: the digest of the manifest that it was packed against.
        carried: how many files it carries; all, if it was packed against none.
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
    against: str | None = None,
    exclude: Sequence[str] = (),
    prefix: str | None = None,
    bytecode: str = "timestamp",
    level: int | None = None,
    facts: Mapping[str, str] | None = None,
    dry_run: bool = False,
    tell: Tell = silent,
) -> Packing:
    """Pack the virtualenv at `path` into a bundle. Nothing in it is changed.

    Args:
        path: the virtualenv's directory.
        archive: the bundle; its ending tells the form: `.tar`, `.tar.gz` or `.tar.zst`. Its SHA-256
            is written beside it, as `<archive>.sha256`.
        against: an earlier bundle; what that has is left out.
        exclude: patterns of what is left out, of a path in the virtualenv or of a name.
        prefix: pack it as if it had been built there.
        bytecode: how it knows whether it fits its source: one of MODES.
        level: of the compression; by default a good one.
        facts: what the build says of itself, for the manifest.
        dry_run: look, and write nothing.
        tell: called after each step.

    Returns:
        What was packed.

    Raises:
        CannotTravel: something in it would not work on another machine.
        RelocateError: another of its subclasses, in one sentence; an earlier archive then stands
            as it was.
    """
    form = form_of(archive)
    require(form, level)
    if bytecode not in MODES:
        raise InvalidPath(f"bytecode must be one of {', '.join(MODES)}: {bytecode}")
    known = _checked_facts(facts or {})
    archive = os.path.abspath(archive)
    inspect(path)  # what is no virtualenv is refused before anything is done
    require_apart(path, archive)
    earlier = _earlier(against) if against is not None else None
    if prefix is not None:
        prefix = absolute_prefix(prefix, "the prefix")
    try:
        with _at_home(path, prefix) as place:
            root = files.open_root(place)
            try:
                with locked(root, place, 30.0):
                    packer = _Packer(root, place, path, exclude, bytecode, tell)
                    with closing(packer.descent):
                        return packer.pack(archive, form, level, known, earlier, dry_run)
            finally:
                os.close(root)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise TreeError.of(where, error, "pack") from error


def name_against(archive: str, earlier: str) -> str:
    """What a bundle is called that has only what an earlier one lacks, beside the full one.

    Raises:
        InvalidPath: one of them has no ending that a bundle has.
    """
    directory, name = os.path.split(archive)
    ending, base = _ending(name), os.path.basename(earlier)
    stem = base[: -len(_ending(base))]
    return os.path.join(directory, f"{name[: -len(ending)]}.from-{stem}{ending}")


def _ending(name: str) -> str:
    form_of(name)
    return next(ending for ending in FORMS if name.endswith(ending))


def require_apart(path: str, archive: str) -> None:
    """Refuse an archive that would be a part of what it packs, or has no directory to stand in."""
    top = os.path.realpath(path)
    directory = os.path.dirname(archive)
    if not os.path.isdir(directory):
        raise InvalidPath(f"there is no directory {directory} to write the archive into: create it")
    if os.path.isdir(archive):
        raise InvalidPath(f"{archive} is a directory: name a file to write")
    if (os.path.realpath(directory) + "/").startswith(top + "/"):
        raise InvalidPath(f"{archive} is inside of what it would pack: name a file outside {path}")


def _checked_facts(facts: Any) -> dict[str, str]:
    given = facts.items() if isinstance(facts, Mapping) else [(None, None)]
    texts: list[Any] = [one for pair in given for one in pair]
    if (
        len(given) > _MOST_FACTS
        or not all(isinstance(one, str) for one in texts)
        or any(map(CONTROL.search, texts))
    ):
        raise InvalidPath(
            f"facts must be at most {_MOST_FACTS} names and texts of one line: {facts!r}"
        )
    return dict(sorted(facts.items()))


class _Earlier(NamedTuple):
    """A bundle that another one is packed against."""

    archive: str
    manifest: str
    """Its manifest's digest."""
    rows: dict[str, Row]
    """By their paths."""
    contents: frozenset[str]
    """The digests of its files."""


def _earlier(archive: str) -> _Earlier:
    with reader.of_archive(archive) as known:
        if known.head.base is not None:
            raise BadArchive(
                f"cannot pack against {archive}: it was packed against another one itself; "
                "name the full bundle of that release"
            )
        try:
            rows = {row.path: row for row in known.rows()}
        except Refused as refusal:
            raise BadArchive(
                f"cannot pack against {archive}: {refusal}; {refusal.advice}"
            ) from refusal
        contents = frozenset(row.sha256 for row in rows.values() if row.kind == FILE)
        return _Earlier(archive, known.digest, rows, contents)


@contextmanager
def _at_home(path: str, prefix: str | None) -> Iterator[str]:
    """The tree to pack: itself, or a copy that is relocated to `prefix`.

    The copy has second links to the files: relocation never writes into a file.
    """
    if prefix is None or inspect(path).old_prefixes == (prefix,):
        yield path
        return
    source = os.path.realpath(path)
    above, name = os.path.split(source)
    scratch = os.path.join(above, f".{name}.packing")
    with _scratch(scratch):
        copy = os.path.join(scratch, "tree")
        shutil.copytree(source, copy, symlinks=True, copy_function=_link)
        relocate(copy, prefix, unpublished=True)
        yield copy


@contextmanager
def _scratch(path: str) -> Iterator[None]:
    """A directory of ours of a fixed name, so that the next run removes what a killed one has
    left."""
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


class _Entry(NamedTuple):
    """Something to pack."""

    path: str
    kind: str
    """FILE, DIRECTORY, LINK or BYTECODE."""
    mode: int
    source: str = ""
    """The source that bytecode is of."""
    kept: bool = False
    """Whether the bytecode that is there can be taken."""


class _Packer:
    """Packs one tree."""

    def __init__(
        self, root: int, path: str, name: str, exclude: Sequence[str], mode: str, tell: Tell
    ) -> None:
        self.root = root
        self.path = path
        self.name = name
        """The path as messages have it."""
        self.exclude = tuple(exclude)
        self.mode = mode
        self.tell = tell
        self.environment = inspect(path)
        self.interpreter = probe(os.path.join(os.path.abspath(path), "bin", "python"))
        if mode != "timestamp" and self.interpreter.version < (3, 7):
            raise InvalidPath(
                f"Python {self.interpreter.long_version} knows its bytecode by the time alone, and "
                f"{mode} was asked for: take timestamp"
            )
        self.prefixes = self._find_prefixes()
        self.old = tuple(map(os.fsencode, self.prefixes))
        self.needles = needles(self.old) if self.old else ()
        self.descent = files.DirectoryCursor(root)
        self.newest = 0
        self.rows: list[Row] = []
        self.references: list[str] = []
        self.uneditable: list[tuple[str, str]] = []
        self.warnings: list[dict[str, str]] = []
        self.compiled: dict[str, set[str]] = {}
        self.needs: list[Needs] = []
        self.size = self.carried = self.built = 0

    def _find_prefixes(self) -> tuple[str, ...]:
        environment = self.environment
        known = list(environment.old_prefixes)
        recorded = recorded_prefixes(self.root, environment.site_packages)
        return tuple(dict.fromkeys((*known, *recorded)))

    def pack(
        self,
        archive: str,
        form: str,
        level: int | None,
        facts: dict[str, str],
        earlier: _Earlier | None,
        dry_run: bool,
    ) -> Packing:
        """Write the bundle."""
        entries = list(self._entries())
        self._require_travel(entries)
        self.tell("looked", {"files": len(entries)})
        report = Packing(archive, dry_run=dry_run, warnings=self.warnings, files=len(entries))
        if dry_run:
            return report
        time = _time(self.newest)
        with Output(archive) as output:
            with tempfile.TemporaryFile(dir=os.path.dirname(archive)) as body:
                self._put_members(Packed(body, form, level), entries, earlier, time)
                report.files, report.size = len(self.rows), self.size
                text = self._document(facts, time, earlier, report)
                first = Packed(output.file, form, level)
                for name, data in ((manifest.NAME, text), (rewritten.NAME, rewritten.EMPTY)):
                    put(first, Row(name, FILE, 0o644, len(data)), time, iter((data,)))
                first.finish()
                body.seek(0)
                shutil.copyfileobj(body, output.file, _PIECE)
            report.packed_size, report.sha256 = output.commit()
        report.carried, report.compiled = self.carried, self.built
        report.references = len(self.references)
        self.tell("packed", {"path": archive, "size": report.packed_size})
        return report

    def _put_members(
        self, packed: Packed, entries: list[_Entry], earlier: _Earlier | None, time: int
    ) -> None:
        """Write what an earlier bundle lacks, up to the end of the archive."""
        known = earlier.rows if earlier else {}
        contents = earlier.contents if earlier else frozenset()
        for row, pieces in self._members(entries):
            self.rows.append(row)
            self.size += row.size
            if known.get(row.path) != row and row.sha256 not in contents:
                self.carried += row.kind == FILE
                put(packed, row, row.mtime(time), pieces)
            if not len(self.rows) & 0xFF:
                self.tell("packing", {"files": len(self.rows), "size": self.size})
        packed.write(bytes(2 * BLOCK))
        packed.finish()

    def _document(
        self, facts: dict[str, str], time: int, earlier: _Earlier | None, report: Packing
    ) -> bytes:
        """The manifest, once all members are known; of what an earlier one lacks, where it is."""
        self._add_records()
        head = self._head(facts, time)
        text, report.manifest = manifest.document(head, self.rows)
        if earlier is None:
            self._require_readable(head)
            return text
        if earlier.manifest == report.manifest:
            raise InvalidPath(
                f"cannot pack {self.name} against {earlier.archive}: nothing differs between "
                "them; deploy that one"
            )
        report.base = earlier.manifest
        paths = {row.path for row in self.rows}
        removed = tuple(path for path in earlier.rows if path not in paths)
        base = Base(earlier.manifest, removed, report.manifest)
        head = replace(head, base=base)
        self._require_readable(head)
        return manifest.document(head, delta.difference(earlier.rows, self.rows))[0]

    def _require_readable(self, head: Head) -> None:
        if len(head.line()) + 1000 > manifest.LONGEST_HEAD:
            count = len(head.references) + (len(head.base.removed) if head.base else 0)
            raise CannotTravel(
                f"cannot pack {self.name}: {count:,} of its files name the place where it was "
                "built, or are gone since the earlier bundle, which is more than a manifest takes; "
                "deploy it as a plain tarball"
            )

    def _head(self, facts: dict[str, str], time: int) -> Head:
        # Some packages bring programs for other processors along.
        own = [one for one in self.needs if one.machine == self.interpreter.machine]
        version = max((one.version for one in own), default=())
        endings = {tuple(sorted(found)): module for module, found in self.compiled.items()}
        return Head(
            prefix=self.environment.prefix or "",
            prefixes=self.prefixes,
            python=self.environment.python,
            version=self.interpreter.long_version,
            implementation=self.environment.implementation,
            home=self.environment.home or "",
            compiled=tuple(sorted(endings.items())),
            machine=own[0].machine if own else "",
            libc=next((one.libc for one in own if one.libc), ""),
            libc_version=".".join(map(str, version)),
            time=time,
            files=len(self.rows),
            size=self.size,
            references=tuple(self.references),
            uneditable=tuple(self.uneditable),
            facts=facts,
        )

    # --- what there is --------------------------------------------------------------------------

    def _entries(self) -> Iterator[_Entry]:
        """Everything to pack, in the order of the manifest."""
        yield from self._below("", False)

    def _below(self, directory: str, in_packages: bool) -> Iterator[_Entry]:
        """What is in a directory; in site-packages with the bytecode that its sources should
        have."""
        statuses = dict(self._listed(directory))
        base = f"{directory}/" if directory else ""
        in_packages = in_packages or directory in self.environment.site_packages
        wanted: list[_Entry] = []
        if self.interpreter.cache_tag and (in_packages or "__pycache__" in statuses):
            wanted = list(self._bytecode(base, statuses, in_packages))
            if wanted:
                statuses.setdefault("__pycache__", _DIRECTORY)
        for name, status in sorted(statuses.items()):
            path = base + name
            mode = status.st_mode
            if name == "__pycache__" and wanted:
                yield _Entry(path, DIRECTORY, 0o755)
                yield from wanted
            elif name == "__pycache__" and self.interpreter.cache_tag and stat.S_ISDIR(mode):
                continue  # all of it is of other Pythons, or of sources that are gone
            elif stat.S_ISDIR(mode):
                yield _Entry(path, DIRECTORY, directory_mode(mode))
                yield from self._below(path, in_packages)
            elif stat.S_ISLNK(mode):
                yield _Entry(path, LINK, 0)
            elif stat.S_ISREG(mode):
                if not name.endswith((".py", ".pyc")):
                    self.newest = max(self.newest, int(status.st_mtime))
                yield self._beside(path, statuses) or _Entry(path, FILE, file_mode(mode))
            else:
                raise CannotTravel(
                    f"cannot pack {os.path.join(self.name, path)}: it is a socket, pipe or device; "
                    "remove it, or exclude it"
                )

    def _beside(self, path: str, statuses: dict[str, os.stat_result]) -> _Entry | None:
        """Bytecode beside its source, as Python 2 has it; it is not compiled again."""
        if self.interpreter.cache_tag or not path.endswith((".pyc", ".pyo")):
            return None
        source = statuses.get(path[:-1].rpartition("/")[2])
        if source is None or not self._is_of(self._read(path)[0], source):
            return None
        return _Entry(path, BYTECODE, file_mode(source.st_mode & 0o644), path[:-1], True)

    def _listed(self, directory: str) -> Iterator[tuple[str, os.stat_result]]:
        """The names in a directory that are to be packed, and what they are."""
        base = f"{directory}/" if directory else ""
        with os.scandir(self.descent.open(directory)) as entries:
            for entry in entries:
                name = entry.name
                own = not directory and name in (PLACE, RECORD)
                if own or name.startswith(files.TEMPORARY) or self._excluded(base + name):
                    continue
                if not name.isprintable() and CONTROL.search(name):
                    raise CannotTravel(
                        f"cannot pack {os.path.join(self.name, base)}: the name {printable(name)} "
                        "in it has a control character; rename it, or exclude it"
                    )
                yield name, entry.stat(follow_symlinks=False)

    def _excluded(self, path: str) -> bool:
        name = path.rpartition("/")[2]
        return any(fnmatchcase(path, one) or fnmatchcase(name, one) for one in self.exclude)

    def _bytecode(
        self, base: str, statuses: dict[str, os.stat_result], complete: bool
    ) -> Iterator[_Entry]:
        """The bytecode that the sources in a directory should have, in order.

        Where it is not to be complete, only what is there and fits; a project that was installed
        for editing has some.
        """
        tag = self.interpreter.cache_tag
        directory = f"{base}__pycache__"
        there = dict(self._listed(directory)) if "__pycache__" in statuses else {}
        for name in sorted(name for name in statuses if name.endswith(".py")):
            source = base + name
            if not stat.S_ISREG(statuses[name].st_mode) or self._excluded(f"{directory}/{name}c"):
                continue
            stem = f"{name[:-3]}.{tag}"
            for ending in (".opt-1.pyc", ".opt-2.pyc", ".pyc"):
                path = f"{directory}/{stem}{ending}"
                fits = f"{stem}{ending}" in there and self._fits(path, source, statuses[name])
                if fits or (complete and ending == ".pyc"):
                    mode = file_mode(statuses[name].st_mode & 0o644)
                    yield _Entry(path, BYTECODE, mode, source, fits)

    def _fits(self, path: str, source: str, status: os.stat_result) -> bool:
        """Whether bytecode that is there is of its source as it is, and can be made portable."""
        try:
            data = self._read(path)[0]
            return (
                self._is_of(data, status)
                and not self._names_prefix(self._read(source)[0])
                and not self._names_prefix(self._portable(path, data))
            )
        except (OSError, bytecode.Unreadable):
            return False

    def _is_of(self, data: bytes, source: os.stat_result) -> bool:
        """Whether bytecode is for this Python, and of a source as it is."""
        try:
            mtime = int(source.st_mtime)
            return bytecode.fits(data, self.interpreter.magic, mtime, source.st_size)
        except bytecode.Unreadable:
            return False

    def _require_travel(self, entries: list[_Entry]) -> None:
        """Refuse what would not work on another machine; warn of what may not."""
        packed = {entry.path for entry in entries}
        contents = read_contents(self.environment)
        for file, line in (*contents.outside, *editables(self.environment)):
            if file in packed:
                raise CannotTravel(
                    f"cannot pack {self.name}: {file} names {line}, which is outside of it; "
                    "install that without --editable, or exclude the file"
                )
        links = {entry.path: self._target(entry.path) for entry in entries if entry.kind == LINK}
        work = linking.Work()
        for path, target in links.items():
            fault = linking.fault(path, links, (), work)
            if fault is not None:
                raise CannotTravel(
                    f"cannot pack {self.name}: {path} {fault}; remove the link, or exclude it"
                )
            home = target.startswith(("/home/", "/root/", os.path.expanduser("~") + "/"))
            if home and path == "bin/python":
                self._warn(
                    path, f"it points to {target}, in a home directory: reinitialize it there"
                )
        if self.environment.system_site_packages:
            self._warn("pyvenv.cfg", "it sees the base Python's packages, which are not packed")
        if not ("pyvenv.cfg" in packed or "bin/activate" in packed):
            raise CannotTravel(
                f"cannot pack {self.name} without pyvenv.cfg and bin/activate: nobody would take "
                "it for a virtualenv; exclude less"
            )

    def _warn(self, file: str, reason: str) -> None:
        self.warnings.append({"file": file, "reason": reason})

    def _target(self, path: str) -> str:
        """What a link names; the virtualenv's own place is named relative to it."""
        with files.directory_of(self.root, path) as (directory, name):
            target = os.readlink(name, dir_fd=directory)
        if linking.is_base(path, target):
            return target
        inside = linking.below(target, self.prefixes) if target.startswith("/") else None
        if inside is None:
            return target
        return "../" * path.count("/") + (inside.lstrip("/") or ".")

    # --- what becomes of it ---------------------------------------------------------------------

    def _members(self, entries: list[_Entry]) -> Iterator[tuple[Row, Iterator[bytes]]]:
        """The row of each entry, and its content in pieces."""
        with closing(self._made(entries)) as made:
            for entry in entries:
                if entry.kind == DIRECTORY:
                    yield Row(entry.path, DIRECTORY, entry.mode), iter(())
                elif entry.kind == LINK:
                    yield Row(entry.path, LINK, target=self._target(entry.path)), iter(())
                elif entry.kind == FILE:
                    yield self._file(entry)
                else:
                    data = self._kept(entry) if self._is_kept(entry) else next(made)
                    self.built += not entry.kept and data is not None
                    if data is not None:  # else it is no source that this Python understands
                        yield self._whole(entry, data)

    def _made(self, entries: list[_Entry]) -> Generator[bytes | None, None, None]:
        """What the virtualenv's Python makes of the jobs; it is started for the first one."""
        python = os.path.join(os.path.abspath(self.path), "bin", "python")
        with Compiler(python) as compiler:
            yield from compiler.compile(self._jobs(entries))

    def _is_kept(self, entry: _Entry) -> bool:
        """Whether bytecode needs nothing of the virtualenv's Python."""
        return entry.kept and (self.mode == "timestamp" or not self.interpreter.cache_tag)

    def _jobs(self, entries: list[_Entry]) -> Iterator[Job]:
        """What the virtualenv's Python has to do, in the order of the entries."""
        descent = files.DirectoryCursor(self.root)
        try:
            for entry in entries:
                if entry.kind == BYTECODE and not self._is_kept(entry):
                    source = self._read(entry.source, descent)[0]
                    code = None
                    if entry.kept:
                        data = self._portable(entry.path, self._read(entry.path, descent)[0])
                        code = data[bytecode.layout_of(data).header :]
                    optimization = 0
                    if ".opt-" in entry.path:
                        optimization = int(entry.path[-len("1.pyc")])
                    yield Job(
                        source, entry.source, optimization, self.mode, manifest.SOURCE_TIME, code
                    )
        finally:
            descent.close()

    def _kept(self, entry: _Entry) -> bytes:
        data = self._portable(entry.path, self._read(entry.path)[0])
        parent, _, name = entry.source.rpartition("/")
        source = os.stat(name, dir_fd=self.descent.open(parent), follow_symlinks=False)
        return bytecode.stamped(data, manifest.SOURCE_TIME, source.st_size)

    def _portable(self, path: str, data: bytes) -> bytes:
        return bytecode.portable(path, data, self.old)

    def _file(self, entry: _Entry) -> tuple[Row, Iterator[bytes]]:
        parent, _, name = entry.path.rpartition("/")
        file = files.open_file(self.descent.open(parent), name)
        try:
            status = os.fstat(file)
            if status.st_size > WHOLE:
                return self._large(entry, file)
            data = files.read_whole(file)
            if data.startswith(_ELF):
                self._look_at_compiled(entry.path, file)
            if not self._names_prefix(data):
                self._look_inside(entry.path, data[:8], file)
            return self._whole(entry, data)
        finally:
            os.close(file)

    def _whole(self, entry: _Entry, data: bytes) -> tuple[Row, Iterator[bytes]]:
        if self._names_prefix(data):
            self.references.append(entry.path)
        digest = hashlib.sha256(data).hexdigest()
        return Row(entry.path, FILE, entry.mode, len(data), digest), iter((data,))

    def _large(self, entry: _Entry, file: int) -> tuple[Row, Iterator[bytes]]:
        """A file that is not held in memory: read once to be known, and once more to be packed."""
        digest, size, found, tail = hashlib.sha256(), 0, False, b""
        keep = max(map(len, self.needles), default=1) - 1
        head = os.pread(file, 8, 0)
        for piece in _pieces(file):
            digest.update(piece)
            size += len(piece)
            found = found or self._names_prefix(tail + piece)
            tail = piece[-keep:] if keep else b""
        if head.startswith(_ELF):
            self._look_at_compiled(entry.path, file)
        if found:
            self.references.append(entry.path)
        else:
            self._look_inside(entry.path, head, file)
        row = Row(entry.path, FILE, entry.mode, size, digest.hexdigest())
        return row, self._again(row)

    def _again(self, row: Row) -> Iterator[bytes]:
        found = hashlib.sha256()
        with files.directory_of(self.root, row.path) as (directory, name):
            file = files.open_file(directory, name)
        try:
            for piece in _pieces(file):
                found.update(piece)
                yield piece
        finally:
            os.close(file)
        if found.hexdigest() != row.sha256:
            raise TreeChanged(
                f"cannot pack {os.path.join(self.name, row.path)}: it changed meanwhile; "
                "stop what writes into the virtualenv and run again"
            )

    def _names_prefix(self, data: bytes) -> bool:
        return any(needle in data for needle in self.needles)

    def _look_inside(self, path: str, head: bytes, file: int) -> None:
        """Note a reference that nobody can edit, in a compressed file for one."""
        if not (self.needles and head and head[0] in HIDDEN_FIRST):
            return
        reason = hidden_reference(head, file, self.needles)
        if reason:
            self.uneditable.append((path, reason))
            self._warn(path, f"it names the place where it was built, and {reason}")

    def _look_at_compiled(self, path: str, file: int) -> None:
        found = needs(file)
        if found is not None:
            self.needs.append(found)
        module = compiled_module(self.environment, path)
        if module is not None:
            self.compiled.setdefault(module[0], set()).add(module[1])

    def _read(self, path: str, descent: files.DirectoryCursor | None = None) -> tuple[bytes, Any]:
        parent, _, name = path.rpartition("/")
        return files.read((descent or self.descent).open(parent), name)

    def _add_records(self) -> None:
        """Add the RECORDs that list a file which is to be relocated: they change with it."""
        listed = set(self.references)
        marks = {b"/bin/"} | {
            os.fsencode(path.rpartition("/")[2])
            for path in listed
            if not path.startswith("bin/")
        }  # fmt: skip
        for row in self.rows:
            if row.path.endswith(".dist-info/RECORD") and row.path not in listed:
                base = os.path.dirname(os.path.dirname(row.path))
                for named, _ in metadata.record_rows(self._read(row.path)[0], marks):
                    if os.path.normpath(os.path.join(base, os.fsdecode(named))) in listed:
                        self.references.append(row.path)
                        break
        self.references.sort(key=manifest.order)


_DIRECTORY = os.stat_result((stat.S_IFDIR | 0o755, *(0,) * 9))


def _time(newest: int) -> int:
    """The time of everything that is no source.

    `SOURCE_DATE_EPOCH`, as reproducible-builds.org defines it, else the newest file's.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not given:
        return max(newest, manifest.SOURCE_TIME)
    if not (given.isascii() and given.isdigit() and len(given) < 12):
        raise InvalidPath(f"SOURCE_DATE_EPOCH must be a number of seconds since 1970: {given!r}")
    return int(given)


def _pieces(file: int) -> Iterator[bytes]:
    """The whole of an open file."""
    os.lseek(file, 0, os.SEEK_SET)
    while piece := os.read(file, _PIECE):
        yield piece
