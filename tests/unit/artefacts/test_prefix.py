"""What counts as a reference, and replacing it."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from relocate_core.artefacts.prefix import PLAIN, Prefixes, url_path

OLD, NEW = b"/srv/app", b"/opt/other"
MOVE = Prefixes((OLD,), NEW)

# Each {} is a place where the prefix stands as whole path components.
REFERENCES = {
    "alone": b"{}",
    "below": b"{}/bin/python",
    "trailing-slash": b"{}/",
    "two": b"{}/lib:{}/lib64",
    "path-variable": b"PATH={}/bin:/usr/bin",
    "double-quotes": b'"{}"',
    "single-quotes": b"'{}'",
    "backquotes": b"`{}`",
    "brackets": b"<{}> [{}]",
    "comma": b"{},{}",
    "semicolon": b"cd {};ls",
    "line-feed": b"\n{}\n",
    "carriage-return": b"{}\r\n",
    "tab": b"\t{}\t",
    "flag-L": b"-L{}/lib",
    "flag-I": b"gcc -I{}/include -L{}/lib",
    "rpath": b"-Wl,-rpath,{}/lib",
    "long-option": b"--prefix={}",
    "shell-default": b"${HERE:-{}}",
    "systemd-optional": b"EnvironmentFile=-{}/etc/env",
    "escaped-line-feed": b'"\\n{}"',
    "escaped-tab": b'"a\\t{}/b"',
    "url": b"file://{}",
    "url-localhost": b"file://localhost{}/x",
    "shebang": b"#!{}/bin/python",
    "call": b"cygpath({})",
    "substitution": b"$(dirname {})",
    "end-of-sentence": b"It was built in {}.",
    "end-of-sentence-and-line": b"It was built in {}.\n",
    "exclamation": b"in {}!",
    "hash": b"{}#egg=x",
    "query": b"{}&x",
    "equals": b"{}=1",
    "pipe": b"{}|x",
    "nul": b"\0{}\0",
    "at-sign-before": b"name@{}",
    "closing-brace-behind": b"{'prefix':{}}",
}


@pytest.mark.parametrize("text", REFERENCES.values(), ids=REFERENCES.keys())
def test_a_reference_is_replaced(text: bytes) -> None:
    moved = MOVE.replace(text.replace(b"{}", OLD))
    assert moved == text.replace(b"{}", NEW)
    assert MOVE.replace(moved) == moved
    assert Prefixes((NEW,), OLD).replace(moved) == text.replace(b"{}", OLD)


OTHERS = {
    "longer-name": b"/srv/app2",
    "longer-name-upper": b"/srv/appX",
    "dash": b"/srv/app-old",
    "underscore": b"/srv/app_old",
    "suffix": b"/srv/app.old",
    "two-dots": b"/srv/app..old",
    "dot-directory": b"/srv/app./x",
    "plus": b"/srv/app+x",
    "at": b"/srv/app@2",
    "tilde": b"/srv/app~",
    "percent": b"/srv/app%20x",
    "utf-8": "/srv/appü".encode(),
    "latin-1": b"/srv/app\xfc",
    "escaped-space": b"/srv/app\\ old",
    "variable": b"/srv/app$X",
    "braced-variable": b"/srv/app${X}",
    "substitution": b"/srv/app$(id)",
    "format": b"/srv/app{name}",
    "glob": b"/srv/app*",
    "glob-one": b"/srv/app?",
    "below-another": b"/mnt/srv/app",
    "below-a-dot": b"./srv/app",
    "below-home": b"~/srv/app",
    "below-a-variable": b"$HOME/srv/app",
    "below-a-braced-variable": b"${HOME}/srv/app",
    "below-a-substitution": b"$(pwd)/srv/app",
    "below-utf-8": "/ü/srv/app".encode(),
    "below-a-name-in-utf-8": "ü/srv/app".encode(),
    "below-a-number": b"1/srv/app",
    "two-slashes": b"/mnt//srv/app",
    "below-a-dash": b"/x-/srv/app",
    "below-a-flag-like-name": b"/x-L/srv/app",
    "below-a-windows-path": b"C:\\x/srv/app",
    "host": b"http://host/srv/app",
    "shorter": b"/srv/ap",
    "other-case": b"/SRV/APP",
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS.keys())
def test_what_only_looks_alike_stays(text: bytes) -> None:
    assert MOVE.replace(text) == text
    assert MOVE.replace(b'x = "' + text + b'"\n') == b'x = "' + text + b'"\n'


def test_the_longest_old_prefix_wins() -> None:
    both = Prefixes((b"/srv", b"/srv/app"), b"/new")
    assert both.replace(b"/srv/app/x /srv/y /srv/apple") == b"/new/x /new/y /new/apple"


def test_two_spellings_of_one_directory() -> None:
    both = Prefixes((b"/var/build/venv", b"/mnt/disk/build/venv"), b"/srv/app")
    text = b"/var/build/venv:/mnt/disk/build/venv"
    assert both.replace(text) == b"/srv/app:/srv/app"


def test_the_new_prefix_among_the_old_ones_is_ignored() -> None:
    assert Prefixes((OLD, NEW), NEW).old == (OLD,)
    assert Prefixes((NEW,), NEW).replace(NEW) == NEW


def test_the_same_object_comes_back_where_there_is_nothing_to_do() -> None:
    data = b"nothing here, not even /srv/application"
    assert MOVE.replace(data) is data


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"/srv/app", b"/srv/app/v2"),
        (b"/srv/app", b"/mnt/srv/app"),
        (b"/srv/app", b"/srv/app/srv/app"),
        (b"/srv/app", b"/x/srv/app/y"),
        (b"/srv/app", b"/srv/app2"),
        (b"/srv/app/v2", b"/srv/app"),
        (b"/mnt/srv/app", b"/srv/app"),
        (b"/a", b"/a/a"),
        (b"/a/a", b"/a"),
        (b"/srv/app", b"/srv/app -L/srv/app"),
        (b"/srv/app", b'/x"/srv/app'),
        (b"/srv/app", b"/x y /srv/app/z"),
        (b"/srv/my app", b"/srv/my app/my app"),
    ],
)
def test_a_second_run_changes_nothing_and_the_way_back_gives_every_byte(
    old: bytes, new: bytes
) -> None:
    move, back = Prefixes((old,), new), Prefixes((new,), old)
    for template in (t for t in REFERENCES.values() if b"{HERE" not in t):
        text = template.replace(b"{}", old)
        moved = move.replace(text)
        assert moved == template.replace(b"{}", new)
        assert move.replace(moved) == moved
        assert back.replace(moved) == text


def test_plain_means_both_prefixes() -> None:
    assert MOVE.plain
    assert not Prefixes((b"/srv/my app",), NEW).plain
    assert not Prefixes((OLD,), b"/srv/100%").plain
    assert not Prefixes((OLD,), "/srv/ü".encode()).plain


def test_arguments_build_the_same_object() -> None:
    first = Prefixes((b"/b", b"/a/long"), b"/n", (b"a", b"n"))
    second = Prefixes(*first.arguments)
    assert second.arguments == first.arguments
    assert second.replace(b"/b /a/long") == b"/n /n"


# --- properties -----------------------------------------------------------------------------------

# A prefix that ends with a quote and is followed by the old one (`/srv/x'/srv/app`) is the one text
# that a second run reads differently; a directory's name here ends with letters.
component = st.from_regex(r"[ab.\-_ 'ü$]?[abü][abü_]", fullmatch=True).filter(
    lambda name: name == name.strip()
)
paths = st.lists(component, min_size=1, max_size=4).map(lambda c: ("/" + "/".join(c)).encode())
noise = st.text("ab/ .:\"'=-L\n\\n$~", max_size=8).map(str.encode)


@st.composite
def texts(draw: st.DrawFn, *, of: tuple[bytes, ...]) -> bytes:
    pieces = draw(st.lists(st.one_of(noise, st.sampled_from(of)), max_size=12))
    return b"".join(pieces)


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_a_second_run_changes_nothing_in_any_text(data: st.DataObject) -> None:
    new = data.draw(paths)
    old = data.draw(st.one_of(paths, st.just(new.rpartition(b"/")[0] or b"/a")))
    # /x/x to /x: what /x/x/x became, /x/x, cannot be told from an old /x/x.
    assume(old != new and not old.startswith(new))
    move = Prefixes((old,), new)
    text = data.draw(texts(of=(old, new, old + b"/x", new + b"/x")))
    once = move.replace(text)
    assert move.replace(once) == once


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_a_second_run_changes_nothing_with_two_old_prefixes(data: st.DataObject) -> None:
    one, new = data.draw(paths), data.draw(paths)
    two = data.draw(st.one_of(paths, st.just(one + b"/a"), st.just(b"/b" + one)))
    assume(not one.startswith(new) and not two.startswith(new))
    move = Prefixes((one, two), new)
    text = data.draw(texts(of=(one, two, new, two + b"/x")))
    once = move.replace(text)
    assert move.replace(once) == once


@settings(deadline=None, max_examples=400)
@given(paths, paths, st.lists(st.sampled_from(sorted(REFERENCES.values())), min_size=1, max_size=6))
def test_references_go_there_and_back(old: bytes, new: bytes, templates: list[bytes]) -> None:
    assume(old != new)
    template = b"\n".join(t for t in templates if b"${" not in t)
    text = template.replace(b"{}", old)
    # A template that happens to name the new prefix is ambiguous on the way back.
    assume(not any(True for _ in Prefixes((new,), b"/nowhere").matches(text)) or new in old)
    moved = Prefixes((old,), new).replace(text)
    assume(new not in text)
    assert moved == template.replace(b"{}", new)
    assert Prefixes((new,), old).replace(moved) == text


@settings(deadline=None, max_examples=400)
@given(noise, noise, paths)
def test_nothing_but_the_prefix_changes(before: bytes, behind: bytes, new: bytes) -> None:
    assume(OLD not in before + behind)
    text = before + OLD + behind
    assume(text.count(OLD) == 1 and new not in text)
    assert Prefixes((OLD,), new).replace(text) in (text, before + new + behind)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=40), st.booleans())
def test_a_url_is_read_back_as_the_path(tail: bytes, compact: bool) -> None:
    path = b"/srv/" + tail
    assert unquote_to_bytes(url_path(path, compact)) == path
    assert re.fullmatch(rb"[\x21-\x7e]*", url_path(path, compact))


@given(st.binary(max_size=12))
def test_plain_paths_are_spelled_alike_in_urls(path: bytes) -> None:
    if PLAIN.match(path) and not re.search(rb"[+@:,=]", path):
        assert url_path(path) == url_path(path, True) == path
