"""
The programs of a release: running on the active one, under supervisor or systemd; and web servers
with its configuration.

The formula ``releases`` starts programs so that they stay on the release that they were started
from. Whether one has to be restarted is therefore decided by the process, and not by what else
happened in this run: where a highstate was killed between the switch and the restart, the next one
restarts it.

.. code-block:: yaml

    shop runs:
      release_programs.running:
        - link: /srv/shop/current
        - manager: supervisor
        - programs:
          - unit: shop:web
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from salt.exceptions import CommandExecutionError, SaltException

if TYPE_CHECKING:
    from salt_dunders import __opts__, __salt__, __states__

__virtualname__ = "release_programs"

# How long a program may take until it counts as running, and how often that is asked.
_START_SECONDS = 60.0
_PAUSE = 0.2
# How long a service of systemd must last until it counts as running, as `startsecs` of supervisor.
_LASTING = 2.0
_LEAVING = 30.0
_GOOD = ("RUNNING", "active")
# The first line of each file that the formula writes: its app, and the environment of the pillar.
_MARK = re.compile(r"[;#] (\S+): written by Salt, by the formula releases \((\S+)\)\.")
# What its files are called, by what reads them.
_FILES = {
    "supervisor": r"\.(conf|ini)",
    "systemd": r"-.+\.(service|socket|env)",
    "nginx": r"\.conf",
    "apache": r"\.conf",
}
# What Linux writes behind the path of a program that was removed since it was started.
_DELETED = " (deleted)"
_PYTHON = re.compile(r"python[\d.]*t?\Z")
_ON_THE_WAY = ("STARTING", "STOPPING", "BACKOFF", "activating", "deactivating", "reloading")


def __virtual__() -> str | tuple[bool, str]:  # noqa: N807
    if os.path.isdir("/proc/self"):
        return __virtualname__
    return False, "release_programs: needs /proc to see what a program runs on"


def running(
    name: str,
    link: str,
    programs: list[dict[str, Any]] | None = None,
    manager: str = "supervisor",
    command: str | None = None,
    scripts: list[str] | None = None,
    app: str | None = None,
) -> dict[str, Any]:
    """
    Have programs run, on the active release and with their present configuration.

    One that runs on another release, or on the Python that the release was on before, is restarted.
    One with a socket is restarted without a gap:
    supervisor has two of it and takes them one after the other, systemd holds the socket itself.

    name
        Any name.

    link
        The link to the active release.

    programs
        A list of dictionaries: ``unit`` (its name in the manager: ``shop:web``, or
        ``shop-web.service``), and where wanted ``socket`` and ``reload`` (the signal that
        :py:func:`reloaded` sends).

    manager
        ``supervisor`` or ``systemd``.

    command
        Its client: ``supervisorctl`` or ``systemctl`` by default, with options as in
        ``supervisorctl -c /etc/supervisord.conf``.

    scripts
        WSGI scripts of Apache's: to be touched where the link is newer, so that mod_wsgi reloads
        them.

    app
        The name of the app. Supervisor's processes of that app that are not among ``programs`` are
        stopped, once the configuration no longer has them.

    .. code-block:: yaml

        shop runs:
          release_programs.running:
            - link: /srv/shop/current
            - manager: systemd
            - programs:
              - unit: shop-web.service
                socket: 127.0.0.1:8000
    """
    ret = _new(name)
    try:
        return _have_running(
            ret, link, _manager(manager, command, programs, app), scripts or [], False
        )
    except SaltException as error:
        return _with(ret, False, _sentence(error))


def reloaded(
    name: str,
    link: str,
    programs: list[dict[str, Any]] | None = None,
    manager: str = "supervisor",
    command: str | None = None,
    scripts: list[str] | None = None,
    app: str | None = None,
) -> dict[str, Any]:
    """
    Have programs read their settings again: by a signal where that is enough, else by a restart.

    A signal is enough where a program has one as ``reload`` and runs on the active release. On
    another one it would stay there - gunicorn's master does, whatever it is sent - so it is
    restarted.

    name, link, programs, manager, command, scripts, app
        As for :py:func:`running`.

    .. code-block:: yaml

        shop is reloaded:
          release_programs.reloaded:
            - link: /srv/shop/current
            - programs:
              - unit: shop:web
                reload: HUP
    """
    ret = _new(name)
    try:
        return _have_running(
            ret, link, _manager(manager, command, programs, app), scripts or [], True
        )
    except SaltException as error:
        return _with(ret, False, _sentence(error))


def dead(
    name: str,
    programs: list[dict[str, Any]] | None = None,
    manager: str = "supervisor",
    command: str | None = None,
    **_: Any,
) -> dict[str, Any]:
    """
    Have programs stopped, and not started again with the machine.

    name, programs, manager, command
        As for :py:func:`running`.

    .. code-block:: yaml

        shop is stopped:
          release_programs.dead:
            - manager: systemd
            - programs:
              - unit: shop-web.service
    """
    ret = _new(name)
    try:
        asked = _manager(manager, command, programs)
        up = [one for one in asked.look() if one.state in (*_GOOD, *_ON_THE_WAY) or one.known]
        if not up:
            return _with(ret, True, "None of the programs runs.")
        ret["changes"] = {"stopped": sorted({one.unit for one in up})}
        if __opts__["test"]:
            return _with(ret, None, f"Would be stopped: {_names(up)}.")
        asked.stop()
        return _with(ret, True, f"Stopped: {_names(up)}.")
    except SaltException as error:
        return _with(ret, False, _sentence(error))


def retired(
    name: str,
    files: list[str],
    servers: dict[str, dict[str, Any]],
    apps: list[str] | None = None,
    pillarenv: str = "base",
) -> dict[str, Any]:
    """
    Have stopped and removed what the formula created and is no longer in the pillar.

    Such a program or app would go on running on an old release. Files of the formula are found by
    their first line, in the directories of the process managers and the web servers; only those of
    an app or a program that is not wanted are removed. Releases and shared data stay: they are
    removed by ``releases.clean``, while the app is still in the pillar.

    name
        Any name.

    files
        Paths of the files that are wanted.

    servers
        Settings by process manager and web server: ``conf_dir``, and ``command`` or
        ``reload_command``.

    apps
        Only look at files of these apps.

    pillarenv
        Only look at files that were written with the pillar of this environment.

    .. code-block:: yaml

        programs that are no longer in the pillar are stopped:
          release_programs.retired:
            - files: [/etc/supervisor/conf.d/shop.conf]
            - servers:
                supervisor:
                  conf_dir: /etc/supervisor/conf.d
                  command: supervisorctl
    """
    ret = _new(name)
    try:
        for server, settings in servers.items():
            left = _left_over(server, settings["conf_dir"], files, pillarenv)
            found = [path for app, path in left if apps is None or app in apps]
            if found:
                _retire(ret["changes"], server, settings, found)
    except SaltException as error:
        return _with(ret, False, _sentence(error))
    if not ret["changes"]:
        return _with(ret, True, "All that the formula created is in the pillar.")
    done = "; ".join(f"{key}: {', '.join(what)}" for key, what in ret["changes"].items())
    if __opts__["test"]:
        return _with(ret, None, _sentence(f"would be {done}"))
    return _with(ret, True, _sentence(done))


def config_loaded(
    name: str,
    files: list[str],
    command: str,
    left: str | None = None,
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Have a web server load its configuration.

    What it has loaded is recorded on the minion, so that a server that did not get it, as the run
    was killed, loads it in the next run.

    name
        Any name.

    files
        Paths of the files that it reads.

    command
        A shell command that has the server load them, and fails where it refuses them.

    left
        A directory: wait until no process has its working directory in it, for 30 seconds at most.
        Apache's reload returns before the processes that it no longer needs have ended.

    config
        Arguments of :py:func:`file.managed <salt.states.file.managed>`, which writes the first of
        the files. Where the server refuses it, the previous file is restored: else the server would
        not start again, for any of its sites.

    .. code-block:: yaml

        shop is loaded by nginx:
          release_programs.config_loaded:
            - command: nginx -t && systemctl reload-or-restart nginx
            - files: [/etc/nginx/conf.d/shop.conf]
            - config:
                source: salt://shop/nginx.conf.jinja
                template: jinja
    """
    ret = _new(name)
    before = _saved(files[0]) if config else None
    if config:
        written = __states__["file.managed"](name=files[0], **config)
        if written["result"] is False:
            return {**written, "name": name}
        if written["changes"]:
            loaded = _load(ret, files, command, left)
            if loaded["result"] is False:
                _restore(files[0], before)
                why = loaded["comment"].rstrip(".")
                now = "has its previous content again" if before else "was removed again"
                return _with(loaded, False, f"{why}. {files[0]} {now}.")
            loaded["changes"] = {**written["changes"], **loaded["changes"]}
            return loaded
    if (__salt__["data.get"](_record(files)) or "") == _digest(files):
        return _with(ret, True, "Nothing has changed.")
    return _load(ret, files, command, left)


