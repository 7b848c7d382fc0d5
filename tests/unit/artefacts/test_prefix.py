"""What counts as a reference, and replacing it."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from relocate_core.artefacts import spellings
from relocate_core.artefacts.kinds import Rewritten, rewrite
from relocate_core.artefacts.prefix import PLAIN, Prefixes, url_path
from tests.support.fuzz import examples

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
    "url-empty-host": b"sqlite:///{}/db.sqlite",
    "url-file-four-slashes": b"file:///{}",
    "url-query": b"file://{}?mode=ro",
    "flag-isystem": b"gcc -isystem{}/include -iquote{}/x -include{}/y.h",
    "flag-without-space": b"'-I{}/include','-L{}/lib'",
    "typographic-quotes": "\u201c{}\u201d \u2018{}/x\u2019".encode(),
    "guillemets": "«{}»".encode(),
    "full-width": "\u5728\uff1a{}\u3002".encode(),
    "escaped-slash-behind": b"{}\\/x",
    "systemd-privileges": b"ExecStart=+{}/bin/x",
    "systemd-several": b"ExecStart=-!!+{}/bin/x",
    "escaped-quote": b'{"a": "\\u0022{}/x\\u0022", "b": "\\u003d{}"}',
    "terminal-colour": b"\x1b[32m{}/x\x1b[0m",
    "xml-comment": b"<!--{}/x-->",
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


DOUBTS = {
    "query": b"/srv/app?x",
    "percent": b"/srv/app%20",
    "format": b"/srv/app%s",
    "shell-space": b"/srv/app\\ x",
    "shell-dash": b"/srv/app\\-x",
    "regex": b"/srv/app\\.old",
    "two-slashes": b"//srv/app//lib",
    "five-slashes": b"x://///srv/app",
    "escaped": b"\\/srv/app/x",
    "glob": b"/srv/app*",
    "braces": b"/srv/app{,2}",
    "variable": b"/srv/app$X/lib",
    "letter-in-utf-8": "ü/srv/app/x".encode(),
    "letter-in-latin-1": b"\xfc/srv/app/x\n",
    "percent-before": b"x=%20/srv/app/x",
    "escaped-letter": b'"x\\u00e9/srv/app/x"',
    "escaped-byte": b'"\\xe9/srv/app/x"',
    "file-with-host": b"file://build.example/srv/app/x",
    "socket-with-a-slash-missing": b"unix://srv/app/run/s.sock",
    "make-destdir": b"$(DESTDIR)/srv/app/x",
    "cmake-destdir": b"$ENV{DESTDIR}/srv/app/x",
    "sysroot": b"${pc_sysrootdir}/srv/app/x",
    "json-in-json": rb'"{\"a\": \"\\/srv\\/app\\/x\"}"',
    "javascript": rb"'\u002Fsrv\u002Fapp\u002Fx'",
    "hexadecimal": rb"'\x2fsrv\x2fapp\x2fx'",
    "html": b"<a x='&#x2F;srv&#x2F;app&#x2F;x'>",
    "html-decimal": b"<a x='&#47;srv&#47;app&#47;x'>",
    "url-twice": b"?next=%252Fsrv%252Fapp%252Fx",
    "windows": rb"'\srv\app\x'",
    "windows-in-json": rb'"\\srv\\app\\x"',
    "mail": b"=2Fsrv=2Fapp=2Fx",
    "two-slashes-within": b"/srv//app/x",
    "dot-within": b"/srv/./app/x",
}


@pytest.mark.parametrize("text", DOUBTS.values(), ids=DOUBTS.keys())
def test_what_may_be_a_reference_is_left_and_reported(text: bytes) -> None:
    for data in (text, b'x = "' + text + b'"\n'):
        result = rewrite("etc/x.conf", data, MOVE)
        assert result.data == data
        assert "may refer" in result.problem
        assert any(needle in data for needle in spellings.needles((OLD,)))


@pytest.mark.parametrize(
    "text",
    [
        b"/srv/app2",
        b"/srv/app-old/x",
        b"/srv/app.old",
        b"/mnt/srv/app",
        b"$HOME/srv/app",
        b"http://srv/app/x",
        b"http://host/srv/app",
        b"/mnt//srv/app",
        b"&#x2F;mnt&#x2F;srv&#x2F;app",
        rb"\mnt\srv\app",
        rb"\u002fsrv\u002fapp2",
        b"/srv//app-2",
        b"${HOME}/srv/app",
        b"/srv/app/x",
        b"-L/srv/app",
        b"file:///srv/app",
    ],
)
def test_what_is_clear_is_not_reported(text: bytes) -> None:
    assert rewrite("etc/x.conf", text, MOVE).problem == ""


SPELLED = {
    "json": rb'{"a": "\/srv\/app\/bin\/x", "b": "\/srv\/app"}',
    "json-url": rb'"file:\/\/\/srv\/app\/x" "sqlite:\/\/\/\/srv\/app\/x"',
    "sed": rb"s/\/srv\/app\/etc/x/",
    "unix-socket": b"http+unix://%2Fsrv%2Fapp%2Frun.sock/v1/info",
    "lower-case": b"http+unix://%2fsrv%2fapp%2frun.sock",
    "query": b"https://host/?next=%2Fsrv%2Fapp%2Fx&y=1",
    "url-in-url": b"u=file%3A%2F%2F%2Fsrv%2Fapp",
}


@pytest.mark.parametrize("text", SPELLED.values(), ids=SPELLED.keys())
@pytest.mark.parametrize("new", [b"/opt/other", b"/srv/app/v2", b"/opt/x-1"])
def test_other_slashes_are_kept(text: bytes, new: bytes) -> None:
    move = Prefixes((OLD,), new)
    result = rewrite("etc/x.conf", text, move)
    assert not result.problem
    plain = text.replace(rb"\/", b"/").replace(b"%2F", b"/").replace(b"%2f", b"/")
    found = result.data.replace(rb"\/", b"/").replace(b"%2F", b"/").replace(b"%2f", b"/")
    assert found == plain.replace(OLD, new)
    assert rewrite("etc/x.conf", result.data, move) == result
    assert rewrite("etc/x.conf", result.data, Prefixes((new,), OLD)).data == text
    assert any(needle in text for needle in spellings.needles((OLD,)))


@pytest.mark.parametrize(
    "text",
    [
        rb"\/srv\/app2",
        rb"\/mnt\/srv\/app",
        b"%2Fmnt%2Fsrv%2Fapp",
        b"a%2Fsrv%2Fapp",
        b"%2Fsrv%2Fapp2",
    ],
)
def test_longer_paths_with_other_slashes_stay(text: bytes) -> None:
    assert rewrite("etc/x.conf", text, MOVE) == Rewritten("text", text)


@pytest.mark.parametrize("text", [b"%2Fsrv%2Fapp%20x", rb"\/srv\/app\-x"])
def test_other_slashes_before_something_unknown_are_reported(text: bytes) -> None:
    result = rewrite("etc/x.conf", text, MOVE)
    assert result.data == text
    assert "may refer" in result.problem


@pytest.mark.parametrize(
    "text",
    [
        rb"^/srv/w48/shop\-4f2a9c1/x",
        rb"Where=/srv/w48/shop\x2d4f2a9c1",
        b'{"a": "/srv/w48/shop\\u002d4f2a9c1/x"}',
        b"/srv/w48/shop%2D4f2a9c1/x",
    ],
)
def test_another_letter_that_is_escaped_is_reported(text: bytes) -> None:
    old = b"/srv/w48/shop-4f2a9c1"
    result = rewrite("etc/x.conf", text, Prefixes((old,), b"/opt/x"))
    assert result.data == text
    assert "may refer" in result.problem
    assert spellings.needles((old,)) == (b"4f2a9c1",)


@pytest.mark.parametrize(
    ("new", "unit"),
    [(b"/opt/x", b"/mnt/srv/app /srv/app2 "), (b"/opt/app", b"/opt/app/x app "), (b"/x", b"app ")],
)
def test_no_byte_is_looked_at_twice(new: bytes, unit: bytes) -> None:
    """Around each place with a word of the path, and places may lie close together."""
    data = unit * 1000
    windows = list(spellings._around(data, b"app", 64))
    assert sum(max(0, min(last, len(data)) - first) for first, last in windows) <= len(data)
    assert spellings.left(data, Prefixes((OLD,), new)) == ""
    assert spellings.left(data + b"&#x2F;srv&#x2F;app", Prefixes((OLD,), new))


@pytest.mark.parametrize("text", [rb"/^\/app\/static/", b"?next=%2Fapp%2Fstatic"])
def test_a_word_between_other_slashes_is_reported(text: bytes) -> None:
    result = rewrite("lib/x.js", text, Prefixes((b"/app",), b"/opt/x"))
    assert result.data == text
    assert "may refer" in result.problem
    own = Prefixes((OLD,), b"/opt/x").in_package(lambda path: True)
    text = text.replace(rb"\/app", rb"\/srv\/app").replace(b"%2Fapp", b"%2Fsrv%2Fapp")
    assert rewrite("lib/x.js", text, own).data == text
    assert rewrite("lib/x.js", text, own).problem


@pytest.mark.parametrize(
    ("path", "common"),
    [
        ("/app", True),
        ("/v1", True),
        ("/home/user", True),
        ("/usr/src/app", True),
        ("/srv/app/0123456789", False),
        ("/srv/app-1", False),
        ("/opt/one/two/three", False),
        ("/relocate-build", False),
    ],
)
def test_a_prefix_of_plain_words_is_a_common_one(path: str, common: bool) -> None:
    assert Prefixes((path.encode(),), b"/x").common == common
    assert not Prefixes((path.encode(),), b"/x", certain=True).common


def test_in_a_package_a_common_prefix_has_to_go_on_to_something_installed() -> None:
    there = {b"bin/python", b"lib/python3.12/site-packages", b"static/x.css", b"lib"}
    own = Prefixes((b"/app",), b"/opt/x").in_package(there.__contains__)
    data = b"/app/bin/python /app/lib/python3.12/site-packages. /app/static/x.css /app/lib /app"
    expected = b"/opt/x/bin/python /opt/x/lib/python3.12/site-packages. "
    assert own.replace(data) == expected + b"/app/static/x.css /app/lib /app"
    assert own.doubt(data)
    assert not own.doubt(b"/app/bin/python")
    assert own.everywhere().replace(b"/app/lib") == b"/opt/x/lib"


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


@settings(deadline=None, max_examples=examples(400))
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


@settings(deadline=None, max_examples=examples(400))
@given(st.data())
def test_a_second_run_changes_nothing_with_two_old_prefixes(data: st.DataObject) -> None:
    one, new = data.draw(paths), data.draw(paths)
    two = data.draw(st.one_of(paths, st.just(one + b"/a"), st.just(b"/b" + one)))
    assume(not one.startswith(new) and not two.startswith(new))
    move = Prefixes((one, two), new)
    text = data.draw(texts(of=(one, two, new, two + b"/x")))
    once = move.replace(text)
    assert move.replace(once) == once


@settings(deadline=None, max_examples=examples(400))
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


@settings(deadline=None, max_examples=examples(400))
@given(noise, noise, paths)
def test_nothing_but_the_prefix_changes(before: bytes, behind: bytes, new: bytes) -> None:
    assume(OLD not in before + behind)
    text = before + OLD + behind
    assume(text.count(OLD) == 1 and new not in text)
    assert Prefixes((OLD,), new).replace(text) in (text, before + new + behind)


@settings(deadline=None, max_examples=examples(300))
@given(st.binary(max_size=40), st.booleans())
def test_a_url_is_read_back_as_the_path(tail: bytes, compact: bool) -> None:
    path = b"/srv/" + tail
    assert unquote_to_bytes(url_path(path, compact)) == path
    assert re.fullmatch(rb"[\x21-\x7e]*", url_path(path, compact))


@given(st.binary(max_size=12))
def test_plain_paths_are_spelled_alike_in_urls(path: bytes) -> None:
    if PLAIN.match(path) and not re.search(rb"[+@:,=]", path):
        assert url_path(path) == url_path(path, True) == path
