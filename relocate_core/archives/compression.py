"""The bytes of an archive, compressed by all cores on their way into its file.

What comes out depends on what goes in, on the level and on the library's version, and on nothing
else: not on the number of cores, nor on the pieces in which the data is handed over. gzip is cut
into blocks of fixed size as pigz does it, each with the end of the previous one as its dictionary;
zstd cuts by itself. Sources: RFC 1951 and RFC 1952; zlib's manual on Z_SYNC_FLUSH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from io import BytesIO
from types import TracebackType
from typing import Any, Protocol

from ..errors import InvalidPath, TreeError
from ..system.pipes import Program, exchange
from ..system.processes import usable_cores

FORMS = {
    ".tar": "tar",
    ".tar.gz": "gzip",
    ".tgz": "gzip",
    ".tar.zst": "zstd",
    ".tzst": "zstd",
}
"""The endings of an archive's name, and how it is compressed for each."""

_LEVELS = {"gzip": (1, 9), "zstd": (1, 19)}
_DEFAULTS = {"gzip": 6, "zstd": 9}
_BLOCK = 512 << 10
_DICTIONARY = 32 << 10
_PRINTED = 4096
# A header without a time or a name: mtime 0, and an unknown operating system.
_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"


class Sink(Protocol):
    """What compressed data is written to."""

    def write(self, data: bytes, /) -> Any:
        """Take all of the data."""


def form_of(archive: str) -> str:
    """How an archive of that name is compressed: "tar" (not at all), "gzip" or "zstd".

    Raises:
        InvalidPath: the name has another ending.
    """
    for ending, form in FORMS.items():
        if archive.endswith(ending):
            return form
    known = ", ".join(FORMS)
    raise InvalidPath(f"{archive!r} ends in none of {known}: an archive's name ends in its form")


def require(form: str, level: int | None) -> int:
    """The level to compress with, once it is sure that this machine can.

    Args:
        form: as `form_of` gives it.
        level: None for the form's default.

    Raises:
        InvalidPath: there is no such level, or nothing here that packs with zstd.
    """
    if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
        raise InvalidPath(f"the compression level must be a whole number, not {level!r}")
    if form not in _LEVELS:
        if level is not None:
            raise InvalidPath(
                f"a plain tar has no compression level, and {level} was given: leave it out, or "
                "name the archive .tar.gz or .tar.zst"
            )
        return 0
    lowest, highest = _LEVELS[form]
    level = _DEFAULTS[form] if level is None else level
    if not lowest <= level <= highest:
        raise InvalidPath(f"the compression level of {form} is {lowest} to {highest}, not {level}")
    if form == "zstd" and _library() is None and shutil.which("zstd") is None:
        raise InvalidPath(
            "nothing on this machine can pack with zstd: install the program zstd or Python's "
            "package zstandard, or name the archive .tar.gz"
        )
    return level


def compressor(form: str, level: int | None) -> str:
    """What decides about compressed bytes but the data: the form, the level, and the library.

    Raises:
        InvalidPath: as `require` does.
    """
    level = require(form, level)
    if form == "tar":
        return form
    if form == "gzip":
        return f"{form} {level} zlib {zlib.ZLIB_RUNTIME_VERSION} {_BLOCK}"
    library = _library()
    if library is None:
        program = shutil.which("zstd")
        assert program is not None, "`require` has seen to it"
        status = os.stat(program)
        return f"{form} {level} {program} {status.st_size} {status.st_mtime_ns}"
    version = getattr(library, "ZSTD_VERSION", None) or getattr(library, "zstd_version", "")
    return f"{form} {level} {library.__name__} {version} {_BLOCK}"