def mod_watch(name: str, sfun: str | None = None, **kwargs: Any) -> dict[str, Any]:
    """
    What a ``watch`` calls when what is watched has changed: a restart.

    .. note::
        Not to be called directly.

    .. code-block:: yaml

        shop runs:
          release_programs.running:
            - link: /srv/shop/current
            - programs:
              - unit: shop:web
            - watch:
              - file: /srv/shop/shared/local_settings.py
    """
    known = ("link", "programs", "manager", "command", "scripts", "app")
    given = {key: value for key, value in kwargs.items() if key in known}
    if sfun == "dead":
        return dead(name, **given)
    if sfun == "retired":
        wanted = ("files", "servers", "apps", "pillarenv")
        return retired(name, **{key: kwargs[key] for key in wanted if key in kwargs})
    if sfun == "config_loaded":
        return _load(_new(name), kwargs["files"], kwargs["command"], kwargs.get("left"))
    given["programs"] = [{**one, "reload": None} for one in given.get("programs") or []]
    return reloaded(name, **given)


# --- answers --------------------------------------------------------------------------------------


def _new(name: str) -> dict[str, Any]:
    return {"name": name, "changes": {}, "result": False, "comment": ""}


def _with(ret: dict[str, Any], result: bool | None, comment: str) -> dict[str, Any]:
    ret["result"] = result
    ret["comment"] = comment
    return ret


