"""Compiling the sources in an environment whose bytecode is missing, or of another source."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

from ..artefacts import bytecode
from ..bundles.compiler import Compiler, Job
from ..errors import BuildFailed, InterpreterNotFound
from ..virtualenvs.interpreter import Interpreter

_HEADER = 16


def compile_sources(directories: Iterable[str], interpreter: Interpreter) -> None:
    """Compile each source below some directories that has no bytecode which matches it.

    Raises:
        BuildFailed: the interpreter does not run.
    """
    tag = interpreter.cache_tag
    if tag is None:
        return
    pairs = [
        (source, target)
        for directory in directories
        for source, target in _bytecode(directory, tag)
        if not _matches(source, target, interpreter.magic)
    ]
    jobs = (
        Job(_content(source), source, 0, "timestamp", int(os.stat(source).st_mtime), None)
        for source, _ in pairs
    )
    try:
        with Compiler(interpreter.executable) as compiler:
            for (source, target), data in zip(pairs, compiler.compile(jobs)):
                with suppress(FileNotFoundError):
                    os.unlink(target)
                if data is not None:  # else it is a source of another Python
                    _write_like(target, data, source)
    except InterpreterNotFound as error:
        raise BuildFailed(str(error)) from error


def source_of(path: str) -> str | None:
    """The path of the source of a bytecode file; None for any other file."""
    directory, _, name = path.rpartition("/")
    parent, _, last = directory.rpartition("/")
    if last != "__pycache__" or not name.endswith(".pyc"):
        return None
    return f"{parent}/{name.split('.')[0]}.py"


def _bytecode(directory: str, tag: str) -> Iterator[tuple[str, str]]:
    """The sources below a directory, and where the bytecode of each belongs."""
    for parent, inner, names in os.walk(directory):
        inner.sort()
        for name in sorted(names):
            source = os.path.join(parent, name)
            if name.endswith(".py") and os.path.isfile(source):
                yield source, os.path.join(parent, "__pycache__", f"{name[:-3]}.{tag}.pyc")


def _matches(source: str, target: str, magic: bytes) -> bool:
    try:
        with open(target, "rb") as file:
            header = file.read(_HEADER)
    except OSError:
        return False
    status = os.stat(source)
    return bytecode.fits(header, magic, int(status.st_mtime), status.st_size)


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _write_like(target: str, data: bytes, source: str) -> None:
    """Write bytecode with the time of its source: it is no newer than that."""
    directory = os.path.dirname(target)
    if not os.path.isdir(directory):
        os.mkdir(directory)
        os.chmod(directory, 0o755)
    with open(target, "wb") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(data)
    times = os.stat(source)
    os.utime(target, ns=(times.st_mtime_ns, times.st_mtime_ns))
