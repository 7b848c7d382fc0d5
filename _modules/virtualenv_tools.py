"""
Relocate Python virtualenvs: compile once, deploy wherever.

A virtualenv that was built on one machine and carried to another names its old place in thousands
of files. :py:func:`update_path` makes it at home where it stands, :py:func:`reinitialize` puts it
onto this machine's own Python, :py:func:`check` tells whether it can run, and :py:func:`info` what
it is.

The work is done by ``relocate_core``, which comes along with ``saltutil.sync_all`` (from
``_utils/relocate_core``) or with the installed package; nothing else is needed on the minion.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from salt.exceptions import CommandExecutionError

log = logging.getLogger(__name__)

__virtualname__ = "virtualenv_tools"

_CORE = "relocate_core"
_loading = threading.Lock()


def __virtual__() -> str | tuple[bool, str]:  # noqa: N807
    if sys.platform == "win32":
        return False, "virtualenv_tools: virtualenvs cannot be relocated on Windows"
    if _core_folder() is None:
        return False, (
            "virtualenv_tools: relocate_core is missing: run saltutil.sync_all, or install the "
            "package saltext-virtualenv-tools into Salt's Python"
        )
    return __virtualname__


def update_path(
    path: str, new_path: str = "auto", old_path: str | None = None, test: bool | None = None
) -> dict[str, Any]:
    """
    Make a virtualenv at home: every file in it that names its old path names the new one.

    Nothing is left half done: a failure puts everything back, and after a kill the same call
    finishes the work. A second call changes nothing and costs next to nothing.

    path
        The virtualenv's folder on the minion, as an absolute path.

    new_path
        The absolute path that its files shall name. ``auto``, the default, is where it stands (for
        a link to it, such as ``current``, the folder behind the link); name another one to prepare
        it for a place that it is going to be carried to.

    old_path
        One more path to look for. Needed only where the virtualenv itself does not tell where it
        was built.

    test
        ``True`` tells what would be done, and does none of it. By default what the minion's
        ``test`` option says.

    Returns a dictionary: ``path``, ``prefix`` (the path that its files name now), ``old_prefixes``
    (what they named before; empty where nothing was to be done), ``changed``, ``dry_run``,
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


def reinitialize(path: str, python: str | None = None, test: bool | None = None) -> dict[str, Any]:
    """
    Put a virtualenv onto a Python of this machine: its links or copies, and ``pyvenv.cfg``.

    That Python has to be of the same X.Y, implementation and ABI as the one that the virtualenv was
    built with; any other is refused, with the compiled modules that would not load. Nothing is
    downloaded, and no package is touched.

    path
        The virtualenv's folder on the minion, as an absolute path.

    python
        An executable, a command on the ``PATH``, or a version like ``3.11``. By default the Python
        that ``pyvenv.cfg`` names if it is there and fits, else the first on the ``PATH`` that fits.

    test
        ``True`` tells what would be done, and does none of it. By default what the minion's
        ``test`` option says.

    Returns a dictionary: ``path``, ``python`` (the executable that it runs on now), ``version``,
    ``old_python`` (where ``bin/python`` led before, or ``None`` for a copy), ``files`` (what was
    written; empty where nothing was to be done), ``changed`` and ``dry_run``.

    Raises ``CommandExecutionError`` for whatever goes wrong; the virtualenv is then as it was
    before.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.reinitialize /srv/app/4f2a9c1
        salt '*' virtualenv_tools.reinitialize /srv/app/4f2a9c1 python=/opt/py/bin/python3.11
    """
    with _core() as core:
        wanted = None if python is None else str(python)
        report = core.reinitialize(_absolute(path), wanted, dry_run=_is_test(test))
        return _printable(report.as_dict())


