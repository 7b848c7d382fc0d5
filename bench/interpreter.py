"""A release that brings its Python, beside one on the system's, and beside uv on the server.

    make bench
    python3 bench/interpreter.py --rounds 3

The same app is deployed for the first time, and then its next release, in which one small package
has another version. There are three ways: our bundle with the bundle of an interpreter; our bundle
on the Python that is there; and `uv python install` and `uv sync --frozen` on the server, from
wheels in a directory. The next release comes as a full bundle, and as a delta bundle (by copies,
and by hard links as uv makes them). uv does not compile unless it is asked to, and then every
process compiles what it imports, or the first one that may write: it is measured both ways.

All run the same interpreter: the bundle is packed from this Python's prefix, and what is in it is
packed once more as uv wants it, so that both carry the same bytes. All archives are `.tar.gz`. uv's
cache and its interpreters are empty at the first deploy, and kept for the next one; uv itself is
not counted. Nothing is downloaded: what is carried is in the table, for any network. Salt's start
is in none of them. Ours compares all files with their hashes and syncs them to the disk, which
costs nothing in memory; uv does neither.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support import (
    Contender,
    Report,
    Times,
    call,
    count,
    disturbance,
    environment,
    failures,
    given,
    goal_table,
    in_turns,
    install_tools,
    last_line,
    parser,
    run,
    say,
    sha256_of,
    start,
    work_directory,
)

OWN, SYSTEM = "ours, with its Python", "ours, on the system's Python"
DELTA, LINKED = f"{OWN}, delta bundle", f"{OWN}, delta bundle, hard links"
UV, UV_COMPILED = "uv", "uv, compiling"
DEPLOYS = ("first", "next")
APP_PACKAGES = "gunicorn django numpy psycopg[binary] lxml cryptography"
VERSION = platform.python_version()
GOAL = 1.1
# What a minion runs, without Salt's start.
PROGRAM = """
import sys
from relocate_core import PythonBundle, publish
archive, sha256, path, python, of_python, hard_links = sys.argv[1:]
publish(archive, path, python=PythonBundle(python, {"sha256": of_python}) if of_python else python,
        digests={"sha256": sha256}, hard_links=bool(hard_links))
"""


@dataclass(frozen=True)
class Packed:
    """What is carried, made once and kept.

    Attributes:
        python: the interpreter's bundle.
        for_uv: the same interpreter as uv wants it.
        bundles: the app's two releases, and the second one as a delta bundle.
        wheels: the directory of all wheels.
        changed: the wheel of the next release that the first one does not have.
        projects: of each release, the directory with what `uv sync` reads.
    """

    python: Path
    for_uv: Path
    bundles: tuple[Path, Path, Path]
    wheels: Path
    changed: Path
    projects: tuple[Path, Path]

    @classmethod
    def below(cls, top: Path) -> Packed:
        bundles = (top / "app-1.tar.gz", top / "app-2.tar.gz", top / "delta-2.tar.gz")
        return cls(
            top / "python.tar.gz",
            top / "cpython-install_only.tar.gz",
            bundles,
            top / "wheels",
            top / "wheels/shop-2-py3-none-any.whl",
            (top / "project-1", top / "project-2"),
        )

    def carried(self, name: str, deploy: str) -> int:
        """Bytes of one deploy."""
        first, full, delta = (one.stat().st_size for one in self.bundles)
        if name in (UV, UV_COMPILED):
            wheels = [path for path in self.wheels.iterdir() if path != self.changed]
            new = [self.for_uv, *wheels] if deploy == DEPLOYS[0] else [self.changed]
            project = self.projects[deploy == DEPLOYS[1]]
            return sum(path.stat().st_size for path in (*new, *project.iterdir()))
        if deploy == DEPLOYS[1]:
            return delta if name in (DELTA, LINKED) else full
        return first + (0 if name == SYSTEM else self.python.stat().st_size)


# --- what is deployed -----------------------------------------------------------------------------


def pack(cache: Path, tools: Path, uv: Path, packages: Sequence[str], name: str) -> Packed:
    """Build and pack everything, once."""
    top, build = cache / f"interpreter-{name}", cache / "build" / "app"
    wanted = json.dumps([VERSION, sorted(packages)])
    facts = top / "facts.json"
    packed = Packed.below(top)
    if facts.exists() and facts.read_text() == wanted:
        return packed
    say(f"bench: building and packing, once: {' '.join(packages)} (a minute or two)")
    shutil.rmtree(top, ignore_errors=True)
    packed.wheels.mkdir(parents=True)
    command = tools / "virtualenv-tools"
    call(command, "--pack-python", packed.python, python_prefix())
    again_for_uv(packed)
    download = ("-m", "pip", "download", "-q", "--only-binary", ":all:")
    call(sys.executable, *download, "-d", packed.wheels, *packages)
    for number, bundle in enumerate(packed.bundles[:2], 1):
        write_wheel(packed.wheels, str(number))
        shutil.rmtree(build, ignore_errors=True)
        call(f"{python_prefix()}/bin/python3", "-m", "venv", "--without-pip", build)
        offline = ("--offline", "--no-config", "--no-index", "--find-links", packed.wheels)
        into = ("--python", build / "bin/python", "--compile-bytecode", "--link-mode", "copy")
        call(uv, "pip", "install", "-q", *offline, *into, f"shop=={number}", *packages)
        call(command, "--pack", bundle, build)
        project(packed.projects[number - 1], uv, [f"shop=={number}", *packages])
    call(command, "--pack", packed.bundles[2], "--delta-from", packed.bundles[0], build)
    shutil.rmtree(build)
    facts.write_text(wanted)
    return packed


def python_prefix() -> Path:
    """That of this Python, which has to be one that can be packed."""
    return Path(os.path.realpath(sys.base_prefix))


def again_for_uv(packed: Packed) -> None:
    """Pack what is in the interpreter's bundle as python-build-standalone is published."""
    inside = packed.for_uv.parent / "unpacked/python"
    inside.mkdir(parents=True)
    call("tar", "-xzf", packed.python, "-C", inside)
    shutil.rmtree(inside / ".relocation")
    call("tar", "-czf", packed.for_uv, "-C", inside.parent, inside.name)
    shutil.rmtree(inside.parent)


