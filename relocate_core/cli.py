"""The command `virtualenv-tools`, a drop-in for virtualenv-tools3 and for Fireteam's original."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from .artefacts.bytecode import MODES
from .errors import InvalidPath, NotAVirtualenv, RelocateError
from .relocation.relocate import Relocation

_SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")
_EPILOG = """\
exit codes: 0 done, or nothing to do; 1 a virtualenv could not be worked on, or --check found a
problem; 2 wrong usage; 130 interrupted by Ctrl-C.

examples:
  virtualenv-tools --update-path auto /srv/app/4f2a9c1     relocate it to where it is
  virtualenv-tools --update-path /srv/app/4f2a9c1 build    ... or where it is going to be
  virtualenv-tools --reinitialize --update-path auto .     and put it onto this machine's Python
  virtualenv-tools --check /srv/app/current                can it run here?
  virtualenv-tools --pack app-4f2a9c1.tar.gz build         pack it into a bundle
  virtualenv-tools --pack-python cpython-3.13.tar.gz /opt/pythons/3.13.0
  virtualenv-tools --pack-python cpython-3.13.tar.gz cpython-3.13.0-install_only.tar.gz
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments without the program's name; by default those of the process.

    Returns:
        The exit code: 0, 1 where a virtualenv could not be worked on; wrong usage exits with 2.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if options.version:
        print(_version())
        return 0
    wanted = (options.update_path, options.reinitialize, options.check, options.info, options.pack)
    if options.pack_python:
        if any(wanted) or len(options.paths) != 1:
            parser.error("--pack-python takes one prefix or archive, and no other action")
    elif not any(wanted):
        parser.error(
            "nothing to do: give --update-path, --reinitialize, --check, --info, --pack or "
            "--pack-python"
        )
    if options.old_path and not options.update_path:
        parser.error("--old-path goes with --update-path")
    if options.python and not options.reinitialize:
        parser.error("--python goes with --reinitialize")
    if options.deep and not options.check:
        parser.error("--deep goes with --check")
    if options.pack and len(options.paths) > 1:
        parser.error("--pack takes one virtualenv")
    if options.level is not None and not (options.pack or options.pack_python):
        parser.error("--level goes with --pack or --pack-python")
    if options.keep is not None and not options.pack_python:
        parser.error("--keep goes with --pack-python")
    if options.source_hash is not None and not options.pack_python:
        parser.error("--source-hash goes with --pack-python")
    if options.source_hash is not None and not _SHA256.match(options.source_hash):
        parser.error("--source-hash takes a SHA-256: 64 hexadecimal digits")
    for name in ("cache", "delta_from", "exclude", "prefix", "bytecode"):
        if getattr(options, name) is not None and not options.pack:
            parser.error(f"--{name.replace('_', '-')} goes with --pack")
    for stream in (sys.stdout, sys.stderr):  # names that are no UTF-8 are printed as they are
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    try:
        done = [_work_on(path, options) for path in options.paths or ["."]]
        sys.stdout.flush()
        return 0 if all(done) else 1
    except KeyboardInterrupt:
        print("interrupted: run the same again to finish", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="virtualenv-tools",
        description="Relocate Python virtualenvs: make every path in them refer to a new place.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--update-path", metavar="PATH", help="the new path, or 'auto' for where it is")
    add("--old-path", metavar="PATH", help="one more path to look for")
    add(
        "--reinitialize",
        action="store_true",
        help="put it onto this machine's Python of the same version and ABI",
    )
    add("--python", metavar="EXE", help="the Python for --reinitialize: a path, name or X.Y")
    add("--check", action="store_true", help="report whether it can run here")
    add("--deep", action="store_true", help="with --check: compare every file's content as well")
    add("--info", action="store_true", help="report what it is")
    add("--pack", metavar="FILE", help="pack it into a bundle: .tar.gz, .tar.zst or .tar")
    add("--cache", metavar="DIR", help="with --pack: keep there what the next packing need not do")
    add("--delta-from", metavar="BUNDLE", help="with --pack: leave out what that full bundle has")
    add("--exclude", metavar="PATTERN", action="append", help="with --pack: leave out such files")
    add("--prefix", metavar="PATH", help="with --pack: as if it had been built there")
    add("--bytecode", choices=MODES, help="with --pack: how it knows its source (timestamp)")
    add("--pack-python", metavar="FILE", help="pack the Python of a prefix or archive")
    add("--source-hash", metavar="SHA256", help="with --pack-python: that of the Python's archive")
    add(
        "--keep",
        metavar="KIND",
        action="append",
        help="with --pack-python: do not leave out headers, static (libraries), tests or tk",
    )
    add("--level", type=int, help="with --pack and --pack-python: of the compression")
    add("--dry-run", action="store_true", help="report what would be done, and do nothing")
    add("--json", action="store_true", help="one JSON object a virtualenv and action")
    add("--verbose", action="store_true", help="list the files")
    add("--version", action="store_true", help="print the version, and where it is installed")
    add("paths", metavar="PATH", nargs="*", help="virtualenvs; by default the working directory")
    return parser


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("saltext-virtualenv-tools")
    except PackageNotFoundError:  # a checkout, or a core that was synced
        number = "(not installed as a package)"
    python = ".".join(map(str, sys.version_info[:3]))
    core = os.path.dirname(os.path.abspath(__file__))
    return f"virtualenv-tools {number} from {core} (Python {python})"