def _sentence(error: object) -> str:
    text = " ".join(str(error).split())
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _have_running(
    ret: dict[str, Any], link: str, manager: _Manager, scripts: list[str], again: bool
) -> dict[str, Any]:
    active = os.path.realpath(link)
    release = os.path.basename(active)
    test = __opts__["test"]
    if not os.path.isdir(active) and not test:
        raise CommandExecutionError(f"{link} points to no release: activate one")
    if test and not manager.is_installed():
        units = [one["unit"] for one in manager.programs]
        ret["changes"] = {"started": units}
        return _with(
            ret,
            None,
            f"Would be started: {', '.join(units)}, once {manager.command[0]} is installed.",
        )
    changes: dict[str, list[str]] = {}
    for one in manager.surplus():
        changes.setdefault("stopped", []).append(one.unit)
    if not test:
        for unit in manager.update():
            changes.setdefault("configured", []).append(unit)
    for script in scripts:
        if os.path.lexists(link) and (again or _is_older(script, link)):
            changes.setdefault("touched", []).append(script)
            if not test:
                __salt__["file.touch"](script)
    for one in manager.look():
        what = _what(one, active, again)
        if what is None or one.unit in changes.get("configured", ()):
            continue
        changes.setdefault(what, []).append(one.unit)
        if not test:
            manager.act(what, one)
    ret["changes"] = {key: list(dict.fromkeys(units)) for key, units in changes.items()}
    done = "; ".join(f"{key}: {', '.join(units)}" for key, units in ret["changes"].items())
    if test:
        if not changes:
            return _with(ret, True, f"All programs run on {release}.")
        return _with(ret, None, _sentence(f"would be {done}"))
    now = manager.settled()
    failed = {
        one.unit: f"is {one.state.lower()}{one.more}" for one in now if one.state not in _GOOD
    }
    for one in now:
        if _is_elsewhere(one.pid, active):
            failed.setdefault(one.unit, "still runs on another release or Python")
    if failed:
        what = ", ".join(f"{unit} {state}" for unit, state in failed.items())
        return _with(
            ret, False, _sentence(f"on {release}, {what}; see `{manager.log(min(failed))}`")
        )
    return _with(ret, True, _sentence(done or f"all programs run on {release}"))


def _load(ret: dict[str, Any], files: list[str], command: str, left: str | None) -> dict[str, Any]:
    now = _digest(files)
    ret["changes"] = {"loaded": command}
    if __opts__["test"]:
        return _with(ret, None, f"Would be run: `{command}`.")
    done = _shell(command)
    if done["retcode"]:
        ret["changes"] = {}
        return _with(ret, False, _sentence(f"`{command}` failed: {done['stdout'] or 'no answer'}"))
    __salt__["data.update"](_record(files), now)
    until = time.monotonic() + _LEAVING
    while left and _is_worked_in(left) and time.monotonic() < until:
        time.sleep(_PAUSE)
    return _with(ret, True, f"Loaded by `{command}`.")