def info(path: str) -> dict[str, Any]:
    """
    Tell what a virtualenv is. Nothing in it is run or changed.

    path
        The virtualenv's folder on the minion, as an absolute path.

    Returns a dictionary: ``path``, ``prefix`` (the path that its files name), ``old_prefixes`` (all
    of them), ``python`` (X.Y), ``implementation``, ``builder`` (venv, virtualenv or uv),
    ``interpreter`` (where ``bin/python`` leads), ``home``, ``copies``, ``relocatable``,
    ``system_site_packages``, ``prompt``, ``site_packages``, ``packages`` and ``compiled_modules``
    (counts), and ``stays_behind`` (what in it would not travel to another machine).

    Raises ``CommandExecutionError`` where there is no virtualenv, or it cannot be read.

    CLI Example:

    .. code-block:: bash

        salt '*' virtualenv_tools.info /srv/app/current
    """
    with _core() as core:
        return _printable(core.describe(_absolute(path)))


def check(path: str, deep: bool = False) -> dict[str, Any]:
    """
    Tell whether a virtualenv can run where it stands. Nothing is changed.

    Its Python is started once; shebangs, links and ``.pth`` files are followed; references to
    another place are counted. The call's return code is 1 where a problem was found.

    path
        The virtualenv's folder on the minion, as an absolute path.

    deep
        ``True`` compares every installed file with the hash in its package's ``RECORD`` as well.

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


# --- arguments and answers ------------------------------------------------------------------------


def _absolute(path: Any) -> str:
    """A minion has no working folder that means anything to an operator."""
    if not isinstance(path, str) or not path.startswith("/"):
        raise CommandExecutionError(f"the path of a virtualenv must be absolute: {path}")
    return path


def _is_test(test: bool | None) -> bool:
    return bool(__opts__.get("test") if test is None else test)


def _printable(value: Any) -> Any:
    """`value` with escapes for what in file names is no UTF-8: Salt's transport cannot carry it."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _printable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_printable(inner) for inner in value]
    return value


# --- the core -------------------------------------------------------------------------------------


@contextmanager
def _core() -> Iterator[Any]:
    """The core, with its errors made Salt's: one sentence, and the cause for the log."""
    core = _load_core()
    try:
        yield core
    except core.RelocateError as error:
        raise CommandExecutionError(_printable(str(error))) from error
    except Exception as error:
        log.exception("Unexpected error in %s", core.__name__)
        raise CommandExecutionError(
            f"unexpected {type(error).__name__}: {_printable(str(error))}; this is a bug: please "
            "report it with the traceback in the minion's log"
        ) from error


def _core_folder() -> str | None:
    """The core that came with this file: beside a synced module, in a checkout, or installed.

    Not simply `import relocate_core`: an installed core would shadow a newer synced one.
    """
    above = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for folder in (os.path.join(above, "utils", _CORE), os.path.join(above, _CORE)):
        if os.path.isfile(os.path.join(folder, "__init__.py")):
            return folder
    spec = importlib.util.find_spec(_CORE)
    if spec is not None and spec.submodule_search_locations:
        return next(iter(spec.submodule_search_locations))
    return None


def _load_core() -> ModuleType:
    """The core as it is on disk now, under a name that carries its hash.

    A minion lives on while a sync replaces the core; under one fixed name Python would go on using
    the old one. The earlier ones stay loaded, as a job may still be running on them.
    """
    folder = _core_folder()
    if folder is None:
        raise CommandExecutionError("relocate_core is missing: run saltutil.sync_all")
    name = f"{_CORE}_{_fingerprint(folder)}"
    with _loading:
        module = sys.modules.get(name)
        if module is None:
            spec = importlib.util.spec_from_file_location(
                name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
            )
            if spec is None or spec.loader is None:
                raise CommandExecutionError(f"relocate_core cannot be loaded from {folder}")
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                for loaded in [key for key in sys.modules if key.split(".")[0] == name]:
                    del sys.modules[loaded]
                raise
            log.debug("Loaded %s from %s", name, folder)
    return module


def _fingerprint(folder: str) -> str:
    """A hash of the core's sources."""
    digest = hashlib.sha256()
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        for name in sorted(names):
            if name.endswith(".py"):
                with open(os.path.join(parent, name), "rb") as file:
                    content = file.read()
                digest.update(f"{os.path.relpath(parent, folder)}/{name} {len(content)}\n".encode())
                digest.update(content)
    return digest.hexdigest()[:16]