def write_wheel(directory: Path, version: str) -> None:
    """A wheel of a small package, which is what a next release changes."""
    sources = {f"shop/part{number}.py": f"VALUE = {number}\n" for number in range(40)}
    sources["shop/__init__.py"] = f"VERSION = {version!r}\n"
    known = f"shop-{version}.dist-info"
    sources[f"{known}/METADATA"] = f"Metadata-Version: 2.1\nName: shop\nVersion: {version}\n"
    sources[f"{known}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(f"{name},,\n" for name in (*sources, f"{known}/RECORD"))
    with zipfile.ZipFile(directory / f"shop-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in {**sources, f"{known}/RECORD": record}.items():
            wheel.writestr(name, text)


def project(directory: Path, uv: Path, requirements: Sequence[str]) -> None:
    """What `uv sync --frozen` reads on the server: the wheels are in the directory beside it."""
    directory.mkdir()
    here = f"sys_platform == 'linux' and platform_machine == '{platform.machine()}'"
    (directory / "pyproject.toml").write_text(
        f'[project]\nname = "app"\nversion = "1"\nrequires-python = "=={VERSION}"\n'
        f"dependencies = {json.dumps(list(requirements))}\n"
        '[tool.uv]\npackage = false\nno-index = true\nfind-links = ["../wheels"]\n'
        f'environments = ["{here}"]\n'
    )
    call(uv, "lock", "-q", "--project", directory, "--python", f"{python_prefix()}/bin/python3")


# --- a server -------------------------------------------------------------------------------------


@dataclass
class Server:
    """What is carried, and where it is deployed."""

    work: Path
    packed: Packed
    tools: Path
    uv: Path
    digests: dict[Path, str] = field(default_factory=dict)

    def release(self, deploy: str) -> Path:
        return self.work / "srv/shop" / deploy

    def command(self, name: str, deploy: str) -> tuple[str, ...]:
        number = DEPLOYS.index(deploy)
        if name in (UV, UV_COMPILED):
            return self._by_uv(name, deploy, self.packed.projects[number])
        bundle = self.packed.bundles[2 if name in (DELTA, LINKED) and number else number]
        python, of_python = f"{python_prefix()}/bin/python3", ""
        if name != SYSTEM:
            python, of_python = str(self.packed.python), self.digests[self.packed.python]
        program = (str(self.tools / "python"), "-c", PROGRAM)
        where, links = str(self.release(deploy)), "yes" if name == LINKED else ""
        return (*program, str(bundle), self.digests[bundle], where, python, of_python, links)

    def _by_uv(self, name: str, deploy: str, of: Path) -> tuple[str, ...]:
        kept = self.work / "srv/uv"
        variables = {
            "UV_PYTHON_INSTALL_DIR": kept / "pythons",
            "UV_CACHE_DIR": kept / "cache",
            "UV_PROJECT_ENVIRONMENT": self.release(deploy),
            "UV_PYTHON_DOWNLOADS_JSON_URL": self.work / "downloads.json",
        }
        install = [self.uv, "python", "install", "-q", "--no-bin", VERSION]
        options = ["--frozen", "--managed-python", "--python", VERSION, "--project", of]
        sync = [self.uv, "sync", "-q", *options]
        if name == UV_COMPILED:
            sync.append("--compile-bytecode")
        lines = [install, sync] if deploy == DEPLOYS[0] else [sync]
        script = " && ".join(shlex.join(map(str, line)) for line in lines)
        return ("env", *(f"{key}={value}" for key, value in variables.items()), "sh", "-c", script)

    def set_up(self) -> None:
        """Describe the interpreter for uv."""
        packed = self.packed
        self.digests = {path: sha256_of(path) for path in (packed.python, *packed.bundles)}
        machine = platform.machine()
        major, minor, patch = map(int, VERSION.split("."))
        known = {
            "name": "cpython",
            "arch": {"family": machine, "variant": None},
            "variant": None,
            "os": "linux",
            "libc": "gnu",
            "major": major,
            "minor": minor,
            "patch": patch,
            "prerelease": "",
            "build": "1",
            "url": packed.for_uv.as_uri(),
            "sha256": sha256_of(packed.for_uv),
        }
        text = json.dumps({f"cpython-{VERSION}-linux-{machine}-gnu": known})
        (self.work / "downloads.json").write_text(text)

    def deploy(self, name: str, deploy: str, took: Times) -> str:
        """Time one deploy; what it did not do as it should, or nothing."""
        log = self.work / "log"
        if code := run(self.command(name, deploy), log, took):
            return f"{deploy}: exit code {code}: {last_line(log)}"
        ask = "import shop, sys; print(shop.VERSION, sys.base_prefix)"
        done = subprocess.run(
            [self.release(deploy) / "bin/python", "-B", "-c", ask],
            capture_output=True,
            text=True,
            env=environment(),
        )
        version, _, prefix = done.stdout.strip().partition(" ")
        own = prefix.startswith(str(self.work))
        if version != str(DEPLOYS.index(deploy) + 1) or own == (name == SYSTEM):
            return f"{deploy}: it runs {version or 'nothing'} on {prefix or done.stderr}"
        return ""


def measure(server: Server, rounds: int) -> dict[str, dict[str, Times]]:
    """By deploy, the times of all contenders."""
    field_of = [Contender(name, ()) for name in (OWN, DELTA, LINKED, SYSTEM, UV, UV_COMPILED)]
    times = {deploy: {one.name: Times() for one in field_of} for deploy in DEPLOYS}
    for contender, announced in in_turns(field_of, rounds):
        shutil.rmtree(server.work / "srv", ignore_errors=True)
        server.release("first").parent.mkdir(parents=True)
        os.sync()
        for deploy in DEPLOYS:
            took = times[deploy][contender.name]
            took.problem = server.deploy(contender.name, deploy, took) or took.problem
            announced += f", {deploy} {took.runs[-1]:.2f} s"
        say(announced)
    for name in (DELTA, LINKED):  # the same as the one above
        del times["first"][name]
    return times


# --- the report -----------------------------------------------------------------------------------


def table(packed: Packed, times: Mapping[str, Mapping[str, Times]]) -> list[str]:
    """All times in Markdown, with what was carried."""
    rows = [
        "| deploy | median | min | max | carried | of uv's time |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for deploy, contenders in times.items():
        for name, one in contenders.items():
            carried = packed.carried(name, deploy) / 1e6
            ratio = one.median / contenders[UV].median
            rows.append(f"{one.row(f'{deploy}: {name}')} {carried:.3f} MB | {ratio:.2f} |")
    every = {f"{deploy}: {name}": one for deploy in times for name, one in times[deploy].items()}
    later = times["next"]
    ratio = later[OWN].median / later[SYSTEM].median
    what = "the next release, of its time on the system's Python"
    goals = [(what, f"{ratio:.2f}", f"{GOAL:.2f}", ratio <= GOAL)]
    return [*rows, *disturbance(every.values()), *goal_table(goals), *failures(every)]


def install_uv(cache: Path) -> Path:
    """uv, in a virtualenv of its own."""
    place = cache / "uv"
    if not (place / "bin/uv").exists():
        say("bench: installing uv")
        call(sys.executable, "-m", "venv", place)
        call(place / "bin/pip", "install", "-q", "uv")
    return place / "bin/uv"


def bench(cache: Path, options: argparse.Namespace) -> Report:
    """Measure everything; the report."""
    tools, uv = install_tools(cache, with_ours=True), install_uv(cache)
    kept = pack(cache, tools, uv, options.packages.split(), options.tree)
    size = sum(path.stat().st_size for path in kept.python.parent.rglob("*"))
    report = Report("")
    with work_directory(cache, 12 * size) as work:
        shutil.copytree(kept.python.parent, work / "packed", symlinks=True)
        server = Server(work, Packed.below(work / "packed"), tools, uv)
        server.set_up()
        version = subprocess.run([uv, "--version"], capture_output=True, text=True).stdout.strip()
        heading = f"{options.packages} on Python {VERSION}; {version}; {options.rounds} rounds"
        say(f"bench: {heading}")
        times = measure(server, options.rounds)
        files, _, _ = count(server.release("next"))
        rows = table(server.packed, times)
        for deploy, contenders in times.items():
            title = f"The {deploy} deploy of a release of {files:,} files"
            report.add(f"interpreter-{deploy}", title, contenders, (UV, UV_COMPILED))
    report.text = "\n".join([f"A release that brings its Python: {heading}", "", *rows])
    return report


def main(argv: Sequence[str] | None = None) -> int:
    known = parser(__doc__)
    options = given(known, argv)
    if not options.quick and "--packages" not in (argv or sys.argv):
        options.packages = APP_PACKAGES
    return start(bench, options, "interpreter")


if __name__ == "__main__":
    sys.exit(main())
