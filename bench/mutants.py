"""Whether the tests find faults: change one line of the core at a time, and run what reaches it.

    python3 bench/mutants.py sample TREE [OTHER] --count 40 --seed 10 > mutants.json
    python3 bench/mutants.py reach TREE > reach.json
    python3 bench/mutants.py run TREE mutants.json reach.json > verdicts.json

`sample` chooses lines by chance, the same ones for the same seed. With two trees, it chooses among
the lines that both have, so that two suites can be compared by the same mutants wherever the line
is in each tree. `reach` runs the quick tests once, in a copy of the tree, and reports which tests
run which functions of the core, in their own process or in others. `run` applies each mutant to a
copy, and runs these tests with `-x`. A mutant that no test notices has survived; so has one whose
function no test runs. A test that does not end has noticed it.

A mutant is found by the text of its line, which is in the core exactly once. The copies are used
with the tree's own `.venv`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

CORE = "relocate_core"
LEFT_OUT = (".git", ".venv*", ".bench", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
ELSEWHERE = {
    f"{CORE}/releases/schemas/adapters/": f"{CORE}/releases/schemas/schema.py:",
    f"{CORE}/bundles/compiler_program.py": f"{CORE}/bundles/compiler.py:",
}
"""What another Python runs by its text alone, unseen by `reach`: what calls it."""
HANGS = 180
"""Seconds after which a test does not end; many times what the slowest of them takes."""
QUICK = ("-m", "not slow", "-q", "-p", "no:cacheprovider", "-p", "mutants_plugin")


# -- mutants --------------------------------------------------------------------------------------

COMPARISONS = {
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
OPERATORS = {
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
}
REMOVABLE = (ast.Expr, ast.AugAssign, ast.Raise, ast.Continue, ast.Break)
"""Not what is missed at once wherever it is run, as an assignment to a variable is."""


class Mutant(NamedTuple):
    """A line of the core without its indentation, and what replaces it."""

    kind: str
    before: str
    after: str


def mutants_of(text: str) -> Iterator[Mutant]:
    """All mutants of a module: each changes one line."""
    lines = text.split("\n")
    for number, kind, after in _changes(ast.parse(text), lines):
        if after != lines[number]:
            yield Mutant(kind, lines[number].strip(), after.strip())


def compiles(text: str, mutant: Mutant) -> bool:
    """Whether a module is still one with a mutant."""
    try:
        compile(mutated(text, mutant), "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def mutated(text: str, mutant: Mutant) -> str:
    """A module's text with a mutant."""
    return "\n".join(
        line[: len(line) - len(line.lstrip())] + mutant.after
        if line.strip() == mutant.before
        else line
        for line in text.split("\n")
    )


def _changes(tree: ast.Module, lines: list[str]) -> Iterator[tuple[int, str, str]]:
    """The number of a line, what kind of change it is, and the changed line."""
    skipped = {id(part) for node in ast.walk(tree) for part in _without_effect(node)}
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(node, (ast.expr, ast.stmt)):
            continue
        number = node.lineno - 1
        for kind, start, end, by in _edits(node, lines[number].encode()):
            line = lines[number].encode()
            yield number, kind, (line[:start] + by.encode() + line[end:]).decode()


