#!/usr/bin/env python3
"""Write `docs/reference/` out of the docstrings of what Salt loads.

    python docs/reference.py            write the pages again
    python docs/reference.py --check    fail where one is not what the docstrings say

The sources are parsed and not imported: nothing but Python is needed. Of reStructuredText it knows
what the docstrings use: definition lists, code blocks, notes, literals and references to functions.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
DIRECTORY = HERE / "reference"
WIDTH = 88
# Salt finds them by their names, and calls them itself.
_SALT_CALLS = ("mod_watch",)

_ROLE = re.compile(r":py:(?:func|mod):`([^`<]+?)(?:\s*<([^`>]+)>)?`", re.S)
_LITERAL = re.compile(r"``(.+?)``", re.S)
_DIRECTIVE = re.compile(r"\.\. (code-block:: (\w+)|note::)\n")
_TERM = re.compile(r"\S[^\n]*\n(?= +\S)")


class Page(NamedTuple):
    """A page of the reference."""

    name: str
    """Of the file, without its ending."""
    source: str
    """The module, relative to the checkout."""
    kind: str
    """What the module is to Salt."""

    @property
    def module(self) -> str:
        """What Salt calls the module."""
        return Path(self.source).stem


PAGES = (
    Page("virtualenv_tools", "_modules/virtualenv_tools.py", "execution module"),
    Page("virtualenv_relocated", "_states/virtualenv_relocated.py", "state module"),
    Page("release_programs", "_states/release_programs.py", "state module"),
    Page("releases_pillar", "_modules/releases_pillar.py", "execution module"),
    Page("releases-runner", "_runners/releases.py", "runner"),
)


def functions(page: Page) -> Iterator[ast.FunctionDef]:
    """The functions of a page's module that are for operators, in their order."""
    for node in _tree(page).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith(("_", *_SALT_CALLS)):
            yield node


def written(page: Page) -> str:
    """A page as the docstrings have it."""
    found = list(functions(page))
    parts = [
        f"# {page.module}: {page.kind}",
        f"*Written by `docs/reference.py` out of `{page.source}`: edit that.*",
        markdown(_docstring(_tree(page)), page),
        "\n".join(_overview(found, page)),
    ]
    for function in found:
        parts += [
            f"## {function.name}",
            _fenced("python", _signature(page, function)),
            markdown(_docstring(function), page),
        ]
    return "\n\n".join(parts) + "\n"


def markdown(text: str, page: Page) -> str:
    """A docstring in Markdown."""
    return "\n\n".join(_blocks(text, page))


def _tree(page: Page) -> ast.Module:
    return ast.parse((CHECKOUT / page.source).read_text(encoding="utf-8"))


def _docstring(node: ast.Module | ast.FunctionDef) -> str:
    return ast.get_docstring(node) or ""


def _overview(found: list[ast.FunctionDef], page: Page) -> Iterator[str]:
    yield "| | |"
    yield "|---|---|"
    for function in found:
        summary = _docstring(function).split("\n\n", maxsplit=1)[0]
        first = _inline(summary, page).replace("|", "\\|")
        yield f"| [`{page.module}.{function.name}`](#{function.name}) | {first} |"


def _signature(page: Page, function: ast.FunctionDef) -> str:
    """How a function is called, with the types; one parameter a line where it is long."""
    given = ast.unparse(function.args)
    name = f"{page.module}.{function.name}"
    line = f"{name}({given})"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {one},\n" for one in _parameters(function.args)) + ")"


def _parameters(given: ast.arguments) -> Iterator[str]:
    """Each parameter as it stands."""
    none = [None] * (len(given.args) - len(given.defaults))
    for parameter, default in zip(given.args, [*none, *given.defaults]):
        yield ast.unparse(parameter) + (f" = {ast.unparse(default)}" if default else "")
    if given.kwarg:
        yield f"**{ast.unparse(given.kwarg)}"


def _blocks(text: str, page: Page) -> Iterator[str]:
    """The blocks of a text: paragraphs, definitions, code, notes."""
    text = text.strip("\n")
    while text:
        directive, term = _DIRECTIVE.match(text), _TERM.match(text)
        if directive:
            inner, text = _indented(text[directive.end() :])
            if directive[2]:
                yield _fenced(directive[2], inner)
            else:
                yield textwrap.indent(markdown(inner, page), "> ", lambda line: True)
        elif term:
            inner, text = _indented(text[term.end() :])
            body = textwrap.indent(markdown(inner, page), "  ")
            yield f"- {_terms(term[0].strip(), page)}:\n{body}"
        else:
            paragraph, _, text = text.partition("\n\n")
            yield _inline(paragraph, page)
        text = text.lstrip("\n")


def _indented(text: str) -> tuple[str, str]:
    """The indented lines at the beginning of a text, without their indent, and what follows."""
    lines = text.split("\n")
    count = 0
    while count < len(lines) and (not lines[count] or lines[count].startswith(" ")):
        count += 1
    return textwrap.dedent("\n".join(lines[:count])).strip("\n"), "\n".join(lines[count:])


def _terms(text: str, page: Page) -> str:
    """The names that a definition is of."""
    if "`" in text:
        return _inline(text, page)
    return ", ".join(f"`{name}`" for name in text.split(", "))


def _inline(text: str, page: Page) -> str:
    """A paragraph on one line, with its literals and references."""
    text = _LITERAL.sub(lambda match: f"`{' '.join(match[1].split())}`", text)
    text = _ROLE.sub(lambda match: _reference(match[1], match[2], page), text)
    return " ".join(text.split())


def _reference(shown: str, target: str | None, page: Page) -> str:
    """A link to a function of ours; the name alone of one of Salt's."""
    shown = " ".join(shown.split())
    module, _, name = (target or f"{page.module}.{shown}").rpartition(".")
    for other in PAGES:
        if module.rpartition(".")[2] == other.module:
            return f"[`{shown}`]({'' if other == page else f'{other.name}.md'}#{name})"
    return f"`{shown}`"


def _fenced(language: str, code: str) -> str:
    return f"```{language}\n{code}\n```"


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them; the exit code."""
    stale = []
    for page in PAGES:
        file, text = DIRECTORY / f"{page.name}.md", written(page)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(file.relative_to(CHECKOUT))
            if "--check" not in arguments:
                file.write_text(text, encoding="utf-8")
    for file in stale:
        print(f"{file} is not what its docstrings say" if "--check" in arguments else file)
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
