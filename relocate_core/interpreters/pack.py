"""Packing an interpreter into a bundle, from which it runs wherever it is unpacked.

Its programs and libraries are made to find each other relative to themselves, its bytecode is
compiled and refers to its sources relative to the prefix, and what still refers to the prefix (the
recorded options of its build) is listed in the manifest. The same prefix gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from ..archives.compression import form_of, require
from ..archives.tar import DIRECTORY, FILE, LINK
from ..artefacts import binaries, elf
from ..artefacts.elf import Needs
from ..bundles import reader
from ..bundles.blocks import Body
from ..bundles.compiler import Compiler, Job
from ..bundles.output import Output, end, put
from ..bundles.pack import require_apart
from ..errors import BadArchive, CannotTravel, InvalidPath, TreeError
from ..progress import Notify, Report, silent
from ..relocation.needles import Needles
from ..system import files
from ..virtualenvs import manifest
from ..virtualenvs.manifest import FIXED_TIME, Head, OwnPython, Row
from . import published
from .contents import BYTECODE, Contents, contents
from .prefix import Prefix, inspect

_ORIGIN = b"$ORIGIN"


@dataclass
class PythonPacking(Report):
    """What was packed.

    Attributes:
        archive: the bundle's path.
        changed: whether it was (in a dry run: would be) written; not where it is there already.
        dry_run: whether it was only looked at.
        version: X.Y.Z of the Python.
        implementation: `cpython` or `pypy`.
        abi: what the names of its compiled modules have in them.
        machine: the processor's architecture that it is for.
        libc: `glibc` or `musl`.
        libc_version: the oldest glibc that it runs with; "" where it is none.
        libraries: the shared libraries that it needs of a server.
        files: how many files, directories and symlinks it has.
        size: bytes in its files.
        packed_size: bytes of the archive.
        sha256: the archive's digest.
        manifest: the digest of its manifest.
        references: how many files refer to the prefix that it was built for.
        compiled: how many bytecode files were compiled for it.
        left_out: how many bytes were left out, by what they are.
        warnings: {"file", "reason"} of what may not work elsewhere.
    """

    archive: str
    changed: bool = True
    dry_run: bool = False
    version: str = ""
    implementation: str = ""
    abi: str = ""
    machine: str = ""
    libc: str = ""
    libc_version: str = ""
    libraries: tuple[str, ...] = ()
    files: int = 0
    size: int = 0
    packed_size: int = 0
    sha256: str = ""
    manifest: str = ""
    references: int = 0
    compiled: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    warnings: list[dict[str, str]] = field(default_factory=list)


def pack_python(
    path: str,
    archive: str,
    *,
    keep: Collection[str] = (),
    level: int | None = None,
    digests: Mapping[str, str] | None = None,
    dry_run: bool = False,
    notify: Notify = silent,
) -> PythonPacking:
    """Pack the Python whose prefix is at `path` into a bundle. Nothing in the prefix is changed.

    Args:
        path: the prefix: the directory that has bin/python3 in it; or a tar of such a directory, as
            python-build-standalone publishes them.
        archive: the bundle; its ending sets the form: `.tar`, `.tar.gz` or `.tar.zst`. Its SHA-256
            is written beside it, as `<archive>.sha256`.
        keep: which of KEEP (headers, static, tests, tk) are packed too.
        level: of the compression; by default a good one.
        digests: what the archive at `path` has to hash to, by algorithm. Root needs it, as the
            Python in the archive is run.
        dry_run: look, and write nothing.
        notify: called after each step.

    Returns:
        What was packed.

    Raises:
        CannotTravel: it is no Python that can be packed, or would not run elsewhere.
        CannotRun: root would run a Python from an archive of unknown hash.
        RelocateError: another of its subclasses, in one sentence; an archive of that name is then
            left as it was.
    """
    form = form_of(archive)
    require(form, level)
    archive = os.path.abspath(archive)
    report = PythonPacking(archive, dry_run=dry_run)
    try:
        if published.is_archive(path):
            require_apart(path, archive)
            if os.path.realpath(archive) == os.path.realpath(path):
                raise InvalidPath(f"{archive} would replace what it is made from: name another")
            with published.unpacked(path, digests) as top:
                return _pack(report, inspect(top).published(), keep, level, notify)
        if digests:
            raise InvalidPath(f"{path} is no archive, which a hash could be of: give none")
        prefix = inspect(path)
        require_apart(prefix.path, archive)
        return _pack(report, prefix, keep, level, notify)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise TreeError.of(where, error, "pack") from error


def _pack(
    report: PythonPacking, prefix: Prefix, keep: Collection[str], level: int | None, notify: Notify
) -> PythonPacking:
    archive, dry_run, form = report.archive, report.dry_run, form_of(report.archive)
    found = contents(prefix, keep)
    report.left_out = dict(sorted(found.left_out.items()))
    notify("looked", {"files": len(found.kinds)})
    members = _Members(prefix, found)
    # In a dry run everything is looked at, and nothing is written there.
    place = tempfile.gettempdir() if dry_run else os.path.dirname(archive)
    with closing(Body(place, form, level)) as body:
        _write_members(members, [] if dry_run else [body], notify)
        end(body)
        text = _describe(report, members)
        known = _known(archive)
        report.changed = known is None or known[0] != report.manifest
        if known is not None and not report.changed:
            report.packed_size, report.sha256 = known[1:]
        if report.changed and not dry_run:
            with Output(archive) as output:
                report.packed_size, report.sha256 = output.complete(text, body)
            notify("packed", {"path": archive, "size": report.packed_size})
    return report


def _write_members(members: _Members, archives: Sequence[Body], notify: Notify) -> None:
    for row, data in members:
        put(archives, row, iter((data,)))
        if not len(members.rows) & 0xFF:
            notify("packing", {"files": len(members.rows), "size": members.size})


def _known(archive: str) -> tuple[str, int, str] | None:
    """What is there already, where it is whole: its manifest's digest, its size and its digest."""
    try:
        with reader.of_archive(archive, reader.require_interpreter) as known:
            digest = known.digest
        with open(archive, "rb") as file, open(f"{archive}.sha256", "rb") as beside:
            found, size = files.digest(file.fileno()).hex(), os.fstat(file.fileno()).st_size
            return (digest, size, found) if beside.read(64) == found.encode() else None
    except (BadArchive, OSError):
        return None