class Packed:
    """One compressed stream, whole in itself; a file may hold several in a row.

    As a context manager it is finished at the end, or given up where an exception passes.

    Args:
        file: where the compressed bytes go; it stays open.
        form: as `form_of` gives it.
        level: None for the form's default.
        cores: how many to use; all by default.

    Raises:
        InvalidPath: as `require` does.
    """

    def __init__(
        self, file: Sink, form: str, level: int | None = None, cores: int | None = None
    ) -> None:
        level = require(form, level)
        self._file = file
        self._pending = bytearray()
        self._packer: _Packer | None = None
        if form == "gzip":
            self._packer = _Gzip(file, level, cores or usable_cores())
        elif form == "zstd":
            self._packer = _zstd(file, level, cores or usable_cores())

    def __enter__(self) -> Packed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.close()

    def write(self, data: bytes) -> None:
        """Compress what follows.

        Raises:
            TreeError: the program that compresses has failed.
        """
        if self._packer is None:
            self._file.write(data)
            return
        self._pending += data
        # More than a block: what is left at the end is the last block, and marked as such.
        while len(self._pending) > _BLOCK:
            block = bytes(self._pending[:_BLOCK])
            del self._pending[:_BLOCK]
            self._packer.add(block)

    def finish(self) -> None:
        """Write all that is left, and the end of the stream.

        Raises:
            TreeError: the program that compresses has failed.
        """
        packer, self._packer = self._packer, None
        if packer is not None:
            try:
                packer.end(bytes(self._pending))
            finally:
                packer.close()

    def close(self) -> None:
        """End what runs; the stream stays unfinished if it is."""
        packer, self._packer = self._packer, None
        if packer is not None:
            packer.close()


def packed(data: bytes, form: str, level: int | None = None) -> bytes:
    """One compressed stream of what is all in memory; the bytes are those that `Packed` gives.

    Args:
        data: all of it.
        form: as `form_of` gives it.
        level: None for the form's default.

    Raises:
        InvalidPath: as `require` does.
        TreeError: the program that compresses has failed.
    """
    if form == "zstd" and _library() is None:
        return _by_program(data, require(form, level))
    stream = BytesIO()
    with Packed(stream, form, level, cores=1) as packing:
        packing.write(data)
    return stream.getvalue()


class _Packer(Protocol):
    def add(self, block: bytes) -> None:
        """Compress a block that is not the last."""

    def end(self, block: bytes) -> None:
        """Compress the last block, and write the end."""

    def close(self) -> None:
        """End threads and processes, finished or not."""


# --- gzip -----------------------------------------------------------------------------------------


class _Gzip:
    def __init__(self, file: Sink, level: int, cores: int) -> None:
        self._file = file
        self._level = level
        self._cores = cores
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: deque[Future[bytes]] = deque()
        self._dictionary = b""
        self._checksum = 0
        self._size = 0

    def add(self, block: bytes) -> None:
        if self._pool is None:
            self._file.write(_GZIP_HEADER)
            self._pool = ThreadPoolExecutor(self._cores, "compression")
        arguments = (block, self._level, self._dictionary, False)
        self._ahead.append(self._pool.submit(_deflate, *arguments))
        self._count(block)
        while len(self._ahead) > self._cores + 2:
            self._file.write(self._ahead.popleft().result())

    def end(self, block: bytes) -> None:
        if self._pool is None:
            self._file.write(_GZIP_HEADER)
        last = _deflate(block, self._level, self._dictionary, True)
        self._count(block)
        while self._ahead:
            self._file.write(self._ahead.popleft().result())
        size = self._size & 0xFFFFFFFF
        self._file.write(last + self._checksum.to_bytes(4, "little") + size.to_bytes(4, "little"))

    def close(self) -> None:
        for future in self._ahead:
            future.cancel()
        if self._pool is not None:
            self._pool.shutdown()

    def _count(self, block: bytes) -> None:
        self._dictionary = block[-_DICTIONARY:]
        self._checksum = zlib.crc32(block, self._checksum)
        self._size += len(block)


def _deflate(block: bytes, level: int, dictionary: bytes, last: bool) -> bytes:
    """A block as a part of a raw deflate stream, which `last` ends."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=dictionary)
    packed = packer.compress(block)
    return packed + packer.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


# --- zstd -----------------------------------------------------------------------------------------


def _library() -> Any:
    """The Python package that packs with zstd, the standard library's first; None without any."""
    for name in ("compression.zstd", "zstandard"):
        with suppress(ImportError):
            return import_module(name)
    return None


