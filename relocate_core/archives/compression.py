"""Compressing a file into a stream that is whole in itself: a gzip member, or a zstd frame.

An archive may be of many of them in a row. What comes out depends on what goes in, on the level and
on the library's version, and on nothing else: not on the number of cores. gzip is cut into pieces
of fixed size as pigz does it, each with the end of the previous one as its dictionary; zstd cuts by
itself. Sources: RFC 1951, RFC 1952 and RFC 8878; zlib's manual on Z_SYNC_FLUSH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import IO, Any

from ..errors import InvalidPath, TreeError
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
# Of a virtualenv, the next level of gzip makes 1.4 % less of it in 1.4 times the time, and that of
# zstd 0.1 % less in 1.2 times the time.
_DEFAULTS = {"gzip": 5, "zstd": 8}
_PIECE = 512 << 10
_DICTIONARY = 32 << 10
# All cores are for one stream from here on; up to here, others are compressed beside it.
_LARGE = 64 << 20
_PRINTED = 4096
# A header without a time or a name: mtime 0, and an unknown operating system.
_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"


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
        return f"{form} {level} zlib {zlib.ZLIB_RUNTIME_VERSION} {_PIECE}"
    library = _library()
    if library is None:
        program = shutil.which("zstd")
        assert program is not None, "`require` has seen to it"
        status = os.stat(program)
        return f"{form} {level} {program} {status.st_size} {status.st_mtime_ns} {_LARGE}"
    version = getattr(library, "ZSTD_VERSION", None) or getattr(library, "zstd_version", "")
    return f"{form} {level} {library.__name__} {version} {_LARGE}"


def compress(source: IO[bytes], target: IO[bytes], form: str, level: int | None = None) -> None:
    """Compress all of a file into one stream, in another file.

    Args:
        source: the file, wherever in it one is now.
        target: the other one, empty.
        form: as `form_of` gives it.
        level: None for the form's default.

    Raises:
        InvalidPath: as `require` does.
        TreeError: the program that compresses has failed.
    """
    level = require(form, level)
    size = source.seek(0, os.SEEK_END)
    source.seek(0)
    if form == "tar":
        shutil.copyfileobj(source, target, _PIECE)
    elif form == "gzip":
        _gzip(source, size, target, level)
    else:
        _ZSTD[getattr(_library(), "__name__", "")](source, size, target, level)


# --- gzip -----------------------------------------------------------------------------------------


def _gzip(source: IO[bytes], size: int, target: IO[bytes], level: int) -> None:
    checksum = 0

    def jobs() -> Iterator[tuple[bytes, int, bytes, bool]]:
        """What `_deflate` is given for each piece."""
        nonlocal checksum
        piece, dictionary = source.read(_PIECE), b""
        while True:
            checksum = zlib.crc32(piece, checksum)
            following = source.read(_PIECE)
            yield piece, level, dictionary, not following
            if not following:
                return
            piece, dictionary = following, piece[-_DICTIONARY:]

    target.write(_GZIP_HEADER)
    if size < _LARGE:
        for job in jobs():
            target.write(_deflate(*job))
    else:
        _by_threads(jobs(), target)
    for number in (checksum, size & 0xFFFFFFFF):
        target.write(number.to_bytes(4, "little"))


def _by_threads(jobs: Iterator[tuple[bytes, int, bytes, bool]], target: IO[bytes]) -> None:
    """Deflate pieces beside each other, of which only so many are held."""
    cores = usable_cores()
    ahead: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(cores, "compression") as pool:
        for job in jobs:
            ahead.append(pool.submit(_deflate, *job))
            if len(ahead) > cores + 1:
                target.write(ahead.popleft().result())
        for future in ahead:
            target.write(future.result())


def _deflate(piece: bytes, level: int, dictionary: bytes, last: bool) -> bytes:
    """A piece as a part of a raw deflate stream, which `last` ends."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=dictionary)
    packed = packer.compress(piece)
    return packed + packer.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


# --- zstd -----------------------------------------------------------------------------------------

# A compressor keeps its tables for the next stream: to make them takes longer than a small stream.
# Without workers it gives other bytes than with them, while their number makes no difference.
_compressors = threading.local()


def _library() -> Any:
    """The Python package that packs with zstd, the standard library's first; None without any."""
    for name in ("compression.zstd", "zstandard"):
        with suppress(ImportError):
            return import_module(name)
    return None


def _by_zstandard(source: IO[bytes], size: int, target: IO[bytes], level: int) -> None:
    new = partial(_library().ZstdCompressor, level=level, write_checksum=True)
    packer = new(threads=usable_cores()) if size >= _LARGE else _kept(f"zstandard {level}", new)
    packer.copy_stream(source, target, size=size, read_size=_PIECE, write_size=_PIECE)


def _by_standard_library(source: IO[bytes], size: int, target: IO[bytes], level: int) -> None:
    library = _library()
    known = library.CompressionParameter
    options = {known.compression_level: level, known.checksum_flag: 1}
    if size >= _LARGE:
        most = known.nb_workers.bounds()[1]  # 0 where it was built without threads
        options[known.nb_workers] = min(usable_cores(), most)
    new = partial(library.ZstdCompressor, options=options)
    packer = new() if size >= _LARGE else _kept(f"compression.zstd {level}", new)
    packer.set_pledged_input_size(size)
    while piece := source.read(_PIECE):
        target.write(packer.compress(piece))
    target.write(packer.flush(packer.FLUSH_FRAME))


def _kept(name: str, new: Callable[[], Any]) -> Any:
    """The compressor of that name that this thread has."""
    if not hasattr(_compressors, name):
        setattr(_compressors, name, new())
    return getattr(_compressors, name)


def _by_program(source: IO[bytes], size: int, target: IO[bytes], level: int) -> None:
    cores = usable_cores() if size >= _LARGE else 1
    program = shutil.which("zstd")
    assert program is not None, "`require` has seen to it"
    # The size lets it take tables that are no larger than they need to be.
    command = [program, "-q", "-c", f"-{level}", f"-T{cores}", f"--stream-size={size}"]
    environment = {name: os.environ[name] for name in os.environ if name[:5] != "ZSTD_"}
    os.lseek(source.fileno(), 0, os.SEEK_SET)
    try:
        done = subprocess.run(
            command, stdin=source, stdout=target, stderr=subprocess.PIPE, env=environment
        )
    except OSError as error:
        raise TreeError.of(command[0], error, "run") from error
    if done.returncode or not target.seek(0, os.SEEK_END):
        raise _failure(done.returncode, done.stderr)


_ZSTD = {
    "compression.zstd": _by_standard_library,
    "zstandard": _by_zstandard,
    "": _by_program,
}


def _failure(code: int, printed: bytes) -> TreeError:
    """Why the program zstd has failed."""
    lines = printed[:_PRINTED].decode(errors="replace").strip().splitlines()
    ending = f"with code {code}" if code > 0 else f"by signal {-code}" if code else "too soon"
    reason = f"it ended {ending}"
    return TreeError(
        f"the program zstd could not compress: {lines[0] if lines else reason}; see to it and run "
        "again, or name the archive .tar.gz"
    )
