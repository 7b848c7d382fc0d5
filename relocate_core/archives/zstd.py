"""zstd: the frames of a stream, and whatever this machine has to decompress them.

The frames are walked here, so that all decompressors behave alike: skippable frames, such as pzstd
writes, are left out before, a frame that ends too soon is refused, and nothing but zeros may follow
the last one. Source: RFC 8878, sections 3.1.1 and 3.1.2.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Callable

from .tar import DAMAGED, STRANGE, Refused

Read = Callable[[], bytes]
"""The next bytes of a file; none at its end."""

_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"  # behind a byte from 0x50 to 0x5f
_PIECE = 1 << 20
_WINDOW = 128 << 20


def begins(head: bytes) -> bool:
    """Whether that is the beginning of a zstd stream."""
    return head.startswith(_MAGIC) or _is_skippable(head)


def _is_skippable(head: bytes) -> bool:
    return head[:1] != b"" and head[0] & 0xF0 == 0x50 and head[1:4] == _SKIPPABLE


def unpacked(head: bytes, read: Read) -> Iterator[bytes]:
    """What a stream holds, decompressed.

    Args:
        head: its first bytes.
        read: gives those that follow.

    Raises:
        Refused: it is damaged, or nothing on this machine can decompress it.
    """
    frames = _Frames(head, read)
    for name, decompress in (("compression.zstd", _by_standard), ("zstandard", _by_package)):
        library = _imported(name)
        if library is not None:
            yield from decompress(library, frames)
            return
    program = shutil.which("zstd")
    if program is None:
        raise Refused(
            "it is compressed with zstd, which nothing on this machine can read",
            advice="install the program zstd or Python's package zstandard, or pack with gzip",
        )
    yield from _by_program(program, frames)


def _imported(name: str) -> Any:
    from importlib import import_module

    with suppress(ImportError):
        return import_module(name)
    return None


class _Frames:
    """The frames that hold data, without what is between and behind them."""

    def __init__(self, head: bytes, read: Read) -> None:
        self._data = head
        self._at = 0
        self._more = read

    def __iter__(self) -> Iterator[bytes]:
        """The bytes of one frame after the other, in pieces of any size."""
        while True:
            magic = self._peek(4)
            if magic == _MAGIC:
                yield from self._frame()
            elif _is_skippable(magic):
                self._take(4)
                for _ in self._pieces(int.from_bytes(self._take(4), "little")):
                    pass
            else:
                self._require_zeros()
                return

    def _frame(self) -> Iterator[bytes]:
        head = self._take(5)
        descriptor = head[4]
        single_segment, has_checksum = descriptor & 0x20, descriptor & 0x04
        rest = (0, 1, 2, 4)[descriptor & 3] + (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
        yield head + self._take(rest + (0 if single_segment else 1))
        last = 0
        while not last:
            head = self._take(3)
            block = int.from_bytes(head, "little")
            last, kind, size = block & 1, block >> 1 & 3, block >> 3
            yield head
            yield from self._pieces(1 if kind == 1 else size)  # 1: one byte, many times
        if has_checksum:
            yield self._take(4)

    def _require_zeros(self) -> None:
        data = self._data[self._at :]
        while data:
            if data.strip(b"\0"):
                raise Refused("something follows the end of its compressed part", advice=STRANGE)
            data = self._more()

    def _peek(self, size: int) -> bytes:
        while len(self._data) - self._at < size and (data := self._more()):
            self._data, self._at = self._data[self._at :] + data, 0
        return self._data[self._at : self._at + size]

    def _take(self, size: int) -> bytes:
        return b"".join(self._pieces(size))

    def _pieces(self, size: int) -> Iterator[bytes]:
        while size:
            if self._at == len(self._data):
                self._data, self._at = self._more(), 0
                if not self._data:
                    raise Refused("it ends too soon", advice=DAMAGED)
            piece = self._data[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            yield piece


class _Rest:
    """The frames as a file to read from."""

    def __init__(self, frames: _Frames) -> None:
        self._pieces = iter(frames)
        self._left = b""

    def read(self, size: int = _PIECE) -> bytes:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._left = piece
        data, self._left = self._left[:size], self._left[size:]
        return data


def _by_standard(library: Any, frames: _Frames) -> Iterator[bytes]:
    """By Python 3.14's own module; each frame has a decompressor of its own."""
    options = {library.DecompressionParameter.window_log_max: _WINDOW.bit_length() - 1}
    unpack = library.ZstdDecompressor(options=options)
    for data in frames:
        if unpack.eof:
            unpack = library.ZstdDecompressor(options=options)
        piece = unpack.decompress(data, _PIECE)
        yield piece
        while not (unpack.needs_input or unpack.eof):
            yield unpack.decompress(b"", _PIECE)


def _by_package(library: Any, frames: _Frames) -> Iterator[bytes]:
    unpack = library.ZstdDecompressor(max_window_size=_WINDOW)
    with unpack.stream_reader(_Rest(frames), read_across_frames=True) as reader:
        while piece := reader.read(_PIECE):
            yield piece


def _by_program(program: str, frames: _Frames) -> Iterator[bytes]:
    """Let a program decompress what another thread gives it."""
    process = subprocess.Popen(
        [program, "-dc", f"-M{_WINDOW >> 20}MB"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    feeder = _Feeder(process.stdin, frames)
    feeder.start()
    try:
        while piece := process.stdout.read(_PIECE):
            yield piece
        errors = process.stderr.read().decode(errors="replace").strip()
        code = process.wait()
        feeder.join()
        if feeder.failure is not None:
            raise feeder.failure
        if code:
            raise Refused(f"it cannot be decompressed ({errors or 'zstd failed'})", advice=DAMAGED)
    finally:
        feeder.stopped = True
        process.kill()
        feeder.join()
        for pipe in (process.stdout, process.stderr):
            pipe.close()
        process.wait()


class _Feeder(threading.Thread):
    """Writes the frames into a pipe, and closes it."""

    def __init__(self, pipe: Any, frames: _Frames) -> None:
        super().__init__(name="zstd", daemon=True)
        self._pipe = pipe
        self._frames = frames
        self.stopped = False
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            for data in self._frames:
                if self.stopped:
                    break
                self._pipe.write(data)
        except BrokenPipeError:  # the program has ended, and reports why
            pass
        except Exception as error:
            self.failure = error
        with suppress(OSError):
            self._pipe.close()