def _shell(command: str) -> dict[str, Any]:
    return dict(
        __salt__["cmd.run_all"](
            command, python_shell=True, ignore_retcode=True, redirect_stderr=True
        )
    )


def _is_worked_in(directory: str) -> bool:
    """Whether a process has its working directory below one."""
    for process in os.listdir("/proc"):
        with suppress(OSError):
            if os.readlink(f"/proc/{process}/cwd").startswith(f"{directory}/"):
                return True
    return False


def _record(files: list[str]) -> str:
    """The key of the minion's data store for the content of files that was loaded."""
    return f"release_programs: {', '.join(sorted(files))}"


def _digest(files: list[str]) -> str:
    """A digest of the content of files; empty if none of them exists."""
    found = {}
    for path in files:
        with suppress(FileNotFoundError), open(path, "rb") as file:
            found[path] = file.read()
    return hashlib.sha256(repr(found).encode()).hexdigest() if found else ""


def _what(one: _Process, active: str, again: bool) -> str | None:
    """What is to be done with a process."""
    if one.state not in (*_GOOD, *_ON_THE_WAY):
        return "started"
    stale = one.outdated or _is_elsewhere(one.pid, active)
    if again and one.reload and not stale:
        return "reloaded"
    return "restarted" if stale or again else None


def _is_elsewhere(pid: int, active: str) -> bool:
    """Whether a process was started from another release, or on another Python."""
    try:
        cwd = os.readlink(f"/proc/{pid}/cwd")
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            program = os.fsdecode(file.read().split(b"\0")[0])
    except OSError:  # it has just ended, or is not ours to look at
        return False
    root = os.path.dirname(active)
    ours = [path for path in (cwd, program) if path.startswith(f"{root}/")]
    if any(not f"{path}/".startswith(f"{active}/") for path in ours):
        return True
    started = os.path.join(cwd, program) if "/" in program else program
    return bool(ours) and _is_on_another_python(pid, started, active)


def _is_on_another_python(pid: int, program: str, active: str) -> bool:
    """Whether a process of a release was started on a Python that the release was on before.

    One that some other Python of the machine runs is none of ours: it counts where it was started
    as the release's own Python, has given itself a title since, or is an interpreter that releases
    share.
    """
    try:
        runs_on = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False
    runs_on = runs_on.removesuffix(_DELETED)
    shared = os.path.join(os.path.dirname(os.path.dirname(active)), "pythons", "")
    titled = program[:1] != "/" and ":" in program  # as by setproctitle: `gunicorn: master [shop]`
    own = titled or os.path.dirname(program) == os.path.join(active, "bin")
    if not ((own and _PYTHON.match(os.path.basename(runs_on))) or runs_on.startswith(shared)):
        return False
    return runs_on != os.path.realpath(os.path.join(active, "bin", "python"))


def _is_older(script: str, link: str) -> bool:
    try:
        return os.stat(script).st_mtime < os.lstat(link).st_mtime
    except FileNotFoundError:
        return False


def _names(processes: list[_Process]) -> str:
    return ", ".join(dict.fromkeys(one.unit for one in processes))


# --- files of the formula -------------------------------------------------------------------------


class _Saved(NamedTuple):
    """A file as it was."""

    content: bytes
    mode: int
    owner: int
    group: int


def _saved(path: str) -> _Saved | None:
    """A file's content and attributes; None where there is none."""
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            return _Saved(file.read(), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)
    except FileNotFoundError:
        return None


def _restore(path: str, saved: _Saved | None) -> None:
    """Have a file as it was: by a rename, so that no server ever reads a part of it."""
    if saved is None:
        with suppress(FileNotFoundError):
            os.unlink(path)
        return
    beside = f"{path}.restored-by-salt"
    with suppress(FileNotFoundError):
        os.unlink(beside)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(saved.content)
        os.fchown(descriptor, saved.owner, saved.group)
        os.fchmod(descriptor, saved.mode)
    os.replace(beside, path)