def _describe(report: PythonPacking, members: _Members) -> bytes:
    """Put into the report what is known once all members were taken; the manifest."""
    head = members.head()
    text, report.manifest = manifest.document(head, members.rows)
    assert head.interpreter is not None
    report.version, report.implementation = head.version, head.implementation
    report.abi, report.libraries = head.interpreter.soabi, head.interpreter.libraries
    report.machine, report.libc, report.libc_version = head.machine, head.libc, head.libc_version
    report.files, report.size = head.files, head.size
    report.references, report.compiled = len(head.references), members.compiled
    report.warnings = members.warnings
    return text


class _Members:
    """The members of the bundle in their order, each with its content.

    Attributes:
        rows: the rows so far.
        size: bytes in their files.
        compiled: how many bytecode files were compiled.
        warnings: {"file", "reason"} of what may not work elsewhere.
    """

    def __init__(self, prefix: Prefix, found: Contents) -> None:
        self.prefix = prefix
        self.found = found
        self.order = found.ordered()
        self.needles = Needles(map(os.fsencode, prefix.prefixes))
        self.rows: list[Row] = []
        self.size = self.compiled = 0
        self.warnings: list[dict[str, str]] = []
        if prefix.is_of_shared:
            reason = (
                f"its build options refer to {prefix.built}, which it was built for and which is "
                "not rewritten, as others share it: no modules can be compiled for it on a server"
            )
            self.warnings.append({"file": "_sysconfigdata", "reason": reason})
        self._names = {os.path.basename(path) for path in found.kinds}
        self._references: list[str] = []
        self._needs: list[Needs] = []
        self._libraries: set[str] = set()

    def __iter__(self) -> Iterator[tuple[Row, bytes]]:
        """The row of each member, and its content."""
        found = self.found
        with closing(self._compile()) as compiled:
            for path in self.order:
                kind, data = found.kinds[path], b""
                if kind == DIRECTORY:
                    row = Row(path, kind, found.modes[path])
                elif kind == LINK:
                    row = Row(path, kind, target=found.targets[path])
                else:
                    content = next(compiled) if kind == BYTECODE else self._file(path)
                    if content is None:
                        continue  # its source is none that this Python understands
                    data = content
                    self.compiled += kind == BYTECODE
                    # No wheel that ensurepip brings knows where this Python is.
                    if not path.endswith(".whl") and self.needles.are_in(path, data):
                        self._references.append(path)
                    digest = hashlib.sha256(data).hexdigest()
                    row = Row(path, FILE, found.modes[path], len(data), digest)
                self.rows.append(row)
                self.size += row.size
                yield row, data

    def head(self) -> Head:
        """The head of the manifest, once all members were taken."""
        interpreter, prefix = self.prefix.interpreter, self.prefix
        own = [one for one in self._needs if one.machine == interpreter.machine]
        version = max((one.version for one in own), default=())
        return Head(
            prefix=prefix.prefixes[0],
            prefixes=prefix.prefixes,
            python=interpreter.short_version,
            version=interpreter.long_version,
            implementation=interpreter.implementation,
            home="",
            compiled=(),
            machine=interpreter.machine,
            libc=next((one.libc for one in own if one.libc), ""),
            libc_version=".".join(map(str, version)),
            time=FIXED_TIME,
            files=len(self.rows),
            size=self.size,
            references=tuple(sorted(self._references, key=manifest.order)),
            uneditable=(),
            interpreter=OwnPython(
                program=prefix.program,
                abiflags=prefix.abiflags,
                soabi=prefix.soabi,
                cache_tag=interpreter.cache_tag or "",
                libraries=tuple(sorted(self._libraries)),
            ),
        )

    def _compile(self) -> Generator[bytes | None, None, None]:
        """What this Python makes of each of its sources, in the order of the members."""
        with Compiler(self.prefix.executable) as compiler:
            yield from compiler.compile(self._jobs())

    def _jobs(self) -> Iterator[Job]:
        for path in self.order:
            if self.found.kinds[path] == BYTECODE:
                source = self.found.sources[path]
                yield Job(self._read(source), source, 0, "timestamp", FIXED_TIME, None)

    def _file(self, path: str) -> bytes:
        data = self._read(path)
        if not data.startswith(elf.MAGIC):
            return data
        with open(os.path.join(self.prefix.path, path), "rb") as file:
            known, needed = elf.needs(file.fileno()), elf.libraries(file.fileno())
        # python-build-standalone has the path of libpython where others have its name.
        needed = tuple(name for name in needed if not name.startswith("$ORIGIN/"))
        if known is not None:
            self._needs.append(known)
        self._libraries.update(name for name in needed if name not in self._names)
        return self._relative(path, data, [name for name in needed if name in self._names])

    def _relative(self, path: str, data: bytes, own: list[str]) -> bytes:
        """A compiled file that finds the libraries of its own Python relative to itself."""
        old = binaries.runpath(data)
        places = old.split(b":") if old else []
        new = b":".join(self._relative_place(path, place) for place in places)
        # Modules do without: their program has loaded libpython before them.
        missed = [] if _ORIGIN in new else own
        elsewhere = "elsewhere on this machine, and does not search it in the prefix"
        if missed and path.startswith("bin/"):
            raise CannotTravel(
                f"cannot pack {self.prefix.path}: {path} finds {missed[0]} {elsewhere}; build that "
                f"Python with LDFLAGS=-Wl,-rpath,{self.prefix.path}/lib, or without --enable-shared"
            )
        for name in missed:
            if not name.startswith("libpython"):
                self.warnings.append({"file": path, "reason": f"it finds {name} {elsewhere}"})
        if new == old:
            return data
        try:
            return binaries.with_runpath(data, new)
        except binaries.NoRoom as refusal:
            raise CannotTravel(
                f"cannot pack {self.prefix.path}: {path} searches libraries in "
                f"{os.fsdecode(old)}, which cannot be replaced by {os.fsdecode(new)}, as {refusal};"
                " build that Python for a longer prefix, or set it with patchelf"
            ) from refusal

    def _relative_place(self, path: str, place: bytes) -> bytes:
        """A directory of a RUNPATH, relative to the file where it is in the prefix."""
        text = os.fsdecode(place)
        if not text.startswith("/"):
            return place
        for prefix in self.prefix.prefixes:
            if (os.path.normpath(text) + "/").startswith(prefix + "/"):
                below = os.path.relpath(os.path.normpath(text), prefix)
                return os.fsencode(
                    os.path.join("$ORIGIN", os.path.relpath(below, os.path.dirname(path)))
                )
        reason = f"it searches libraries in {text}, which is not a part of this Python"
        self.warnings.append({"file": path, "reason": reason})
        return place

    def _read(self, path: str) -> bytes:
        with open(os.path.join(self.prefix.path, path), "rb") as file:
            return files.read_whole(file.fileno())
