"""Paths in quoted text, read back by the real languages."""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relocate_core.artefacts.prefix import Prefixes
from relocate_core.artefacts.quoting import (
    BATCH,
    CSH,
    FISH,
    JSON,
    NU,
    POWERSHELL,
    PYTHON,
    PYTHON_ASCII,
    SH,
    Language,
    Unquotable,
    replace,
)
from tests.support.fuzz import examples
from tests.support.paths import CLASSICS, nasty

OLD = b"/srv/app"
fuzz = settings(
    deadline=None,
    max_examples=examples(40),
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)


def there_and_back(text: bytes, new: bytes, language: Language) -> bytes:
    """The text moved to `new`; asserts that a second run and the way back are exact."""
    move, back = Prefixes((OLD,), new), Prefixes((new,), OLD)
    moved = replace(text, move, language)
    assert replace(moved, move, language) == moved, "a second run"
    assert replace(moved, back, language) == text, "the way back"
    return moved


# --- shells ---------------------------------------------------------------------------------------

# Each is an expression of one word, and what it stands for.
WORDS = {
    "posix": [
        (b"/srv/app", b"{}"),
        (b"'/srv/app'", b"{}"),
        (b'"/srv/app"', b"{}"),
        (b"/srv/app/bin:/srv/app/lib", b"{}/bin:{}/lib"),
        (b"'/srv/app/bin:/srv/app/lib'", b"{}/bin:{}/lib"),
        (b'"/srv/app/bin:$NOTHING/srv"', b"{}/bin:/srv"),
        (b"'-L/srv/app/lib -I/srv/app/include'", b"-L{}/lib -I{}/include"),
        (b"a'b'=/srv/app\"/c\"", b"ab={}/c"),
        (b'"$(printf %s /srv/app/x)"', b"{}/x"),
        (b"\"$(printf %s '/srv/app/x')\"", b"{}/x"),
        (b'"$(printf %s "/srv/app/x")"', b"{}/x"),
        (b"${NOTHING:-/srv/app/lib}", b"{}/lib"),
        (b'"${NOTHING:-/srv/app/lib}:/srv/app"', b"{}/lib:{}"),
        (b"\"it's \"'/srv/app'", b"it's {}"),
        (b"\\'/srv/app", b"'{}"),
    ],
    "csh": [
        (b"/srv/app", b"{}"),
        (b"'/srv/app'", b"{}"),
        (b'"/srv/app"', b"{}"),
        (b"'/srv/app'\"/\"'bin'\"/deactivate.csh\"", b"{}/bin/deactivate.csh"),
        (b'"/srv/app/bin:$HOME/x"', b"{}/bin:/home/x"),
        (b"'/srv/app/bin:/srv/app/lib'", b"{}/bin:{}/lib"),
    ],
    "fish": [
        (b"/srv/app", b"{}"),
        (b"'/srv/app'", b"{}"),
        (b'"/srv/app"', b"{}"),
        (b"'/srv/app''/bin'", b"{}/bin"),
        (b'"/srv/app/bin:$HOME/x"', b"{}/bin:/home/x"),
        (b"'/srv/app/bin:/srv/app/lib'", b"{}/bin:{}/lib"),
        (b"(printf %s '/srv/app/x')", b"{}/x"),
    ],
}
SHELLS = {
    "bash": ("posix", SH),
    "dash": ("posix", SH),
    "zsh": ("posix", SH),
    "tcsh": ("csh", CSH),
    "fish": ("fish", FISH),
}


