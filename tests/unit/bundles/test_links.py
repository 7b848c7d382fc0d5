"""Whether a link leaves the tree: told without a file system, and compared with the kernel."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from relocate_core.bundles.links import fault, is_base
from tests.support.fuzz import examples

NAMES = ("a", "b", "c", "bin", "python3")
# Targets of links; the upper ones are replaced by absolute paths of the place they are tried in.
PARTS = (*NAMES, *NAMES, ".", "..", "..", "", "missing")
TREE, BASE, ELSEWHERE = "TREE", "BASE", "ELSEWHERE"


class Entry(NamedTuple):
    """Something to be made in a tree: a directory, a file, or - with a target - a link."""

    path: tuple[str, ...]
    target: tuple[str, ...] | None = None
    is_file: bool = False


paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple)
targets = st.tuples(
    st.sampled_from(((), (), (), (), (TREE,), (BASE,))),
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map(tuple),
).map(lambda both: both[0] if both[0] == (BASE,) else both[0] + both[1])
entries = st.one_of(
    st.builds(Entry, paths, st.none()),
    st.builds(Entry, paths, st.none(), st.just(True)),
    st.builds(Entry, paths, targets, st.just(False)),
    st.builds(Entry, paths, targets, st.just(False)),
    st.just(Entry(("bin", "python3"), (BASE,))),
)


class Place:
    """A tree on disk, and around it what its links may point to.

    The tree has a name that no link can spell, so that none leaves it and comes back: then each
    link is bad or good by itself.
    """

    def __init__(self, directory: str) -> None:
        self.directory = os.path.realpath(directory)
        self.tree = os.path.join(self.directory, "the tree")
        self.links: dict[str, str] = {}
        # Both are directories, so that something can be looked for behind the interpreter.
        self.base = os.path.join(self.directory, "base", "python3")
        self.elsewhere = os.path.join(self.directory, "elsewhere", "python3")
        for path in (self.tree, self.base, self.elsewhere):
            os.makedirs(path)
        for name in NAMES:  # so that what leaves the tree arrives at something
            for around in (self.directory, self.base, self.elsewhere):
                os.makedirs(os.path.join(around, name, "a"), exist_ok=True)

    def make(self, entry: Entry) -> None:
        """Make an entry and the directories above it, unless something else is in the way."""
        path = os.path.join(self.tree, *entry.path)
        if os.path.lexists(path):
            return
        at = self.tree
        for name in entry.path[:-1]:
            at = os.path.join(at, name)
            if os.path.lexists(at) and (os.path.islink(at) or not os.path.isdir(at)):
                return
        os.makedirs(at, exist_ok=True)
        if entry.target is not None:
            target = self.spelled("/".join(entry.path), entry.target)
            if target:
                os.symlink(target, path)
                self.links["/".join(entry.path)] = target
        elif entry.is_file:
            with open(path, "x"):
                pass
        else:
            os.mkdir(path)

    def spelled(self, path: str, target: tuple[str, ...]) -> str:
        """A target as a link has it; only the interpreter's link may point to the base Python."""
        if target[0] == BASE:
            return self.base if path == "bin/python3" else self.elsewhere
        if target[0] == TREE:
            return "/".join((self.tree, *target[1:]))
        # An empty first part would make it absolute by accident.
        return "/".join(target).lstrip("/")

    def goes_out_to_a_python(self) -> bool:
        """Whether the interpreter's link leaves the tree, though it begins there: as to any base.

        `is_base` takes that by its spelling alone, so nothing of it is compared.
        """
        target = self.links.get("bin/python3", "")
        begins = target.startswith(f"{self.tree}/") and os.path.basename(target) == "python3"
        return begins and not os.path.normpath(target).startswith(f"{self.tree}/")

    def kernel(self, path: str) -> str:
        """What the kernel says of a link: "inside", "outside", "circle" or "missing"."""
        target = self.links[path]
        start = os.path.join(self.tree, os.path.dirname(path))
        if target == self.elsewhere:
            return "outside"
        if target == self.base:
            return "inside"
        if target.startswith(self.tree):
            start, target = self.tree, target[len(self.tree) + 1 :]
        parts = target.split("/")
        try:
            for count in range(1, len(parts) + 1):
                real = _opened("/".join((start, *parts[:count])))
                if real == self.tree or real.startswith(f"{self.tree}/"):
                    continue
                is_last = all(part in ("", ".") for part in parts[count:])
                if real != self.base or not is_last:
                    return "outside"
            _opened(os.path.join(self.tree, path))  # one link more than its target has
        except OSError as error:
            if error.errno == errno.ELOOP:
                return "circle"
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return "missing"
            raise
        return "inside"