def _work_on(path: str, options: argparse.Namespace) -> bool:
    """Do everything that the options ask for with one virtualenv; whether all went well."""
    try:
        if options.reinitialize:
            _reinitialize(path, options)
        if options.update_path:
            _update_path(path, options)
        if options.info:
            _info(path, options)
        if options.pack:
            _pack(path, options)
        if options.pack_python:
            _pack_python(path, options)
        return not options.check or _check(path, options)
    except RelocateError as error:
        if options.json:
            _print_json({"path": path, "error": str(error)})
        else:
            # virtualenv-tools3 prints these two on standard output.
            compatible = isinstance(error, (NotAVirtualenv, InvalidPath))
            print(error, file=sys.stdout if compatible else sys.stderr)
        return False
    except BrokenPipeError:
        raise
    except Exception as error:
        if options.verbose:
            raise
        print(
            f"cannot work on {path}: unexpected {type(error).__name__}: {error}; "
            "this is a bug: please report it with the output of --verbose",
            file=sys.stderr,
        )
        return False


def _update_path(path: str, options: argparse.Namespace) -> None:
    from .relocation.relocate import relocate
    from .virtualenvs.layout import absolute_prefix

    if options.update_path != "auto":
        absolute_prefix(options.update_path, "--update-path")
    progress = _ProgressBar() if sys.stderr.isatty() and not options.json else None
    try:
        report = relocate(
            path,
            options.update_path,
            options.old_path,
            dry_run=options.dry_run,
            progress=progress,
        )
    finally:
        if progress is not None:
            progress.clear()
    if options.json:
        _print_json({"action": "update-path", **report.as_dict()})
        return
    if options.verbose:
        for name in report.files:
            print(f"  {name}")
    print(_summary(report))
    rewritten = set(report.files)
    for name, reason in report.problems:
        what = "is rewritten in part" if name in rewritten else "is left as it is"
        print(f"warning: {os.path.join(path, name)} {what}: {reason}", file=sys.stderr)


def _summary(report: Relocation) -> str:
    if not report.old_prefixes:
        return f"Already up-to-date: {report.path} ({report.prefix})"
    old = ", ".join(report.old_prefixes)
    if not report.dry_run:
        return f"Updated: {report.path} ({old} -> {report.prefix})"
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.rewritten.items()))
    return f"Would update: {report.path} ({old} -> {report.prefix}): {kinds}"


def _reinitialize(path: str, options: argparse.Namespace) -> None:
    from .releases.reinitialize import reinitialize

    report = reinitialize(path, options.python, dry_run=options.dry_run)
    if options.json:
        _print_json({"action": "reinitialize", **report.as_dict()})
        return
    if options.verbose:
        for name in report.files:
            print(f"  {name}")
    for problem in report.problems:
        print(f"warning: {problem['file']}: {problem['reason']}", file=sys.stderr)
    python = f"{report.python}, Python {report.version}"
    if not report.changed:
        print(f"Already initialized: {path} ({python})")
    else:
        print(f"{'Would reinitialize' if report.dry_run else 'Reinitialized'}: {path} ({python})")