def _left_over(
    server: str, directory: str, files: list[str], pillarenv: str
) -> Iterator[tuple[str, str]]:
    """App and path of the formula's files that are not wanted: by first line and name."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            if entry.path in files or not entry.is_file(follow_symlinks=False):
                continue
            with open(entry.path, encoding="utf-8", errors="replace") as file:
                match = _MARK.match(file.readline())
            if match is None or match[2] != pillarenv:
                continue
            if re.fullmatch(re.escape(match[1]) + _FILES[server], entry.name):
                yield match[1], entry.path


def _retire(
    changes: dict[str, list[str]], server: str, settings: Mapping[str, Any], files: list[str]
) -> None:
    """Stop what files of the formula configure, and remove them."""
    if server in ("supervisor", "systemd"):
        manager = _manager(server, settings.get("command"), [{"unit": files[0]}])
        if not manager.is_installed():  # nothing can run under it
            _removed(changes, files)
        elif isinstance(manager, _Supervisor):
            _retire_groups(changes, manager, files)
        else:
            _retire_units(changes, manager, files)
        return
    scripts = [script for file in files for script in _scripts(file)]
    command = str(settings["reload_command"])
    saved = {file: _saved(file) for file in files}
    _removed(changes, files)
    changes.setdefault("loaded", []).append(command)
    if not __opts__["test"]:
        done = _shell(command)
        if done["retcode"]:
            _put_back(saved)
            raise CommandExecutionError(
                f"`{command}` failed: {done['stdout'] or 'no answer'}. The files are as before"
            )
    _removed(changes, scripts)


def _retire_groups(changes: dict[str, list[str]], manager: _Supervisor, files: list[str]) -> None:
    saved = {file: _saved(file) for file in files}
    text = "\n".join(one.content.decode(errors="replace") for one in saved.values() if one)
    groups = re.findall(r"^\[(?:group|program|fcgi-program):([^\]]+)\]", text, re.M)
    _removed(changes, files)
    try:
        stopped = manager.retire(groups)
    except SaltException:
        _put_back(saved)
        raise
    if stopped:
        changes.setdefault("stopped", []).extend(stopped)


def _retire_units(changes: dict[str, list[str]], manager: _Manager, files: list[str]) -> None:
    units = [os.path.basename(file) for file in files if not file.endswith(".env")]
    if units:
        changes.setdefault("stopped", []).extend(units)
        if not __opts__["test"] and isinstance(manager, _Systemd):
            manager.retire(sorted(units, key=lambda unit: unit.endswith(".service")))
    _removed(changes, files)
    if not __opts__["test"]:
        manager.run("daemon-reload")


def _removed(changes: dict[str, list[str]], files: list[str]) -> None:
    """Remove files, and record it."""
    if files:
        changes.setdefault("removed", []).extend(files)
    if not __opts__["test"]:
        for file in files:
            _restore(file, None)


def _put_back(saved: Mapping[str, _Saved | None]) -> None:
    for file, content in saved.items():
        _restore(file, content)


def _scripts(file: str) -> list[str]:
    """The WSGI scripts of the formula that a configuration of Apache's refers to."""
    saved = _saved(file)
    text = saved.content.decode(errors="replace") if saved else ""
    found = []
    for script in re.findall(r"^\s*WSGIScriptAlias / (/\S+\.wsgi) ", text, re.M):
        with suppress(OSError), open(script, encoding="utf-8", errors="replace") as opened:
            if _MARK.match(opened.readline()):
                found.append(script)
    return found


# --- process managers -----------------------------------------------------------------------------


class _Process(NamedTuple):
    """A process, as its manager describes it."""

    unit: str
    state: str
    pid: int = 0
    more: str = ""
    reload: str | None = None
    outdated: bool = False
    known: bool = True


def _manager(
    kind: str,
    command: str | None,
    programs: list[dict[str, Any]] | None,
    app: str | None = None,
) -> _Manager:
    managers = {"supervisor": _Supervisor, "systemd": _Systemd}
    if kind not in managers:
        raise CommandExecutionError(f"the manager must be supervisor or systemd: {kind}")
    given = [dict(one) for one in programs or []]
    if not all(isinstance(one.get("unit"), str) for one in given):
        raise CommandExecutionError("each of the programs needs a unit")
    return managers[kind](command, given, app)


