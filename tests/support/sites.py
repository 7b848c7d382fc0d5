"""A Django site that says which release answers: the app of `pillar.example`, asked under load."""

from __future__ import annotations

import copy
import grp
import json
import os
import pwd
import shutil
import signal
import socket
import sys
import tarfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import environments, minions
from tests.support.minions import CHECKOUT, Masterless

ME = pwd.getpwuid(os.geteuid()).pw_name
MY_GROUP = grp.getgrgid(os.getegid()).gr_name
ODD = "100% of $HOME;#1 'and' more \\ a,b=c %s"
"""A value for the environment with whatever a process manager may take for something else."""

RELEASES = ("5787e00143", "second", "third")
BROKEN = "broken"
"""A release whose programs do not start."""

_URLS = """
import json, os, sys, time
from django.http import JsonResponse
from django.urls import path

def home(request):
    time.sleep(float(request.GET.get("wait", 0)))
    from shop import late  # imported as late as can be
    return JsonResponse({
        "release": os.path.basename(sys.prefix), "cwd": os.path.basename(os.getcwd()),
        "late": late.__file__.split("/")[-3], "odd": os.environ.get("ODD"), "pid": os.getpid(),
        "user": os.geteuid(), "encoding": sys.getfilesystemencoding(), "path": sys.path,
    })

urlpatterns = [path("", home)]
"""


def packed(directory: Path, python: str, into: Path, *packages: str) -> None:
    """Pack the site, with Django and other packages, as each of the releases.

    Args:
        directory: where it is built.
        python: the Python that it is for.
        into: where the archives go.
        packages: what it needs beside Django.
    """
    build = directory / "shop"
    environments.run(sys.executable, "-m", "virtualenv", "-q", "-p", python, str(build))
    environments.run(str(build / "bin" / "pip"), "install", "--quiet", "django", *packages)
    for locale in build.glob("lib/python*/site-packages/django/**/locale/*"):
        if locale.name not in ("en", "__init__.py", "__pycache__"):  # most of all its files
            shutil.rmtree(locale)
    environments.run(str(build / "bin" / "django-admin"), "startproject", "shop", str(build))
    (build / "shop" / "urls.py").write_text(_URLS)
    (build / "shop" / "late.py").touch()
    (build / "static").mkdir()
    (build / "static" / "logo").write_text("a logo")
    with (build / "shop" / "settings.py").open("a") as file:
        file.write('DATABASES["default"]["NAME"] = BASE_DIR / "var" / "db.sqlite3"\n')
    into.mkdir(parents=True, exist_ok=True)
    archive = into / f"{RELEASES[0]}.tar.gz"
    _tar(build, archive)
    for name in RELEASES[1:]:
        shutil.copy(archive, into / f"{name}.tar.gz")
    (build / "bin" / "gunicorn").unlink()
    _tar(build, into / f"{BROKEN}.tar.gz")


def _tar(directory: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz", compresslevel=1) as file:
        file.add(directory, arcname=".")


@dataclass
class Load:
    """What came of asking for a page all the time.

    Attributes:
        answered: how many requests were answered, by release.
        failures: when a request failed, in seconds since the start, and why.
        slowest: how long an answer took at the most, in seconds.
    """

    answered: dict[str, int] = field(default_factory=dict)
    failures: list[tuple[float, str]] = field(default_factory=list)
    slowest: float = 0

    @property
    def gap(self) -> float:
        """The seconds from the first failure to the last one."""
        return self.failures[-1][0] - self.failures[0][0] if self.failures else 0

    def __str__(self) -> str:
        """For people, and for the records of a test run."""
        asked = len(self.failures) + sum(self.answered.values())
        return (
            f"{len(self.failures)} of {asked} requests failed, in {self.gap:.2f} s; "
            f"the slowest answer took {self.slowest:.2f} s"
        )


@dataclass
class Site:
    """The app of `pillar.example`, deployed for real.

    Attributes:
        apply: applies an SLS with a pillar; the states' answers by ID.
        directory: where whatever belongs to it can be put.
        url: where it answers.
        pillar: the example, with other paths and ports.
    """

    apply: Callable[[str, Any], dict[str, Any]]
    directory: Path
    url: str
    pillar: dict[str, Any]

    @property
    def app(self) -> dict[str, Any]:
        """What the pillar says of the app."""
        app: dict[str, Any] = self.pillar["releases"]["apps"]["shop"]
        return app

    def answers(self, release: str, sls: str = "releases") -> dict[str, Any]:
        """What the states answer to a release, by ID."""
        self.app["release"] = release
        return self.apply(sls, self.pillar)

    def deploy(self, release: str, sls: str = "releases") -> dict[str, Any]:
        """Deploy a release, which has to succeed; what has changed, by ID."""
        answers = self.answers(release, sls)
        failed = {key: one for key, one in answers.items() if one["result"] is not True}
        assert not failed, failed
        return {key: one["changes"] for key, one in answers.items() if one["changes"]}

    def page(self, path: str = "") -> dict[str, Any]:
        """What the app says; never of two releases."""
        page = dict(json.loads(fetch(f"{self.url}{path}")))
        assert page["release"] == page["cwd"] == page["late"], page
        return page

    def pids(self) -> set[int]:
        """Which processes answer."""
        return {self.page()["pid"] for _ in range(30)}

    def under_load(self, release: str, sls: str = "releases", path: str = "") -> Load:
        """Deploy a release while a page is asked for all the time, by two at once."""
        load, stop, start = Load(), threading.Event(), time.monotonic()

        def ask() -> None:
            while not stop.is_set():
                asked = time.monotonic()
                try:
                    name = self.page(path)["release"]
                    load.answered[name] = load.answered.get(name, 0) + 1
                    load.slowest = max(load.slowest, time.monotonic() - asked)
                except Exception as error:
                    load.failures.append((time.monotonic() - start, str(error)))
                    time.sleep(0.01)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            self.deploy(release, sls)
            time.sleep(0.5)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        return load


def fetch(url: str, host: str = "localhost") -> bytes:
    """What a web server on this machine answers to whoever asks for a host."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = urllib.request.Request(url, headers={"Host": host})
    with opener.open(asked, timeout=60) as answer:
        return bytes(answer.read())


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def ended(pid: int) -> None:
    """End a process, and wait until it is gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        for _ in range(200):
            os.kill(pid, 0)
            time.sleep(0.1)


# --- the formula ----------------------------------------------------------------------------------


def example() -> dict[str, Any]:
    """What stands in `pillar.example`."""
    import yaml

    return dict(yaml.safe_load((CHECKOUT / "pillar.example").read_text()))


def minion(directory: Path) -> Masterless:
    """A minion that has the formula twice: in a file root of its own, and below this checkout's."""
    roots = {"base": [str(directory / "root"), str(CHECKOUT / "formula")]}
    made = Masterless(directory, file_roots=roots)
    (made.root / "formula").symlink_to(CHECKOUT / "formula")
    return made


def applied(minion: Masterless, sls: str, pillar: Any, test: bool = False) -> dict[str, Any]:
    """What the states of an SLS answer, by ID, with this pillar and nothing of an earlier one."""
    minion.functions.pack["__pillar__"].clear()  # Salt puts what is given for a call into it
    return minions.answered(
        minion.functions["state.apply"](sls, pillar=copy.deepcopy(pillar), test=test)
    )
