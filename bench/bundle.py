"""Bundles beside virtualenv-tools3 and a bare tar: relocated, deployed, and the release after.

    make bench
    python3 bench/bundle.py --size small --rounds 3

Three virtualenvs of some 1,000, 10,000 and 70,000 files, the last one that of `relocate.py`, are
built once and kept beside it; and so is of each the next release, in which one package has another
version. Both are packed in every run: the bundle twice, to see whether its bytes are the same, and
the next one against it. All that follows is done with these, in memory where there is room, with
the contenders taking turns in going first. Nothing that is done before a run is timed.

Relocated is what tar has unpacked of the bundle, with virtualenv-tools3 on the virtualenv that was
packed. Deployed is by one `state.apply` of `virtualenv_relocated.managed` and `active`, Salt's own
start included, with `tar -xzf` of the same files as tar itself packs them. The next release is
deployed beside the first one, in a root of its own: by hard links, and by copies, which are
clones where the file system has them. Links touch the files of the first release, and a later
deploy then hashes all that it takes from there: that is measured once, after the links are gone.

What changed between the two is found by unpacking both with tar, and comparing all contents.

Modules are synced and everything is deployed once before, so that all bytecode is there. Memory is
taken in runs of its own, as the sum over all processes. A run waits for other programs to rest, a
minute at most; those that were disturbed all the same are counted below the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from support import (
    NAME,
    Applied,
    BenchError,
    Contender,
    Goal,
    Minion,
    Report,
    Sls,
    Times,
    Tree,
    apply,
    at_home,
    build_tree,
    call,
    disturbance,
    failures,
    find_salt_call,
    fresh_copy,
    given,
    goal_table,
    in_turns,
    install_tools,
    kept_tree,
    last_line,
    new_path,
    our_states,
    parser,
    peak_memory,
    run,
    say,
    setting,
    sha256_of,
    start,
    work_directory,
)

SMALLER = {"small": "flask", "medium": "django pandas"}
SIZES = (*SMALLER, "large")
# The package that changes, where a virtualenv has it; else its first one.
CHANGED = "django"
NEXT = "9c01b7e58d3f6a2471eb0c94d5a8f3617be2d09f"
PACKINGS = 2
# Copies at a time, in memory: two releases, what tar unpacks twice, and archives.
ROOM = 2.5

OURS, PEER = "virtualenv-tools, a bundle", "virtualenv-tools3"
TAR = "tar -xzf"
LINKS, COPIES, CLONES = "next, by hard links", "next, by copies", "next, by clones"
HASHED = "next, by hard links that others had (once)"
PLAIN, NEXT_PLAIN = "tar -czf", "tar -czf of what changed"
MOST_MEMORY = 150e6
# The whole of the next release, which no contender deploys.
FULL = "next-full"


@dataclass(frozen=True)
class Case:
    """A virtualenv and its next release."""

    size: str
    """Which of `SIZES`."""
    tree: Tree
    following: Tree
    change: str
    proof: str
    """What the next release has, and the first one has not."""


@dataclass(frozen=True)
class Way(Contender):
    """A contender that needs something done before, and shows afterwards what it did."""

    prepare: Callable[[], None] = lambda: None
    check: Callable[[], str] = lambda: ""
    """What it did not do, or nothing."""
    states: bool = False


@dataclass
class Packed(Times):
    size: int = 0
    digests: set[str] = field(default_factory=set)
    report: dict[str, Any] = field(default_factory=dict)
    """What the packing reports."""


@dataclass(frozen=True)
class Place:
    """Where a case is measured."""

    work: Path
    tools: Path
    case: Case
    minion: Minion
    endings: tuple[str, ...]
    """Of the bundles that can be packed here."""

    @property
    def log(self) -> Path:
        return self.work / "log"

    @property
    def release(self) -> Path:
        return self.work / "app" / NAME

    @property
    def following(self) -> Path:
        return self.work / "app" / NEXT

    def archive(self, name: str, ending: str = ".tar.gz") -> Path:
        return self.work / f"{name}{ending}"


@dataclass
class Measured:
    """What came out of a case."""

    heading: str
    packed: dict[str, Packed]
    times: dict[str, Applied]
    memory: dict[str, tuple[int, int]]


# --- what is measured -----------------------------------------------------------------------------


def build_case(cache: Path, tools: Path, size: str, options: argparse.Namespace) -> Case:
    if size in SMALLER:
        packages, name = SMALLER[size].split(), size
        tree = build_tree(cache, tools, packages, 0, name)
    else:
        packages, name = options.packages.split(), "tree"
        tree = build_tree(cache, tools, packages, options.least_pycs)
    changing = CHANGED if CHANGED in packages else packages[0]
    package = re.split(r"[^\w.-]", changing)[0].lower()
    old = version_of(tree.path, package)
    wanted = f"{package}<{old}"

    def build(place: Path) -> None:
        call("cp", "-a", tree.path, place)
        call(place / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", wanted)

    of = [tree.files, tree.pycs, tree.size]
    title = f"{tree.path.name} with {wanted}"
    following = kept_tree(cache, f"{name}-next", {"changed": wanted, "of": of}, title, build)
    new = version_of(following.path, package)
    proof = f"lib/python*/site-packages/{package.replace('-', '_')}-{new}.dist-info"
    return Case(size, tree, following, f"{package} {new} instead of {old}", proof)


def version_of(path: Path, package: str) -> str:
    """The version of an installed package."""
    pattern = f"lib/python*/site-packages/{package.replace('-', '_')}-*.dist-info"
    for found in path.glob(pattern):
        return found.name[len(package) + 1 : -len(".dist-info")]
    raise BenchError(f"{path} has no {package}: name packages that are installed by that name")


# --- packing --------------------------------------------------------------------------------------


def pack_all(place: Place) -> dict[str, Packed]:
    """Pack the virtualenv and the next one; what it took, by what was made."""
    case, base = place.case, place.archive("bundle")
    unpacked, following = place.work / "unpacked", place.work / "unpacked-next"

    def unpack() -> None:
        if not unpacked.exists():
            tar_out(base, unpacked)

    plain = ("tar", "-czf", str(place.archive("plain")), "--exclude=./.relocation")
    ways = [packer(place, "bundle", ending, case.tree) for ending in place.endings]
    ways += [Way(PLAIN, (*plain, "-C", str(unpacked), "."), prepare=unpack)]
    packed = {way.name: Packed() for way in ways}
    for way, announced in in_turns(ways, PACKINGS):
        pack(place, way, announced, packed[way.name])
    ways = [
        packer(place, "next", ending, case.following, "--delta-from", str(base))
        for ending in place.endings
    ]
    full = packer(place, FULL, place.endings[-1], case.following, "--level", "1")
    pack(place, full, f"bench: once: {full.name}", Packed())
    tar_out(place.archive(FULL, place.endings[-1]), following)
    names = place.work / "changed"
    names.write_text("".join(f"{name}\n" for name in changed(unpacked, following)))
    tar = ("tar", "-czf", str(place.archive("next-plain")), "-C", str(following), "-T", str(names))
    for way in (*ways, Way(NEXT_PLAIN, tar)):
        packed[way.name] = Packed()
        pack(place, way, f"bench: once: {way.name}", packed[way.name])
    for directory in (unpacked, following):
        shutil.rmtree(directory)
    return packed


def packer(place: Place, name: str, ending: str, tree: Tree, *more: str) -> Way:
    program = (str(place.tools / "virtualenv-tools"), "--json", "--pack")
    command = (*program, str(place.archive(name, ending)), *more, str(tree.path))
    return Way(f"{name}{ending}", command)


def pack(place: Place, way: Way, announced: str, packed: Packed) -> None:
    """Time one packing."""
    way.prepare()
    archive = Path(next(one for one in way.command if one.startswith(f"{place.work}/")))
    if code := run(way.command, place.log, packed):
        raise BenchError(f"{way.name} cannot be packed: exit code {code}: {last_line(place.log)}")
    packed.size = archive.stat().st_size
    packed.digests.add(sha256_of(archive))
    if "--json" in way.command:
        packed.report = json.loads(last_line(place.log))
    say(f"{announced} {packed.runs[-1]:.2f} s, {packed.size / 1e6:,.1f} MB")


def tar_out(archive: Path, directory: Path) -> None:
    """Let a directory be what tar unpacks."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    call("tar", "-xf", archive, "-C", directory)
    os.sync()


