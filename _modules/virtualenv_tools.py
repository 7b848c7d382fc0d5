"""
Relocate Python virtualenvs: compile once, deploy wherever.

A virtualenv that was built on one machine and carried to another refers to its old path in
thousands of files. :py:func:`update_path` relocates it in place, :py:func:`reinitialize` puts it
onto this machine's own Python, :py:func:`check` reports whether it can run, and :py:func:`info`
what it is.

A release is a virtualenv at ``<root>/<name>``, such as ``/srv/app/4f2a9c1``, and the symlink
``/srv/app/current`` points to the active one. :py:func:`unpack` makes a release from an archive,
:py:func:`activate` and :py:func:`rollback` switch, :py:func:`prune` removes old ones, and
:py:func:`releases` and :py:func:`history` report what there is. One run at a time works in a root;
others wait for it. The states in ``virtualenv_relocated`` do the same in a highstate.

The work is done by ``relocate_core``, which comes along with ``saltutil.sync_all`` (from
``_utils/relocate_core``) or with the installed package; nothing else is needed on the minion.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import salt.payload
import salt.utils.data
import salt.utils.files
from salt.exceptions import CommandExecutionError, SaltException, SaltInvocationError

if TYPE_CHECKING:
    from salt_dunders import __context__, __opts__, __salt__

log = logging.getLogger(__name__)

__virtualname__ = "virtualenv_tools"

_CORE = "relocate_core"
# Work that takes longer than this reports its progress on the event bus, and how often.
_LONG_SECONDS = 2.0
_PROGRESS_SECONDS = 5.0
_ALWAYS_SENT = ("activated", "rolled back", "migrated", "migrated back")
_PAIRS = {"activating": "activated", "rolling_back": "rolled_back"}
# What a hash without a name is, by the number of its digits.
_ALGORITHMS = {32: "md5", 40: "sha1", 56: "sha224", 64: "sha256", 96: "sha384", 128: "sha512"}
# What to do where a file cannot be fetched.
_SEE = "see that it exists, and that this minion may read it"
_loading = threading.Lock()


def __virtual__() -> str | tuple[bool, str]:  # noqa: N807
    if sys.platform == "win32":
        return False, "virtualenv_tools: virtualenvs cannot be relocated on Windows"
    if _core_directory() is None:
        return False, (
            "virtualenv_tools: relocate_core is missing: run saltutil.sync_all, or install the "
            "package saltext-virtualenv-tools into Salt's Python"
        )
    return __virtualname__


def update_path(
    path: str, new_path: str = "auto", old_path: str | None = None, test: bool | None = None
) -> dict[str, Any]:
    """
    Relocate a virtualenv: every file in it that refers to its old path refers to the new one.

    Nothing is left half done: a failure restores everything, and after a kill the same call
    finishes the work. A second call changes nothing and costs next to nothing.

    path
        The virtualenv's directory on the minion, as an absolute path.

    new_path
        The absolute path that its files should refer to. ``auto``, the default, is where it is (for
        a symlink to it, such as ``current``, the directory that it points to); give another one to
        prepare it for the path that it is going to be carried to.

    old_path
        One more path to look for. Needed only where the virtualenv itself does not show where it
        was built.

    test
        ``True`` reports what would be done, and does none of it. By default the minion's ``test``
        option.

    Returns a dictionary: ``path``, ``prefix`` (the path that its files refer to now),
    ``old_prefixes`` (those before; empty where nothing was to be done), ``changed``, ``dry_run``,
    ``rewritten`` (how many files of which kind), ``problems`` (a list of ``file`` and ``reason``
    for each reference that had to be left) and ``seen`` (how many files were looked at).

    Raises ``CommandExecutionError`` for whatever goes wrong; the virtualenv is then as it was
    before.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.update_path /srv/app/4f2a9c1
        salt '*' virtualenv_tools.update_path /srv/app/4f2a9c1 test=True
        salt build virtualenv_tools.update_path /var/build/app new_path=/srv/app/4f2a9c1
    """
    with _core() as core:
        report = core.relocate(
            _absolute(path), str(new_path), old_path, dry_run=_is_test(test)
        ).as_dict()
    # Eighty names of scripts help nobody who reads the answers of a hundred minions.
    del report["files"]
    return _printable(report)


def reinitialize(
    path: str,
    python: str | dict[str, Any] | None = None,
    saltenv: str = "base",
    test: bool | None = None,
) -> dict[str, Any]:
    """
    Put a virtualenv onto a Python of this machine: its symlinks or copies, and ``pyvenv.cfg``.

    That Python has to be of the same X.Y, implementation and ABI as the one that the virtualenv was
    built with; any other is refused, with the compiled modules that would not load. Nothing is
    downloaded, and no package is touched.

    path
        The virtualenv's directory on the minion, as an absolute path.

    python
        An executable, a command on the ``PATH``, a version like ``3.11``, or the bundle of an
        interpreter as ``source`` and ``source_hash``, as for :py:func:`unpack`. By default the
        Python of ``pyvenv.cfg`` if it exists and fits, else the first on the ``PATH`` that fits.

    saltenv
        The environment of a ``salt://`` bundle.

    test
        ``True`` reports what would be done, and does none of it. By default the minion's ``test``
        option.

    Returns a dictionary: ``path``, ``python`` (the executable that it runs on now), ``version``,
    ``old_python`` (what ``bin/python`` pointed to before, or ``None`` for a copy), ``files`` (what
    was written; empty where nothing was to be done), ``problems`` (a list of ``file`` and
    ``reason``: what the interpreter of a bundle misses of the system), ``changed`` and ``dry_run``.

    Raises ``CommandExecutionError`` for whatever goes wrong; the virtualenv is then as it was
    before.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.reinitialize /srv/app/4f2a9c1
        salt '*' virtualenv_tools.reinitialize /srv/app/4f2a9c1 python=/opt/py/bin/python3.11
        salt '*' virtualenv_tools.reinitialize /srv/app/4f2a9c1 \\
            python='{source: salt://pythons/cpython-3.13.0.tar.zst, source_hash: 5f70bf18...}'
    """
    path, dry_run = _absolute(path), _is_test(test)
    with _core() as core, _reporting(path) as (job, notify):
        place = core.Place.beside(os.path.dirname(path))
        with _python(core, python, place, saltenv, fetch=not dry_run) as wanted:
            report = core.reinitialize(path, wanted, job=job, dry_run=dry_run, notify=notify)
    return _printable(report.as_dict())


def reinitialize_others(
    root: str,
    python: str | dict[str, Any],
    link: str = "current",
    checked: bool = True,
    saltenv: str = "base",
    test: bool | None = None,
) -> dict[str, Any]:
    """
    Put the other releases of a root onto the Python that the active one was put onto.

    So a rollback does not bring back the Python that was left, such as one without a security fix.
    Nothing is unpacked, and nothing is done before the active release was found healthy on that
    Python: a Python that is wrong for that release reaches no other.

    root
        The directory of the releases, as an absolute path.

    python
        As for :py:func:`reinitialize`: where it is a bundle, that is not fetched, as the active
        release runs on it already.

    link
        The name of the symlink to the active release.

    checked
        ``False`` does not wait for the active release to be found healthy on that Python (see
        :py:func:`mark_healthy`): for an app whose health nothing checks.

    saltenv
        The environment of a ``salt://`` bundle.

    test
        ``True`` reports what would be done, and does none of it. By default the minion's ``test``
        option.

    Returns a dictionary: ``root``, ``active`` (the name of the active release), ``python``,
    ``moved`` (what each release that was put onto it ran on before, by name), ``left`` (why a
    release stays as it is, by name: the Python does not fit, the release was put back from it, or
    another symlink points to the release), ``failed`` (why a release could not be put onto it, by
    name: mostly as it is damaged), ``waiting`` (why none follows yet, or ``None``) and ``dry_run``.

    Raises ``CommandExecutionError`` where there is no active release, or that Python is refused.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.reinitialize_others /srv/app /opt/py/bin/python3.11
        salt '*' virtualenv_tools.reinitialize_others /srv/app \\
            python='{source: salt://pythons/cpython-3.13.1.tar.zst, source_hash: 9be07c2d...}'
    """
    root, dry_run = _absolute(root, "the directory of the releases"), _is_test(test)
    if python is None:
        raise CommandExecutionError("python is missing: give the one that the active release is on")
    with _core() as core, _reporting(root) as (job, notify):
        place = core.Place.beside(root)
        with _python(core, python, place, saltenv, fetch=False) as wanted:
            report = core.reinitialize_others(
                root,
                wanted,
                link=link,
                checked=bool(checked),
                job=job,
                dry_run=dry_run,
                notify=notify,
            )
    return _printable(report.as_dict())


def put_back(path: str, reason: str) -> dict[str, Any]:
    """
    Put a release that is not healthy onto the Python that it ran on before :py:func:`reinitialize`.

    The one that it leaves is marked, so that no highstate puts the release onto it again;
    :py:func:`unmark_bad` takes the mark away.

    path
        The release, as an absolute path.

    reason
        Why; it is kept in the history and reported when that Python is refused later.

    Returns what :py:func:`reinitialize` returns.

    Raises ``CommandExecutionError`` where it was found healthy since, or that Python is gone.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.put_back /srv/app/4f2a9c1 reason='no answer'
    """
    with _core() as core, _reporting(path) as (job, notify):
        report = core.put_back(_absolute(path), str(reason), job=job, notify=notify)
    return _printable(report.as_dict())


def info(path: str) -> dict[str, Any]:
    """
    Describe a virtualenv. Nothing in it is run or changed.

    path
        The virtualenv's directory on the minion, as an absolute path.

    Returns a dictionary: ``path``, ``prefix`` (the path that its files refer to), ``old_prefixes``
    (all of them), ``python`` (X.Y), ``implementation``, ``builder`` (venv, virtualenv or uv),
    ``interpreter`` (what ``bin/python`` points to), ``shared_python`` (the facts of the interpreter
    that it shares with other releases, where that is one; its problems are those of the last deploy
    onto it, and :py:func:`check` looks again), ``home``, ``copies``, ``relocatable``,
    ``system_site_packages``, ``prompt``, ``site_packages``, ``packages`` and ``compiled_modules``
    (counts), ``stays_behind`` (what in it is not portable), ``build`` (a bundle's build metadata,
    such as the commit) and ``built_on`` (the ``file``, ``manifest`` and ``sha256`` of the
    interpreter bundle that it was built on, or ``None``).

    Raises ``CommandExecutionError`` where there is no virtualenv, or it cannot be read.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.info /srv/app/current
    """
    with _core() as core:
        known = core.describe(_absolute(path))
        shared = core.containing(known["interpreter"])
        if shared is not None:
            known["shared_python"] = {"path": shared.path, **shared.as_dict()}
        return _printable(known)


def diff(old: str, new: str, brief: bool = False, saltenv: str = "base") -> dict[str, Any]:
    """
    Report what differs between two builds: packages, migrations, files. Nothing of them is run.

    old
        A release, a virtualenv or a full bundle: an absolute path on the minion, or a URL that Salt
        can fetch. What was fetched for this is removed from the minion's cache.

    new
        What it is compared with, likewise.

    brief
        ``True`` compares the packages alone, which is done at once.

    saltenv
        The environment of a ``salt://`` URL.

    Returns a dictionary: ``old`` and ``new`` (the paths), ``added``, ``removed`` and ``changed``
    (versions by package; of those that changed, ``old`` and ``new``), ``migrations`` (those that
    only the new one has), ``files`` (how many were ``added``, ``removed`` and ``changed``; the
    latter only where both are bundles or were deployed from one), ``size`` (how many bytes the new
    one has more) and ``summary`` (all that in one line).

    Raises ``CommandExecutionError`` where one of them cannot be read, or is a delta bundle.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.diff /srv/app/9c01b7e /srv/app/4f2a9c1
        salt web1 virtualenv_tools.diff /srv/app/current salt://app/4f2a9c1.tar.gz
        salt build virtualenv_tools.diff /srv/salt/app/9c01b7e.tar.gz /srv/salt/app/4f2a9c1.tar.gz
    """
    with _core() as core, _at_hand(old, saltenv) as before, _at_hand(new, saltenv) as after:
        return _printable(core.diff(before, after, brief=bool(brief)).as_dict())


def check(path: str, deep: bool = False) -> dict[str, Any]:
    """
    Check whether a virtualenv can run where it is. Nothing is changed.

    Its Python is started once; shebangs, symlinks and ``.pth`` files are followed; references to
    another path are counted. An interpreter that it shares with other releases imports each
    compiled module of its library, so that a missing library of the system is found. The call's
    return code is 1 where a problem was found.

    path
        The virtualenv's directory on the minion, as an absolute path.

    deep
        ``True`` compares every file as well. What came as a bundle is compared with its manifest,
        and everything that was changed, removed or added since is reported; all else with the hash
        in its package's ``RECORD``. So are the files of an interpreter that it shares with other
        releases. What a bundle with system site-packages needs of the Python's own packages is
        compared with what these are.

    Returns a dictionary: ``path``, ``ok``, ``python`` (the version X.Y.Z that it runs on, or
    ``None``), ``deep`` and ``problems`` (a list of ``kind``, ``file`` and ``reason``).

    Raises ``CommandExecutionError`` where there is no virtualenv, or it cannot be read.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.check /srv/app/current
        salt '*' virtualenv_tools.check /srv/app/current deep=True
    """
    with _core() as core:
        verdict = core.check(_absolute(path), deep=bool(deep)).as_dict()
    if not verdict["ok"]:
        __context__["retcode"] = 1
    return _printable(verdict)


# --- releases -------------------------------------------------------------------------------------


def unpack(
    archive: str,
    path: str,
    source_hash: str | None = None,
    python: str | dict[str, Any] | None = None,
    user: str | None = None,
    group: str | None = None,
    mode: str | None = None,
    smoke: list[str] | None = None,
    smoke_user: str | None = None,
    limits: dict[str, int] | None = None,
    shared: dict[str, str] | None = None,
    hard_links: bool = False,
    source: str | None = None,
    saltenv: str = "base",
    wait: float = 300,
    test: bool | None = None,
) -> dict[str, Any]:
    """
    Make a release from an archive of a virtualenv: what
    :py:func:`virtualenv_relocated.managed` does.

    The archive is unpacked in a staging directory, relocated for its final path, put onto this
    machine's Python, checked, tested, written to the disk, and only then renamed. An archive with
    anything in it that no virtualenv has is refused. Nothing is done, or fetched, where the release
    is deployed.

    Of a bundle (see :py:func:`pack`) nothing becomes a release that its manifest does not list, and
    what another release has of it is shared with that one where the file system can.

    archive
        A tar, plain or packed with gzip, bzip2, xz or zstd: a path on the minion, or a URL that
        Salt can fetch (``salt://``, ``https://``, ``s3://``...). The virtualenv may be at its top
        or in a directory there.

    path
        The release's absolute path: ``<root>/<name>``.

    source_hash
        What the archive has to hash to, in any form that ``file.managed`` takes: ``sha256=...``, a
        bare hash, or the URL of a file of hashes.

    python
        The Python to run it on: an executable, a command, or a version like ``3.11``. By default
        that of its ``pyvenv.cfg`` if it exists and fits, else the first on the ``PATH`` that fits.

        A bundle that was built on an interpreter bundle (see :py:func:`build`) goes onto that one
        by default. It is fetched from the archive's directory where it is missing, and root runs
        it only where the archive's SHA-256 is given, or ``user`` is root; without it the archive
        is refused.

        Or the bundle of an interpreter (see :py:func:`pack_python`) as ``source`` and
        ``source_hash``. It is unpacked in ``pythons``, beside the root, once for all roots there;
        where it is there already by its hash, it is not fetched. Root runs it only where its
        SHA-256 is given, or ``user`` is root. :py:func:`prune` removes it when nothing uses it.

    user, group
        Whom its files should belong to. By default to the user salt-minion runs as; the program
        then cannot change its own code.

    mode
        Of the release's own directory, ``0755`` by default.

    smoke
        Commands that must succeed before the release is published. They are run by ``/bin/sh``,
        with the release's programs on the ``PATH``, the release as working directory, and nothing
        of the minion's environment.

    smoke_user
        Who runs them, with that user's group, groups and home: by default ``user``. Set it to the
        one that the program will run as: whatever is in the archive is then not run as root, and
        cannot write into the release.

    limits
        What to refuse as too much: ``files`` (500000), ``size`` (20 GiB, in bytes) and ``ratio``
        (unpacked to packed, 200).

    shared
        Persistent files and directories - uploads, local settings - as symlinks in each release:
        absolute paths by their path in the release, such as ``{media: /srv/app/shared/media}``.
        They must exist; a release with something of its own at such a path, but for an empty
        directory, is refused.

    hard_links
        ``True`` lets a bundle's files be hard links to the same files of another release, where
        these belong to the user salt-minion runs as. That saves space and time, and whoever edits
        one edits both. Otherwise they share their content where the file system can clone files.

    source
        The archive's name in the records, by default ``archive``.

    saltenv
        The environment of a ``salt://`` archive.

    wait
        Seconds to wait for another run in the same root.

    test
        ``True`` reports what would be done, and does none of it. By default the minion's ``test``
        option.

    Returns a dictionary: ``path``, ``changed``, ``dry_run``, ``repaired`` (whether it was
    deployed on a Python that is gone, and was put onto another one), ``python``, ``old_python``
    (what it was on before a repair), ``old_prefixes``, ``rewritten`` (how many files of which
    kind), ``files``, ``size`` (bytes), ``reused`` (how many files were taken from another release),
    ``interpreter`` (with ``test``: the file name of the interpreter bundle that the archive was
    built on, where it would be unpacked, and where that is known without fetching the archive) and
    ``problems`` (a list of ``file`` and ``reason``).

    Raises ``CommandExecutionError`` for whatever goes wrong; nothing exists at ``path`` then.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.unpack salt://app/4f2a9c1.tar.gz /srv/app/4f2a9c1
        salt '*' virtualenv_tools.unpack /tmp/app.tar.gz /srv/app/4f2a9c1 smoke='["app --version"]'
        salt '*' virtualenv_tools.unpack salt://app/4f2a9c1.tar.gz /srv/app/4f2a9c1 \\
            python='{source: salt://pythons/cpython-3.13.0.tar.zst, source_hash: 5f70bf18...}'
    """
    owner = _owner(user, group)
    options: dict[str, Any] = {
        "owner": owner,
        "mode": _mode(mode),
        "smoke_tests": _strings(smoke, "smoke"),
        "smoke_user": _owner(smoke_user, None),
        "limits": limits,
        "shared": shared,
        "hard_links": bool(hard_links),
        "source": source or archive,
        "wait": _seconds(wait),
    }
    if not re.match(r"/|[a-z0-9]+://", str(archive)):
        raise CommandExecutionError(f"the archive must be a URL or an absolute path: {archive}")
    with _core() as core:
        known, place = _digests(source_hash), core.Place.beside(os.path.dirname(_absolute(path)))
        look = partial(core.publish, path=path, **options, digests=known, dry_run=True)
        looked = look(None, python=None if isinstance(python, (dict, list)) else _text(python))
        lacks, act = looked.changed, not _is_test(test)
        as_root = owner is not None and owner[0] == 0
        needed = python if lacks else None
        with _python(core, needed, place, saltenv, fetch=act, as_root=as_root) as wanted:
            if not act:
                if lacks:  # what is at hand shows whether it would run, and on what
                    is_url = "://" in archive
                    file = __salt__["cp.is_cached"](archive, saltenv) if is_url else archive
                    looked = look(file or None, python=wanted)
                return _printable(looked.as_dict())
            file, digests = archive, known
            if lacks and not looked.repaired:
                file, digests = _fetched(archive, source_hash, saltenv)
            with _reporting(path) as (job, notify):
                options |= {"digests": digests, "python": wanted, "job": job, "notify": notify}
                options["beside"] = partial(_beside, source or archive, saltenv)
                done = core.publish(file, path, **options)
    return _printable(done.as_dict())


def activate(path: str, link: str | None = None, test: bool | None = None) -> dict[str, Any]:
    """
    Point ``current`` to a release, in one step: there is no moment without it.

    A release that is incomplete, cannot run or is marked bad is refused.

    path
        The release, as an absolute path.

    link
        The symlink, in the same directory; by default ``current``.

    test
        ``True`` reports what would be done, and does none of it. By default the minion's ``test``
        option.

    Returns a dictionary: ``link``, ``release``, ``previous`` (the names of the release that it
    points to and of the previous one), ``changed`` and ``dry_run``.

    Raises ``CommandExecutionError`` for whatever goes wrong; the link is then as it was before.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.activate /srv/app/4f2a9c1
    """
    with _core() as core, _reporting(path) as (job, notify):
        if not isinstance(link, (str, type(None))):
            raise CommandExecutionError(f"the link must be a name or a path: {link!r}")
        switch = core.activate(
            _absolute(path), link, job=job, dry_run=_is_test(test), notify=notify
        )
    answer = switch.as_dict()
    del answer["bad"], answer["schema"], answer["schema_left"]
    return _printable(answer)


def rollback(
    root: str,
    to: str | None = None,
    link: str = "current",
    leaving: str | None = None,
    mark: bool = True,
    reason: str = "",
    migrate: bool = True,
    test: bool | None = None,
) -> dict[str, Any]:
    """
    Point ``current`` to the previous release, and mark the release that is rolled back as bad.

    Nothing is downloaded, and nothing is removed. The mark keeps the next highstate from bringing
    the bad release back; :py:func:`unmark_bad` takes it away.

    Where :py:func:`migrate` has changed the schema since that release was active, it is migrated
    down first to what that one ran with, by the code that migrated it up. Where that is impossible,
    for example as a migration is irreversible, nothing is done. A schema that one minion migrates
    for all (``host``) is left as it is, on that minion as well.

    root
        The directory of the releases, as an absolute path.

    to
        The name of the release to activate. By default the last good one that was active before.

    link
        The link's name.

    leaving
        The name of the release to leave; nothing is done where another one is active.

    mark
        ``False`` does not mark it.

    reason
        Why; it is kept in the history and reported when the release is refused later.

    migrate
        ``False`` leaves the schema as it is.

    test
        ``True`` reports what would be done, and does none of it. By default the minion's ``test``
        option.

    Returns a dictionary: ``link``, ``release``, ``previous``, ``changed``, ``bad`` (why the
    previous one is marked, or ``None``), ``dry_run``, ``schema`` (what it was at and is at now, as
    ``old`` and ``new``) where it was migrated down, and ``schema_left`` (why it was left as it is)
    where it is newer than what the release ran with.

    Raises ``CommandExecutionError`` for whatever goes wrong, such as that there is no previous
    release; the link is then as it was before.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.rollback /srv/app reason='prices are wrong'
        salt '*' virtualenv_tools.rollback /srv/app to=9c01b7e mark=False
    """
    with _core() as core, _reporting(root) as (job, notify):
        switch = core.rollback(
            _absolute(root),
            None if to is None else str(to),
            link=link,
            leaving=leaving,
            mark=bool(mark),
            reason=str(reason),
            migrate=bool(migrate),
            job=job,
            dry_run=_is_test(test),
            notify=notify,
        )
    answer = switch.as_dict()
    for key in ("schema", "schema_left"):
        if answer[key] is None:
            del answer[key]
    return _printable(answer)


def active(link: str) -> dict[str, Any]:
    """
    Report which release a symlink points to.

    link
        The link, as an absolute path.

    Returns a dictionary: ``release`` (its name, or ``None``), ``path``, ``bad`` (why it is marked,
    or ``None``), ``proven`` (whether it was found healthy since it was activated, or put onto
    another Python) and ``old_python`` (the Python before, where it was not found healthy since;
    ``None`` where that is gone and it was not found healthy since it was activated either).

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.active /srv/app/current
    """
    directory, _, name = _absolute(link).rpartition("/")
    with _core() as core:
        root = core.Root(directory)
        release, known = root.active(name), root.standing()
        changed = root.reinitialized(release) if release else None
        is_known = bool(release and known.proven.get(name) == release)
        before = None if changed is None else changed.get("previous")
        if not (is_known or (before and os.access(before, os.X_OK))):
            before = None  # it may be the release as well: it is no use to put it back
        return _printable(
            {
                "release": release,
                "path": None if release is None else os.path.join(root.path, release),
                "bad": known.bad.get(release),
                "proven": is_known and changed is None,
                "old_python": before,
            }
        )


def releases(root: str) -> dict[str, Any]:
    """
    List the releases.

    root
        The directory of the releases, as an absolute path.

    Returns a dictionary of dictionaries, by name: ``active`` (the links that point to it), ``bad``
    (why it is marked) and ``pinned`` where that is so, ``published`` (UTC), ``source``, ``python``
    (what its ``bin/python`` points to now), ``python_version`` (that one's X.Y.Z), ``files``,
    ``size`` (bytes), ``job`` (Salt's job id), ``bundle`` where it was deployed from one, and
    ``interpreter`` (the directory) where it shares one with others.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.releases /srv/app
    """
    with _core() as core:
        found = core.Root(_absolute(root)).releases()
    return _printable({release.name: release.as_dict() for release in found})


def history(root: str, limit: int = 20, full: bool = False) -> list[Any]:
    """
    List what happened in a root, the latest last.

    root
        The directory of the releases, as an absolute path.

    limit
        How many events; 0 is all of them.

    full
        ``True`` returns each event as a dictionary: ``time`` (UTC), ``event``, ``release``, and
        where it belongs to it ``previous``, ``link``, ``schema``, ``before``, ``after``,
        ``reason``, ``source`` and ``job``.

    Returns a list of lines, or of dictionaries.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.history /srv/app
        salt '*' virtualenv_tools.history /srv/app limit=0 full=True --out=json
    """
    if not _is_count(limit):
        raise CommandExecutionError(f"limit must be a whole number, 0 for all events: {limit!r}")
    with _core() as core:
        events = core.Root(_absolute(root)).events()
    if not full:  # a switch is recorded before and after; once is enough to read
        following = [*(event["event"] for event in events[1:]), ""]
        events = [one for one, then in zip(events, following) if _PAIRS.get(one["event"]) != then]
    events = events[-limit:]
    return _printable(events if full else [_line(event) for event in events])


def prune(root: str, keep: int = 5, test: bool | None = None) -> dict[str, Any]:
    """
    Remove old releases.

    The active one, the previous one, pinned ones, those that a process uses, and the one whose code
    alone can migrate a schema down always stay. A release that is marked bad does not count as one
    of those to keep. What is no release is not touched. Interpreters in ``pythons``, beside the
    root, that no release, virtualenv or process uses any more are removed too.

    root
        The directory of the releases, as an absolute path.

    keep
        How many good releases stay.

    test
        ``True`` reports what would be done, and does none of it. By default the minion's ``test``
        option.

    Returns a dictionary: ``root``, ``removed`` (names), ``kept`` (why each other one stays, by
    name), ``dry_run``, ``pythons`` (the interpreters that were removed) where there are any, and
    ``failed`` (why one could not be removed, by name) where that is so; the call's return code is 1
    then.

    Raises ``CommandExecutionError`` for bad arguments, or where another run does not end.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.prune /srv/app keep=3
    """
    with _core() as core, _reporting(root) as (job, notify):
        done = core.prune(_absolute(root), keep, job=job, dry_run=_is_test(test), notify=notify)
    if done.failed:
        __context__["retcode"] = 1
    return _printable(done.as_dict())


def remove(path: str, test: bool | None = None) -> bool:
    """
    Remove one release, unless it is active, pinned, or used by a process.

    path
        The release, as an absolute path.

    test
        ``True`` reports whether it would be removed, and does not. By default the minion's ``test``
        option.

    Returns whether it was there.

    Raises ``CommandExecutionError`` where it must stay.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.remove /srv/app/4f2a9c1
    """
    with _core() as core, _reporting(path) as (job, notify):
        return bool(core.remove(_absolute(path), job=job, dry_run=_is_test(test), notify=notify))


def mark_bad(path: str, reason: str) -> str:
    """
    Mark a release bad, so that no highstate activates it.

    path
        The release, as an absolute path.

    reason
        Why.

    Returns one sentence.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.mark_bad /srv/app/4f2a9c1 reason='leaks memory'
    """
    with _core() as core:
        done = core.mark_bad(_absolute(path), str(reason), job=_job())
    return f"{path} is marked bad{'' if done else ' already'}."


mark = mark_bad  # the name that it had before


def unmark_bad(path: str) -> str:
    """
    Take the marks of a bad release away: it may be activated again, and on any Python.

    path
        The release, as an absolute path.

    Returns one sentence.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.unmark_bad /srv/app/4f2a9c1
    """
    with _core() as core:
        done = core.unmark_bad(_absolute(path), job=_job())
    return f"{path} is not marked bad any more." if done else f"{path} was not marked bad."


unmark = unmark_bad  # the name that it had before


def pin(path: str) -> str:
    """
    Keep :py:func:`prune` from removing a release.

    path
        The release, as an absolute path.

    Returns one sentence.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.pin /srv/app/4f2a9c1
    """
    with _core() as core:
        done = core.pin(_absolute(path), job=_job())
    return f"{path} is pinned{'' if done else ' already'}."


def unpin(path: str) -> str:
    """
    Let :py:func:`prune` remove a release again.

    path
        The release, as an absolute path.

    Returns one sentence.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.unpin /srv/app/4f2a9c1
    """
    with _core() as core:
        done = core.unpin(_absolute(path), job=_job())
    return f"{path} is not pinned any more." if done else f"{path} was not pinned."


def mark_healthy(path: str, link: str | None = None) -> bool:
    """
    Mark the active release healthy: its checks succeeded, so a later failure of them is not taken
    for the release's own.

    path
        The release, as an absolute path.

    link
        The link that points to it; by default ``current`` beside it.

    Returns whether that was not known.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.mark_healthy /srv/app/4f2a9c1
    """
    with _core() as core:
        return bool(core.mark_healthy(_absolute(path), link, job=_job()))


prove = mark_healthy  # the name that it had before


def run(path: str, command: str, user: str | None = None, timeout: float = 60) -> dict[str, Any]:
    """
    Run a command of a release: what the checks of
    :py:func:`virtualenv_relocated.healthy` do.

    It is run by ``/bin/sh`` with the release's programs on the ``PATH``, the release as working
    directory, and nothing of the minion's environment. What it has left running is ended with it.

    path
        The release, or a link to it, as an absolute path.

    command
        The command.

    user
        Who runs it, with that user's group, groups and home. By default the user salt-minion runs
        as.

    timeout
        Seconds that it may take.

    Returns a dictionary: ``code`` (its exit code, or ``None`` where it took too long) and
    ``output`` (the lines that it printed, errors included). The call's return code is 1 where it
    failed.

    Raises ``CommandExecutionError`` where it cannot be run.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.run /srv/app/current 'django-admin check' user=app
    """
    if not _is_text(command):
        raise CommandExecutionError(f"the command must be a text: {command!r}")
    with _core() as core:
        release = core.inspect(os.path.realpath(_absolute(path))).path
        ended = core.run_line(command, release, _owner(user, None), _seconds(timeout, "timeout"))
    if ended.code != 0:
        __context__["retcode"] = 1
    return _printable({"code": ended.code, "output": ended.output.splitlines()})


# --- bundles --------------------------------------------------------------------------------------


def pack(
    path: str,
    archive: str,
    delta_from: str | None = None,
    exclude: str | list[str] | None = None,
    prefix: str | None = None,
    bytecode: str = "timestamp",
    level: int | None = None,
    build_metadata: dict[str, str] | None = None,
    cache: str | None = None,
    test: bool | None = None,
) -> dict[str, Any]:
    """
    Pack a virtualenv into a bundle: a tar that begins with a manifest of all that is in it.

    Servers deploy a bundle with little to do: its bytecode is compiled and contains no path, what
    is to be relocated is listed, and whether they can run it is known before anything is unpacked.
    The same virtualenv gives the same bytes. What is not portable is refused: editable installs and
    symlinks that point outside. Nothing in the virtualenv is changed.

    path
        The virtualenv's directory on the minion, as an absolute path.

    archive
        The bundle, as an absolute path; its ending is its form: ``.tar.gz``, ``.tar.zst`` (which is
        smaller and faster, and needs the program ``zstd`` on both sides) or ``.tar``. Its
        SHA-256 is written beside it, as ``<archive>.sha256``.

    delta_from
        The full bundle of a previous release: makes a delta bundle, without the files that this
        one contains, which can be deployed only where that release is. Name the delta bundle
        ``<name>.from-<previous name>.tar.gz`` beside the full ``<name>.tar.gz``, and
        ``virtualenv_relocated.managed`` finds it by itself.

    exclude
        Patterns of what is left out: of a path in the virtualenv or of a name, such as ``tests``.

    prefix
        Pack it as if it had been built at this absolute path.

    bytecode
        How bytecode knows whether it fits its source: ``timestamp``, ``checked-hash`` or
        ``unchecked-hash``, as ``py_compile`` calls them.

    level
        Of the compression: 1 to 9 for gzip, by default 5; 1 to 19 for zstd, by default 8.

    build_metadata
        Names and texts for the manifest, for example a commit.

    cache
        A directory, as an absolute path, that is kept between packings of the same virtualenv, and
        made where it is missing: files that did not change are then not read again, and what was
        compressed of them is taken again. The bundle has the same bytes with and without it.

    test
        ``True`` reports what would be done, and does none of it. By default the minion's ``test``
        option.

    Returns a dictionary: ``archive``, ``changed``, ``dry_run``, ``files`` (members), ``size``
    (bytes in its files), ``packed_size`` (of the archive), ``sha256``, ``manifest`` (its digest),
    ``base`` (of a delta bundle, that of the other one), ``carried`` (how many files it has),
    ``references`` (how many are to be relocated), ``compiled`` and ``warnings`` (a list of
    ``file`` and ``reason``).

    Raises ``CommandExecutionError`` for whatever goes wrong; an earlier archive stays as it was.

    CLI Example:

    .. code-block:: bash

        salt build virtualenv_tools.pack /srv/build/app /srv/salt/app/4f2a9c1.tar.gz
        salt build virtualenv_tools.pack /srv/build/app /srv/salt/app/4f2a9c1.from-9c01b7e.tar.gz \\
            delta_from=/srv/salt/app/9c01b7e.tar.gz
    """
    archive = _absolute(archive, "the archive")
    with _core() as core, _reporting(archive) as (_, notify):
        done = core.pack(
            _absolute(path),
            archive,
            delta_from=None if delta_from is None else _absolute(delta_from, "delta_from"),
            exclude=_strings(exclude, "exclude", "pattern"),
            prefix=None if prefix is None else str(prefix),
            bytecode=bytecode,
            level=level,
            build_metadata=build_metadata,
            cache=None if cache is None else _absolute(cache, "the cache"),
            dry_run=_is_test(test),
            notify=notify,
        )
        return _printable(done.as_dict())


def pack_python(
    path: str,
    archive: str,
    keep: str | list[str] | None = None,
    level: int | None = None,
    source_hash: str | None = None,
    saltenv: str = "base",
    test: bool | None = None,
) -> dict[str, Any]:
    """
    Pack a Python into a bundle of its own, from which it runs wherever it is unpacked.

    Its programs and libraries find each other relative to themselves, its bytecode is compiled and
    contains no path, and the manifest has what it needs of a server. The same Python gives the same
    bytes; where the bundle is there already, it is left. Nothing in the prefix is changed.

    path
        The prefix of a CPython 3.6 or later or a PyPy 3.9 or later, as an absolute path: the
        directory that has ``bin/python3`` in it. It must have the directory for itself, as the
        Pythons of ``uv python install``, of pyenv, and of ``make install`` with a prefix of their
        own do. That of the distribution is refused, and so is a virtualenv.

        Or a tar of such a directory as its makers publish it, such as an ``install_only`` archive
        of python-build-standalone or a portable PyPy: an absolute path, or a URL that Salt can
        fetch.

    archive
        The bundle, as an absolute path; its ending is its form: ``.tar.gz``, ``.tar.zst`` or
        ``.tar``. Its SHA-256 is written beside it, as ``<archive>.sha256``.

    keep
        What is not left out: ``headers`` (and what else is needed to compile against it),
        ``static`` (libraries), ``tests``, or ``tk`` (tkinter and IDLE), or a list of these.
        Packages that were installed into it are always left out.

    level
        Of the compression: 1 to 9 for gzip, by default 5; 1 to 19 for zstd, by default 8.

    source_hash
        What that archive has to hash to: the hash itself, or a file with it. The Python in it is
        run, which root does only where its SHA-256 is given.

    saltenv
        The environment of a ``salt://`` archive.

    test
        ``True`` reports what would be done, and writes nothing. By default the minion's ``test``
        option.

    Returns a dictionary: ``archive``, ``changed``, ``dry_run``, ``version``, ``implementation``,
    ``abi``, ``machine``, ``libc``, ``libc_version`` (the oldest glibc that it runs with),
    ``libraries`` (of the system, that it needs), ``files`` (members), ``size`` (bytes in its
    files), ``packed_size`` (of the archive), ``sha256``, ``manifest`` (its digest), ``references``
    (how many files record the prefix), ``compiled``, ``left_out`` (bytes by kind) and ``warnings``
    (a list of ``file`` and ``reason``).

    Raises ``CommandExecutionError`` for whatever goes wrong; an earlier archive stays as it was.

    CLI Example:

    .. code-block:: bash

        salt build virtualenv_tools.pack_python /opt/pythons/3.13.0 /srv/salt/cpython-3.13.0.tar.gz

        salt build virtualenv_tools.pack_python \\
            salt://cpython-3.13.0+20241016-x86_64-unknown-linux-gnu-install_only.tar.gz \\
            /srv/salt/cpython-3.13.0.tar.gz \\
            source_hash=2c8cb15c6a2caadaa98af51df6fe78a8155b8471cb3dd7b9836038e0d3657fb4
    """
    archive = _absolute(archive, "the archive")
    with _core() as core, _reporting(archive) as (_, notify), _at_hand(path, saltenv) as file:
        done = core.pack_python(
            file,
            archive,
            keep=_strings(keep, "keep", "kind"),
            level=level,
            digests=_digests(source_hash) or _known_digests(path, source_hash, saltenv),
            dry_run=_is_test(test),
            notify=notify,
        )
        return _printable(done.as_dict())


def build(
    archive: str,
    cache: str | None = None,
    force: bool = False,
    saltenv: str = "base",
    wait: float = 3600,
    test: bool | None = None,
    **options: Any,
) -> dict[str, Any]:
    """
    Build a bundle from requirements or a project, for
    :py:func:`virtualenv_relocated.managed` to deploy.

    The packages are installed into an environment that is kept in a cache and brought exactly in
    step with what is asked for: what did not change is neither fetched nor installed again, and
    what is no longer wanted is removed. Nothing is done where the bundle exists and none of its
    inputs has changed. A build that fails leaves the previous bundle, and reports where the output
    of its tools is.

    archive
        The bundle, as an absolute path that ends in ``.tar``, ``.tar.gz`` or ``.tar.zst``;
        ``{commit}`` in it is replaced by the commit. Its SHA-256 is written beside it, as
        ``<archive>.sha256``.

    cache
        A directory that is kept between builds, ``virtualenv_tools`` in the minion's cache by
        default. One environment is kept in it for each Python and tool, and one build at a time
        works there: give applications that are built often a cache each.

    force
        ``True`` builds though nothing has changed.

    saltenv
        The environment of ``salt://`` files.

    wait
        Seconds to wait for another build in the same cache.

    test
        ``True`` reports what would be done, and does none of it. By default the minion's ``test``
        option decides.

    All others have to be given by name, and all have a default:

    requirements
        Requirement files, as pip reads them; for example a lock with hashes. Paths on the minion,
        or URLs that Salt can fetch. What is not pinned is only looked up when something else has
        changed, or with ``force``.

    project
        A directory with a ``pyproject.toml`` or ``setup.py``, with extras as in ``/srv/shop[web]``.
        It is built in a copy, and installed as a wheel. In a git checkout, the files that are
        tracked or new and not ignored count.

    pip_packages
        Requirements, such as ``gunicorn>=22``.

    wheels
        Wheel files: paths on the minion, or URLs that Salt can fetch.

    find_links
        Directories or pages with packages, in addition to those that are configured on the minion.

    index, extra_index
        Package indexes, in place of those that are configured on the minion by ``pip.conf``,
        ``uv.toml`` or the minion's environment. Credentials in them are never logged or reported.

    no_index
        ``True`` takes packages from ``find_links`` only.

    require_hashes
        ``True`` refuses packages without a hash.

    constraints
        Constraint files.

    python
        The Python to build for: an executable, a command, or a version like ``3.11``. By default
        the first ``python3`` on the ``PATH`` that is not Salt's own. It should be the X.Y that the
        servers have.

        Or an interpreter bundle (see :py:func:`pack_python`): its path, its URL, or ``source`` and
        ``source_hash``, which is compared then. It is unpacked in the cache. Its copy is put beside
        the archive, and the archive's manifest names it, so that
        :py:func:`virtualenv_relocated.managed` puts the release onto that very Python.

    tool
        What creates the environment: ``venv`` (the default), ``virtualenv`` or ``uv``. pip is not
        in it, unless it is asked for.

    installer
        What installs the packages: ``pip`` (the default) or ``uv``.

    system_site_packages
        ``True`` lets the environment see the Python's own packages, such as Debian's
        ``python3-psycopg2``: what meets a requirement is not installed. The bundle records which of
        them it needs, and a server where one is missing, or has another version, refuses it. For
        ``installer: pip`` only.

    delta_from
        How many of the latest bundles beside the archive (those that have its name, with another
        commit), or which full bundles. From each of them a delta bundle is written as well, called
        ``<name>.from-<previous name>.tar.gz``, which has only what the other one lacks.

    exclude
        Patterns of files to leave out.

    prefix
        Pack it as if it had been built there.

    bytecode
        How it is known whether bytecode matches its source: ``timestamp`` (the default),
        ``checked-hash`` or ``unchecked-hash``.

    level
        Of the compression.

    commit
        What is built. By default what is checked out in ``project``; where that differs from its
        commit, the commit is not put into the name of a bundle.

    env
        More variables for the tools, such as ``CFLAGS``.

    Returns a dictionary: ``archive``, ``changed``, ``dry_run``, ``reason`` (why it was built),
    ``commit``, ``python``, ``tool`` and ``installer`` (with their versions), ``installed`` (names
    and versions), ``removed`` (names), ``kept`` (a count), ``old_sha256``, ``sha256``, ``files``,
    ``size`` and ``packed_size`` (bytes), ``manifest``, ``deltas`` (the sizes in bytes of the
    delta bundles, by their paths), ``interpreter`` (the path of the interpreter bundle beside the
    archive, if it was built on one), ``interpreter_added`` (whether it was put there), ``log`` and
    ``warnings`` (a list of ``file`` and ``reason``).

    Raises ``CommandExecutionError`` for whatever goes wrong; the bundle is then as it was before.

    CLI Example:

    .. code-block:: bash

        salt build virtualenv_tools.build /srv/bundles/shop-{commit}.tar.zst project=/srv/src/shop
        salt build virtualenv_tools.build /srv/bundles/shop.tar.gz pip_packages='[gunicorn, shop]'
        salt build virtualenv_tools.build /srv/bundles/shop.tar.zst project=/srv/src/shop \\
            python=/srv/pythons/cpython-3.13.0-x86_64.tar.zst
    """
    # A command of the master adds the job: `__pub_jid` and the like.
    given = {name: value for name, value in options.items() if not name.startswith("__")}
    for name in ("requirements", "wheels", "constraints"):
        given[name] = _files(given.get(name), name, saltenv)
    # YAML reads 3.11 and 1234567 as numbers.
    given["commit"], python = _text(given.get("commit")), given.get("python")
    if isinstance(python, str) and "://" in python:
        python = {"source": python}
    if given.get("project") is not None:
        _absolute(given["project"], "the project")
    given["delta_from"] = _delta_from(given.get("delta_from"))
    archive = _absolute(archive, "the archive")
    with _core() as core, _reporting(archive) as (job, notify), ExitStack() as stack:
        given["python"] = stack.enter_context(_python(core, python, None, saltenv, fetch=True))
        done = core.build(
            archive,
            cache=cache or os.path.join(__opts__["cachedir"], __virtualname__),
            force=bool(force),
            wait=_seconds(wait),
            dry_run=_is_test(test),
            job=job,
            notify=notify,
            **given,
        )
        return _printable(done.as_dict())


def _delta_from(value: Any) -> int | list[str]:
    """Full bundles to make delta bundles from, or how many of them."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return [_absolute(one, "delta_from") for one in _strings(value, "delta_from", "path")]


def _files(value: Any, what: str, saltenv: str) -> list[str]:
    """Files on this machine, from paths and from URLs that Salt can fetch."""
    files = []
    for place in _strings(value, what, "path"):
        file = place
        if "://" in place:
            file = _cached(place, saltenv)
        files.append(_absolute(file, what))
    return files


# --- migrations -----------------------------------------------------------------------------------


def migrate(
    path: str,
    kind: str = "django",
    manage: str | None = None,
    settings: str | None = None,
    database: str | None = None,
    config: str | None = None,
    version: str | None = None,
    up: str | None = None,
    down: str | None = None,
    check: str | None = None,
    user: str | None = None,
    env: dict[str, str] | None = None,
    cwd: str | None = None,
    host: str | None = None,
    timeout: float = 600,
    wait: float = 300,
    test: bool | None = None,
) -> dict[str, Any]:
    """
    Migrate the database's schema to what a release needs: what
    :py:func:`virtualenv_relocated.migrated` does.

    The schema's version is recorded before and after, and the arguments are kept for the release,
    so that :py:func:`rollback` migrates the schema down by itself. Only the user salt-minion runs
    as can read that record; nothing of ``env`` is printed or logged.

    A release that ran before, with an older version than the schema has now, gets that version
    again: the schema is migrated down by the code of the newer release. Where a migration fails,
    the answer has the version that the schema is at, and the same call goes on from there.

    Where many machines use one database, ``host`` migrates it alone, and up only; on all others
    nothing is changed in it, and they wait until it has what the release needs. Down it goes with
    :py:func:`migrate_down`, when the last of them is back. A database on another machine is refused
    without a ``host``.

    path
        The release, as an absolute path.

    kind
        ``django``, ``alembic`` or ``commands``.

    manage
        Django: how its ``manage.py`` is called in ``cwd``: ``manage.py``, the default where it
        exists, or a program of the release.

    settings
        Django: the settings' module, where there is no ``manage.py``.

    database
        Django: the database's alias, by default ``default``.

    config
        Alembic: its ini file, as seen from ``cwd``; by default ``alembic.ini``.

    version, up, down
        Commands, run by ``/bin/sh``: one that prints the schema's version, on one line; one that
        migrates it up, and changes nothing where it is up to date; and one that migrates it down to
        ``{version}``. Without ``down`` it cannot be migrated down.

    check
        Commands, with ``host``: one that changes nothing, and succeeds where the schema has all
        that the release needs.

    user
        Who runs them. By default the user salt-minion runs as.

    env
        More variables for them, such as ``DATABASE_URL``. The only other one is a ``PATH`` that
        begins with the release's programs.

    cwd
        Its working directory, as seen from the release, which is the default.

    host
        The ID of the one minion that migrates the schema, the same on all minions that use the
        database. Without it this minion does, and has the database for itself.

    timeout
        Seconds that one program may take.

    wait
        Seconds to wait for another run in the same root; where another minion is the ``host``, for
        its migration as well.

    test
        ``True`` reports what would be done, and does none of it. By default the minion's ``test``
        option.

    Returns a dictionary: ``path``, ``schema`` (which one, where there are several), ``changed``,
    ``old`` and ``new`` (what it was at and is at now), ``applied`` and ``undone`` (names of
    migrations), ``dry_run``, ``host``, ``left`` (whether it is newer than what the release ran
    with, and was left so) and ``lacking`` (what another minion would be waited for).

    Raises ``CommandExecutionError`` for whatever goes wrong.

    CLI Example:

    .. code-block:: bash

        salt web1 virtualenv_tools.migrate /srv/app/4f2a9c1 settings=app.settings user=app
        salt '*' virtualenv_tools.migrate /srv/app/4f2a9c1 settings=app.settings host=web1
        salt '*' virtualenv_tools.migrate /srv/app/4f2a9c1 kind=alembic cwd=etc test=True
    """
    options = {
        "manage": manage,
        "settings": settings,
        "database": database,
        "config": config,
        "version": version,
        "up": up,
        "down": down,
        "check": check,
        "owner": _owner(user, None),
        "env": env,
        "cwd": cwd,
        "timeout": timeout,
    }
    if host is not None and not _is_text(host):
        raise CommandExecutionError(f"host must be the ID of a minion: {host!r}")
    seconds = _seconds(wait)
    with _core() as core, _reporting(path) as (job, notify):
        recipe = core.Recipe.of(kind, **options)
        migrates = host in (None, __opts__["id"])
        function = core.migrate if migrates else core.wait_for_schema
        done = function(
            _absolute(path),
            recipe,
            host=host or "",
            job=job,
            dry_run=_is_test(test),
            notify=notify,
            wait=seconds,
        )
    return _printable(done.as_dict())


def migrate_down(
    root: str,
    to: str,
    running: list[str] | None = None,
    link: str = "current",
    wait: float = 300,
    test: bool | None = None,
) -> dict[str, Any]:
    """
    Migrate the schemas that this minion migrates for all down to what a release ran with.

    It is the last step of a rollback of all minions: :py:func:`releases.rollback` calls it when it
    has seen that no minion needs the schema any more. Nothing is done to schemas that another
    minion migrates, or each one for itself.

    root
        The directory of the releases, as an absolute path.

    to
        The name of the release; it has to be active on this minion.

    running
        The names of all releases that run on any minion with the same database. The schema is left
        as it is where one of them may need that.

    link
        The link's name.

    wait
        Seconds to wait for another run in the same root.

    test
        ``True`` reports what would be done, and does none of it. By default the minion's ``test``
        option.

    Returns a dictionary as that of :py:func:`migrate`.

    Raises ``CommandExecutionError`` for whatever goes wrong.

    CLI Example:

    .. code-block:: bash

        salt web1 virtualenv_tools.migrate_down /srv/app 9c01b7e test=True
        salt web1 virtualenv_tools.migrate_down /srv/app 9c01b7e running='["9c01b7e"]'
    """
    seconds = _seconds(wait)
    names = _strings(running, "running", "name")
    with _core() as core, _reporting(root) as (job, notify):
        done = core.migrate_down(
            _absolute(root),
            str(to),
            __opts__["id"],
            running=names,
            link=link,
            job=job,
            dry_run=_is_test(test),
            notify=notify,
            wait=seconds,
        )
    return _printable(done.as_dict())


def schemas(root: str) -> dict[str, Any]:
    """
    Report what is recorded of the schemas of a root. Nothing of a release is run.

    root
        The directory of the releases, as an absolute path.

    Returns a dictionary by schema: ``host`` (who alone migrates it, or ``""``), ``place`` (the
    database), ``version`` (in a few words; ``None`` where a migration did not come to its end),
    ``release`` (whose code knows all of it), ``fits`` (the releases that it has all for), and of
    its last change here ``event``, ``time``, ``job`` and ``by`` (the release that it was made for).

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.schemas /srv/app
    """
    with _core() as core:
        return dict(_printable(core.schemas(_absolute(root))))


def claim(root: str, holder: str, doing: str, wait: float = 300) -> dict[str, Any]:
    """
    Claim a root for a roll-out, or renew the claim; the runner ``releases`` does it at each step.

    It keeps the roll-outs of other masters out, until :py:func:`unclaim`, or until an hour has
    passed without a renewal. States and functions on this minion do not look at it.

    root
        The directory of the releases, as an absolute path.

    holder
        Who claims it: the master's ID.

    doing
        What for, in a few words.

    wait
        Seconds to wait for another run in the same root.

    Returns a dictionary: ``claimed``, and where that is ``False``, of the claim that there is
    ``holder``, ``doing``, ``since`` (UTC) and ``living``.

    CLI Example:

    .. code-block:: bash

        salt 'web*' virtualenv_tools.claim /srv/app me 'no roll-outs today'
    """
    seconds = _seconds(wait)
    with _core() as core, _reporting(root) as (job, _):
        found = core.claim(_absolute(root), str(holder), str(doing), job=job, wait=seconds)
    return {"claimed": True} if found is None else {"claimed": False, **_claim_facts(found)}


def claimed(root: str) -> dict[str, Any]:
    """
    Report whose a root is: of the master that rolls something out there.

    root
        The directory of the releases, as an absolute path.

    Returns a dictionary: ``holder``, ``doing`` and ``since`` (UTC), and ``living``: whether it
    keeps others out. It is empty where nobody has claimed it.

    CLI Example:

    .. code-block:: bash

        salt 'web*' virtualenv_tools.claimed /srv/app
    """
    with _core() as core:
        found = core.claimed(core.Root(_absolute(root)))
    return {} if found is None else _claim_facts(found)


def unclaim(root: str, holder: str | None = None, wait: float = 300) -> bool:
    """
    Take the claim on a root away: by hand, where a roll-out of another master was killed.

    root
        The directory of the releases, as an absolute path.

    holder
        Whose claim; by default that of anybody.

    wait
        Seconds to wait for another run in the same root.

    Returns whether there was such a claim.

    CLI Example:

    .. code-block:: bash

        salt 'web*' virtualenv_tools.unclaim /srv/app
    """
    seconds = _seconds(wait)
    who = None if holder is None else str(holder)
    with _core() as core, _reporting(root) as (job, _):
        return bool(core.unclaim(_absolute(root), who, job=job, wait=seconds))


# --- arguments and answers ------------------------------------------------------------------------


def _claim_facts(claim: Any) -> dict[str, Any]:
    facts = claim.as_dict()
    del facts["renewed"]
    return dict(_printable({**facts, "living": claim.is_living()}))


def _absolute(path: Any, what: str = "the path of a virtualenv") -> str:
    """A minion has no working directory that means anything to an operator."""
    if not isinstance(path, str) or not path.startswith("/"):
        raise CommandExecutionError(f"{what} must be absolute: {path}")
    return path


def _is_test(test: bool | None) -> bool:
    return bool(__opts__.get("test") if test is None else test)


def _owner(user: Any, group: Any) -> tuple[int, int] | None:
    """The numbers of a user and a group; by default the user's own group."""
    if user is None and group is None:
        return None
    for one in (user, group):
        if isinstance(one, bool) or not isinstance(one, (str, int, type(None))):
            raise CommandExecutionError(f"a user or group must be a name or a number: {one!r}")
    uid = os.geteuid() if user is None else __salt__["file.user_to_uid"](user)
    if uid == "":
        raise CommandExecutionError(f"there is no user {user} on this machine: create it first")
    if group is not None:
        gid = __salt__["file.group_to_gid"](group)
        if gid == "":
            raise CommandExecutionError(
                f"there is no group {group} on this machine: create it first"
            )
        return int(uid), int(gid)
    import pwd

    try:
        return int(uid), pwd.getpwuid(int(uid)).pw_gid
    except KeyError:
        raise CommandExecutionError(
            f"there is no user {user} on this machine, and so no group of its own: create it"
        ) from None


def _mode(mode: Any) -> int:
    """A mode as Salt takes it: `0755`, in quotes or not."""
    if mode is None:
        return 0o755
    try:
        number = int(str(salt.utils.files.normalize_mode(mode)).strip("'"), 8)
    except ValueError:
        number = -1
    if not 0o100 <= number <= 0o777 or not number & 0o100:
        raise CommandExecutionError(
            f"the mode of a release must be octal digits that let its owner in, such as '0755': "
            f"{mode}"
        )
    return number


def _strings(value: Any, what: str, kind: str = "command") -> list[str]:
    """A list of strings; one string is a list of one."""
    if value is None:
        return []
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(one, str) for one in values):
        raise CommandExecutionError(f"{what} must be a {kind} or a list of {kind}s: {value!r}")
    return list(values)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _seconds(value: Any, what: str = "wait") -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise CommandExecutionError(f"{what} must be a number of seconds: {value!r}")
    return float(value)


def _digests(source_hash: Any) -> dict[str, str]:
    """The hash that `source_hash` itself is: nothing is fetched where a release is deployed."""
    match = re.match(r"(?:(\w+)[=:])?([0-9a-fA-F]{32,128})\Z", str(source_hash or ""))
    if match is None:
        return {}
    algorithm = match[1] or _ALGORITHMS.get(len(match[2]))
    return {algorithm: match[2]} if algorithm else {}


def _known_digests(archive: str, source_hash: str | None, saltenv: str) -> dict[str, str]:
    """What an archive has to hash to, be it in a file of hashes."""
    if not source_hash:
        return {}
    with _fetching(source_hash):
        known = __salt__["file.get_source_sum"](
            source=archive, source_hash=source_hash, saltenv=saltenv
        )
    return {known["hash_type"]: known["hsum"]}


def _fetched(archive: str, source_hash: str | None, saltenv: str) -> tuple[str, dict[str, str]]:
    """The archive as a file on this machine, and what it has to hash to."""
    digests = _known_digests(archive, source_hash, saltenv)
    if archive.startswith("/"):
        return archive, digests
    return _cached(archive, saltenv), digests


class _NoSuchFile(CommandExecutionError):  # type: ignore[misc]
    """Salt's file server has no file of that name."""


def _cached(source: str, saltenv: str) -> str:
    """What Salt fetches, as a file on this machine."""
    with _fetching(source):
        file = __salt__["cp.cache_file"](source, saltenv)
        there = file or __salt__["cp.hash_file"](source, saltenv)
    if not there:
        raise _NoSuchFile(f"cannot fetch {source}: {_SEE}")
    if not file:
        raise CommandExecutionError(
            f"cannot fetch {source}: the file server has it, and it did not arrive: see the log of "
            "this minion"
        )
    return str(file)


@contextmanager
def _fetching(source: str) -> Iterator[None]:
    """Report what cannot be fetched, and why: Salt's own functions raise the reason alone."""
    try:
        yield
    except (CommandExecutionError, SaltInvocationError):  # these are sentences
        raise
    except (SaltException, OSError) as error:
        strerror = error.strerror if isinstance(error, OSError) else None
        reason = strerror.lower() if strerror else str(error)
        raise CommandExecutionError(f"cannot fetch {source}: {reason}; {_SEE}") from error


@contextmanager
def _at_hand(build: str, saltenv: str) -> Iterator[str]:
    """A build as a path on this machine; what is fetched for it stays no longer than the block."""
    if not re.match(r"[a-z0-9]+://", str(build)):
        yield _absolute(build)
        return
    cached = __salt__["cp.is_cached"](build, saltenv)
    file, _ = _fetched(build, None, saltenv)
    try:
        yield file
    finally:
        if not cached and os.path.realpath(file).startswith(os.path.realpath(__opts__["cachedir"])):
            with suppress(OSError):
                os.unlink(file)


@contextmanager
def _python(
    core: Any, python: Any, place: Any, saltenv: str, fetch: bool, as_root: bool = False
) -> Iterator[Any]:
    """The Python of a release as the core takes it.

    Args:
        core: the core.
        python: what the operator gave: a path, a command, a version, or a bundle by its source.
        place: where interpreters are; None for a build, which needs the bundle itself, and whose
            path is trust enough: it runs the build code of all its packages as well.
        saltenv: the environment of a `salt://` bundle.
        fetch: whether a bundle is fetched whose interpreter is not there.
        as_root: whether the operator named root as the user who should run it.
    """
    if not isinstance(python, (dict, list)):
        yield _text(python)
        return
    given = salt.utils.data.repack_dictlist(python) if isinstance(python, list) else dict(python)
    source, source_hash = given.pop("source", None), given.pop("source_hash", None)
    if given or not re.match(r"/|[a-z0-9]+://", str(source)):
        raise CommandExecutionError(
            "python must be a path, a command, a version, or source and source_hash of the bundle "
            f"of an interpreter: {python!r}"
        )
    digests = _digests(source_hash) or _known_digests(source, source_hash, saltenv)
    wanted = core.PythonBundle(source, digests, source)
    if place is not None:
        wanted.require_trust(as_root)
    if not fetch or (place is not None and place.find(digests) is not None):
        yield wanted
        return
    with _at_hand(source, saltenv) as file:
        yield core.PythonBundle(file, digests, source)


@contextmanager
def _beside(archive: str, saltenv: str, name: str) -> Iterator[tuple[str, str | None]]:
    """Where the file of a name is beside an archive, and that file; None where there is none.

    Args:
        archive: its path or URL; what follows a question mark, such as a `saltenv`, is kept.
        saltenv: the environment of a `salt://` archive.
        name: the file's.
    """
    path, mark, query = archive.partition("?") if "://" in archive else (archive, "", "")
    where = f"{path.rpartition('/')[0]}/{name}{mark}{query}"
    with ExitStack() as stack:
        file: str | None = None
        try:
            file = stack.enter_context(_at_hand(where, saltenv))
        except _NoSuchFile as error:
            log.info("%s is not there: %s", where, error)
        except SaltException as error:
            raise CommandExecutionError(
                f"cannot deploy {archive}, as it was built on the Python of {name}: {error}, or "
                "give python"
            ) from error
        yield where, file if file and os.path.isfile(file) else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _line(event: dict[str, Any]) -> str:
    """An event as one line."""
    facts = {
        "from": event.get("previous"),
        "by": event.get("link"),
        "schema": event.get("schema"),
        "before": event.get("before"),
        "after": event.get("after"),
        "reason": event.get("reason"),
        "source": event.get("source"),
        "job": event.get("job"),
    }
    more = ", ".join(f"{key} {value}" for key, value in facts.items() if value)
    what = event["event"].replace("_", " ")
    return f"{event['time']} {what} {event['release']}{f' ({more})' if more else ''}"


def _printable(value: Any) -> Any:
    """`value` with escapes for bytes that are no UTF-8: Salt's transport cannot carry them."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _printable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_printable(inner) for inner in value]
    return value


# --- reporting ------------------------------------------------------------------------------------


def _job() -> str:
    """Salt's id of the job that this process works on; "" where it works on none."""
    directory = os.path.join(__opts__["cachedir"], "proc")
    with suppress(OSError):
        for name in sorted(os.listdir(directory), reverse=True):
            with suppress(Exception):  # another job's file, which has just been removed
                with open(os.path.join(directory, name), "rb") as file:
                    data = salt.payload.loads(file.read())
                if data["pid"] in (os.getpid(), os.getppid()):
                    return str(data["jid"])
    return ""


@contextmanager
def _reporting(path: str) -> Iterator[tuple[str, Callable[[str, dict[str, Any]], None]]]:
    """The job's id, and what reports each step on `path` to the log and the event bus.

    Events have the tag ``virtualenv_tools/<step>``. Of short work only the end is sent.
    """
    job = _job()
    begun = sent = time.monotonic()

    def notify(step: str, facts: dict[str, Any]) -> None:
        nonlocal sent
        now = time.monotonic()
        if step in ("unpacking", "packing") and now - sent < _PROGRESS_SECONDS:
            return
        words = ", ".join(f"{key} {value}" for key, value in facts.items() if value is not None)
        log.info("%s: %s (%s), job %s", path, step, words, job or "unknown")
        if now - begun > _LONG_SECONDS or step in _ALWAYS_SENT:
            sent = now
            _send(step.replace(" ", "_"), {"path": path, "job": job, **facts})

    yield job, notify


def _send(step: str, facts: dict[str, Any]) -> None:
    """Send an event to the master's bus; a masterless minion has none."""
    if __opts__.get("file_client") == "local" and not __opts__.get("use_master_when_local"):
        return
    with suppress(Exception):  # no reason to stop a deploy
        __salt__["event.send"](f"virtualenv_tools/{step}", _printable(facts))


# --- the core -------------------------------------------------------------------------------------


@contextmanager
def _core() -> Iterator[Any]:
    """The core, with its errors made Salt's: one sentence, and the cause for the log."""
    core = _load_core()
    try:
        yield core
    except core.RelocateError as error:
        raise CommandExecutionError(_printable(str(error))) from error
    except SaltException:
        raise
    except Exception as error:
        log.exception("Unexpected error in %s", core.__name__)
        now = _core_directory()
        if now is None or _core_name(now) != core.__name__:
            raise CommandExecutionError(
                "a sync replaced relocate_core while this job ran: run the job again"
            ) from error
        raise CommandExecutionError(
            f"unexpected {type(error).__name__}: {_printable(str(error))}; this is a bug: please "
            "report it with the traceback in the minion's log"
        ) from error


def _core_directory() -> str | None:
    """The core that came with this file: beside a synced module, in a checkout, or installed.

    Not simply `import relocate_core`: an installed core would shadow a newer synced one.
    """
    above = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for directory in (os.path.join(above, "utils", _CORE), os.path.join(above, _CORE)):
        if os.path.isfile(os.path.join(directory, "__init__.py")):
            return directory
    spec = importlib.util.find_spec(_CORE)
    if spec is not None and spec.submodule_search_locations:
        return next(iter(spec.submodule_search_locations))
    return None


def _load_core() -> ModuleType:
    """The core as it is on disk now, under a name that carries a hash of its place and sources.

    A minion goes on running while a sync replaces the core; under one fixed name Python would go on
    using the old one. Older cores stay loaded, as a job may still be running on them. The place is
    part of the name as modules are imported when they are first used: of two equal cores, as proxy
    minions in one process have them, one may be removed.
    """
    directory = _core_directory()
    if directory is None:
        raise CommandExecutionError("relocate_core is missing: run saltutil.sync_all")
    name = _core_name(directory)
    with _loading:
        module = sys.modules.get(name)
        if module is None:
            spec = importlib.util.spec_from_file_location(
                name, os.path.join(directory, "__init__.py"), submodule_search_locations=[directory]
            )
            if spec is None or spec.loader is None:
                raise CommandExecutionError(f"relocate_core cannot be loaded from {directory}")
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                for loaded in [key for key in sys.modules if key.split(".")[0] == name]:
                    del sys.modules[loaded]
                raise
            log.debug("Loaded %s from %s", name, directory)
    return module


def _core_name(directory: str) -> str:
    """What the core there is called in this process."""
    digest = hashlib.sha256(os.fsencode(directory) + b"\n")
    for parent, directories, names in os.walk(directory):
        directories[:] = sorted(set(directories) - {"__pycache__"})
        for name in sorted(names):
            if name.endswith(".py"):
                with open(os.path.join(parent, name), "rb") as file:
                    content = file.read()
                digest.update(
                    f"{os.path.relpath(parent, directory)}/{name} {len(content)}\n".encode()
                )
                digest.update(content)
    return f"{_CORE}_{digest.hexdigest()[:16]}"