def run_shell(shell: str, words: list[bytes], directory: Path) -> list[bytes]:
    """What a real shell understands by each word, from one script."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not on this machine")
    script = directory / "script"
    script.write_bytes(b"".join(b"printf '%s\\0' " + word + b"\n" for word in words))
    flags = {"bash": ["--norc"], "zsh": ["-f"], "tcsh": ["-f"], "fish": ["--no-config"]}
    done = subprocess.run(
        [program, *flags.get(shell, []), str(script)],
        env={"PATH": os.environ["PATH"], "HOME": "/home", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert not done.stderr, done.stderr
    return done.stdout.split(b"\0")[:-1]


def check_shell(shell: str, paths: list[bytes], directory: Path) -> None:
    family, language = SHELLS[shell]
    cases, words = [], []
    for path, (word, meaning) in itertools.product(paths, WORDS[family]):
        try:
            words.append(there_and_back(word, path, language))
            cases.append((path, word, meaning))
        except Unquotable:
            assert b'"${' in word
            assert re.search(rb"['}<>]", path)
    read = run_shell(shell, words, directory)
    for (path, word, meaning), moved, got in zip(cases, words, read):
        assert got == meaning.replace(b"{}", path), (word, moved)
    assert len(read) == len(cases)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_reads_the_classics(shell: str, tmp_path: Path) -> None:
    check_shell(shell, CLASSICS, tmp_path)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.few(3)
def test_a_shell_reads_any_path(shell: str, tmp_path: Path) -> None:
    @fuzz
    @given(st.lists(nasty, min_size=8, max_size=8))
    def check(paths: list[bytes]) -> None:
        check_shell(shell, paths, tmp_path)

    check()


@pytest.mark.parametrize("language", [SH, CSH, FISH, POWERSHELL, NU, BATCH, PYTHON, JSON])
def test_every_byte_is_read_once(language: Language) -> None:
    @settings(deadline=None, max_examples=examples(300))
    @given(st.lists(st.sampled_from([*map(bytes, zip(range(256))), b"r#'", b'"""', b"\\u00"])))
    def check(pieces: list[bytes]) -> None:
        text = b"".join(pieces)
        assert sum(unit.length for unit in language.read(text)) == len(text)

    check()


@pytest.mark.parametrize("path", CLASSICS)
@pytest.mark.parametrize("language", [SH, CSH, FISH])
def test_a_comment_has_the_path_as_it_is(path: bytes, language: Language) -> None:
    text = b"# don't touch /srv/app\nX='/srv/app'\n"
    moved = there_and_back(text, path, language)
    assert moved.startswith(b"# don't touch " + path + b"\n")


# --- Python ---------------------------------------------------------------------------------------

# Each is an expression; {} in its value is the path.
LITERALS = [
    ("'/srv/app'", "{}"),
    ('"/srv/app/x"', "{}/x"),
    ("'''/srv/app'''", "{}"),
    ('"""a\n/srv/app\nb"""', "a\n{}\nb"),
    ("u'/srv/app'", "{}"),
    ("'it\\'s /srv/app'", "it's {}"),
    ("'\\n/srv/app\\t'", "\n{}\t"),
    ("'a' '/srv/app' \"b\"", "a{}b"),
    ("{'k': '/srv/app/src', 2: ['/srv/app']}", {"k": "{}/src", 2: ["{}"]}),
    ("f'/srv/app/{1}'", "{}/1"),
    ("f'{{/srv/app{2}'", None),
    ("('/srv/app'  # it's here\n)", "{}"),
    ("'-L/srv/app/lib'", "-L{}/lib"),
    ("'\\x41 /srv/app \\u00fc'", "A {} ü"),
]


def fill(value: object, path: str) -> object:
    if isinstance(value, str):
        return value.replace("{}", path)
    if isinstance(value, dict):
        return {key: fill(item, path) for key, item in value.items()}
    return [fill(item, path) for item in value] if isinstance(value, list) else value


def check_python(path: bytes, language: Language) -> None:
    for literal, value in LITERALS:
        if value is None:
            continue
        text = b"x = " + literal.encode() + b"\n"
        moved = there_and_back(text, path, language)
        space: dict[str, object] = {}
        exec(compile(moved, "x.py", "exec"), space)
        assert space["x"] == fill(value, path.decode("utf-8", "surrogateescape")), moved


@pytest.mark.parametrize("path", CLASSICS)
@pytest.mark.parametrize("language", [PYTHON, PYTHON_ASCII], ids=["utf-8", "ascii"])
def test_python_reads_the_classics(path: bytes, language: Language) -> None:
    check_python(path, language)


@pytest.mark.parametrize("language", [PYTHON, PYTHON_ASCII], ids=["utf-8", "ascii"])
def test_python_reads_any_path(language: Language) -> None:
    @settings(deadline=None, max_examples=examples(150))
    @given(nasty)
    def check(path: bytes) -> None:
        check_python(path, language)

    check()


@pytest.mark.parametrize("path", CLASSICS)
@pytest.mark.parametrize("literal", [b"b'/srv/app/x'", b'b"""/srv/app/x"""', b"B'/srv/app/x'"])
def test_python_reads_bytes(path: bytes, literal: bytes) -> None:
    moved = there_and_back(b"x = " + literal + b"\n", path, PYTHON)
    assert ast.literal_eval(moved[4:].decode("ascii")) == path + b"/x"


