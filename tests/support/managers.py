"""Process managers for the tests: what `supervisorctl` and `systemctl` do, in a script of its own.

Both read the configuration that is really written, start the programs that stand in it, and keep
what they know in a file. The real supervisord is for the slow tests; systemd runs in no container.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_COMMON = """#!{python} -ES
import configparser, glob, json, os, shlex, signal, subprocess, sys, time

CONFIGS, STATE = {configs!r}, {state!r}
known = json.load(open(STATE)) if os.path.exists(STATE) else {{}}
verb, given = sys.argv[1], sys.argv[2:]

def alive(pid):
    try:
        return open("/proc/%d/stat" % pid).read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

def stop(one):
    if alive(one["pid"]):
        os.kill(one["pid"], signal.SIGTERM)
        while alive(one["pid"]):
            time.sleep(0.01)
    one["pid"] = 0

def start(one):
    if not alive(one["pid"]):
        one["pid"] = subprocess.Popen(
            shlex.split(one["command"].replace("%%", "%")), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        ).pid
        one["since"] = time.monotonic()

with open(STATE + ".calls", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
"""

_SUPERVISORCTL = """
def configured():
    for file in sorted(glob.glob(CONFIGS + "/*.[ci]*")):
        parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"))
        parser.read(file)
        members = {}
        for section in parser.sections():
            if section.startswith("group:"):
                for name in parser.get(section, "programs").split(","):
                    members[name] = section[6:]
        for section in parser.sections():
            kind, _, name = section.partition(":")
            if kind.endswith("program"):
                own = dict(parser.items(section))
                for number in range(int(own.get("numprocs", 1))):
                    process = own["process_name"].replace("%(process_num)d", str(number))
                    group = members.get(name, name)
                    yield group + ":" + process, {"command": own["command"], "text": str(own)}

def meant(unit):
    group, _, name = unit.partition(":")
    found = [key for key in known if key == unit or (name == "*" and key.startswith(group + ":"))]
    if not found:
        print(unit + ": ERROR (no such process)")
    return found

if verb == "status":
    for key, one in known.items():
        print("%-30s %s" % (key, "RUNNING   pid %d, uptime 0:00:01" % one["pid"]
              if alive(one["pid"]) else "STOPPED   Not started"))
elif verb == "update":
    new = {key: one for key, one in configured() if key.split(":")[0] in given}
    changed = [key for key, one in new.items() if known.get(key, {}).get("text") != one["text"]]
    gone = [key for key in known if key.split(":")[0] in given and key not in new]
    for key in gone:
        stop(known[key])
        del known[key]
    groups = {key.split(":")[0] for key in new}
    for group in dict.fromkeys(key.split(":")[0] for key in gone):
        if group not in groups:
            print(group + ": stopped")
            print(group + ": removed process group")
    for group in dict.fromkeys(key.split(":")[0] for key in changed):
        print(group + ": " + ("updated" if group in str(list(known)) else "added")
              + " process group")
    for key in changed:
        if key in known:
            stop(known[key])
        known[key] = {**new[key], "pid": 0}
        start(known[key])
elif verb in ("start", "stop", "restart", "signal"):
    for key in meant(given[-1]):
        if verb == "signal":
            os.kill(known[key]["pid"], getattr(signal, "SIG" + given[0]))
        if verb in ("stop", "restart"):
            stop(known[key])
        if verb in ("start", "restart"):
            start(known[key])
elif verb == "remove":
    for group in given:
        for key in meant(group + ":*"):
            del known[key]
json.dump(known, open(STATE, "w"))
"""

_SYSTEMCTL = """
units = [one for one in given if not one.startswith("-")]

def unit(name):
    return known.setdefault(name, {"pid": 0, "since": 0, "loaded": 0, "enabled": 0, "active": 0})

def path(name):
    return os.path.join(CONFIGS, name)

for name in units:
    one = unit(name)
    there = os.path.exists(path(name))
    if verb == "show":
        state = alive(one["pid"]) if name.endswith(".service") else one["active"]
        changed = there and one["loaded"] < os.stat(path(name)).st_mtime
        print("LoadState=" + ("loaded" if there and one["loaded"] else "not-found"))
        print("ActiveState=" + ("active" if state else "inactive"))
        print("MainPID=%d" % (one["pid"] if state else 0))
        print("Result=success")
        print("NeedDaemonReload=" + ("yes" if changed else "no"))
        print("UnitFileState=" + ("enabled" if one["enabled"] else "disabled"))
        print("FragmentPath=" + (path(name) if there else ""))
        print("ExecMainStartTimestampMonotonic=%d" % (one["since"] * 1e6))
    if verb in ("enable", "disable"):
        one["enabled"] = int(verb == "enable")
    if verb in ("disable", "restart"):
        stop(one)
        one["active"] = 0
    if verb in ("start", "restart"):
        assert one["loaded"], name
        one["active"] = 1
        if name.endswith(".service"):
            lines = open(path(name)).read().splitlines()
            (one["command"],) = [line[10:] for line in lines if line.startswith("ExecStart=")]
            start(one)
    if verb == "reload":
        os.kill(one["pid"], signal.SIGHUP)
if verb == "daemon-reload":
    for file in glob.glob(CONFIGS + "/*"):
        unit(os.path.basename(file))["loaded"] = time.time()
json.dump(known, open(STATE, "w"))
"""


class Manager:
    """A process manager.

    Args:
        kind: `supervisor` or `systemd`.
        directory: where all of it is.

    Attributes:
        kind: `supervisor` or `systemd`.
        configs: where its configuration is looked for.
        command: what one talks to it with.
    """

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        directory.mkdir(parents=True, exist_ok=True)
        self.configs = directory / "configs"
        self.configs.mkdir()
        self._state = directory / "state.json"
        self.command = directory / kind
        what = _SUPERVISORCTL if kind == "supervisor" else _SYSTEMCTL
        head = _COMMON.format(
            python=sys.executable, configs=str(self.configs), state=str(self._state)
        )
        self.command.write_text(head + what)
        self.command.chmod(0o755)

    def known(self) -> dict[str, Any]:
        """What it knows of each process."""
        return dict(json.loads(self._state.read_text())) if self._state.exists() else {}

    def pids(self) -> dict[str, int]:
        """The numbers of the processes that run."""
        return {key: one["pid"] for key, one in self.known().items() if one["pid"]}

    def runs_on(self) -> dict[str, str]:
        """The release that each process was started from, by its working directory."""
        pids = self.pids().items()
        return {key: Path(f"/proc/{pid}/cwd").resolve().name for key, pid in pids}

    def calls(self) -> list[str]:
        """What it was told since this was asked last, but for questions."""
        calls = Path(f"{self._state}.calls")
        lines = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return [line for line in lines if line.split()[0] not in ("status", "show", "update")]

    def end(self) -> None:
        """Kill what it has started."""
        for one in self.known().values():
            if one["pid"]:
                with suppress(ProcessLookupError):
                    os.kill(one["pid"], signal.SIGKILL)
