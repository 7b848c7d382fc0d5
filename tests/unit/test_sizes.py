"""How long the pieces of the core may be: what is longer has more than one idea in it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

CORE = Path(__file__).parents[2] / "relocate_core"
MODULE, CLASS, FUNCTION = 500, 250, 60


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """The lines of code of a function: without its docstring, comments and empty lines."""
    body = node.body
    if ast.get_docstring(node) is not None and len(body) > 1:
        body = body[1:]
    inner = lines[body[0].lineno - 1 : node.end_lineno]
    return sum(bool(line.strip()) and line.strip()[0] != "#" for line in inner)


def _too_long(name: str, text: str) -> Iterator[str]:
    lines = text.splitlines()
    if len(lines) > MODULE:
        yield f"{name}: {len(lines)} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            size = (node.end_lineno or 0) - node.lineno + 1
            if size > CLASS:
                yield f"{name}: class {node.name}, {size} lines"
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            size = _code(node, lines)
            if size > FUNCTION:
                yield f"{name}: {node.name}(), {size} lines of code"


def test_nothing_in_the_core_is_too_long() -> None:
    modules = {str(path.relative_to(CORE)): path.read_text() for path in CORE.rglob("*.py")}
    assert len(modules) > 100
    assert [fault for name, text in modules.items() for fault in _too_long(name, text)] == []


def test_what_is_too_long_is_found() -> None:
    text = "class Long:\n" + "    x = 1\n" * 250 + "def long():\n" + "    pass\n" * 61
    assert list(_too_long("made_up.py", text + "\n" * 200)) == [
        "made_up.py: 513 lines",
        "made_up.py: class Long, 251 lines",
        "made_up.py: long(), 61 lines of code",
    ]