def changed(before: Path, after: Path) -> Iterator[str]:
    """The files whose content is nowhere in the tree before, in order."""
    known = {sha256_of(before / name) for name in files_of(before)}
    return (name for name in files_of(after) if sha256_of(after / name) not in known)


def files_of(path: Path) -> Iterator[str]:
    """All files but those that only a bundle has."""
    for directory, directories, names in os.walk(path):
        directories[:] = sorted(one for one in directories if one != ".relocation")
        for name in sorted(names):
            file = Path(directory, name)
            if not file.is_symlink():
                yield str(file.relative_to(path))


# --- relocating and deploying ---------------------------------------------------------------------


def all_states(place: Place) -> dict[str, Sls]:
    """What the minion applies, by name."""

    def verified(name: str, ending: str) -> dict[str, str]:
        archive = place.archive(name, ending)
        return {"source": str(archive), "source_hash": f"sha256={sha256_of(archive)}"}

    full = verified(FULL, place.endings[-1])
    source = {"full": full.pop("source"), "from": {NAME: verified("next", ".tar.gz")}}
    states = {
        ending.rpartition(".")[2]: our_states(place.release, **verified("bundle", ending))
        for ending in place.endings
    }
    return {
        **states,
        "links": our_states(place.following, source=source, hard_links=True, **full),
        "copies": our_states(place.following, source=source, **full),
        "gone": {str(place.following): {"virtualenv_relocated.absent": []}},
    }


