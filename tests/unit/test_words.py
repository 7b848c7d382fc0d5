"""The vocabulary: what users read has the words that they would search for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

INSTEAD = {
    r"lead(?:s|ing)? (?:to|out|nowhere)|led to": "points to, dangling",
    r"folders?": "directory",
    r"tells?|telling|told|sa(?:y|ys|id) of": "report, print, log, notify",
    r"stands?(?!-)|stood": "exists, is installed, is deployed",
    r"(?:built|deployed|fetched|installed|made|restored|taken|unpacked) out of": "from",
    r"(?:bundle|delta) against|against an earlier": "delta bundle, delta_from",
    r"the (?:release|one) before": "the previous release",
    r"(?:go|goes|going|gone|went) back": "roll back",
    r"ta(?:ke|kes|ken|king) down|bring(?:s|ing)? up|brought up(?! to date)": "migrate down, up",
    r"at home": "relocated",
    r"heal(?:s|ed|ing)?": "recover, resume",
    r"mend(?:s|ed|ing)?": "fix",
    r"anew": "again",
    r"shall": "should, must",
    r"for one(?=[,;.:)])": "for example",
    r"vouch\w*": "verify",
    r"outliv\w+": "persistent",
    r"travels?|stays? behind": "portable",
    r"build facts": "build metadata",
    r"the minion's own": "the user salt-minion runs as",
    r"is no setting": "unknown key X, did you mean Y?",
    r"of no use": "could not be used, falling back to ...",
    r"ask(?:s|ed|ing)? (?:an?|each|its|the) (?:interpreter|Python)": "probe",
    r"rehears\w+": "dry run",
    r"(?:kept|made|moved|put|set|unpacked) aside": "staging directory",
}
"""What is not written, and what is written instead."""

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""The reason why a file (the first of each key) has such a word (the second)."""

AVOIDED = re.compile(rf"\b(?:{'|'.join(INSTEAD)})\b", re.I)
WRITTEN = (
    "*.md",
    "changelog.d/*.md",
    "docs/**/*.md",
    "docs/*.py",
    "docs/images/*.svg",
    "pillar.*",
    "Makefile",
)
SHOWN = ("formula/**/*", "demo/*")
PROGRAMS = ("_modules", "_runners", "_states", "bench", "relocate_core", "saltext_virtualenv_tools")


def files() -> Iterator[Path]:
    """What users read as it is written."""
    for pattern in (*WRITTEN, *SHOWN):
        for path in CHECKOUT.glob(pattern):
            if path.is_file() and "_build" not in path.parts and path.suffix != ".pyc":
                yield path


def texts() -> Iterator[tuple[Path, str]]:
    """All such files, and all texts of the programs: messages, help and docstrings."""
    for path in files():
        yield path, path.read_text()
    for directory in PROGRAMS:
        for path in (CHECKOUT / directory).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield path, node.value


def avoided(text: str) -> list[str]:
    """The words of a text that are not to be used."""
    return AVOIDED.findall(" ".join(text.split()))


def test_words_are_the_ones_that_people_search_for() -> None:
    found = {
        (str(path.relative_to(CHECKOUT)), word.lower())
        for path, text in texts()
        for word in avoided(text)
    }
    assert sorted(found - set(EXCEPTIONS)) == []
    assert set(EXCEPTIONS) <= found, "an exception that is not needed any more"


@pytest.mark.parametrize("text", ["The link leads to", "Folders", "it\nstands", "brought up the"])
def test_such_a_word_is_found(text: str) -> None:
    assert avoided(text)


@pytest.mark.parametrize("text", ["misleads", "a stand-in", "brought up to date", "for one app"])
def test_other_words_are_not(text: str) -> None:
    assert not avoided(text)