def _info(path: str, options: argparse.Namespace) -> None:
    from .virtualenvs.contents import describe

    known = describe(path)
    if options.json:
        _print_json({"action": "info", **known})
        return
    width = max(map(len, known))
    for key, value in known.items():
        print(f"{key.replace('_', ' '):<{width}}  {_plain(value)}")


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items()) or "unknown"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _pack(path: str, options: argparse.Namespace) -> None:
    from .bundles.pack import pack

    report = pack(
        path,
        options.pack,
        delta_from=options.delta_from,
        exclude=options.exclude or (),
        prefix=options.prefix,
        bytecode=options.bytecode or MODES[0],
        level=options.level,
        cache=options.cache,
        dry_run=options.dry_run,
    )
    if options.json:
        _print_json({"action": "pack", "path": path, **report.as_dict()})
        return
    _print_warnings(path, report.warnings)
    if report.dry_run:
        print(f"Would pack: {path} ({report.files:,} members)")
        return
    carried = f", {report.carried:,} of them carried" if report.base else ""
    print(
        f"Packed: {path} ({report.files:,} members{carried}, "
        f"{_bytes(report.size)}, as {_bytes(report.packed_size)})"
    )


def _pack_python(path: str, options: argparse.Namespace) -> None:
    from .interpreters.pack import pack_python

    report = pack_python(
        path,
        options.pack_python,
        keep=options.keep or (),
        level=options.level,
        digests={"sha256": options.source_hash} if options.source_hash else None,
        dry_run=options.dry_run,
    )
    if options.json:
        _print_json({"action": "pack-python", "path": path, **report.as_dict()})
        return
    _print_warnings(path, report.warnings)
    python = f"{path} (Python {report.version}, {report.files:,} members, {_bytes(report.size)}"
    if not report.changed:
        print(f"Already packed: {python})")
    elif report.dry_run:
        print(f"Would pack: {python})")
    else:
        print(f"Packed: {python}, as {_bytes(report.packed_size)})")
    if options.verbose:
        libc = " ".join(filter(None, (report.libc, report.libc_version)))
        print(f"  needs {report.machine}, {libc} and {', '.join(report.libraries)}")
        for what, size in report.left_out.items():
            print(f"  left out: {what}, {_bytes(size)}")


def _print_warnings(path: str, warnings: list[dict[str, str]]) -> None:
    for one in warnings:
        print(f"warning: {os.path.join(path, one['file'])}: {one['reason']}", file=sys.stderr)


def _bytes(size: int) -> str:
    """A size as people read it."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def _check(path: str, options: argparse.Namespace) -> bool:
    from .interpreters.check import check

    verdict = check(path, deep=options.deep)
    if options.json:
        _print_json({"action": "check", **verdict.as_dict()})
        return verdict.ok
    for problem in verdict.problems:
        print(f"{os.path.join(path, problem.file) if problem.file else path}: {problem.reason}")
    if verdict.ok:
        print(f"OK: {path} (Python {verdict.python})")
    else:
        count = len(verdict.problems)
        print(f"Cannot run: {path} ({count} problem{'s' if count > 1 else ''})")
    return verdict.ok


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value))


class _ProgressBar:
    """A bar on a terminal, for trees that take longer than half a second."""

    _WIDTH = 30

    def __init__(self) -> None:
        self.begun = self.drawn = time.monotonic()
        self.shown = False

    def __call__(self, done: int, known: int) -> None:
        now = time.monotonic()
        if now - self.begun < 0.5 or now - self.drawn < 0.1 or not known:
            return
        self.drawn, self.shown = now, True
        filled = self._WIDTH * done // known
        bar = "#" * filled + "-" * (self._WIDTH - filled)
        sys.stderr.write(f"\r[{bar}] {done:,} of {known:,} files")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the bar off the screen."""
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
