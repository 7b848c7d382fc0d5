"""A machine whose process 1 is systemd, for the tests: namespaces, over this machine's own files.

What it writes stays in a directory, so that it can be booted again. Its network is this machine's,
and none of this machine's services are enabled in it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support import minions

SYSTEMD = "/lib/systemd/systemd"
_NEEDED = ("unshare", "nsenter", "systemctl", "journalctl", "mount", "pivot_root")

# What would change files outside, or only takes time.
_MASKED = ("systemd-tmpfiles-setup.service", "systemd-tmpfiles-clean.timer")

# Process 1 of the new namespaces, until it becomes systemd. `$0` is the directory, the others are
# seen as they are.
_BOOT = f"""
root=$0/root
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$0/upper,workdir=$0/work" "$root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/dev"
for name in null zero full random urandom tty; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/shm"
mount -t tmpfs tmpfs "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
mount --bind "$0/units" "$root/etc/systemd/system"
for directory; do
    mkdir -p "$root$directory"
    mount --bind "$directory" "$root$directory"
done
cd "$root"
pivot_root . mnt
umount -l /mnt
exec env -i container=scratch PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    {SYSTEMD} --unit=multi-user.target --log-target=journal
"""


def missing() -> str | None:
    """Why no such machine can be had here, or None."""
    if os.geteuid() != 0:
        return "systemd is booted by root only"
    for program in (SYSTEMD, *_NEEDED):
        if shutil.which(program) is None:
            return f"{os.path.basename(program)} is not on this machine"
    if _cgroups() is None:
        return "no cgroup2 is mounted on this machine"
    return None


def _cgroups() -> Path | None:
    """Where cgroup2 is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None


class Machine:
    """A machine that runs systemd.

    Args:
        directory: where all of it is, and stays between two boots.
        shared: directories that are the same in it and outside.

    Attributes:
        units: its `/etc/systemd/system`.
    """

    def __init__(self, directory: Path, shared: Iterable[Path] = ()) -> None:
        for name in ("upper", "work", "root", "units"):
            (directory / name).mkdir(parents=True)
        self.units = directory / "units"
        for name in _MASKED:
            (self.units / name).symlink_to("/dev/null")
        self._directory = directory
        self._shared = [str(path) for path in shared]
        groups = _cgroups()
        assert groups is not None
        self._group = groups / f"scratch-{os.getpid()}"
        self._unshare: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Start it, and wait until it is up."""
        self._group.mkdir()
        join = f'echo $$ > "{self._group}/cgroup.procs" && exec "$@"'
        spaces = ("--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--kill-child")
        inside = ("sh", "-euc", _BOOT, str(self._directory), *self._shared)
        with (self._directory / "boot.log").open("wb") as log:
            self._unshare = subprocess.Popen(
                ["sh", "-euc", join, "sh", "unshare", *spaces, *inside],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + 60
        while self._unshare.poll() is None and time.monotonic() < until:
            if self._pid() and self.run("systemctl", "is-system-running").stdout.strip() in (
                "running",
                "degraded",
            ):
                return
            time.sleep(0.1)
        said = (self._directory / "boot.log").read_text()
        self.shut_down()
        raise RuntimeError(f"systemd did not boot: {said}")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return subprocess.run(
            ["nsenter", "--target", str(self._pid()), "--all", *command],
            capture_output=True,
            text=True,
            timeout=300,
        )

    def shut_down(self) -> None:
        """Stop it, as if its power was cut off; what it wrote stays."""
        if self._unshare is None:
            return
        pid = self._pid()
        if pid:
            os.kill(pid, signal.SIGKILL)
        self._unshare.wait(60)
        self._unshare = None
        for directory, _, _ in os.walk(self._group, topdown=False):
            _remove(Path(directory))

    def _pid(self) -> int:
        """Its process 1, as it is called here; 0 if there is none."""
        assert self._unshare is not None
        pid = self._unshare.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except FileNotFoundError:
            return 0
        return int(children[0]) if children else 0


def _remove(group: Path) -> None:
    """Remove a cgroup, which is busy until the last of its processes is gone."""
    for _ in range(100):
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.05)
        else:
            return


class Salted:
    """Salt on such a machine, without a master.

    Args:
        machine: the machine.
        directory: where its configuration is; seen by the machine.
        roots: its file roots.
    """

    def __init__(self, machine: Machine, directory: Path, *roots: Path) -> None:
        self._machine = machine
        self._directory = directory
        options = minions.masterless(directory, roots[0])
        options["file_roots"] = {"base": [str(root) for root in roots]}
        (directory / "minion").write_text(json.dumps(options))
        self.call("saltutil.sync_all")

    def call(self, *words: str) -> Any:
        """What a function answers."""
        entry = "import sys; from salt.scripts import salt_call; sys.exit(salt_call())"
        options = (
            "--local",
            "--config-dir",
            str(self._directory),
            "--out=json",
            "--log-level=quiet",
        )
        done = self._machine.run(sys.executable, "-c", entry, *options, *words)
        try:
            return json.loads(done.stdout)["local"]
        except (ValueError, KeyError):
            raise AssertionError(done.stdout + done.stderr) from None

    def apply(self, sls: str, pillar: Any, test: bool = False) -> dict[str, Any]:
        """What the states of an SLS answer, by ID."""
        words = (sls, f"pillar={json.dumps(pillar)}", f"test={test}")
        return minions.answered(self.call("state.apply", *words))