def _opened(path: str) -> str:
    """Where the kernel arrives at by a path."""
    descriptor = os.open(path, os.O_PATH)
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@contextmanager
def place() -> Iterator[Place]:
    directory = tempfile.mkdtemp()
    try:
        yield Place(directory)
    finally:
        shutil.rmtree(directory)


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(entries, min_size=1, max_size=12))
@example([Entry(("a", "b", "c"), ("..", "..")), Entry(("b",), ("a", "b", "c", ".."))])
@example([Entry(("a",), ("b",)), Entry(("b",), ("a",))])
@example([Entry(("bin", "python3"), (TREE, "bin", "python3"))])
@example([Entry(("bin", "python3"), (TREE, "..", "python3"))])
@example([Entry(("a",), ("a",))])
@example([Entry(("bin", "python3"), (BASE,)), Entry(("b",), ("bin", "python3", "a"))])
@example([Entry(("bin", "python3"), (BASE,)), Entry(("b",), ("bin", "python3", "."))])
@example([Entry(("a", "python3"), (BASE,))])
@example([Entry(("a",), (TREE, "..", "a"))])
def test_the_verdict_is_the_kernels(wanted: list[Entry]) -> None:
    with place() as here:
        for entry in wanted:
            here.make(entry)
        if here.goes_out_to_a_python():
            assert fault("bin/python3", here.links, (here.tree,)) is None
            return
        for path, target in here.links.items():
            said = fault(path, here.links, (here.tree,))
            kernel = here.kernel(path)
            event(f"{kernel}, {'refused' if said else 'allowed'}")
            told = f"{path} -> {target}: {said!r}, and the kernel: {kernel} in {here.links}"
            if kernel == "inside":
                assert said is None, told
            elif kernel != "missing":
                # Of what is missing on the way, nobody knows what it will be: either is right.
                assert said is not None, told


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(entries, min_size=1, max_size=12))
def test_what_is_missing_does_not_lead_out_once_it_is_there(wanted: list[Entry]) -> None:
    """A program that makes the directory a dangling link names must not open a way out by it."""
    with place() as here:
        for entry in wanted:
            here.make(entry)
        if here.goes_out_to_a_python():
            return
        if any(fault(path, here.links, (here.tree,)) for path in here.links):
            return
        for directory, _, _ in list(os.walk(here.tree)):
            for name in (*NAMES, "missing"):
                path = os.path.join(directory, name)
                if not os.path.lexists(path):
                    os.makedirs(os.path.join(path, "a"))
        for path in here.links:
            assert here.kernel(path) in ("inside", "missing"), (path, here.links)


@pytest.mark.parametrize("hops", [1, 39, 40, 41, 60])
def test_as_many_links_are_followed_as_the_kernel_does(hops: int) -> None:
    with place() as here:
        for number in range(hops):
            here.make(Entry((f"link{number}",), (f"link{number + 1}",)))
        here.make(Entry((f"link{hops}",)))
        said = fault("link0", here.links)
        assert (said is None) == (here.kernel("link0") == "inside")