def relocators(place: Place) -> list[Way]:
    """Ours on a bundle that tar has unpacked, and the other one on what was packed."""
    copy = new_path(place.work, place.case.tree.old, "same")

    def check() -> str:
        return "" if at_home(copy) else "bin/pip does not run afterwards"

    command = ("--update-path", "auto", str(copy))
    return [
        Way(
            OURS,
            (str(place.tools / "virtualenv-tools"), *command),
            prepare=lambda: tar_out(place.archive("bundle"), copy),
            check=check,
        ),
        Way(
            PEER,
            (str(place.tools / "virtualenv-tools3"), *command),
            prepare=lambda: fresh_copy(place.case.tree, copy),
            check=check,
        ),
    ]


def deployers(place: Place) -> list[Way]:
    """The bundle in each form, tar, and the next release in each way."""
    release, root = place.release, place.release.parent

    def empty() -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        os.sync()

    def beside() -> None:
        empty()
        release.mkdir()

    def first() -> None:
        """A root with the first release, of which nobody else has links."""
        empty()
        call(*place.minion.command("state.apply", "gz"))
        os.sync()

    def pruned() -> None:
        first()
        for name in ("links", "gz", "gone"):
            call(*place.minion.command("state.apply", name))
        os.sync()

    ways = []
    for ending in place.endings:
        archive = place.archive("bundle", ending)
        ways.append(
            Way(
                f"bundle{ending}",
                place.minion.command("state.apply", ending.rpartition(".")[2]),
                states=True,
                prepare=empty,
                check=partial(undone, place, release, archive),
            )
        )
    tar = ("tar", "-xzf", str(place.archive("plain")), "-C", str(release))
    ways.append(Way(TAR, tar, prepare=beside))
    sharing = CLONES if can_clone(place.work) else COPIES
    for name, states, prepare in (
        (LINKS, "links", first),
        (sharing, "copies", first),
        (HASHED, "links", pruned),
    ):
        ways.append(
            Way(
                name,
                place.minion.command("state.apply", states),
                states=True,
                prepare=prepare,
                check=partial(undone_next, place, states == "links"),
            )
        )
    return ways


def can_clone(directory: Path) -> bool:
    """Whether files can share their content below a directory."""
    source = directory / "source"
    source.write_bytes(b"content" * 1024)
    command = ("cp", "--reflink=always", str(source), str(directory / "clone"))
    return subprocess.run(command, capture_output=True).returncode == 0