class _Manager:
    """A process manager, and the programs that are looked after."""

    default = ""

    def __init__(
        self, command: str | None, programs: list[dict[str, Any]], app: str | None = None
    ) -> None:
        self.command = shlex.split(command or self.default)
        self.programs = programs
        self.app = app

    def is_installed(self) -> bool:
        """Whether the manager's client exists; a manager without programs needs none."""
        return not self.programs or shutil.which(self.command[0]) is not None

    def run(self, *words: str, fine: tuple[int, ...] | None = (0,)) -> str:
        """The output of the manager's client; raises for exit codes but `fine`, or None for all."""
        done = __salt__["cmd.run_all"](
            [*self.command, *words], python_shell=False, ignore_retcode=True, redirect_stderr=True
        )
        output = str(done["stdout"]).strip()
        if fine is not None and (done["retcode"] not in fine or "ERROR (" in output):
            lines = [line for line in output.splitlines() if line.strip()]
            errors = [line for line in lines if "ERROR" in line] or lines or ["no answer"]
            raise CommandExecutionError(f"`{shlex.join([*self.command, *words])}`: {errors[-1]}")
        return output

    def log(self, unit: str) -> str:
        """The command that shows a unit's log."""
        raise NotImplementedError

    def look(self) -> list[_Process]:
        """The processes as they are."""
        raise NotImplementedError

    def surplus(self) -> list[_Process]:
        """Processes of the app that are not among its programs; those go with an update."""
        return []

    def update(self) -> list[str]:
        """Let changed configuration be in force; which units were started again by that."""
        raise NotImplementedError

    def act(self, what: str, process: _Process) -> None:
        """Have a process started, restarted or reloaded."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop all of it."""
        raise NotImplementedError

    def settled(self) -> list[_Process]:
        """The processes, when none is on the way any more."""
        until = time.monotonic() + _START_SECONDS
        while True:
            now = self.look()
            if not any(one.state in _ON_THE_WAY for one in now) or time.monotonic() > until:
                return now
            time.sleep(_PAUSE)


class _Supervisor(_Manager):
    default = "supervisorctl"

    def log(self, unit: str) -> str:
        return shlex.join([*self.command, "tail", unit])

    def look(self) -> list[_Process]:
        if not self.programs:
            return []
        found = []
        lines = self._status()
        for program in self.programs:
            unit = program["unit"]
            own = [one for one in lines if _named(one[0], unit)]
            for full, state, pid, more in own:
                why = f" ({more})" if more and not pid else ""
                found.append(_Process(full, state, int(pid or 0), why, program.get("reload")))
            if not own:
                found.append(_Process(unit, "UNKNOWN", known=False))
        return found

    def _status(self) -> list[tuple[str, str, str, str]]:
        """Name, state, process ID and the rest, of each process that it knows."""
        output = self.run("status", fine=(0, 3))  # 3: not everything runs
        return re.findall(r"^(\S+)[ \t]+([A-Z]+)[ \t]*(?:pid (\d+), )?(.*)$", output, re.M)

    def surplus(self) -> list[_Process]:
        if not self.programs or not self.app:
            return []
        return [
            _Process(full, state, int(pid or 0))
            for full, state, pid, _ in self._status()
            if _is_of(self.app, full)
            and not any(_named(full, one["unit"]) for one in self.programs)
        ]

    def retire(self, groups: list[str]) -> list[str]:
        """Stop groups that the configuration no longer has; the processes that were stopped."""
        known = [one[0] for one in self._status() if one[0].split(":")[0] in groups]
        if known and not __opts__["test"]:
            self.run("update", *dict.fromkeys(one.split(":")[0] for one in known))
        return known

    def update(self) -> list[str]:
        if not self.programs:
            return []
        surplus = [one.unit.split(":")[0] for one in self.surplus()]
        output = self.run("update", *dict.fromkeys([*self._groups(), *surplus]))
        groups = re.findall(r"^(\S+): (?:added|updated) process group$", output, re.M)
        return [one.unit for one in self.look() if one.unit.split(":")[0] in groups]

    def act(self, what: str, process: _Process) -> None:
        if what == "reloaded":
            self.run("signal", str(process.reload), process.unit)
        elif what == "restarted":
            self.run("restart", process.unit, fine=None)  # its state shows why it failed
        elif process.known:
            self.run("start", process.unit, fine=None)

    def stop(self) -> None:
        known = [one.unit.split(":")[0] for one in self.look() if one.known]
        groups = list(dict.fromkeys(known))
        self.run("stop", *(f"{group}:*" for group in groups))
        self.run("remove", *groups)

    def _groups(self) -> list[str]:
        return list(dict.fromkeys(one["unit"].split(":")[0] for one in self.programs))