INSIDE: dict[str, tuple[str, Mapping[str, str]]] = {
    "sibling": ("a", {"a": "b"}),
    "directory": ("lib64", {"lib64": "lib"}),
    "top": ("lib/top", {"lib/top": ".."}),
    "down-and-up": ("a", {"a": "b/../c/../d"}),
    "through-links": ("a", {"a": "b/c/..", "b": "d", "d/c": "../e/f"}),
    "interpreter": ("bin/python3", {"bin/python3": "/usr/bin/python3.11"}),
    "interpreter-by-a-way-from-inside": (
        "bin/python3",
        {"bin/python3": "/srv/app/../py/bin/python3.11"},
    ),
    "to-the-interpreter": ("a", {"a": "bin/python", "bin/python": "/usr/bin/python3"}),
    "own-prefix": ("a", {"a": "/srv/app/b"}),
    "own-prefix-itself": ("a", {"a": "/srv/app"}),
    "own-prefix-through-links": ("a", {"a": "/srv/app/b/../c", "b": "d/e/f"}),
}
OUTSIDE: dict[str, tuple[str, Mapping[str, str]]] = {
    "parent": ("a", {"a": ".."}),
    "parent-of-a-directory": ("b/a", {"b/a": "../.."}),
    "parent-and-back": ("a", {"a": "../app/b"}),
    "absolute": ("a", {"a": "/etc/passwd"}),
    "absolute-link-on-the-way": ("a", {"a": "b/c", "b": "/etc"}),
    "prefix-of-the-prefix": ("a", {"a": "/srv"}),
    "longer-than-the-prefix": ("a", {"a": "/srv/app2"}),
    "out-of-the-prefix": ("a", {"a": "/srv/app/../app"}),
    "through-a-link": ("a", {"a": "b/../../..", "b": "c/d"}),
    "through-a-shallow-link": ("a", {"a": "c/d/../..", "c/d": "../e/f", "e": "."}),
    "behind-the-interpreter": ("a", {"a": "bin/python/x", "bin/python": "/usr/bin/python3"}),
    "up-from-the-interpreter": ("a", {"a": "bin/python/..", "bin/python": "/usr/bin/python3"}),
    "circle": ("a", {"a": "b", "b": "a"}),
    "itself": ("a", {"a": "a"}),
    "itself-below": ("a", {"a": "a/b"}),
    "itself-by-the-prefix": ("a", {"a": "/srv/app/a"}),
}


@pytest.mark.parametrize(("path", "links"), INSIDE.values(), ids=INSIDE.keys())
def test_it_stays(path: str, links: Mapping[str, str]) -> None:
    assert fault(path, links, ("/srv/app",)) is None


@pytest.mark.parametrize(("path", "links"), OUTSIDE.values(), ids=OUTSIDE.keys())
def test_it_leaves(path: str, links: Mapping[str, str]) -> None:
    assert fault(path, links, ("/srv/app",))


@pytest.mark.parametrize("links", [{"a": "/"}, {"a": "/etc/passwd"}, {"a": "//etc"}])
@pytest.mark.parametrize("prefixes", [(), ("/srv/app",), ("/srv/app", "/var/build")])
def test_no_prefix_allows_anything_else(
    links: Mapping[str, str], prefixes: tuple[str, ...]
) -> None:
    assert fault("a", links, prefixes)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("bin/python", "/usr/bin/python3.11"),
        ("bin/python3", "/usr/bin/python3"),
        ("bin/python3.13t", "/opt/python/bin/python3.13t"),
        ("bin/pypy3.9", "/opt/pypy3.9/bin/pypy3.9"),
        ("bin/python", "/opt/pypy/bin/pypy3"),
        ("bin/python3.11-dbg", "/usr/bin/python3.11-dbg"),
        ("bin/platform-python", "/usr/libexec/platform-python"),
        ("bin/\N{MATHEMATICAL ITALIC SMALL PI}thon", "/usr/bin/python3.14"),
        ("bin/python3", "/usr/lib/../bin/python3"),  # venv up to 3.12 has it as it was called
        ("bin/python3", "/usr//bin/python3"),
        ("lib/python2.7/os.py", "/usr/lib/python2.7/os.py"),
        ("lib/python2.7/lib-dynload", "/usr/lib/python2.7/lib-dynload"),
    ],
)
def test_what_leads_to_the_base(path: str, target: str) -> None:
    assert is_base(path, target)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("bin/python", "/etc/passwd"),
        ("bin/python", "/"),
        ("bin/python", "/usr/bin/python/"),
        ("bin/python", "/usr/bin/python/.."),
        ("bin/python3-config", "/usr/bin/python3-config"),
        ("bin/python3-dbg", "/usr/bin/passwd"),
        ("bin/python\n", "/usr/bin/python"),
        ("bin/a/python", "/usr/bin/python"),
        ("a/bin/python", "/usr/bin/python"),
        ("python", "/usr/bin/python"),
        ("bin/sh", "/usr/bin/python"),
        ("lib/python2.7/os.py", "/etc/os.py"),
        ("lib/python2.7/os.py", "/usr/lib/python2.7/shutil.py"),
        ("lib/python2.7/os.py", "/usr/lib/python2.7/x/../os.py"),
        ("lib/python2.7/site-packages", "/usr/lib/python2.7/site-packages"),
        ("lib/python2.7/site-packages/a.py", "/usr/lib/python2.7/site-packages/a.py"),
        ("lib/app.py", "/usr/lib/app.py"),
        ("etc/passwd", "/etc/passwd"),
    ],
)
def test_what_does_not(path: str, target: str) -> None:
    assert not is_base(path, target)