def _without_effect(node: ast.AST) -> Iterator[ast.AST]:
    """Docstrings, annotations, and the parts of formatted strings."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        yield from (node, node.value)
    parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    for part in [node] if isinstance(node, ast.JoinedStr) else parts:
        if isinstance(part, ast.AST):
            yield from ast.walk(part)


def _edits(node: ast.expr | ast.stmt, line: bytes) -> Iterator[tuple[str, int, int, str]]:
    """What may be changed about a node, as (kind, start, end, by) in its first line."""
    if isinstance(node, (ast.If, ast.While)) and _is_one_line(node.test):
        start, end = _span(node.test)
        yield "branches swapped", start, end, f"not ({line[start:end].decode()})"
    if not _is_one_line(node):
        return
    start, end = _span(node)
    if isinstance(node, REMOVABLE) or _sets_an_attribute(node):
        yield "statement removed", start, end, "pass"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not dropped", start, end, line[slice(*_span(node.operand))].decode()
    elif isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, operands, operands[1:]):
            yield _operator("comparison", line, left, right, COMPARISONS[type(operator)])
    elif isinstance(node, ast.BoolOp):
        for left, right in zip(node.values, node.values[1:]):
            yield _operator("and, or", line, left, right, OPERATORS[type(node.op)])
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield _operator("sum", line, node.left, node.right, OPERATORS[type(node.op)])
    elif isinstance(node, ast.Constant):
        by = _another(node.value)
        if by is not None:
            yield "constant", start, end, by


def _is_one_line(node: ast.expr | ast.stmt) -> bool:
    return node.lineno == node.end_lineno


def _sets_an_attribute(node: ast.expr | ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else []
    return any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in targets)


def _span(node: ast.expr | ast.stmt) -> tuple[int, int]:
    return node.col_offset, node.end_col_offset or node.col_offset


def _operator(
    kind: str, line: bytes, left: ast.expr, right: ast.expr, change: tuple[str, str]
) -> tuple[str, int, int, str]:
    start, end = _span(left)[1], _span(right)[0]
    return kind, start, end, line[start:end].decode().replace(*change, 1)


def _another(value: object) -> str | None:
    """Another constant; None for a sentence, which only people read."""
    if isinstance(value, bool):
        return repr(not value)
    if isinstance(value, int):
        return repr(value + 1)
    if isinstance(value, str):
        return None if " " in value else repr(value + "?")
    return repr(value + b"?") if isinstance(value, bytes) else None


def modules(tree: Path) -> dict[str, str]:
    """The text of each module of the core, by its path in the tree."""
    found = sorted((tree / CORE).rglob("*.py"))
    return {str(path.relative_to(tree)): path.read_text() for path in found}


def sample(trees: list[Path], count: int, seed: int) -> list[Mutant]:
    """Some mutants of the first tree, each of another line that is in all trees, once in each.

    Of each kind about as many, though there are many more constants than anything else.
    """
    times = [
        Counter(line.strip() for text in modules(tree).values() for line in text.split("\n"))
        for tree in trees
    ]
    by_kind: dict[str, list[tuple[Mutant, str]]] = defaultdict(list)
    for text in modules(trees[0]).values():
        for mutant in mutants_of(text):
            if all(lines[mutant.before] == 1 for lines in times):
                by_kind[mutant.kind].append((mutant, text))
    chance = random.Random(seed)
    found: dict[str, Mutant] = {}
    while len(found) < count and by_kind:
        kind = chance.choice(sorted(by_kind))
        mutant, text = by_kind[kind].pop(chance.randrange(len(by_kind[kind])))
        if mutant.before not in found and compiles(text, mutant):
            found[mutant.before] = mutant
        if not by_kind[kind]:
            del by_kind[kind]
    return list(found.values())


def place(tree: Path, mutant: Mutant) -> tuple[str, str]:
    """The module with a mutant's line, and the function it is in ("" for none)."""
    for path, text in modules(tree).items():
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip() == mutant.before:
                return path, _function_at(ast.parse(text), number)
    raise SystemExit(f"{tree} has no line {mutant.before!r}")


def _function_at(tree: ast.Module, number: int) -> str:
    """The qualified name of the innermost function around a line, as code objects have it."""
    found, parts, node = "", "", tree
    while True:
        inner = next(
            (
                part
                for part in _definitions(node)
                if part.lineno <= number <= (part.end_lineno or part.lineno)
            ),
            None,
        )
        if inner is None:
            return found
        parts += inner.name
        if isinstance(inner, ast.ClassDef):
            parts += "."
        else:
            found = parts
            parts += ".<locals>."
        node = inner


def _definitions(node: ast.AST) -> Iterator[Any]:
    """The functions and classes in a node that are in no other ones."""
    for part in ast.iter_child_nodes(node):
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield part
        else:
            yield from _definitions(part)


# -- which tests reach what -----------------------------------------------------------------------