@settings(deadline=None, max_examples=examples(150))
@given(nasty, st.sampled_from([b"r'/srv/app'", b'r"""/srv/app"""', b"rb'/srv/app/x'"]))
def test_a_raw_string_holds_the_path_or_is_reported(path: bytes, literal: bytes) -> None:
    try:
        moved = there_and_back(literal + b"\n", path, PYTHON)
    except Unquotable:
        assert re.search(rb"['\"\x80-\xff]", path) or path.endswith(b"\\")
        return
    value = ast.literal_eval(moved.decode("utf-8", "surrogateescape"))
    value = value if isinstance(value, bytes) else value.encode()
    assert value in (path, path + b"/x")


def test_an_apostrophe_in_prose_does_not_hide_what_follows() -> None:
    text = b"# don't\n'''it's\n/srv/app'''\nit's '/srv/app'\ny = '/srv/app'\n"
    moved = there_and_back(text, b"/srv/it's", PYTHON)
    assert moved.endswith(b"y = '/srv/it\\'s'\n")


# --- JSON -----------------------------------------------------------------------------------------


def check_json(path: bytes, *, ascii_only: bool) -> None:
    text = path.decode("utf-8", "surrogateescape")
    document = {"argv": ["{}/bin/python", "-m"], "metadata": {"ü": "{}", "x": "-L{}/lib"}}
    old = json.dumps(document, ensure_ascii=ascii_only).replace("{}", OLD.decode())
    moved = there_and_back(old.encode(), path, JSON)
    expected = json.loads(old.replace(OLD.decode(), "PATH"), object_hook=None)
    assert json.loads(moved) == json.loads(
        json.dumps(expected).replace("PATH", json.dumps(text)[1:-1])
    )


@pytest.mark.parametrize("path", CLASSICS)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_json_reads_the_classics(path: bytes, ascii_only: bool) -> None:
    check_json(path, ascii_only=ascii_only)


@settings(deadline=None, max_examples=examples(150))
@given(nasty, st.booleans())
def test_json_reads_any_path(path: bytes, ascii_only: bool) -> None:
    check_json(path, ascii_only=ascii_only)


# --- shells that are not on a usual machine: their documented rules -------------------------------


@settings(deadline=None, max_examples=examples(150))
@given(nasty)
@example(b"/srv/it's")
def test_powershell_doubles_quotes_and_escapes_with_backquotes(path: bytes) -> None:
    single = there_and_back(b"$env:VIRTUAL_ENV = '/srv/app'", path, POWERSHELL)
    assert single == b"$env:VIRTUAL_ENV = '" + path.replace(b"'", b"''") + b"'"
    double = there_and_back(b'$x = "/srv/app"', path, POWERSHELL)
    body = double[len(b'$x = "') : -1]
    assert not re.search(rb'(?<!`)(?:``)*["$]', body)
    assert re.sub(rb"`(.)", rb"\1", body) == path


@settings(deadline=None, max_examples=examples(150))
@given(nasty)
@example(b"/srv/100%")
def test_batch_doubles_the_per_cent_sign(path: bytes) -> None:
    moved = there_and_back(b'@for %%i in ("/srv/app") do @set "X=%%~fi"\r\n', path, BATCH)
    assert moved == (b'@for %%i in ("' + path.replace(b"%", b"%%") + b'") do @set "X=%%~fi"\r\n')


@settings(deadline=None, max_examples=examples(150))
@given(nasty)
@example(b"/srv/it's")
@example(b"/srv/'#")
def test_a_nushell_literal_holds_the_path_or_is_reported(path: bytes) -> None:
    for head, tail in ((b"'", b"'"), (b"r#'", b"'#"), (b"r##'", b"'##")):
        try:
            moved = there_and_back(b"const v = " + head + OLD + tail, path, NU)
        except Unquotable:
            assert tail in path
        else:
            assert moved == b"const v = " + head + path + tail
            assert tail not in path


# --- URLs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in CLASSICS if path.isascii()])
def test_a_url_is_percent_encoded_whatever_is_around_it(path: bytes) -> None:
    from urllib.parse import unquote_to_bytes, urlsplit

    text = b"x = 'file:///srv/app/src/x'\n"
    moved = there_and_back(text, path, PYTHON)
    url = ast.literal_eval(moved[4:].decode())
    assert unquote_to_bytes(urlsplit(url).path) == path + b"/src/x"
