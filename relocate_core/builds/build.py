"""Building a bundle: packages are installed into an environment that is kept, and it is packed.

The inputs of a build have a digest, which its bundle contains: while the bundle exists and nothing
has changed, nothing is done. Otherwise the kept environment is brought in step with what is asked
for, so that packages that did not change are neither fetched nor installed again, and packed. The
previous bundle, and its digest, stay until the new one is complete.

`<cache>/<Python, platform and tools>` has the environment, for one build at a time, and in
`packed` what the next packing of it need not do again; the packages that pip and uv have fetched
and built are shared, in `<cache>/pip` and `<cache>/uv`, and so are the interpreters of bundles, in
`<cache>/pythons`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ..bundles import reader
from ..bundles.pack import pack_with_deltas
from ..errors import BadArchive, TreeError
from ..progress import Notify, Report, silent
from .cache import locked_directory, tidy_up
from .installation import install
from .installers import find_installer
from .options import Options
from .order import Order
from .pythons import prune
from .runner import Runner

WAIT = 3600.0
"""Seconds to wait for another build: compiling takes long."""


@dataclass
class Building(Report):
    """What was built, or in a dry run would be.

    Attributes:
        archive: the bundle's path, with the commit put in.
        changed: whether it was (in a dry run: would be) built.
        dry_run: whether it was only looked at.
        reason: why it was built; "" where it was not.
        commit: what it was built from; "" where it is unknown.
        python: the version of its Python.
        tool: what created the environment, with its version.
        installer: what installed the packages, with its version.
        installed: the versions of the packages that were installed, by name.
        removed: the names of those that were removed.
        kept: how many were there already.
        old_sha256: the digest of the previous bundle; None where there was none.
        sha256: the bundle's digest.
        files: how many members it has.
        size: bytes in its files.
        packed_size: bytes of the archive.
        manifest: the digest of its manifest.
        deltas: the delta bundles that were written, and their sizes in bytes.
        interpreter: the interpreter bundle that it was built on, as it is beside it; None where it
            was built on another Python.
        interpreter_added: whether it was (in a dry run: would be) put there.
        log: the output of the tools; None where none was run.
        warnings: {"file", "reason"} of what may not work elsewhere.
    """

    archive: str
    changed: bool = False
    dry_run: bool = False
    reason: str = ""
    commit: str = ""
    python: str = ""
    tool: str = ""
    installer: str = ""
    installed: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    kept: int = 0
    old_sha256: str | None = None
    sha256: str | None = None
    files: int = 0
    size: int = 0
    packed_size: int = 0
    manifest: str = ""
    deltas: dict[str, int] = field(default_factory=dict)
    interpreter: str | None = None
    interpreter_added: bool = False
    log: str | None = None
    warnings: list[dict[str, str]] = field(default_factory=list)


def build(
    archive: str,
    *,
    cache: str,
    force: bool = False,
    dry_run: bool = False,
    wait: float = WAIT,
    job: str = "",
    notify: Notify = silent,
    **options: Any,
) -> Building:
    """Build a bundle from packages, unless it exists and nothing has changed.

    After a failure or a kill the previous bundle is as it was, and the same call builds.

    Args:
        archive: the bundle: `.tar`, `.tar.gz` or `.tar.zst`. `{commit}` in it is replaced.
        cache: a directory that is kept between builds; created where it is missing.
        force: build though nothing has changed, for example as an index has moved.
        dry_run: look, and change nothing.
        wait: seconds to wait for another build in the same cache.
        job: what this is done for, for example Salt's job id.
        notify: called after each step.
        options: what to build, and how; see `Options`.

    Returns:
        What was built.

    Raises:
        BuildFailed: a tool failed, or is not installed.
        RelocateError: another of its subclasses, in one sentence.
    """
    try:
        order = Order.of(archive, Options.of({"cache": cache, **options}))
        return _Build(order, job, notify).run(force, dry_run, wait)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else cache
        raise TreeError.of(where, error, "build in") from error


class _Build:
    """One build."""

    def __init__(self, order: Order, job: str, notify: Notify) -> None:
        self._order = order
        self._job = job
        self._notify = notify
        log = os.path.join(order.directory, "build.log")
        self._runner = Runner(f"build {order.archive}", log, order.env())
        self._runner.conceal(order.texts_with_credentials())
        self._installer = find_installer(
            order.options.installer,
            order.directory,
            order.interpreter,
            self._runner,
            order.indexes.none,
            order.bundled.pip if order.bundled else None,
        )

    def run(self, force: bool, dry_run: bool, wait: float) -> Building:
        """Build it, unless it is up to date."""
        order = self._order
        report = self._report(force)
        report.dry_run = dry_run
        if dry_run or not report.changed:
            return report
        doing = f"building {os.path.basename(order.archive)} {self._job}"
        with locked_directory(order.options.cache, order.directory, doing, wait) as lock:
            report = self._report(force)  # another run may have just built it
            if report.reason:
                self._runner.start(lock)
                report.log = self._runner.log
                with self._interpreter_ready(wait) as (ready, problems):
                    self._install_and_pack(ready, report)
                report.warnings += problems
                prune(order.options.cache, wait)
            elif report.interpreter_added:
                self._add_interpreter()
        return report

    @contextmanager
    def _interpreter_ready(self, wait: float) -> Iterator[tuple[Order, list[dict[str, str]]]]:
        """The order, once its interpreter can be run, and what is wrong with that."""
        order = self._order
        if order.bundled is None:
            yield order, []
            return
        environment = os.path.join(order.directory, "environment")
        with order.bundled.provided(environment, self._notify, wait) as (interpreter, problems):
            yield replace(order, interpreter=interpreter), problems

    def _install_and_pack(self, order: Order, report: Building) -> None:
        try:
            done = install(order, self._installer, self._runner, self._notify)
            report.installer = str(self._installer.program)
            report.installed, report.removed, report.kept = done.added, done.removed, done.kept
            order.require_unchanged()
            self._add_interpreter()  # before the bundle, which is of no use without it
            self._pack(done.path, done.asked, report)
        finally:
            tidy_up(order.directory)

    def _add_interpreter(self) -> None:
        """Put the interpreter bundle beside the bundle."""
        if self._order.bundled is not None:
            self._order.bundled.put_beside(self._order.archive)

    def _report(self, force: bool) -> Building:
        """What exists, and whether it has to be built."""
        order, program = self._order, self._installer.program
        sha256 = _digest_beside(order.archive)
        reason, bundled = self._reason(order.digest(program), sha256, force), order.bundled
        lacks = bundled is not None and not bundled.is_beside(order.archive)
        return Building(
            order.archive,
            changed=bool(reason) or lacks,
            reason=reason,
            commit=order.commit,
            python=order.interpreter.long_version,
            tool=str(order.tool),
            installer=str(program),
            interpreter=None if bundled is None else bundled.beside(order.archive),
            interpreter_added=lacks,
            old_sha256=sha256,
            sha256=sha256,
        )

    def _reason(self, inputs: str, sha256: str | None, force: bool) -> str:
        """Why a build is needed; "" where it is not."""
        archive = self._order.archive
        if not os.path.isfile(archive):
            return "there is no bundle yet"
        if sha256 is None:
            return "its digest is missing"
        try:
            recorded = reader.read_head(archive).facts
        except BadArchive:
            return "the existing file is no bundle"
        if recorded.get("inputs") != inputs:
            return "its inputs have changed"
        return "it was forced" if force else ""

    def _pack(self, environment: str, asked: Sequence[str], report: Building) -> None:
        """Pack the environment, also as delta bundles."""
        order = self._order
        metadata = {
            "inputs": order.digest(self._installer.program),
            "commit": order.commit,
            "python": f"{order.interpreter.implementation} {order.interpreter.long_version}",
            "builder": str(order.tool),
            "installer": report.installer,
        }
        options = {
            **order.packing,
            "requirements": asked,
            "build_metadata": {name: value for name, value in metadata.items() if value},
            "cache": os.path.join(order.directory, "packed"),
            "built_on": order.bundled.built_on if order.bundled else None,
            "notify": self._notify,
        }
        packed, *deltas = pack_with_deltas(
            environment, order.archive, order.base_bundles(), **options
        )
        report.sha256, report.manifest = packed.sha256, packed.manifest
        report.files, report.size = packed.files, packed.size
        report.packed_size, report.warnings = packed.packed_size, packed.warnings
        report.deltas = {one.archive: one.packed_size for one in deltas}


def _digest_beside(archive: str) -> str | None:
    """The digest of a bundle, as it was written beside it."""
    try:
        with open(f"{archive}.sha256") as file:
            match = re.match(r"[0-9a-f]{64}\b", file.read(4096))
    except (OSError, ValueError):
        return None
    return match[0] if match and os.path.isfile(archive) else None