HOOK = f"""
import builtins, os, sys, threading
if not hasattr(builtins, "_mutants_seen"):
    seen = builtins._mutants_seen = set()
    file = os.open(os.environ["MUTANTS_REACHED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    write, environ, mark = os.write, os.environ, os.sep + {CORE!r}

    def note(frame, event, argument):
        code = frame.f_code
        if code not in seen:
            seen.add(code)
            _, core, path = code.co_filename.rpartition(mark)
            if core:
                path = path.partition(os.sep)[2]
                test = environ.get("PYTEST_CURRENT_TEST", "")
                name = getattr(code, "co_qualname", code.co_name)
                line = f"{{test}}\\t{CORE}/{{path}}\\t{{name}}\\n"
                try:
                    write(file, line.encode("utf-8", "replace"))
                except OSError:
                    pass

    threading.settrace(note)
    sys.settrace(note)
"""
"""Added to the core in a copy: notes each function that is run, once a test and process."""

PLUGIN = f"""
import builtins, json, os, threading, time
import pytest

chosen = json.loads(os.environ.get("MUTANTS_TESTS", "null"))
if chosen is not None:
    with open(chosen) as file:
        chosen = set(json.load(file))
begun = [time.monotonic()]


def watch():
    while time.monotonic() - begun[0] < {HANGS}:
        time.sleep(1)
    os._exit(99)


threading.Thread(target=watch, daemon=True).start()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    begun[0] = time.monotonic()
    if chosen is not None:
        out = [item for item in items if item.nodeid not in chosen]
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item.nodeid in chosen]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logstart(nodeid):
    begun[0] = time.monotonic()
    getattr(builtins, "_mutants_seen", set()).clear()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call():
    getattr(builtins, "_mutants_seen", set()).clear()


def pytest_sessionfinish():
    begun[0] += 3600


def pytest_report_teststatus(report):
    if report.failed and "MUTANTS_FAILED" in os.environ:
        with open(os.environ["MUTANTS_FAILED"], "a") as file:
            file.write(report.nodeid + "\\n")
"""
"""Chooses tests, ends what hangs, and lets each test note its functions again."""