def _zstd(file: Sink, level: int, cores: int) -> _Packer:
    """What packs with zstd here.

    All of them are given a number of workers, one at least: without any, zstd takes another way
    and gives other bytes, while their number makes no difference.
    """
    library = _library()
    if library is None:
        return _ZstdProgram(file, level, cores)
    if library.__name__ == "zstandard":
        packer = library.ZstdCompressor(
            level=level, threads=cores, write_checksum=True, write_content_size=False
        )
        return _ZstdLibrary(file, packer.compressobj())
    known = library.CompressionParameter
    options = {known.compression_level: level, known.checksum_flag: 1}
    most = known.nb_workers.bounds()[1]
    if most:  # else it was built without threads
        options[known.nb_workers] = min(cores, most)
    return _ZstdLibrary(file, library.ZstdCompressor(options=options))


class _ZstdLibrary:
    def __init__(self, file: Sink, packer: Any) -> None:
        self._file = file
        self._inner = packer

    def add(self, block: bytes) -> None:
        self._file.write(self._inner.compress(block))

    def end(self, block: bytes) -> None:
        self.add(block)
        self._file.write(self._inner.flush())

    def close(self) -> None:
        self._inner = None


def _command(level: int, cores: int) -> tuple[list[str], dict[str, str]]:
    """The program zstd with its options, and its environment."""
    program = shutil.which("zstd")
    assert program is not None, "`require` has seen to it"
    environment = {name: os.environ[name] for name in os.environ if name[:5] != "ZSTD_"}
    return [program, "-q", "-c", f"-{level}", f"-T{cores}"], environment


def _by_program(data: bytes, level: int) -> bytes:
    """What the program zstd makes of it; by files, as nobody has to wait at both ends of those."""
    command, environment = _command(level, 1)
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        source.write(data)
        source.seek(0)
        try:
            done = subprocess.run(
                command, stdin=source, stdout=target, stderr=subprocess.PIPE, env=environment
            )
        except OSError as error:
            raise TreeError.of(command[0], error, "run") from error
        target.seek(0)
        made = target.read()
    if done.returncode or not made:
        raise _failure(done.returncode, done.stderr)
    return made


def _failure(code: int, printed: bytes) -> TreeError:
    """Why the program zstd has failed."""
    lines = printed[:_PRINTED].decode(errors="replace").strip().splitlines()
    ending = f"with code {code}" if code > 0 else f"by signal {-code}" if code else "too soon"
    reason = f"it ended {ending}"
    return TreeError(
        f"the program zstd could not compress: {lines[0] if lines else reason}; see to it and run "
        "again, or name the archive .tar.gz"
    )


class _ZstdProgram:
    def __init__(self, file: Sink, level: int, cores: int) -> None:
        self._file = file
        self._printed = b""
        command, environment = _command(level, cores)
        try:
            self._program = Program(command, errors=True, env=environment)
        except OSError as error:
            raise TreeError.of(command[0], error, "run") from error

    def add(self, block: bytes) -> None:
        self._program.send(block)
        while self._program.unsent:
            self._exchange()
        if self._program.refuses:
            self._finish()
            raise _failure(0, self._printed)

    def end(self, block: bytes) -> None:
        self.add(block)
        self._finish()

    def close(self) -> None:
        self._program.kill()

    def _finish(self) -> None:
        """Take what is left once the program has all; it must have ended well."""
        self._program.end_input()
        while self._program.open:
            self._exchange()
        code = self._program.process.wait()
        if code:
            raise _failure(code, self._printed)

    def _exchange(self) -> None:
        for program, descriptor, data in exchange([self._program]):
            if descriptor == program.errors:
                self._printed = (self._printed + data)[:_PRINTED]
            else:
                self._file.write(data)