def undone(place: Place, release: Path, archive: Path) -> str:
    """What a deploy did not do, or nothing."""
    found = place.minion.answered()
    states = found.items() if isinstance(found, dict) else ()
    comments = [state["comment"] for key, state in states if key.endswith("_|-managed")]
    if len(comments) != 1 or f" was deployed from {archive}: " not in comments[0]:
        return f"it was not deployed from {archive}: {' '.join(comments)}"
    return "" if at_home(release) else "bin/pip does not run out of the release afterwards"


def undone_next(place: Place, linked: bool) -> str:
    """What a deploy of the next release did not do, or nothing."""
    following = place.following
    if problem := undone(place, following, place.archive("next")):
        return problem
    if not list(following.glob(place.case.proof)):
        return f"the release has no {place.case.proof} afterwards"
    if not at_home(place.release):
        return "bin/pip does not run out of the first release afterwards"
    for file in following.glob("lib/python*/site-packages/pip/__init__.py"):
        if (file.stat().st_nlink > 1) != linked:
            return f"{file} has {file.stat().st_nlink} links afterwards"
    return ""


def measure(place: Place, rounds: int) -> dict[str, Applied]:
    """Times of all contenders."""
    ways = [*relocators(place), *deployers(place)]
    times = {way.name: Applied() for way in ways}
    for way in ways:
        if way.states and way.name != HASHED:
            say(f"bench: once before all: {way.name}")
            if problem := one_run(place, way, Applied()):
                raise BenchError(f"{way.name} does not work here: {problem}")
    for way, announced in in_turns([way for way in ways if way.name != HASHED], rounds):
        took = times[way.name]
        took.problem = one_run(place, way, took) or took.problem
        say(f"{announced} {took.runs[-1]:.2f} s")
    last = times[HASHED]
    last.problem = one_run(place, ways[-1], last)
    say(f"bench: once: {HASHED} {last.runs[-1]:.2f} s")
    return times


def one_run(place: Place, way: Way, took: Applied) -> str:
    """Time one run; what it did not do as it should, or nothing."""
    way.prepare()
    if way.states:
        problem = apply(way.command, place.minion, took)
    else:
        code = run(way.command, place.log, took)
        problem = f"exit code {code}: {last_line(place.log)}" if code else ""
    return problem or way.check()


def memory(place: Place, times: Mapping[str, Times]) -> dict[str, tuple[int, int]]:
    """The most that all processes of each deploy of ours hold."""
    found = {}
    for way in deployers(place):
        if way.states and way.name != HASHED:
            way.prepare()
            place.minion.answer.unlink(missing_ok=True)
            found[way.name] = peak_memory(way.command, place.log)
            times[way.name].problem = way.check() or times[way.name].problem
    return found


# --- the report -----------------------------------------------------------------------------------


