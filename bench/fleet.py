"""Roll-outs on one machine: a master, many minions in mount namespaces, and one PostgreSQL.

All minions have the app in the same directory, and each has another one there. The app is a Django
site whose schema one of them migrates for all. Timed are highstates, a roll-out, the rollback of
all, and a roll-out that fails in its third batch; after each, what every minion runs and what the
schema is at has to be right. It needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import (
    CHECKOUT,
    CPUS,
    BenchError,
    count,
    descendants,
    proportional_bytes,
    say,
    start,
)

sys.path.insert(0, str(CHECKOUT))

from relocate_core import pack
from tests.support import postgres
from tests.support.projects import column, django_files, libraries, table

NEEDED = ("django", "asgiref", "sqlparse", "psycopg", "typing_extensions")
COLUMNS = ("id", "price", "colour")
"""What the table has: each release one more."""
IN_ITS_OWN_SRV = 'mount --make-rprivate / && mount --bind "$0/srv" "$0/../srv" && exec "$@"'
READY_SECONDS = 300.0
STEP_SECONDS = 1200.0


@dataclass
class Fleet:
    """A running master with its minions.

    Attributes:
        directory: where all of it is.
        names: the IDs of the minions; the first one migrates the schema.
        server: the database.
        rows: what was measured, as rows of a table.
        processes: the daemons.
    """

    directory: Path
    names: list[str]
    server: postgres.Server
    rows: list[str] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def file_root(self) -> Path:
        """The master's file root."""
        return self.directory / "files"

    def srv(self, name: str) -> Path:
        """What a minion has as `srv` of the directory."""
        return self.directory / name / "srv"

    @property
    def root(self) -> str:
        """The root of the app, on each minion."""
        return f"{self.directory}/srv/shop"

    # --- set-up ---------------------------------------------------------------------------------

    def write(self) -> None:
        """Write the file root, the pillar, and the configuration of the master."""
        self.file_root.mkdir(parents=True)
        (self.directory / "srv").mkdir()
        for modules in ("_modules", "_states", "_utils", "_runners"):
            (self.file_root / modules).symlink_to(CHECKOUT / modules)
        (self.file_root / "releases").symlink_to(CHECKOUT / "formula" / "releases")
        (self.directory / "pillar").mkdir()
        (self.directory / "pillar" / "top.sls").write_text("base: {'*': [shop]}")
        self.want("1")
        publish, answers = free_ports(2)
        self.configure(
            "master",
            interface="127.0.0.1",
            publish_port=publish,
            ret_port=answers,
            open_mode=True,
            worker_threads=5,
            timeout=60,
            gather_job_timeout=30,
            file_roots={"base": [str(self.file_root)]},
            pillar_roots={"base": [str(self.directory / "pillar")]},
        )
        for name in self.names:
            self.srv(name).mkdir(parents=True)
            self.configure("minion", name, id=name, master="127.0.0.1", master_port=answers)

    def configure(self, what: str, name: str = "master", **options: Any) -> None:
        """Write the configuration of a daemon, which keeps all it has in its own directory."""
        directory = self.directory / name
        (directory / "etc").mkdir(parents=True, exist_ok=True)
        options = {
            "root_dir": str(directory),
            "pki_dir": str(directory / "pki"),
            "sock_dir": str(directory / "s"),
            "cachedir": str(directory / "cache"),
            "log_file": str(directory / "log"),
            "pidfile": str(directory / "pid"),
            "user": "root",
            "enable_fqdns_grains": False,
            **options,
        }
        (directory / "etc" / what).write_text(json.dumps(options, indent=1))

    def want(self, release: str) -> None:
        """Write into pillar what a highstate should bring."""
        app = {
            "release": release,
            "root": self.root,
            "source": "salt://shop/{release}.tar.gz",
            "user": "root",
            "group": "root",
            "health": {
                "checks": f"read which < etc/which && test ! -e {self.directory}/srv/sick-$which",
                "attempts": 2,
                "interval": 0.1,
            },
            "migrations": {
                "kind": "django",
                "settings": "project.settings",
                "host": self.names[0],
                "env": {"SERVER": f"127.0.0.1 {self.server.port}", "DATABASE": "none"},
            },
        }
        pillar = {"releases": {"apps": {"shop": app}}}
        (self.directory / "pillar" / "shop.sls").write_text(json.dumps(pillar))

    def begin(self) -> None:
        """Start all daemons; they are ready when each minion has answered and has our modules."""
        self.daemon("salt-master", "master")
        for name in self.names:
            srv = ("unshare", "--mount", "sh", "-c", IN_ITS_OWN_SRV, str(self.directory / name))
            self.daemon("salt-minion", name, *srv)
        until = time.monotonic() + READY_SECONDS
        while len(up := self.salt("test.ping")) < len(self.names):
            dead = [one.args for one in self.processes if one.poll() is not None]
            if dead or time.monotonic() > until:
                raise BenchError(f"only {len(up)} minions answer: see {self.directory}")
            time.sleep(2)
        self.salt("saltutil.sync_all")
        self.run("saltutil.sync_runners")

    def daemon(self, program: str, name: str, *before: str) -> None:
        """Start a daemon."""
        command = [*before, tool(program), "-c", str(self.directory / name / "etc")]
        with open(self.directory / name / "output", "wb") as output:
            self.processes.append(
                subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
            )

    def end(self) -> None:
        """End all daemons."""
        for process in self.processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    # --- calls ----------------------------------------------------------------------------------

    def salt(self, function: str, *arguments: str) -> dict[str, Any]:
        """What the minions answer."""
        options = ("--static", "--out=json", "--hide-timeout", "*", function)
        return dict(self._json("salt", *options, *arguments) or {})

    def run(self, function: str, *arguments: str) -> Any:
        """What a runner answers."""
        return self._json("salt-run", "--out=json", function, *arguments)

    def _json(self, program: str, *arguments: str) -> Any:
        command = [tool(program), "-c", str(self.directory / "master" / "etc"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_SECONDS)
        try:
            return json.loads(done.stdout)
        except ValueError:
            return None

    def timed(self, what: str, function: str, *arguments: str) -> Any:
        """Measure a call, of all minions or of a runner; what is answered."""
        say(f"fleet: {what}")
        call = self.run if function.startswith("releases.") else self.salt
        began = time.monotonic()
        answer = call(function, *arguments)
        self.rows.append(
            f"| {what} | {time.monotonic() - began:.0f} s | {os.getloadavg()[0]:.1f} |"
        )
        say(self.rows[-1])
        return answer

    # --- what has to be right -------------------------------------------------------------------

    def require(self, release: str, answer: Any, result: bool | None = None) -> None:
        """Every minion runs a release, the schema is what that needs; and the runner's answer."""
        if result is not None and (answer or {}).get("result") is not result:
            raise BenchError(f"another result than {result}: {json.dumps(answer, indent=1)}")
        on = {name: os.readlink(self.srv(name) / "shop" / "current") for name in self.names}
        if set(on.values()) != {release}:
            raise BenchError(f"not all are on {release}: {on}\n{json.dumps(answer, indent=1)}")
        query = "select column_name from information_schema.columns where table_name = 'shop_item'"
        there, wanted = set(self.server.query(query)), set(COLUMNS[: int(release)])
        if there != wanted:
            raise BenchError(f"the schema has {there}, and {release} needs {wanted}")

    def memory(self) -> int:
        """What all daemons hold, with shares split."""
        return sum(
            proportional_bytes(pid) for one in self.processes for pid in descendants(one.pid)
        )


def tool(program: str) -> str:
    """A program of Salt, beside this Python or on the PATH."""
    beside = Path(sys.executable).parent / program
    found = str(beside) if beside.exists() else shutil.which(program)
    if found is None:
        raise BenchError(f"{program} is neither beside {sys.executable} nor on the PATH")
    return found


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def pack_releases(work: Path, directory: Path) -> str:
    """Pack three releases, each with a migration more; how large the last one is."""
    build = work / "build"
    python = os.path.realpath(sys.executable)
    subprocess.run([python, "-m", "venv", "--without-pip", str(build)], check=True)
    (packages,) = build.glob("lib/python*/site-packages")
    with libraries() as installed:
        for found in Path(installed).iterdir():
            if found.name.lower().startswith(NEEDED):
                copy = shutil.copytree if found.is_dir() else shutil.copy2
                copy(found, packages / found.name)
    directory.mkdir()
    migrations = {"0001_initial": table("Item")}
    for number, name in enumerate(COLUMNS, 1):
        if number > 1:
            migrations[f"000{number}_{name}"] = column("item", name)
        files = {**django_files({"shop": migrations}), "etc/which": f"{number}\n"}
        for path, text in files.items():
            (build / path).parent.mkdir(parents=True, exist_ok=True)
            (build / path).write_text(text)
        pack(str(build), str(directory / f"{number}.tar.gz"))
    files_there, _, size = count(build)
    return f"{files_there:,} files, {size / 1e6:,.0f} MB"


@contextmanager
def running(options: argparse.Namespace) -> Iterator[tuple[Fleet, str]]:
    """The fleet, and how large a release is; all of it ends with the block."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        raise BenchError("it needs root, and unshare of util-linux, for the mount namespaces")
    work = Path(tempfile.mkdtemp(prefix="fleet-"))
    names = [f"web{number}" for number in range(1, options.minions + 1)]
    try:
        with postgres.running() as server:
            fleet = Fleet(work, names, server)
            fleet.write()
            size = pack_releases(work, fleet.file_root / "shop")
            try:
                say(f"fleet: starting {len(names)} minions in {work}")
                fleet.begin()
                yield fleet, size
            finally:
                fleet.end()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def measure(fleet: Fleet, batch: str) -> None:
    """All steps, each of which has to leave what it should."""
    rolled = (f"batch={batch}",)
    fleet.timed("first highstate, on all at once", "state.apply", "releases", "queue=60")
    fleet.require("1", None)
    second = fleet.timed("second highstate", "state.apply", "releases", "queue=60")
    changed = [
        state["__id__"] for one in second.values() for state in one.values() if state["changes"]
    ]
    if changed:
        raise BenchError(f"the second highstate has changed something: {changed}")
    answer = fleet.timed(
        "plan of a roll-out", "releases.roll", fleet.root, "2", *rolled, "test=True"
    )
    say(answer["comment"])
    steps = answer["steps"]
    fleet.require("1", answer)
    answer = fleet.timed(
        f"roll-out, a canary and {len(steps) - 1} batches",
        "releases.roll",
        fleet.root,
        "2",
        *rolled,
    )
    fleet.require("2", answer, True)
    answer = fleet.timed("rollback of all", "releases.rollback", fleet.root, *rolled)
    fleet.require("1", answer, True)
    (fleet.srv(steps[3]["minions"][-1]) / "sick-3").touch()
    answer = fleet.timed(
        "roll-out that fails in the third batch, and is rolled back",
        *("releases.roll", fleet.root, "3", *rolled),
    )
    say(answer["comment"])
    fleet.require("1", answer, False)
    answer = fleet.timed("releases.fleet", "releases.fleet", fleet.root, "brief=True")
    say(answer["comment"])


def bench(cache: Path, options: argparse.Namespace) -> str:
    """Measure everything; the report."""
    with running(options) as (fleet, size):
        began = fleet.memory()
        say(f"fleet: all daemons hold {began / 1e9:.1f} GB")
        measure(fleet, options.batch)
        memory = fleet.memory()
        rows = fleet.rows
    setting = (
        f"A master, {options.minions} minions and PostgreSQL on one machine with {CPUS} CPUs; a "
        f"Django site of {size}; batches of {options.batch}. All daemons hold "
        f"{memory / 1e9:.1f} GB."
    )
    return "\n".join([setting, "", "| what | time | load after it |", "|---|---:|---:|", *rows])


def main(argv: Sequence[str] | None = None) -> int:
    known = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known.add_argument("--minions", type=int, default=20, help="how many (default: 20)")
    known.add_argument("--batch", default="25%", help="of the roll-outs (default: 25%%)")
    return start(bench, known.parse_args(argv), "fleet.md")


if __name__ == "__main__":
    sys.exit(main())