def _named(full: str, unit: str) -> bool:
    """Whether a process of supervisor's is the unit `shop:web`, or one of `shop-web:*`."""
    return full == unit or (unit.endswith(":*") and full.split(":", maxsplit=1)[0] == unit[:-2])


def _is_of(app: str, full: str) -> bool:
    """Whether a process of supervisor's is an app's, by the names that the formula gives."""
    group, _, process = full.partition(":")
    return group == app or bool(
        group.startswith(f"{app}-")
        and re.fullmatch(rf"{re.escape(group[len(app) + 1 :])}\d+", process)
    )


class _Systemd(_Manager):
    default = "systemctl"

    def log(self, unit: str) -> str:
        return f"journalctl -u {unit}"

    def look(self) -> list[_Process]:
        return [self._look(one) for one in self.programs]

    def _look(self, program: Mapping[str, Any]) -> _Process:
        facts = self._facts(program["unit"])
        state, result = facts.get("ActiveState", "inactive"), facts.get("Result", "success")
        started = _seconds(facts, "ExecMainStartTimestampMonotonic")
        if state == "active" and time.monotonic() - started < _LASTING:
            state = "activating"
        return _Process(
            program["unit"],
            state,
            int(facts.get("MainPID") or 0),
            f" ({result})" if result != "success" else "",
            program.get("reload"),
            _is_newer(facts, started) or self._is_to_be_opened(program["unit"]),
            facts.get("LoadState") != "not-found",
        )

    def _facts(self, unit: str) -> dict[str, str]:
        wanted = (
            "LoadState,ActiveState,MainPID,Result,NeedDaemonReload,UnitFileState,FragmentPath,"
            "DropInPaths,EnvironmentFiles,ExecMainStartTimestampMonotonic,"
            "ActiveEnterTimestampMonotonic"
        )
        output = self.run("show", f"--property={wanted}", unit)
        return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)

    def update(self) -> list[str]:
        units = list(self._units())
        facts = {unit: self._facts(unit) for unit in units}
        if any(
            one.get("NeedDaemonReload") == "yes" or one.get("LoadState") == "not-found"
            for one in facts.values()
        ):
            self.run("daemon-reload")
        off = [unit for unit, one in facts.items() if one.get("UnitFileState") != "enabled"]
        if off:
            self.run("enable", *off)
        return []

    def act(self, what: str, process: _Process) -> None:
        unit = process.unit
        if what == "reloaded":
            self.run("reload", unit)
            return
        # What has failed too often is not started again; its state shows why it fails now.
        self.run("reset-failed", unit, fine=None)
        if self._is_to_be_opened(unit):  # which systemd refuses while its service runs
            self.run("stop", unit, fine=None)
            self.run("restart", _socket(unit))
        self.run("restart", unit, fine=None)

    def _is_to_be_opened(self, unit: str) -> bool:
        """Whether the socket of a service is closed, or is not the one of its file."""
        if not any(one["unit"] == unit and one.get("socket") for one in self.programs):
            return False
        facts = self._facts(_socket(unit))
        opened = _seconds(facts, "ActiveEnterTimestampMonotonic")
        return facts.get("ActiveState") != "active" or _is_newer(facts, opened)

    def stop(self) -> None:
        self.retire(list(self._units()))

    def retire(self, units: list[str]) -> None:
        """Stop units, before their files are removed."""
        self.run("disable", "--now", *units)
        self.run("reset-failed", *units, fine=None)

    def _units(self) -> Iterator[str]:
        for one in self.programs:
            if one.get("socket"):
                yield _socket(one["unit"])
            yield one["unit"]


def _socket(unit: str) -> str:
    return unit.replace(".service", ".socket")


def _seconds(facts: Mapping[str, str], key: str) -> float:
    """A time that systemd reports, in seconds since the boot."""
    return int(facts.get(key) or 0) / 1e6


def _is_newer(facts: Mapping[str, str], since: float) -> bool:
    """Whether one of the files of a unit was changed after a time, in seconds since the boot."""
    named = ("FragmentPath", "DropInPaths", "EnvironmentFiles")
    files = re.findall(r"/\S+", " ".join(facts.get(key, "") for key in named))
    booted = time.time() - time.monotonic()
    return bool(since) and any(_changed(file) > booted + since for file in files)


def _changed(file: str) -> float:
    try:
        return os.stat(file).st_mtime
    except OSError:
        return 0