def tables(measured: Measured) -> list[str]:
    """All that was measured of one virtualenv, in Markdown."""
    times, packed = measured.times, measured.packed
    peer, tar = times[PEER].median, times[TAR].median
    rows = [
        measured.heading,
        "",
        "| contender | median | min | max | its states alone | of virtualenv-tools3 | of tar |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in times.items():
        states = f"{one.all_states:.2f} s" if one.states else ""
        of_peer = f"{one.median / peer:.3f}" if name in (OURS, PEER) else ""
        of_tar = "" if of_peer else f"{one.median / tar:.2f}"
        rows.append(f"{one.row(name)} {states} | {of_peer} | {of_tar} |")
    rows += [
        "",
        "| packed | median | min | max | size | of tar's time | of tar's size |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, made in packed.items():
        following = name == NEXT_PLAIN or name.startswith("next")
        plain = packed[NEXT_PLAIN if following else PLAIN]
        # Whoever gives tar the names of what changed has found them already.
        of_tar = "" if following else f"{made.median / plain.median:.2f}"
        size = f"{made.size / 1e6:,.2f} MB"
        rows.append(f"{made.row(name)} {size} | {of_tar} | {made.size / plain.size:.2f} |")
    held = "; ".join(
        f"{name} {split / 1e6:.0f} MB ({resident / 1e6:.0f} MB)"
        for name, (resident, split) in measured.memory.items()
    )
    facts = "Memory at its peak, all processes (with what they share counted in each): "
    rows += ["", f"{facts}{held}."]
    every: Mapping[str, Times] = {**times, **packed}
    return [*rows, *disturbance(every.values()), *failures(every)]


def goals(measured: Measured) -> list[Goal]:
    times, packed = measured.times, measured.packed
    tar = times[TAR].median

    def ratio(what: str, mine: float, other: float, most: float, digits: int = 2) -> Goal:
        found = mine / other
        return what, f"{found:.{digits}f}", f"{most:.{digits}f}", found <= most

    wanted = [
        ratio(
            "relocating: of virtualenv-tools3's time",
            *(times[OURS].median, times[PEER].median, 0.03, 3),
        )
    ]
    wanted += [
        ratio(f"deploying {name}: of tar's time", one.median, tar, 1.2)
        for name, one in times.items()
        if name.startswith("bundle")
    ]
    wanted += [
        ratio(f"deploying {name}: of tar's time", times[name].median, tar, 0.4)
        for name in (LINKS, CLONES)
        if name in times
    ]
    plain = packed[NEXT_PLAIN].size
    for name, one in packed.items():
        if name.startswith("next"):
            wanted.append(ratio(f"bytes of {name}: of what changed", one.size, plain, 1.2))
        elif name != PLAIN and name != NEXT_PLAIN:
            others = len(one.digests) - 1
            wanted.append((f"packings of {name} with other bytes", str(others), "0", not others))
    wanted += [
        (
            f"memory, deploying {name} ({split / 1e6:.0f} MB with shares split)",
            f"{resident / 1e6:.0f} MB",
            f"{MOST_MEMORY / 1e6:.0f} MB",
            resident < MOST_MEMORY,
        )
        for name, (resident, split) in measured.memory.items()
    ]
    return wanted


def heading(case: Case, title: str, packed: Mapping[str, Packed]) -> str:
    """What was measured."""
    whole, after = packed["bundle.tar.gz"].report, packed["next.tar.gz"].report
    return (
        f"{title}. As packed {whole['files']:,} files, directories and links, of which "
        f"{whole['references']:,} name the old path. The next release has {case.change}, and "
        f"carries {after['carried']:,} files:"
    )


# --- the command ----------------------------------------------------------------------------------


def bench(cache: Path, options: argparse.Namespace) -> Report:
    """Measure everything that was asked for; the report."""
    salt_call = find_salt_call()
    tools = install_tools(cache, with_ours=True)
    sizes = SIZES if options.size == "all" else (options.size,)
    if options.quick:
        sizes = ("small",)
    report = Report("")
    cases = [build_case(cache, tools, size, options) for size in sizes]
    endings = (".tar.gz", ".tar.zst") if shutil.which("zstd") else (".tar.gz",)
    parts = []
    for case in cases:
        with work_directory(cache, int(ROOM * case.tree.size)) as work:
            title = setting(case.tree, work, options.rounds)
            minion = Minion(work / "minion", salt_call)
            place = Place(work, tools, case, minion, endings)
            packed = pack_all(place)
            minion.set_up(**all_states(place))
            times = measure(place, options.rounds)
            held = memory(place, times)
            measured = Measured(heading(case, title, packed), packed, times, held)
        parts.append("\n".join(tables(measured)))
        files = f"{case.tree.files:,} files"
        moved = {name: times[name] for name in (OURS, PEER)}
        deployed = {name: one for name, one in times.items() if name not in (*moved, HASHED)}
        title = f"Relocating an unpacked bundle of {files}"
        report.add(f"bundle-relocate-{case.size}", title, moved, (PEER,))
        title = f"Deploying a bundle of {files}, and the next release"
        report.add(f"bundle-deploy-{case.size}", title, deployed, (TAR,))
        title = f"Packing {files}, and the next release"
        report.add(f"bundle-pack-{case.size}", title, packed, (PLAIN, NEXT_PLAIN))
    if len(endings) == 1:
        parts.append("There is no zstd here, so nothing is packed with it.")
    parts.append(
        "\n".join([f"Goals, for the {cases[-1].tree.files:,} files:", *goal_table(goals(measured))])
    )
    report.text = "\n\n".join(parts)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    known = parser(__doc__)
    known.add_argument("--size", choices=(*SIZES, "all"), default="all", help="of the virtualenv")
    return start(bench, given(known, argv), "bundle")


if __name__ == "__main__":
    sys.exit(main())