def copied(tree: Path, directory: Path) -> Path:
    """A copy of a tree, and the plugin beside it."""
    copy = directory / "tree"
    shutil.copytree(tree, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    plugins = directory / "plugins"
    plugins.mkdir()
    (plugins / "mutants_plugin.py").write_text(PLUGIN)
    return copy


def pytest(tree: Path, copy: Path, arguments: Iterable[str], **extra: str) -> int:
    """Run pytest of a tree in its copy; the exit code."""
    paths = [str(copy), str(copy.parent / "plugins")]
    process = subprocess.Popen(
        [str(tree / ".venv" / "bin" / "python"), "-m", "pytest", *QUICK, *arguments],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **extra},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if "MUTANTS_REACHED" in extra else subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def reach(tree: Path, workers: int, tests: list[str]) -> dict[str, list[str]]:
    """The tests that run each function, by `module:function`; `module:` for any of a module."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        copy = copied(tree, directory)
        notes, failed = directory / "notes", directory / "failed"
        hook = directory / "hook.py"
        hook.write_text(HOOK)
        notes.touch(mode=0o666)
        notes.chmod(0o666)
        failed.touch()
        with open(copy / CORE / "__init__.py", "a") as file:
            file.write(f"\nexec(open({str(hook)!r}).read(), {{}})\n")
        arguments = ["-n", str(workers), "--dist", "loadfile", *tests]
        named = {"MUTANTS_REACHED": str(notes), "MUTANTS_FAILED": str(failed)}
        pytest(tree, copy, arguments, **named)
        bad = set(failed.read_text().splitlines())
        lines = notes.read_text(errors="replace").splitlines()
    print(f"{len(bad)} tests failed without any mutant, and are left out", file=sys.stderr)
    return _by_function(lines, bad)


def _by_function(lines: list[str], bad: set[str]) -> dict[str, list[str]]:
    """What notes say. A fixture may serve all tests of a file, so what it runs counts for all."""
    by_function: dict[str, set[str]] = defaultdict(set)
    of_file: dict[str, set[str]] = defaultdict(set)
    by_fixture: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        current, path, function = line.split("\t")
        test, _, phase = current.rpartition(" ")
        if test in bad or not test:
            continue
        file = test.partition("::")[0]
        of_file[file].add(test)
        for key in (f"{path}:{function}", f"{path}:"):
            (by_function if phase == "(call)" else by_fixture)[key].add(
                test if phase == "(call)" else file
            )
    for key, files in by_fixture.items():
        for file in files:
            by_function[key] |= of_file[file]
    return {key: sorted(tests) for key, tests in sorted(by_function.items())}


# -- what the tests notice ------------------------------------------------------------------------


def verdict(
    tree: Path, mutant: Mutant, reached: dict[str, list[str]], workers: int
) -> dict[str, Any]:
    """What became of a mutant: killed, hangs, or survived."""
    path, function = place(tree, mutant)
    callers = next((key for part, key in ELSEWHERE.items() if path.startswith(part)), "")
    tests = reached.get(callers or f"{path}:{function}", [])
    begin = time.monotonic()
    said = "survived" if tests else "not reached"
    # Those of the pure parts take no time, and are the nearest ones.
    units = [test for test in tests if "/unit/" in test]
    for some in (units, sorted(set(tests) - set(units))):
        if said == "survived" and some:
            said = _noticed(tree, mutant, path, some, workers if len(some) > 20 else 0)
    return {
        **mutant._asdict(),
        "path": path,
        "function": function,
        "tests": len(tests),
        "seconds": round(time.monotonic() - begin),
        "verdict": said,
    }


def _noticed(tree: Path, mutant: Mutant, path: str, tests: list[str], workers: int) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        copy = copied(tree, directory)
        module = copy / path
        module.write_text(mutated(module.read_text(), mutant))
        chosen = directory / "tests.json"
        chosen.write_text(json.dumps(tests))
        arguments = ["-x", *sorted({test.partition("::")[0] for test in tests})]
        if workers:
            arguments += ["-n", str(workers), "--dist", "loadfile", "--max-worker-restart", "0"]
        code = pytest(tree, copy, arguments, MUTANTS_TESTS=json.dumps(str(chosen)))
    return {0: "survived", 5: "survived", 99: "hangs"}.get(code, "killed")


# -- the command ----------------------------------------------------------------------------------


def main() -> None:
    """Run one of the three commands; all print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sampling = commands.add_parser("sample")
    sampling.add_argument("trees", nargs="+", type=Path)
    sampling.add_argument("--count", type=int, default=40)
    sampling.add_argument("--seed", type=int, default=10)
    reaching = commands.add_parser("reach")
    reaching.add_argument("tree", type=Path)
    reaching.add_argument("tests", nargs="*", help="files of tests instead of all")
    running = commands.add_parser("run")
    running.add_argument("tree", type=Path)
    running.add_argument("mutants", type=Path, help="of `sample`, or the verdicts of another run")
    running.add_argument("reach", type=Path)
    running.add_argument("--survivors", action="store_true", help="only those that survived there")
    for each in (reaching, running):
        each.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    if given.command == "sample":
        found = sample([tree.resolve() for tree in given.trees], given.count, given.seed)
        print(json.dumps([mutant._asdict() for mutant in found], indent=1))
    elif given.command == "reach":
        print(json.dumps(reach(given.tree.resolve(), given.workers, given.tests)))
    else:
        _run(given)


def _run(given: argparse.Namespace) -> None:
    rows = json.loads(given.mutants.read_text())
    reached = json.loads(given.reach.read_text())
    if given.survivors:
        rows = [row for row in rows if row["verdict"] in ("survived", "not reached")]
    verdicts = []
    for row in rows:
        mutant = Mutant(row["kind"], row["before"], row["after"])
        found = verdict(given.tree.resolve(), mutant, reached, given.workers)
        verdicts.append(found)
        print(
            f"{found['verdict']:12} {found['seconds']:4} s  {found['tests']:5} tests  "
            f"{found['path']}:{found['function']}\n    - {mutant.before}\n    + {mutant.after}",
            file=sys.stderr,
            flush=True,
        )
    counts = Counter(found["verdict"] for found in verdicts)
    print(", ".join(f"{number} {said}" for said, number in counts.items()), file=sys.stderr)
    print(json.dumps(verdicts, indent=1))


if __name__ == "__main__":
    main()
